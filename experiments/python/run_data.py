"""Reading a run's folder: manifest.json, trials.jsonl, signatures.jsonl. Bad input is one line naming file and line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

FORMAT = 1  # of manifest.json's `kvfold_trials`
SETS = ("plan", "calibration", "test")
PHASES = ("2a", "2b", "2c", "2d")
SWEEPS = ("position", "partial", "layers", "components")

# What the analysis reads from a line; ARCHITECTURE.md has the meaning of each.
TEXTS = ["phase", "family", "set", "trial", "item", "framing", "condition"]
WORDS = ["framing", "condition", "mode", "entity"]  # which pages show as they are
NUMBERS = [
    "ld", "reference_uplift", "reference_tokens", "twin_uplift", "twin_reference_tokens", "truth_uplift",
    "kl_baseline", "source_tokens", "target_tokens",
]  # fmt: skip
PHASE_NUMBERS = [
    "perplexity_own", "perplexity_baseline", "banned_perplexity_baseline", "source_word_uplift", "decoy_uplift",
    "output_tokens", "copy_run", "banned_copy_run", "reference_copy_run", "copy_share", "distinct_1", "distinct_2",
    "distinct_3", "longest_repeat", "banned_longest_repeat", "zlib_ratio", "attention_mass", "injected_key_norm",
    "injected_value_norm", "natural_key_norm", "natural_value_norm", "injected_key_rank", "injected_value_rank",
    "injected_key_rank_90", "injected_value_rank_90", "natural_key_rank", "natural_value_rank", "natural_key_rank_90",
    "natural_value_rank_90",
]  # fmt: skip
OTHERS = ["mode", "entity", "probes"]
PHASE_OTHERS = [
    "source", "target", "reference", "output", "stall", "banned_output", "banned_output_ids", "markers",
    "banned_markers", "markers_wanted", "twin_markers", "truth_markers", "truth_markers_wanted", "permuted_uplifts",
    "injected_key_norms", "injected_value_norms", "natural_key_norms", "natural_value_norms",
]  # fmt: skip
SWEEP_NUMBERS = ["x"]
SWEEP_OTHERS = ["sweep", "point", "series", "x_label", "selection", "sink"]


class BadRun(Exception):
    """What is wrong with a run's folder, in one line."""


@dataclass
class Run:
    path: Path
    manifest: dict
    lines: pd.DataFrame  # of the sets that were asked for; empty for a run of signatures
    signatures: list[dict]

    @property
    def phase(self) -> str:
        return self.manifest["phase"]

    @property
    def model(self) -> str:
        return model_of(self.manifest)


def model_of(manifest: dict) -> str:
    name = Path(str(manifest["model"]))
    return name.stem if name.suffix == ".gguf" else name.name


def quoted(value) -> str:
    """A value from a file, as a message shows it: printable ASCII, and cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = "".join(c if " " <= c <= "~" else "?" for c in text[:80]) + ("..." if len(text) > 80 else "")
    return f"'{text}'" if isinstance(value, str) else text


def one_line(message) -> str:
    """A message for a terminal: no control characters, and of a length that can be read."""
    text = "".join(c if c.isprintable() else "?" for c in str(message))
    most = 4096 + 600  # a path, and what is said beside it
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def _object(pairs: list[tuple]) -> dict:
    value = {}
    for key, member in pairs:
        if key in value:
            raise ValueError(f"key {quoted(key)} stands twice")
        value[key] = member
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"a number that no double holds, {quoted(text)}")


def _number(text: str):
    if math.isinf(float(text)):
        _no_number(text)
    return int(text) if text.lstrip("-").isdigit() else float(text)


def parse(data: bytes, where: str):
    """JSON, read strictly: no key twice in an object, no number that a double does not hold, no text that UTF-8 does not."""
    may_be_large = re.search(rb"[eE]\+?\d{3}|\d{300}", data)
    large = {"parse_int": _number, "parse_float": _number} if may_be_large else {}
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number, **large)
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except ValueError as error:
        raise BadRun(f"{where}: not JSON: {error}") from None
    except RecursionError:
        raise BadRun(f"{where}: not JSON that is read here: too many levels") from None


@contextlib.contextmanager
def reading(folder: Path):
    """What stumbles over a record of another shape than a run's says in which folder."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadRun(f"{folder}: found records that are not of a run: {type(error).__name__}: {error}") from error


def read_json(path: Path) -> dict:
    try:
        value = parse(path.read_bytes(), str(path))
    except OSError as error:
        raise BadRun(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise BadRun(f"{path}: expected an object, found {type(value).__name__}")
    return value


def read_lines(path: Path, complete: bool = True) -> list[dict]:
    """The objects of a .jsonl file. While a run is not complete its last trial can be torn: that trial is left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadRun(f"{path}: cannot be read: {error.strerror}") from None
    *whole, tail = data.split(b"\n")
    if tail and complete:
        raise BadRun(f"{path}:{len(whole) + 1}: a complete run's last line does not end")
    records = []
    for number, line in enumerate(whole, start=1):
        record = parse(line, f"{path}:{number}")
        if not isinstance(record, dict):
            raise BadRun(f"{path}:{number}: expected an object, found {type(record).__name__}")
        records.append(record)
    torn = re.search(rb'"trial":("(?:[^"\\]|\\.)*")', tail)
    if torn is None:
        return records
    trial = parse(torn[1], f"{path}:{len(whole) + 1}")
    return [r for r in records if r.get("trial") != trial]


def read_manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    manifest = read_json(path)
    if manifest.get("kvfold_trials") != FORMAT:
        raise BadRun(f"{path}: key 'kvfold_trials': expected {FORMAT}, found {quoted(manifest.get('kvfold_trials'))}")
    for key in ("phase", "model"):
        if not isinstance(manifest.get(key), str):
            raise BadRun(f"{path}: key '{key}': expected text, found {quoted(manifest.get(key))}")
    return manifest


def _check(record: dict, where: str, texts: list[str], numbers: list[str], others: list[str]) -> None:
    for key in (*texts, *numbers, *others):
        if key not in record:
            raise BadRun(f"{where}: no key '{key}'")
    for key in texts:
        if not isinstance(record[key], str):
            raise BadRun(f"{where}: key '{key}': expected text, found {quoted(record[key])}")
    if record["set"] not in SETS:
        raise BadRun(f"{where}: key 'set': expected one of {', '.join(SETS)}, found {quoted(record['set'])}")
    for key in WORDS:
        value = record[key]
        if value is not None and not (isinstance(value, str) and re.fullmatch(r"[\w-]+", value, re.ASCII)):
            raise BadRun(f"{where}: key '{key}': expected a word, found {quoted(value)}")
    for key in numbers:
        value = record[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise BadRun(f"{where}: key '{key}': expected a number or null, found {quoted(value)}")


def frame(records: list[dict], sweep: bool, path: str = "trials.jsonl") -> pd.DataFrame:
    """Checked lines as a table of the columns above; null numbers are NaN. `order` is the line's place in the file."""
    numbers = NUMBERS + (SWEEP_NUMBERS if sweep else PHASE_NUMBERS)
    others = OTHERS + (SWEEP_OTHERS if sweep else PHASE_OTHERS)
    for number, record in enumerate(records, start=1):
        _check(record, f"{path}: record {number}", TEXTS, numbers, others)
    columns = TEXTS + numbers + others
    lines = pd.DataFrame([[record[key] for key in columns] for record in records], columns=columns, dtype=object)
    for key in numbers:
        lines[key] = pd.to_numeric(lines[key]).astype(float)
    lines["order"] = range(len(lines))
    keys = ["trial", "framing", "condition"] + (["point"] if sweep else [])
    twice = lines[lines.duplicated(keys)]
    if len(twice):
        row = twice.iloc[0]
        raise BadRun(f"{path}: two lines for trial {quoted(row.trial)}, framing {quoted(row.framing)}, condition {quoted(row.condition)}")
    return lines


def read_run(folder: Path, sets: tuple[str, ...] = SETS) -> Run:
    """A run's lines of the given sets. Thresholds are frozen from a reading of calibration alone."""
    manifest = read_manifest(folder)
    complete = bool(manifest.get("complete"))
    phase = manifest["phase"]
    if phase == "signatures":
        return Run(folder, manifest, pd.DataFrame(), read_lines(folder / "signatures.jsonl", complete))
    if phase not in PHASES + SWEEPS:
        raise BadRun(f"{folder / 'manifest.json'}: key 'phase': found {quoted(phase)}, which this report does not know")
    path = folder / "trials.jsonl"
    records = [r for r in read_lines(path, complete) if r.get("set") in sets or r.get("set") not in SETS]
    return Run(folder, manifest, frame(records, phase in SWEEPS, str(path)), [])


def find_runs(folders: list[Path]) -> list[Path]:
    """Run folders: those given, or where one is a folder of runs, the latest in it of each model and phase."""
    found = []
    for folder in folders:
        if (folder / "manifest.json").exists():
            found.append(folder)
            continue
        latest: dict[tuple, Path] = {}
        for path in sorted(p.parent for p in folder.glob("*/manifest.json")):  # names end in the time
            manifest = read_manifest(path)
            latest[model_of(manifest), manifest["phase"]] = path
        if not latest:
            raise BadRun(f"{folder}: expected a run (a folder with manifest.json) or a folder of runs, found neither")
        found += latest.values()
    return found


def write_atomically(path: Path, data: str) -> None:
    """The whole file or none of it: a temporary name, fsync, rename."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
