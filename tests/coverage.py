#!/usr/bin/env python3
"""Which lines and branches the tests run, from what Clang's instrumentation counted (make coverage).

    tests/coverage.py BUILD FOLDER ... --tests NAME ...   of the sources in each FOLDER, after the tests of BUILD,
                                                          build/coverage, that are named have run

Prints a table for each folder, and writes what no test ran to BUILD/uncovered.txt, a line each.

A branch is one outcome of one condition that stands in the source: of an if, a loop, ?:, && or ||, a case, or of the if that
KVFOLD_RETURN_IF_ERROR and KVFOLD_ASSIGN_OR_RETURN write. What is instantiated more than once counts once. The outcomes of
KVFOLD_CHECK are not counted: no input can break an invariant. Threads count without waiting for one another, so that a count
may be too low.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def export(build, folders, tests):
    """The report of llvm-cov over the tests that left counts."""
    counts = sorted(map(str, (build / "counts").glob("*.profraw")))
    if not counts:
        sys.exit(f"coverage: no counts in {build}/counts; the tests write them there")
    profile = build / "counts/all.profdata"
    subprocess.run(["llvm-profdata", "merge", "-sparse", "-o", profile, *counts], check=True)
    programs = [build / "tests" / name for name in tests]
    objects = [word for path in programs[1:] for word in ("-object", path)]
    ran = subprocess.run(["llvm-cov", "export", "-skip-functions", f"-instr-profile={profile}", programs[0], *objects,
                          *(ROOT / folder for folder in folders)], check=True, stdout=subprocess.PIPE)
    return json.loads(ran.stdout)["data"][0]["files"]


def branches_of(file, lines):
    """Counts by outcome: {(line, column, position within a macro, condition, outcome): times}."""
    times = defaultdict(int)

    def add(site, branch, condition):
        for outcome, count in (("true", branch[4]), ("false", branch[5])):
            # What is counted as a difference comes out below zero where a thread's count was lost.
            times[site, tuple(branch[:4]), condition, outcome] += count if count < 1 << 63 else 0

    for branch in file["branches"]:
        line, column, end_line, end_column = branch[:4]
        text = lines[line - 1][column - 1:end_column - 1 if line == end_line else None].strip()
        add((line, column), branch, text)
    for expansion in file["expansions"]:
        line, column = expansion["source_region"][:2]
        text = lines[line - 1][column - 1:].strip()
        if text.startswith("KVFOLD_CHECK"):
            continue
        for branch in expansion["branches"]:
            add((line, column), branch, text)
    return times


def share(part, whole):
    return f"{100 * part / whole:5.1f}%" if whole else "     -"


def report(folder, files, uncovered):
    total = [0, 0, 0, 0]
    rows = []
    for file in files:
        path = Path(file["filename"]).resolve().relative_to(ROOT)
        if not path.is_relative_to(folder):
            continue
        times = branches_of(file, (ROOT / path).read_text(encoding="utf-8").splitlines())
        ran = sum(count > 0 for count in times.values())
        lines = file["summary"]["lines"]
        row = [lines["covered"], lines["count"], ran, len(times)]
        rows.append((ran / len(times) if times else 1, path, row))
        total = [a + b for a, b in zip(total, row)]
        for (site, _, condition, outcome), count in sorted(times.items()):
            if count == 0:
                uncovered.append(f"{path}:{site[0]}: never {outcome}: {condition}")
    print(f"{folder}: lines {share(*total[:2])}, branches {share(*total[2:])} ({total[2]} of {total[3]})")
    for _, path, row in sorted(rows):
        print(f"  {str(path):<44} lines {share(*row[:2])}  branches {share(*row[2:])} ({row[2]} of {row[3]})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--tests", nargs="+", metavar="NAME", required=True)
    options = parser.parse_args()
    files = export(options.build, options.folders, options.tests)
    uncovered = []
    for folder in options.folders:
        report(folder, files, uncovered)
    (options.build / "uncovered.txt").write_text("\n".join(uncovered) + "\n", encoding="utf-8")
    print(f"what no test ran, line by line: {options.build / 'uncovered.txt'}")


if __name__ == "__main__":
    main()
