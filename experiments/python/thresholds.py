"""Thresholds of the verdict rule, from the calibration split alone, and what they make of each line."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

import effects

PERPLEXITY_PERCENTILE = 99
KL_PERCENTILE = 95
COPY_PERCENTILE = 99
COPY_FLOOR = 0.5
COPY_MARGIN = 2  # tokens more than the reference answer shares, so that a full stop is not what decides
LOOP_SHARE = 0.5
LOOP_TOKENS = 8
MIN_SPAN = 0.1  # nats between text and baseline, below which one trial's tau means nothing

GROUP = ["phase", "family", "framing"]
PLAN = "plan"  # the family that the plan's own cases are of


@dataclass(frozen=True)
class Thresholds:
    """Of one phase, family and framing. None: the calibration split has nothing to take it from."""

    phase: str
    family: str
    framing: str
    perplexity: float | None  # 99th percentile, baseline's outputs under the baseline context
    perplexity_text: float | None  # the same of `text`, or of baseline where that is higher
    kl: float | None  # 95th percentile of `filler`
    copy_coverage: float  # part of the source's text that a copy covers at least
    items: int

    def as_dict(self) -> dict:
        return asdict(self)


def prepare(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of a phase with what needs no threshold: tau, loops, coverage, success; banned answers at a stall."""
    lines = lines.copy()
    stalled = lines["stall"].astype(bool)
    lines["stall"] = stalled
    for name in ("perplexity_baseline", "copy_run", "longest_repeat"):
        lines[name] = lines[name].where(~stalled, lines[f"banned_{name}"])
    banned_length = lines["banned_output_ids"].map(lambda ids: len(ids) if isinstance(ids, list) else np.nan)
    length = lines["output_tokens"].where(~stalled, banned_length)
    repeat = lines["longest_repeat"]
    lines["looped"] = (repeat >= LOOP_TOKENS) & (repeat >= LOOP_SHARE * length)
    # The source's own text, without a framing's template: the shortest form in which the trial has it.
    own = lines[(lines["source_tokens"] > 0) & (lines["condition"] == "transfer")]
    text_tokens = own.groupby(["phase", "set", "trial"])["source_tokens"].min().rename("text_tokens")
    lines = lines.join(text_tokens, on=["phase", "set", "trial"])
    lines["copy_coverage"] = (lines["copy_run"] / lines["text_tokens"]).clip(upper=1.0)
    pair = ["phase", "set", "trial", "framing"]
    for name in ("baseline", "text"):
        of = lines[lines["condition"] == name].set_index(pair)[["ld", "stall", "looped"]]
        lines = lines.join(of.add_suffix(f"_{name}"), on=pair)
    add_tau(lines)
    lines["succeeded"] = [_all_found(m, w) for m, w in zip(lines["markers"], lines["markers_wanted"])]
    return lines


def add_tau(lines: pd.DataFrame) -> None:
    """Adds moved, span and tau. REQUIRES: ld, ld_baseline, ld_text."""
    lines["moved"] = lines["ld"] - lines["ld_baseline"]
    lines["span"] = lines["ld_text"] - lines["ld_baseline"]
    lines["tau"] = (lines["moved"] / lines["span"]).where(lines["span"].abs() >= MIN_SPAN)


def _all_found(found, wanted) -> bool:
    return bool(wanted) and isinstance(found, list) and set(found) >= set(wanted)


def _percentile(values, percentile: float) -> float | None:
    (known,) = effects.clean(values)
    return float(np.percentile(known, percentile)) if len(known) else None


def freeze(calibration: pd.DataFrame) -> list[Thresholds]:
    """Those of each family, and those of the plan's own cases (family "plan"): of all the phase's families together.

    REQUIRES: prepared lines of the calibration split and no others.
    """
    if len(calibration) and set(calibration["set"]) != {"calibration"}:
        raise ValueError("thresholds are taken from the calibration split alone")
    frozen = [_of(lines, *key) for key, lines in calibration.groupby(GROUP, sort=False)]
    pooled = calibration.groupby(["phase", "framing"], sort=False)
    return frozen + [_of(lines, phase, PLAN, framing) for (phase, framing), lines in pooled]


def _of(lines: pd.DataFrame, phase: str, family: str, framing: str) -> Thresholds:
    baseline = lines[lines["condition"] == "baseline"]
    filler = lines[lines["condition"] == "filler"]
    text = lines[lines["condition"] == "text"]
    limits = [_percentile(of["perplexity_baseline"], PERPLEXITY_PERCENTILE) for of in (baseline, text)]
    return Thresholds(
        phase,
        family,
        framing,
        limits[0],
        max((limit for limit in limits if limit is not None), default=None),
        _percentile(filler["kl_baseline"], KL_PERCENTILE),
        max(COPY_FLOOR, _percentile(baseline["copy_coverage"], COPY_PERCENTILE) or 0.0),
        int(lines["item"].nunique()),
    )


def apply(lines: pd.DataFrame, frozen: list[Thresholds]) -> pd.DataFrame:
    """Prepared lines with what the frozen thresholds say: limits, broken (and by what), copied."""
    by_group = {(t.phase, t.family, t.framing): t for t in frozen}
    lines = lines.copy()
    of = [by_group.get(key) for key in zip(lines["phase"], lines["family"], lines["framing"])]
    lines["judged"] = [t is not None for t in of]
    for name in ("perplexity", "perplexity_text", "kl", "copy_coverage"):
        limit = [np.nan if t is None or getattr(t, name) is None else getattr(t, name) for t in of]
        lines[f"{name}_limit"] = np.asarray(limit, dtype=float)
    reasons = {
        "perplexity": lines["perplexity_baseline"] > lines["perplexity_limit"],
        "loop": lines["looped"] & ~lines["looped_baseline"].eq(True),
        "stall": lines["stall"] & ~lines["stall_baseline"].eq(True),
    }
    rows = zip(*(mask.to_numpy() for mask in reasons.values()))
    lines["broken_by"] = [", ".join(name for name, on in zip(reasons, row) if on) for row in rows]
    lines["broken"] = lines["broken_by"] != ""
    lines["broken_against_text"] = (
        (lines["perplexity_baseline"] > lines["perplexity_text_limit"])
        | (reasons["loop"] & ~lines["looped_text"].eq(True))
        | (reasons["stall"] & ~lines["stall_text"].eq(True))
    )
    lines["copied"] = (lines["copy_coverage"] >= lines["copy_coverage_limit"]) & (
        lines["copy_run"] >= lines["reference_copy_run"].fillna(0) + COPY_MARGIN
    )
    return lines
