"""Blinded rating in the terminal: python rate.py RUN... [--rater NAME]. One keystroke an answer; stop and go on at will."""

from __future__ import annotations

import argparse
import getpass
import sys
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

import rating
import run_data

HELP = "1-5 rate   s skip   b back   q stop (what is rated is kept)"


@contextmanager
def keys():
    """A function that gives the next key: at once from a terminal, the next character of piped input otherwise."""

    def piped() -> str:
        while (key := sys.stdin.read(1)) and key.isspace():
            pass
        return key or "q"

    if not sys.stdin.isatty():
        yield piped
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield lambda: sys.stdin.read(1) or "q"
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def printable(text: str) -> str:
    """The answer as it is, but no control characters that would move the cursor."""
    return "".join(c if c == "\n" or c.isprintable() else "·" for c in text)


def rate(lines: pd.DataFrame, path: Path, rater: str, say=print) -> None:
    """Asks for what is not rated yet; each mark is on disk before the next answer is shown."""
    items = rating.items(lines)
    ratings = rating.read(path)[1] if path.exists() else {}
    queue = [i for i in rating.order(items, rater) if i not in ratings]
    say(f"{len(items)} answers, {len(items) - len(queue)} rated by {rater}.   {HELP}")
    say("   ".join(f"{mark} {meaning}" for mark, meaning in rating.SCALE.items()))
    at = 0
    with keys() as next_key:
        while at < len(queue):
            item = items[queue[at]]
            say(f"\n--- {at + 1} of {len(queue)} ---\n{printable(item['target'])}\n>{printable(item['answer'])}\n")
            key = next_key()
            if key in "12345":
                ratings[queue[at]] = int(key)
                rating.write(path, rater, ratings)
                say(f"    {key}")
                at += 1
            elif key == "s":
                at += 1
            elif key == "b":
                at = max(0, at - 1)
            elif key == "q":
                break
            else:
                say(HELP)
    say(f"\n{len(set(items) & set(ratings))} of {len(items)} rated; {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or a folder of runs")
    parser.add_argument("--rater", default=getpass.getuser(), help="whose marks these are (default: your user name)")
    arguments = parser.parse_args()
    try:
        rater = rating.check_rater(arguments.rater)
        folders = [f for f in run_data.find_runs(arguments.runs) if run_data.read_manifest(f)["phase"] in run_data.PHASES]
        if not folders:
            raise run_data.BadRun(f"{arguments.runs[0]}: no run of a phase, so no answers to rate")
        lines = pd.concat([run_data.read_run(f, ("plan",)).lines for f in folders], ignore_index=True)
        with run_data.reading(arguments.runs[0]):
            rating.items(lines)
        rate(lines, arguments.runs[0] / "ratings" / f"{rater}.json", rater)
    except (run_data.BadRun, OSError) as error:
        print(run_data.one_line(f"rate: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
