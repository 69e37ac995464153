"""The verdict rule: each branch by hand, the whole against a second program, and what must never happen."""

import json

import numpy as np
import pytest

import plain_verdicts
import run_data
import synthetic
import thresholds
import verdicts

FAST = 1_000


def judge(lines, sets=("test",)):
    table = thresholds.prepare(run_data.frame(lines, sweep=False))
    frozen = thresholds.freeze(table[table["set"] == "calibration"])
    table = thresholds.apply(table, frozen)
    cells = verdicts.judge_cells(table[table["set"] == "test"], FAST)
    cases = verdicts.judge_cases(table[table["set"] == "plan"], table[table["set"] != "plan"], cells)
    return table, cells, cases


def verdict_of(entries, condition, framing="qa"):
    return next(e["verdict"] for e in entries if e["condition"] == condition and e["framing"] == framing)


def changed(lines, condition, **values):
    """The lines with other values at one condition of the test split and the plan's case."""
    return [{**l, **values} if l["condition"] == condition and l["set"] != "calibration" else l for l in lines]


@pytest.fixture(scope="module")
def lines():
    return synthetic.phase_lines("2a", 16, synthetic.Truth(effect=14.0), 0, ("qa",))


def test_verdicts_equal_those_of_a_second_program():
    lines = synthetic.phase_lines("2a", 30, synthetic.Truth(), 0, ("raw", "qa"))
    mixed = changed(lines, "shuffled", copy_run=7, output_ids=list(range(14)), output_tokens=14)
    mixed = changed(mixed, "twin", kl_baseline=2.0)
    _, cells, _ = judge(mixed)
    ours = {(c["family"], c["framing"], c["condition"]): c["verdict"] for c in cells if c["verdict"]}
    assert ours == plain_verdicts.verdicts(mixed)
    assert set(ours.values()) == set(verdicts.VERDICTS)


@pytest.mark.parametrize(
    "values, expected",
    [
        ({}, "TRANSFER"),
        ({"perplexity_baseline": 1e4}, "BROKEN"),
        ({"stall": True, "output": "", "banned_perplexity_baseline": 2.0}, "BROKEN"),
        ({"longest_repeat": 30, "output_tokens": 40}, "BROKEN"),
        ({"longest_repeat": 7, "output_tokens": 9}, "TRANSFER"),  # too short to be a loop
        ({"longest_repeat": 19, "output_tokens": 40}, "TRANSFER"),  # less than half of the output
        ({"copy_run": 10}, "COPY"),
        ({"copy_run": 10, "reference_copy_run": 9}, "TRANSFER"),  # the right answer itself repeats the source
        ({"reference_uplift": 0.0, "kl_baseline": 0.01}, "INERT"),
        ({"reference_uplift": 0.0, "kl_baseline": 3.0}, "SHIFTED"),
    ],
)
def test_each_branch(lines, values, expected):
    _, cells, cases = judge(changed(lines, "transfer", **{"perplexity_baseline": 1.5, **values}))
    assert verdict_of(cells, "transfer") == expected
    assert verdict_of(cases, "transfer") == expected


def test_uplift_alone_is_no_transfer_while_tau_is_that_of_other_sources(lines):
    at = {(l["trial"], l["framing"], l["condition"]): l for l in lines}
    flat = [
        {**l, "ld": at[l["trial"], l["framing"], "mismatched"]["ld"]} if l["condition"] == "transfer" else l for l in lines
    ]
    _, cells, cases = judge(flat)
    assert verdict_of(cells, "transfer") in ("INERT", "SHIFTED")


def test_thresholds_are_the_percentiles_of_calibration_alone(lines):
    table, _, _ = judge(lines)
    baseline = [
        l["perplexity_baseline"]
        for l in lines
        if l["set"] == "calibration" and l["framing"] == "qa" and l["condition"] == "baseline"
    ]
    limit = table.loc[table["framing"] == "qa", "perplexity_limit"].unique()
    assert limit == pytest.approx([plain_verdicts.percentile(baseline, 99)])
    with pytest.raises(ValueError):
        thresholds.freeze(table[table["set"] != "plan"])


def test_the_test_split_does_not_move_a_threshold(lines):
    of = lambda some: thresholds.freeze(thresholds.prepare(run_data.frame(some, sweep=False)))  # noqa: E731
    calibration = [l for l in lines if l["set"] == "calibration"]
    table = thresholds.prepare(run_data.frame(changed(lines, "baseline", perplexity_baseline=1e6), sweep=False))
    assert thresholds.freeze(table[table["set"] == "calibration"]) == of(calibration)


def test_without_a_calibration_split_there_is_no_verdict(lines):
    _, cells, cases = judge([l for l in lines if l["set"] == "plan"])
    assert cells == [] and {c["verdict"] for c in cases} == {None}
    assert any("no calibration split" in c["evidence"] for c in cases)


def test_each_verdict_carries_its_numbers(lines):
    _, cells, cases = judge(lines)
    for entry in (*cells, *cases):
        if entry["verdict"]:
            assert any(character.isdigit() for character in entry["evidence"]), entry
    json.dumps(cells, allow_nan=False)


def test_items_are_the_unit_where_trials_share_one(lines):
    twice = lines + [{**l, "trial": l["trial"] + "-again"} for l in lines if l["set"] == "test"]
    _, once, _ = judge(lines)
    _, again, _ = judge(twice)
    a = next(c for c in once if c["condition"] == "transfer" and c["framing"] == "qa")["numbers"]
    b = next(c for c in again if c["condition"] == "transfer" and c["framing"] == "qa")["numbers"]
    assert a["n"] == b["n"] == 16
    assert np.allclose([a["uplift"]["low"], a["uplift"]["high"]], [b["uplift"]["low"], b["uplift"]["high"]])


def test_the_second_reading_takes_the_limit_of_text(lines):
    """Answers that baseline finds unlikely: broken by the letter, and no more so than those of the text fed in turn."""
    unlikely = [{**l, "perplexity_baseline": 40.0} if l["condition"] in ("text", "transfer") else l for l in lines]
    table, cells, cases = judge(unlikely)
    for entries in (cells, cases):
        of = next(e for e in entries if e["condition"] == "transfer")
        assert (of["verdict"], of["verdict_against_text"]) == ("BROKEN", "TRANSFER")
        of = next(e for e in entries if e["condition"] == "noise")
        assert (of["verdict"], of["verdict_against_text"]) == ("BROKEN", "BROKEN")
    frozen = thresholds.freeze(table[table["set"] == "calibration"])
    assert frozen[0].perplexity_text == 40.0 > frozen[0].perplexity


def test_a_cell_pairs_each_item_with_its_own_mismatched_and_asks_one_side(lines):
    _, cells, _ = judge(lines)
    numbers = next(c for c in cells if c["condition"] == "transfer")["numbers"]
    of = {c: {l["item"]: l["reference_uplift"] for l in lines if l["set"] == "test" and l["condition"] == c} for c in ("transfer", "mismatched")}
    difference = np.array([of["transfer"][i] - of["mismatched"][i] for i in of["transfer"]])
    assert numbers["effect"]["d"]["value"] == pytest.approx(difference.mean() / difference.std(ddof=1))
    below = [{**l, "reference_uplift": l["reference_uplift"] - 40} if l["condition"] == "transfer" else l for l in lines]
    _, cells, _ = judge(below)
    assert next(c for c in cells if c["condition"] == "transfer")["numbers"]["p"] > 0.99  # less than another source is no transfer
