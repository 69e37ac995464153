"""The page check itself: it passes a good page and sees each thing that it is there to see."""

import tempfile
import unittest
from pathlib import Path

import check_page
from browser import Browser

ROOT = Path(__file__).resolve().parents[2]
PLOTLY = (ROOT / "experiments/page/plotly.min.js").read_text(encoding="utf-8")
DRAW = "Plotly.newPlot('d', [{z: [[1, 2], [3, 4]], type: 'heatmap'}], {height: 300, font: {color: '#333'}});"
GOOD = f"""<main><section data-panel="one"><h2>One</h2><div class="plot" id="d"></div></section>
<section data-panel="two"><h2>Two</h2><p>Words.</p></section></main><script>{DRAW}</script>"""

# What is done to the good page, and what must then be said.
BROKEN = [
    (lambda s: s.replace('data-panel="two"', 'data-panel="other"'), ["panel two: found 0", "panel other: not expected"]),
    (lambda s: s.replace("<h2>Two</h2>", ""), ["panel two: no heading"]),
    (lambda s: s.replace('data-panel="two"', 'data-panel="two" style="display:none"'), ["panel two: not visible"]),
    (lambda s: s.replace(DRAW, ""), ["panel one: a plot is not drawn"]),
    (lambda s: s.replace("[[1, 2], [3, 4]]", "[[null, null], [null, null]]"), ["panel one: a plot is not drawn"]),
    (lambda s: s.replace("type: 'heatmap'}", "type: 'heatmap'}, {y: [null, null], name: 'empty'}"), ["trace 'empty' has no data"]),
    (lambda s: s.replace('data-panel="two"', 'data-panel="two" style="margin-top:-100px;width:300px"'),
     ["panel one lies over panel two"]),
    (lambda s: s + "<script>console.error('bad')</script>", ["console error: bad"]),
    (lambda s: s + "<script>nothing.there()</script>", ["exception: ReferenceError"]),
    (lambda s: s + '<img src="http://localhost:9/x.png" alt="">', ["request: http://localhost:9/x.png"]),
    (lambda s: s + '<div style="width:3000px">wide</div>', ["the page is 3"]),
    (lambda s: s.replace("<p>", '<p style="color:#bbb">'), ['text "Words." has a contrast of']),
    (lambda s: s.replace("<p>", '<p style="font-size:7px">'), ['text "Words." is 7px high']),
    (lambda s: s.replace("font: {", "annotations: [{x: 0.5, y: 0.5, text: 'first'}, {x: 0.5, y: 0.5, text: 'second'}], font: {"),
     ['text "first" lies over "second"']),
    (lambda s: s.replace("font: {", "margin: {l: 2}, yaxis: {automargin: false, title: {text: 'long'}}, font: {"), ["is cut off by its plot"]),
]


class CheckPage(unittest.TestCase):
    def test_sees_what_is_wrong(self):
        with tempfile.TemporaryDirectory() as folder, Browser() as browser:
            path = Path(folder, "page.html")

            def complaints(body):
                path.write_text(f"<!doctype html><meta charset=utf-8><script>{PLOTLY}</script>{body}", encoding="utf-8")
                page = browser.open(path)
                found = check_page.audit(page, ["one", "two"])
                page.close()
                return found

            self.assertEqual(complaints(GOOD), [])
            for damage, expected in BROKEN:
                self.assertNotEqual(damage(GOOD), GOOD)
                found = complaints(damage(GOOD))
                for text in expected:
                    self.assertTrue(any(text in c for c in found), f"expected '{text}', found {found}")


if __name__ == "__main__":
    unittest.main()
