"""The open questions: curves over a sweep's points, each with an interval, and what they say.

A point's tau is mean(LD - LD_baseline) / mean(LD_text - LD_baseline) over items: 0 is baseline, 1 is the two texts fed in
turn. `own` is that of the trial's own source, `over` the same less another trial's source at the same point.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

import effects
from modes import REFERENCE
from thresholds import add_tau
from verdicts import ALPHA, by_item

EQUIVALENCE_TAU = 0.1  # a tenth of what the text itself does: below it a difference is called none
PAIR = ["set", "trial", "framing"]
SINGLE_LAYER = "single"


def prepare(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of a sweep with tau; the effect on content, the reference answer's uplift less the twin's; and that on mode, which is
    that of the mode's probe less that of the factual one: any statement raises the answers that are made like it."""
    lines = lines.copy()
    for name in ("baseline", "text"):
        of = lines[lines["condition"] == name].set_index(PAIR)[["ld"]]
        lines = lines.join(of.add_suffix(f"_{name}"), on=PAIR)
    add_tau(lines)
    lines["answer_uplift"] = [_probe(probes, mode) for probes, mode in zip(lines["probes"], lines["mode"])]
    lines["factual_uplift"] = [_probe(probes, REFERENCE) for probes in lines["probes"]]
    lines["mode_uplift"] = lines["answer_uplift"] - lines["factual_uplift"]
    lines["content_uplift"] = lines["reference_uplift"] - lines["twin_uplift"]
    return lines


def _probe(probes, name) -> float:
    return float(probes[name]["uplift"]) if isinstance(probes, dict) and isinstance(name, str) and name in probes else np.nan


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


def places(lines: pd.DataFrame, reference: str, resamples: int = effects.RESAMPLES) -> list[dict]:
    """Start, middle and end of the target as such: a place's slots put together, an item's mean over them.

    One entry a (family, framing, place, rule for positions, rest of the target): tau, and the difference from the start of
    series `reference`, its p adjusted over a framing's entries and whether that is equivalent to none. Gaps are not among them.
    """
    own = lines[(lines["condition"] == "transfer") & lines["series"].notna() & (lines["x_label"] != "gap")]
    own = own.assign(place=own["point"].str.split(":").str[0])
    found, differences = [], []
    for (family, framing), group in own.groupby(["family", "framing"], sort=False):
        start = by_item(group[(group["place"] == "start") & (group["series"] == reference)], ["moved", "span"])
        if not len(start):
            continue
        margin = EQUIVALENCE_TAU * abs(float(start["span"].mean()))
        for (place, series), at in group.groupby(["place", "series"], sort=False):
            items = by_item(at, ["moved", "span"])
            difference = items["moved"].reindex(start.index) - start["moved"]
            same = (place, series) == ("start", reference)
            differences.append(difference.set_axis([(family, item) for item in difference.index]) * (np.nan if same else 1.0))
            found.append(
                {
                    "family": family,
                    "framing": framing,
                    "place": place,
                    "series": series,
                    "slots": int(at["point"].nunique()),
                    "n": len(items),
                    "own": _dict(effects.ratio_of_means(items["moved"], items["span"], resamples)),
                    "difference": None if same else _dict(effects.ratio_of_means(difference, start["span"], resamples)),
                    "equivalence": None if same else effects.equivalence(difference, np.zeros(len(difference)), margin),
                }
            )
    for framing in {entry["framing"] for entry in found}:
        here = [i for i, entry in enumerate(found) if entry["framing"] == framing]
        adjusted = effects.family_p(_side_by_side([differences[i] for i in here]), resamples=resamples)
        equal = effects.holm([found[i]["equivalence"] and found[i]["equivalence"]["p"] for i in here])
        for i, p, p_equal in zip(here, adjusted, equal):
            found[i]["p_family"], found[i]["p_equivalence_holm"] = p, p_equal
    return found


def mode_against_content(lines: pd.DataFrame, resamples: int = effects.RESAMPLES) -> list[dict]:
    """Of each single layer and mode of the source: its part of the whole splice's mode effect less that of its content effect.

    Both are those of the point less those of the splice of nothing, as a part of the splice of everything; a mode that the
    whole does not raise, its interval not above 0, has no parts. The mode effect is taken where the source is of another entity, so
    that what moves is not the content. `p_family` is adjusted over all layers and modes, the whole effects taken as they are.
    """
    rows, differences = [], []
    own = lines[(lines["condition"] == "transfer") & lines["series"].notna()]
    for (family, framing, source_mode), group in own.groupby(["family", "framing", "mode"], sort=False):
        points = group.drop_duplicates("point").set_index("point")["series"]
        other = group[group["entity"].isna() | (group["entity"] == "other")]
        moved = {name: _less_nothing(of, f"{name}_uplift", points) for name, of in (("mode", other), ("answer", other), ("factual", other), ("content", group))}
        for sink in ("kept", "free"):
            every = points.index[points == f"all/{sink}"]
            if not len(every) or moved["mode"][every[0]].notna().sum() < 3:
                continue
            identity = {"family": family, "framing": framing, "source_mode": source_mode, "series": f"{SINGLE_LAYER}/{sink}"}
            singles = group.loc[group["series"] == identity["series"], ["point", "x"]].drop_duplicates()
            for row, difference in _parts(moved, every[0], singles, resamples):
                rows.append({**identity, **row})
                differences.append(difference)
    for key in dict.fromkeys((row["family"], row["framing"], row["series"]) for row in rows):
        here = [i for i, row in enumerate(rows) if (row["family"], row["framing"], row["series"]) == key]
        values = pd.concat([differences[i] for i in here], axis=1).to_numpy()
        for i, p in zip(here, effects.family_p(values, resamples=resamples)):
            rows[i]["p_family"] = p
    return rows


def _parts(moved: dict[str, pd.DataFrame], every: str, singles: pd.DataFrame, resamples: int):
    """Of each single layer's point: its entry, and the items' differences, NaN where there is no whole to divide."""
    whole = {name: effects.mean(table[every], resamples) for name, table in moved.items()}
    divided = all(whole[name] is not None and whole[name].low > 0 for name in ("mode", "content"))
    wholes = {f"{name}_whole": _dict(estimate) for name, estimate in whole.items()}
    for point, layer in singles.itertuples(index=False):
        a, b, c, d = (moved[name][at].reindex(moved["mode"].index) for name in ("mode", "content") for at in (point, every))
        entry = {
            "layer": float(layer),
            "mode": _dict(effects.ratio_of_means(a, b, resamples)) if divided else None,
            "content": _dict(effects.ratio_of_means(c, d, resamples)),
            "difference": _dict(effects.difference_of_ratios(a, b, c, d, resamples)) if divided else None,
            **wholes,
        }
        yield entry, (a / b.mean() - c / d.mean()) * (1.0 if divided else np.nan)


def _less_nothing(lines: pd.DataFrame, column: str, points: pd.Series) -> pd.DataFrame:
    """Items by points of a column, less that of the splice of nothing where there is one."""
    table = lines.pivot_table(index="item", columns="point", values=column, aggfunc="mean", dropna=False, sort=False)
    nothing = points.index[points.str.startswith("none/")]
    return table.sub(table[nothing[0]], axis=0) if len(nothing) else table
