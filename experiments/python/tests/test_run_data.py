"""What is wrong with a run's folder is said in one line that names the place."""

import json

import pytest

import run_data
import summary
import synthetic

LINES = synthetic.phase_lines("2a", 3, synthetic.Truth(), 0, ("qa",))


@pytest.fixture()
def folder(tmp_path):
    return synthetic.write_run(tmp_path / "run", "2a", LINES)


def rewrite(folder, change):
    path = folder / "trials.jsonl"
    path.write_bytes(change(path.read_bytes()))


def manifest(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_sets_that_are_asked_for_are_read(folder):
    assert len(run_data.read_run(folder).lines) == len(LINES)
    assert set(run_data.read_run(folder, ("calibration",)).lines["set"]) == {"calibration"}


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda b: b.replace(b'"framing": "qa"', b'"framing": 3', 1), "record 1: key 'framing': expected text, found 3"),
        (lambda b: b.replace(b'"kl_baseline": 0.0', b'"kl_baseline": "x"', 1), "key 'kl_baseline': expected a number or null"),
        (lambda b: b.replace(b'"set": "plan"', b'"set": "train"', 1), "key 'set': expected one of plan, calibration, test"),
        (lambda b: b.replace(b'"ld"', b'"l"', 1), "record 1: no key 'ld'"),
        (lambda b: b.replace(b"{", b"", 1), "trials.jsonl:1: not JSON"),
        (lambda b: b + b.split(b"\n")[0] + b"\n", "two lines for trial '2a-plan', framing 'qa', condition 'baseline'"),
        (lambda b: b.replace(b'"framing": "qa"', b'"framing": "<script>"', 1), "key 'framing': expected a word, found '<script>'"),
        (lambda b: b[:-1], "a complete run's last line does not end"),
        (lambda b: b"[]\n" + b, "trials.jsonl:1: expected an object, found list"),
        (lambda b: b.replace(b'"framing": "qa"', b'"framing": "qa", "framing": "raw"', 1), "trials.jsonl:1: not JSON: key 'framing' stands twice"),
        (lambda b: b.replace(b'"kl_baseline": 0.0', b'"kl_baseline": NaN', 1), "not JSON: a number that no double holds, 'NaN'"),
        (lambda b: b.replace(b'"kl_baseline": 0.0', b'"kl_baseline": 1e999', 1), "not JSON: a number that no double holds, '1e999'"),
        (lambda b: b.replace(b'"kl_baseline": 0.0', b'"kl_baseline": ' + b"9" * 400, 1), "that no double holds, '9999"),
        (lambda b: b.replace(b'"framing": "qa"', b'"framing": "\\ud800"', 1), "trials.jsonl:1: not JSON: 'utf-8' codec can't encode"),
        (lambda b: b"[" * 100_000 + b"\n" + b, "trials.jsonl:1: not JSON that is read here: too many levels"),
        (lambda b: b.replace(b'"set": "plan"', b'"set": "\\u001b' + b"x" * 1000 + b'"', 1), "found '?" + "x" * 79 + "...'"),
    ],
)
def test_bad_lines(folder, change, expected):
    rewrite(folder, change)
    with pytest.raises(run_data.BadRun) as error:
        run_data.read_run(folder)
    assert expected in str(error.value) and len(str(error.value)) < len(str(folder)) + 600
    assert all(" " <= c <= "~" for c in str(error.value))


def test_a_message_is_one_line_that_can_be_read():
    assert run_data.one_line("a\n\x1b[31m\u202e\u00e9") == "a??[31m?\u00e9"
    assert len(run_data.one_line("x" * 10_000)) < 4800


def test_records_of_another_shape_are_refused_by_the_folder(folder):
    rewrite(folder, lambda b: b.replace(b'"markers_wanted": [', b'"markers_wanted": 5, "was": [', 1))
    with pytest.raises(run_data.BadRun) as error:
        summary.summarise([folder], resamples=10)
    assert str(error.value).startswith(f"{folder}: found records that are not of a run: ")


def test_a_torn_trial_is_left_out_while_the_run_goes_on(folder):
    manifest(folder, complete=False)
    rewrite(folder, lambda b: b[:-40].replace(b'"trial": ', b'"trial":'))
    read = run_data.read_run(folder).lines
    last = LINES[-1]["trial"]
    assert last not in set(read["trial"]) and len(read) == sum(line["trial"] != last for line in LINES)


def test_bad_manifests(folder, tmp_path):
    for values, expected in (
        ({"kvfold_trials": 2}, "expected 1, found 2"),
        ({"phase": "9z"}, "found '9z'"),
        ({"model": 3}, "key 'model': expected text, found 3"),
    ):
        manifest(folder, **{"kvfold_trials": 1, "phase": "2a", "model": "m", **values})
        with pytest.raises(run_data.BadRun, match=expected):
            run_data.read_run(folder)
    with pytest.raises(run_data.BadRun, match="found neither"):
        run_data.find_runs([tmp_path / "nothing"])


def test_of_a_folder_of_runs_the_latest_of_each_kind_is_taken(tmp_path):
    for name in ("2a-1", "2a-2", "2a-10"):
        synthetic.write_run(tmp_path / name, "2a", LINES)
    assert [p.name for p in run_data.find_runs([tmp_path])] == ["2a-2"]  # by name: names end in the time
