import math

import pytest

from memoryless.render.numbers import SignedLog, cell, label, number, percent


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (0.0304, "+3.0 %"),
        (-0.00048, "\N{MINUS SIGN}0.048 %"),
        (97.03, "+9700 %"),
        (0.0999, "+10 %"),
        (0.0, "0 %"),
        (-6.2e-7, "\N{MINUS SIGN}6.2e\N{MINUS SIGN}05 %"),
        (math.nan, "\N{EN DASH}"),
        (-math.inf, "\N{EN DASH}"),
        (None, "\N{EN DASH}"),
    ],
)
def test_percent(change, text):
    assert percent(change).replace("\N{NO-BREAK SPACE}", " ") == text


def test_number():
    assert [number(x, 4) for x in (2.3022167, 8.999999, 0.01019, 11365.2)] == ["2.302", "9.000", "0.01019", "11370"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.999, "0.999"),
        (-2e-9, "\N{MINUS SIGN}2e\N{MINUS SIGN}09"),
        (1000, "1000"),
        (True, "yes"),
        (None, "\N{EN DASH}"),
        ("a-b", "a-b"),
    ],
)
def test_cell(value, text):
    assert cell(value) == text


def test_label():
    assert [label(name) for name in ("gradient_1_norm", "gradient_norm_squared")] == [
        "gradient 1-norm",
        "gradient norm squared",
    ]


@pytest.mark.parametrize("gap", [0.07, 0.15])
@pytest.mark.parametrize(
    "changes", [[1e-7, -3e-4, 97.0], [-0.02], [0.03, 0.031], [0.0], [math.nan, None], [1e-300, 1e-3], [-5e3, 5e3]]
)
def test_ticks_are_where_they_say(changes, gap):
    scale = SignedLog.of(changes)
    axis = scale.axis(gap)
    low, high = axis["range"]
    assert all(at is None or low <= at <= high for at in scale.place(changes))
    said = [float(text.rstrip(" %").replace("\N{MINUS SIGN}", "-")) / 100 for text in axis["ticktext"]]
    assert scale.place(said) == pytest.approx(axis["tickvals"], rel=1e-5)
    assert 0 in said
    distances = [b - a for a, b in zip(axis["tickvals"], axis["tickvals"][1:], strict=False)]
    assert min(distances, default=math.inf) >= gap * (high - low)
