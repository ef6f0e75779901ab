"""Finite steps, symbolic and not."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false
# pyright: reportOperatorIssue=false

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from sympy import Abs, Rational

import memoryless as ml
from memoryless.errors import BadInput, NeverForgets, NotDerivable
from memoryless.formulas.compiled import compiled
from memoryless.formulas.symbols import H, Rate, Step, g, h, n, w
from tests.formulas.cases import LR, b1, b2, beta, close, derive, eps, is_zero, lam, single, tensors
from tests.problems import METHODS, norm, reference_loss

SYMBOLIC = {
    "adam": ({b1: 0.9, b2: 0.95, eps: 0.01}, lambda: ml.Adam(LR, (0.9, 0.95), 0.01)),
    "heavy_ball": ({beta: 0.9}, lambda: ml.HeavyBall(LR, 0.9)),
    "signum": ({beta: 0.9, lam: 0.1, eps: 0.1}, lambda: ml.Signum(LR, 0.9, 0.1, 0.1)),
}


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_step(name, step):
    numbers, make = SYMBOLIC[name]
    d, method = derive(name, step="n"), make()
    assert n in d.M.free_symbols
    values = {n: step, h: Rational("0.01")} | {symbol: Rational(str(value)) for symbol, value in numbers.items()}
    first, resummed = (ml.correction(method, reference_loss(), step=step, order=order) for order in ("first", "resummed"))
    drift = tensors(d.drifts[w].subs(values), method) if d.aligned else None
    assert close(tensors(d.F.subs(values), method), first.F, first.F)
    assert close(tensors(d.M.subs(values), method), first.M, first.F)
    assert close(tensors(d.resummed.subs(values), method, drift), resummed.M, first.F)


STEPPED = {
    "nesterov": lambda: ml.Nesterov(LR, 0.8),
    "rmsprop": lambda: ml.RMSprop(LR, 0.95, 0.01),
    "adamw": lambda: ml.AdamW(LR, (0.9, 0.95), 0.01, 0.1),
    "lion": lambda: ml.Lion(LR, (0.9, 0.95), 0.1, 0.1),
    "lion_k": lambda: ml.LionK(LR, (0.8, 0.95), 0.1, norm),
}


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("name", STEPPED)
def test_symbolic_step_of_numbers(name, step):
    """The other catalogue methods, with n the only symbol."""
    method = STEPPED[name]()
    d, c = ml.derive(method, step="n"), ml.correction(method, reference_loss(), step=step)
    assert n in d.M.free_symbols
    assert close(tensors(d.F.subs(n, step), method), c.F, c.F)
    assert close(tensors(d.M.subs(n, step), method), c.M, c.F)


def test_symbolic_step_of_nadam():
    d, method = ml.derive("nadam", step="n", lr=LR, betas=(0.9, 0.95), eps=0.01, weight_decay=0.1), METHODS["nadam"](LR)
    c = ml.correction(method, reference_loss(), step=4)
    assert close(tensors(d.F.subs(n, 4), method), c.F, c.F)
    assert close(tensors(d.M.subs(n, 4), method), c.M, c.F)


def test_at_a_step_a_memory_may_last_forever():
    method = single(lambda f, m, theta: m[0], 1.0)
    with pytest.raises(NeverForgets, match=r"never fades \(beta = 1\).*give step=n"):
        ml.derive(method)
    c = ml.correction(method, reference_loss(), step=3)
    assert close(tensors(ml.derive(method, step=3).M, method), c.M, c.F)


@pytest.mark.parametrize("step", [1, 4])
def test_bias_correction_is_exact(step):
    """A frozen gradient is the bias-corrected average of itself, so F is the same at every step: one drift is enough."""
    d = ml.derive("adam", step=step, lr=0.01, betas=(0.9, 0.95), eps=0.01)
    assert is_zero(d.F - g / (Abs(g) + Rational(1, 100)))
    assert d.settled
    assert len(d.M.atoms(H)) == 1


CATALOGUE_NUMBERS = {
    "heavy_ball": {"momentum": 0.8, "weight_decay": 0.3},
    "nesterov": {"momentum": 0.8},
    "rmsprop": {"alpha": 0.95, "eps": 0.01},
    "adam": {"betas": (0.9, 0.95), "eps": 0.01},
    "adamw": {"betas": (0.9, 0.95), "eps": 0.01, "weight_decay": 0.1},
    "nadam": {"betas": (0.9, 0.95), "eps": 0.01, "weight_decay": 0.1},
    "lion": {"betas": (0.9, 0.95), "weight_decay": 0.1, "smoothing": 0.1},
    "signum": {"momentum": 0.9, "weight_decay": 0.1, "smoothing": 0.1},
}


@pytest.mark.parametrize("step", [1, 4, 5])
@pytest.mark.parametrize("name", CATALOGUE_NUMBERS)
def test_geometric_series_are_the_literal_sums(name, step, monkeypatch):
    """The naive twin writes every past step out."""
    values = {"lr": LR} | CATALOGUE_NUMBERS[name]
    monkeypatch.setattr("memoryless.formulas.derive.LITERAL", 0)
    series = ml.derive(name, step=step, **values)
    monkeypatch.setattr("memoryless.formulas.derive.LITERAL", math.inf)
    literal = ml.derive(name, step=step, **values)
    method = SimpleNamespace(hyper={})
    for found, expected in ((series.F, literal.F), (series.M, literal.M)):
        assert close(tensors(found, method), tensors(expected, method), tensors(literal.F, method))
    w_ = [tensors(d.drifts[w], method) if d.aligned else None for d in (series, literal)]
    found, expected = (tensors(d.resummed, method, drift) for d, drift in zip((series, literal), w_, strict=True))
    assert close(found, expected, tensors(literal.F, method))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "groups"])
def test_a_long_past(name):
    method = METHODS[name](LR)
    d, c = ml.derive(method, step=60), ml.correction(method, reference_loss(), step=60)
    assert close(tensors(d.F, method), c.F, c.F)
    assert close(tensors(d.M, method), c.M, c.F)


# nadam_schedule has weights without a formula in n and is written out: `test_a_long_past`.
NUMBERS = [name for name in METHODS if name not in ("groups", "nadam_schedule")]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_for_the_rates_end(name):
    method = METHODS[name](LR)
    d, c = ml.derive(method, step=7), ml.correction(method, reference_loss(), step=7)
    assert close(tensors(d.F, method), c.F, c.F)
    assert close(tensors(d.M, method), c.M, c.F)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_for_the_rates_end_far_out(name):
    d = ml.derive(METHODS[name](LR), step=200)
    assert d.F.has(g)
    assert not d.M.atoms(Rate, Step)


def test_rates_that_cancel_each_other():
    """beta_1^2 = beta_2: the series of their ratio has every term alike, with numbers in place of symbols only."""
    square = lambda g, theta: g**2  # noqa: E731
    average = {"weight": lambda n: 1.0}
    method = ml.Method(
        LR, (ml.Momentum(0.9, **average), ml.Momentum(0.81, square, **average)), lambda f, m, theta: m[0] ** 2 + m[1]
    )
    d, c = ml.derive(method, step=9), ml.correction(method, reference_loss(), step=9)
    assert close(tensors(d.F, method), c.F, c.F)
    assert close(tensors(d.M, method), c.M, c.F)


def test_a_first_term_that_is_read_late():
    """Nothing at step 0, then a term that the series in s does not begin with."""
    method = single(lambda f, m, theta: m[0] + g_scaled(f, theta), 0.7, weight=lambda n: 1.0, first=0.5, lag=1)
    d, c = ml.derive(method, step=9), ml.correction(method, reference_loss(), step=9)
    assert close(tensors(d.M, method), c.M, c.F)


def g_scaled(f: Any, theta: Any) -> Any:
    return 0.1 * f.tanh(theta)


@pytest.mark.parametrize("name", ["adam", "heavy_ball", "lion", "adam(betas=(0.9, 0.999), eps=1e-8)"])
def test_a_hundred_million_steps(name):
    d = ml.derive(name, step=10**8)
    assert "at step 100000000" in d.text()
    assert json.loads(d.to_json())["step"] == "100000000"
    if name == "adam":
        M, steady = (
            x.subs({b1: 0.9, b2: 0.99, eps: 0.1, h: 1}).replace(H, lambda v: v).subs(g, 0.3) for x in (d.M, derive(name).M)
        )
        assert float(M) == pytest.approx(float(steady), rel=1e-14)


def test_weights_without_a_formula_have_no_long_past():
    with pytest.raises(NotDerivable, match=r"without a formula in n, give a step of at most \d+, or take ml\.correction"):
        ml.derive(METHODS["nadam_schedule"](LR), step=1000)


def test_a_long_sum_is_not_compiled():
    with pytest.raises(BadInput, match="a sum of 1000 terms, expected at most 300"):
        compiled(ml.derive(METHODS["lion"](LR), step=1000).M)
