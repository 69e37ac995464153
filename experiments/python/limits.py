"""Sentences made from the summary's numbers: what the runs establish, and what they cannot say."""

from __future__ import annotations

from collections import Counter

from statsmodels.stats.power import TTestPower

import run_data
import verdicts
from statements import listed
from thresholds import GROUP
from verdicts import ALPHA, interval

# What a 95% BCa interval of the mean of so many normal values covers (2,000 draws each).
COVERAGE = {3: 0.72, 6: 0.86, 10: 0.91, 13: 0.92, 26: 0.93}


def cannot_say(summary: dict) -> list[str]:
    """What these runs cannot say, from their own numbers."""
    parts = (_runs, _power, _intervals, _shared_words, _signatures, _thresholds, _text_is_broken, _empty_transfers, _spans, _plan_cases, _stalls, _coherence, _construction)
    return [sentence for part in parts for sentence in part(summary)]


def _between(numbers) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _runs(summary: dict) -> list[str]:
    out = []
    for run in summary["runs"]:
        if not run["complete"]:
            out.append(f"{run['phase']} with {run['model']} is not complete; its numbers are of the trials so far.")
        if run["limit"] is not None:
            out.append(f"{run['phase']} with {run['model']} was limited to {run['limit']} trials.")
    phases = {run["phase"] for run in summary["runs"]}
    names = [p for p in (*run_data.PHASES, *run_data.SWEEPS, "signatures") if p not in phases]
    if names:
        out.append(f"Nothing is said of {listed(names)}: no run of it is in this report.")
    out.append(
        f"All answers are greedy, so a trial is one observation and other seeds would add none; models: {listed(summary['models'])}, "
        f"{listed(sorted({run['precision'] for run in summary['runs'] if run['precision']}))} precision. Other models, sizes and "
        "sampling are not covered."
    )
    return out


def _power(summary: dict) -> list[str]:
    """How small an effect the tests would see, or that they can see none."""
    tests: dict[tuple, list[str]] = {}  # (items, tests, sides) of each group of tests
    for c in summary["cells"]:
        if c["holm_of"]:
            tests.setdefault((c["numbers"]["n"], c["holm_of"], 1), []).append(f"{c['phase']} '{c['family']}'")
    for m in summary["modes"]:
        tests.setdefault((m["n"], sum(r["model"] == m["model"] for r in summary["modes"]), 2), []).append("the modes of 2d")
    out = []
    for (n, count, sides), where in tests.items():
        least = min(1.0, sides * 2.0**-n * count) if n >= 3 else 1.0
        said = f"{listed(dict.fromkeys(where))}, {n} items and {count} tests"
        if least >= ALPHA:
            out.append(f"{said}: too few items for any adjusted p below {least:.2g}, so nothing there can be significant, and no cell TRANSFER.")
            continue
        d = TTestPower().solve_power(nobs=n, alpha=ALPHA / count, power=0.8, alternative="larger" if sides == 1 else "two-sided")
        out.append(
            f"{said}: an effect below d = {float(d):.2f} would be missed more than one time in five; 'not significant' says no more than that "
            "unless the equivalence test stands beside it."
        )
    for s in summary["sweeps"]:
        few = sorted({p["n"] for p in s["points"] if 2.0 ** -p["n"] >= ALPHA})
        if few:
            count = sum(p["n"] in few for p in s["points"])
            out.append(f"{s['sweep']} with {s['model']}: {count} of {len(s['points'])} points have {_between(few)} items, too few for a p below {ALPHA}.")
    return out


def _intervals(summary: dict) -> list[str]:
    sizes = [c["numbers"]["n"] for c in summary["cells"]] + [p["n"] for s in summary["sweeps"] for p in s["points"]] + [m["n"] for m in summary["modes"]]
    if not sizes or min(sizes) >= max(COVERAGE):
        return []
    measured = ", ".join(f"{covered:.0%} with {n}" for n, covered in COVERAGE.items())
    return [
        f"Intervals stand on {_between(sizes)} items. A BCa interval is too narrow where items are few: one at 95% covers the mean of normal "
        f"values in {measured} of them. No p leans on an interval; the verdict TRANSFER does, on those of tau."
    ]


def _shared_words(summary: dict) -> list[str]:
    """Families are made of a few names, and trials that share one are not quite independent."""
    out = []
    for c in summary["cells"]:
        shared = c["numbers"]["over_words"]
        if c["condition"] == "transfer" and shared is not None:
            out.append(
                f"{c['phase']} '{c['family']}', {c['framing']}{''.join(f', {c[k]}' for k in verdicts.WITHIN if c[k])}, {c['model']}: {c['numbers']['n']} items share "
                f"{shared['words']} words of their sources, and items that share one are not independent. Uplift over another source: "
                f"{interval(c['numbers']['uplift_over_mismatched'])} nats by items, {interval(shared['uplift_over_mismatched'])} by words."
            )
    return out


def _signatures(summary: dict) -> list[str]:
    return [
        f"Signatures with {part['model']}: {part['prompts']} prompts of {part['templates']} templates, in {part['pairs']} groups of one template and length. Tests and d take them "
        "as independent, so what a group has in common widens them; another set of templates could differ."
        for part in summary["signatures"]
    ]


def _thresholds(summary: dict) -> list[str]:
    items = [t["items"] for t in summary["thresholds"]]
    if items:
        return [f"The thresholds are percentiles of {_between(items)} calibration items: the 99th lies at the edge of what was seen."]
    if summary["cases"]:
        return ["There is no calibration split, so there are no thresholds and no verdicts: the plan's cases are shown as they are."]
    return []


def _text_is_broken(summary: dict) -> list[str]:
    texts = [c for c in summary["cells"] if c["condition"] == "text"]
    broken = sum(c["verdict"] == "BROKEN" for c in texts)
    if not broken:
        return []
    second = Counter(c["verdict_against_text"] for c in texts)
    return [
        f"By the rule's letter `text`, the two texts fed in turn, is BROKEN in {broken} of {len(texts)} cells, though nothing was transplanted there: "
        "the limit is that of baseline's own greedy answers, the likeliest ones under its context. A BROKEN there says 'unlike baseline', not "
        f"'nonsense'. With the limit of text: {', '.join(f'{v} in {n}' for v, n in second.items())}."
    ]


EMPTY = ("noise", "noise-unit", "noise-channel", "zero", "filler")  # conditions that know nothing of the source


def _empty_transfers(summary: dict) -> list[str]:
    """The rule holds a condition against another source: where that does harm, it is enough to do none."""
    place = lambda c: tuple(c[k] for k in ("model", *GROUP, *verdicts.WITHIN))  # noqa: E731
    where: dict[tuple, list[str]] = {}
    for c in summary["cells"]:
        if c["condition"] in EMPTY and "TRANSFER" in (c["verdict"], c["verdict_against_text"]):
            where.setdefault(place(c), []).append(c["condition"])
    out = []
    for key, conditions in where.items():
        harm = next(c for c in summary["cells"] if c["condition"] == "mismatched" and place(c) == key)
        out.append(
            f"{' '.join(k for k in key if k)}: {listed(conditions)}, which know nothing of the source, can be TRANSFER by the rule. It holds them against another "
            f"trial's source, whose own uplift is {interval(harm['numbers']['uplift'])} nats: where that lowers the answer, not to lower it is to beat it."
        )
    return out


def _spans(summary: dict) -> list[str]:
    """tau is a share of the text's own effect on LD: where that is not known to be any, of nothing."""
    where = []
    for c in summary["cells"]:
        span = c["numbers"]["span"]
        if c["condition"] == "transfer" and (span is None or span["low"] <= 0 <= span["high"]):
            where.append(f"{c['model']} {c['phase']} '{c['family']}' {' '.join(c[k] for k in (*verdicts.WITHIN, 'framing') if c[k])} ({interval(span)} nats)")
    if not where:
        return []
    return [f"tau says nothing where the text's own effect on the logit difference is not told from 0: {listed(where)}."]


def _plan_cases(summary: dict) -> list[str]:
    cases = [c for c in summary["cases"] if c["condition"] == "transfer"]
    if not cases:
        return []
    nulls = [c["null"]["n"] for c in cases]
    framings = Counter((c["model"], c["trial"]) for c in cases)
    least = max(framings[c["model"], c["trial"]] / (1 + c["null"]["n"]) for c in cases)
    so = ", so that not every case could be TRANSFER whatever came out" if least >= ALPHA else ""
    return [
        f"A case of the plan is n = 1: its p is a rank among {_between(nulls)} other sources, and after Holm over its framings it cannot be "
        f"below {min(1.0, least):.2g}{so}; how far its result carries is what the families say."
    ]


def _stalls(summary: dict) -> list[str]:
    stalls = [c for c in summary["cases"] if c["condition"] == "transfer" and c["stall"]]
    if not stalls:
        return []
    where = listed(sorted({f"{c['model']} {c['trial']} {c['framing']}" for c in stalls}))
    return [
        f"Where the model ends at once there is no text to judge ({where}); verdicts there rest on log-probabilities and on the "
        "answer with end tokens banned at first."
    ]


def _coherence(summary: dict) -> list[str]:
    ratings = summary["ratings"]
    if not ratings["items"]:
        return []
    raters = ratings["raters"]
    return [
        f"Coherence: {ratings['unrated']} of {ratings['items']} answers are unrated, by {len(raters)} rater{'' if len(raters) == 1 else 's'}. "
        + ("Weighted kappa " + interval(ratings["kappa"]) + "." if ratings["kappa"] else "No agreement between two raters is known.")
    ]


def _construction(summary: dict) -> list[str]:
    if not any(c["condition"] == "transfer" for c in summary["cells"]):
        return []
    return [
        "At the start with following positions a transfer is the same computation as the text, so its tau is 1 by construction; what it "
        "shows there is that the cache survives, and what the text alone would do."
    ]


def can_say(summary: dict) -> list[str]:
    """What these runs do establish."""
    out = []
    checks = {}
    for run in summary["runs"]:
        for name, n in (run["checks"] or {}).items():
            if n:
                checks[name] = checks.get(name, 0) + n
    for name, n in sorted(checks.items()):
        of = {"same-cache": "same-cache equals baseline", "text": "transfer equals the text fed in turn"}.get(name, name)
        out.append(f"{of[0].upper()}{of[1:]}, bit for bit, in {n} of {n} trials and framings; a difference would have stopped the run.")
    judged = [c for c in summary["cells"] if c["verdict"]]
    for condition in dict.fromkeys(c["condition"] for c in judged):
        found = Counter(c["verdict"] for c in judged if c["condition"] == condition)
        total = sum(found.values())
        second = Counter(c["verdict_against_text"] for c in judged if c["condition"] == condition)
        said = [", ".join(f"{v} in {of[v]}" for v in verdicts.VERDICTS if of[v]) for of in (found, second)]
        out.append(f"{condition}, of {total} cells: {said[0]}" + (f"; against text {said[1]}." if said[1] != said[0] else "."))
    return out
