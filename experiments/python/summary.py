"""From runs to summary.json: thresholds, verdicts, curves, effects. Numbers only; page.py shows them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

import crossing
import effects
import modes
import rating
import run_data
import signatures
import sweeps
import thresholds
import verdicts
from run_data import Run

FORMAT = 1
POSITION_REFERENCE = "follow/fed"  # its first point, slot 0, is the two texts fed in turn
CASE_COLUMNS = [
    "source", "target", "reference", "output", "banned_output", "stall", "markers", "banned_markers", "markers_wanted",
    "truth_markers", "truth_markers_wanted", "succeeded", "perplexity_own", "perplexity_baseline", "perplexity_limit",
    "kl_baseline", "kl_limit", "reference_uplift", "reference_tokens", "twin_uplift", "truth_uplift", "tau", "copy_run",
    "copy_coverage", "distinct_1", "distinct_2", "distinct_3", "longest_repeat", "zlib_ratio", "attention_mass",
    "injected_key_norm", "injected_value_norm", "natural_key_norm", "natural_value_norm", "injected_key_rank",
    "injected_value_rank", "injected_key_rank_90", "injected_value_rank_90", "natural_key_rank", "natural_value_rank",
    "natural_key_rank_90", "natural_value_rank_90",
]  # fmt: skip


def plain(value):
    """The value as JSON has it: numpy's numbers as Python's, NaN as null."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def freeze_thresholds(folder: Path, manifest: dict) -> list[thresholds.Thresholds]:
    """Thresholds from the calibration split, which alone is read, written to the run's thresholds.json (and, once the
    run is complete, its manifest) before anything else of the run is looked at."""
    calibration = run_data.read_run(folder, ("calibration",)).lines
    frozen = thresholds.freeze(thresholds.prepare(calibration)) if len(calibration) else []
    record = [t.as_dict() for t in frozen]
    text = json.dumps(record, indent=1) + "\n"
    path = folder / "thresholds.json"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        run_data.write_atomically(path, text)
    if manifest.get("complete") and manifest.get("thresholds") != record:
        manifest["thresholds"] = record
        run_data.write_atomically(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return frozen


def _cases(lines: pd.DataFrame, judged: list[dict]) -> list[dict]:
    rows = lines.set_index("order")
    out = []
    for case in judged:
        row = rows.loc[case["order"]]
        out.append({**case, **{key: row[key] for key in CASE_COLUMNS}})
    return out


def summarise_phase(folder: Path, resamples: int) -> tuple[dict, pd.DataFrame]:
    """Of one phase's run: its part of the summary, and its lines with all that was made of them."""
    manifest = run_data.read_manifest(folder)
    frozen = freeze_thresholds(folder, manifest)
    run = run_data.read_run(folder)
    lines = thresholds.apply(thresholds.prepare(run.lines), frozen)
    test = lines[lines["set"] == "test"]
    plan = lines[lines["set"] == "plan"]
    cells = verdicts.judge_cells(test, resamples)
    cases = verdicts.judge_cases(plan, lines[lines["set"] != "plan"], cells)
    part = {"thresholds": [t.as_dict() for t in frozen], "cells": cells, "cases": _cases(lines, cases)}
    if run.phase == "2d":
        part["modes"] = modes.mode_effects(test, resamples)
        part["mode_by_entity"] = modes.entity_effects(test, resamples)
        part["answers"] = modes.answers(test)
    return part, lines


def summarise_sweep(run: Run, resamples: int) -> dict:
    """Of one sweep's run: curves, and what its question asks of them."""
    lines = sweeps.prepare(run.lines)
    test = lines[lines["set"] == "test"]
    part = {"sweep": run.phase, "points": sweeps.curves(test, resamples)}
    if run.phase == "position":
        part["against"] = sweeps.against_reference(test, POSITION_REFERENCE, resamples)
        part["places"] = sweeps.places(test, POSITION_REFERENCE, resamples)
    if run.phase == "layers":
        part["mode_against_content"] = sweeps.mode_against_content(test, resamples)
    return part


def summarise_signatures(run: Run, resamples: int) -> dict:
    names = [n for n in ("key_norm_no_sink", "value_norm_no_sink", "key_rank", "value_rank") if n in signatures.features(run.signatures)]
    return {
        "prompts": len(run.signatures),
        **{f"{key}s": len({line[key] for line in run.signatures}) for key in ("template", "pair")},
        "compared": signatures.compare(run.signatures, resamples),
        "by_layer": signatures.by_layer(run.signatures, names),
        "balance": signatures.balance(run.signatures),
    }


MANIFEST_KEYS = (
    "phase", "question", "family", "model", "model_name", "model_fingerprint", "backend", "precision", "cache_type", "tokens",
    "seed", "build", "decoding", "command", "machine", "prompts", "prompts_xxh3", "trials", "limit", "checks", "started",
    "finished", "complete", "resumed",
)  # fmt: skip


def summarise(folders: list[Path], extra_ratings: list[Path] = (), resamples: int = effects.RESAMPLES):
    """The summary of all runs, and the lines of their phases (with a column `model`)."""
    summary: dict = {"format": FORMAT, "level": effects.LEVEL, "resamples": resamples, "runs": []}
    lists = {key: [] for key in ("thresholds", "cells", "cases", "modes", "mode_by_entity", "answers", "sweeps", "signatures", "crossings")}
    tables = []
    seen: dict[tuple, Path] = {}
    for folder in folders:
        manifest = run_data.read_manifest(folder)
        model, phase = run_data.model_of(manifest), manifest["phase"]
        if (model, phase) in seen:
            raise run_data.BadRun(f"{folder}: a second run of {phase} with {model}; the first is {seen[model, phase]}")
        seen[model, phase] = folder
        with run_data.reading(folder):
            summary["runs"].append({"folder": folder.name, **{key: manifest.get(key) for key in MANIFEST_KEYS}, "model": model})
            if phase in run_data.PHASES:
                part, lines = summarise_phase(folder, resamples)
                for key, entries in part.items():
                    lists[key] += [{"model": model, **entry} for entry in entries]
                tables.append(lines.assign(model=model))
            elif phase in run_data.SWEEPS:
                lists["sweeps"].append({"model": model, **summarise_sweep(run_data.read_run(folder), resamples)})
            elif phase == "2e":
                lists["crossings"].append({"model": model, **crossing.summarise(folder, manifest)})
            else:
                run = run_data.read_run(folder)
                if run.signatures:
                    lists["signatures"].append({"model": model, **summarise_signatures(run, resamples)})
    lines = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    summary["models"] = sorted({run["model"] for run in summary["runs"]})
    summary.update(lists)
    summary["ratings"] = rating.summarise(lines, [*folders, *extra_ratings])
    return plain(summary), lines


def flat(entry: dict, prefix: str = "") -> dict:
    """A nested entry as one row of a CSV file: keys joined with a dot."""
    row = {}
    for key, value in entry.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            row.update(flat(value, f"{name}."))
        else:
            row[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    return row


TRIAL_COLUMNS = [
    "model", "phase", "family", "set", "trial", "item", "framing", "condition", "mode", "entity", "reference_uplift",
    "twin_uplift", "truth_uplift", "ld", "tau", "kl_baseline", "perplexity_own", "perplexity_baseline", "attention_mass",
    "copy_coverage", "stall", "looped", "broken", "broken_by", "copied", "succeeded", "output",
]  # fmt: skip


def write_tables(folder: Path, summary: dict, lines: pd.DataFrame) -> list[Path]:
    """CSV files beside summary.json: cells, cases, trials, sweeps, modes, signatures; those that the runs have."""
    tables = {
        "cells": [flat(entry) for entry in summary["cells"]],
        "cases": [flat(entry) for entry in summary["cases"]],
        "modes": [flat(entry) for entry in summary["modes"]],
        "mode_by_entity": [flat(entry) for entry in summary["mode_by_entity"]],
        "sweeps": [flat({"model": s["model"], "sweep": s["sweep"], **p}) for s in summary["sweeps"] for p in s["points"]],
        "places": [flat({"model": s["model"], **p}) for s in summary["sweeps"] for p in s.get("places", [])],
        "signatures": [flat({"model": s["model"], **row}) for s in summary["signatures"] for row in s["compared"]],
    }
    written = []
    for name, rows in tables.items():
        if rows:
            written.append(folder / f"{name}.csv")
            run_data.write_atomically(written[-1], pd.DataFrame(rows).to_csv(index=False))
    if len(lines):
        written.append(folder / "trials.csv")
        run_data.write_atomically(written[-1], lines[TRIAL_COLUMNS].to_csv(index=False))
    return written
