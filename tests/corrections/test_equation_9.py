"""`correction` against Eq. 9 taken literally: F[n] as a function of theta[n], ..., theta[0], differentiated."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import memoryless as ml
from memoryless.corrections.correction import Correction
from memoryless.methods.method import AnyOptimizer, Groups, Part, square
from tests.problems import (
    BATCHES,
    FULL_BATCH,
    LINEAR,
    METHODS,
    THETA,
    Wave,
    quartic,
    reference_loss,
    relative_error,
    variables,
)

LR = 0.01
# F[n] at a frozen history is the same for all n: bias correction in every variable.
CONSTANT = ["adam_coupled_decay", "adam_eps_inside", "adamw", "adamw_eps_inside"]
# Torch's schedule mu[n] approaches beta_1 like 0.96^(n psi), over 10^5 steps; all others have settled to 1e-16 at 1000.
SETTLED = {name: 200_000 if name == "nadam_schedule" else 1000 for name in METHODS}


def run(method: AnyOptimizer, waves: Sequence[Wave], history: Tensor) -> Tensor:
    """F[0], ..., F[n], shape (n + 1, d), when step s sees waves[s] at history[s]."""
    state: Any = method.init(history[0])
    updates = []
    for wave, theta in zip(waves, history, strict=True):
        state, F = method.update(state, wave.gradient(theta), theta)
        updates.append(F)
    return torch.stack(updates)


def literal(method: AnyOptimizer, waves: Sequence[Wave], theta: Tensor) -> tuple[Tensor, Tensor]:
    """F[n] and M[n] = lr sum_k dF[n]/dtheta[n-k] . D[k], with D[k] = sum_{s=n-k..n-1} F[s]."""
    n = len(waves) - 1
    history = theta.expand(n + 1, -1).clone()
    F = run(method, waves, history)
    D = torch.stack([F[s:n].sum(0) for s in range(n + 1)])
    M = torch.func.jvp(lambda history: run(method, waves, history)[n], (history,), (method.lr * D,))[1]
    return F[n], M


def drifting(method: AnyOptimizer, c: Correction, n: int) -> Tensor:
    """F[n] of the stream that lay k H F back k steps ago, put through the optimizer itself."""
    back = method.lr * c.F
    gradient, drift = FULL_BATCH.gradient(THETA), FULL_BATCH.hessian(THETA) @ back
    state: Any = method.init(THETA)
    F = THETA
    for k in range(n, -1, -1):
        state, F = method.update(state, gradient + k * drift, THETA + k * back)
    return F


def shuffled(n: int) -> list[int]:
    return [[2, 0, 0, 3, 1, 3, 2][s % 7] for s in range(n + 1)]


# The variance of centered RMSprop is c (1 - c) g^2: there F[s] is no smooth function of log c to interpolate.
FULL_BATCH_CASES = [(name, n) for name in METHODS for n in (0, 1, 2, 7, 45)]


# 45 is past the number of steps that are all kept, so that F[s] is interpolated from a few s.
@pytest.mark.parametrize(("name", "n"), FULL_BATCH_CASES)
def test_full_batch_is_equation_9(name, n):
    method = METHODS[name](LR)
    F, M = literal(method, [FULL_BATCH] * (n + 1), THETA)
    c = ml.correction(method, reference_loss(), step=n)
    assert relative_error(c.F, F) < 1e-13
    assert relative_error(c.M, M) < 1e-12


HALVES = ml.HeavyBall(LR, 0.9, weight_decay=0.1), ml.HeavyBall(2 * LR, 0.9)
ONE_DIRECTION = {
    "heavy_ball": HALVES[0],
    "nesterov": ml.Nesterov(LR, 0.9),
    "nadam": ml.NAdam(LR, (0.9, 0.95), 0.01),
    "rmsprop": ml.RMSprop(LR, 0.9, 0.0),
    "groups": Groups((Part(HALVES[0], torch.tensor([5, 0, 2]), 1.0), Part(HALVES[1], torch.tensor([1, 4]), 2.0)), LR),
}


@pytest.mark.parametrize("n", [1, 7, 45, 700])
@pytest.mark.parametrize("name", ONE_DIRECTION)
def test_where_past_updates_differ_in_length_alone_one_product_is_enough(name, n):
    method = ONE_DIRECTION[name]
    F, M = literal(method, [FULL_BATCH] * (n + 1), THETA)
    c = ml.correction(method, reference_loss(), step=n)
    assert c.products == 1
    assert relative_error(c.F, F) < 1e-13
    assert relative_error(c.M, M) < 1e-12


@pytest.mark.parametrize("n", [0, 1, 2, 7, 45])
@pytest.mark.parametrize("name", METHODS)
def test_mini_batch_is_equation_9(name, n):
    method = METHODS[name](LR)
    F, M = literal(method, [BATCHES[i] for i in shuffled(n)], THETA)
    c = ml.correction(method, reference_loss(), step=n, batches=shuffled(n))
    assert relative_error(c.F, F) < 1e-13
    assert relative_error(c.M, M) < 1e-12


G = [
    (lambda g, theta: g, 1),
    (square, 2),
    (lambda g, theta: g * theta + theta, 2),
    (lambda g, theta: g**3, 3),
    (lambda g, theta: (g * g + 0.1).sqrt(), None),
    (lambda g, theta: g.tanh() - theta.sin(), None),
]
PHI = [
    lambda f, m, theta: sum(m) + theta,
    lambda f, m, theta: m[0] / f.sqrt(m[-1] * m[-1] + 0.1),
    lambda f, m, theta: f.tanh(m[0]) * (1 + 0.1 * m[-1]) + 0.1 * theta,
    lambda f, m, theta: m[0] / f.sqrt((m[-1] * m[-1]).sum() + 0.1),
]
WEIGHTS = [
    lambda beta: lambda n: 1.0 - beta,
    lambda beta: lambda n: 1 / (n + 2.0),
    lambda beta: lambda n: beta - 0.6 ** (n + 1.0),
]


@st.composite
def momenta(draw: st.DrawFn) -> ml.Momentum:
    beta = draw(st.sampled_from([0.0, 0.3, 0.9, 0.97, 1.0]) | st.floats(0, 1, width=16))
    g, degree = draw(st.sampled_from(G))
    weight = draw(st.sampled_from(WEIGHTS))(beta)
    return ml.Momentum(beta, g, weight, first=draw(st.floats(0.25, 4)), lag=draw(st.sampled_from([0, 1])), degree=degree)


methods = st.builds(
    lambda variables, phi: ml.Method(LR, tuple(variables), phi),
    st.lists(momenta(), min_size=1, max_size=3),
    st.sampled_from(PHI),
)


@settings(max_examples=40)
@given(methods, st.integers(0, 50), st.integers(0, 100), st.lists(st.integers(0, 2), min_size=51, max_size=51) | st.none())
def test_any_method_in_momentum_form(method, n, seed, order):
    batches = [Wave.random(4, seed), Wave.random(4, seed + 1), Wave.random(4, seed + 2)]
    used = order and order[: n + 1]
    theta = Wave.random(4, seed + 3).b
    F, M = literal(method, [Wave.mean(batches)] * (n + 1) if used is None else [batches[i] for i in used], theta)
    c = ml.correction(method, ml.Loss.of(batches, theta), step=n, batches=used)
    assert (c.F - F).norm() <= 1e-12 * F.norm()
    # M can cancel to far below the terms it is the sum of.
    assert (c.M - M).norm() <= 1e-10 * (M.norm() + LR * F.norm())


@pytest.mark.parametrize("n", [0, 1, 7, 45])
@pytest.mark.parametrize("name", CONSTANT)
def test_resummed_is_the_optimizer_on_a_drifting_history(name, n):
    method = METHODS[name](LR)
    c = ml.correction(method, reference_loss(), step=n, order="resummed")
    assert relative_error(c.F + c.M, drifting(method, c, n)) < 1e-13


@pytest.mark.parametrize("name", [name for name in METHODS if name != "nadam_schedule"])
def test_resummed_steady_state_is_the_optimizer_on_a_drifting_history(name):
    method = METHODS[name](LR)
    c = ml.correction(method, reference_loss(), order="resummed")
    assert relative_error(c.F + c.M, drifting(method, c, SETTLED[name])) < 1e-13


@pytest.mark.parametrize("batches", [None, shuffled(7)], ids=["full", "mini"])
@pytest.mark.parametrize("name", METHODS)
def test_resummed_and_first_order_agree_to_second_order(name, batches):
    def gap(lr: float) -> float:
        first, resummed = (
            ml.correction(METHODS[name](lr), reference_loss(), step=7, order=order, batches=batches)
            for order in ("first", "resummed")
        )
        return relative_error(resummed.M, first.M)

    if name in LINEAR:
        assert gap(LR) < 1e-13
    else:
        assert math.log2(gap(2e-6) / gap(1e-6)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("order", ["first", "resummed"])
@pytest.mark.parametrize("name", METHODS)
def test_steady_state_is_the_limit(name, order):
    method = METHODS[name](LR)
    steady = ml.correction(method, reference_loss(), order=order)
    late = ml.correction(method, reference_loss(), step=SETTLED[name], order=order)
    assert relative_error(late.F, steady.F) < 1e-12
    # To first order centered RMSprop has none: what remains is F's rounding.
    assert float((late.M - steady.M).norm()) < 1e-11 * float(steady.M.norm()) + 1e-14 * float(steady.F.norm())


@pytest.mark.parametrize("n", [0, 1, 45])
@pytest.mark.parametrize("name", METHODS)
def test_F_is_the_update_after_frozen_gradients(name, n):
    method = METHODS[name](LR)
    F = run(method, [FULL_BATCH] * (n + 1), THETA.expand(n + 1, -1))[n]
    assert relative_error(ml.correction(method, reference_loss(), step=n).F, F) < 1e-13


@pytest.mark.parametrize("order", ["first", "resummed"])
@pytest.mark.parametrize("step", [0, 5, 10_000, None])
@pytest.mark.parametrize("name", METHODS)
def test_one_product_per_distinct_beta(name, step, order):
    method = METHODS[name](LR)
    c = ml.correction(method, reference_loss(), step=step, order=order)
    remembering = len({v.beta for v in variables(method) if v.has_memory})
    most = 0 if step == 0 else 1 if step is None or name in CONSTANT else remembering
    assert c.products <= most
    assert c.M.isfinite().all()


# Weight decay would move the dead coordinate: the effect on it is that of memory on theta, not on the gradient.
@pytest.mark.parametrize("order", ["first", "resummed"])
@pytest.mark.parametrize("step", [0, 1, 7, None])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize(
    "make",
    [
        lambda lr, eps: ml.HeavyBall(lr),
        lambda lr, eps: ml.RMSprop(lr, eps=eps),
        lambda lr, eps: ml.Adam(lr, eps=eps),
        lambda lr, eps: ml.NAdam(lr, eps=eps),
        lambda lr, eps: ml.Adam(lr, eps=eps, eps_inside_root=True),
        lambda lr, eps: ml.Lion(lr, smoothing=eps),
        lambda lr, eps: ml.Signum(lr, smoothing=eps),
    ],
    ids=["heavy_ball", "rmsprop", "adam", "nadam", "adam_eps_inside", "lion", "signum"],
)
def test_a_dead_coordinate_does_not_move(make, eps, step, order):
    loss = ml.Loss.of(lambda theta: quartic(theta[1:]), torch.tensor([1.0, -1.0, 2.0]))
    c = ml.correction(make(LR, eps), loss, step=step, order=order)
    assert c.F[0] == 0
    assert c.M[0] == 0
    assert (c.F + c.M).isfinite().all()
