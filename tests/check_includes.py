#!/usr/bin/env python3
"""Checks that includes point one way, experiments -> loaders -> engine -> kernels, and that no folder is new.

    tests/check_includes.py              checks this checkout; exit 1 and a line file:line for each violation
    tests/check_includes.py --self-test  checks that planted violations are found

tests/ and bench/ may include anything; nothing includes them.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Each folder may include itself and those before it.
LAYERS = ["kernels", "engine", "loaders", "experiments"]
OUTSIDE = ["tests", "bench"]
FOLDERS = {*LAYERS, *OUTSIDE, "weights", ".ci"}
SUFFIXES = {".h", ".hpp", ".cpp", ".cc", ".inc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include(?:_next)?\s*(?:"([^"]+)"|<([^>]+)>)')


def folder_of_include(root, file, name, quoted):
    """The folder of ours that an include reaches, or None. As the compiler does it: first beside the file."""
    beside = (file.parent / name).resolve()
    if quoted and beside.is_file() and beside.is_relative_to(root):
        return beside.relative_to(root).parts[0]
    first = Path(name).parts[0]
    return first if first in LAYERS + OUTSIDE else None


def include_violations(root):
    root = root.resolve()
    for rank, layer in enumerate(LAYERS):
        allowed = LAYERS[:rank + 1]
        for file in sorted((root / layer).rglob("*")):
            if file.suffix not in SUFFIXES:
                continue
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                name = match[1] or match[2]
                reached = folder_of_include(root, file, name, quoted=match[1] is not None)
                if reached is not None and reached not in allowed:
                    yield (f"{file.relative_to(root)}:{number}: includes {name}; "
                           f"{layer}/ may include only {', '.join(allowed)}")


def top_level_folders(root):
    """Those of tracked files and of files that would be, so that build outputs do not count."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, text=True, check=True).stdout
    return {path.split("/")[0] for path in listed.split("\0") if "/" in path}


def folder_violations(folders):
    for folder in sorted(folders - FOLDERS):
        yield f"{folder}/:1: not a folder of this project, which are {', '.join(sorted(FOLDERS))}"


def self_test():
    cases = [  # file, its text, line of the violation or None
        ("kernels/a.cpp", '#include "kernels/b.h"\n#include <vector>\n', None),
        ("kernels/a.cpp", '// first\n#include "engine/a.h"\n', 2),
        ("kernels/cpu/a.cpp", '#include "../../engine/a.h"\n', 1),
        ("kernels/a.cu", '  #  include <engine/a.h>\n', 1),
        ("engine/kv/a.h", '#include "kernels/b.h"\n#include "../a.h"\n', None),
        ("engine/kv/a.h", '#include "kernels/b.h"\n\n#include "loaders/a.h"\n', 3),
        ("engine/b.h", '#include "tests/a.h"\n', 1),
        ("loaders/a.cpp", '#include "experiments/a.h"\n', 1),
        ("experiments/a.cpp", '#include "loaders/a.h"\n#include "engine/a.h"\n#include "kernels/a.h"\n', None),
        ("tests/a.cpp", '#include "experiments/a.h"\n', None),
    ]
    failures = []
    for name, text, line in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for path, content in (("engine/a.h", ""), (name, text)):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(content, encoding="utf-8")
            found = [violation.split(": ")[0] for violation in include_violations(root)]
        expected = [] if line is None else [f"{name}:{line}"]
        if found != expected:
            failures.append(f"self-test: {name} with {text!r}: found {found}, expected {expected}")
    if list(folder_violations({"kernels", ".ci"})) or len(list(folder_violations({"kernels", "src"}))) != 1:
        failures.append("self-test: a new folder is not told from the known ones")
    return failures


def main():
    if sys.argv[1:] not in ([], ["--self-test"]):
        print("usage: tests/check_includes.py [--self-test]", file=sys.stderr)
        return 2
    root = Path(__file__).resolve().parents[1]
    if sys.argv[1:]:
        violations = self_test()
    else:
        violations = [*include_violations(root), *folder_violations(top_level_folders(root))]
    for violation in violations:
        print(violation, file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
