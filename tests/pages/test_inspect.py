"""The page of `kvfold inspect --html`, of caches of the real model: drawn, readable, interactive, and true to the file."""

import base64
import json
import math
import re
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

import check_page
from browser import Browser

ROOT = Path(__file__).resolve().parents[2]
KVFOLD = ROOT / "build/release/experiments/kvfold"
MODEL = "smollm2-135m-instruct"
QUERY = "Question: Where do you live?\nAnswer:"
PANELS = ["rows", "k-layer-row", "v-layer-row", "k-head-row", "v-head-row", "attention-layer-row", "attention-head-row",
          "k-spectra", "v-spectra", "rank", "lanes"]
SCREENSHOTS = ROOT / "build/pages"


def run(*arguments):
    return subprocess.run([KVFOLD, *arguments], check=True, capture_output=True, text=True).stdout


def page_data(path):
    text = re.search(r'<script type="application/json" id="data">\n(.*?)\n</script>', path.read_text(encoding="utf-8"), re.S)
    return json.loads(text[1])


def floats(text):
    content = base64.b64decode(text)
    return struct.unpack(f"<{len(content) // 4}f", content)


def row_norm(path, tensor, head, row):
    """Of a row in a cache file, read by nothing of kvfold's."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    entry = json.loads(content[8:8 + size])[tensor]
    _, rows, dim = entry["shape"]
    begin = 8 + size + entry["data_offsets"][0] + 2 * dim * (head * rows + row)
    return math.sqrt(sum(x * x for x in struct.unpack(f"<{dim}e", content[begin:begin + 2 * dim])))


class InspectPage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        cls.folder = tempfile.TemporaryDirectory()
        cls.caches = []
        for name, text in [("lyra", "Hello, my name is Lyra and I live in Seattle.\n"), ("nora", "My name is Nora.\nI live in <b>Oslo</b>.")]:
            cls.caches.append(Path(cls.folder.name, f"{name}.safetensors"))
            run("cache", "save", MODEL, "--text", text, "--out", cls.caches[-1])
        cls.one = Path(cls.folder.name, "inspect-one.html")
        cls.two = Path(cls.folder.name, "inspect-two.html")
        run("inspect", cls.caches[0], "--html", cls.one, "--query", QUERY)
        run("inspect", *cls.caches, "--html", cls.two, "--query", QUERY)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_one_cache_looks_right(self):
        self.assertEqual(check_page.check(self.one, PANELS, SCREENSHOTS), [])

    def test_two_caches_look_right(self):
        self.assertEqual(check_page.check(self.two, PANELS, SCREENSHOTS), [])
        with Browser() as browser:
            page = browser.open(self.two)
            self.assertEqual(page.evaluate("document.querySelectorAll('[data-panel=k-layer-row] .plot').length"), 3)

    def test_script_is_there_once(self):
        self.assertEqual(self.two.read_text(encoding="utf-8").count("plotly.js v"), 1)

    def test_numbers_are_those_of_the_file(self):
        for index, cache in enumerate(page_data(self.two)["caches"]):
            for part in "kv":
                norms = floats(cache[part]["norms"])
                for layer, head, row in [(0, 0, 0), (3, 1, 5), (cache["layers"] - 1, cache["kv_heads"] - 1, cache["rows"] - 1)]:
                    found = norms[(layer * cache["kv_heads"] + head) * cache["rows"] + row]
                    expected = row_norm(self.caches[index], f"layers.{layer}.{part}", head, row)
                    self.assertAlmostEqual(found / expected, 1, delta=1e-6)  # observed 6e-8: rounded to f32
            attention = cache["attention"]
            weights = floats(attention["weights"])
            for i in range(0, len(weights), attention["rows"]):
                self.assertAlmostEqual(sum(weights[i:i + attention["rows"]]), 1, delta=1e-5)

    def test_answers_to_the_hand(self):
        with Browser() as browser:
            page = browser.open(self.one)
            x, y = page.evaluate("""(() => {
              const plot = document.querySelector('[data-panel=k-layer-row] .plot');
              plot.scrollIntoView({block: 'center'});
              const cells = plot.querySelector('.hm').getBoundingClientRect();
              return [cells.left + cells.width * 5.5 / 14, cells.top + cells.height * 20.5 / 30];
            })()""")
            page.hover(x, y)
            shown = page.evaluate("document.querySelector('.hoverlayer').textContent")
            for text in ("Ly", "row 5, position 5", "from fed, row 5", "layer 20", "K norm"):
                self.assertIn(text, shown)
            page.click(x, y)  # chooses the row and the layer
            self.assertEqual(page.evaluate("[state.row, state.layer]"), [5, 20])
            self.assertEqual(page.evaluate("document.querySelector('.chip.chosen').textContent"), "·Ly")
            for key, value in [("scale", "norm"), ("query", 0), ("layer", 3)]:
                page.evaluate(f"set({{{key}: {json.dumps(value)}}})")
            page.settle()
            self.assertEqual(check_page.audit(page, PANELS), [])


if __name__ == "__main__":
    unittest.main()
