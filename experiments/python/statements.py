"""Sentences made from the summary's numbers: what came out, what was not significant, what the run can and cannot say."""

from __future__ import annotations

from collections import Counter

from statsmodels.stats.power import TTestPower

import sweeps
import verdicts
from verdicts import ALPHA, interval

NAMES = {"2a": "persistence", "2b": "retrieval", "2c": "cross-topic", "2d": "mode induction"}


def listed(words) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else "none"


def share(estimate: dict | None) -> str:
    return "none" if estimate is None else f"{estimate['value']:.0%} [{estimate['low']:.0%}, {estimate['high']:.0%}]"


def answer(title: str, sentence: str, verdict: str | None = None, parts: list[str] = ()) -> dict:
    """A question, what came out in a sentence, and `parts` that each stand on a line of their own."""
    return {"title": title, "text": sentence, "verdict": verdict, "parts": list(parts)}


def _plan_parts(cases: list[dict]) -> list[str]:
    transfer = [c for c in cases if c["condition"] == "transfer"]
    baseline = {(c["trial"], c["framing"]): c for c in cases if c["condition"] == "baseline"}
    won = [c for c in transfer if c["succeeded"] and not baseline[c["trial"], c["framing"]]["succeeded"]]
    parts = []
    for trial in dict.fromkeys(c["trial"] for c in transfer):
        framings = [c["framing"] for c in won if c["trial"] == trial]
        of = [c for c in transfer if c["trial"] == trial]
        stalled = [f"{c['framing']} ({c['reference_uplift']:+.1f} nats)" for c in of if c["stall"]]
        sentence = f"'{trial}': all markers, and only with the cache, in {len(framings)} of {len(of)} framings"
        sentence += f" ({listed(framings)})" if framings else ""
        if stalled:
            sentence += f"; ends at once in {listed(stalled)}: in brackets the reference answer's log-probability less baseline's"
        parts.append(sentence)
    return parts


def _both(cell: dict) -> str:
    first, second = cell["verdict"], cell["verdict_against_text"]
    return "no verdict" if first is None else first if first == second else f"{first} by the rule's letter, {second} against text"


def phase_answers(summary: dict, model: str, phase: str) -> list[dict]:
    cases = [c for c in summary["cases"] if (c["model"], c["phase"]) == (model, phase)]
    cells = [c for c in summary["cells"] if (c["model"], c["phase"]) == (model, phase) and c["condition"] == "transfer"]
    out = []
    if cases:
        out.append(answer(f"{phase}, {NAMES[phase]}: the plan's cases", "", None, _plan_parts(cases)))
    if cells and phase != "2d":
        for family in dict.fromkeys(c["family"] for c in cells):
            rows = [c for c in cells if c["family"] == family]
            found = Counter(c["verdict"] for c in rows if c["verdict"])
            each = [
                f"{c['framing']}: {_both(c)}, all markers in {share(c['numbers']['succeeded'])}, uplift over "
                f"another source {interval(c['numbers']['uplift_over_mismatched'])} nats"
                for c in rows
            ]
            n = rows[0]["numbers"]["n"]
            top = found.most_common(1)[0][0] if len(found) == 1 else None
            out.append(answer(f"{phase}: family '{family}', {n} test items", "", top, each))
    return out


def mode_answer(summary: dict, model: str) -> list[dict]:
    rows = [m for m in summary["modes"] if m["model"] == model]
    if not rows:
        return []
    other = [m for m in rows if m["entity"] == "other" and m["probe"] == m["mode"]]
    moved = [m for m in other if m["transfers"]]
    none = [m for m in other if not m["transfers"] and m["p_equivalence_holm"] is not None and m["p_equivalence_holm"] < ALPHA]
    sentence = (
        f"With other content, a source's mode raises an answer of that mode in {len(moved)} of {len(other)} tests "
        f"(mode x framing, Holm p < {ALPHA})"
    )
    if moved:
        each = [f"{m['mode']} in {m['framing']}: {interval(m['nats'])} nats, d {_d(m)}" for m in moved]
        sentence += ": " + "; ".join(each)
    sentence += f". In {len(none)} the effect is equivalent to none (|d| < 0.5); the rest stay open."
    truth = [m for m in rows if m["entity"] == "other" and m["probe"] == "truth" and m["mode"] == "confabulated"]
    if truth:
        each = [f"{m['framing']} {interval(m['nats'])}" for m in truth]
        sentence += f" A confabulated source changes the true answer's log-probability by (nats, against a factual source): {'; '.join(each)}."
    return [answer("2d: does the mode transfer, apart from the content?", sentence)]


def _d(row: dict) -> str:
    return "none" if row["effect"] is None else interval(row["effect"]["d"])


def name_answer(summary: dict, model: str) -> list[dict]:
    rows = [a for a in summary["answers"] if a["model"] == model and a["condition"] == "transfer" and a["mode"] == "confabulated"]
    if not rows:
        return []
    each = [
        f"{a['framing']}, {a['entity']} entity: names the source's words {a['names_source']['value']:.0%}, true "
        f"{a['true']['value']:.0%}, neither {a['neither']['value']:.0%}, ends at once {a['stalled']['value']:.0%}"
        for a in rows
    ]
    return [answer("2d: content or mode in the words of the answer", "After a confabulated source:", parts=each)]


def sweep_answer(sweep: dict) -> list[dict]:
    points = sweep["points"]
    if not points:
        return []
    name = sweep["sweep"]
    out = []
    for framing, here in sweeps.groups([p for p in points if p["own"] is not None]).items():
        if name == "position":
            out.append(answer(f"Position ({framing})", _position(here, _same(sweep["against"], here))))
        elif name == "partial":
            out.append(answer(f"Partial cache ({framing})", "", None, _partial(here)))
        elif name == "layers":
            out.append(answer(f"Layers of the mode ({framing})", _layers(_same(sweep["mode_against_content"], here))))
        else:
            out.append(answer(f"Components ({framing})", "", None, _components(here)))
    return out


def _same(rows: list[dict], points: list[dict]) -> list[dict]:
    """The rows of the points' family and framing that have a difference."""
    of = {(p["family"], p["framing"]) for p in points}
    return [r for r in rows if (r["family"], r["framing"]) in of and r["difference"] is not None]


def _position(here: list[dict], rows: list[dict]) -> str:
    differs = [a for a in rows if a["p_family"] is not None and a["p_family"] < ALPHA]
    equal = [a for a in rows if a["p_equivalence_holm"] is not None and a["p_equivalence_holm"] < ALPHA]
    carries = [p for p in here if p["carries"]]
    sentence = (
        f"The source comes through at {len(carries)} of {len(here)} positions. Against the start with positions that follow, tau "
        f"differs at {len(differs)} of {len(rows)} and is the same within 0.1 at {len(equal)}"
    )
    if differs:
        worst = min(differs, key=lambda a: a["difference"]["value"])
        best = max(differs, key=lambda a: a["difference"]["value"])
        sentence += f"; the largest loss {_change(worst)}"
        if best["difference"]["value"] > 0:
            sentence += f", the largest gain {_change(best)}"
    return sentence + "."


def _change(row: dict) -> str:
    return f"{interval(row['difference'])} at {row['point']}"


def _partial(here: list[dict]) -> list[str]:
    parts = []
    for sink in ("kept", "free"):
        for which in ("prefix", "suffix"):
            curve = sorted((p for p in here if p["series"] == f"{which}/{sink}"), key=lambda p: p["x"])
            if curve:
                curve = curve if which == "prefix" else curve[::-1]
                half = next((p for p in curve if p["own"]["value"] >= 0.5), None)
                words = "never reach half of the text's effect" if half is None else _reach(which, half)
                parts.append(f"{'first' if which == 'prefix' else 'last'} layers, sink {sink}: {words}")
        single = [p for p in here if p["series"] == f"single/{sink}"]
        if single:
            best = max(single, key=lambda p: p["own"]["value"])
            parts.append(f"best single layer, sink {sink}: {best['x']:.0f}, tau {interval(best['own'])}")
        thirds = sorted((p for p in here if p["series"] == f"third/{sink}"), key=lambda p: p["x"])
        if thirds:
            parts.append(f"thirds, sink {sink}: " + ", ".join(f"tau {interval(p['own'])}" for p in thirds))
    return parts


def _reach(which: str, point: dict) -> str:
    span = f"0 to {point['x']:.0f}" if which == "prefix" else f"{point['x']:.0f} to the last"
    return f"{span} are needed for half of the text's effect (tau {interval(point['own'])})"


def _layers(rows: list[dict]) -> str:
    if not rows:
        return "The splice of all layers moves too little to compare a layer's part of mode with its part of content."
    whole = rows[0]
    sentence = f"All layers spliced: mode {interval(whole['mode_whole'])} nats, content {interval(whole['content_whole'])} nats"
    if whole["mode_whole"] is None or whole["mode_whole"]["low"] <= 0 <= whole["mode_whole"]["high"]:
        return sentence + ": there is no mode effect of the whole to divide among layers."
    for series in dict.fromkeys(r["series"] for r in rows):
        found = [r for r in rows if r["series"] == series and r["p_family"] is not None and r["p_family"] < ALPHA]
        more = listed(f"{r['layer']:.0f}" for r in found if r["difference"]["value"] > 0)
        less = listed(f"{r['layer']:.0f}" for r in found if r["difference"]["value"] < 0)
        sentence += f". Single layers, sink {series.split('/')[-1]}: mode more than content: {more}; content more than mode: {less}"
    return sentence + "."


def _components(here: list[dict]) -> list[str]:
    parts = [f"{p['series']}: tau {interval(p['own'])}" for p in here if p["x"] is None]
    heads = sorted((p for p in here if p["x_label"] == "head"), key=lambda p: -p["own"]["value"])
    if heads:
        parts.append(f"best single head: {heads[0]['x']:.0f} ({heads[0]['series']}), tau {interval(heads[0]['own'])}")
    cells = [p for p in here if p["series"].startswith("layer-head")]
    if cells:
        best = max(cells, key=lambda p: p["own"]["value"])
        parts.append(
            f"{sum(bool(p['carries']) for p in cells)} of {len(cells)} single layer x head cells carry something of the source; the "
            f"best tau {interval(best['own'])} ({best['series']}, layer {best['x']:.0f})"
        )
    return parts


def signature_answer(part: dict) -> list[dict]:
    rows = [r for r in part["compared"] if r["kind"] == "confabulated" and r["raw"]]
    if not rows:
        return []
    raw = [r for r in rows if r["p_holm"] is not None and r["p_holm"] < ALPHA]
    kept = [r for r in rows if r["survives"]]
    largest = max(rows, key=lambda r: abs(r["raw"]["d"]["value"]))
    swapped = [r for r in part["compared"] if r["kind"] == "swapped" and r["p_holm"] is not None and r["p_holm"] < ALPHA]
    controlled = "none" if largest["controlled"] is None else interval(largest["controlled"]["d"])
    sentence = (
        f"Confabulated against grounded prompts, {len(rows)} signatures: {len(raw)} differ (Holm), the largest {largest['signature']} "
        f"with d {interval(largest['raw']['d'])}; with length and token frequency held fixed {len(kept)} differ, and that one's d is "
        f"{controlled}. False statements of the same words differ from true ones in {len(swapped)}."
    )
    return [answer("Signatures of phase 1.5", sentence)]


def answers(summary: dict) -> list[dict]:
    """What came out, one entry a model and question."""
    out = []
    for model in summary["models"]:
        entries = []
        for phase in NAMES:
            entries += phase_answers(summary, model, phase)
        entries += mode_answer(summary, model) + name_answer(summary, model)
        for sweep in summary["sweeps"]:
            if sweep["model"] == model:
                entries += sweep_answer(sweep)
        for part in summary["signatures"]:
            if part["model"] == model:
                entries += signature_answer(part)
        out += [{"model": model, **entry} for entry in entries]
    return out


def not_significant(summary: dict) -> list[dict]:
    """Every test whose adjusted p is 0.05 or more, with its estimate, and whether 'no effect' could be shown."""
    rows = []

    def add(model, where, what, estimate, p, equal_p, margin):
        if p is None or p < ALPHA:
            return
        if equal_p is not None and equal_p < ALPHA:
            says = f"no effect: within {margin}"
        elif equal_p is None:
            says = "not shown; equivalence was not tested"
        else:
            says = f"open: neither an effect nor its absence (within {margin})"
        rows.append({"model": model, "where": where, "what": what, "estimate": interval(estimate), "p": p, "says": says})

    for c in summary["cells"]:
        where = " · ".join(x for x in (c["phase"], c["family"], c["mode"], c["entity"], c["framing"], c["condition"]) if x)
        equal = c["numbers"].get("equivalence")
        margin = "a tenth of the text's uplift"
        add(c["model"], where, "uplift over another source, nats (one-sided)", c["numbers"]["uplift_over_mismatched"], c["p_holm"],
            equal and equal["p"], margin)  # fmt: skip
    for m in summary["modes"]:
        where = f"2d · {m['framing']} · {m['entity']} entity · {m['mode']}"
        add(m["model"], where, f"effect on the {m['probe']} probe, nats", m["nats"], m["p_holm"], m["p_equivalence_holm"], "|d| < 0.5")
    for s in summary["sweeps"]:
        for a in s.get("against", []):
            where = f"position · {a['family']} · {a['framing']} · {a['point']}"
            add(s["model"], where, "tau less that at the start", a["difference"], a["p_family"], a["p_equivalence_holm"], "0.1 of tau")
        for p in s["points"]:
            where = f"{s['sweep']} · {p['family']} · {p['framing']} · {p['point']}"
            add(s["model"], where, "tau over another source (one-sided)", p["over"], p["p_family"], None, "")
    for s in summary["signatures"]:
        for r in s["compared"]:
            d = r["controlled"] and r["controlled"]["d"]
            add(s["model"], f"signatures · {r['kind']}", f"{r['signature']}, d with controls", d, r["p_controlled_holm"], None, "")
    return rows


def limits(summary: dict) -> list[str]:
    """What these runs cannot say, from their own numbers."""
    out = []
    phases = {run["phase"] for run in summary["runs"]}
    for run in summary["runs"]:
        if not run["complete"]:
            out.append(f"{run['phase']} with {run['model']} is not complete; its numbers are of the trials so far.")
        if run["limit"] is not None:
            out.append(f"{run['phase']} with {run['model']} was limited to {run['limit']} trials.")
    names = [p for p in ("2a", "2b", "2c", "2d", "position", "partial", "layers", "components", "signatures") if p not in phases]
    if names:
        out.append(f"Nothing is said of {listed(names)}: no run of it is in this report.")
    out.append(
        f"All answers are greedy, so a trial is one observation and other seeds would add none; models: {listed(summary['models'])}, "
        f"{listed(sorted({run['precision'] for run in summary['runs'] if run['precision']}))} precision. Other models, sizes and "
        "sampling are not covered."
    )
    sizes = [c["numbers"]["n"] for c in summary["cells"] if c["verdict"]]
    if sizes:
        n, holm = min(sizes), max(c["holm_of"] or 1 for c in summary["cells"])
        d = TTestPower().solve_power(nobs=n, alpha=ALPHA / holm, power=0.8, alternative="larger") if n > 2 else None
        if d is not None:
            out.append(
                f"With {n} items a cell and {holm} tests a family, an effect below d = {float(d):.2f} would be missed more than one time "
                "in five; 'not significant' says no more than that unless the equivalence test stands beside it."
            )
    items = [t["items"] for t in summary["thresholds"]]
    if items:
        out.append(
            f"The thresholds are percentiles of {min(items)} to {max(items)} calibration items: the 99th lies at the edge of what was "
            "seen."
        )
    elif summary["cases"]:
        out.append("There is no calibration split, so there are no thresholds and no verdicts: the plan's cases are shown as they are.")
    texts = [c for c in summary["cells"] if c["condition"] == "text"]
    broken = sum(c["verdict"] == "BROKEN" for c in texts)
    if broken:
        second = Counter(c["verdict_against_text"] for c in texts)
        out.append(
            f"By the rule's letter `text`, the two texts fed in turn, is BROKEN in {broken} of {len(texts)} cells, though nothing was transplanted there: "
            "the limit is that of baseline's own greedy answers, the likeliest ones under its context. A BROKEN there says 'unlike baseline', not "
            f"'nonsense'. With the limit of text: {', '.join(f'{v} in {n}' for v, n in second.items())}."
        )
    nulls = [c["null"]["n"] for c in summary["cases"] if c["condition"] == "transfer"]
    if nulls:
        out.append(
            f"A case of the plan is n = 1: its p is a rank among {min(nulls)} to {max(nulls)} other sources and cannot be below "
            f"{1 / (1 + max(nulls)):.3g}; how far its result carries is what the families say."
        )
    stalls = [c for c in summary["cases"] if c["condition"] == "transfer" and c["stall"]]
    if stalls:
        where = listed(sorted({f"{c['model']} {c['trial']} {c['framing']}" for c in stalls}))
        out.append(
            f"Where the model ends at once there is no text to judge ({where}); verdicts there rest on log-probabilities and on the "
            "answer with end tokens banned at first."
        )
    ratings = summary["ratings"]
    if ratings["items"]:
        raters = ratings["raters"]
        out.append(
            f"Coherence: {ratings['unrated']} of {ratings['items']} answers are unrated, by {len(raters)} rater"
            f"{'' if len(raters) == 1 else 's'}. "
            + ("Weighted kappa " + interval(ratings["kappa"]) + "." if ratings["kappa"] else "No agreement between two raters is known.")
        )
    if any(c["condition"] == "transfer" for c in summary["cells"]):
        out.append(
            "At the start with following positions a transfer is the same computation as the text, so its tau is 1 by construction; what it "
            "shows there is that the cache survives, and what the text alone would do."
        )
    return out


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

