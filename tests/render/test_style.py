"""Colours: readable, and told apart with any colour vision."""

import itertools

import numpy as np
import pytest

from memoryless.render.style import COLOUR, DARK, DIVERGING, IN_THE_DARK, SERIES, TERMINAL

TEXT = ("ink", "soft", "regularizes", "anti-regularizes", "neutral", "measured", "path", "resummed", "first", "frozen")
KINDS = ("measured", "path", "resummed", "first", "frozen")
# Machado et al. 2009, severity 1, in linear RGB.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
}


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Of WCAG 2: 4.5 is enough for text, 3 for what is large or no text."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, vision: str) -> np.ndarray:
    rgb = np.clip(VISION[vision] @ linear(colour), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("style", [COLOUR, DARK])
def test_text_is_readable(style):
    assert min(contrast(style[name], style["paper"]) for name in TEXT) > 4.4
    assert contrast(style["ink"], style["selected"]) > 4.5


def test_a_terminal_may_be_black_or_white():
    for name in ("regularizes", "anti-regularizes"):
        assert min(contrast(TERMINAL[name], paper) for paper in ("#000000", "#ffffff")) > 4


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(
    "together",
    [
        [COLOUR[kind] for kind in KINDS],
        [DARK[kind] for kind in KINDS],
        [COLOUR["regularizes"], COLOUR["anti-regularizes"]],
        [DARK["regularizes"], DARK["anti-regularizes"]],
        [COLOUR["ink"], *SERIES],
    ],
)
def test_told_apart(together, vision):
    assert min(np.linalg.norm(lab(a, vision) - lab(b, vision)) for a, b in itertools.combinations(together, 2)) > 9.5


def test_one_colour_in_the_dark_for_each():
    """A chart is turned by its colours, so two meanings of one colour turn alike."""
    assert all(IN_THE_DARK[COLOUR[name]] == DARK[name] for name in COLOUR)
    assert {colour for _, colour in DIVERGING} <= IN_THE_DARK.keys()
