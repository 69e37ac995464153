#!/usr/bin/env python3
"""What nvcc makes of the CUDA kernels for a GTX 1660, and the least time that a token can take there.

    bench/profile_cuda.py [--gate] [--model NAME]

First table: for each kernel its registers, spilled bytes and shared memory (ptxas -v, and what a launch adds), occupancy
(the toolkit's cuda_occupancy.h) and instructions (cuobjdump -sass): global loads of 128 bits and of all widths, dp4a, local memory.
Second table: for the models of phase 2 as Q4_0, and for --model as its file is, the bytes that each kernel of a decode step
must read, and the time that takes at the bandwidth of each card. That is a limit, not a measurement; where there is a GPU
the file's stands beside what is measured.
--gate: exit 1 where a kernel spills or uses local memory, a mat_vec has under 50% occupancy, or a mat_vec or mat_tile
has fewer 128-bit loads or dp4a than its format needs.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARDS = {"GTX 1660": 192, "1660 Ti": 288, "1660 SUPER": 336}  # GB/s
# layers, model_dim, heads, kv_heads, head_dim, ffn_dim, vocabulary
MODELS = {
    "TinyLlama 1.1B": (22, 2048, 32, 4, 64, 5632, 32000),
    "Qwen2.5 0.5B": (24, 896, 14, 2, 64, 4864, 151936),
    "SmolLM 135M": (30, 576, 9, 3, 64, 1536, 49152),
    "SmolLM 360M": (32, 960, 15, 5, 64, 2560, 49152),
}
GROUP_BYTES = 18  # of 32 weights: Q4_0
HEAD_DIM = max(model[4] for model in MODELS.values())  # 64 for each of them
WIDEST = max(model[1] for model in MODELS.values())
PACKED = {"q4_k": 18.5 / 18, "q5_k": 22.5 / 22}  # on the GPU, whose planes hold a byte where the file has 6 bits
KVFOLD = ROOT / "build/release/experiments/kvfold"
PAGES = ("f16", "f32", "q8")  # CacheType
THREADS = {"combine_kernel": 64}  # of a block; 256 for all others

# Global loads of 128 bits that a kernel has where all its integers come 16 bytes at a time, as in the code of CUDA 13:
# of mat_vec for weights and for activations, of mat_tile for weights. A lane of mat_vec has 4 quads of groups in flight
# (2 where their integers take more registers: Q6_K, Q8_0), 16 bytes each (Q8_0: 32), loaded before its loop and in it.
# The loop that brings activations is unrolled to 2 and 1, without sums of them (Q8_0) to 4, 2 and 1. mat_tile loads
# one group's weights, and two pieces of activations.
WIDE_LOADS = {
    "Q4_0": (8, 3, 1), "Q4_1": (8, 3, 1), "Q5_0": (8, 3, 1), "Q5_1": (8, 3, 1),
    "Q4_K": (8, 3, 1), "Q5_K": (8, 3, 1), "Q6_K": (4, 3, 1), "Q8_0": (8, 7, 2),
}
TILE_ACTIVATIONS = 2
VEC_ROWS = (1, 4, 8, 16)

# dp4a there: of mat_vec for each row and for sums of activations, of mat_tile for such sums. A lane makes 8 for a group
# and row, of each quad in flight; sums, which formats with an offset or a min need, take 4 in each copy of the loop.
# mat_tile makes 4 x 4 outputs of 8 each, and 8 for sums (formats with a min alone, as its weights have no offset).
PRODUCTS = {
    "Q4_0": (32, 12, 0), "Q4_1": (32, 12, 8), "Q5_0": (32, 12, 0), "Q5_1": (32, 12, 8),
    "Q4_K": (32, 12, 8), "Q5_K": (32, 12, 8), "Q6_K": (16, 12, 0), "Q8_0": (16, 0, 0),
}
TILE_PRODUCTS = 128
INSTRUCTIONS = {"wide": "loads of 128 bits", "dp4a": "dp4a"}


def fail(message):
    print(f"profile: {message}", file=sys.stderr)
    sys.exit(2)


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        fail(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.returncode}")
    return done


def short(mangled):
    """mat_vec_kernel<Q4_0, 1> from the symbol."""
    name = run(["c++filt", mangled]).stdout.strip()
    name = re.sub(r"kvfold::|cuda::|\(anonymous namespace\)::|^void ", "", name)
    for number, page in enumerate(PAGES):
        name = name.replace(f"(CacheType){number}", page)
    return name.split("(")[0]


def compile_kernels(nvcc, folder):
    """{symbol: {registers, spills, stack, shared}}, and the cubins."""
    kernels, cubins = {}, []
    for source in sorted((ROOT / "kernels/cuda").glob("*.cu")):
        cubin = folder / (source.stem + ".cubin")
        done = run([nvcc, "-std=c++20", "-O3", "-arch=sm_75", "--fmad=false", "--expt-relaxed-constexpr", f"-I{ROOT}",
                    "-Xptxas", "-v", "-cubin", source, "-o", cubin])
        cubins.append(cubin)
        symbol = None
        for line in (done.stderr + done.stdout).splitlines():
            if found := re.search(r"Compiling entry function '(\w+)'", line):
                symbol = found[1]
                kernels[symbol] = {"spills": 0, "stack": 0, "registers": 0, "shared": 0}
            elif symbol and (found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", line)):
                kernels[symbol]["stack"] = int(found[1])
                kernels[symbol]["spills"] = int(found[2]) + int(found[3])
            elif symbol and (found := re.search(r"Used (\d+) registers", line)):
                kernels[symbol]["registers"] = int(found[1])
                if shared := re.search(r"(\d+) bytes smem", line):
                    kernels[symbol]["shared"] = int(shared[1])
    return kernels, cubins


def launch(name):
    """How the models launch a kernel, in the words of occupancy.cpp."""
    if attention := re.fullmatch(r"attention_kernel<(\w+), (\d+)>", name):
        return f"attention {PAGES.index(attention[1])} {attention[2]} {HEAD_DIM}"
    return f"norm 0 0 {WIDEST}" if name == "norm_kernel" else "plain 0 0 0"


def add_occupancy(kernels, cuda, folder):
    program = folder / "occupancy"
    run(["g++", "-std=c++20", f"-I{cuda}/include", f"-I{ROOT}", ROOT / "bench/occupancy.cpp", "-o", program])
    lines = [f"{k['registers']} {THREADS.get(name.split('<')[0], 256)} {k['shared']} {launch(name)}" for name, k in kernels.items()]
    for kernel, line in zip(kernels.values(), run([program], input="\n".join(lines)).stdout.splitlines(), strict=True):
        kernel["dynamic"], kernel["occupancy"] = map(int, line.split())


def find_tool(name):
    if found := shutil.which(name):
        return found
    for found in Path(sys.prefix).rglob(f"nvidia/**/bin/{name}"):
        found.chmod(0o755)
        return str(found)
    fail(f"no {name}: make profile installs it")


def add_instructions(kernels, cubins):
    nvdisasm = find_tool("nvdisasm")
    for kernel in kernels.values():
        kernel.update(wide=0, loads=0, dp4a=0, local=0, instructions=0)
    for cubin in cubins:
        current = None
        for line in run([nvdisasm, "-c", cubin]).stdout.splitlines():
            if found := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
                current = kernels.get(found[1])
            elif current is not None and (found := re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line)):
                op = found[1]
                current["instructions"] += 1
                current["loads"] += op.startswith("LDG")
                current["wide"] += op.startswith("LDG") and ".128" in op
                current["dp4a"] += op.startswith("IDP.4A")
                current["local"] += op.startswith(("LDL", "STL"))


def print_kernels(kernels):
    print(f"{'kernel':44}{'regs':>5}{'spill':>6}{'shared':>8}{'dynamic':>9}{'occ':>6}{'ld128':>7}{'ld':>5}{'dp4a':>6}{'local':>7}{'all':>7}")
    for name, k in sorted(kernels.items()):
        print(f"{name:44}{k['registers']:5}{k['spills']:6}{k['shared']:8}{k['dynamic']:9}{k['occupancy']:5}%{k['wide']:7}{k['loads']:5}"
              f"{k['dp4a']:6}{k['local']:7}{k['instructions']:7}")
    groups = ", ".join(f"{heads // kv} for {model}" for model, (_, _, heads, kv, *_) in MODELS.items())
    print(f"shared: a kernel's own bytes; dynamic: what a launch adds, of attention for heads of {HEAD_DIM}, of norm for {WIDEST} columns.")
    print(f"Attention takes as many query heads together as share a KV head: {groups}.\n")


def needs():
    """{kernel: {instruction: how many it has at least}} of all instances of mat_vec and mat_tile."""
    found = {}
    for name, (weights, activations, tile) in WIDE_LOADS.items():
        row, sums, tile_sums = PRODUCTS[name]
        for rows in VEC_ROWS:
            found[f"mat_vec_kernel<{name}, {rows}>"] = {"wide": weights + activations, "dp4a": row * rows + sums}
        found[f"mat_tile_kernel<{name}>"] = {"wide": tile + TILE_ACTIVATIONS, "dp4a": TILE_PRODUCTS + tile_sums}
    return found


def faults(kernels):
    for name, k in kernels.items():
        if k["spills"] or k["stack"] or k["local"]:
            yield f"{name}: {k['spills']} bytes spilled, {k['stack']} of stack, {k['local']} local accesses; expected 0"
        if name.startswith("mat_vec") and k["occupancy"] < 50:
            yield f"{name}: occupancy {k['occupancy']}%, expected at least 50%"
        if name.startswith(("mat_vec", "mat_tile")) and name not in needs():
            yield f"{name}: not among the kernels whose instructions are known, those of {', '.join(WIDE_LOADS)}"
    for name, least in needs().items():
        if name not in kernels:
            yield f"{name}: not compiled"
            continue
        for instruction, count in least.items():
            if kernels[name][instruction] < count:
                yield f"{name}: {kernels[name][instruction]} {INSTRUCTIONS[instruction]}, expected at least {count}"


def token_bytes(model, depth):
    """Bytes that a decode step must read, by kernel: Q4_0 weights, f16 pages, one sequence."""
    layers, dim, heads, kv, head, ffn, vocabulary = MODELS[model]
    product = lambda outputs, inputs: outputs * inputs // 32 * GROUP_BYTES
    return {
        "mat_vec q, k, v": layers * product((heads + 2 * kv) * head, dim),
        "mat_vec o": layers * product(dim, heads * head),
        "mat_vec gate, up": layers * product(2 * ffn, dim),
        "mat_vec down": layers * product(dim, ffn),
        "mat_vec output": product(vocabulary, dim),
    } | state_bytes(MODELS[model], depth)


def state_bytes(shape, depth):
    """Of all but weights."""
    layers, dim, heads, kv, head, ffn, vocabulary = shape
    return {
        "likeliest (the next token)": 4 * vocabulary,
        "attention": layers * kv * head * 2 * 2 * (depth + 1),
        "norm, quantise, swiglu": layers * 4 * (4 * dim + heads * head + 2 * ffn),
    }


def file_bytes(info, depth):
    """As token_bytes, of a model's file as `kvfold info --json` has it."""
    shape = [info[key] for key in ("layers", "model_dim", "heads", "kv_heads", "head_dim", "ffn_dim", "vocab_size")]
    weights = {f"weights {name}": round(count * PACKED.get(name, 1)) for name, count in info["weight_bytes_per_token"].items()}
    return weights | state_bytes(shape, depth)


def print_token(title, parts):
    token = sum(parts.values())
    print(f"\n{title:36}{'MB':>10}" + "".join(f"{card + ' us':>15}" for card in CARDS))
    for name, count in (parts | {"token": token}).items():
        print(f"  {name:34}{count / 1e6:10.2f}" + "".join(f"{count / gb / 1e3:15.1f}" for gb in CARDS.values()))
    print(f"  {'tokens/s at most':44}" + "".join(f"{1e9 * gb / token:15.0f}" for gb in CARDS.values()))


def print_tokens():
    print("Least time of a decode step: bytes over bandwidth, Q4_0 weights and f16 pages. A limit, not a measurement.")
    for model in MODELS:
        for depth in (0, 2048):
            print_token(f"{model}, depth {depth}", token_bytes(model, depth))


def measured(info, generated):
    """Tokens a second beside their limit, at the depth that the tokens have on average."""
    depth = len(generated["prompt_ids"]) + len(generated["ids"]) // 2
    token = sum(file_bytes(info, depth).values())
    rate = generated["decode_tokens_per_second"]
    limits = ", ".join(f"{1e9 * gb / token:.0f} on a {card}" for card, gb in CARDS.items())
    return f"{rate:.1f} tokens/s at depth {depth}, {token / 1e6:.2f} MB each: {rate * token / 1e9:.1f} GB/s. At most: {limits}"


def print_model(model):
    """The limit of a model's own file, and what a GPU makes of it where there is one."""
    if not KVFOLD.exists():
        fail(f"no {KVFOLD.relative_to(ROOT)}: make profile builds it")
    info = json.loads(run([KVFOLD, "info", model, "--backend", "cpu", "--json"], cwd=ROOT).stdout)
    print(f"\n{model} as its file is:")
    for depth in (0, 2048):
        print_token(f"depth {depth}", file_bytes(info, depth))
    command = f"{KVFOLD.relative_to(ROOT)} generate {model} --backend cuda --prompt 'Once upon a time' -n 128 --json"
    print("\nOn a machine with a GPU:")
    print(f"  ncu --set full --launch-skip 600 --launch-count 40 {command}")
    print(f"  nsys profile --trace=cuda,nvtx --cuda-graph-trace=node {command}")
    if not shutil.which("nvidia-smi") or subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode:
        print("No GPU here: nothing was measured.")
        return
    print("Measured: " + measured(info, json.loads(run(["bash", "-c", command], cwd=ROOT).stdout)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args()
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        print("profile: no nvcc on this machine: kernels are not looked at")
        if not options.gate:
            print_tokens()
            print_model(options.model)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernels, cubins = compile_kernels(nvcc, folder)
        add_instructions(kernels, cubins)
        kernels = {short(symbol): kernel for symbol, kernel in kernels.items()}
        add_occupancy(kernels, Path(nvcc).resolve().parent.parent, folder)
    found = list(faults(kernels))
    if not options.gate:
        print_kernels(kernels)
        print_tokens()
        print_model(options.model)
    for line in found:
        print(f"profile: {line}", file=sys.stderr)
    if not kernels:
        fail("ptxas named no kernels")
    if options.gate and not found:
        print(f"profile: {len(kernels)} kernels, no spills, no local memory, mat_vec occupancy at least 50%, "
              "all integers loaded 128 bits at a time and multiplied by dp4a")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
