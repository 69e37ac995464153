"""The whole verdict chain on families of known truth: false positives and power, both printed."""

import numpy as np
import pytest

import run_data
import synthetic
import thresholds
import verdicts

CONDITIONS = ("baseline", "transfer", "text", "mismatched", "twin", "filler", "shuffled")
RESAMPLES = 499
FAMILIES = 80


def chain(effect: float, each: int, seed: int) -> tuple[dict, str | None]:
    """Verdicts on one family's cells, by condition, and on its plan case's transfer."""
    truth = synthetic.Truth(effect=effect, breaks=())
    lines = run_data.frame(synthetic.phase_lines("2a", each, truth, seed, ("qa",), CONDITIONS), sweep=False)
    prepared = thresholds.prepare(lines)
    table = thresholds.apply(prepared, thresholds.freeze(prepared[prepared["set"] == "calibration"]))
    cells = verdicts.judge_cells(table[table["set"] == "test"], RESAMPLES)
    plan = table[(table["set"] == "plan") & (table["condition"] != "text")]
    cases = verdicts.judge_cases(plan, table[table["set"] != "plan"], cells)
    case = next(c["verdict"] for c in cases if c["condition"] == "transfer")
    return {c["condition"]: c["verdict"] for c in cells}, case


def test_false_positives_are_at_most_one_in_twenty(capsys):
    any_cell = case_count = 0
    for seed in range(FAMILIES):
        cells, case = chain(0.0, 20, seed)
        any_cell += "TRANSFER" in cells.values()
        case_count += case == "TRANSFER"
    with capsys.disabled():
        print(f"\nno effect, {FAMILIES} families of 20 test items: a false TRANSFER in {any_cell / FAMILIES:.1%} of", end=" ")
        print(f"families (any of their 5 tested cells), on {case_count / FAMILIES:.1%} of plan cases")
    assert any_cell / FAMILIES <= 0.05
    assert case_count / FAMILIES <= 0.05


def test_power_grows_with_the_effect(capsys):
    rates = []
    for effect in (0.5, 1.0, 2.0, 4.0):
        found = [chain(effect, 20, 1000 + seed)[0]["transfer"] == "TRANSFER" for seed in range(20)]
        rates.append(np.mean(found))
        with capsys.disabled():
            print(f"effect {effect} nats (spread 2), 20 test items: TRANSFER found in {rates[-1]:.0%} of 20 families")
    assert rates == sorted(rates)
    assert rates[-1] >= 0.95 and rates[0] < 0.5


@pytest.mark.parametrize("strong", [("text", "transfer")])
def test_a_strong_effect_is_found_where_it_is_and_nowhere_else(strong):
    cells, case = chain(8.0, 20, 5)
    assert {c for c, v in cells.items() if v == "TRANSFER"} == set(strong)
    assert case == "TRANSFER"
