"""Blocks of every weight format and what PyPI gguf decodes them to: tests/data/formats.json.

Bytes are random, scales finite and moderate. Values are written with all the digits of an f32.
"""
import json
import pathlib

import gguf
import numpy as np

BLOCKS = 3
OUT = pathlib.Path(__file__).parent.parent / "data" / "formats.json"

# Where the f16 scales lie in a block, by format: (offset in bytes, count).
SCALES = {
    "F16": (0, 1), "Q4_0": (0, 1), "Q4_1": (0, 2), "Q5_0": (0, 1), "Q5_1": (0, 2), "Q8_0": (0, 1),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208, 1), "BF16": None,
}


def sample(name: str, rng: np.random.Generator) -> dict:
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = BLOCKS if elements > 1 else 64
    data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    if name == "BF16":
        data = (rng.normal(size=blocks).astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8).reshape(blocks, 2)
    else:
        at, count = SCALES[name]
        data[:, at:at + 2 * count] = rng.normal(0, 0.1, (blocks, count)).astype("<f2").view(np.uint8)
    values = gguf.quants.dequantize(data.reshape(-1), kind).astype(np.float32).ravel()
    return {"bytes": data.tobytes().hex(), "values": [float(f"{v:.9g}") for v in values]}


def main() -> None:
    rng = np.random.default_rng(20)
    OUT.write_text(json.dumps({name.lower(): sample(name, rng) for name in SCALES}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
