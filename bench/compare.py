"""kvfold against llama.cpp, in turn on this machine: A B A B, both models, 1 and 2 threads.

    python bench/compare.py --kvfold build/release/experiments/kvfold --peer-python .venv-peer/bin/python [--rounds 3] [--out FILE [--add]]

Prints a Markdown table of medians over rounds with their spread and the ratio, beside the ratio aimed at, and writes
every measurement as JSON; with --add to those that the file holds, so that a comparison can be made bit by bit in a
machine's quiet minutes. The peer's better of flash attention on and off counts, measure by measure.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
MODELS = {"smol": "smollm2-135m-instruct", "qwen": "qwen2.5-coder-0.5b-instruct"}
PARTS = ["decode", "prefill", "depth", "batch"]
# Ratio aimed at, by measure: (smol 1 thread, smol 2, qwen 1, qwen 2). Above: ours is so many times faster; for load and
# memory, below: ours takes at most that share.
GOALS = {
    "decode_128_tokens_per_s": (1.8, 1.5, 1.8, 1.5),
    "prefill_512_tokens_per_s": (6, 6, 4, 4),
    "decode_at_4096_tokens_per_s": (2.3, 2.5, 2.3, 2.5),
    "batch_16_tokens_per_s": (3, 3, 3, 3),
    "load_to_first_logits_ms": (1 / 3,) * 4,
    "peak_bytes_after_decode": (1,) * 4,
}
LOWER_IS_BETTER = ("load_ms", "load_to_first_logits_ms", "peak_bytes_after_decode")


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def weights(name):
    return pathlib.Path(os.environ.get("KVFOLD_WEIGHTS", ROOT / "weights" / "cache")) / f"{name}.gguf"


def one_round(options, model, threads):
    common = ["--threads", str(threads), "--repeat", str(options.repeat)]
    path = weights(MODELS[model])
    ours = run([options.kvfold, "bench", path, "--json", *common, "--parts", *options.parts])
    peers = [run([options.peer_python, ROOT / "bench" / "peer.py", path, "--flash", str(flash), *common,
                  "--parts", *options.parts]) for flash in (0, 1)]
    return {"model": model, "threads": threads, "kvfold": ours, "peer": peers}


def number(value):
    return value["median"] if isinstance(value, dict) else value


def summarise(rounds, measure):
    """Ours and the peer's values over rounds, and (median ratio, least, most)."""
    best = min if measure in LOWER_IS_BETTER else max
    ours = [number(r["kvfold"][measure]) for r in rounds]
    peer = [best(number(p[measure]) for p in r["peer"]) for r in rounds]
    ratios = [a / b for a, b in zip(ours, peer)]
    return statistics.median(ours), statistics.median(peer), (statistics.median(ratios), min(ratios), max(ratios))


def table(results):
    lines = ["| model | threads | measure | kvfold | llama.cpp | ratio (least to most) | aim |",
             "|---|---|---|---|---|---|---|"]
    for column, (model, threads) in enumerate((m, t) for m in MODELS for t in (1, 2)):
        rounds = [r for r in results if (r["model"], r["threads"]) == (model, threads)]
        if not rounds:
            continue
        measures = dict.fromkeys(m for r in rounds for m in r["peer"][0] if m not in ("model", "backend", "threads"))
        for measure in measures:
            ours, peer, (ratio, least, most) = summarise([r for r in rounds if measure in r["kvfold"]], measure)
            aim = GOALS.get(measure)
            sign = "<=" if measure in LOWER_IS_BETTER else ">="
            scale = 1e-6 if measure.endswith("bytes_after_decode") else 1
            name = measure.replace("_tokens_per_s", ", tokens/s").replace("peak_bytes", "peak MB").replace("_", " ")
            lines.append(f"| {model} | {threads} | {name} | {ours * scale:.1f} | {peer * scale:.1f} | "
                         f"{ratio:.2f} ({least:.2f} to {most:.2f}) | {f'{sign} {aim[column]:.2f}' if aim else ''} |")
        share = [number(r["kvfold"]["decode_128_tokens_per_s"]) * weights_read(model) / r["kvfold"]["read_gb_per_s"] / 1e9
                 for r in rounds if "decode_128_tokens_per_s" in r["kvfold"]]
        if share:
            lines.append(f"| {model} | {threads} | decode's share of the read bandwidth | {statistics.median(share):.2f} | | "
                         f"({min(share):.2f} to {max(share):.2f}) | >= {0.85 if threads == 1 else 0.75} |")
    return "\n".join(lines)


def weights_read(model):
    """Bytes of weights that one decoded token reads: all matrices, an untied embedding but for its one row."""
    return {"smol": 96.58e6, "qwen": 391.86e6}[model]


def machine():
    with open("/proc/cpuinfo") as info:
        cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform(), "commit": commit.stdout.strip()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvfold", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--out", default="build/bench-peer.json")
    parser.add_argument("--add", action="store_true")
    options = parser.parse_args()
    results = json.loads(pathlib.Path(options.out).read_text())["results"] if options.add else []
    for turn in range(options.rounds):
        for model in options.models:
            for threads in options.threads:
                print(f"round {turn + 1}/{options.rounds}: {model}, {threads} thread(s)", file=sys.stderr)
                results.append(one_round(options, model, threads))
    report = {"machine": machine(), "results": results}
    pathlib.Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    about = report["machine"]
    print(f"{about['cpu']}, {about['cores']} cores, commit {about['commit']}, in turn\n")
    print(table(results))


if __name__ == "__main__":
    main()
