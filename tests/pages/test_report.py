"""The report's page, made of synthetic runs: every section, and rating by keystroke inside it."""

import json
import subprocess
import tempfile
import unittest
from pathlib import Path

import check_page
from browser import Browser

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-report/bin/python"
ANALYSIS = ROOT / "experiments/python"
PANELS = ["answers", "cases", "verdicts", "effects", "modes", "sweep-position", "sweep-partial", "sweep-layers", "sweep-components",
          "norms", "signatures", "crossing", "insignificant", "limits", "rating", "method"]
MAKE = "import sys, synthetic; from pathlib import Path; synthetic.write_all(Path(sys.argv[1]), each=6)"

# Each is one expression that is to be true.
SORTS = """(() => {
  const table = document.querySelector('#verdicts .tables:last-of-type table');
  const n = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent.startsWith('broken'));
  const read = () => [...table.tBodies[0].rows].map((r) => Number(r.cells[n].dataset.sort));
  const button = table.tHead.rows[0].cells[n].querySelector('button');
  button.click(); const up = read(); button.click(); const down = read();
  const sorted = [...up].sort((a, b) => a - b);
  return up.length > 20 && up.join() === sorted.join() && down.join() === sorted.reverse().join() && new Set(up).size > 1;
})()"""
CHOOSES = """(() => {
  const shown = () => [...document.querySelectorAll('#cases [data-framing]')].filter((e) => !e.hidden).map((e) => e.dataset.framing).join();
  const before = shown();
  document.querySelector('.segments[data-group=framing] button[value=raw]').click();
  return before === 'qa' && shown() === 'raw' && document.querySelector('#cases').innerText.includes('ended at once');
})()"""
RATES = """(() => {
  document.querySelector('#rater').value = 'ann';
  document.querySelector('#rate-start').click();
  const press = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
  const first = document.querySelector('#rate-said').textContent;
  press('4'); press('s'); press('b'); press('b'); press('2'); press('9');
  return first;
})()"""


class Report(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        subprocess.run([PYTHON, "-c", MAKE, cls.folder.name], check=True, cwd=ANALYSIS)
        made = subprocess.run([PYTHON, ANALYSIS / "report.py", cls.folder.name], check=True, capture_output=True, text=True)
        cls.page = Path(made.stdout.strip())

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_nothing_is_wrong_with_it_at_any_width(self):
        self.assertEqual(check_page.check(self.page, PANELS), [])

    def test_a_phone_need_not_zoom_out(self):
        with Browser() as browser:
            page = browser.open(self.page, 400)
            self.assertEqual(page.evaluate("[innerWidth, document.scrollingElement.scrollWidth]"), [400, 400])
            page.close()

    def test_plotly_is_there_once(self):
        self.assertEqual(self.page.read_text(encoding="utf-8").count("plotly.js v"), 1)

    def test_it_answers_to_the_reader(self):
        with Browser() as browser:
            page = browser.open(self.page, 1280)
            self.assertTrue(page.evaluate(SORTS))
            self.assertTrue(page.evaluate(CHOOSES))
            first = page.evaluate(RATES)
            exported = json.loads(page.evaluate("exported()"))
            items = page.evaluate("DATA.rating.items")
            self.assertEqual(exported["rater"], "ann")
            rated = [items[item]["answer"] for item in exported["ratings"]]
            self.assertEqual((rated, list(exported["ratings"].values())), ([first], [2]))
            self.assertEqual(page.problems(), [])
            page.close()


if __name__ == "__main__":
    unittest.main()
