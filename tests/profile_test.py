#!/usr/bin/env python3
"""What bench/profile_cuda.py lets pass, and what it says of a model's file, on made-up kernels and files."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import profile_cuda  # noqa: E402  (from the folder above)

VEC, TILE = "mat_vec_kernel<Q4_0, 1>", "mat_tile_kernel<Q8_0>"
GOOD = {"spills": 0, "stack": 0, "local": 0, "occupancy": 50, "wide": 99, "dp4a": 9999}


def faults(changed, **counts):
    """Of good kernels, one of which has other counts."""
    kernels = {name: dict(GOOD) for name in [*profile_cuda.needs(), "norm_kernel"]}
    kernels[changed].update(counts)
    return list(profile_cuda.faults(kernels))


class Gate(unittest.TestCase):
    def test_good_kernels_pass(self):
        self.assertEqual(faults("norm_kernel"), [])
        for name, least in profile_cuda.needs().items():
            self.assertEqual(faults(name, **least), [])

    def test_no_kernel_spills_or_uses_local_memory(self):
        for name in (VEC, "norm_kernel"):
            for counts, said in (({"spills": 8}, "8 bytes spilled, 0 of stack, 0 local"),
                                 ({"stack": 16}, "0 bytes spilled, 16 of stack, 0 local"),
                                 ({"local": 2}, "0 bytes spilled, 0 of stack, 2 local")):
                self.assertEqual(faults(name, **counts), [f"{name}: {said} accesses; expected 0"])

    def test_half_of_an_sm_is_enough_for_a_mat_vec_and_less_is_not(self):
        self.assertEqual(faults(VEC, occupancy=49), [f"{VEC}: occupancy 49%, expected at least 50%"])
        self.assertEqual(faults("norm_kernel", occupancy=25), [])

    def test_weights_come_128_bits_at_a_time(self):
        # With weights read 4 bytes at a time the activations' loads are left: 3 and 2.
        self.assertEqual(faults(VEC, wide=3), [f"{VEC}: 3 loads of 128 bits, expected at least 11"])
        self.assertEqual(faults(VEC, wide=10), [f"{VEC}: 10 loads of 128 bits, expected at least 11"])
        self.assertEqual(faults(TILE, wide=2), [f"{TILE}: 2 loads of 128 bits, expected at least 4"])

    def test_products_are_dp4a(self):
        self.assertEqual(faults(VEC, dp4a=0), [f"{VEC}: 0 dp4a, expected at least 44"])
        self.assertEqual(faults("mat_vec_kernel<Q6_K, 16>", dp4a=267),
                         ["mat_vec_kernel<Q6_K, 16>: 267 dp4a, expected at least 268"])
        self.assertEqual(faults(TILE, dp4a=127), [f"{TILE}: 127 dp4a, expected at least 128"])

    def test_a_kernel_is_looked_for_by_name(self):
        kernels = {name: dict(GOOD) for name in profile_cuda.needs()}
        kernels["mat_vec_kernel<Q3_K, 1>"] = kernels.pop(VEC)
        unknown, missing = profile_cuda.faults(kernels)
        self.assertIn("mat_vec_kernel<Q3_K, 1>: not among the kernels whose instructions are known", unknown)
        self.assertEqual(missing, f"{VEC}: not compiled")


class Prediction(unittest.TestCase):
    INFO = {"layers": 2, "model_dim": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn_dim": 96, "vocab_size": 1000,
            "weight_bytes_per_token": {"q4_1": 10_000, "q4_k": 18_000}}

    def test_a_token_reads_the_weights_of_the_file_and_the_rows_of_the_cache(self):
        parts = profile_cuda.file_bytes(self.INFO, 9)
        self.assertEqual(parts["weights q4_1"], 10_000)
        self.assertEqual(parts["weights q4_k"], 18_500)  # as packed
        self.assertEqual(parts["attention"], 10 * 2 * 2 * 16 * 2 * 2)  # rows, K and V, layers, KV heads, f16

    def test_what_is_measured_stands_beside_its_limit(self):
        token = sum(profile_cuda.file_bytes(self.INFO, 14).values())
        said = profile_cuda.measured(self.INFO, {"prompt_ids": [0] * 4, "ids": [0] * 20, "decode_tokens_per_second": 1e5})
        self.assertTrue(said.startswith(f"100000.0 tokens/s at depth 14, {token / 1e6:.2f} MB each: {token / 1e4:.1f} GB/s."))
        self.assertIn(f"{192e9 / token:.0f} on a GTX 1660", said)


class Launches(unittest.TestCase):
    def test_attention_and_norm_are_launched_with_the_shared_memory_of_their_shapes(self):
        self.assertEqual(profile_cuda.launch("attention_kernel<q8, 7>"), "attention 2 7 64")
        self.assertEqual(profile_cuda.launch("norm_kernel"), "norm 0 0 2048")
        self.assertEqual(profile_cuda.launch(VEC), "plain 0 0 0")


if __name__ == "__main__":
    unittest.main()
