"""Verdicts on damaged files: this project's against PyPI `gguf` and `safetensors`.

    differential.py FUZZ_VERDICTS [--count 10000] [--seed 1]

FUZZ_VERDICTS makes mutants and says for each whether it takes them. Here the other reader does the same. Each
disagreement must have an explanation below; the table of them is printed, and one without is an error.
"""

import argparse
import collections
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import warnings

# (format, who refuses, pattern of the message of who does): why the two readers differ.
EXPLAINED = [
    ("gguf", "kvfold", r"a second time", "names are told apart; PyPI gguf warns of a key and keeps both under new names, and takes tensors"),
    ("gguf", "kvfold", r"expected no overlap", "PyPI gguf does not look at where tensors lie to one another"),
    ("gguf", "kvfold", r"bool .* expected 0 or 1", "PyPI gguf takes any byte for a bool"),
    ("gguf", "kvfold", r"metadata key .* an empty name", "PyPI gguf takes an empty key"),
    ("gguf", "kvfold", r"offset of tensor .* a multiple of", "PyPI gguf takes tensors at any offset"),
    ("gguf", "kvfold", r"general\.alignment", "PyPI gguf takes an alignment that is no power of two, or 0, or of any size"),
    ("gguf", "kvfold", r"type of tensor .* expected one of", "formats that PyPI gguf knows and this project does not compute with"),
    ("gguf", "kvfold", r"dimension count .* 1 to 4|dimension \d of", "PyPI gguf takes tensors of no dimension, of more than 4, of size 0"),
    ("gguf", "kvfold", r"arrays of arrays", "PyPI gguf takes nested arrays"),
    ("gguf", "kvfold", r"(size|data|row) of tensor", "PyPI gguf slices what is there of a tensor, or wraps its size in 64 bits"),
    ("gguf", "kvfold", r"length of|at most \d+, which is what the file has room for|bytes left", "PyPI gguf slices what is left of a file that ends early"),
    ("safetensors", "kvfold", r"stands twice", "PyPI safetensors keeps the last of two keys of one name in __metadata__"),
    ("safetensors", "kvfold", r"product overflows", "PyPI safetensors takes sizes beyond 63 bits where another dimension is 0"),
    ("safetensors", "kvfold", r"expected it to begin with '\{'", "PyPI safetensors takes white space before the header's brace, which the format forbids"),
    ("safetensors", "kvfold", r"found key '.*', expected dtype, shape and data_offsets", "PyPI safetensors passes over keys of a tensor that it does not know"),
    ("safetensors", "kvfold", r"unknown dtype", "dtypes below a byte (F4, F6), which this project does not read"),
    ("gguf", "PyPI", r"UnicodeDecodeError", "this project takes strings that are not UTF-8: tokens may be any bytes; names are only compared"),
    ("gguf", "PyPI", r"general\.alignment|Bad type for general.alignment", "PyPI gguf wants a uint32 there; any integer type is read here"),
]


class Slow(Exception):
    pass


def on_alarm(*_):
    raise Slow("more than 10 s")


def read_gguf(path, _):
    import gguf

    gguf.GGUFReader(path)


def read_safetensors(_, data):
    import safetensors

    safetensors.deserialize(data)


def verdict(reader, path, data):
    """None where the reader takes it, else what it raises."""
    signal.alarm(10)
    try:
        with open(path, "wb") as file:
            file.write(data)
        reader(path, data)
        return None
    except BaseException as error:  # a reader may raise anything, a panic of Rust's among it
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
    finally:
        signal.alarm(0)


def mutants(program, target, count, seed):
    out = subprocess.Popen([program, target, str(count), str(seed)], stdout=subprocess.PIPE)

    def text():
        size = out.stdout.read(8)
        return out.stdout.read(struct.unpack("<Q", size)[0]) if size else None

    while (data := text()) is not None:
        yield data, text().decode()
    if out.wait() != 0:
        sys.exit(f"{program} {target}: exit status {out.returncode}")


def explain(target, who, message):
    for of, refuses, pattern, why in EXPLAINED:
        if of == target and refuses == who and re.search(pattern, message):
            return why
    return None


def compare(program, target, count, seed):
    reader = {"gguf": read_gguf, "safetensors": read_safetensors}[target]
    tally, unexplained = collections.Counter(), []
    both = {"take": 0, "refuse": 0}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for data, ours in mutants(program, target, count, seed):
            theirs = verdict(reader, folder + "/file", data)
            if bool(ours) == bool(theirs):
                both["refuse" if ours else "take"] += 1
                continue
            who = "kvfold" if ours else "PyPI"
            why = explain(target, who, ours or theirs)
            if why is None:
                unexplained.append((who, ours or theirs))
            tally[(who, why)] += 1
    print(f"\n{target}: {count} mutants, both take {both['take']}, both refuse {both['refuse']}")
    for (who, why), n in tally.most_common():
        print(f"  {n:6d}  {who} alone refuses: {why}")
    for who, message in unexplained[:20]:
        print(f"  unexplained, {who} alone refuses: {message}")
    return len(unexplained)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, on_alarm)
    found = sum(compare(options.program, t, options.count, options.seed) for t in ("safetensors", "gguf"))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
