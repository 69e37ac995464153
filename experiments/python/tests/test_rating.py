"""Blinded rating: order, resumption, what is refused, agreement."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

import effects
import rating
import run_data
import synthetic

RATE = Path(rating.__file__).with_name("rate.py")


@pytest.fixture()
def folder(tmp_path):
    return synthetic.write_run(tmp_path / "run", "2a", synthetic.phase_lines("2a", 3, synthetic.Truth(), 0))


def run(folder, keys, *more):
    return subprocess.run(
        [sys.executable, RATE, folder, "--rater", "ann", *more], input=keys, capture_output=True, text=True, check=False
    )


def test_marks_are_kept_and_resumed_and_conditions_are_not_shown(folder):
    items = rating.items(run_data.read_run(folder).lines)
    first = run(folder, "51sq")
    assert first.returncode == 0, first.stderr
    for word in ("baseline", "noise", "transfer", "mismatched"):
        assert word not in first.stdout
    _, marks = rating.read(folder / "ratings" / "ann.json")
    order = rating.order(items, "ann")
    assert marks == {order[0]: 5, order[1]: 1}
    rest = run(folder, "3" * (len(items) - 2))
    assert f"{len(items)} of {len(items)} rated" in rest.stdout
    assert rating.read(folder / "ratings" / "ann.json")[1] == {i: {0: 5, 1: 1}.get(order.index(i), 3) for i in items}


def test_back_rates_again(folder):
    run(folder, "2b4q")
    assert list(rating.read(folder / "ratings" / "ann.json")[1].values()) == [4]


def test_a_terminal_needs_no_return_key(folder):
    master, slave = pty.openpty()
    program = subprocess.Popen([sys.executable, RATE, folder, "--rater", "ann"], stdin=slave, stdout=subprocess.DEVNULL)
    os.close(slave)
    path = folder / "ratings" / "ann.json"
    try:
        for _ in range(300):  # keys typed before the program listens would be dropped with the terminal's line
            os.write(master, b"5")
            time.sleep(0.1)
            if path.exists():
                break
        os.write(master, b"q")
        assert program.wait(30) == 0
    finally:
        program.kill()
        os.close(master)
    assert set(rating.read(path)[1].values()) == {5}


def test_two_raters_have_two_orders_and_each_the_same_again():
    ids = [str(i) for i in range(30)]
    assert rating.order(ids, "ann") == rating.order(ids[::-1], "ann") != rating.order(ids, "bob")


def test_the_report_has_agreement_and_what_is_unrated(folder):
    lines = run_data.read_run(folder).lines
    assert rating.summarise(lines, [folder])["unrated"] == rating.summarise(lines, [folder])["items"]
    ids = sorted(rating.items(lines))
    ann, bob = {i: 1 + k % 5 for k, i in enumerate(ids)}, {i: 1 + (k + k // 5) % 5 for k, i in enumerate(ids)}
    for name, marks in (("ann", ann), ("bob", {i: bob[i] for i in ids[:-1]})):
        rating.write(folder / "ratings" / f"{name}.json", name, marks)
    summary = rating.summarise(lines, [folder])
    assert summary["unrated"] == 0 and summary["raters"] == {"ann": len(ids), "bob": len(ids) - 1}
    expected = effects.weighted_kappa([ann[i] for i in ids[:-1]], [bob[i] for i in ids[:-1]])
    assert summary["kappa"]["value"] == expected.value
    baseline = next(c for c in summary["conditions"] if c["condition"] == "baseline")
    assert baseline["rated"] == baseline["items"] > 0 and 1 <= baseline["average"] <= 5


def test_bad_files_and_names(folder):
    path = folder / "ratings" / "ann.json"
    path.parent.mkdir()
    for content, expected in (({"rater": "ann"}, "expected the keys"), ({"rater": "ann", "ratings": {"x": 6}}, "expected 1 to 5, found 6")):
        path.write_text(json.dumps(content))
        answer = run(folder, "q")
        assert answer.returncode == 2 and expected in answer.stderr and answer.stderr.count("\n") == 1
    assert run(folder, "q", "--rater", "../x").returncode == 2
