"""The report's sentences against the numbers that they are made of: negative, mixed and thin results too."""

import numpy as np
import pytest

import effects
import limits
import modes
import run_data
import statements
import summary
import sweeps
import synthetic
import thresholds
import verdicts

FAST = 500
EACH = 14


def judged(lines):
    table = thresholds.prepare(run_data.frame(lines, sweep=False))
    table = thresholds.apply(table, thresholds.freeze(table[table["set"] == "calibration"]))
    cells = verdicts.judge_cells(table[table["set"] == "test"], FAST)
    return table, cells


def report(tmp_path, **runs):
    """The summary of runs given as phase=lines."""
    folders = [synthetic.write_run(tmp_path / phase, phase, lines) for phase, lines in runs.items()]
    return summary.summarise(folders, resamples=FAST)[0]


def said(found, title):
    return [" ".join([a["text"], *a["parts"]]) for a in statements.answers(found) if a["title"].startswith(title)]


def test_a_case_that_baseline_answers_too_shows_nothing(tmp_path):
    lines = synthetic.phase_lines("2b", 4, synthetic.Truth(), 0, ("raw", "qa", "chat"))
    plan = lambda line, framing: (line["set"], line["framing"], line["condition"]) == ("plan", framing, "baseline")  # noqa: E731
    for line in lines:
        if plan(line, "raw"):
            line["banned_markers"] = line["markers_wanted"]  # it ends at once, and would have said it
        if plan(line, "chat"):
            line["markers"] = line["markers_wanted"]
    (sentence,) = said(report(tmp_path, **{"2b": lines}), "2b, retrieval")
    assert "none without it in 1 of 3 framings (qa)" in sentence and "it says one in raw and chat" in sentence


def test_less_than_another_source_is_not_called_open():
    lines = synthetic.phase_lines("2a", EACH, synthetic.Truth(), 0, ("qa",))
    lines = [{**l, "reference_uplift": l["reference_uplift"] - 60} if l["condition"] == "noise" else l for l in lines]
    _, cells = judged(lines)
    found = {"cells": [{"model": "m", **c} for c in cells], "modes": [], "mode_by_entity": [], "sweeps": [], "signatures": []}
    says = {r["where"].split(" · ")[-1]: r["says"] for r in statements.not_significant(found)}
    assert says["noise"].startswith("less than another source") and says["filler"].startswith("open")


def test_no_effect_is_claimed_with_holm_over_the_family():
    _, cells = judged(synthetic.phase_lines("2a", EACH, synthetic.Truth(), 0, ("qa", "chat")))
    tested = [c for c in cells if c["condition"] not in verdicts.REFERENCES]
    assert [c["p_equivalence_holm"] for c in tested] == effects.holm([c["numbers"]["equivalence"]["p"] for c in tested])
    lucky = [{"model": "m", **c, "p_holm": 0.5} for c in cells if c["condition"] == "filler"]
    lucky[0]["numbers"]["equivalence"]["p"], lucky[0]["p_equivalence_holm"] = 0.04, 0.4
    found = {"cells": lucky[:1], "modes": [], "mode_by_entity": [], "sweeps": [], "signatures": []}
    assert statements.not_significant(found)[0]["says"].startswith("open")


def mode_lines(shift):
    """2d, in which a creative source of another entity moves the creative probe by `shift` nats."""
    lines = synthetic.phase_lines("2d", EACH, synthetic.Truth(mode=0.0), 1, ("qa",))
    for line in lines:
        if (line["mode"], line["entity"], line["condition"]) == ("creative", "other", "transfer"):
            line["probes"]["creative"]["uplift"] += shift
    return lines


@pytest.mark.parametrize("shift, word", [(4.0, "raised"), (-4.0, "lowered"), (0.0, "open")])
def test_a_mode_that_lowers_its_answer_is_said_to(tmp_path, shift, word):
    (sentence,) = said(report(tmp_path, **{"2d": mode_lines(shift)}), "2d: does the mode")
    assert f"creative in qa: {word}" in sentence
    assert f"in {int(shift > 0)} of 3 tests" in sentence


def test_mode_by_entity_is_the_difference_of_the_two_effects():
    table, _ = judged(mode_lines(4.0))
    test = table[table["set"] == "test"]
    of = {(m["entity"], m["mode"]): m["nats"]["value"] for m in modes.mode_effects(test, FAST) if m["probe"] == m["mode"]}
    for row in modes.entity_effects(test, FAST):
        assert row["nats"]["value"] == pytest.approx(of["same", row["mode"]] - of["other", row["mode"]])
        assert (row["p_holm"] < 0.05) == (row["mode"] == "creative")


def test_places_are_compared_with_the_start(tmp_path):
    found = report(tmp_path, position=synthetic.sweep_lines("position", EACH, synthetic.Truth(end=0.4), 2))
    (sentence,) = said(found, "Position")
    assert "behind the target, positions that follow, the target computed alone: tau 0.4" in sentence and "less (-0.59 [" in sentence
    assert "within the target, positions that follow, the rest of the target computed after it" in sentence
    places = {p["place"]: p for p in found["sweeps"][0]["places"]}
    assert places["middle"]["slots"] == 3 and places["middle"]["n"] == EACH and places["middle"]["p_family"] > 0.05
    assert places["start"]["difference"] is None and places["end"]["p_family"] < 0.05


def test_layers_share_only_a_mode_that_the_whole_moves(tmp_path):
    lines = synthetic.sweep_lines("layers", EACH, synthetic.Truth(), 2)
    rng = np.random.default_rng(0)
    for line in lines:
        for probe in line["probes"].values():  # what any statement does to all answers alike is no mode
            probe["uplift"] += 5.0 * (line["point"] == "all/kept None")
        if line["mode"] == "confabulated":
            line["probes"]["confabulated"]["uplift"] = line["probes"]["factual"]["uplift"] + rng.normal(-0.5 * (line["point"] == "all/kept None"), 0.1)
    found = report(tmp_path, layers=lines)
    rows = found["sweeps"][0]["mode_against_content"]
    assert {r["source_mode"] for r in rows} == set(synthetic.MODES)
    whole = next(r for r in rows if r["source_mode"] == "creative")
    assert whole["mode_whole"]["value"] == pytest.approx(whole["answer_whole"]["value"] - whole["factual_whole"]["value"])
    assert whole["mode_whole"]["value"] < 2.5 < whole["factual_whole"]["value"]
    undivided = ("confabulated", "factual")  # the latter less itself
    assert all((r["difference"] is None) == (r["source_mode"] in undivided) for r in rows)
    assert all(r["p_family"] is None for r in rows if r["source_mode"] in undivided)
    (sentence,) = said(found, "Layers of the mode")
    assert "the whole does not raise mode" in sentence and "creative source, sink kept" in sentence


def test_layers_are_divided_by_the_whole_of_their_own_sink():
    free = [
        {**l, "point": l["point"].replace("kept", "free"), "series": l["series"].replace("kept", "free"), "sink": "free"}
        for l in synthetic.sweep_lines("layers", EACH, synthetic.Truth(), 2) if l["series"] and not l["series"].startswith("none")
    ]  # fmt: skip
    for line in free:
        line["probes"] = {m: {**p, "uplift": 3 * p["uplift"]} for m, p in line["probes"].items()}
    table = sweeps.prepare(run_data.frame(synthetic.sweep_lines("layers", EACH, synthetic.Truth(), 2) + free, sweep=True))
    rows = sweeps.mode_against_content(table[table["set"] == "test"], FAST)
    whole = {(r["source_mode"], r["series"]): r["mode_whole"]["value"] for r in rows}
    assert whole["creative", "single/free"] > 2 * whole["creative", "single/kept"]


def test_heads_and_halves_are_told_with_their_p(tmp_path):
    found = report(tmp_path, components=synthetic.sweep_lines("components", EACH, synthetic.Truth(), 2))
    (sentence,) = said(found, "Components")
    point = lambda series, x: next(p for p in found["sweeps"][0]["points"] if (p["series"], p["x"]) == (series, x))  # noqa: E731
    head, half = point("head/kept", 0), point("k/mean/kept", None)
    told = lambda p: f"tau {verdicts.interval(p['own'])}, adjusted p {verdicts.text(p['p_family'])}"  # noqa: E731
    assert f"single heads, sink kept: 0 {told(head)}" in sentence
    assert f"the source's K, V the lanes' mean, sink kept: {told(half)}" in sentence


def test_layers_that_bring_half_are_told_with_those_that_do_not(tmp_path):
    found = report(tmp_path, partial=synthetic.sweep_lines("partial", EACH, synthetic.Truth(), 2))
    (sentence,) = said(found, "Partial")
    at = lambda x: next(p for p in found["sweeps"][0]["points"] if p["series"] == "prefix/kept" and p["x"] == x)["own"]  # noqa: E731
    first = next(x for x in range(synthetic.LAYERS) if at(x)["value"] >= 0.5)
    assert f"0 to {first} bring half of the text's effect or more (tau {verdicts.interval(at(first))}), 0 to {first - 1} do not ({verdicts.interval(at(first - 1))})" in sentence


def test_a_sweeps_estimate_is_of_what_was_tested(tmp_path):
    found = report(tmp_path, partial=synthetic.sweep_lines("partial", EACH, synthetic.Truth(), 2))
    point = next(p for p in found["sweeps"][0]["points"] if p["point"].startswith("none"))
    row = next(r for r in statements.not_significant(found) if r["where"].endswith(point["point"]))
    assert row["estimate"] == verdicts.interval(point["uplift_over_mismatched"]) and "uplift" in row["what"]


def test_items_that_share_a_word_are_told(tmp_path):
    found = report(tmp_path, **{"2a": synthetic.phase_lines("2a", 24, synthetic.Truth(), 0, ("qa",))})
    cell = next(c for c in found["cells"] if c["condition"] == "transfer")
    shared = cell["numbers"]["over_words"]
    assert shared["words"] == len(synthetic.NAMES) == shared["uplift_over_mismatched"]["n"]
    assert any("24 items share 12 words" in s for s in limits.cannot_say(found))
    found = report(tmp_path / "few", **{"2a": synthetic.phase_lines("2a", 12, synthetic.Truth(), 0, ("qa",))})
    assert next(c for c in found["cells"] if c["condition"] == "transfer")["numbers"]["over_words"] is None


def test_tests_that_can_find_nothing_are_told(tmp_path):
    found = report(tmp_path, **{"2a": synthetic.phase_lines("2a", 6, synthetic.Truth(), 0, ("raw", "qa"))})
    few = " ".join(limits.cannot_say(found))
    assert "6 items and 18 tests: too few items for any adjusted p below 0.28" in few
    assert not any(c["p_holm"] is not None and c["p_holm"] < 0.28 for c in found["cells"])
    enough = report(tmp_path / "more", **{"2a": synthetic.phase_lines("2a", EACH, synthetic.Truth(), 0, ("raw", "qa"))})
    assert "too few" not in " ".join(s for s in limits.cannot_say(enough) if "tests" in s)


def test_a_plan_case_that_no_result_could_make_a_transfer_is_told(tmp_path):
    lines = synthetic.phase_lines("2a", EACH, synthetic.Truth(), 0)
    fewer = [{**l, "permuted_uplifts": l["permuted_uplifts"] and l["permuted_uplifts"][:52]} for l in lines]
    so = "not every case could be TRANSFER"
    assert so not in " ".join(limits.cannot_say(report(tmp_path / "a", **{"2a": lines})))
    found = report(tmp_path / "b", **{"2a": fewer})
    assert so in " ".join(limits.cannot_say(found))
    assert min(c["p_holm"] for c in found["cases"] if c["condition"] == "transfer") == pytest.approx(4 / 53)


def test_a_control_that_beats_a_harmful_source_is_told(tmp_path):
    lines = synthetic.phase_lines("2a", EACH, synthetic.Truth(), 0, ("qa",))
    harm = [
        {**l, "reference_uplift": l["reference_uplift"] - 20, "ld": l["ld"] - 20} if l["condition"] == "mismatched" else l for l in lines
    ]
    told = lambda found: [s for s in limits.cannot_say(found) if "know nothing of the source" in s]  # noqa: E731
    assert told(report(tmp_path / "a", **{"2a": lines})) == []
    found = report(tmp_path / "b", **{"2a": harm})
    (sentence,) = told(found)
    uplift = next(c for c in found["cells"] if c["condition"] == "mismatched")["numbers"]["uplift"]
    assert "2a family-2a qa: filler, which" in sentence and verdicts.interval(uplift) in sentence and uplift["high"] < -10


def test_tau_of_a_text_without_effect_is_told(tmp_path):
    lines = synthetic.phase_lines("2a", EACH, synthetic.Truth(), 0, ("qa",))
    base = {l["trial"]: l["ld"] for l in lines if l["condition"] == "baseline"}
    rng = np.random.default_rng(0)
    still = {trial: ld + rng.normal(0, 0.1) for trial, ld in base.items()}
    none = [{**l, "ld": still[l["trial"]]} if l["condition"] in ("text", "transfer") else l for l in lines]
    assert any(s.startswith("tau says nothing") for s in limits.cannot_say(report(tmp_path / "a", **{"2a": none})))
    assert not any(s.startswith("tau says nothing") for s in limits.cannot_say(report(tmp_path / "b", **{"2a": lines})))


def test_what_is_said_of_the_intervals_coverage_is_so():
    rng = np.random.default_rng(3)
    for n, said_covered in limits.COVERAGE.items():
        estimates = [effects.mean(rng.normal(size=n), 1000) for _ in range(2000)]
        assert np.mean([e.low <= 0 <= e.high for e in estimates]) == pytest.approx(said_covered, abs=0.02), n
