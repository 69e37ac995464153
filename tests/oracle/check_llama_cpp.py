"""Files that `kvfold convert` writes, read by llama.cpp: the same ids, and logits that agree.

    check_llama_cpp.py PROGRAM MODEL.gguf    PROGRAM is build/release/experiments/kvfold

Converts MODEL to q4_0, q4_k and q8_0, and the small checkpoints of tests/data/checkpoints as they are. KL is that from kvfold's
--exact distribution to llama.cpp's, which quantises activations and keeps its cache in f16; medians over 256 positions.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from llama_cpp import Llama

CHECKPOINTS = pathlib.Path(__file__).parent.parent / "data" / "checkpoints"
# By what is converted: the largest median KL. Observed: 4.8e-3 (q4_k) of the real model, 4.6e-5 of the checkpoints.
MOST_REAL, MOST_SMALL = 1e-2, 5e-4
TEXT = " ".join(f"In {1900 + i} the {word} of Seattle wrote {i * 37} letters to Lyra, who didn't answer." for i, word in
                enumerate(["keeper", "mayor", "baker", "poet", "glassblower", "choir"] * 8))


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def compare(program, path, folder, most):
    text = folder / "text.txt"
    text.write_text(TEXT)
    told = subprocess.run([program, "tokenize", "--json", str(path), "--text-file", str(text)], stdout=subprocess.PIPE, check=True)
    ids = json.loads(told.stdout)["ids"][:256]
    theirs = Llama(str(path), n_ctx=512, logits_all=True, n_threads=2, verbose=False)
    same_ids = theirs.tokenize(TEXT.encode(), add_bos=False, special=True)[:len(ids) - 1] in (ids[:-1], ids[1:])
    theirs.eval(ids)
    out = folder / "logits.npy"
    subprocess.run([program, "logits", str(path), "--text-file", str(text), "--out", str(out), "--exact"], check=True,
                   stdout=subprocess.DEVNULL)
    p = log_softmax(np.load(out)[:len(ids)])
    q = log_softmax(np.array(theirs.scores[:len(ids)]))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    agree = int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
    ok = same_ids and np.median(kl) < most
    print(f"{'ok  ' if ok else 'FAIL'} {path.name}: ids {'equal' if same_ids else 'differ'}, KL median {np.median(kl):.1e} "
          f"max {kl.max():.1e}, argmax equal at {agree} of {len(ids)}")
    return ok


def readable(checkpoint):
    """llama.cpp knows no qwen3 with biases in attention."""
    config = json.loads((checkpoint / "config.json").read_text())
    return not (config["model_type"] == "qwen3" and config["attention_bias"])


def main(program, model):
    ok = True
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        sources = [(model, kind, MOST_REAL) for kind in ("q4_0", "q4_k", "q8_0")]
        sources += [(str(path), "none", MOST_SMALL) for path in sorted(CHECKPOINTS.iterdir()) if readable(path)]
        for source, kind, most in sources:
            out = folder / f"{pathlib.Path(source).name}-{kind}.gguf"
            subprocess.run([program, "convert", source, str(out), "--quantize", kind], check=True, stdout=subprocess.DEVNULL)
            ok &= compare(program, out, folder, most)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
