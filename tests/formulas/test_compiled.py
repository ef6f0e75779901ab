"""Formulas as functions of tensors are the numbers of `correction`."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false
# pyright: reportOperatorIssue=false

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import memoryless as ml
from memoryless.formulas.compiled import compiled
from memoryless.formulas.symbols import w
from tests.formulas.cases import LR, ONE_METHOD, WEIGHTS, close, derive, tensors
from tests.problems import METHODS, Wave, reference_loss, tensor

ENDLESS = "custom"  # a memory of a root of g: its resummed steady state is an infinite sum


@pytest.mark.parametrize("step", [None, 0, 1, 2, 5])
@pytest.mark.parametrize("name", ONE_METHOD)
def test_compiled_formulas_are_the_numbers(name, step):
    method = METHODS[name](LR)
    assert isinstance(method, ml.Method)
    d = ml.derive(method, step=step)
    first, resummed = (ml.correction(method, reference_loss(), step=step, order=order) for order in ("first", "resummed"))
    assert close(tensors(d.F, method), first.F, first.F)
    assert close(tensors(d.M, method), first.M, first.F)
    if (name, step) != (ENDLESS, None):
        drift = tensors(d.drifts[w], method) if d.aligned else None
        assert close(tensors(d.resummed, method, drift), resummed.M, first.F)


def test_a_sum_without_end_is_not_compiled():
    method = METHODS[ENDLESS](LR)
    with pytest.raises(ValueError, match="sum over infinitely many ages"):
        compiled(ml.derive(method).resummed)


def test_symbols_left_are_not_compiled():
    with pytest.raises(ValueError, match="give these symbols numbers first: beta, h"):
        compiled(derive("heavy_ball").M)


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize("name", ONE_METHOD)
def test_a_dead_coordinate(name, step):
    """A gradient of exactly 0 on a coordinate that is at 0: no formula divides by it."""
    method = METHODS[name](LR)
    assert isinstance(method, ml.Method)
    point = tensor([0, 1, -2])
    loss = ml.Loss.of(lambda theta: (theta[1:] ** 4).sum() / 4, point)
    d, c = ml.derive(method, step=step), ml.correction(method, loss, step=step)
    at = (point**3, point, lambda v: 3 * point**2 * v)
    K = method.hyper.get("K")
    for formula, expected in ((d.F, c.F), (d.M, c.M)):
        found = compiled(formula, K)(*at)
        assert found[0] == expected[0] == 0
        # Centered, the variance of a constant gradient is what rounding leaves of two large numbers.
        assert (found - expected).norm() <= 1e-10 * expected.norm() + 1e-12 * c.F.norm()


G: list[Callable[..., Any]] = [
    lambda g, theta: g,
    lambda g, theta: g * g,
    lambda g, theta: g.abs(),
    lambda g, theta: g * g + 0.1 * theta,
    lambda g, theta: g * theta.tanh(),
    lambda g, theta: (g * g + 0.1).sqrt(),
]
ABOVE: list[Callable[..., Any]] = [
    lambda f, m, theta: m[0],
    lambda f, m, theta: sum(m),
    lambda f, m, theta: m[0] * f.abs(m[-1]),
    lambda f, m, theta: f.where(m[0] > 0.1 * theta, m[-1], 0.5 * m[0]),
    lambda f, m, theta: torch.where(m[-1] < 0, m[0] * theta, 2 * m[-1]),
]
BELOW: list[Callable[..., Any]] = [
    lambda f, m, theta: 1.0,
    lambda f, m, theta: f.abs(m[-1]) + 0.3,
    lambda f, m, theta: f.sqrt(m[-1] * m[-1] + 0.1),
    lambda f, m, theta: 1 + (m[-1] * theta).square(),
]
BESIDE: list[Callable[..., Any]] = [
    lambda f, m, theta: 0.0,
    lambda f, m, theta: 0.1 * theta,
    lambda f, m, theta: 0.1 * f.tanh(theta),
]


@st.composite
def momenta(draw: st.DrawFn) -> ml.Momentum:
    beta = draw(st.integers(0, 95)) / 100
    weight = draw(st.sampled_from(WEIGHTS))(beta)
    first, lag = draw(st.sampled_from([1.0, 0.5])), draw(st.sampled_from([0, 1]))
    return ml.Momentum(beta, draw(st.sampled_from(G)), weight, first, lag)


@st.composite
def custom_methods(draw: st.DrawFn) -> ml.Method:
    above, below, beside = (draw(st.sampled_from(parts)) for parts in (ABOVE, BELOW, BESIDE))
    variables = draw(st.lists(momenta(), min_size=1, max_size=3))
    return ml.Method(LR, tuple(variables), lambda f, m, theta: above(f, m, theta) / below(f, m, theta) + beside(f, m, theta))


@settings(max_examples=50)
@given(custom_methods(), st.none() | st.integers(0, 2), st.integers(0, 100))
def test_any_users_method(method, step, seed):
    wave, point = Wave.random(4, seed), Wave.random(4, seed + 1).b
    d, c = ml.derive(method, step=step), ml.correction(method, ml.Loss.of(wave, point), step=step)
    at = (wave.gradient(point), point, lambda v: wave.hessian(point) @ v)
    F, M = (compiled(formula)(*at) for formula in (d.F, d.M))
    assert F.isfinite().all()
    assert M.isfinite().all()
    assert (F - c.F).norm() <= 1e-12 * c.F.norm()
    # M can cancel to far below the terms it is the sum of.
    assert (M - c.M).norm() <= 1e-10 * c.M.norm() + 1e-13 * c.F.norm()
