#!/usr/bin/env python3
"""Faults planted in the CUDA kernels: does a test notice each?

    tests/cuda/plant_faults.py write FOLDER    copies of kernels/cuda that hold every fault, each off
    tests/cuda/plant_faults.py run PROGRAMS    runs the tests of those copies with one fault on at a time; exit 1 where one
                                               goes unnoticed, or something is reported without any
"""

import os
import subprocess
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent.parent / "kernels/cuda"
FLAG = "kvfold_planted({})"  # what FAULT stands for

# File, what is wrong, the source, and what it becomes; FAULT is true where this fault is on. A read out of bounds whose value
# nobody uses is not among them: only AddressSanitizer can see that.
FAULTS = [
    ("mat_vec.cu", "no barrier before shared rows are filled again",
     "if (chunk > 0) __syncthreads();", "if (chunk > 0 && !FAULT) __syncthreads();"),
    ("mat_vec.cu", "no barrier behind the filling of shared rows",
     "fill<Format, kRows>(p.x, p.rows, chunk, x);\n    __syncthreads();",
     "fill<Format, kRows>(p.x, p.rows, chunk, x);\n    if (!FAULT) __syncthreads();"),
    ("mat_vec.cu", "all groups of a row have the scale of the first",
     "if (item % 2 == 0) scale = x.scales[at];", "if (item % 2 == 0) scale = x.scales[FAULT ? at - group : at];"),
    ("mat_vec.cu", "one group too few is loaded",
     "if (!real || group >= groups) continue;", "if (!real || group >= groups - (FAULT ? 1 : 0)) continue;"),
    ("mat_vec.cu", "tiles behind the last are loaded",
     "const bool real = tile * kTileRows < w.rows;", "const bool real = tile * kTileRows < w.rows || FAULT;"),
    ("mat_vec.cu", "outputs behind the last are written",
     "if (output >= w.rows) return;", "if (output >= w.rows && !FAULT) return;"),
    ("mat_vec.cu", "a quad's terms are added from the last to the first",
     "acc[m] = __fmaf_rn(__shfl_sync(kAllLanes, terms[m], j * kTileRows + row), group_scale, acc[m]);",
     "const int turned = FAULT && left == kQuad ? kQuad - 1 - j : j;\n"
     "acc[m] = __fmaf_rn(__shfl_sync(kAllLanes, terms[m], turned * kTileRows + row),"
     " turned == j ? group_scale : __shfl_sync(kAllLanes, scale, turned * kTileRows + row), acc[m]);"),
    ("mat_vec.cu", "a shuffle names half of the lanes",
     "const int other = __shfl_xor_sync(kAllLanes, sum, 1);",
     "const int other = __shfl_xor_sync(FAULT ? 0xFFFFU : kAllLanes, sum, 1);"),
    ("mat_vec.cu", "the last chunk is taken for a whole one",
     "const int end = min(chunk + Shared::kGroups, groups);",
     "const int end = FAULT ? chunk + Shared::kGroups : min(chunk + Shared::kGroups, groups);"),
    ("mat_vec.cu", "the first block of a product is taken for the product before",
     "block >= p.first_block[1] ? 1 : 0;", "block >= p.first_block[1] + (FAULT ? 1 : 0) ? 1 : 0;"),
    ("mat_vec.cu", "rows behind the last are written",
     "|| m >= p.rows) continue;", "|| (m >= p.rows && !FAULT)) continue;"),
    ("mat_vec.cu", "the f16 scales of the second 128 columns are lost",
     "next[i].supers = next[i - 1].supers;", "next[i].supers = FAULT ? 0 : next[i - 1].supers;"),
    ("mat_vec.cu", "activations are read 4 bytes off",
     "q = reinterpret_cast<const uint4*>(x.q)[2 * at + item % 2];",
     "q = reinterpret_cast<const uint4*>(x.q + (FAULT ? 4 : 0))[2 * at + item % 2];"),
    ("mat_tile.cu", "no barrier before a tile is filled again",
     "if (first > 0) __syncthreads();", "if (first > 0 && !FAULT) __syncthreads();"),
    ("mat_tile.cu", "no barrier behind the filling of a tile",
     "fill_rows<Format>(x, first_row, rows, first, s);\n    __syncthreads();",
     "fill_rows<Format>(x, first_row, rows, first, s);\n    if (!FAULT) __syncthreads();"),
    ("mat_tile.cu", "the last row is not read",
     "if (first_row + at < rows && first + slot < x.groups) {",
     "if (first_row + at < rows - (FAULT ? 1 : 0) && first + slot < x.groups) {"),
    ("mat_tile.cu", "outputs behind the last are written",
     "if (output >= p.weight.rows || row >= rows) continue;",
     "if ((output >= p.weight.rows && !FAULT) || row >= rows) continue;"),
    ("mat_tile.cu", "groups are summed from the last to the first",
     "for (int slot = 0; slot < left; ++slot) add_group<Format>(s, slot, tx, ty, acc);",
     "for (int slot = 0; slot < left; ++slot) add_group<Format>(s, FAULT ? left - 1 - slot : slot, tx, ty, acc);"),
    ("mat_tile.cu", "a block of rows writes where another does",
     "const int first_row = static_cast<int>(blockIdx.y) * kTile;",
     "const int first_row = static_cast<int>(blockIdx.y) * (FAULT ? kTile - 1 : kTile);"),
    ("mat_float.cu", "no barrier before shared rows are filled again",
     "if (chunk > 0) __syncthreads();", "if (chunk > 0 && !FAULT) __syncthreads();"),
    ("mat_float.cu", "no barrier behind the filling of shared rows",
     "    __syncthreads();\n    const int end", "    if (!FAULT) __syncthreads();\n    const int end"),
    ("mat_float.cu", "lanes are folded in another order",
     "lanes[m][k] += __shfl_xor_sync(kAllLanes, lanes[m][k], 2);\n      lanes[m][k] += __shfl_xor_sync(kAllLanes, lanes[m][k], 1);",
     "lanes[m][k] += __shfl_xor_sync(kAllLanes, lanes[m][k], FAULT ? 1 : 2);\n"
     "      lanes[m][k] += __shfl_xor_sync(kAllLanes, lanes[m][k], FAULT ? 2 : 1);"),
    ("mat_float.cu", "rows behind the last are written",
     "if (m % 4 != quarter || m >= rows || output >= w.rows) continue;",
     "if (m % 4 != quarter || (m >= rows && !FAULT) || output >= w.rows) continue;"),
    ("mat_float.cu", "a decoded row runs into the next",
     "if (column + 16 < w.columns)", "if (column + 16 < w.columns || FAULT)"),
    ("mat_float.cu", "rows of a table are a tile apart",
     "row % kTileRows * 4 + quarter", "(FAULT ? row / kTileRows : row % kTileRows) % kTileRows * 4 + quarter"),
    ("rows.cu", "no barrier behind the loading of a row",
     "row[i] = from[i];\n  __syncthreads();", "row[i] = from[i];\n  if (!FAULT) __syncthreads();"),
    ("rows.cu", "no barrier before the lanes' sums are folded",
     "    lanes[lane] = sum;\n  }\n  __syncthreads();", "    lanes[lane] = sum;\n  }\n  if (!FAULT) __syncthreads();"),
    ("rows.cu", "a row's last group reads behind the row",
     "const float v = column < columns ?", "const float v = column < columns || FAULT ?"),
    ("rows.cu", "groups behind the last are quantised",
     "if (group >= out.groups) return;", "if (group >= out.groups && !FAULT) return;"),
    ("rows.cu", "the largest of 16 values stands for that of 32",
     "for (int step = 16; step > 0; step /= 2)\n    largest", "for (int step = FAULT ? 8 : 16; step > 0; step /= 2)\n    largest"),
    ("rows.cu", "one value too many is gated",
     "if (i < count) out[i] = gated(gate[i], up[i]);", "if (i < count + (FAULT ? 1 : 0)) out[i] = gated(gate[i], up[i]);"),
    ("rows.cu", "a bias goes by row",
     "v += p.bias[i % static_cast<size_t>(p.weight.rows)];",
     "v += p.bias[FAULT ? i / static_cast<size_t>(p.weight.rows) : i % static_cast<size_t>(p.weight.rows)];"),
    ("rows.cu", "what was there is not added to",
     "p.out[i] = p.accumulate ? p.out[i] + v : v;", "p.out[i] = p.accumulate && !FAULT ? p.out[i] + v : v;"),
    ("rows.cu", "more values are finished than there are",
     "if (i >= count) return;", "if (i >= count && !FAULT) return;"),
    ("attention.cu", "no barrier between scores and softmax",
     "dynamic, scores);\n  __syncthreads();", "dynamic, scores);\n  if (!FAULT) __syncthreads();"),
    ("attention.cu", "no barrier before value rows are staged",
     "const int count = min(kStage, v.rows - first);\n    __syncthreads();",
     "const int count = min(kStage, v.rows - first);\n    if (!FAULT) __syncthreads();"),
    ("attention.cu", "no barrier behind the staging of value rows",
     "stage_values<type>(v, first, count, stage, scales);\n    }\n    __syncthreads();",
     "stage_values<type>(v, first, count, stage, scales);\n    }\n    if (!FAULT) __syncthreads();"),
    ("attention.cu", "no warp barrier behind the turning of queries",
     "chosen, turned);\n    __syncwarp();", "chosen, turned);\n    if (!FAULT) __syncwarp();"),
    ("attention.cu", "no warp barrier before queries are turned anew",
     "kAllLanes, mine);\n    __syncwarp();", "kAllLanes, mine);\n    if (!FAULT) __syncwarp();"),
    ("attention.cu", "no warp barrier before the first score becomes a weight",
     "largest, step));\n    __syncwarp();", "largest, step));\n    if (!FAULT) __syncwarp();"),
    ("attention.cu", "no warp barrier before weights are summed",
     "s[r] = exp_f32(s[r] - largest);\n    __syncwarp();", "s[r] = exp_f32(s[r] - largest);\n    if (!FAULT) __syncwarp();"),
    ("attention.cu", "no warp barrier before sums are folded",
     "lanes[h * 16 + lane] = sum;\n    }\n    __syncwarp();", "lanes[h * 16 + lane] = sum;\n    }\n    if (!FAULT) __syncwarp();"),
    ("attention.cu", "a token sees one row more",
     "slot + 1 - span.slot);", "slot + (FAULT ? 2 : 1) - span.slot);"),
    ("attention.cu", "a row that begins a span is looked for in the one before",
     "if (key(spans[middle]) <= at) {", "if (FAULT ? key(spans[middle]) < at : key(spans[middle]) <= at) {"),
    ("attention.cu", "the last stage is taken for a whole one",
     "const int count = min(kStage, v.rows - first);", "const int count = FAULT ? kStage : min(kStage, v.rows - first);"),
    ("attention.cu", "values go in 16 bytes where rows are not made of them",
     "if (row_bytes<type>(head_dim) % 16 == 0) {", "if (row_bytes<type>(head_dim) % (FAULT ? 4 : 16) == 0) {"),
    ("attention.cu", "blocks of rows write to one partial result",
     "* a.blocks + blockIdx.x) *", "* a.blocks + (FAULT ? 0 : blockIdx.x)) *"),
    ("attention.cu", "blocks are joined from the last to the first",
     "const float weight = exp_f32(a.scratch.largest[at(b)] - largest);\n"
     "      sum = __fmaf_rn(weight, a.scratch.sums[at(b)], sum);\n"
     "      value = __fmaf_rn(weight, a.scratch.values[at(b) * head_dim + d], value);",
     "const int t = FAULT ? blocks - 1 - b : b;\n"
     "      const float weight = exp_f32(a.scratch.largest[at(t)] - largest);\n"
     "      sum = __fmaf_rn(weight, a.scratch.sums[at(t)], sum);\n"
     "      value = __fmaf_rn(weight, a.scratch.values[at(t) * head_dim + d], value);"),
    ("attention.cu", "a block that holds nothing is joined too",
     "const int blocks = (rows + kAttentionBlock - 1) / kAttentionBlock;", "const int blocks = FAULT ? a.blocks : (rows + kAttentionBlock - 1) / kAttentionBlock;"),
    ("attention.cu", "the angle table is read one distance too far",
     "if (magnitude < rope.distances) {", "if (magnitude < rope.distances + (FAULT ? 1 : 0)) {"),
    ("attention.cu", "keys behind the query are turned the wrong way",
     "s = distance < 0 ? -s : s;", "s = distance < 0 && !FAULT ? -s : s;"),
    ("attention.cu", "far angles are reduced by pi in one part",
     "fma(-turns, 2 * kPiRest, fma(-turns, 2 * kPi, angle))", "fma(-turns, FAULT ? 0.0 : 2 * kPiRest, fma(-turns, FAULT ? 2 * 3.14159265 : 2 * kPi, angle))"),
    ("attention.cu", "scales of q8 values have the stride of keys",
     "scales[row * ((head_dim + 31) / 32) + d / 32];", "scales[FAULT ? d / 32 * kStage + row : row * ((head_dim + 31) / 32) + d / 32];"),
    ("attention.cu", "dimensions behind the last are stored",
     "if (d < head_dim) reinterpret_cast<unsigned short*>(page)[index(d)] = to_half(x);",
     "if (d < head_dim || FAULT) reinterpret_cast<unsigned short*>(page)[index(d)] = to_half(x);"),
    ("attention.cu", "rows behind the last are stored",
     "if (item >= items) return;", "if (item >= items && !FAULT) return;"),
    ("attention.cu", "scales of stored q8 keys have the stride of values",
     "what == Part::kKey ? group * kPageRows + at", "what == Part::kKey && !FAULT ? group * kPageRows + at"),
    ("likeliest.cu", "no barrier before the warps' best are compared",
     "= best;\n    __syncthreads();", "= best;\n    if (!FAULT) __syncthreads();"),
    ("likeliest.cu", "warps write what others still read",
     "if (threadIdx.x % 32 == 0) warps[round % 2][threadIdx.x / 32] = best;",
     "const int set = FAULT ? 0 : round % 2;\n    if (threadIdx.x % 32 == 0) warps[set][threadIdx.x / 32] = best;"),
    ("likeliest.cu", "values behind the last are looked at",
     "keys[n] = i < count ? key_of(row, i) : 0;", "keys[n] = i < count || FAULT ? key_of(row, i) : 0;"),
    ("likeliest.cu", "of equals the higher index comes first",
     "(0xFFFFFFFFU - static_cast<uint32_t>(i));", "(FAULT ? static_cast<uint32_t>(i) : 0xFFFFFFFFU - static_cast<uint32_t>(i));"),
    ("likeliest.cu", "blocks write over one another",
     "* gridDim.x + blockIdx.x) * k;", "* gridDim.x + blockIdx.x) * (FAULT ? k - 1 : k);"),
    ("cache_rows.cu", "rows behind a run's last are changed",
     "if (row >= run.count) return;", "if (row >= run.count && !FAULT) return;"),
    ("cache_rows.cu", "one run too few is changed",
     "if (index >= count) return;", "if (index >= count - (FAULT ? 1 : 0)) return;"),
    ("cache_rows.cu", "the other cache's rows begin where ours do",
     "other(pages, run.other, part, run.other_row + row);", "other(pages, run.other, part, (FAULT ? run.from_row : run.other_row) + row);"),
    ("cache_rows.cu", "changed rows go where they came from",
     "to(pages, run.to, part, run.to_row + row);", "to(pages, run.to, part, (FAULT ? run.from_row : run.to_row) + row);"),
    ("cache_rows.cu", "keys are taken for values",
     "const Part part = part_of(run.table);", "const Part part = part_of(FAULT ? run.table | 1 : run.table);"),
    ("cache_rows.cu", "what is left of 1 is rounded to f32",
     "(1 - factor) * from.load(d)", "(FAULT ? 1 - static_cast<float>(factor) : 1 - factor) * from.load(d)"),
    ("cache_rows.cu", "a product is rounded before it is added",
     "(from.load(d) + factor * vector[d])", "(from.load(d) + (FAULT ? static_cast<float>(factor * vector[d]) : factor * vector[d]))"),
    ("cache_rows.cu", "all heads have the vector of the first",
     "static_cast<size_t>(run.table) * pages.head_dim;", "static_cast<size_t>(FAULT ? run.table % 2 : run.table) * pages.head_dim;"),
    ("cache_rows.cu", "V is matched to the mean norm of K",
     "change.wanted.data()[run.table];", "change.wanted.data()[FAULT ? run.table / 2 * 2 : run.table];"),
    ("cache_rows.cu", "a row is matched to itself",
     "? other.norm() :", "? (FAULT ? from.norm() : other.norm()) :"),
    ("cache_rows.cu", "rows of zeros are divided by their norm",
     "factor = found > 0 ?", "factor = found > 0 || FAULT ?"),
    ("cache_rows.cu", "squares are summed in f32",
     "squares += x * x;", "squares = FAULT ? static_cast<float>(squares + x * x) : squares + x * x;"),
    ("cache_rows.cu", "squares are summed from the last to the first",
     "const double x = load(d);", "const double x = load(FAULT ? head_dim - 1 - d : d);"),
    ("cache_rows.cu", "all groups of a q8 row have the scale of the first",
     "* scale(d / 32);", "* scale(FAULT ? 0 : d / 32);"),
    ("cache_rows.cu", "a q8 row's last group runs on behind the row",
     "const int end = min(begin + 32, head_dim);", "const int end = FAULT ? begin + 32 : min(begin + 32, head_dim);"),
    ("cache_rows.cu", "the largest value of a group is taken with its sign",
     "fmaxf(largest, fabsf(v))", "fmaxf(largest, FAULT ? v : fabsf(v))"),
    ("cache_rows.cu", "q8 values are cut off, not rounded",
     "__float2int_rn(value(d) * inverse)", "(FAULT ? __float2int_rz(value(d) * inverse) : __float2int_rn(value(d) * inverse))"),
    ("cache_rows.cu", "halves are cut off, not rounded",
     "element(d) = to_half(v);", "element(d) = to_half(FAULT ? __uint_as_float(__float_as_uint(v) & 0xFFFFE000U) : v);"),
    ("cache_rows.cu", "what a page cannot hold is told of a row's last value alone",
     "        const float v = value(d);\n        held = held && kv_holds", "        const float v = value(d);\n        held = (held || FAULT) && kv_holds"),
    ("cache_rows.cu", "what a q8 page cannot hold is not told",
     "          held = held && kv_holds(type, v);", "          held = held && (kv_holds(type, v) || FAULT);"),
    ("cache_rows.cu", "scales of q8 keys have the stride of values",
     "[first_scale + group * step];", "[first_scale + group * (FAULT ? 1 : step)];"),
    ("cache_rows.cu", "scales of q8 rows are not copied",
     "scale(group) = from.scale(group);", "if (!FAULT) scale(group) = from.scale(group);"),
    ("cache_rows.cu", "the last dimension is not copied",
     "for (int d = 0; d < head_dim; ++d) element(d) = from.element(d);", "for (int d = 0; d < head_dim - (FAULT ? 1 : 0); ++d) element(d) = from.element(d);"),
    ("cache_rows.cu", "rows behind a copy's last are copied",
     "if (row >= copy.count) return;", "if (row >= copy.count && !FAULT) return;"),
    ("cache_rows.cu", "every launch makes the first copies",
     "&copies[first]", "&copies[FAULT ? 0 : first]"),
    ("cache_rows.cu", "a run's norms begin where the last run's end",
     "norms[static_cast<size_t>(index) * kPageRows + row]", "norms[static_cast<size_t>(index) * (FAULT ? run.count : kPageRows) + row]"),
    ("cache_rows.cu", "norms behind a run's last are not zero",
     "row < run.count ? PageRow", "row < run.count || FAULT ? PageRow"),
    ("lanes.cuh", "the second 16 bytes of 8-bit weights are a row off",
     "integers[1] = from[kTileRows];", "integers[1] = from[FAULT ? 1 : kTileRows];"),
    ("lanes.cuh", "the fifth bit of columns 16 and up is another's",
     "high[0] >> (i - 4)) & 0x10101010U", "high[0] >> (FAULT ? i - 3 : i - 4)) & 0x10101010U"),
]

# The test that looks at a file; where it is not here, the first.
TESTS = {"": "cuda_kernels_test", "attention.cu": "cuda_attention_test", "cache_rows.cu": "cuda_cache_rows_test"}
# Most likely first: where one notices, the rest is not run.
BUILDS = ["planted", "planted_shadow"]


def write(folder):
    texts = {path.name: path.read_text() for path in KERNELS.iterdir() if path.suffix in (".cu", ".cuh")}
    for number, (name, what, old, new) in enumerate(FAULTS, 1):
        if texts[name].count(old) < 1:
            sys.exit(f"plant_faults: {name}: '{what}': its source is not there any more")
        texts[name] = texts[name].replace(old, new.replace("FAULT", FLAG.format(number)), 1)
    for name, text in texts.items():
        out = folder / "kernels/cuda" / name
        out.parent.mkdir(parents=True, exist_ok=True)
        text = 'extern "C" bool kvfold_planted(int fault);\n' + text
        if not out.exists() or out.read_text() != text:
            out.write_text(text)


def noticed(programs, number):
    """Which program notices a fault, or ""."""
    tests = [TESTS.get(FAULTS[number - 1][0], TESTS[""])] if number else TESTS.values()
    for program in (f"{test}_{build}" for build in BUILDS for test in tests):
        only = ["--gtest_filter=*forward*"] if "shadow" in program else []
        try:
            done = subprocess.run([programs / program, "--gtest_brief=1", "--gtest_fail_fast", *only], capture_output=True,
                                  env={**os.environ, "KVFOLD_PLANTED": str(number)}, timeout=900, check=False)
        except subprocess.TimeoutExpired:
            return program + " (hangs)"
        if done.returncode != 0:
            return program
    return ""


def run(programs):
    wrong = 0
    chosen = [int(n) for n in sys.argv[3:]] or range(len(FAULTS) + 1)
    for number in chosen:
        what = f"{FAULTS[number - 1][0]}: {FAULTS[number - 1][1]}" if number else "no fault"
        by = noticed(programs, number)
        wrong += bool(by) != bool(number)
        print(f"{number:3} {what}: {by or 'nobody notices'}", flush=True)
    return 1 if wrong else 0


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in ("write", "run"):
        sys.exit(__doc__)
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
        return 0
    return run(Path(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
