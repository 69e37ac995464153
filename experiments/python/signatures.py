"""The plan's phase 1.5: cache signatures of confabulated against grounded prompts, with length and frequency controlled.

`raw` is Cohen's d of two groups, as the published d = 0.830 is. `controlled` holds the prompt's number of tokens and the
frequency of its words fixed (least squares). `swapped` are false statements made of the grounded ones' own words:
what differs there is neither length nor frequency.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

import effects
from verdicts import ALPHA

CONTROLS = ("tokens", "zipf_mean", "mean_log_token_rank")
EQUIVALENCE_D = 0.5


def features(lines: list[dict]) -> list[str]:
    """Names of the signatures that each have a mean over layers and an array [layer]."""
    first = lines[0]
    return [key for key in first if isinstance(first[key], list) and f"{key}_mean" in first]


def _groups(table: pd.DataFrame, kind: str, column: str):
    return table.loc[table["kind"] == kind, column], table.loc[table["kind"] == "grounded", column]


def _controls(table: pd.DataFrame) -> list[str]:
    return [c for c in CONTROLS if c in table and pd.to_numeric(table[c], errors="coerce").notna().all()]


def compare(lines: list[dict], resamples: int = effects.RESAMPLES) -> list[dict]:
    """Of each signature (mean over layers) and kind: d raw and controlled, p of a permutation test, Holm over all."""
    table = pd.DataFrame(lines)
    controls = _controls(table)
    rows = []
    for kind in ("confabulated", "swapped"):
        for name in features(lines):
            column = f"{name}_mean"
            a, b = _groups(table, kind, column)
            both = table[table["kind"].isin([kind, "grounded"])]
            is_kind = (both["kind"] == kind).astype(float)
            a, b = effects.clean(a)[0], effects.clean(b)[0]
            rows.append(
                {
                    "kind": kind,
                    "signature": name,
                    "n": [len(a), len(b)],
                    "raw": effects.independent_effect(a, b),
                    "p": effects.independent_p(a, b, resamples),
                    "controls": controls,
                    "controlled": effects.controlled_effect(both[column], is_kind, both[controls]) if controls else None,
                }
            )
    for row, p in zip(rows, effects.holm([row["p"] for row in rows])):
        row["p_holm"] = p
    controlled = [row["controlled"]["p"] if row["controlled"] else None for row in rows]
    for row, p in zip(rows, effects.holm(controlled)):
        row["p_controlled_holm"] = p
        row["survives"] = p is not None and p < ALPHA
    return rows


def by_layer(lines: list[dict], names: list[str]) -> list[dict]:
    """d of confabulated against grounded at each layer, raw and controlled."""
    table = pd.DataFrame(lines)
    controls = _controls(table)
    both = table[table["kind"].isin(["confabulated", "grounded"])]
    is_kind = (both["kind"] == "confabulated").astype(float)
    rows = []
    for name in names:
        values = np.array(both[name].tolist(), dtype=float)
        for layer in range(values.shape[1]):
            column = values[:, layer]
            raw = effects.independent_effect(column[is_kind == 1], column[is_kind == 0])
            controlled = effects.controlled_effect(column, is_kind, both[controls]) if controls else None
            rows.append({"signature": name, "layer": layer, "raw": raw, "controlled": controlled})
    return rows


def balance(lines: list[dict]) -> list[dict]:
    """How the kinds differ in what is controlled: mean and deviation of each control."""
    table = pd.DataFrame(lines)
    rows = []
    for name in _controls(table):
        for kind, group in table.groupby("kind", sort=False):
            rows.append({"control": name, "kind": kind, "mean": float(group[name].mean()), "sd": float(group[name].std())})
    return rows
