#!/usr/bin/env python3
"""Fetches plotly.js, which draws the pages, into experiments/page/plotly.min.js, once.

It lies in the Python package plotly, which pip downloads; the version and both hashes are pinned here. Afterwards
nothing needs a network: pages embed the script. Exit 1: could not fetch.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "7.1.0"
WHEEL_SHA256 = "dbb7fa18afce40d0a8e80d1bf162eceb3faa0ce5a77fe741ad09a74cf78f53f3"
SCRIPT = "plotly/package_data/plotly.min.js"  # plotly.js 4.1.1, MIT licence
SCRIPT_SHA256 = "3b6e15d45dbb7fca5bd2094291e961ddc5472cd887009e6009a56dab668d721f"
TARGET = Path(__file__).resolve().parent / "plotly.min.js"


def is_right(content):
    return hashlib.sha256(content).hexdigest() == SCRIPT_SHA256


def fetch(folder):
    """The script out of the wheel that pip downloads to `folder`. Raises OSError with one line."""
    wanted = Path(folder, "requirements.txt")
    wanted.write_text(f"plotly=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "--require-hashes", "--dest", folder, "--requirement", wanted]
    pip = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if pip.returncode:
        lines = [line for line in (pip.stdout + pip.stderr).splitlines() if line.strip()] or ["no message"]
        raise OSError(f"pip could not download plotly=={VERSION}: {lines[-1].strip()}")
    wheel = next(Path(folder).glob("*.whl"))
    content = zipfile.ZipFile(wheel).read(SCRIPT)
    if not is_right(content):
        raise OSError(f"{wheel.name}: {SCRIPT} is not the pinned file")
    return content


def main():
    if TARGET.exists() and is_right(TARGET.read_bytes()):
        return 0
    print(f"page: fetching plotly=={VERSION} from PyPI (10 MB; MIT)", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory() as folder:
            content = fetch(folder)
        temporary = TARGET.with_name(TARGET.name + ".tmp")
        temporary.write_bytes(content)
        temporary.replace(TARGET)
    except (OSError, KeyError, StopIteration, zipfile.BadZipFile) as problem:
        print(f"page: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
