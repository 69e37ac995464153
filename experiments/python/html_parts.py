"""Small pieces of the report's HTML."""

from __future__ import annotations

import math
import re
from html import escape


def number(value: float | None, digits: int = 3) -> str:
    """A number as a table shows it; nothing where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, int):
        return str(value)
    if abs(value) < 1e-9:
        return "0"
    return f"{value:.{digits}g}" if abs(value) < 1e4 else f"{value:.1e}"


def estimate(e: dict | None) -> str:
    if e is None:
        return ""
    return f"{e['value']:.2f} <span class=note>[{e['low']:.2f}, {e['high']:.2f}]</span>"


def p_value(p: float | None) -> str:
    return "" if p is None else "&lt;0.001" if p < 0.001 else f"{p:.3f}"


def chip(verdict: str | None) -> str:
    return f'<span class="chip {verdict}">{verdict}</span>' if verdict else ""


def chips(entry: dict) -> str:
    """The verdict, and where the second reading differs, that too."""
    second = entry["verdict_against_text"]
    more = "" if second == entry["verdict"] else f" <span class=count><span class=note>against text:</span> {chip(second)}</span>"
    return chip(entry["verdict"]) + more


def highlighted(text: str, words: list[str]) -> str:
    """The text, escaped, with each whole word of `words` marked."""
    words = sorted({w for w in words if w}, key=len, reverse=True)
    if not words:
        return escape(text)
    pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(re.escape(w) for w in words)})(?![^\W_])", re.IGNORECASE)
    out, at = [], 0
    for found in pattern.finditer(text):
        out += [escape(text[at : found.start()]), f"<mark>{escape(found[0])}</mark>"]
        at = found.end()
    return "".join(out) + escape(text[at:])


def table(columns: list[tuple[str, str]], rows: list[list], label: str) -> str:
    """A sortable table. `columns`: (title, "text" | "wide" | "number"); a cell is HTML, or (HTML, what it sorts by)."""
    kind = {"text": "text", "wide": "text wide", "number": ""}
    head = "".join(f'<th class="{kind[k].split()[0] if k != "number" else ""}"><button>{escape(t)}</button></th>' for t, k in columns)
    body = []
    for row in rows:
        cells = []
        for (_, k), cell in zip(columns, row):
            shown, key = cell if isinstance(cell, tuple) else (cell, None)
            sort = "" if key is None else f' data-sort="{escape(str(key))}"'
            cells.append(f'<td class="{kind[k]}"{sort}>{shown}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scrolls tables" tabindex=0 role=region aria-label="{escape(label)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def sortable(shown: str, value) -> tuple[str, str]:
    return shown, "" if value is None else value


def panel(name: str, title: str, body: str) -> str:
    return f'<section class="panel" id="{name}" data-panel="{name}"><h2>{escape(title)}</h2>{body}</section>'


def segments(group: str, values: list[str], chosen: str, label: str) -> str:
    buttons = "".join(
        f'<button type=button value="{escape(v)}" aria-pressed="{str(v == chosen).lower()}">{escape(v)}</button>' for v in values
    )
    return f'<span class=segments data-group="{group}" role=group aria-label="{escape(label)}">{buttons}</span>'


def legend(entries: list[dict]) -> str:
    if not entries:
        return ""
    items = "".join(
        f'<li><span class=sign style="color:var({e["colour"]})">{e["sign"]}</span>{escape(e["name"])}</li>' for e in entries
    )
    return f"<ul class=legend>{items}</ul>"


def figure(description: dict, title: str = "") -> str:
    head = f"<h4>{escape(title)}</h4>" if title else ""
    height = description["height"]
    return (
        f"<div class=figure>{head}{legend(description['legend'])}"
        f'<div class=plot id="{description["id"]}" style="height:{height}px"></div></div>'
    )


def several(items, key) -> list:
    return list(dict.fromkeys(item[key] for item in items))
