"""The verdict rule: BROKEN, TRANSFER, COPY, INERT or SHIFTED.

Thresholds come from the calibration split (thresholds.py) and are written down before the test split is read. A verdict
is given to a *cell*, the test trials of one phase, family, mode, entity, framing and condition, and to each of the
plan's own cases. An item's number is the mean over its trials; percentiles are linear between two values. The rule, in this
order; each verdict carries the numbers that it stands on:

BROKEN    more than half of the items are broken. One is broken when the perplexity of its output under the baseline
          context is over the 99th percentile of baseline's outputs, or it loops or ends at once and its baseline does
          not. A loop: the longest suffix that stood in the output before has at least 8 tokens and half of the output's.
COPY      more than half of the items are copies. One is a copy when its longest common token run with the source covers
          at least half of the source's text, no smaller a part than the 99th percentile of baseline's outputs, and is longer
          by two tokens or more than the run that the reference answer itself shares with the source. The text's length is that
          of the trial's source in the framing of the run in which it has the fewest tokens.
TRANSFER  the reference uplift beats that of permuted sources (a sign-flip test of uplift against `mismatched` over items,
          one-sided, p < 0.05 after Holm over all cells of the family but baseline, same-cache and mismatched), and the
          interval of tau lies above that of `mismatched`. tau = mean(LD - LD_baseline) / mean(LD_text - LD_baseline) over
          items: a ratio of means has an interval where single trials' denominators come near zero.
INERT     the median KL(baseline || condition) is within the 95th percentile of `filler`.
SHIFTED   the rest.

Baseline's greedy answers are the likeliest ones under the baseline context, so any other content lies above them: by the
letter of BROKEN even `text`, the two texts fed in turn, can be broken. Each verdict therefore has a second reading,
`verdict_against_text`, in which what `text` does too is not called broken: the limit is the 99th percentile of `text` where
that is higher, a loop or stall counts only where the trial's `text` lacks it, and all else is the same.

Where an answer ends at once, its perplexity, loops and copying are those of the answer with end tokens banned for the
first token; the stall itself is judged too.

For one of the plan's cases, n = 1: its thresholds are those of all families of its phase together; p is its uplift's
rank among the uplifts of the same reference under permuted sources (where the run has none, among those of the
families' `mismatched`), Holm over its framings; tau is the trial's own and must lie above the intervals of the
families' `mismatched`. Where the run has no calibration split there is no verdict.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

import effects
from thresholds import GROUP

ALPHA = 0.05
MIN_NULL = 19  # permuted sources that a rank needs to reach p = 0.05
VERDICTS = ("TRANSFER", "COPY", "SHIFTED", "INERT", "BROKEN")
EQUIVALENCE_SHARE = 0.1  # of the text's uplift over another source: an effect below it is called none
REFERENCES = ("baseline", "same-cache", "mismatched")  # conditions that the others are held against
WITHIN = ["mode", "entity"]
FLAGS = ["broken", "broken_against_text", "copied", "stall", "looped", "succeeded"]


def _as_dict(estimate) -> dict | None:
    return None if estimate is None else estimate.as_dict()


def median(values) -> float | None:
    (known,) = effects.clean(values)
    return float(np.median(known)) if len(known) else None


def text(value: float | None) -> str:
    return "none" if value is None or not np.isfinite(value) else f"{value:.3g}"


def interval(estimate: dict | None) -> str:
    if estimate is None:
        return "none"
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def by_item(lines: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """One row an item, the unit of analysis: the mean over its trials."""
    return lines.groupby("item", sort=False)[columns].mean()


def tau_of(lines: pd.DataFrame, resamples: int = effects.RESAMPLES) -> dict | None:
    """tau over items, as the rule above has it."""
    items = by_item(lines, ["moved", "span"])
    return _as_dict(effects.ratio_of_means(items["moved"], items["span"], resamples))


def cell_numbers(cell: pd.DataFrame, mismatched: pd.DataFrame, tau_mismatched: dict | None, resamples: int) -> dict:
    """All that a verdict may stand on. `mismatched`: that condition's lines of the same trials, and its tau."""
    own = by_item(cell, ["reference_uplift", "perplexity_baseline", "kl_baseline"])
    other = by_item(mismatched, ["reference_uplift"]).reindex(own.index)
    flags = cell.groupby("item", sort=False)[FLAGS].mean() > 0.5
    uplift, uplift_other = own["reference_uplift"], other["reference_uplift"]
    return {
        "n": len(own),
        **{name: _as_dict(effects.share(int(flags[name].sum()), len(flags))) for name in flags},
        "perplexity_median": median(own["perplexity_baseline"]),
        "perplexity_limit": median(cell["perplexity_limit"]),
        "perplexity_text_limit": median(cell["perplexity_text_limit"]),
        "kl_median": median(own["kl_baseline"]),
        "kl_limit": median(cell["kl_limit"]),
        "uplift": _as_dict(effects.mean(uplift, resamples)),
        "uplift_over_mismatched": _as_dict(effects.mean_difference(uplift, uplift_other, resamples)),
        "effect": effects.paired_effect(uplift, uplift_other),
        "p": effects.sign_flip_p(uplift, uplift_other, "greater", resamples),
        "tau": tau_of(cell, resamples),
        "tau_mismatched": tau_mismatched,
        "span": _as_dict(effects.mean(by_item(cell, ["span"])["span"], resamples)),
        "over_words": _over_words(cell, uplift - uplift_other, resamples),
    }


def _over_words(cell: pd.DataFrame, difference: pd.Series, resamples: int) -> dict | None:
    """The mean of `difference` (by item) where items that share a word of the source count as one.

    The word is the reference answer or the first marker, whichever is shared more: families made of a few names meet each
    of them several times. None where a word has fewer than two items on average.
    """
    first = cell.drop_duplicates("item").set_index("item").reindex(difference.index)
    words = min(first["reference"], first["markers_wanted"].map(lambda found: found[0] if found else ""), key=pd.Series.nunique)
    if 2 * words.nunique() > len(words):
        return None
    estimate = effects.mean(difference.groupby(words).mean(), resamples)
    return {"words": int(words.nunique()), "uplift_over_mismatched": _as_dict(estimate)}


def _uplift(lines: pd.DataFrame) -> pd.Series:
    return by_item(lines, ["reference_uplift"])["reference_uplift"]


def _equivalence(cell: pd.DataFrame, mismatched: pd.DataFrame, ceiling: float) -> dict | None:
    own = _uplift(cell)
    return effects.equivalence(own, _uplift(mismatched).reindex(own.index), EQUIVALENCE_SHARE * abs(ceiling))


def decide(numbers: dict, p_holm: float | None, broken: str = "broken") -> tuple[str, str]:
    """The verdict on a cell and the numbers that it stands on, as a sentence. `broken`: by which limit."""
    n = numbers["n"]
    if numbers[broken]["value"] > 0.5:
        return "BROKEN", (
            f"{numbers[broken]['value']:.0%} of {n} broken; {numbers['looped']['value']:.0%} loop, {numbers['stall']['value']:.0%} end at "
            f"once; median perplexity under the baseline context {text(numbers['perplexity_median'])}, limit "
            f"{text(numbers['perplexity_limit' if broken == 'broken' else 'perplexity_text_limit'])}"
        )
    if numbers["copied"]["value"] > 0.5:
        return "COPY", f"{numbers['copied']['value']:.0%} of {n} repeat the source"
    tau, other = numbers["tau"], numbers["tau_mismatched"]
    evidence = (
        f"uplift over permuted sources {interval(numbers['uplift_over_mismatched'])} nats, Holm p {text(p_holm)}; "
        f"tau {interval(tau)}, mismatched {interval(other)}"
    )
    beats = p_holm is not None and p_holm < ALPHA
    if beats and tau is not None and other is not None and tau["low"] > other["high"]:
        return "TRANSFER", evidence
    kl, limit = numbers["kl_median"], numbers["kl_limit"]
    why = f"median KL {text(kl)}, filler's 95th percentile {text(limit)}; {evidence}"
    return ("INERT" if kl is not None and limit is not None and kl <= limit else "SHIFTED"), why


def judge_cells(test: pd.DataFrame, resamples: int = effects.RESAMPLES) -> list[dict]:
    """Verdicts on all cells of a phase's test split. REQUIRES: lines as thresholds.apply gives them."""
    cells = []
    for key, group in test.groupby([*GROUP, *WITHIN], dropna=False, sort=False):
        identity = {name: (None if pd.isna(k) else k) for name, k in zip([*GROUP, *WITHIN], key)}
        mismatched = group[group["condition"] == "mismatched"]
        tau_mismatched = tau_of(mismatched, resamples)
        ceiling = _uplift(group[group["condition"] == "text"]).mean() - _uplift(mismatched).mean()
        for condition, cell in group.groupby("condition", sort=False):
            numbers = cell_numbers(cell, mismatched, tau_mismatched, resamples)
            numbers["equivalence"] = _equivalence(cell, mismatched, ceiling)
            untested = {"p_holm": None, "holm_of": None, "p_equivalence_holm": None}
            cells.append({**identity, "condition": condition, "numbers": numbers, **untested})
    families: dict[tuple, list[dict]] = {}
    for cell in cells:
        if cell["condition"] not in REFERENCES:
            families.setdefault((cell["phase"], cell["family"]), []).append(cell)
    for family in families.values():
        for cell, p in zip(family, effects.holm([cell["numbers"]["p"] for cell in family])):
            cell["p_holm"], cell["holm_of"] = p, len(family)
        equal = [cell["numbers"]["equivalence"] for cell in family]
        for cell, p in zip(family, effects.holm([e and e["p"] for e in equal])):
            cell["p_equivalence_holm"] = p
    judged = bool(len(test)) and bool(test["judged"].all())
    for cell in cells:
        cell["verdict_against_text"] = cell["evidence_against_text"] = None
        if cell["condition"] in REFERENCES:
            cell["verdict"], cell["evidence"] = None, "what the others are held against"
        elif not judged:
            cell["verdict"], cell["evidence"] = None, "no calibration split to take thresholds from"
        else:
            cell["verdict"], cell["evidence"] = decide(cell["numbers"], cell["p_holm"])
            second = decide(cell["numbers"], cell["p_holm"], "broken_against_text")
            cell["verdict_against_text"], cell["evidence_against_text"] = second
    return cells


def _nulls(plan: pd.DataFrame, families: pd.DataFrame) -> dict[tuple, tuple[list[float], str]]:
    """Uplifts of each plan case's reference under sources that are not its own, by (trial, framing)."""
    mismatched = families[families["condition"] == "mismatched"]
    nulls = {}
    for row in plan[plan["condition"] == "transfer"].itertuples():
        permuted = row.permuted_uplifts
        if isinstance(permuted, list) and len(permuted) >= MIN_NULL:
            nulls[row.trial, row.framing] = (permuted, "permuted sources")
        else:
            other = mismatched.loc[mismatched["framing"] == row.framing, "reference_uplift"]
            nulls[row.trial, row.framing] = (list(effects.clean(other)[0]), "the families' mismatched")
    return nulls


def judge_cases(plan: pd.DataFrame, families: pd.DataFrame, cells: list[dict]) -> list[dict]:
    """Verdicts on a phase's own cases. `families`: its generated trials, as thresholds.apply gives them."""
    # A phase may have several families, or modes: the interval that reaches highest is what a case must pass.
    limits: dict[str, dict] = {}
    for cell in cells:
        tau, framing = cell["numbers"]["tau"], cell["framing"]
        if cell["condition"] == "mismatched" and tau is not None:
            if framing not in limits or tau["high"] > limits[framing]["high"]:
                limits[framing] = tau
    nulls = _nulls(plan, families)
    judged = []
    for row in plan.itertuples():
        null, null_of = nulls.get((row.trial, row.framing), ([], "nothing"))
        tested = row.condition not in REFERENCES and len(null) >= MIN_NULL
        judged.append(
            {
                **{key: getattr(row, key) for key in ("phase", "family", "trial", "framing", "condition")},
                "p": effects.rank_p(row.reference_uplift, null) if tested else None,
                "null": {"n": len(null), "of": null_of},
                "tau_mismatched": limits.get(row.framing),
                "order": row.order,
            }
        )
    groups: dict[tuple, list[dict]] = {}
    for case in judged:
        groups.setdefault((case["trial"], case["condition"]), []).append(case)
    for group in groups.values():
        for case, p in zip(group, effects.holm([case["p"] for case in group])):
            case["p_holm"] = p
    for row, case in zip(plan.itertuples(), judged):
        case["verdict"], case["evidence"] = _decide_case(row, case, row.broken)
        second = _decide_case(row, case, row.broken_against_text)
        case["verdict_against_text"], case["evidence_against_text"] = second
    return judged


def _decide_case(row, case: dict, broken: bool) -> tuple[str | None, str]:
    if row.condition in REFERENCES:
        return None, "what the others are held against"
    if not row.judged:
        return None, "no verdict: the run has no calibration split to take thresholds from"
    if broken:
        return "BROKEN", (
            f"{row.broken_by}; perplexity under the baseline context {text(row.perplexity_baseline)}, limit "
            f"{text(row.perplexity_limit)}, of text {text(row.perplexity_text_limit)}"
        )
    if row.copied:
        return "COPY", f"{row.copy_coverage:.0%} of the source repeated word for word"
    other = case["tau_mismatched"]
    evidence = (
        f"uplift {text(row.reference_uplift)} nats, Holm p {text(case['p_holm'])} among {case['null']['n']} of "
        f"{case['null']['of']}; tau {text(row.tau)}, mismatched {interval(other)}"
    )
    above = other is not None and np.isfinite(row.tau) and row.tau > other["high"]
    if case["p_holm"] is not None and case["p_holm"] < ALPHA and above:
        return "TRANSFER", evidence
    why = f"KL {text(row.kl_baseline)}, filler's 95th percentile {text(row.kl_limit)}; {evidence}"
    inert = np.isfinite(row.kl_baseline) and np.isfinite(row.kl_limit) and row.kl_baseline <= row.kl_limit
    return ("INERT" if inert else "SHIFTED"), why
