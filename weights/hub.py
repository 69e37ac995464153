"""Files of the Hugging Face hub, one by one: resumed, verified, and pinned where models.json does not know their hash.

A download goes to FILE.part and takes its name when size and SHA-256 are right. What they are compared with is, in this
order: models.json; the pin of an earlier fetch (cache/pins.json); what the hub itself says of its large files. A file of
which nothing was known is pinned by its first fetch: later ones must be the same.
"""

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte


class HubError(Exception):
    """Its text is one line, ready to be shown."""


def endpoint():
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def address(model, file):
    return f"{endpoint()}/{model.repository}/resolve/{model.revision}/{file.file}"


def read_pins(path):
    try:
        pins = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise HubError(f"{path}: not JSON; remove it to pin the files anew") from None
    if not isinstance(pins, dict) or not all(isinstance(pin, dict) for pin in pins.values()):
        raise HubError(f"{path}: expected an object of objects; remove it to pin the files anew")
    return pins


def write_pins(path, pins):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(pins, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def expected(model, file, pins):
    """Size and SHA-256 that the file must have; None where unknown."""
    pin = pins.get(f"{model.name}/{file.file}", {})
    return file.size or pin.get("size"), file.sha256 or pin.get("sha256")


def open_url(url, offset):
    request = urllib.request.Request(url, headers={"User-Agent": "kvfold"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def unreachable(model, file, target, reason):
    return HubError(f"{model.name}: {endpoint()} cannot be reached ({reason}); what has come so far is kept. Without the "
                    f"hub, get {address(model, file)} by another way and put it at {target}")


def digest_of(path, digest):
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)


def receive(model, file, target, part, size, progress):
    """Appends what is missing to `part`, and of what is known to be `size` bytes long no more than shows that it is not.
    Returns what the hub says of the file's hash, or None."""
    most = size or float("inf")
    offset = part.stat().st_size if part.exists() else 0
    try:
        with open_url(address(model, file), offset) as answer:
            if offset and answer.status != 206:  # the server sends the whole
                offset = 0
            tag = (answer.headers.get("X-Linked-Etag") or "").strip('"')
            length = answer.headers.get("Content-Length")
            total = offset + int(length) if length else None
            bar = progress(f"{model.name}/{file.file}", total or file.size or 0)
            try:
                with open(part, "r+b" if offset else "wb") as output:
                    output.seek(offset)
                    while output.tell() <= most and (block := answer.read(CHUNK)):
                        output.write(block)
                        bar.update(output.tell())
                    output.truncate()
                    output.flush()
                    os.fsync(output.fileno())
                    if total is not None and output.tell() < min(total, most):
                        raise unreachable(model, file, target, f"{output.tell()} of {total} bytes came")
            finally:
                bar.close()
            return tag if len(tag) == 64 else None
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return None
        if error.code in (401, 403, 404):
            raise HubError(f"{model.name}: {address(model, file)}: HTTP {error.code} ({error.reason}); the file has gone, "
                           f"or may not be had without signing in") from None
        raise unreachable(model, file, target, f"HTTP {error.code} {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:  # no answer, or none of a hub
        raise unreachable(model, file, target, getattr(error, "reason", error)) from None


def fetch_file(model, file, target, pins, progress, say):
    """Gets one file and returns its size and hash."""
    part = target.with_name(target.name + ".part")
    size, sha256 = expected(model, file, pins)
    said = None
    if not (size and part.exists() and part.stat().st_size == size):
        said = receive(model, file, target, part, size, progress)
    found_size, digest = part.stat().st_size, hashlib.sha256()
    digest_of(part, digest)
    found = digest.hexdigest()
    for wanted_size, wanted, who in ((size, sha256, "expected"), (None, said, "the hub promised")):
        if (wanted_size and found_size != wanted_size) or (wanted and found != wanted):
            part.unlink()
            raise HubError(f"{model.name}/{file.file}: found {found_size} bytes with SHA-256 {found}, {who} "
                           f"{wanted_size or 'any'} bytes with SHA-256 {wanted or 'any'}; nothing was kept")
    part.replace(target)
    if not sha256:
        say(f"{model.name}/{file.file}: pinned {found_size} bytes with SHA-256 {found}"
            f"{'' if said else ', which nothing could be compared with'}")
    return found_size, found


def fetch(model, pins_path: Path, progress, say):
    """Makes every file of the model that is not there."""
    say(f"fetching {model.name} from {endpoint()}/{model.repository} ({model.licence})")
    for file in model.files:
        target = model.file_path(file)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        pins = read_pins(pins_path)
        size, sha256 = fetch_file(model, file, target, pins, progress, say)
        pins[f"{model.name}/{file.file}"] = {"size": size, "sha256": sha256}
        write_pins(pins_path, pins)


def verified(model, pins_path, say):
    """True when all files are there and are the pinned ones; one that has changed is removed."""
    pins = read_pins(pins_path)
    good = True
    for file in model.files:
        target = model.file_path(file)
        if not target.exists():
            good = False
            continue
        size, sha256 = expected(model, file, pins)
        digest = hashlib.sha256()
        digest_of(target, digest)
        if sha256 is None:  # put there by hand
            say(f"{target}: there already; pinned with SHA-256 {digest.hexdigest()}")
            pins[f"{model.name}/{file.file}"] = {"size": target.stat().st_size, "sha256": digest.hexdigest()}
            write_pins(pins_path, pins)
        elif target.stat().st_size != (size or target.stat().st_size) or digest.hexdigest() != sha256:
            say(f"{target} has changed: SHA-256 {digest.hexdigest()}, expected {sha256}; fetching it again")
            target.unlink()
            good = False
    return good
