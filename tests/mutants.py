"""One-line faults planted in loaders, cache operations and kernels: do the tests notice?

    mutants.py [--jobs N] [--only 3,17]      (make test-mutants)

All faults are built at once, each behind a switch that KVFOLD_MUTANT=<number> turns on, in a copy of the tree under
build/mutants. Then the tests run once for each fault. A fault that no test notices is listed; more than two are an
error. Equivalent changes (those that alter no result) have no place here.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/mutants"

# file, what stands there, what stands there instead. The text is an expression and occurs once.
MUTANTS = [
    # loaders
    ("loaders/gguf.cpp", "length > std::min(left(), most)", "length > std::min(left(), most) + 1"),
    ("loaders/gguf.cpp", "tensors > left() / kLeastTensorEntry", "false"),
    ("loaders/gguf.cpp", "entries > left() / kLeastMetadataEntry", "false"),
    ("loaders/gguf.cpp", "id > static_cast<uint32_t>(GgufType::kFloat64)", "id > 13U"),
    ("loaders/gguf.cpp", "count > left() / size", "count * size > left()"),
    ("loaders/gguf.cpp", "element == GgufType::kArray", "false"),
    ("loaders/gguf.cpp", "dimensions < 1 || dimensions > kMostDimensions", "dimensions < 1 || dimensions > 5"),
    ("loaders/gguf.cpp", "size == 0 || size > kMost / elements", "size == 0"),
    ("loaders/gguf.cpp", "offset % alignment_ != 0", "false"),
    ("loaders/gguf.cpp", "p.offset > room || p.size > room - p.offset", "p.offset + p.size > room"),
    ("loaders/gguf.cpp", "p.offset < end", "p.offset + 32 < end"),
    ("loaders/gguf.cpp", "(at_ + alignment_ - 1) / alignment_ * alignment_", "at_ / alignment_ * alignment_ + alignment_"),
    ("loaders/gguf_model.cpp", "c.heads % c.kv_heads != 0", "false"),
    ("loaders/gguf_model.cpp", "c.rotary_dim % 2 != 0", "false"),
    ("loaders/gguf_model.cpp", "id < 0 || id >= size", "id < 0 || id > size"),
    ("loaders/gguf_model.cpp", "types.size() != v.tokens.size()", "false"),
    ("loaders/checkpoint.cpp", "tensor->shape != shape", "tensor->shape.size() != shape.size()"),
    ("loaders/checkpoint.cpp", "reinterpret_cast<uintptr_t>(view.data) % sizeof(float) != 0", "false"),
    ("loaders/checkpoint_config.cpp", "c.head_dim % 2 != 0", "false"),
    ("loaders/sentencepiece_model.cpp", "size > bytes_.size() - at_", "size > bytes_.size() - at_ + 1"),
    ("loaders/json.cpp", "!keys_[level - 1].insert(key).second", "false"),
    # safetensors and cache files
    ("engine/safetensors.cpp", "begin > end || end > data.size()", "end > data.size()"),
    ("engine/safetensors.cpp", "end - begin != size", "end - begin < size"),
    ("engine/safetensors.cpp", "n > kMost || (n != 0 && size > kMost / n)", "n > kMost"),
    ("engine/safetensors.cpp", "end != data.size()", "false"),
    ("engine/kv/cache_reader.cpp", "version != kCacheFileVersion", "false"),
    ("engine/kv/cache_reader.cpp", "found != wanted", "false"),
    ("engine/kv/cache_reader.cpp", "out[i] <= out[i - 1]", "out[i] < out[i - 1]"),
    ("engine/kv/cache_reader.cpp", "expected != file_.tensors.size()", "false"),
    ("engine/kv/cache_metadata.cpp", "layers * heads > kMostLanes", "false"),
    # cache operations
    ("engine/kv/ops.cpp", "at < 0 || at > cache.size()", "at < 0 || at >= cache.size()"),
    ("engine/kv/ops.cpp", "before + extent - behind", "before + extent - behind + 1"),
    ("engine/kv/ops.cpp", "static_cast<int64_t>(*high) - *low + 1", "static_cast<int64_t>(*high) - *low"),
    ("engine/kv/ops.cpp", "std::max(next, position + 1)", "std::max(next, position)"),
    ("engine/kv/ops.cpp", "std::abs(position) <= kMostPosition", "true"),
    ("engine/kv/ops.cpp", "!lanes[lane] && cache.lanes().table(Part::kKey, lane).holds(slot)", "!lanes[lane]"),
    ("engine/kv/ops.cpp", "!(lanes[lane] && chosen[left[j]])", "!chosen[left[j]]"),
    ("engine/kv/page_table.cpp", "pool_->references(last.page) == own", "pool_->references(last.page) >= own"),
    ("engine/kv/page_table.cpp", "slot < span.slot + span.count ? &span : nullptr", "slot <= span.slot + span.count ? &span : nullptr"),
    ("engine/kv/page_table.cpp", "first->slot < end", "first->slot <= end"),
    ("engine/kv/page_table.cpp", "!open && behind > 0", "false"),
    ("engine/kv/page_table.cpp", "with.rows_before(last) - with.rows_before(first) == last - first", "true"),
    ("engine/kv/selection.cpp", "*last < *first", "false"),
    ("engine/kv/selection.cpp", "*last >= count", "*last > count"),
    ("engine/kv/arithmetic.cpp", "(1 - alpha) * m.row(r)[c] + alpha * other[c]", "alpha * m.row(r)[c] + (1 - alpha) * other[c]"),
    ("engine/kv/arithmetic.cpp", "one ? 0 : static_cast<size_t>(lane) * shape.head_dim", "size_t{0}"),
    # kernels
    ("kernels/cpu/plain.cpp", "i < n ? x[g * kGroup + i] * inverse : 0.0F", "i < n ? x[g * kGroup + i] * inverse + 0.25F : 0.0F"),
    ("kernels/cpu/plain.cpp", "largest / 127.0F", "largest / 128.0F"),
    ("kernels/cpu/plain.cpp", "1.0F / std::sqrt(dot16(x, x, n) / static_cast<float>(n) + epsilon)", "1.0F / std::sqrt(dot16(x, x, n) / static_cast<float>(n))"),
    ("kernels/cpu/plain.cpp", "angles.sin[i] * angles.sign", "angles.sin[i]"),
    ("kernels/formats/q4_k.h", "bytes[i] >> shift & 15", "bytes[i] >> shift & 7"),
    ("kernels/formats/q6_k.h", "4 * (quarter / 2)", "4 * (quarter % 2)"),
]

# Quick first.
TESTS = ["gguf_test", "safetensors_test", "known_attacks_test", "spm_test", "checkpoint_test", "cache_file_test",
         "formats_test", "kv_ops_test", "kernels_test", "exactness_test", "kv_property_test"]
# Where to look first.
FIRST = {"loaders/gguf": ["gguf_test"], "loaders/checkpoint": ["checkpoint_test"], "loaders/sentencepiece": ["spm_test"],
         "loaders/json": ["checkpoint_test"], "engine/safetensors": ["safetensors_test"], "engine/kv/cache": ["cache_file_test"],
         "engine/kv": ["kv_ops_test", "kv_property_test"], "kernels/cpu": ["kernels_test"], "kernels/formats": ["formats_test"]}

SWITCH = """#pragma once
#include <cstdlib>
// Which planted fault is on: none without KVFOLD_MUTANT.
inline bool kvfold_mutant(int number) {
  static const int kOn = [] { const char* text = std::getenv("KVFOLD_MUTANT"); return text ? std::atoi(text) : -1; }();
  return kOn == number;
}
"""


def plant():
    """A copy of the tree with every fault behind its switch."""
    tree = BUILD / "tree"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    sources = {}
    for number, (path, old, new) in enumerate(MUTANTS):
        text = sources.setdefault(path, (ROOT / path).read_text())
        places = text.count(old)
        if places == 0:
            sys.exit(f"mutants: {number}: {path} does not hold '{old}'")
        # The first place; a text that occurs twice is one that the first decides.
        sources[path] = text.replace(old, f"(kvfold_mutant({number}) ? ({new}) : ({old}))", 1)
    for name in files.stdout.split("\n"):
        source = ROOT / name
        if not name or not source.is_file():
            continue
        data = source.read_bytes()
        if name in sources:
            lines = sources[name].split("\n")
            at = next(i for i, line in enumerate(lines) if line.startswith("#include"))
            lines.insert(at, '#include "tests/mutant_switch.h"')
            data = "\n".join(lines).encode()
        target = tree / name
        if target.is_file() and target.read_bytes() == data:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        shutil.copymode(source, target)
    switch = tree / "tests/mutant_switch.h"
    if not switch.is_file() or switch.read_text() != SWITCH:
        switch.write_text(SWITCH)
    return tree


def build(tree, jobs):
    folder = BUILD / "build"
    subprocess.run(["cmake", "-S", tree, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DKVFOLD_BENCH=OFF",
                    "-DKVFOLD_CUDA=OFF"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder, "-j", str(jobs), "--target", *TESTS], check=True)
    return folder / "tests"


def notices(program, number):
    """Whether a test fails, or the program dies or hangs, with the fault on."""
    # The plain kernels, where faults in kernels are planted, are used only when asked for.
    environment = dict(os.environ, KVFOLD_MUTANT=str(number))
    if number >= 0 and MUTANTS[number][0].startswith("kernels/cpu/plain"):
        environment.pop("KVFOLD_CPU", None)
    try:
        ran = subprocess.run([program, "--gtest_brief=1", "--gtest_fail_fast"], env=environment, capture_output=True, timeout=300)
    except subprocess.TimeoutExpired:
        return True
    return ran.returncode != 0


def order(path):
    first = next(tests for prefix, tests in FIRST.items() if path.startswith(prefix))
    return first + [test for test in TESTS if test not in first]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="numbers, with commas")
    options = parser.parse_args()
    tests = build(plant(), options.jobs)
    only = [int(n) for n in options.only.split(",") if n] or range(len(MUTANTS))
    for test in TESTS:
        if notices(tests / test, -1):
            sys.exit(f"mutants: {test} fails without any fault")
    missed = []
    for number in only:
        path, old, new = MUTANTS[number]
        by = next((test for test in order(path) if notices(tests / test, number)), None)
        print(f"{number:3d}  {by or 'MISSED':20s} {path}: {old}  ->  {new}", flush=True)
        if by is None:
            missed.append(number)
    print(f"{len(only) - len(missed)} of {len(only)} faults noticed" + (f"; missed: {missed}" if missed else ""))
    sys.exit(1 if len(missed) > 2 else 0)


if __name__ == "__main__":
    main()
