"""The verdict rule a second time, from the text of it: plain Python over the lines' dictionaries, no pandas, resampling
of its own. Slow, and shares no code with verdicts.py and thresholds.py."""

import random
import statistics
from collections import defaultdict

REFERENCES = {"baseline", "same-cache", "mismatched"}


def percentile(values, q):
    values = sorted(values)
    at = (len(values) - 1) * q / 100
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def value(line, name):
    return line["banned_" + name] if line["stall"] else line[name]


def loops(line):
    length = len(line["banned_output_ids"] or []) if line["stall"] else line["output_tokens"]
    repeat = value(line, "longest_repeat")
    return repeat is not None and repeat >= 8 and repeat >= length / 2


def ratio_interval(pairs, draws, rng):
    """Percentile bootstrap of a ratio of sums."""
    ratios = []
    for _ in range(draws):
        picked = [pairs[rng.randrange(len(pairs))] for _ in pairs]
        ratios.append(sum(p[0] for p in picked) / sum(p[1] for p in picked))
    return percentile(ratios, 2.5), percentile(ratios, 97.5)


def sign_flip(differences, draws, rng):
    observed = sum(differences)
    reached = sum(
        sum(d if rng.random() < 0.5 else -d for d in differences) >= observed - 1e-9 for _ in range(draws)
    )
    return (reached + 1) / (draws + 1)


def verdicts(lines, draws=2000, seed=1):
    """{(family, framing, condition): verdict} of the test split of one phase without modes."""
    rng = random.Random(seed)
    at = {(line["trial"], line["framing"], line["condition"]): line for line in lines}
    text_tokens = defaultdict(lambda: 10**9)
    for line in lines:
        if line["condition"] == "transfer":
            text_tokens[line["trial"]] = min(text_tokens[line["trial"]], line["source_tokens"])

    def coverage(line):
        run = value(line, "copy_run")
        return None if run is None else min(1.0, run / text_tokens[line["trial"]])

    limits = {}
    for line in lines:
        if line["set"] != "calibration":
            continue
        limit = limits.setdefault((line["family"], line["framing"]), {"ppl": [], "kl": [], "copy": []})
        if line["condition"] == "baseline":
            limit["ppl"].append(value(line, "perplexity_baseline"))
            limit["copy"].append(coverage(line))
        if line["condition"] == "filler":
            limit["kl"].append(line["kl_baseline"])
    for limit in limits.values():
        limit["ppl"] = percentile([v for v in limit["ppl"] if v is not None], 99)
        limit["kl"] = percentile(limit["kl"], 95)
        limit["copy"] = max(0.5, percentile([v for v in limit["copy"] if v is not None], 99))

    cells = defaultdict(list)
    for line in lines:
        if line["set"] == "test":
            cells[line["family"], line["framing"], line["condition"]].append(line)
    p_values = {}
    for key, cell in cells.items():
        if key[2] not in REFERENCES:
            other = [at[line["trial"], line["framing"], "mismatched"]["reference_uplift"] for line in cell]
            p_values[key] = sign_flip([c["reference_uplift"] - o for c, o in zip(cell, other)], draws, rng)
    holm, running = {}, 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, p * (len(p_values) - rank)))
        holm[key] = running

    def moves(condition, cell):
        pairs = []
        for line in cell:
            base, text = (at[line["trial"], line["framing"], name]["ld"] for name in ("baseline", "text"))
            pairs.append((at[line["trial"], line["framing"], condition]["ld"] - base, text - base))
        return pairs

    found = {}
    for key, cell in cells.items():
        if key in holm:
            found[key] = verdict(cell, key, limits[key[:2]], holm[key], moves, coverage, at, draws, rng)
    return found


def verdict(cell, key, limit, p, moves, coverage, at, draws, rng):
    broken = copies = 0
    for line in cell:
        baseline = at[line["trial"], line["framing"], "baseline"]
        surprise = value(line, "perplexity_baseline")
        broken += bool(
            (surprise is not None and surprise > limit["ppl"])
            or (loops(line) and not loops(baseline))
            or (line["stall"] and not baseline["stall"])
        )
        part = coverage(line)
        copies += part is not None and part >= limit["copy"] and value(line, "copy_run") >= line["reference_copy_run"] + 2
    if broken > len(cell) / 2:
        return "BROKEN"
    if copies > len(cell) / 2:
        return "COPY"
    low, _ = ratio_interval(moves(key[2], cell), draws, rng)
    _, high = ratio_interval(moves("mismatched", cell), draws, rng)
    if p < 0.05 and low > high:
        return "TRANSFER"
    return "INERT" if statistics.median(line["kl_baseline"] for line in cell) <= limit["kl"] else "SHIFTED"
