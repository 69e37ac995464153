"""The open questions: curves over a sweep's points, each with an interval, and what they say.

A point's tau is mean(LD - LD_baseline) / mean(LD_text - LD_baseline) over items: 0 is baseline, 1 is the two texts fed in
turn. `own` is that of the trial's own source, `over` the same less another trial's source at the same point.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

import effects
from thresholds import add_tau
from verdicts import ALPHA, by_item

EQUIVALENCE_TAU = 0.1  # a tenth of what the text itself does: below it a difference is called none
PAIR = ["set", "trial", "framing"]
SINGLE_LAYER = "single"


def prepare(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of a sweep with tau, and the mode's own probe."""
    lines = lines.copy()
    for name in ("baseline", "text"):
        of = lines[lines["condition"] == name].set_index(PAIR)[["ld"]]
        lines = lines.join(of.add_suffix(f"_{name}"), on=PAIR)
    add_tau(lines)
    lines["mode_uplift"] = [
        probes[mode]["uplift"] if isinstance(probes, dict) and isinstance(mode, str) and mode in probes else np.nan
        for probes, mode in zip(lines["probes"], lines["mode"])
    ]
    lines["mode_uplift"] = lines["mode_uplift"].astype(float)
    lines["content_uplift"] = lines["reference_uplift"] - lines["twin_uplift"]
    return lines


def _dict(estimate) -> dict | None:
    return None if estimate is None else estimate.as_dict()


def curves(lines: pd.DataFrame, resamples: int = effects.RESAMPLES) -> list[dict]:
    """One entry a (framing, family, point): the trials of the test split. `p_family` is adjusted over a framing's points."""
    points, differences = [], []
    measured = lines[lines["series"].notna()]
    for (family, framing), group in measured.groupby(["family", "framing"], sort=False):
        for point, at in group.groupby("point", sort=False):
            own = by_item(at[at["condition"] == "transfer"], ["moved", "span", "reference_uplift"])
            other = by_item(at[at["condition"] == "mismatched"], ["moved", "reference_uplift"]).reindex(own.index)
            if not len(own):
                continue
            first = at.iloc[0]
            difference = own["reference_uplift"] - other["reference_uplift"]
            differences.append(difference.set_axis([(family, item) for item in difference.index]))
            points.append(
                {
                    "family": family,
                    "framing": framing,
                    "point": point,
                    "series": first["series"],
                    "x": None if pd.isna(first["x"]) else float(first["x"]),
                    "x_label": first["x_label"],
                    "selection": first["selection"],
                    "sink": first["sink"],
                    "n": len(own),
                    "own": _dict(effects.ratio_of_means(own["moved"], own["span"], resamples)),
                    "mismatched": _dict(effects.ratio_of_means(other["moved"], own["span"], resamples)),
                    "over": _dict(effects.ratio_of_means(own["moved"] - other["moved"], own["span"], resamples)),
                    "uplift_over_mismatched": _dict(
                        effects.mean_difference(own["reference_uplift"], other["reference_uplift"], resamples)
                    ),
                    "effect": effects.paired_effect(own["reference_uplift"], other["reference_uplift"]),
                    "p": effects.sign_flip_p(own["reference_uplift"], other["reference_uplift"], "greater", resamples),
                }
            )
    for framing in {point["framing"] for point in points}:
        here = [i for i, point in enumerate(points) if point["framing"] == framing]
        for i, p in zip(here, effects.family_p(_side_by_side([differences[i] for i in here]), "greater", resamples)):
            points[i]["p_family"] = p
            points[i]["carries"] = p is not None and p < ALPHA
    return points


def _side_by_side(columns: list[pd.Series]) -> np.ndarray:
    """Items x columns, NaN where a column lacks the item."""
    return pd.concat([c.set_axis(pd.MultiIndex.from_tuples(c.index)) for c in columns], axis=1).to_numpy()


def groups(points: list[dict]) -> dict[str, list[dict]]:
    """The points of each family and framing, under a name for them; families are named where there are several."""
    several = len({p["family"] for p in points}) > 1
    out: dict[str, list[dict]] = {}
    for p in points:
        out.setdefault(f"{p['framing']}, {p['family']}" if several else p["framing"], []).append(p)
    return out


def against_reference(lines: pd.DataFrame, reference: str, resamples: int = effects.RESAMPLES) -> list[dict]:
    """Each point against that of series `reference` with x = 0, over the same items: difference of tau, p adjusted
    over all of them, and whether they are equivalent within EQUIVALENCE_TAU (two one-sided tests, Holm)."""
    compared, differences = [], []
    own = lines[(lines["condition"] == "transfer") & lines["series"].notna()]
    for (family, framing), group in own.groupby(["family", "framing"], sort=False):
        base = group[(group["series"] == reference) & (group["x"] == 0)]
        if not len(base):
            continue
        start = base["point"].iloc[0]
        base = by_item(base, ["moved", "span"])
        margin = EQUIVALENCE_TAU * abs(float(base["span"].mean()))
        for point, at in group.groupby("point", sort=False):
            if point == start:
                continue
            moved = by_item(at, ["moved"])["moved"].reindex(base.index)
            difference = moved - base["moved"]
            differences.append(difference.set_axis([(family, framing, item) for item in difference.index]))
            compared.append(
                {
                    "family": family,
                    "framing": framing,
                    "point": point,
                    "series": at["series"].iloc[0],
                    "x": None if pd.isna(at["x"].iloc[0]) else float(at["x"].iloc[0]),
                    "difference": _dict(effects.ratio_of_means(difference, base["span"], resamples)),
                    "p": effects.sign_flip_p(moved, base["moved"], resamples=resamples),
                    "equivalence": effects.equivalence(moved, base["moved"], margin),
                }
            )
    for point, p in zip(compared, effects.family_p(_side_by_side(differences), resamples=resamples) if compared else []):
        point["p_family"] = p
    equal = [point["equivalence"]["p"] if point["equivalence"] else None for point in compared]
    for point, p in zip(compared, effects.holm(equal)):
        point["p_equivalence_holm"] = p
    return compared


def mode_against_content(lines: pd.DataFrame, resamples: int = effects.RESAMPLES) -> list[dict]:
    """Of each single layer: its part of the whole splice's mode effect less its part of the content effect.

    Both are uplifts of the point less those of the splice of nothing, as a part of the splice of everything. The mode
    effect is taken where the source is of another entity, so that what moves is not the content. `p_family` is adjusted over
    the layers, with the two whole effects taken as they are.
    """
    rows, differences = [], []
    own = lines[(lines["condition"] == "transfer") & lines["series"].notna()]
    for (family, framing), group in own.groupby(["family", "framing"], sort=False):
        other = group[group["entity"].isna() | (group["entity"] == "other")]
        mode, content = _table(other, "mode_uplift"), _table(group, "content_uplift")
        points = group.drop_duplicates("point").set_index("point")
        every = _point_of(points, "all")
        nothing = _point_of(points, "none")
        if every is None or mode[every].notna().sum() < 3:
            continue
        zero = [mode[nothing], content[nothing]] if nothing is not None else [0.0, 0.0]
        for point in points.index:
            if points.loc[point, "series"].split("/")[0] != SINGLE_LAYER:
                continue
            parts = [mode[point] - zero[0], mode[every] - zero[0], content[point] - zero[1], content[every] - zero[1]]
            a, b, c, d = effects.clean(*[part.reindex(mode.index) for part in parts])
            differences.append((parts[0] / b.mean() - parts[2] / d.mean()).reindex(mode.index))
            rows.append(
                {
                    "family": family,
                    "framing": framing,
                    "series": points.loc[point, "series"],
                    "layer": float(points.loc[point, "x"]),
                    "mode": _dict(effects.ratio_of_means(a, b, resamples)),
                    "content": _dict(effects.ratio_of_means(c, d, resamples)),
                    "difference": _dict(effects.difference_of_ratios(a, b, c, d, resamples)),
                    "mode_whole": _dict(effects.mean(b, resamples)),
                    "content_whole": _dict(effects.mean(d, resamples)),
                }
            )
    for key in dict.fromkeys((row["family"], row["framing"], row["series"]) for row in rows):
        here = [i for i, row in enumerate(rows) if (row["family"], row["framing"], row["series"]) == key]
        values = pd.concat([differences[i] for i in here], axis=1).to_numpy()
        for i, p in zip(here, effects.family_p(values, resamples=resamples)):
            rows[i]["p_family"] = p
    return rows


def _table(lines: pd.DataFrame, column: str) -> pd.DataFrame:
    """Items by points, the mean over an item's trials."""
    return lines.pivot_table(index="item", columns="point", values=column, aggfunc="mean", dropna=False, sort=False)


def _point_of(points: pd.DataFrame, which: str) -> str | None:
    at = [point for point in points.index if points.loc[point, "series"].split("/")[0] == which]
    return at[0] if at else None
