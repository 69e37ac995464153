"""Headless Chromium, driven over its debugging pipe (Chrome DevTools Protocol) with the standard library alone."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

TIMEOUT = 60  # seconds, for any one answer


class BrowserError(Exception):
    """Its text is one line, ready to be shown."""


def find_chromium():
    for name in [os.environ.get("CHROMIUM", ""), "chromium", "google-chrome", "chromium-browser"]:
        if path := name and shutil.which(name):
            return path
    raise BrowserError("no Chromium: install the package 'chromium' (.ci/install page), or set CHROMIUM to a path")


class Browser:
    """One Chromium process. Use as a context manager."""

    def __enter__(self):
        self.profile = tempfile.TemporaryDirectory(prefix="kvfold-page-")
        from_browser, browser_writes = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in os.pipe())
        browser_reads, to_browser = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in os.pipe())
        self.input, self.output = from_browser, to_browser

        def place():  # Chromium reads commands from descriptor 3 and answers on 4
            os.dup2(browser_reads, 3)
            os.dup2(browser_writes, 4)

        command = [find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                   "--disable-background-networking", "--hide-scrollbars", "--remote-debugging-pipe",
                   f"--user-data-dir={self.profile.name}"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, preexec_fn=place, pass_fds=(3, 4),
                                        start_new_session=True)
        os.close(browser_reads)
        os.close(browser_writes)
        self.buffer, self.number, self.events = b"", 0, []
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close")
            self.process.wait(timeout=10)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.input)
        os.close(self.output)
        self.profile.cleanup()

    def call(self, method, session=None, **parameters):
        """Sends a command and returns its result; events that come in between are kept in self.events."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while True:
            answer = self.receive(deadline, method)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error'].get('message')}")
                return answer["result"]

    def receive(self, deadline, what):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.input], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise BrowserError(f"Chromium did not answer within {TIMEOUT} s: {what}")
            block = os.read(self.input, 1 << 20)
            if not block:
                raise BrowserError(f"Chromium ended: {what}")
            self.buffer += block
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path, width=1280, height=900, dark=False):
        """The page at `path`, loaded and drawn, in a tab of its own."""
        return Page(self, Path(path).resolve().as_uri(), width, height, dark)


class Page:
    def __init__(self, browser, url, width, height, dark):
        self.browser, self.url = browser, url
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.events.clear()
        self.call("Page.navigate", url=url)
        self.settle()

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)

    def evaluate(self, script):
        """The value of a JavaScript expression; a promise is awaited."""
        out = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in out:
            details = out["exceptionDetails"]
            raise BrowserError(f"{details.get('exception', {}).get('description', details['text'])} in: {script[:80]}")
        return out["result"].get("value")

    def settle(self):
        """Waits until the page is loaded and its number of elements stands still for 0.3 s."""
        deadline = time.monotonic() + TIMEOUT
        last, since = None, time.monotonic()
        while time.monotonic() - since < 0.3:
            if time.monotonic() > deadline:
                raise BrowserError(f"{self.url}: still drawing after {TIMEOUT} s")
            # A browser that starts slowly shows its empty page first, which is complete at once.
            now = self.evaluate("(location.href === 'about:blank' ? 'blank ' : '') + document.readyState"
                                " + document.querySelectorAll('*').length")
            if now != last or not now.startswith("complete"):
                last, since = now, time.monotonic()
            time.sleep(0.05)

    def problems(self):
        """What the browser complained of: console errors and warnings, exceptions, requests beyond the file."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            what = event["params"]
            match event["method"]:
                case "Runtime.consoleAPICalled" if what["type"] in ("error", "warning", "assert"):
                    said = " ".join(str(a.get("value", a.get("description"))) for a in what["args"])
                    found.append(f"console {what['type']}: {said}")
                case "Runtime.exceptionThrown":
                    details = what["exceptionDetails"]
                    found.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
                case "Log.entryAdded" if what["entry"]["level"] in ("error", "warning"):
                    found.append(f"log {what['entry']['level']}: {what['entry']['text']}")
                case "Network.requestWillBeSent":
                    url = what["request"]["url"]
                    if url != self.url and not url.startswith(("data:", "blob:")):
                        found.append(f"request: {url}")
        return found

    def hover(self, x, y):
        """Moves the mouse to a point of the viewport, as a hand would: from beside it."""
        for dx in (8, 3, 0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x - dx, y=y)
            time.sleep(0.05)
        time.sleep(0.2)

    def click(self, x, y):
        self.hover(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        time.sleep(0.2)

    def screenshot(self, path):
        """A PNG of the whole page, however long."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(image["data"]))
