"""report.html: one page that opens offline, made of the summary and the plan's own lines."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pandas as pd

import crossing
import figures
import limits
import modes
import rating
import statements
import sweeps
from html_parts import chip, chips, estimate, figure, highlighted, number, p_value, panel, segments, several, sortable, table
from verdicts import VERDICTS

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent / "page"
PLAN_CONDITIONS = ["baseline", "same-cache", "noise", "transfer"]
FOREST_CONDITIONS = ["transfer", "shuffled", "twin", "filler"]
HEAT_CONDITIONS = ["transfer", "noise", "noise-unit", "noise-channel"]
SWEEP_TITLES = {
    "position": "Does the cache's position matter?",
    "partial": "Does a part of the cache do?",
    "layers": "Which layers carry the mode?",
    "components": "Which components carry the content?",
}


class Page:
    """Panels and plots as they are added."""

    def __init__(self, summary: dict, lines: pd.DataFrame):
        self.summary, self.lines = summary, lines
        self.panels: list[tuple[str, str, str]] = []
        self.figures: list[dict] = []
        self.norms: list[dict] = []

    def add(self, name: str, title: str, body: str) -> None:
        self.panels.append((name, title, panel(name, title, body)))

    def plot(self, description: dict, title: str = "") -> str:
        self.figures.append(description)
        return figure(description, title)


# ---- what came out ----


def _said(entry: dict) -> str:
    text = f"<p>{escape(entry['text'])}</p>" if entry["text"] else ""
    return text + "".join(f"<p>{escape(part)}</p>" for part in entry["parts"])


def add_answers(page: Page) -> None:
    entries = statements.answers(page.summary)
    body = ""
    for model in several(entries, "model"):
        rows = "".join(
            f"<div><span class=q>{escape(e['title'])} {chip(e['verdict'])}</span><div>{_said(e)}</div></div>"
            for e in entries
            if e["model"] == model
        )
        body += f"<h3>{escape(model)}</h3><div class=answers>{rows}</div>"
    page.add("answers", "What came out", body or "<p>No trial is complete yet.</p>")


# ---- the plan's cases ----


def _output(case: dict) -> str:
    words = [*case["markers_wanted"], *(case["truth_markers_wanted"] or [])]
    said = highlighted((case["output"] or "").strip(), words)
    if case["stall"]:
        said = "<span class=stall>ended at once</span>"
        if case["banned_output"]:
            said += f"<br><span class=note>with end tokens banned at first:</span> {highlighted(case['banned_output'].strip(), words)}"
    long = " long" if len(case["output"] or "") > 260 else ""
    found = "" if not case["markers_wanted"] else f"{len(case['markers'] or [])} of {len(case['markers_wanted'])} markers"
    numbers = [
        f"{name} {number(case[key])}"
        for name, key in (
            ("perplexity", "perplexity_own"),
            ("under baseline", "perplexity_baseline"),
            ("KL", "kl_baseline"),
            ("reference uplift", "reference_uplift"),
            ("tau", "tau"),
            ("K norm", "injected_key_norm"),
            ("V norm", "injected_value_norm"),
        )
        if case[key] is not None and case["condition"] != "same-cache"
    ]
    if case["condition"] == "same-cache":
        numbers = ["equal to baseline, bit for bit"]
    why = f"<div class=why>{escape(case['evidence'])}</div>" if case["verdict"] else ""
    if case["verdict_against_text"] != case["verdict"]:
        why += f"<div class=why>Against text: {escape(case['evidence_against_text'])}</div>"
    focus = " tabindex=0" if long else ""
    return (
        f"<div class=output><div class=head><b>{escape(case['condition'])}</b><span>{chips(case)} {found}</span></div>"
        f'<div class="said{long}"{focus}>{said}</div><div class=numbers>{" · ".join(numbers)}</div>{why}</div>'
    )


def add_cases(page: Page) -> None:
    cases = page.summary["cases"]
    if not cases:
        return
    models, framings = several(cases, "model"), several(cases, "framing")
    framing = "qa" if "qa" in framings else framings[0]
    body = (
        "<p>Each of the plan's cases under its four conditions; the others are below each. Highlighted: the source's markers, and "
        "where there is one the true answer.</p><div class=controls>"
        f"{segments('model', models, models[0], 'model')}{segments('framing', framings, framing, 'framing')}</div>"
    )
    for model in models:
        for f in framings:
            hidden = "" if (model, f) == (models[0], framing) else " hidden"
            body += f'<div data-model="{escape(model)}" data-framing="{escape(f)}"{hidden}>'
            here = [c for c in cases if (c["model"], c["framing"]) == (model, f)]
            for trial in several(here, "trial"):
                body += _case([c for c in here if c["trial"] == trial])
            body += "</div>"
    page.add("cases", "The plan's cases, answer by answer", body)


def _case(case: list[dict]) -> str:
    transfer = next((c for c in case if c["condition"] == "transfer"), case[0])
    main = "".join(_output(c) for name in PLAN_CONDITIONS for c in case if c["condition"] == name)
    rest = "".join(_output(c) for c in case if c["condition"] not in PLAN_CONDITIONS)
    more = f"<details><summary>{len(case) - len(PLAN_CONDITIONS)} more conditions</summary><div class=outputs>{rest}</div></details>"
    return (
        f"<div class=case><h3>{escape((transfer['source'] or '').strip())} <span class=to>→ {escape(transfer['target'].strip())}</span></h3>"
        f"<p class=note>phase {escape(transfer['phase'])}, {escape(transfer['trial'])}</p><div class=outputs>{main}</div>{more if rest else ''}</div>"
    )


# ---- verdicts ----


def _where(cell: dict) -> str:
    return " · ".join(x for x in (cell["family"], cell["mode"], cell["entity"], cell["framing"]) if x)


def add_verdicts(page: Page) -> None:
    cells = page.summary["cells"]
    if not cells:
        return
    judged = [c for c in cells if c["condition"] not in ("baseline", "same-cache")]
    columns = [
        ("model", "text"), ("phase", "text"), ("family, framing", "text"), ("condition", "text"), ("verdict", "text"), ("against text", "text"), ("n", "number"),
        ("broken", "number"), ("copies", "number"), ("ends at once", "number"), ("all markers", "number"),
        ("uplift over another source, nats", "number"), ("d (paired)", "number"), ("Holm p", "number"), ("tau", "number"),
        ("median KL", "number"), ("filler's 95th", "number"), ("stands on", "wide"),
    ]  # fmt: skip
    rows = []
    for c in judged:
        n = c["numbers"]
        d = n["effect"] and n["effect"]["d"]
        shares = [sortable(f"{n[k]['value']:.0%}", n[k]["value"]) for k in ("broken", "copied", "stall", "succeeded")]
        rows.append(
            [
                escape(c["model"]), c["phase"], escape(_where(c)), c["condition"], chip(c["verdict"]), chip(c["verdict_against_text"]), n["n"], *shares,
                *[sortable(estimate(e), e and e["value"]) for e in (n["uplift_over_mismatched"], d)],
                sortable(p_value(c["p_holm"]), c["p_holm"]), sortable(estimate(n["tau"]), n["tau"] and n["tau"]["value"]),
                sortable(number(n["kl_median"]), n["kl_median"]), sortable(number(n["kl_limit"]), n["kl_limit"]),
                f"<span class=note>{escape(c['evidence'])}</span>"
                + ("" if c["verdict_against_text"] == c["verdict"] else f"<br><span class=note>against text: {escape(c['evidence_against_text'])}</span>"),
            ]
        )  # fmt: skip
    body = (
        "<p>One verdict a cell, by a rule whose thresholds were frozen on the calibration half before the test half was read (the rule is "
        "at the end of the page). Baseline's own greedy answers are the likeliest under the baseline context, so by the rule's letter any other content is "
        "easily BROKEN; <i>against text</i> is the second reading, in which the limit is that of the two texts fed in turn. Intervals are 95%, BCa over "
        "items.</p>" + _matrix(judged, "verdict", "Cells by verdict") + _matrix(judged, "verdict_against_text", "Cells by verdict, against text") + "<h3>Each cell</h3>" + table(columns, rows, "verdicts in full")
    )
    page.add("verdicts", "Broken or transfer: the verdicts", body)


def _matrix(cells: list[dict], key: str, title: str) -> str:
    """How many cells of each phase and condition got which verdict."""
    conditions = [c for c in several(cells, "condition") if any(x["verdict"] for x in cells if x["condition"] == c)]
    if not conditions:
        return "<p>The runs have no calibration split, so there are no verdicts.</p>" if key == "verdict" else ""
    columns = [("model", "text"), ("phase", "text"), *[(c, "text") for c in conditions]]
    rows = []
    for model in several(cells, "model"):
        for phase in several([c for c in cells if c["model"] == model], "phase"):
            row = [escape(model), phase]
            for condition in conditions:
                here = [c[key] for c in cells if (c["model"], c["phase"], c["condition"]) == (model, phase, condition)]
                row.append("<br>".join(f"<span class=count>{chip(v)} <span class=note>{here.count(v)} of {len(here)}</span></span>" for v in VERDICTS if v in here))
            rows.append(row)
    return f"<h3>{title}</h3>" + table(columns, rows, title)


def add_forests(page: Page) -> None:
    cells = [c for c in page.summary["cells"] if c["phase"] != "2d"]
    if not cells:
        return
    body = (
        "<p>How much more likely the reference answer becomes with what stands in the cache than with another trial's source in its place: "
        "zero means that it is not this source that matters. 95% intervals over items. Noise and zeros lie far to the left; the table above has them.</p><div class=pair>"
    )
    for i, model in enumerate(several(cells, "model")):
        for phase in several([c for c in cells if c["model"] == model], "phase"):
            here = [c for c in cells if (c["model"], c["phase"]) == (model, phase)]
            rows = list(dict.fromkeys((c["family"], c["framing"]) for c in here))
            names = [f"{family} · {framing}" if len({r[0] for r in rows}) > 1 else framing for family, framing in rows]
            series = {}
            for condition in FOREST_CONDITIONS:
                by_row = {(c["family"], c["framing"]): c["numbers"]["uplift_over_mismatched"] for c in here if c["condition"] == condition}
                series[condition] = [by_row.get(row) for row in rows]
            plot = figures.forest(f"forest-{i}-{phase}", names, series, "uplift over another source (nats)")
            body += page.plot(plot, f"{model}, phase {phase}")
    page.add("effects", "Is it this source?", body + "</div>")


# ---- sweeps ----


def add_sweeps(page: Page) -> None:
    for name, title in SWEEP_TITLES.items():
        body = ""
        for i, sweep in enumerate(s for s in page.summary["sweeps"] if s["sweep"] == name):
            body += f"<h3>{escape(sweep['model'])}</h3>" + _sweep(page, sweep, f"{name}-{i}")
        if body:
            intro = (
                "<p>tau is the part of the text's own effect on the logit difference between the source's fact and its twin's: 0 is baseline, 1 the two "
                "texts fed in turn. Bars are 95% intervals over items.</p>"
            )
            page.add(f"sweep-{name}", title, intro + body)


def _sweep(page: Page, sweep: dict, stem: str) -> str:
    body = ""
    for f, (framing, here) in enumerate(sweeps.groups([p for p in sweep["points"] if p["own"] is not None]).items()):
        lone = [p for p in here if p["x"] is None]
        heads = [p for p in here if p["series"].startswith("layer-head")]
        lines = [p for p in here if p["x"] is not None and p not in heads]
        body += "<div class=pair>"
        for k, label in enumerate(several(lines, "x_label")):
            of = [p for p in lines if p["x_label"] == label]
            many: dict[str, list] = {}
            for p in of:
                many.setdefault(p["series"].split("/")[-1] if name_by_sink(sweep) else "", []).append(p)
            for j, (sink, points) in enumerate(many.items()):
                series = {
                    s: sorted(((p["x"], p["own"]) for p in points if p["series"] == s), key=lambda q: q[0]) for s in several(points, "series")
                }
                log = label == "gap"
                series = {s: [q for q in v if not log or q[0] > 0] for s, v in series.items()}
                title = f"{framing}, by {label}" + (f", sink {sink}" if sink else "")
                plot = figures.curves(f"{stem}-{f}-{k}-{j}", {s: v for s, v in series.items() if v}, label, "tau", log)
                body += page.plot(plot, title)
        if lone:
            names = [p["point"] for p in lone]
            series = {"own source": [p["own"] for p in lone], "another source": [p["mismatched"] for p in lone]}
            body += page.plot(figures.forest(f"{stem}-{f}-lone", names, series, "tau"), f"{framing}, without an axis")
        if heads:
            body += _layer_heads(page, heads, f"{stem}-{f}-heads", framing)
        body += "</div>"
    if sweep.get("mode_against_content"):
        body += _mode_against_content(page, sweep["mode_against_content"], stem)
    return body + "<details><summary>Every point</summary>" + _points(sweep) + "</details>"


def name_by_sink(sweep: dict) -> bool:
    return sweep["sweep"] in ("partial", "layers")


def _layer_heads(page: Page, points: list[dict], plot_id: str, framing: str) -> str:
    series = sorted(several(points, "series"))
    layers = sorted({p["x"] for p in points})
    at = {(p["series"], p["x"]): p["over"]["value"] if p["over"] else None for p in points}
    z = [[at.get((s, layer)) for s in series] for layer in layers]
    names = [s.split("/")[0].removeprefix("layer-head ") for s in series]
    plot = figures.heat(plot_id, z, names, "KV head", "layer", height=160 + 11 * len(layers))
    plot["layout"]["xaxis"]["type"] = "category"
    return page.plot(plot, f"{framing}, each layer x head: tau over another source")


def _mode_against_content(page: Page, rows: list[dict], stem: str) -> str:
    body = (
        "<h3>A single layer's part of mode and of content</h3><p>Mode: the uplift of an answer of the source's mode, whose words are in no source, less "
        "that of a factual one. Content: the uplift of the source's answer less its twin's. A mode that all layers together do not raise has no curve.</p><div class=pair>"
    )
    parts: dict[tuple, list] = {}
    for framing, of in sweeps.groups(rows).items():
        for r in of:
            parts.setdefault((framing, f"{r['source_mode']} source, {r['series']}"), []).append(r)
    for i, ((framing, series), here) in enumerate(parts.items()):
        here.sort(key=lambda r: r["layer"])
        lines = {name: [(r["layer"], r[name]) for r in here if r[name] is not None] for name in ("mode", "content")}
        lines = {k: v for k, v in lines.items() if v}
        if lines:
            plot = figures.curves(f"{stem}-mode-{i}", lines, "layer", "part of the whole splice's effect", levels=(0.0,))
            body += page.plot(plot, f"{framing}, {series}")
    return body + "</div>"


def _points(sweep: dict) -> str:
    columns = [("family", "text"), ("framing", "text"), ("point", "text"), ("rows selected", "text"), ("n", "number"), ("tau", "number"), ("another source", "number"),
               ("uplift over another source, nats", "number"), ("d (paired)", "number"), ("adjusted p", "number")]  # fmt: skip
    rows = []
    for p in sweep["points"]:
        d = p["effect"] and p["effect"]["d"]
        rows.append(
            [escape(p["family"]), p["framing"], escape(p["point"]), escape(p["selection"] or ""), p["n"]]
            + [sortable(estimate(e), e and e["value"]) for e in (p["own"], p["mismatched"], p["uplift_over_mismatched"], d)]
            + [sortable(p_value(p["p_family"]), p["p_family"])]
        )
    return table(columns, rows, "every point of the sweep")


# ---- norms ----


def _matrix_of(value) -> list[list[float]] | None:
    return [[float(f"{x:.3g}") for x in row] for row in value] if isinstance(value, list) and value and value[0] else None


def add_norms(page: Page) -> None:
    if not len(page.lines):
        return
    plan = page.lines[page.lines["set"] == "plan"]
    options = ""
    for (model, trial, framing), group in plan.groupby(["model", "trial", "framing"], sort=False):
        baseline = group[group["condition"] == "baseline"]
        if not len(baseline):
            continue
        natural = [_matrix_of(baseline.iloc[0][f"natural_{part}_norms"]) for part in ("key", "value")]
        for line in group[group["condition"].isin(HEAT_CONDITIONS)].itertuples():
            injected = [_matrix_of(getattr(line, f"injected_{part}_norms")) for part in ("key", "value")]
            if all(natural) and all(injected):
                chosen = " selected" if (line.condition, framing) == ("transfer", "qa") and "selected" not in options else ""
                options += f"<option value={len(page.norms)}{chosen}>{escape(f'{model} · {trial} · {framing} · {line.condition}')}</option>"
                page.norms.append(
                    {"natural_key": natural[0], "natural_value": natural[1], "injected_key": injected[0], "injected_value": injected[1]}
                )
    if not page.norms:
        return
    body = (
        "<p>The norm of each cached row in each layer, mean over heads: the rows put in, and the target's own under baseline. The two maps of K share "
        "a scale, and so do those of V; it ends at the 98th percentile. Row 0 of a text is its attention sink.</p>"
        f"<div class=controls><label>case <select id=norms-case>{options}</select></label></div><div class=pair>"
    )
    for part, name in (("key", "K"), ("value", "V")):
        for kind, title in (("natural", "natural (target's own rows)"), ("injected", "injected")):
            body += f'<div class=figure><h4>{name}, {title}</h4><div class=plot id="norms-{kind}-{part}" style="height:330px"></div></div>'
    page.add("norms", "Norms of injected and natural cache", body + "</div>")


# ---- signatures, what was not significant, limits ----


def add_signatures(page: Page) -> None:
    parts = page.summary["signatures"]
    if not parts:
        return
    body = (
        "<p>Cohen's d of confabulated against grounded prompts, as it stands, and with the prompt's length and its tokens' frequency held fixed. "
        "<i>Swapped</i> statements are false and made of the grounded ones' own words.</p>"
    )
    for i, part in enumerate(parts):
        rows = [r for r in part["compared"] if r["kind"] == "confabulated"]
        swapped = {r["signature"]: r for r in part["compared"] if r["kind"] == "swapped"}
        d = lambda r, key: r[key]["d"] if r and r[key] else None  # noqa: E731
        series = {
            "raw": [d(r, "raw") for r in rows],
            "length and frequency held fixed": [d(r, "controlled") for r in rows],
            "swapped, raw": [d(swapped.get(r["signature"]), "raw") for r in rows],
        }
        names = [r["signature"].replace("_", " ") for r in rows]
        body += f"<h3>{escape(part['model'])}</h3>" + page.plot(figures.forest(f"signatures-{i}", names, series, "Cohen's d"))
        body += "<div class=pair>"
        for j, name in enumerate(several(part["by_layer"], "signature")):
            here = [r for r in part["by_layer"] if r["signature"] == name]
            lines = {"raw": [(r["layer"], r["raw"]["d"]) for r in here if r["raw"]]}
            lines["held fixed"] = [(r["layer"], r["controlled"]["d"]) for r in here if r["controlled"]]
            lines = {k: v for k, v in lines.items() if v}
            if lines:
                plot = figures.curves(f"signatures-{i}-{j}", lines, "layer", "Cohen's d", levels=(0.0,))
                body += page.plot(plot, name.replace("_", " ") + " by layer")
        body += "</div><details><summary>Every signature, and the balance of the controls</summary>" + _signature_tables(part) + "</details>"
    page.add("signatures", "Signatures of phase 1.5", body)


def _signature_tables(part: dict) -> str:
    columns = [("kind", "text"), ("signature", "text"), ("d", "number"), ("g", "number"), ("Holm p", "number"), ("d, held fixed", "number"), ("Holm p, held fixed", "number")]
    rows = []
    for r in part["compared"]:
        raw, held = r["raw"] or {}, r["controlled"] or {}
        rows.append(
            [r["kind"], r["signature"].replace("_", " ")]
            + [sortable(estimate(e), e and e["value"]) for e in (raw.get("d"), raw.get("g"))]
            + [sortable(p_value(r["p_holm"]), r["p_holm"])]
            + [sortable(estimate(held.get("d")), held.get("d") and held["d"]["value"]), sortable(p_value(r["p_controlled_holm"]), r["p_controlled_holm"])]
        )
    balance = [[b["control"], b["kind"], number(b["mean"]), number(b["sd"])] for b in part["balance"]]
    return table(columns, rows, "signatures") + table(
        [("control", "text"), ("kind", "text"), ("mean", "number"), ("sd", "number")], balance, "balance of the controls"
    )


def add_insignificant(page: Page) -> None:
    rows = statements.not_significant(page.summary)
    open_ones = sum("open" in r["says"] for r in rows)
    none = sum(r["says"].startswith("no effect") for r in rows)
    less = sum(r["says"].startswith("less") for r in rows)
    if not rows:
        page.add("insignificant", "What was not significant", "<p>No test: there is no test split, or every test was significant.</p>")
        return
    body = (
        f"<p>{len(rows)} tests have an adjusted p of 0.05 or more. In {none} an equivalence test (two one-sided tests) shows that there is no effect worth the "
        f"name; in {less} the test asked whether a source does more than another, and it does less; {open_ones} stay open: the data show neither an effect nor its "
        f"absence; in the other {len(rows) - none - less - open_ones} no such test was asked for.</p>"
    )
    columns = [("model", "text"), ("where", "text"), ("what", "text"), ("estimate", "number"), ("adjusted p", "number"), ("so", "text")]
    cells = [
        [escape(r["model"]), escape(r["where"]), escape(r["what"]), escape(r["estimate"]), sortable(p_value(r["p"]), r["p"]), escape(r["says"])]
        for r in rows
    ]
    page.add("insignificant", "What was not significant", body + table(columns, cells, "what was not significant"))


def add_limits(page: Page) -> None:
    can = "".join(f"<li>{escape(s)}</li>" for s in limits.can_say(page.summary))
    cannot = "".join(f"<li>{escape(s)}</li>" for s in limits.cannot_say(page.summary))
    body = (f"<h3>It can say</h3><ul class=plain>{can}</ul>" if can else "") + f"<h3>It cannot say</h3><ul class=plain>{cannot}</ul>"
    page.add("limits", "What this run can and cannot say", body)


# ---- rating and method ----


def add_rating(page: Page) -> dict:
    ratings, items = page.summary["ratings"], rating.items(page.lines)
    run = "+".join(run["folder"] for run in page.summary["runs"])
    if not items:
        return {"run": run, "items": {}}
    scale = "; ".join(f"<b>{k}</b> {v}" for k, v in rating.SCALE.items())
    state = f"{ratings['items']} answers, {ratings['unrated']} unrated. "
    state += "; ".join(f"{escape(r)} rated {n}" for r, n in ratings["raters"].items()) or "Nobody has rated yet"
    kappa = ratings["kappa"]
    if kappa:
        state += f". Weighted kappa of {escape(kappa['raters'][0])} and {escape(kappa['raters'][1])}: {estimate(kappa)}, {kappa['n']} answers"
    body = (
        f"<p>{state}. Unrated is unrated, never a pass.</p><p>Rate answers without knowing their condition, in an order shuffled for you; best before "
        f"reading the rest. {scale}.</p><div class=controls><label>your name <input id=rater size=14 autocomplete=off></label>"
        "<button type=button id=rate-start>start</button><button type=button id=rate-export>export JSON</button><span class=note id=rate-state></span></div>"
        '<div id=rate-box hidden><div class=prompt id=rate-prompt></div><div class=said id=rate-said aria-live=polite></div><div class=controls>'
        + "".join(f"<button type=button value={k}>{k}</button>" for k in rating.SCALE)
        + "<button type=button value=s>skip</button><button type=button value=b>back</button></div>"
        "<p class=note>Keys: 1 to 5, s, b. The exported file goes into the run's <code>ratings</code> folder; the next report takes it in.</p></div>"
    )
    columns = [("condition", "text"), ("answers", "number"), ("rated", "number"), ("mean", "number")]
    rows = [
        [c["condition"], c["items"], c["rated"], sortable(estimate(c["mean"]) or number(c["average"]) or "unrated", c["average"])]
        for c in ratings["conditions"]
    ]
    page.add("rating", "Coherence, rated blind", body + table(columns, rows, "coherence by condition"))
    return {"run": run, "items": items}


def add_method(page: Page) -> None:
    import verdicts

    runs = [
        [escape(r["model"]), r["phase"], escape(str(r["precision"])), r["trials"], escape(str(r["started"])), "yes" if r["complete"] else "no",
         f"<code>{escape(' '.join(r['command'] or []))}</code>"]
        for r in page.summary["runs"]
    ]  # fmt: skip
    columns = [("model", "text"), ("phase", "text"), ("precision", "text"), ("trials", "number"), ("started", "text"), ("complete", "text"), ("command", "wide")]
    body = table(columns, runs, "runs")
    if page.summary["thresholds"]:
        columns = [("model", "text"), ("phase", "text"), ("family", "text"), ("framing", "text"), ("perplexity", "number"), ("perplexity, text", "number"), ("KL", "number"), ("copy", "number"), ("items", "number")]
        rows = [
            [escape(t["model"]), t["phase"], escape(t["family"]), t["framing"], number(t["perplexity"]), number(t["perplexity_text"]), number(t["kl"]), number(t["copy_coverage"]), t["items"]]
            for t in page.summary["thresholds"]
        ]
        body += "<h3>Thresholds, from the calibration split</h3>" + table(columns, rows, "thresholds")
    rule = "".join(f"<p style='white-space:pre-line'>{escape(part)}</p>" for part in _paragraphs(verdicts.__doc__))
    body += (
        "<h3>The rule</h3>" + rule + "<h3>Statistics</h3><p>The unit is the item. Intervals: BCa bootstrap, "
        f"{page.summary['resamples']} resamples, paired over items; shares: Wilson; Cohen's d and Hedges' g: noncentral t. Tests: permutation. Holm within a "
        "family; points of a sweep: max T (Westfall and Young). Equivalence: two one-sided t tests. scipy and statsmodels compute them all.</p>"
    )
    page.add("method", "Runs, thresholds, and the rule", body)


def _paragraphs(text: str) -> list[str]:
    """Running text of a docstring: lines joined, and each verdict of the rule on a line of its own."""
    out = []
    for block in text.strip().split("\n\n"):
        joined = ""
        for line in block.split("\n"):
            new = line.split(" ")[0] in VERDICTS
            joined += ("\n" if new else " ") + " ".join(line.split())
        out.append(joined.strip())
    return out


def build(summary: dict, lines: pd.DataFrame, plotly_script: str) -> tuple[str, list[str]]:
    """The page, and the names of its panels."""
    page = Page(summary, lines)
    for add in (add_answers, add_cases, add_verdicts, add_forests, modes.add_modes, add_sweeps, add_norms, add_signatures, crossing.add_crossings, add_insignificant, add_limits):
        add(page)
    rating_data = add_rating(page)
    add_method(page)
    phases = several(summary["runs"], "phase")
    title = f"kvfold report: {', '.join(summary['models'])}"
    data = json.dumps({"figures": page.figures, "norms": page.norms, "rating": rating_data}, ensure_ascii=False, allow_nan=False)
    css = (SHARED / "page.css").read_text(encoding="utf-8") + (HERE / "report.css").read_text(encoding="utf-8")
    html = f"""<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1"><title>{escape(title)}</title>
<link rel=icon href="data:,"><style>{css}</style><script>{plotly_script}</script></head><body><main>
<header class=top><h1>What a transplanted cache carries</h1>
<p class=note>{escape(', '.join(summary['models']))} · phases and sweeps: {escape(', '.join(phases))}</p>
<nav>{''.join(f'<a href="#{name}">{escape(text)}</a>' for name, text, _ in page.panels)}</nav></header>
{''.join(html for _, _, html in page.panels)}
</main><script type="application/json" id=data>{data.replace('<', chr(92) + 'u003c')}</script>
<script>{(HERE / 'report.js').read_text(encoding='utf-8')}</script></body></html>
"""
    return html, [name for name, _, _ in page.panels]
