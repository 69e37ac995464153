"""The report of one or more runs: python report.py RUN... [--out FOLDER]. Writes report.html, summary.json and CSV files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import page
import run_data
import summary


def make(arguments) -> Path:
    folders = run_data.find_runs(arguments.runs)
    if len(arguments.runs) > 1 and arguments.out is None:
        raise run_data.BadRun("several runs: --out names the folder for their report")
    out = arguments.out or arguments.runs[0]
    script = page.SHARED / "plotly.min.js"
    if not script.exists():
        raise run_data.BadRun(f"{script}: not there; `make page-script` fetches it")
    numbers, lines = summary.summarise(folders, [out] if out not in folders else [])
    with run_data.reading(arguments.runs[0]):
        html, _ = page.build(numbers, lines, script.read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    run_data.write_atomically(out / "summary.json", json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    summary.write_tables(out, numbers, lines)
    run_data.write_atomically(out / "report.html", html)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or a folder of runs")
    parser.add_argument("--out", type=Path, help="where the report goes (default: the run's own folder)")
    arguments = parser.parse_args()
    try:
        out = make(arguments)
    except (run_data.BadRun, OSError) as error:
        print(run_data.one_line(f"report: {error}"), file=sys.stderr)
        return 2
    print(out / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
