"""Phase 2d: does a source's cognitive mode transfer, apart from its content?

The mode's probe is an answer of that mode whose content is in no source of the item. The effect of mode m is the probe's
uplift under a source of mode m less its uplift under a factual source, with the entity held the same, over items. It
counts only where it survives other content (entity `other`).
"""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

import effects
import figures
from html_parts import estimate, p_value, several, sortable, table
from verdicts import ALPHA

REFERENCE = "factual"
EQUIVALENCE_D = 0.5  # standard deviations of the difference: below it an effect of mode is called none


def _probe(lines: pd.DataFrame, name: str) -> pd.Series:
    values = [p[name]["uplift"] if isinstance(p, dict) and name in p else np.nan for p in lines["probes"]]
    return pd.Series(values, index=lines.index, dtype=float)


def _by_item(lines: pd.DataFrame, probe: str, modes: tuple[str, ...]) -> list[pd.Series]:
    """The probe's uplift under a source of each of the modes."""
    values = lines.assign(value=_probe(lines, probe))
    table = values.pivot_table(index="item", columns="mode", values="value", aggfunc="mean", dropna=False)
    empty = pd.Series(dtype=float)
    return [table.get(mode, empty).reindex(table.index) for mode in modes]


def _contrast(a, b, resamples: int) -> dict:
    """What is said of a - b over items."""
    a, b = effects.clean(a, b)
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
                rows.append({**row, **_contrast(*_by_item(group, probe, (mode, REFERENCE)), resamples)})
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


def entity_effects(test: pd.DataFrame, resamples: int = effects.RESAMPLES) -> list[dict]:
    """Of each framing and mode: by how much the effect on the mode's probe is larger with the same entity than with another.

    That is mode x entity: what the mode's effect owes to a source that speaks of the target's own entity. Holm over all.
    """
    lines = test[(test["condition"] == "transfer") & test["mode"].notna()]
    rows = []
    for framing, group in lines.groupby("framing", sort=False):
        for mode in [m for m in group["mode"].unique() if m != REFERENCE]:
            effect = {}
            for entity in ("same", "other"):
                under, reference = _by_item(group[group["entity"] == entity], mode, (mode, REFERENCE))
                effect[entity] = under - reference
            same, other = effect["same"].align(effect["other"])
            rows.append({"framing": framing, "mode": mode, **_contrast(same, other, resamples)})
    rows = [row for row in rows if row["n"] > 0]
    for row, p in zip(rows, effects.holm([row["p"] for row in rows])):
        row["p_holm"] = p
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


# ---- the report's panel ----


def add_modes(page) -> None:
    rows = page.summary["modes"]
    if not rows:
        return
    body = (
        "<p>2d crosses the source's mode with its entity. The effect of a mode is the log-probability of an answer of that mode, whose "
        "content is in no source, under a source of that mode less that under a factual source. It counts as mode only where the source is of "
        "another entity (so that no content can be repeated).</p><div class=pair>"
    )
    for i, model in enumerate(several(rows, "model")):
        for entity in ("other", "same"):
            here = [m for m in rows if (m["model"], m["entity"]) == (model, entity) and m["probe"] == m["mode"]]
            framings, kinds = several(here, "framing"), several(here, "mode")
            by = {(m["framing"], m["mode"]): m["nats"] for m in here}
            series = {mode: [by.get((f, mode)) for f in framings] for mode in kinds}
            if here:
                plot = figures.forest(f"mode-{i}-{entity}", framings, series, "effect of the source's mode (nats)")
                body += page.plot(plot, f"{model}, {entity} entity")
    body += "</div><h3>The same entity's additional effect</h3>" + _entity_table(page.summary["mode_by_entity"])
    body += "<h3>What the answers say</h3>" + _answer_table(page.summary["answers"])
    columns = [
        ("model", "text"), ("framing", "text"), ("entity", "text"), ("mode of the source", "text"), ("probe", "text"), ("n", "number"),
        ("nats", "number"), ("d (paired)", "number"), ("g", "number"), ("Holm p", "number"), ("equivalence p", "number"),
    ]  # fmt: skip
    table_rows = []
    for m in rows:
        d, g = (m["effect"] or {}).get("d"), (m["effect"] or {}).get("g")
        table_rows.append(
            [escape(m["model"]), m["framing"], m["entity"], m["mode"], escape(m["probe"]), m["n"]]
            + [sortable(estimate(e), e and e["value"]) for e in (m["nats"], d, g)]
            + [sortable(p_value(p), p) for p in (m["p_holm"], m["p_equivalence_holm"])]
        )
    page.add("modes", "Does the mode transfer, apart from the content?", body + "<h3>Every test</h3>" + table(columns, table_rows, "mode effects"))


def _entity_table(rows: list[dict]) -> str:
    columns = [("model", "text"), ("framing", "text"), ("mode of the source", "text"), ("n", "number"), ("effect on its probe: same less other entity, nats", "number"),
               ("d (paired)", "number"), ("Holm p", "number")]  # fmt: skip
    cells = []
    for m in rows:
        d = (m["effect"] or {}).get("d")
        shown = [sortable(estimate(e), e and e["value"]) for e in (m["nats"], d)]
        cells.append([escape(m["model"]), m["framing"], m["mode"], m["n"], *shown, sortable(p_value(m["p_holm"]), m["p_holm"])])
    return table(columns, cells, "mode by entity")


def _answer_table(answers: list[dict]) -> str:
    columns = [("model", "text"), ("framing", "text"), ("entity", "text"), ("mode of the source", "text"), ("condition", "text"), ("n", "number"),
               ("names the source's words", "number"), ("true", "number"), ("neither", "number"), ("ends at once", "number")]  # fmt: skip
    rows = []
    for a in answers:
        shares = [sortable(f"{a[k]['value']:.0%}", a[k]["value"]) for k in ("names_source", "true", "neither", "stalled")]
        rows.append([escape(a["model"]), a["framing"], a["entity"], a["mode"], a["condition"], a["n"], *shares])
    return table(columns, rows, "what the answers say")
