#!/usr/bin/env python3
"""Looks at an HTML page in headless Chromium, as a reader would: wide and narrow, light and dark.

    check_page.py PAGE --panels a,b,c [--screenshots FOLDER]

Complains of every console error or warning, exception and network request (a page must work offline); of panels
(elements with data-panel=NAME) that are missing, not expected, empty or over each other; of plots that are not drawn,
of text that lies over other text, is cut off, small or faint; and of a page that scrolls sideways. Exit 1 if any.
"""

import argparse
import sys
from pathlib import Path

from browser import Browser, BrowserError

AUDIT = (Path(__file__).resolve().parent / "audit.js").read_text(encoding="utf-8")
VIEWS = [(width, dark) for width in (1280, 400) for dark in (False, True)]


def audit(page, panels):
    """Complaints of the page as it is now."""
    return page.problems() + page.evaluate(f"{AUDIT.strip()}({list(panels)})")


def check(path, panels, screenshots=None):
    """Complaints of the page at `path` in every view, each with its view. `screenshots`: a folder for PNGs."""
    complaints = []
    with Browser() as browser:
        for width, dark in VIEWS:
            view = f"{width}-{'dark' if dark else 'light'}"
            page = browser.open(path, width, dark=dark)
            complaints += [f"{view}: {text}" for text in audit(page, panels)]
            if screenshots:
                page.screenshot(Path(screenshots, f"{Path(path).stem}-{view}.png"))
            page.close()
    return complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page")
    parser.add_argument("--panels", default="", help="names of the panels that must be there, with commas")
    parser.add_argument("--screenshots", help="a folder for pictures of each view")
    arguments = parser.parse_args()
    panels = [name for name in arguments.panels.split(",") if name]
    try:
        complaints = check(arguments.page, panels, arguments.screenshots)
    except BrowserError as problem:
        sys.exit(f"check_page: {problem}")
    for text in complaints:
        print(text)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
