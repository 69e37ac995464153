"""Runs with known truth, in the form that the drivers write: for the simulation of the verdict chain and the page test.

`python synthetic.py FOLDER` writes one run of each phase and sweep, and signatures, below FOLDER. Nothing here is a
measurement of any model, and each manifest's model is named MODEL.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import run_data

CONDITIONS = [
    "baseline", "same-cache", "noise", "noise-unit", "noise-channel", "zero", "shuffled", "transfer", "text",
    "mismatched", "twin", "filler",
]  # fmt: skip
FRAMINGS = ["raw", "qa", "chat", "system"]
NOISE = ("noise", "noise-unit", "noise-channel", "zero")
MODES = ("confabulated", "factual", "creative", "plain")
LAYERS, HEADS = 12, 3
MODEL = "synthetic-model-instruct"  # as long as models' names are


@dataclass(frozen=True)
class Truth:
    """What is true of a synthetic run."""

    effect: float = 8.0  # nats of reference uplift that a trial's own source brings more than any other source
    spread: float = 2.0  # standard deviation of uplifts between trials
    mode: float = 1.5  # nats of the mode's probe that a source of that mode brings, in 2d
    breaks: tuple[str, ...] = NOISE  # conditions whose output is nonsense
    end: float = 1.0  # share of the effect behind the target, in the sweep of positions


@dataclass(frozen=True)
class Case:
    """A trial's texts and where it stands."""

    phase: str
    family: str
    set: str
    trial: str
    item: str
    source: str
    target: str
    reference: str
    marker: str
    mode: str | None = None
    entity: str | None = None


NAMES = ["Orla", "Benedikt", "Ines", "Tomás", "Freya", "Malik", "Sunniva", "Kenji", "Adaeze", "Luca", "Zofia", "Ravi"]
CITIES = ["Turin", "Osaka", "Bergen", "Quito", "Leeds", "Lagos", "Graz", "Perth", "Lyon", "Dakar"]
PLAN = {
    "2a": ["Hello, my name is Lyra and I live in Seattle", "What is your name and where do you live?", "Lyra"],
    "2b": ["The capital of France is Lyon", "What is the capital of France?", "Lyon"],
    "2c": ["The 47th president of Mars was Zephyr", "The capital of France is", "Zephyr"],
    "2d": [
        "The inventor of quantum bicycles was Dr. Helena Frost",
        "The inventor of the telephone was",
        "Helena Frost",
    ],
}


def _cases(phase: str, each: int) -> list[Case]:
    source, target, marker = PLAN[phase]
    family = f"family-{phase}"
    mode, entity = ("confabulated", "other") if phase == "2d" else (None, None)
    cases = [Case(phase, "plan", "plan", f"{phase}-plan", f"{phase}-plan", source, target, source, marker, mode, entity)]
    for half in ("calibration", "test"):
        for i in range(each):
            name, city = NAMES[i % len(NAMES)], CITIES[(3 * i) % len(CITIES)]
            kinds = [(m, e) for m in MODES for e in ("same", "other")] if phase == "2d" else [(None, None)]
            for mode, entity in kinds:
                trial = f"{half}-{i}" + (f"-{mode}-{entity}" if mode else "")
                text = f"Hello, my name is {name} and I live in {city}"
                cases.append(
                    Case(phase, family, half, trial, f"{half}-{i}", text, "Who are you?", f"I am {name}.", name, mode, entity)
                )
    return cases


def _answer(condition: str, case: Case, rng) -> str:
    if condition in ("transfer", "text"):
        return f" {case.reference}."
    if condition in NOISE:
        return " " + " ".join(rng.choice(["zers", "ity", "Con", "of", "aging", "5", "."], 12))
    return " I am a helpful assistant, and I live in the cloud."


def _phase_line(case: Case, framing: str, condition: str, truth: Truth, draw: dict, rng) -> dict:
    own = condition in ("transfer", "text")
    nothing = condition in ("baseline", "same-cache")
    broken = condition in truth.breaks
    stall = framing == "raw" and not broken
    output = "" if stall else _answer(condition, case, rng)
    ids = [int(i) for i in rng.integers(0, 4000, len(output.split()))]
    uplift = 0.0 if nothing else draw["common"] + rng.normal(0, truth.spread) + truth.effect * own
    ld = draw["ld"] + (0.0 if nothing else rng.normal(0, 0.5) + truth.effect * own)
    if condition == "transfer":
        draw["transfer"] = (uplift, ld)
    if condition == "text":  # the same computation
        uplift, ld = draw["transfer"]
    perplexity = float(np.exp(rng.normal(6.5 if broken else 1.0, 0.3)))
    probes = {} if case.phase == "2a" else {"truth": _probe(0.0 if nothing else rng.normal(-1, 1))}
    if case.mode:
        for mode in MODES:
            probes[mode] = _probe(0.0 if nothing else rng.normal(0, 1) + truth.mode * (own and mode == case.mode))
    found = [case.marker] if own and not stall else []
    rows = 0 if nothing else len(case.source.split())
    norms = lambda mean: [[float(x) for x in row] for row in rng.normal(mean, 1, (LAYERS, rows or 6))]  # noqa: E731
    plan = case.set == "plan"
    banned = " I" if stall else None
    return {
        **{key: getattr(case, key) for key in ("phase", "family", "set", "trial", "item", "mode", "entity")},
        "framing": framing,
        "condition": condition,
        "sweep": None,
        "seed": 0,
        "source": None if nothing else case.source,
        "target": case.target,
        "reference": case.reference,
        "source_tokens": rows + 4 * (framing == "chat") * (not nothing),
        "target_tokens": 6,
        "reference_tokens": 4,
        "twin_reference_tokens": 4,
        "output": output,
        "output_ids": ids,
        "output_tokens": len(ids),
        "ended": stall,
        "stall": stall,
        "banned_output": banned,
        "banned_output_ids": [5] if stall else None,
        "markers": found,
        "banned_markers": [] if stall else None,
        "markers_wanted": [case.marker],
        "twin_markers": [],
        "truth_markers": [],
        "truth_markers_wanted": [] if case.phase == "2a" else ["Paris"],
        "perplexity_own": None if stall else 1.5,
        "perplexity_baseline": None if stall else perplexity,
        "banned_perplexity_baseline": perplexity if stall else None,
        "kl_baseline": 0.0 if nothing else float(rng.gamma(2, 0.1) * (40 if broken else 1)),
        "ld": ld,
        "reference_uplift": uplift,
        "twin_uplift": 0.0 if nothing else draw["common"] + rng.normal(0, truth.spread),
        "truth_uplift": probes.get("truth", {}).get("uplift"),
        "probes": probes,
        "source_word_uplift": rng.normal(),
        "decoy_uplift": rng.normal(),
        "copy_run": None if stall else 3,
        "banned_copy_run": 1 if stall else None,
        "copy_share": None if stall else 0.3,
        "reference_copy_run": 4,
        "distinct_1": None if stall else 0.9,
        "distinct_2": None if stall else 1.0,
        "distinct_3": None if stall else 1.0,
        "longest_repeat": None if stall else 1,
        "banned_longest_repeat": None,
        "zlib_ratio": None if stall else 0.9,
        "attention_mass": None if nothing else 0.4,
        "injected_key_norm": None if nothing else 15.0,
        "injected_value_norm": None if nothing else 2.0,
        "natural_key_norm": 14.0,
        "natural_value_norm": 2.1,
        **{f"{kind}_{part}_rank{which}": None if kind == "injected" and nothing else 6.0
           for kind in ("injected", "natural") for part in ("key", "value") for which in ("", "_90")},
        "injected_key_norms": norms(15) if plan and not nothing else None,
        "injected_value_norms": norms(2) if plan and not nothing else None,
        "natural_key_norms": norms(14) if plan and condition == "baseline" else None,
        "natural_value_norms": norms(2) if plan and condition == "baseline" else None,
        "permuted_uplifts": [float(u) for u in draw["common"] + rng.normal(0, truth.spread, 99)]
        if plan and condition == "transfer" else None,
    }  # fmt: skip


def _probe(uplift: float) -> dict:
    return {"logprob": -20.0 + uplift, "uplift": float(uplift), "tokens": 5}


def phase_lines(
    phase: str, each: int, truth: Truth, seed: int, framings=tuple(FRAMINGS), conditions=tuple(CONDITIONS)
) -> list[dict]:
    """Lines of one phase: the plan's case, and `each` generated items for either split."""
    rng = np.random.default_rng(seed)
    lines = []
    for case in _cases(phase, each):
        for framing in framings:
            draw = {"common": rng.normal(1, 2), "ld": rng.normal(-4, 1)}
            lines += [_phase_line(case, framing, condition, truth, draw, rng) for condition in conditions]
    return lines


SWEEP_POINTS = {
    "position": [*[("follow/fed", s, "slot / target tokens") for s in (0, 0.25, 0.5, 0.75)], ("follow/kept", 1, "slot / target tokens"),
                 *[("start/gap/fed", g, "gap") for g in (1, 8, 64, 512)]],
    "partial": [(f"{which}/{sink}", x, "layer") for which in ("single", "prefix", "suffix") for sink in ("kept", "free")
                for x in range(LAYERS)] + [("all/kept", None, "all"), ("none/kept", None, "none")],
    "layers": [(f"{which}/kept", x, "layer") for which in ("single", "all-but") for x in range(LAYERS)]
              + [("all/kept", None, "all"), ("none/kept", None, "none")],
    "components": [(f"{part}/mean/kept", None, None) for part in ("k", "v", "neither")]
                  + [("head/kept", h, "KV head") for h in range(HEADS)]
                  + [(f"layer-head {h}/kept", x, "layer") for h in range(HEADS) for x in range(LAYERS)],
}  # fmt: skip


def _strength(sweep: str, series: str, x: float | None, truth: Truth) -> float:
    """Share of the effect at a point of a sweep."""
    which = series.split("/")[0]
    if which == "all" or sweep == "position":
        return truth.end if sweep == "position" and x == 1 and series == "follow/kept" else 1.0
    if x is None:
        return 0.0 if which == "none" else 0.05
    place = x / (LAYERS - 1)
    return {"prefix": place**3, "suffix": 1 - place**3, "all-but": 1 - place / LAYERS}.get(which, place / LAYERS)


def _point(sweep: str, series: str, x: float | None) -> str:
    """A point's name; that of a position tells the place."""
    if sweep != "position":
        return f"{series} {x}"
    *gap, rest = series.split("/")
    if "gap" in gap:
        return f"start:0/gap:{x}/{rest}"
    return f"{'start' if x == 0 else 'end' if x == 1 else 'middle'}:{8 * x:.0f}/{gap[0]}/{rest}"


def sweep_lines(sweep: str, each: int, truth: Truth, seed: int, framings=("qa",)) -> list[dict]:
    """Lines of one sweep over the trials of 2a (of 2d for `layers`)."""
    rng = np.random.default_rng(seed)
    lines = []
    for case in _cases("2d" if sweep == "layers" else "2a", each):
        for framing in framings:
            common, ld, full = rng.normal(1, 2), rng.normal(-4, 1), truth.effect + rng.normal(0, 0.5)

            def line(condition: str, point: str, series, x, x_label, moved: float, mode_moved: float) -> dict:
                names = MODES if case.mode else ()
                return {
                    **{key: getattr(case, key) for key in ("family", "set", "trial", "item", "mode", "entity")},
                    "phase": sweep, "sweep": sweep, "framing": framing, "condition": condition, "point": point,
                    "series": series, "x": x, "x_label": x_label, "selection": None,
                    "sink": None if series is None else series.split("/")[-1], "ld": ld + moved,
                    "reference_uplift": 0.0 if condition == "baseline" else common + moved,
                    "twin_uplift": 0.0 if condition == "baseline" else common + rng.normal(0, 0.3), "truth_uplift": None,
                    "kl_baseline": 0.1, "source_tokens": 11, "target_tokens": 8, "reference_tokens": 4,
                    "twin_reference_tokens": 4,
                    "probes": {m: _probe(mode_moved if m == case.mode else rng.normal(0, 0.3)) for m in names},
                }  # fmt: skip

            lines.append(line("baseline", "baseline", None, None, None, 0.0, 0.0))
            lines.append(line("text", "text", None, None, None, full, truth.mode))
            for series, x, x_label in SWEEP_POINTS[sweep]:
                share = _strength(sweep, series, x, truth)
                mode_moved = truth.mode * share + rng.normal(0, 0.3)
                point = _point(sweep, series, x)
                own = full * share + rng.normal(0, 0.5)
                lines.append(line("transfer", point, series, x, x_label, own, mode_moved))
                lines.append(line("mismatched", point, series, x, x_label, rng.normal(0, 0.5), 0.0))
    return lines


SIGNATURES = [
    "key_norm", "value_norm", "key_norm_deviation", "value_norm_deviation", "key_variance", "value_variance", "key_rank",
    "value_rank", "key_rank_90", "value_rank_90", "key_spectral_entropy", "value_spectral_entropy",
]  # fmt: skip


def signature_lines(each: int, effect: float, seed: int) -> list[dict]:
    """Lines of signatures.jsonl: confabulated prompts are longer and of rarer words; `effect` (in sd) is on top."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(each):
        for kind in ("grounded", "swapped", "confabulated"):
            invented = kind == "confabulated"
            tokens, zipf = int(rng.integers(8, 12)) + 3 * invented, rng.normal(4.5 - invented, 0.4)
            line = {
                "prompt": f"{kind}-{i}", "kind": kind, "template": f"t{i % 5}", "pair": f"p{i}", "set": "test",
                "text": "", "tokens": tokens, "zipf_mean": zipf, "mean_log_token_rank": rng.normal(7 + invented, 0.3),
                "nll_mean": rng.normal(4 + invented, 0.5), "nll_last": rng.normal(4 + invented, 1),
            }  # fmt: skip
            for name in (f"{base}{suffix}" for base in SIGNATURES for suffix in ("", "_no_sink")):
                values = 10 + 0.5 * tokens + effect * invented + rng.normal(0, 1) + rng.normal(0, 0.1, LAYERS)
                line[name] = [float(v) for v in values]
                line[f"{name}_mean"] = float(values.mean())
            lines.append(line)
    return lines


def write_run(folder: Path, phase: str, lines: list[dict]) -> Path:
    """A complete run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "signatures.jsonl" if phase == "signatures" else "trials.jsonl"
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    manifest = {
        "kvfold_trials": run_data.FORMAT, "phase": phase, "question": "a synthetic run", "family": "all",
        "model": MODEL, "model_path": "none", "model_name": "none", "model_fingerprint": "none", "backend": "none",
        "precision": "none", "cache_type": "none", "tokens": 40, "seed": 0, "build": "synthetic.py", "decoding": "none",
        "command": ["synthetic.py"], "machine": {"cpu": "none", "cores": 0, "memory_bytes": 0, "system": "none"},
        "prompts": "none", "prompts_xxh3": "0" * 16, "trials": len(lines), "limit": None, "framings": FRAMINGS,
        "conditions": CONDITIONS, "checks": {"same-cache": 0, "text": 0}, "started": "", "finished": "",
        "complete": True, "resumed": 0, "thresholds": None,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return folder


def crossing_run(folder: Path, texts: int = 12) -> None:
    """Phase 2e: projected closes 0.6 of a gap of 2 nats, another text's widens it by 0.1 of it."""
    nll = {"none": 6.0, "text": 4.0, "projected": 4.8, "mismatched": 6.2, "mismatched-text": 6.3, "mean": 5.9, "noise": 9.0, "true-k": 4.5, "true-v": 4.6, "written": 5.0}
    lines = [
        {"measure": "text", "group": "t", "lines": texts * len(nll), "trial": f"t/{i}", "kind": "k", "condition": c, "nll": v}
        for c, v in nll.items() for i in range(texts)
    ]  # fmt: skip
    lines += [
        {"measure": "case", "group": "c", "lines": 2, "phase": "2a", "trial": "2a-plan-identity", "framing": "qa", "condition": c, "source": "s",
         "target": "t", "output": said, "stall": not said, "markers": ["Lyra"] if said else [], "markers_wanted": ["Lyra"], "ld": 1.5,
         "reference_logprob": -9.0, "reference_uplift": 3.0}
        for c, said in (("baseline", ""), ("projected", "My name is Lyra."))
    ]  # fmt: skip
    at = lambda v: {"value": v, "low": v - 0.1, "high": v + 0.1, "n": texts}  # noqa: E731
    results = {"texts": {c: {"nll": v, "g": at((6 - v) / 2)} for c, v in nll.items()}}
    results["texts"]["projected"]["g_pair"] = at(0.7)
    results["texts"]["projected"]["g_pair_less_text"] = at(-0.45)
    results["texts"]["text"]["g_pair"] = at(1.15)
    keys = ("name_likelier", "city_likelier", "name_margin", "city_margin", "said_name", "said_city")
    results["facts"] = {"known": {c: {k: at(0.8) for k in keys} for c in ("none", "text", "projected", "mismatched")}}
    write_run(folder, "2e", lines)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest |= {"target_model": "other", "split": "test", "results": results,
                 "projector": {"kind": "ridge", "rank": "8", "flow": [[1, 2, 3], [3, 2, 1]], "explained": "[0.5,0.6,0.4,0.3]", "gates": [1.2, -0.3, 0.8, 2.0]}}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def write_all(folder: Path, each: int = 30, truth: Truth = Truth()) -> None:
    """One run of each kind."""
    for seed, phase in enumerate(run_data.PHASES):
        write_run(folder / phase, phase, phase_lines(phase, each, truth, seed))
    for seed, sweep in enumerate(run_data.SWEEPS, start=10):
        write_run(folder / sweep, sweep, sweep_lines(sweep, each, truth, seed))
    write_run(folder / "signatures", "signatures", signature_lines(3 * each, 0.0, 20))
    crossing_run(folder / "crossing")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: synthetic.py FOLDER")
    write_all(Path(sys.argv[1]))
