"""Coherence, 1 to 5, by people who do not see which condition they rate. Unrated is unrated, never a pass.

An item is a target and an answer; equal answers of several conditions are one item and are rated once. A rater's file
is ratings/<rater>.json in a run's folder: {"rater": name, "ratings": {item: 1..5}}.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path

import pandas as pd

import effects
from run_data import BadRun, quoted, read_json, write_atomically

SCALE = {
    1: "nonsense",
    2: "words that do not hang together",
    3: "understandable, with faults",
    4: "coherent, a little off",
    5: "coherent and to the point",
}


def shown(line) -> str:
    """The answer that a rater reads: where the model ended at once, the one with end tokens banned at first."""
    return (line.banned_output or "") if line.stall else line.output


def item_id(target: str, answer: str) -> str:
    return hashlib.sha256(f"{target}\0{answer}".encode()).hexdigest()[:12]


def items(lines: pd.DataFrame) -> dict[str, dict]:
    """What there is to rate: the answers to the plan's own cases. {id: {target, answer}}"""
    found = {}
    if len(lines):
        for line in lines[lines["set"] == "plan"].itertuples():
            answer = shown(line)
            if answer.strip():
                found.setdefault(item_id(line.target, answer), {"target": line.target, "answer": answer})
    return found


def order(ids, rater: str) -> list[str]:
    """The same shuffle each time for one rater, another for the next."""
    ids = sorted(ids)
    random.Random(rater).shuffle(ids)
    return ids


def check_rater(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
        raise BadRun(f"rater {quoted(name)}: expected 1 to 40 letters, digits, '-' or '_'")
    return name


def read(path: Path) -> tuple[str, dict[str, int]]:
    record = read_json(path)
    rater, ratings = record.get("rater"), record.get("ratings")
    if not isinstance(rater, str) or not isinstance(ratings, dict):
        raise BadRun(f"{path}: expected the keys 'rater' (text) and 'ratings' (object)")
    for item, mark in ratings.items():
        if type(mark) is not int or mark not in SCALE:
            raise BadRun(f"{path}: item {quoted(item)}: expected 1 to 5, found {quoted(mark)}")
    return check_rater(rater), ratings


def write(path: Path, rater: str, ratings: dict[str, int]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps({"rater": rater, "ratings": ratings}, indent=1, sort_keys=True) + "\n")


def summarise(lines: pd.DataFrame, folders: list[Path]) -> dict:
    """How many are rated, by whom, how well two raters agree, and the mean by condition of what is rated."""
    wanted = items(lines)
    by_rater: dict[str, dict[str, int]] = {}
    for folder in folders:
        for path in sorted((Path(folder) / "ratings").glob("*.json")):
            rater, ratings = read(path)
            by_rater.setdefault(rater, {}).update({i: m for i, m in ratings.items() if i in wanted})
    raters = sorted(by_rater, key=lambda r: (-len(by_rater[r]), r))
    kappa = None
    if len(raters) >= 2:
        both = [(by_rater[raters[0]].get(i), by_rater[raters[1]].get(i)) for i in sorted(wanted)]
        estimate = effects.weighted_kappa(*zip(*both)) if both else None
        kappa = None if estimate is None else {"raters": raters[:2], **estimate.as_dict()}
    marks = {i: [by_rater[r][i] for r in raters if i in by_rater[r]] for i in wanted}
    conditions = []
    if len(lines):
        plan = lines[lines["set"] == "plan"]
        for condition, group in plan.groupby("condition", sort=False):
            ids = {item_id(line.target, shown(line)) for line in group.itertuples() if shown(line).strip()}
            rated = [sum(marks[i]) / len(marks[i]) for i in sorted(ids) if marks[i]]
            mean = effects.mean(rated)
            conditions.append(
                {
                    "condition": condition,
                    "items": len(ids),
                    "rated": len(rated),
                    "mean": None if mean is None else mean.as_dict(),
                    "average": sum(rated) / len(rated) if rated else None,
                }
            )
    return {
        "items": len(wanted),
        "raters": {r: len(by_rater[r]) for r in raters},
        "unrated": sum(not m for m in marks.values()),
        "kappa": kappa,
        "conditions": conditions,
    }
