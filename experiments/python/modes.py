"""Phase 2d: does a source's cognitive mode transfer, apart from its content?

The mode's probe is an answer of that mode whose content is in no source of the item. The effect of mode m is the probe's
uplift under a source of mode m less its uplift under a factual source, with the entity held the same, over items. It
counts only where it survives other content (entity `other`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

import effects
from verdicts import ALPHA

REFERENCE = "factual"
EQUIVALENCE_D = 0.5  # standard deviations of the difference: below it an effect of mode is called none


def _probe(lines: pd.DataFrame, name: str) -> pd.Series:
    values = [p[name]["uplift"] if isinstance(p, dict) and name in p else np.nan for p in lines["probes"]]
    return pd.Series(values, index=lines.index, dtype=float)


def _contrast(lines: pd.DataFrame, probe: str, mode: str, resamples: int) -> dict:
    values = lines.assign(value=_probe(lines, probe))
    table = values.pivot_table(index="item", columns="mode", values="value", aggfunc="mean", dropna=False)
    empty = pd.Series(dtype=float)
    a, b = effects.clean(*(table.get(m, empty).reindex(table.index) for m in (mode, REFERENCE)))
    spread = float((a - b).std(ddof=1)) if len(a) > 2 else 0.0
    estimate = effects.mean_difference(a, b, resamples)
    return {
        "nats": None if estimate is None else estimate.as_dict(),
        "effect": effects.paired_effect(a, b),
        "p": effects.sign_flip_p(a, b, resamples=resamples),
        "equivalence": effects.equivalence(a, b, EQUIVALENCE_D * spread),
        "n": len(a),
    }


def mode_effects(test: pd.DataFrame, resamples: int = effects.RESAMPLES) -> list[dict]:
    """Of each framing, entity and mode: the effect on the mode's probe and on the true answer. Holm over all."""
    lines = test[(test["condition"] == "transfer") & test["mode"].notna()]
    rows = []
    for (framing, entity), group in lines.groupby(["framing", "entity"], sort=False):
        for mode in [m for m in group["mode"].unique() if m != REFERENCE]:
            for probe in (mode, "truth"):
                row = {"framing": framing, "entity": entity, "mode": mode, "probe": probe}
                rows.append({**row, **_contrast(group, probe, mode, resamples)})
    rows = [row for row in rows if row["n"] > 0]
    for row, p in zip(rows, effects.holm([row["p"] for row in rows])):
        row["p_holm"] = p
        row["transfers"] = p is not None and p < ALPHA and row["nats"] is not None and (
            row["nats"]["value"] < 0 if row["probe"] == "truth" else row["nats"]["value"] > 0
        )
    equal = [row["equivalence"]["p"] if row["equivalence"] else None for row in rows]
    for row, p in zip(rows, effects.holm(equal)):
        row["p_equivalence_holm"] = p
    return rows


def answers(test: pd.DataFrame) -> list[dict]:
    """Of each framing, entity and mode: how many answers carry the source's words (content), and how many are no
    longer true without them (mode). An item answered at once counts as neither."""
    rows = []
    lines = test[test["condition"].isin(["baseline", "transfer"]) & test["mode"].notna()]
    for key, group in lines.groupby(["framing", "entity", "mode", "condition"], sort=False):
        named = group["markers"].map(lambda found: bool(found))
        true = group["truth_markers"].map(lambda found: bool(found))
        spoke = ~group["stall"].astype(bool)
        n = len(group)
        rows.append(
            {
                **dict(zip(("framing", "entity", "mode", "condition"), key)),
                "n": n,
                "stalled": effects.share(int((~spoke).sum()), n).as_dict(),
                "names_source": effects.share(int((named & spoke).sum()), n).as_dict(),
                "true": effects.share(int((true & spoke).sum()), n).as_dict(),
                "neither": effects.share(int((~named & ~true & spoke).sum()), n).as_dict(),
            }
        )
    return rows
