"""Plots as plain descriptions that report.js hands to plotly: {id, height, traces, layout, legend}.

A colour is the name of a CSS variable ("--c1"), so that light and dark are the page's; each series also has its own symbol
or dash, so that colour is never the only sign.
"""

from __future__ import annotations

import math

SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "cross"]
SIGNS = ["●", "■", "◆", "▲", "✕", "★", "▼", "✚"]
DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]
COLOURS = 7
ROW = 30  # px a row of a forest plot


def style(i: int) -> tuple[str, str, str]:
    """Colour, symbol and the symbol as text of the i-th series."""
    return f"--c{i % COLOURS + 1}", SYMBOLS[i % len(SYMBOLS)], SIGNS[i % len(SIGNS)]


def _legend(names: list[str]) -> list[dict]:
    return [{"name": name, "colour": style(i)[0], "sign": style(i)[2]} for i, name in enumerate(names)]


def forest(plot_id: str, rows: list[str], series: dict[str, list[dict | None]], title: str, zero: float = 0.0) -> dict:
    """One row a label, in each row one point with its interval a series. `series`: estimates in the order of rows."""
    count = len(series)
    traces = []
    for i, (name, estimates) in enumerate(series.items()):
        colour, symbol, _ = style(i)
        kept = [(row, e) for row, e in enumerate(estimates) if e is not None]
        if not kept:
            continue
        offset = (i - (count - 1) / 2) * 0.7 / max(count, 1)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [e["value"] for _, e in kept],
                "y": [row + offset for row, _ in kept],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [e["high"] - e["value"] for _, e in kept],
                    "arrayminus": [e["value"] - e["low"] for _, e in kept],
                    "color": colour,
                    "thickness": 1.6,
                    "width": 0,
                },
                "marker": {"color": colour, "symbol": symbol, "size": 8},
                "customdata": [[rows[row], e["low"], e["high"], e["n"]] for row, e in kept],
                "hovertemplate": "%{customdata[0]}<br>" + name + ": %{x:.3g} [%{customdata[1]:.3g}, %{customdata[2]:.3g}], n = %{customdata[3]}<extra></extra>",
            }
        )
    per_row = max(ROW, 11 * count)
    return {
        "id": plot_id,
        "height": 70 + per_row * len(rows),
        "traces": traces,
        "layout": {
            "xaxis": {"title": {"text": title}, "zeroline": False},
            "yaxis": {
                "tickvals": list(range(len(rows))),
                "ticktext": rows,
                "range": [len(rows) - 0.5, -0.5],
                "showgrid": False,
                "zeroline": False,
            },
            "shapes": [_line("y", zero)],
        },
        "legend": _legend(list(series)) if count > 1 else [],
    }


def _line(along: str, at: float) -> dict:
    ends = {"x0": at, "x1": at, "y0": 0, "y1": 1, "xref": "x", "yref": "paper"}
    if along == "x":
        ends = {"y0": at, "y1": at, "x0": 0, "x1": 1, "xref": "paper", "yref": "y"}
    return {"type": "line", **ends, "line": {"color": "--soft", "width": 1, "dash": "dot"}, "layer": "below"}


def curves(plot_id: str, series: dict[str, list[tuple[float, dict]]], x_title: str, y_title: str, log_x=False, levels=(0.0, 1.0)):
    """Lines with their intervals as bars. `series`: (x, estimate) pairs in order of x."""
    traces = []
    for i, (name, points) in enumerate(series.items()):
        colour, symbol, _ = style(i)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": [x for x, _ in points],
                "y": [e["value"] for _, e in points],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [e["high"] - e["value"] for _, e in points],
                    "arrayminus": [e["value"] - e["low"] for _, e in points],
                    "color": colour,
                    "thickness": 1.2,
                    "width": 0,
                },
                "line": {"color": colour, "width": 2, "dash": DASHES[i % len(DASHES)]},
                "marker": {"color": colour, "symbol": symbol, "size": 7},
                "customdata": [[e["low"], e["high"], e["n"]] for _, e in points],
                "hovertemplate": name + "<br>%{x:.3g}: %{y:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}], n = %{customdata[2]}<extra></extra>",
            }
        )
    return {
        "id": plot_id,
        "height": 320,
        "traces": traces,
        "layout": {
            "xaxis": {"title": {"text": x_title}, "zeroline": False, **({"type": "log", "dtick": 1} if log_x else {})},
            "yaxis": {"title": {"text": y_title}, "zeroline": False},
            "shapes": [_line("x", level) for level in levels],
        },
        "legend": _legend(list(series)),
    }


def heat(plot_id: str, z: list[list[float | None]], x: list, x_title: str, y_title: str, low=None, high=None, height=420) -> dict:
    """Rows of z from the bottom up. `low`, `high`: ends of the colour scale, None for those of the data."""
    known = [v for row in z for v in row if v is not None and math.isfinite(v)]
    return {
        "id": plot_id,
        "height": height,
        "traces": [
            {
                "type": "heatmap",
                "z": z,
                "x": x,
                "zmin": min(known) if low is None else low,
                "zmax": max(known) if high is None else high,
                "colorscale": "Cividis",
                "colorbar": {"thickness": 10, "len": 0.9, "outlinewidth": 0},
                "hovertemplate": f"{x_title} %{{x}}, {y_title} %{{y}}: %{{z:.3g}}<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": x_title}, "zeroline": False, "showgrid": False},
            "yaxis": {"title": {"text": y_title}, "zeroline": False, "showgrid": False},
        },
        "legend": [],
    }
