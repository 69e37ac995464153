#!/usr/bin/env python3
"""What `make` would run: a variable of one target must not be another's by the same name."""

import subprocess
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMOL, QWEN = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"


def commands(*arguments):
    got = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return got.stdout


class Make(unittest.TestCase):
    def test_a_crossing_is_of_the_two_models_both_ways(self):
        said = commands("run-2e")
        self.assertIn(f"for pair in {SMOL}-to-{QWEN} {QWEN}-to-{SMOL};", said)
        self.assertIn("for pair in a-to-b b-to-a;", commands("run-2e", "SOURCE=a", "TARGET=b"))

    def test_a_projector_is_fitted_to_and_trained_between_them(self):
        self.assertIn(f"--source {SMOL} --target {QWEN}", commands("fit-projector"))
        said = commands("train-projector", "FROM=ridge.safetensors")
        self.assertIn(f"--source {SMOL} --target {QWEN}", said)
        self.assertIn("--from ridge.safetensors", said)
        kept = ROOT / f"weights/projectors/{QWEN}-to-{SMOL}.safetensors"
        self.assertTrue(kept.is_file())
        self.assertIn(f"--from {kept.relative_to(ROOT)}", commands("train-projector", f"SOURCE={QWEN}", f"TARGET={SMOL}"))

    def test_what_is_fuzzed_is_named_or_gguf(self):
        self.assertIn("--target fuzz_gguf", commands("fuzz"))
        self.assertIn("--target fuzz_cache", commands("fuzz", "TARGET=cache"))

    def test_a_phase_runs_on_the_model_that_is_named(self):
        self.assertIn("run_2a --model smollm2", commands("run-2a"))
        self.assertIn(f"run_2c --model {QWEN}", commands("run-2c", f"MODEL={QWEN}"))

    def test_a_path_is_a_model_that_nobody_fetches(self):
        fetch = [sys.executable, str(ROOT / "weights/fetch.py")]
        got = subprocess.run([*fetch, str(ROOT / "tests")], capture_output=True, text=True, check=True)
        self.assertEqual(got.stdout, f"{ROOT / 'tests'}\n")
        got = subprocess.run([*fetch, "no/such/model"], capture_output=True, text=True, check=False)
        self.assertEqual(got.returncode, 2)
        self.assertIn("unknown model 'no/such/model'", got.stderr)

    def test_the_bench_is_of_a_model_where_one_is_named(self):
        self.assertNotIn("kvfold bench", commands("bench"))
        self.assertIn("kvfold bench a.gguf", commands("bench", "MODEL=a.gguf"))

    def test_a_profile_has_the_program_and_the_weights_that_it_looks_at(self):
        said = commands("profile", f"MODEL={QWEN}")
        self.assertIn("--target kvfold", said)
        self.assertIn(f"weights/fetch.py {QWEN}", said)
        gate = commands("profile", "ARGS=--gate")
        self.assertNotIn("--target kvfold", gate)
        self.assertNotIn("weights/fetch.py", gate)


if __name__ == "__main__":
    unittest.main()
