"""Phase 2e: what crossed from one model to another, as tables and figures of the report."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import figures
import run_data
from html_parts import estimate, highlighted, number, table

CONDITIONS = {
    "none": "an empty cache", "text": "the receiver's own cache of the context", "projected": "the source's cache, projected",
    "reference": "the same by the other projector", "mismatched": "another text's, projected", "mismatched-text": "the receiver's own cache of that other text",
    "shuffled": "by a projector fitted to shuffled pairs",
    "mean": "the projector's mean row", "noise": "random rows of text's mean, deviation and norms", "true-k": "text's K with the projected V",
    "true-v": "text's V with the projected K", "written": "what the source writes when asked to repeat the context",
}  # fmt: skip


def summarise(folder: Path, manifest: dict) -> dict:
    """A crossing's part of the summary. Its numbers are the run's own; intervals are of texts drawn anew."""
    lines = run_data.read_lines(folder / "trials.jsonl", bool(manifest.get("complete")))
    results = manifest.get("results")
    if not isinstance(results, dict):
        raise run_data.BadRun(f"{folder / 'manifest.json'}: no key 'results': the run is not complete; the same command goes on with it")
    notes = manifest["projector"]
    return {
        "target": manifest["target_model"],
        "split": manifest["split"],
        "projector": {key: value for key, value in notes.items() if key not in ("flow", "explained", "gates")},
        "texts": results["texts"],
        "facts": results["facts"],
        "flow": notes.get("flow"),
        "explained": json.loads(notes["explained"]) if "explained" in notes else None,
        "gates": notes.get("gates"),
        "cases": [line for line in lines if line["measure"] == "case"],
    }


def _texts(part: dict, plot_id: str, page) -> str:
    known = [name for name in CONDITIONS if name in part["texts"]]
    rows = [[escape(n), escape(CONDITIONS[n]), number(part["texts"][n]["nll"]), estimate(part["texts"][n]["g"])] for n in known]
    shown = [n for n in known if n not in ("none", "text", "noise")]
    forest = figures.forest(plot_id, shown, {"G": [part["texts"][n]["g"] for n in shown]}, "G: share of the gap closed")
    pair, pair_less_text = part["texts"]["projected"]["g_pair"], part["texts"]["projected"].get("g_pair_less_text")
    return (
        page.plot(forest)
        + f"<p>G_pair, by which the own projected cache beats another text's: {estimate(pair)} of the gap, n = {pair['n']}. "
        f"Of the receiver's own caches: {estimate(part['texts']['text']['g_pair'])}; the former less the latter: {estimate(pair_less_text)}.</p>"
        + table([("condition", "text"), ("what the receiver has", "wide"), ("NLL, nats a token", "number"), ("G", "number")], rows, "gap closed")
    )


def _facts(part: dict) -> str:
    rows = []
    for kind, conditions in part["facts"].items():
        for name in ("none", "text", "projected", "mismatched"):
            if name in conditions:
                e = conditions[name]
                rows.append([escape(kind), name, *(estimate(e[k]) for k in ("name_likelier", "city_likelier", "name_margin", "city_margin", "said_name", "said_city"))])
    heads = ["name likelier than the twin's", "city likelier", "name's margin, nats", "city's margin", "name said", "city said"]
    return table([("names", "text"), ("condition", "text"), *((h, "number") for h in heads)], rows, "facts")


def _layers(part: dict, plot_id: str, page) -> str:
    body = ""
    point = lambda v: {"value": v, "low": v, "high": v, "n": 1}  # noqa: E731
    if part["flow"]:
        flow = part["flow"]
        # Each target layer's shares: what matters is where it comes from, not how large its weights are.
        z = [[value / (sum(row) or 1) for value in row] for row in flow]
        plot = figures.heat(f"{plot_id}-flow", z, list(range(len(flow[0]))), "source layer", "target layer")
        body += page.plot(plot, "Which source layers feed which target layer (share of each target layer's weights)")
    if part["explained"]:
        half = len(part["explained"]) // 2
        series = {name: [(i, point(v)) for i, v in enumerate(values)] for name, values in (("K", part["explained"][:half]), ("V", part["explained"][half:]))}
        body += page.plot(figures.curves(f"{plot_id}-explained", series, "target layer", "variance explained in training"), "How well rows are matched")
    if part["gates"]:
        # Logits, K and V of each target layer in turn; one above 0 is open.
        series = {name: [(i, point(v)) for i, v in enumerate(part["gates"][k::2])] for k, name in enumerate("KV")}
        body += page.plot(figures.curves(f"{plot_id}-gates", series, "target layer", "gate's logit: open above 0"), "The fuser's gates")
    return body


def _cases(part: dict) -> str:
    rows = []
    for case in part["cases"]:
        found = f"{len(case['markers'])} of {len(case['markers_wanted'])}" if case["markers_wanted"] else ""
        said = "<i>ended at once</i>" if case["stall"] else highlighted(case["output"].strip(), case["markers_wanted"])
        rows.append([escape(case["trial"]), escape(case["framing"]), escape(case["condition"]), found, number(case["ld"]), number(case["reference_uplift"]), said])
    heads = [("case", "text"), ("framing", "text"), ("condition", "text"), ("markers", "text"), ("LD", "number"), ("answer's uplift", "number"), ("said", "wide")]
    return "<details><summary>The plan's cases of 2a to 2d through the projector</summary>" + table(heads, rows, "cases through the projector") + "</details>"


def add_crossings(page) -> None:
    parts = page.summary["crossings"]
    if not parts:
        return
    body = (
        "<p>The context of a text is computed by one model; its cache, projected, is all that the other one has of it when it continues. "
        "G is the share of the gap in NLL between an empty cache and the receiver's own cache of the context. A cache may help that says "
        "nothing of the text (mean, mismatched), by what all texts have in common: what is the text's own is G_pair. Intervals here are the run's "
        "own: of G the middle 95% of 2,000 draws of documents, each with all of its texts; of margins that of draws of facts; of shares Wilson's.</p>"
    )
    for i, part in enumerate(parts):
        made = ", ".join(f"{k} {v}" for k, v in part["projector"].items() if k in ("kind", "rank", "lambda", "texts", "rows", "training.steps", "training.best_step"))
        body += f"<h3>{escape(part['model'])} to {escape(part['target'])}</h3><p class=note>{escape(made)}; texts of the split {escape(part['split'])}</p>"
        body += _texts(part, f"crossing-{i}", page) + "<h4>Names and cities</h4>" + _facts(part) + _layers(part, f"crossing-{i}", page) + _cases(part)
    page.add("crossing", "From one model to another (2e)", body)
