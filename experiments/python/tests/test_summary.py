"""Runs of known truth through the whole analysis: what is true is found, and what is not is not claimed."""

import json

import pytest

import limits
import page
import run_data
import statements
import summary
import synthetic

EACH = 14
FAST = 1_000


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    truth = synthetic.Truth()
    runs = [
        synthetic.write_run(folder / "2a", "2a", synthetic.phase_lines("2a", EACH, truth, 0, ("raw", "qa"))),
        synthetic.write_run(folder / "2d", "2d", synthetic.phase_lines("2d", EACH, truth, 1, ("qa",), synthetic.CONDITIONS[-5:] + ["baseline"])),
        synthetic.write_run(folder / "signatures", "signatures", synthetic.signature_lines(60, 0.0, 3)),
    ]
    runs += [synthetic.write_run(folder / s, s, synthetic.sweep_lines(s, EACH, truth, 2)) for s in ("position", "partial", "layers")]
    return (*summary.summarise(runs, resamples=FAST), folder)


def test_it_is_json_without_nan_and_thresholds_are_beside_the_run(found):
    numbers, lines, folder = found
    json.dumps(numbers, allow_nan=False)
    frozen = json.loads((folder / "2a" / "thresholds.json").read_text())
    assert frozen == json.loads((folder / "2a" / "manifest.json").read_text())["thresholds"]
    assert [{"model": synthetic.MODEL, **t} for t in frozen] == [t for t in numbers["thresholds"] if t["phase"] == "2a"]
    assert len(summary.write_tables(folder, numbers, lines)) == 8


def test_the_mode_is_found_where_it_is(found):
    rows = [m for m in found[0]["modes"] if m["probe"] == m["mode"] and m["entity"] == "other"]
    assert all(m["nats"]["low"] > 0 for m in rows) and {m["mode"] for m in rows} == {"confabulated", "creative", "plain"}
    truth = [m for m in found[0]["modes"] if m["probe"] == "truth"]
    assert not any(m["transfers"] for m in truth)  # the true answer was left alone


def test_position_is_equivalent_and_layers_grow(found):
    by_name = {s["sweep"]: s for s in found[0]["sweeps"]}
    against = by_name["position"]["against"]
    assert against and not any(a["p_family"] < 0.05 for a in against)
    assert any(a["p_equivalence_holm"] < 0.05 for a in against)
    last = [p for p in by_name["partial"]["points"] if p["series"] == "suffix/kept"]
    assert last[0]["own"]["value"] > 0.9 and last[-1]["own"]["high"] < 0.5
    assert next(p for p in by_name["partial"]["points"] if p["point"].startswith("none"))["carries"] is False


def test_a_difference_that_is_lengths_alone_does_not_survive(found):
    rows = [r for r in found[0]["signatures"][0]["compared"] if r["kind"] == "confabulated"]
    assert all(r["raw"]["d"]["low"] > 0.3 for r in rows) and sum(r["survives"] for r in rows) == 0


def test_what_is_not_significant_is_said(found):
    rows = statements.not_significant(found[0])
    tests = [c for c in found[0]["cells"] if c["p_holm"] is not None and c["p_holm"] >= 0.05]
    assert sum(r["where"].startswith(tuple(run_data.PHASES)) and r["what"].startswith("uplift") for r in rows) == len(tests) > 0
    said = " ".join(limits.cannot_say(found[0]))
    assert "2b, 2c and components" in said and "unrated" in said and "n = 1" in said


def test_a_crossing_is_shown_with_its_controls(tmp_path):
    synthetic.crossing_run(tmp_path / "crossing")
    numbers, lines = summary.summarise([tmp_path / "crossing"], resamples=FAST)
    json.dumps(numbers, allow_nan=False)
    part = numbers["crossings"][0]
    assert part["texts"]["projected"]["g"]["value"] == pytest.approx(0.6)
    html, panels = page.build(numbers, lines, "")
    assert "crossing" in panels and "<mark>Lyra</mark>" in html and "mismatched" in html and "The fuser" in html
    assert "own caches: 1.15" in html and "less the latter: -0.45" in html and "draws of documents" in html
    manifest = json.loads((tmp_path / "crossing" / "manifest.json").read_text())
    del manifest["results"]
    (tmp_path / "crossing" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(run_data.BadRun, match="not complete"):
        summary.summarise([tmp_path / "crossing"], resamples=FAST)
