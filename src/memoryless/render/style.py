"""One colour per meaning, the same in terminal tables, matplotlib pictures and pages.

Told apart with any colour vision (CIELAB distances of ten and more, https://doi.org/10.1109/TVCG.2009.113), with a contrast to
their paper that text needs. Blue and vermilion mean the direction of an effect, and nothing else.
"""

from typing import Any, NamedTuple

COLOUR = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "soft": "#57606a",
    "axis": "#8a939d",
    "grid": "#e4e7eb",
    "line": "#d5dae0",
    "selected": "#eef1f4",
    "regularizes": "#0063a6",
    "anti-regularizes": "#c04a00",
    "neutral": "#57606a",
    "measured": "#1b1f24",
    "path": "#4b3fbf",
    "resummed": "#00876c",
    "first": "#aa4499",
    "frozen": "#66707a",
}
"""On white: of pictures, and of pages in light mode."""

DARK = COLOUR | {
    "paper": "#14171b",
    "ink": "#e6e9ed",
    "soft": "#a7b0ba",
    "axis": "#7f8993",
    "grid": "#2a3037",
    "line": "#3a424b",
    "selected": "#242a31",
    "regularizes": "#58aeee",
    "anti-regularizes": "#f28b4b",
    "neutral": "#a7b0ba",
    "measured": "#e6e9ed",
    "path": "#8f86f0",
    "resummed": "#35b597",
    "first": "#d77fc6",
    "frozen": "#a7b0ba",
}
"""The same meanings on a dark page."""

BAND = "rgba(138, 147, 157, 0.25)"
"""Of the neutral zone, on either paper."""

DIVERGING = (
    (0.0, "#003f73"),
    (0.28, "#2e7ebc"),
    (0.445, "#a6cbe6"),
    (0.5, COLOUR["paper"]),
    (0.555, "#f6c6a3"),
    (0.72, "#d9692b"),
    (1.0, "#7f2f00"),
)
"""Of changes, from the most regularizing by zero to the most anti-regularizing: (place in [0, 1], colour)."""

_DIVERGING_DARK = ("#b3daf7", "#3f93d2", "#1c405e", DARK["paper"], "#5e3216", "#dd7333", "#ffcfae")

IN_THE_DARK = dict(zip(COLOUR.values(), DARK.values(), strict=True)) | dict(
    zip((colour for _, colour in DIVERGING), _DIVERGING_DARK, strict=True)
)
"""The colour on a dark page of each colour on white, by which charts are turned."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
"""Of pages: whatever the reader's machine has."""

SERIES = ("#332288", "#8a6d00", "#2b8cbe", "#882255", "#7a5230")
"""Of what has no meaning of its own: pieces of memory, orders, batch sizes."""

SIGN = {"regularizes": "▼", "anti-regularizes": "▲", "neutral": "●"}
"""Before what memory does, since colour alone is not enough."""

TERMINAL = {
    "regularizes": "#0a7cc4",
    "anti-regularizes": "#d05a10",
    "neutral": "dim",
    "holds": "green",
    "fails": "red",
    "doubt": "yellow",
}
"""Styles of rich. The terminal's paper may be black or white: the shades have a contrast of four and more to both."""

KINDS = {
    "measured": "measured",
    "path": "prediction along the path",
    "resummed": "resummed prediction",
    "first": "first-order prediction",
}
"""Where a number comes from, with its name, in the order of charts and tables."""


class Mark(NamedTuple):
    """How a point is marked: by plotly, by matplotlib, at which size on the page, and the dashes of its line there."""

    symbol: str
    marker: str
    size: float
    dash: str


MARK = {
    "measured": Mark("circle", "o", 9, "solid"),
    "path": Mark("x", "X", 9, "dash"),
    "resummed": Mark("diamond", "D", 9, "solid"),
    "first": Mark("triangle-up", "^", 8, "dot"),
    "frozen": Mark("square", "s", 8, "solid"),
}
"""By kind, since colour alone is not enough."""

PICTURE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": COLOUR["axis"],
    "text.color": COLOUR["ink"],
}
"""Settings of matplotlib for every picture."""
