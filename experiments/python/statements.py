"""Sentences made from the summary's numbers: what came out, and what was not significant. limits.py has how far it carries."""

from __future__ import annotations

from collections import Counter

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
    parts = []
    for trial in dict.fromkeys(c["trial"] for c in transfer):
        of = [c for c in transfer if c["trial"] == trial]
        # A baseline that ends at once may still know: what it says without that counts too.
        known = [c["framing"] for c in of if _says_any(baseline[trial, c["framing"]])]
        won = [c["framing"] for c in of if c["succeeded"] and c["framing"] not in known]
        stalled = [f"{c['framing']} ({c['reference_uplift']:+.1f} nats)" for c in of if c["stall"]]
        sentence = f"'{trial}': all markers with the cache and none without it in {len(won)} of {len(of)} framings"
        sentence += f" ({listed(won)})" if won else ""
        if known:
            sentence += f"; without it too it says one in {listed(known)}, which shows nothing"
        if stalled:
            sentence += f"; ends at once in {listed(stalled)}: in brackets the reference answer's log-probability less baseline's"
        parts.append(sentence)
    return parts


def _says_any(case: dict) -> bool:
    return bool(case["markers"] or case["banned_markers"])


def _both(cell: dict) -> str:
    first, second = cell["verdict"], cell["verdict_against_text"]
    return "no verdict" if first is None else first if first == second else f"{first} by the rule's letter, {second} against text"


def phase_answers(summary: dict, model: str, phase: str) -> list[dict]:
    cases = [c for c in summary["cases"] if (c["model"], c["phase"]) == (model, phase)]
    every = [c for c in summary["cells"] if (c["model"], c["phase"]) == (model, phase)]
    cells = [c for c in every if c["condition"] == "transfer"]
    alone = {(c["family"], c["framing"]): c for c in every if c["condition"] == "baseline"}
    out = []
    if cases:
        out.append(answer(f"{phase}, {NAMES[phase]}: the plan's cases", "", None, _plan_parts(cases)))
    if cells and phase != "2d":
        for family in dict.fromkeys(c["family"] for c in cells):
            rows = [c for c in cells if c["family"] == family]
            found = Counter(c["verdict"] for c in rows if c["verdict"])
            each = [
                f"{c['framing']}: {_both(c)}, all markers in {share(c['numbers']['succeeded'])}, without a source in "
                f"{share(alone[family, c['framing']]['numbers']['succeeded'])}; uplift over another source "
                f"{interval(c['numbers']['uplift_over_mismatched'])} nats, Holm p {verdicts.text(c['p_holm'])}"
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
    sentence = (
        f"With other content, so that only the mode can come through, a source of a mode raises an answer of that mode over a factual source "
        f"in {sum(m['transfers'] for m in other)} of {len(other)} tests (mode x framing). Of each, with the same entity's additional effect:"
    )
    more = {(m["framing"], m["mode"]): m for m in summary["mode_by_entity"] if m["model"] == model}
    parts = [f"{_mode_effect(m)}; {_with_same_entity(more.get((m['framing'], m['mode'])))}" for m in other]
    truth = [m for m in rows if m["entity"] == "other" and m["probe"] == "truth"]
    if truth:
        parts.append(f"log-probability of the true answer: {'; '.join(_mode_effect(m) for m in truth)}")
    return [answer("2d: does the mode transfer, apart from the content?", sentence, None, parts)]


def _mode_effect(m: dict) -> str:
    """A test of mode: its estimate, and what it comes to."""
    significant = m["p_holm"] is not None and m["p_holm"] < ALPHA
    if significant:
        says = "raised" if m["nats"]["value"] > 0 else "lowered"
    elif m["p_equivalence_holm"] is not None and m["p_equivalence_holm"] < ALPHA:
        says = "no effect (|d| < 0.5 shown)"
    else:
        says = "open"
    return f"{m['mode']} in {m['framing']}: {says}, {interval(m['nats'])} nats, d {_d(m)}, Holm p {verdicts.text(m['p_holm'])}"


def _with_same_entity(m: dict | None) -> str:
    return "with the same entity not known" if m is None else f"with the same entity {interval(m['nats'])} more, Holm p {verdicts.text(m['p_holm'])}"


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


SCALE = "tau: 0 is no source, 1 the text itself. p: that this source raises its answer over another's in its place, adjusted over all points."


def sweep_answer(sweep: dict) -> list[dict]:
    points = sweep["points"]
    if not points:
        return []
    name = sweep["sweep"]
    out = []
    for framing, here in sweeps.groups([p for p in points if p["own"] is not None]).items():
        if name == "position":
            out.append(answer(f"Position ({framing})", _position(here, _same(sweep["against"], here)), None, _places(_same(sweep["places"], here))))
        elif name == "partial":
            out.append(answer(f"Partial cache ({framing})", SCALE, None, _partial(here)))
        elif name == "layers":
            out.append(answer(f"Layers of the mode ({framing})", "", None, _layers(_same(sweep["mode_against_content"], here))))
        else:
            out.append(answer(f"Components ({framing})", SCALE, None, _components(here)))
    return out


def _same(rows: list[dict], points: list[dict]) -> list[dict]:
    """The rows of the points' family and framing."""
    of = {(p["family"], p["framing"]) for p in points}
    return [r for r in rows if (r["family"], r["framing"]) in of]


def _position(here: list[dict], rows: list[dict]) -> str:
    rows = [a for a in rows if a["difference"] is not None]
    differs = [a for a in rows if a["p_family"] is not None and a["p_family"] < ALPHA]
    equal = [a for a in rows if a["p_equivalence_holm"] is not None and a["p_equivalence_holm"] < ALPHA]
    carries = [p for p in here if p["carries"]]
    sentence = (
        f"The source comes through at {len(carries)} of {len(here)} positions (it raises its answer over another source's). Against the start with "
        f"positions that follow, tau differs at {len(differs)} of {len(rows)} and is the same within 0.1 at {len(equal)}"
    )
    if differs:
        worst = min(differs, key=lambda a: a["difference"]["value"])
        best = max(differs, key=lambda a: a["difference"]["value"])
        sentence += f"; the largest loss {_change(worst)}"
        if best["difference"]["value"] > 0:
            sentence += f", the largest gain {_change(best)}"
    return sentence + (". Slots put together, by place:" if rows else ".")


PLACES = {"start": "before the target", "middle": "within the target", "end": "behind the target"}
RULES = {"follow": "positions that follow", "keep": "the positions that they had", "overlap": "the target's own positions once more"}
RESTS = {"fed": "the rest of the target computed after it", "kept": "the target computed alone"}


def _places(rows: list[dict]) -> list[str]:
    parts = []
    for r in rows:
        rule, rest = r["series"].split("/")
        where = f"{PLACES.get(r['place'], r['place'])}, {RULES.get(rule, rule)}, {RESTS.get(rest, rest)}: tau {interval(r['own'])}"
        parts.append(f"{where}, {_compared(r)}" if r["difference"] is not None else f"{where} (the start that the others are held against)")
    return parts


def _compared(r: dict) -> str:
    p, equal = r["p_family"], r["p_equivalence_holm"]
    if p is not None and p < ALPHA:
        says = "less" if r["difference"]["value"] < 0 else "more"
    else:
        says = "the same within 0.1" if equal is not None and equal < ALPHA else "not told apart"
    return f"{says} ({interval(r['difference'])} against the start, adjusted p {verdicts.text(p)})"


def _change(row: dict) -> str:
    return f"{interval(row['difference'])} at {row['point']}"


def _partial(here: list[dict]) -> list[str]:
    parts = []
    for sink in ("kept", "free"):
        for which in ("prefix", "suffix"):
            curve = sorted((p for p in here if p["series"] == f"{which}/{sink}"), key=lambda p: p["x"])
            if curve:
                parts.append(f"{'first' if which == 'prefix' else 'last'} layers, sink {sink}: {_reach(which, curve)}")
        single = [p for p in here if p["series"] == f"single/{sink}"]
        if single:
            best = max(single, key=lambda p: p["own"]["value"])
            parts.append(f"single layers, sink {sink}: {_carry(single)}; the best {best['x']:.0f}, {_tau(best)}")
        thirds = sorted((p for p in here if p["series"] == f"third/{sink}"), key=lambda p: p["x"])
        if thirds:
            parts.append(f"thirds, sink {sink}: " + "; ".join(f"{_layers_of(p)} {_tau(p)}" for p in thirds))
    return parts


def _tau(point: dict) -> str:
    return f"tau {interval(point['own'])}, adjusted p {verdicts.text(point['p_family'])}"


def _carry(points: list[dict]) -> str:
    carries = [p for p in points if p["carries"]]
    which = f" ({listed(format(p['x'], '.0f') for p in carries)})" if 0 < len(carries) <= 12 else ""
    return f"{len(carries)} of {len(points)} carry something of the source{which}"


def _layers_of(point: dict) -> str:
    return (point["selection"] or point["point"]).removeprefix("layers=")


def _reach(which: str, curve: list[dict]) -> str:
    """Where a growing part of the layers first brings half of the text's effect, and the part before that."""
    curve = curve if which == "prefix" else curve[::-1]
    span = lambda p: f"0 to {p['x']:.0f}" if which == "prefix" else f"{p['x']:.0f} to the last"  # noqa: E731
    at = next((i for i, p in enumerate(curve) if p["own"]["value"] >= 0.5), None)
    if at is None:
        return f"never half of the text's effect; {span(curve[-1])}: tau {interval(curve[-1]['own'])}"
    sentence = f"{span(curve[at])} bring half of the text's effect or more (tau {interval(curve[at]['own'])})"
    return sentence + (f", {span(curve[at - 1])} do not ({interval(curve[at - 1]['own'])})" if at else "")


def _layers(rows: list[dict]) -> list[str]:
    if not rows:
        return ["The splice of all layers moves too little to compare a layer's part of mode with its part of content."]
    parts = []
    for kind, series in dict.fromkeys((r["source_mode"], r["series"]) for r in rows):
        here = [r for r in rows if (r["source_mode"], r["series"]) == (kind, series)]
        whole = here[0]
        sentence = (
            f"{kind} source, sink {series.split('/')[-1]}, all layers spliced: mode {interval(whole['mode_whole'])} nats (an answer of its mode "
            f"{interval(whole['answer_whole'])}, less a factual one {interval(whole['factual_whole'])}), content {interval(whole['content_whole'])} nats"
        )
        if whole["difference"] is None:
            lacking = "mode" if whole["mode_whole"] is None or whole["mode_whole"]["low"] <= 0 else "content"
            parts.append(f"{sentence}: the whole does not raise {lacking}, so there is nothing for layers to share")
            continue
        found = [r for r in here if r["p_family"] is not None and r["p_family"] < ALPHA]
        more = listed(f"{r['layer']:.0f}" for r in found if r["difference"]["value"] > 0)
        less = listed(f"{r['layer']:.0f}" for r in found if r["difference"]["value"] < 0)
        least = min((r["p_family"] for r in here if r["p_family"] is not None), default=None)
        parts.append(f"{sentence}. Single layers that carry mode more than content: {more}; content more than mode: {less} (smallest adjusted p {verdicts.text(least)})")
    return parts


HALVES = {"k": "the source's K, V", "v": "the source's V, K", "neither": "K and V both"}
FILLS = {"mean": "the lanes' mean", "filler": "that of neutral text"}


def _components(here: list[dict]) -> list[str]:
    parts = []
    for p in (p for p in here if p["x"] is None):
        half, fill, *sink = p["series"].split("/")
        parts.append(f"{HALVES.get(half, half)} {FILLS.get(fill, fill)}, sink {'/'.join(sink)}: {_tau(p)}")
    for series in dict.fromkeys(p["series"] for p in here if p["x_label"] == "KV head"):
        heads = [p for p in here if p["series"] == series]
        parts.append(f"single heads, sink {series.split('/')[-1]}: " + "; ".join(f"{p['x']:.0f} {_tau(p)}" for p in heads))
    cells = [p for p in here if p["series"].startswith("layer-head")]
    if cells:
        best = max(cells, key=lambda p: p["own"]["value"])
        parts.append(
            f"{sum(bool(p['carries']) for p in cells)} of {len(cells)} single layer x head cells carry something of the source; the "
            f"best, {best['selection'] or best['point']}: {_tau(best)}"
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

    def add(model, where, what, estimate, p, equal_p, margin, one_sided=False):
        if p is None or p < ALPHA:
            return
        if equal_p is not None and equal_p < ALPHA:
            says = f"no effect: within {margin}"
        elif one_sided and estimate is not None and estimate["high"] < 0:
            says = "less than another source does, not more"
        elif equal_p is None:
            says = "not shown; equivalence was not tested"
        else:
            says = f"open: neither an effect nor its absence (within {margin})"
        rows.append({"model": model, "where": where, "what": what, "estimate": interval(estimate), "p": p, "says": says})

    over = "uplift over another source, nats (one-sided)"
    for c in summary["cells"]:
        where = " · ".join(x for x in (c["phase"], c["family"], c["mode"], c["entity"], c["framing"], c["condition"]) if x)
        add(c["model"], where, over, c["numbers"]["uplift_over_mismatched"], c["p_holm"], c["p_equivalence_holm"], "a tenth of the text's uplift", True)
    for m in summary["modes"]:
        where = f"2d · {m['framing']} · {m['entity']} entity · {m['mode']}"
        add(m["model"], where, f"effect on the {m['probe']} probe, nats", m["nats"], m["p_holm"], m["p_equivalence_holm"], "|d| < 0.5")
    for m in summary["mode_by_entity"]:
        add(m["model"], f"2d · {m['framing']} · {m['mode']}", "effect with the same entity less that with another, nats", m["nats"], m["p_holm"], None, "")
    for s in summary["sweeps"]:
        for a in s.get("against", []):
            where = f"position · {a['family']} · {a['framing']} · {a['point']}"
            add(s["model"], where, "tau less that at the start", a["difference"], a["p_family"], a["p_equivalence_holm"], "0.1 of tau")
        for p in s["points"]:
            where = f"{s['sweep']} · {p['family']} · {p['framing']} · {p['point']}"
            add(s["model"], where, over, p["uplift_over_mismatched"], p["p_family"], None, "", True)
    for s in summary["signatures"]:
        for r in s["compared"]:
            d = r["controlled"] and r["controlled"]["d"]
            add(s["model"], f"signatures · {r['kind']}", f"{r['signature']}, d with controls", d, r["p_controlled_holm"], None, "")
    return rows
