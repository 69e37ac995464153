#!/usr/bin/env python3
"""Checks the tests: plants faults that a person could make, one at a time, and sees whether a test notices.

    tests/mutants.py               plants all of them (make mutants; an hour and more on one core)
    tests/mutants.py --only WORD   those whose file or description has the word
    tests/mutants.py --check       only that each fault still applies to one place of its file

Works on a copy of the sources in build/mutants, which is kept, so that a fault costs one file's compilation and the
tests that ought to notice it, the likeliest first, up to the first that does. All tests that are used have to pass
without any fault first. Exit status 1 where more than one fault in 25 goes unnoticed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build/mutants"
BUILD = TREE / "build/release"
SECONDS = 600  # for one test program; a fault that makes it hang is noticed


class DoesNotCompile(Exception):
    pass


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    what: str


# Test programs by the beginning of the faulty file's name, first match, in the order in which they run.
CUDA_KERNELS = ["cuda/cuda_kernels_test", "cuda/cuda_kernels_test_shadow"]
TESTS = [
    ("loaders/gguf", ["gguf_test", "gguf_metadata_test", "gguf_save_test", "known_attacks_test", "convert_test"]),
    ("loaders/sentencepiece_model", ["spm_test"]),
    ("loaders/checkpoint_config", ["checkpoint_config_test", "checkpoint_test"]),
    ("loaders/checkpoint_tokenizer", ["tokenizer_files_test", "fallback_test", "checkpoint_test"]),
    ("loaders/checkpoint", ["checkpoint_test", "checkpoint_weights_test"]),
    ("loaders/tokenizer_pipeline", ["tokenizer_pipeline_test", "fallback_test"]),
    ("loaders/random_model", ["random_shapes_test"]),
    ("loaders/open", ["open_test"]),
    ("loaders/", ["model_loader_test", "json_test", "checkpoint_test", "convert_test"]),
    ("engine/safetensors", ["safetensors_test"]),
    ("engine/strict_json", ["json_test"]),
    ("engine/file", ["file_test", "cache_file_test", "faults_test"]),
    ("engine/kv/cache_", ["cache_file_test", "known_attacks_test"]),
    ("engine/kv/dense_rows", ["cache_file_test"]),
    ("engine/kv/exchange", ["exchange_test", "cache_cli_test"]),
    ("engine/kv/projector", ["projector_test"]),
    ("engine/kv/ridge_projector", ["projector_test"]),
    ("engine/kv/alignment", ["projector_test"]),
    ("engine/kv/", ["kv_ops_test", "kv_property_test", "kv_noise_test", "load_test"]),
    ("kernels/formats/", ["formats_test", "kernels_test", "known_attacks_test"]),
    ("kernels/cpu/", ["kernels_test"]),
    ("kernels/cuda/attention", ["cuda/cuda_attention_test", "cuda/cuda_attention_test_shadow"]),
    ("kernels/cuda/", CUDA_KERNELS),
]

MUTANTS = [
    # ---- GGUF ----
    Mutant("loaders/gguf.cpp", "if (length > std::min(left(), most))", "if (length > most)",
           "a string may reach past the end of the file"),
    Mutant("loaders/gguf.cpp", "size > kMost / elements", "size > kMost", "the product of dimensions may wrap"),
    Mutant("loaders/gguf.cpp", "p.size > room - p.offset", "p.size > room",
           "a tensor's data may reach past the end of the file"),
    Mutant("loaders/gguf.cpp", "end = p.offset + p.size;", "end = p.offset;", "tensors may overlap"),
    Mutant("loaders/gguf.cpp", "if (!out_.metadata_.emplace(key, value).second)",
           "if (!out_.metadata_.insert_or_assign(key, value).second && false)", "of two equal keys the second counts"),
    Mutant("loaders/gguf.cpp", "return value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());",
           "return value != 0;", "a number above 2^63 - 1 becomes negative"),
    Mutant("loaders/gguf.cpp", "value > 1)", "value > 2)", "a bool may be 2"),
    Mutant("loaders/gguf.cpp", "|| x != static_cast<int32_t>(x))", ")", "elements of a list are cut to 32 bits"),
    Mutant("loaders/gguf_model.cpp", "if (value < 1 || value > most) return wrong(key, fmt::format(\"{}\", value), ",
           "if (value < 0 || value > most) return wrong(key, fmt::format(\"{}\", value), ", "a size may be 0"),
    Mutant("loaders/gguf_model.cpp", "if (types.size() != v.tokens.size())", "if (types.size() > v.tokens.size())",
           "token types may be missing at the end"),
    Mutant("loaders/gguf_model.cpp", "if (c.heads % c.kv_heads != 0)", "if (c.heads < c.kv_heads)",
           "KV heads need not divide the heads"),
    Mutant("loaders/gguf_model.cpp", "!flat || tensor->view.rows != rows || ", "!flat || tensor->view.rows < rows || ",
           "a tensor may have more rows than the model says"),
    Mutant("loaders/gguf_model.cpp", "if (c.rotary_dim % 2 != 0)", "if (c.rotary_dim < 2)",
           "RoPE may turn an odd number of dimensions"),
    Mutant("loaders/gguf_model.cpp", "if (!(factor > 0) || !std::isfinite(factor))", "if (!(factor > 0))",
           "RoPE's divisors may be infinite"),
    # ---- checkpoints and tokenizers ----
    Mutant("loaders/checkpoint.cpp", "file.find('/') != std::string::npos || ", "",
           "an index may name files outside of its folder"),
    Mutant("loaders/checkpoint.cpp", "l.gate, matrix(name(\"mlp.gate_proj.weight\")",
           "l.gate, matrix(name(\"mlp.up_proj.weight\")", "the gate is the up projection"),
    Mutant("loaders/checkpoint_config.cpp", "id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)",
           "id.get<uint64_t>() > static_cast<uint64_t>(vocab_size)", "an end token may be one behind the vocabulary"),
    Mutant("loaders/checkpoint_config.cpp", "return 1 / ((1 - smooth) / factor + smooth);",
           "return 1 / (smooth / factor + (1 - smooth));", "Llama 3's scaling is interpolated the wrong way round"),
    Mutant("loaders/checkpoint_tokenizer.cpp", "if (taken && token != text)", "if (taken && token.empty())",
           "two tokens may have one id"),
    Mutant("loaders/checkpoint_config.cpp", "type_->window == Window::kAlways || ", "", "Mistral's window is not looked at"),
    Mutant("loaders/checkpoint_config.cpp", "type_->name != \"mistral\" && ", "", "Mistral gets biases"),
    Mutant("loaders/checkpoint.cpp", "out_.tied_output && same_bytes(", "out_.tied_output && (true || ",
           "an output of its own does not count where the configuration says tied"),
    Mutant("loaders/checkpoint.cpp", "(*copy_names_)[view.data] = name;", "", "a tensor that was copied has no name"),
    Mutant("loaders/checkpoint_tokenizer.cpp", "if (normalized && !special && pipeline.normalizes)",
           "if (normalized && !special && !pipeline.normalizes)",
           "tokens that are matched in normalised text are matched before"),
    Mutant("loaders/checkpoint_tokenizer.cpp", "if (needed && !fused)", "if (needed && fused && !fused)",
           "unknown characters are fused though the file says no"),
    Mutant("loaders/checkpoint_tokenizer.cpp",
           "if (out_.unknown >= 0 && out_.types[static_cast<size_t>(out_.unknown)] != TokenType::kNormal)",
           "if (out_.unknown >= 0)", "the unknown token is found in texts though it is no added token"),
    Mutant("loaders/checkpoint_tokenizer.cpp", "if (called != \"default\") continue;", "",
           "the last chat template is taken, not the default"),
    Mutant("loaders/checkpoint_tokenizer.cpp", "if (!legacy && out_.space_prefix == SpacePrefix::kSegment)", "if (!legacy)",
           "a vocabulary without the space before a text gets one"),
    Mutant("loaders/tokenizer_pipeline.cpp", "if (!prefix && scheme != \"never\")", "if (false)",
           "add_prefix_space may contradict prepend_scheme"),
    Mutant("loaders/tokenizer_pipeline.cpp", "if (out_.space_prefix != SpacePrefix::kNone && !replaces_spaces_)", "if (false)",
           "Prepend may stand without Replace"),
    Mutant("loaders/tokenizer_pipeline.cpp", "out_.one_space = true;", "", "Metaspace writes a space before a space"),
    Mutant("loaders/tokenizer_pipeline.cpp", "if (kind.nfc != nfc_)", "if (kind.nfc && !nfc_)", "NFC is left out where the model has none"),
    Mutant("loaders/gguf_save.cpp", "for (size_t rank = v.merges.size(); rank-- > 0;)",
           "for (size_t rank = 0; rank < v.merges.size(); ++rank)",
           "of two merges that make a token the last gives its score"),
    Mutant("loaders/gguf_save.cpp", "std::erase(ends, v.eos);", "", "the end of a text is written as the end of a turn"),
    Mutant("loaders/fingerprint.cpp", "if (size <= 2 * kEnds) return add(view.data, static_cast<size_t>(size));",
           "if (size <= 2 * kEnds) return add(view.data, static_cast<size_t>(size < kEnds ? size : kEnds));",
           "of a tensor of 8192 bytes the first half is looked at"),
    Mutant("loaders/random_model.cpp", "layer >= 7 * n / 8", "layer > 7 * n / 8", "the last eighth of the layers keeps a bit less"),
    Mutant("loaders/open.cpp", "if (alias == model) found = entry.name;", "if (alias == model) found.clear();", "a model's alias is not known"),
    Mutant("engine/strict_json.cpp", "keys_[level].clear();", "", "a key may not stand in two objects"),
    Mutant("loaders/sentencepiece_model.cpp", "if (size > bytes_.size() - at_)\n          return",
           "if (size > bytes_.size())\n          return", "a field may reach past the end of its message"),
    Mutant("loaders/sentencepiece_model.cpp", "shift < 64 &&", "shift < 77 &&", "a varint may have eleven bytes"),
    # ---- safetensors ----
    Mutant("engine/safetensors.cpp", "if (begin > end || end > data.size())", "if (begin > end)",
           "a tensor may end behind the file"),
    Mutant("engine/safetensors.cpp", "(n != 0 && size > kMost / n)", "(n != 0 && size > kMost)",
           "the product of a shape may wrap"),
    Mutant("engine/safetensors.cpp", "if (begin != end)\n", "if (begin < end)\n", "holes between tensors are taken"),
    Mutant("engine/safetensors.cpp", "if (end != data.size())", "if (end > data.size())",
           "bytes behind the last tensor are taken"),
    # ---- files ----
    Mutant("engine/file.cpp", "if (fsync(fd_) != 0) return fail(\"flush\");", "",
           "a file takes its name before it is on the disk"),
    # ---- cache files ----
    Mutant("engine/kv/cache_reader.cpp", "fingerprint != model.fingerprint || shape != shape_", "shape != shape_",
           "a cache of another model of the same shape is taken"),
    Mutant("engine/kv/cache_reader.cpp", "if (found == wanted) return bytes;", "if (found == wanted || !known) return bytes;",
           "a tensor without a checksum is taken"),
    Mutant("engine/kv/dense_rows.cpp", "transpose_plain(m, whole_rows, rows, 0, columns);",
           "transpose_plain(m, whole_rows, rows, 0, whole_columns);", "the corner of a page is not transposed"),
    Mutant("engine/kv/exchange.cpp", "turn(r, turned ? -1 : 0);", "turn(r, turned ? 1 : 0);",
           "imported keys are turned the wrong way"),
    # ---- the cache ----
    Mutant("engine/kv/cache.cpp", "if (rows_.use_count() > 1) rows_ = std::make_shared<Rows>(*rows_);", "",
           "feeding a fork adds rows to the other's table of rows"),
    Mutant("engine/kv/cache.cpp", "if (table.use_count() > 1) table =", "if (table.use_count() > 2) table =",
           "feeding a fork changes the other's page table"),
    Mutant("engine/kv/page_table.cpp", "pool_->references(last.page) == own;", "pool_->references(last.page) >= own;",
           "a shared page is written to"),
    Mutant("engine/kv/page_rows.cpp", "for (int i = 0; i < copy.count; ++i)", "for (int i = 1; i < copy.count; ++i)",
           "copy-on-write leaves out the first row"),
    Mutant("engine/kv/page_table.cpp", "at->page == last.page && at->first + at->count <= end;", "at->page == last.page;",
           "fed rows are written over rows that were moved to the front"),
    Mutant("engine/kv/page_table.cpp", "if (begin >= end) return;", "if (begin > end) return;",
           "spans of no rows hold their pages"),
    Mutant("engine/kv/ops.cpp", "if (keys.holds_same_slots(values)) continue;",
           "if (keys.rows() == values.rows()) continue;", "K and V of other rows pass for whole"),
    Mutant("engine/kv/page_table.cpp", "last->page == span.page && last->first + last->count == span.first &&",
           "last->page == span.page &&", "spans are joined that do not follow each other in their page"),
    Mutant("engine/kv/page_table.cpp", "const bool open = !forked && last_page_is_open();",
           "static_cast<void>(forked);\n  const bool open = last_page_is_open();", "a fork's copy of its last page is not asked for"),
    Mutant("engine/kv/page_table.cpp", "next = slots[i] + last - first;", "next = slots[i];",
           "what is spliced in stands beside what it replaces"),
    Mutant("engine/kv/page_pool.cpp", "if (pages <= capacity_ - held_) return status();", "if (pages <= capacity_) return status();",
           "the pool promises pages that are held"),
    Mutant("engine/kv/ops.cpp", "next = std::max(next, position + 1);", "next = std::max(next, position);",
           "the next token gets the last one's position"),
    Mutant("engine/kv/ops.cpp", "return {before - *low, before + extent - behind};", "return {before - *low, extent};",
           "rows behind an insertion move too far"),
    Mutant("engine/kv/ops.cpp", "out->origins[rows[i]].source = out->source_index(slice.rows->sources[slice.rows->origins[i].source]);",
           "", "an overwritten row's source is an index of the other cache"),
    Mutant("engine/kv/ops.cpp", "static_cast<int64_t>(cache.next_position()) + delta;", "cache.next_position();",
           "a shift leaves the next position"),
    Mutant("engine/kv/page_rows.cpp", "(1 - change.factor) * x[d] + change.factor * other[d]",
           "change.factor * x[d] + (1 - change.factor) * other[d]", "a mix is the wrong way round"),
    Mutant("engine/kv/selection.cpp", "*first <= out.back()", "*first < out.back()", "a row may be named twice"),
    Mutant("engine/kv/alignment.cpp", "while (from.ends[row] < end) ++row;", "while (from.ends[row] + 1 < end) ++row;",
           "a row is made of one that has not seen as much"),
    Mutant("engine/kv/projector.cpp", "expected == checksums.end() || *expected != found",
           "expected != checksums.end() && *expected != found", "a tensor without a checksum is taken"),
    # ---- CPU kernels and formats ----
    Mutant("kernels/cpu/plain.cpp", "scores[r] = exp_f32(scores[r] - largest);\n    lanes[r % 16] += scores[r];",
           "scores[r] = exp_f32(scores[r] - largest);\n    lanes[r % 8] += scores[r];",
           "weights are summed in eight lanes"),
    Mutant("kernels/cpu/runs.h", "const int most = std::min(last - at, kPageRows - offset);",
           "const int most = std::min(last - at, kPageRows);", "a run goes on past its base's 32 positions"),
    Mutant("kernels/cpu/avx2_matmul.cpp", "Traits::kBits == 6 ? 2 : 1;", "Traits::kBits == 6 ? 4 : 1;",
           "sums of 16 bits may overflow"),
    Mutant("kernels/cpu/avx2_attention.cpp", "__m256& sum = sums[r / kLanes % 2];", "__m256& sum = sums[0];",
           "weights are summed in eight lanes"),
    Mutant("kernels/cpu/avx512.cpp", "static_cast<float>(n) + epsilon);", "static_cast<float>(n) + epsilon * epsilon);",
           "a norm squares epsilon"),
    Mutant("kernels/cpu/avx512_matmul.cpp", "_mm512_or_si512(to[3], _mm512_and_si512(_mm512_srli_epi16(high, 2), two));",
           "_mm512_or_si512(to[3], _mm512_and_si512(_mm512_srli_epi16(high, 1), two));",
           "Q6_K's highest bits are taken one place off"),
    Mutant("kernels/cpu/avx512_attention.cpp", "if (v == 0 || tile.vectors[v].position != tile.vectors[v - 1].position)",
           "if (v == 0)", "all tokens of a tile are turned by the first one's position"),
    Mutant("kernels/formats/finite.cpp", "all &= is_finite_f16(block[i].dmin);", "all &= true;", "an infinite dmin is not seen"),
    # ---- CUDA kernels ----
    Mutant("kernels/cuda/attention.cu", "slot + 1 - span.slot);", "slot - span.slot);", "a token does not see itself"),
    Mutant("kernels/cuda/attention.cu", "s = distance < 0 ? -s : s;", "", "queries turn forwards where they stand before a key"),
    Mutant("kernels/cuda/attention.cu", ": at * groups + group] = largest / 127.0F;", ": at * groups] = largest / 127.0F;",
           "a value's scales are written to other rows"),
    Mutant("kernels/cuda/attention.cu", "chosen, turned);\n    __syncwarp();", "chosen, turned);",
           "rows are scored while their query is being turned"),
    Mutant("kernels/cuda/mat_vec.cu", "min(kQuad, end - quad), row, acc);", "kQuad, row, acc);",
           "groups behind the last are added"),
    Mutant("kernels/cuda/mat_vec.cu", "make_int2(Planes<Format>::kOffset * sum, Planes<Format>::kOffset * other);",
           "make_int2(Planes<Format>::kOffset * sum, Planes<Format>::kOffset * sum);",
           "both half groups lose the first one's offset"),
    Mutant("kernels/cuda/mat_tile.cu", "if (first > 0) __syncthreads();", "", "tiles are filled while they are read"),
    Mutant("kernels/cuda/mat_tile.cu", "if (output >= p.weight.rows || row >= rows) continue;",
           "if (output >= p.weight.rows || row > rows) continue;", "a row behind the last is written"),
    Mutant("kernels/cuda/rows.cu", "lanes[lane] = sum;\n  }\n  __syncthreads();", "lanes[lane] = sum;\n  }",
           "a norm reads lanes before they are written"),
    Mutant("kernels/cuda/rows.cu", "static_cast<int8_t>(__float2int_rn(v));\n  if (lane",
           "static_cast<int8_t>(v);\n  if (lane", "activations are cut instead of rounded"),
]


def tests_of(file):
    return next(tests for prefix, tests in TESTS if file.startswith(prefix))


def needs(mutant):
    """A processor's flag without which the mutated kernel never runs."""
    return "avx512_vnni" if "avx512" in mutant.file else "avx2" if "avx2" in mutant.file else ""


def place_of(mutant, text):
    """The line of the fault; raises where it does not apply to one place."""
    found = text.count(mutant.old)
    if found != 1:
        raise SystemExit(f"{mutant.file}: '{mutant.old}' stands there {found} times, expected once")
    return text[:text.index(mutant.old)].count("\n") + 1


def copy_sources():
    """The checkout's sources to TREE; what is equal stays untouched, so that it is not compiled again."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, text=True, check=True).stdout
    names = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    for name in sorted(names):
        source, target = ROOT / name, TREE / name
        if target.is_file() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    for path in TREE.rglob("*"):
        name = str(path.relative_to(TREE))
        if path.is_file() and not name.startswith("build/") and name not in names:
            path.unlink()


def build(tests, jobs):
    """The output of a build that failed; None where it did not."""
    targets = [test.split("/")[-1] for test in tests]
    done = subprocess.run(["cmake", "--build", BUILD, "-j", str(jobs), "--target", *targets],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return None if done.returncode == 0 else done.stdout


def failure(test):
    """What a test program noticed; None where it passes."""
    # The orders of threads but the first add minutes and are there for faults of synchronisation.
    arguments = ["--gtest_brief=1", "--gtest_fail_fast"]
    if test.endswith("_shadow"):
        arguments.append("--gtest_filter=*forward*")
    try:
        done = subprocess.run([BUILD / "tests" / test, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=SECONDS, cwd=TREE, errors="replace")
    except subprocess.TimeoutExpired:
        return f"{test} does not end"
    if done.returncode == 0:
        return None
    failed = [line[13:] for line in done.stdout.splitlines() if line.startswith("[  FAILED  ] ")]
    name = failed[0].split(",")[0].split(" (")[0] if failed else f"signal {-done.returncode}"
    return f"{test} {name}"


def try_mutant(mutant, jobs):
    """What noticed the fault, or None."""
    path = TREE / mutant.file
    whole = path.read_text(encoding="utf-8")
    place_of(mutant, whole)
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        for test in tests_of(mutant.file):
            output = build([test], jobs)
            if output is not None:
                raise DoesNotCompile(output[-2000:])
            noticed = failure(test)
            if noticed is not None:
                return noticed
        return None
    finally:
        path.write_text(whole, encoding="utf-8")


def prepare(mutants, jobs):
    copy_sources()
    if not (BUILD / "build.ninja").exists():
        subprocess.run(["cmake", "--preset", "release", "-DKVFOLD_BENCH=OFF", "-DKVFOLD_CUDA=OFF"], cwd=TREE, check=True,
                       stdout=subprocess.DEVNULL)
    tests = list(dict.fromkeys(test for mutant in mutants for test in tests_of(mutant.file)))
    output = build(tests, jobs)
    if output is not None:
        raise SystemExit(f"the sources do not compile without a fault:\n{output[-3000:]}")
    for test in tests:
        noticed = failure(test)
        if noticed is not None:
            raise SystemExit(f"without a fault: {noticed}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="those whose file or description has this word")
    parser.add_argument("--check", action="store_true", help="only that each applies to one place of its file")
    parser.add_argument("--from", dest="first", type=int, default=1, help="go on from the Nth of them")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count(), help="parallel compilations")
    options = parser.parse_args()
    mutants = [m for m in MUTANTS if options.only in m.file or options.only in m.what][options.first - 1:]
    places = {m: place_of(m, (ROOT / m.file).read_text(encoding="utf-8")) for m in mutants}
    if options.check:
        print(f"{len(mutants)} faults apply")
        return 0
    cpu = Path("/proc/cpuinfo").read_text()
    able = [m for m in mutants if needs(m) in cpu]
    for mutant in mutants:
        if mutant not in able:
            print(f"not tried, as this processor lacks {needs(mutant)}: {mutant.file}: {mutant.what}")
    prepare(able, options.jobs)
    missed = 0
    for mutant in able:
        start = time.monotonic()
        try:
            noticed = try_mutant(mutant, options.jobs)
            verdict = "NOT NOTICED" if noticed is None else f"noticed by {noticed}"
        except DoesNotCompile as error:
            noticed, verdict = None, f"DOES NOT COMPILE:\n{error}"
        missed += noticed is None
        print(f"{mutant.file}:{places[mutant]}: {mutant.what}: {verdict} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{len(able) - missed} of {len(able)} faults noticed")
    return 1 if missed * 25 > len(able) else 0


if __name__ == "__main__":
    sys.exit(main())
