"""kvfold's caches in transformers and transformers' in kvfold, with the same weights on both sides: the GGUF file,
dequantised to f32. Run by `make test-interop`, which makes the Python environment.

Tolerance: KL < 1e-3 of the next token's distribution, either way. Observed: up to 7e-12, rounding to f32.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import torch
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments/python"))
import kvfold_cache  # noqa: E402

KVFOLD = ROOT / "build/release/experiments/kvfold"
WEIGHTS = ROOT / "weights/cache"
CONTEXT = "My name is Lyra and I live in Seattle. I keep bees on the roof, and"
NEXT = " every morning I"
KL_MOST = 1e-3
STEPS = 12


def kvfold(*arguments):
    ran = subprocess.run([KVFOLD, *map(str, arguments), "--json"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def npy_last(path):
    return torch.from_numpy(np.load(path)[-1].astype(np.float64))


def kl(logits_p, logits_q):
    p = torch.log_softmax(logits_p.double(), -1)
    q = torch.log_softmax(logits_q.double(), -1)
    return float((p.exp() * (p - q)).sum())


@torch.no_grad()
def feed(model, ids, cache, position):
    positions = position + torch.arange(len(ids))[None]
    return model(torch.tensor([ids]), past_key_values=cache, position_ids=positions, use_cache=True)


@torch.no_grad()
def continue_greedily(model, logits, cache, position, steps):
    """`steps` tokens, and whether each led the second by enough for rounding not to decide."""
    out = []
    for step in range(steps):
        best = torch.topk(logits, 2)
        out.append((int(best.indices[0]), float(best.values[0] - best.values[1])))
        logits = feed(model, [out[-1][0]], cache, position + step).logits[0, -1]
    return out


def same_text(theirs, ours):
    """Equal up to the first choice whose lead was below 0.02 (logits of the two differ by far less)."""
    for (token, lead), other in zip(theirs, ours):
        if lead < 0.02:
            return
        assert token == other, (theirs, ours)


class Sides:
    """A model on both sides, and the context's cache as kvfold made it."""

    @classmethod
    def setUpClass(cls):
        cls.gguf = WEIGHTS / f"{cls.name}.gguf"
        cls.model = AutoModelForCausalLM.from_pretrained(WEIGHTS, gguf_file=cls.gguf.name, dtype=torch.float32).eval()
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        saved = kvfold("cache", "save", cls.gguf, "--text", CONTEXT, "--exact", "--cache-type", "f32", "--out",
                       cls.folder / "ours.safetensors")
        kvfold("cache", "export", cls.folder / "ours.safetensors", "--rotated", "--out",
               cls.folder / "theirs.safetensors")
        cls.context = saved["ids"]
        cls.next = kvfold("tokenize", cls.gguf, "--text", NEXT)["ids"]

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def test_transformers_continues_from_our_cache(self):
        model, folder = self.model, self.folder
        ours, tokens, position = kvfold_cache.load(folder / "theirs.safetensors")
        assert tokens == self.context and position == len(tokens)
        own = feed(model, self.context, None, 0).past_key_values
        for layer, (a, b) in enumerate(zip(ours.layers, own.layers)):
            for x, y in ((a.keys, b.keys), (a.values, b.values)):
                assert (x - y).norm() / y.norm() < 2e-3, f"layer {layer}"
        from_ours = feed(model, self.next, ours, position).logits[0, -1]
        from_own = feed(model, self.next, own, position).logits[0, -1]
        found = kl(from_own, from_ours)
        print(f"{self.gguf.stem}: KL(own cache || kvfold's) = {found:.2e}")
        assert found < KL_MOST
        after = position + len(self.next)
        theirs = continue_greedily(model, from_own, own, after, STEPS)
        same_text(theirs, [t for t, _ in continue_greedily(model, from_ours, ours, after, STEPS)])

    def test_kvfold_continues_from_their_cache(self):
        model, folder = self.model, self.folder
        own = feed(model, self.context, None, 0).past_key_values
        kvfold_cache.save(own, self.context, folder / "dynamic.safetensors")
        kvfold("cache", "import", folder / "dynamic.safetensors", "--model", self.gguf, "--cache-type", "f32",
               "--out", folder / "imported.safetensors")
        distance = kvfold("cache", "compare", folder / "ours.safetensors", folder / "imported.safetensors")
        assert distance["positions_equal"] and distance["tokens_equal"]
        assert max(lane["relative"] for lane in distance["lanes"]) < 2e-3
        # The rows, then the text: inserted at the start with positions that follow, this is the context continued.
        ran = {}
        for name in ("ours", "imported"):
            ran[name] = kvfold("cache", "run", self.gguf, folder / f"{name}.safetensors", "--text", NEXT, "--exact",
                               "--cache-type", "f32", "--positions", "keep", "-n", STEPS,
                               "--logits", folder / f"{name}.npy")
        found = kl(npy_last(folder / "ours.npy"), npy_last(folder / "imported.npy"))
        theirs = feed(model, self.next, own, len(self.context)).logits[0, -1]
        against = kl(theirs, npy_last(folder / "imported.npy"))
        print(f"{self.gguf.stem}: KL(kvfold's cache || transformers') = {found:.2e}, "
              f"KL(transformers || kvfold from its cache) = {against:.2e}")
        assert found < KL_MOST and against < KL_MOST
        greedy = continue_greedily(model, theirs, own, len(self.context) + len(self.next), STEPS)
        same_text(greedy, ran["imported"]["ids"])

    def test_a_file_that_came_back_is_the_same(self):
        folder = self.folder
        kvfold("cache", "import", folder / "theirs.safetensors", "--like", folder / "ours.safetensors", "--out",
               folder / "back.safetensors")
        distance = kvfold("cache", "compare", folder / "ours.safetensors", folder / "back.safetensors")
        # Turned there and back in f64, rounded to f32 twice.
        assert max(lane["relative"] for lane in distance["lanes"]) < 1e-6
        assert all(lane["largest"] == 0 for lane in distance["lanes"] if lane["part"] == "v")


class Qwen(Sides, unittest.TestCase):
    name = "qwen2.5-coder-0.5b-instruct"  # half-split pairs in the file


class SmolLm(Sides, unittest.TestCase):
    name = "smollm2-135m-instruct"  # interleaved pairs in the file (a Llama GGUF), which export reorders


if __name__ == "__main__":
    unittest.main()
