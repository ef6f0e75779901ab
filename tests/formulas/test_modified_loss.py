"""Modified loss and modified flow, held against ml.correction, against their textbook forms, and against paths."""

import builtins
import math
from typing import Any

import pytest
import torch

import memoryless as ml
from memoryless.formulas.modified_loss import asymmetry
from memoryless.paths.flow import integrate
from tests.problems import FULL_BATCH, METHODS, THETA, Wave, norm, reference_loss, relative_error

LR, B1, B2, LAM = 0.01, 0.9, 0.99, 0.1
T1, T2 = B1 / (1 - B1), B2 / (1 - B2)

WITH = {
    "heavy_ball": ml.HeavyBall(LR, B1),
    "heavy_ball_coupled_decay": ml.HeavyBall(LR, B1, weight_decay=LAM),
    "nesterov": ml.Nesterov(LR, B1),
    "adamw_eps_0": ml.AdamW(LR, (B1, B2), 0.0, LAM),
    "adam_eps_0_coupled_decay": ml.Adam(LR, (B1, B2), 0.0, LAM),
    "nadam_eps_0": ml.NAdam(LR, (B1, B2), 0.0, LAM),
    "rmsprop_eps_0": ml.RMSprop(LR, B2, 0.0),
    "lion": ml.Lion(LR, (B1, B2), LAM),
    "lion_k_half_square": ml.LionK(LR, (B1, B2), LAM),
}
WITHOUT = {
    "adamw": (ml.AdamW(LR, (B1, B2), 0.1, LAM), "net age of the update's memory differs"),
    "rmsprop": (ml.RMSprop(LR, B2, 0.1), "net age of the update's memory differs"),
    "lion_smoothed": (ml.Lion(LR, (B1, B2), LAM, 0.1), "net age of the update's memory differs"),
    "lion_k": (ml.LionK(LR, (B1, B2), LAM, norm), "does not act on each coordinate"),
    "groups": (METHODS["groups"](LR), "param groups"),
    "branches": (ml.Method(LR, (ml.Momentum(B1),), lambda f, m, theta: m[0] if m[0].sum() > 0 else -m[0]), "calls sum"),
}


@pytest.mark.parametrize("name", WITH)
def test_the_corrected_update_is_a_preconditioned_gradient(name):
    loss = ml.modified_loss(WITH[name], reference_loss())
    c = ml.correction(WITH[name], reference_loss())
    assert relative_error(loss.update(THETA), c.F + c.M) < 1e-9
    assert loss.confirm(THETA) < 1e-9


@pytest.mark.parametrize("name", WITH)
def test_the_gradient_of_the_modified_loss_is_that_of_its_value(name):
    loss = ml.modified_loss(WITH[name], reference_loss())
    theta = THETA.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(theta), theta)
    generator = torch.Generator().manual_seed(0)
    v, step = torch.randn(6, generator=generator), 1e-5
    difference = float(loss(THETA + step * v) - loss(THETA - step * v)) / (2 * step)
    assert difference == pytest.approx(float(slope @ v), rel=1e-8)


def test_heavy_ball():
    g = FULL_BATCH.gradient(THETA)
    expected = FULL_BATCH(THETA) + LR * B1 / (2 * (1 - B1) ** 2) * g @ g
    assert float(ml.modified_loss(WITH["heavy_ball"], reference_loss())(THETA)) == pytest.approx(float(expected), rel=1e-14)


def test_adamw_without_eps():
    g, dt = FULL_BATCH.gradient(THETA), T2 - T1
    expected = (1 + LAM * LR * dt) * FULL_BATCH(THETA) - LR * dt * (g.abs().sum() + LAM * g @ THETA)
    assert float(ml.modified_loss(WITH["adamw_eps_0"], reference_loss())(THETA)) == pytest.approx(float(expected), rel=1e-13)


@pytest.mark.parametrize("name", WITHOUT)
def test_no_modified_loss_says_why(name):
    method, reason = WITHOUT[name]
    with pytest.raises(ml.NoModifiedLoss, match=reason):
        ml.modified_loss(method, reference_loss())


def test_the_field_of_finite_eps_is_no_gradient():
    """The mechanical rule confirmed: the Jacobian of (F + M - lambda theta) / P is symmetric only where a loss exists."""
    wave = Wave.random(6, seed=1)
    loss = ml.Loss.of(wave, torch.full((6,), 0.3))
    with pytest.raises(ml.NoModifiedLoss, match="asymmetry") as caught:
        ml.modified_loss(ml.AdamW(LR, (B1, B2), 0.1, LAM), loss)
    assert caught.value.asymmetry is not None
    assert caught.value.asymmetry > 0.01
    method = ml.AdamW(LR, (B1, B2), 0.0, LAM)
    assert asymmetry(method, loss, ml.derive(method)) < 1e-8


def test_descent_on_the_modified_loss_lands_where_heavy_ball_lands():
    """Plain gradient descent on L + lr beta/(2(1-beta)^2) |grad L|^2, written as a plain loss: off by O(lr^2), on L by O(lr).

    Steady values hold once the memory has settled: both start from a point that heavy ball reached, and heavy ball remembers.
    """
    beta, wave = 0.5, Wave.random(6, seed=3)
    wave = Wave(wave.A @ wave.A.T / 6, wave.b, 0.1 * wave.c)

    def gaps(lr: float) -> tuple[float, float]:
        def modified(theta):
            g = wave.gradient(theta)
            return wave(theta) + lr * beta / (2 * (1 - beta) ** 2) * g @ g

        losses: list[Any] = [modified, wave]
        method, loss = ml.HeavyBall(lr, beta), ml.Loss.of(wave, torch.zeros(6))
        state, theta = method.init(loss.theta), loss.theta
        paths = []
        for n in range(round(1.25 / lr)):
            if n == round(0.25 / lr):
                paths = [theta, theta]
            state, F = method.update(state, loss.gradient(theta), theta)
            theta = theta - lr * F
            paths = [x - lr / (1 - beta) * torch.func.grad(f)(x) for x, f in zip(paths, losses, strict=False)]
        modified_gap, plain_gap = (float((x - theta).abs().max()) for x in paths)
        return modified_gap, plain_gap

    coarse, fine = gaps(4e-3), gaps(2e-3)
    assert math.log2(coarse[0] / fine[0]) == pytest.approx(2, abs=0.1)
    assert math.log2(coarse[1] / fine[1]) == pytest.approx(1, abs=0.1)


def test_flow_of_heavy_ball_is_the_known_equation():
    """Kovachki and Stuart: -grad(L + lr (1 + beta) / (4 (1 - beta)^2) |grad L|^2) / (1 - beta)."""
    g, H = FULL_BATCH.gradient(THETA), FULL_BATCH.hessian(THETA)
    expected = -(g + LR * (1 + B1) / (2 * (1 - B1) ** 2) * H @ g) / (1 - B1)
    assert relative_error(ml.modified_flow(ml.HeavyBall(LR, B1), reference_loss())(THETA), expected) < 1e-13


@pytest.mark.parametrize("name", METHODS)
def test_flow_is_update_memory_and_discretization(name):
    """Each term on its own: F and M from ml.correction, the derivative of F along F by differences."""
    method, loss = METHODS[name](LR), reference_loss()
    flow, c, step = ml.modified_flow(method, loss), ml.correction(method, loss), 1e-5
    ahead, behind = (ml.correction(method, loss, THETA + sign * step * c.F).F for sign in (1, -1))
    half = LR / 2 * (ahead - behind) / (2 * step)
    F, M, discretization = flow.terms(THETA)
    assert relative_error(F, c.F) < 1e-13
    assert float((M - c.M).norm()) < 1e-13 * float(c.F.norm() + c.M.norm())
    assert relative_error(discretization, half) < 1e-7
    assert torch.equal(flow(THETA), -(F + M + discretization))
    assert torch.equal(flow.memory(THETA), -M)
    assert torch.equal(flow.discretization(THETA), -discretization)


@pytest.mark.parametrize("solver", ["dopri5", "rk4"])
def test_integrate(solver, monkeypatch):
    if solver == "rk4":
        _hide_torchdiffeq(monkeypatch)
    times = torch.linspace(0, 1, 21)
    path = integrate(lambda x: -x, torch.tensor([1.0, -2.0]), times, solver)
    torch.testing.assert_close(path, torch.exp(-times)[:, None] * torch.tensor([1.0, -2.0]), rtol=1e-6, atol=0)


def test_without_torchdiffeq_the_default_is_rk4_and_the_others_say_how_to_get_it(monkeypatch):
    _hide_torchdiffeq(monkeypatch)
    theta, times = torch.ones(1), torch.tensor([0.0, 0.1])
    assert torch.equal(integrate(torch.neg, theta, times), integrate(torch.neg, theta, times, "rk4"))
    with pytest.raises(
        ValueError, match=r"'dopri5' is torchdiffeq's, which is not installed: pip install 'memoryless\[flow\]'"
    ):
        integrate(torch.neg, theta, times, "dopri5")


def _hide_torchdiffeq(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "torchdiffeq":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


def test_flow_needs_memory_that_fades():
    with pytest.raises(ml.errors.NeverForgets):
        ml.modified_flow(ml.Method(LR, (ml.Momentum(1.0),), lambda f, m, theta: m[0]), reference_loss())


def test_the_flow_follows_the_settled_optimizer_to_second_order():
    """From a settled point: gap to the optimizer O(lr^2); without the memory term O(lr)."""
    beta, wave = 0.5, Wave.random(6, seed=3)
    wave = Wave(wave.A @ wave.A.T / 6, wave.b, 0.1 * wave.c)
    loss = ml.Loss.of(wave, torch.zeros(6))

    def gaps(lr: float) -> list[float]:
        method = ml.HeavyBall(lr, beta)
        path = ml.trajectory(method, loss, round(1.25 / lr))
        start = round(0.25 / lr)
        times = lr * torch.arange(len(path) - start)
        flow = ml.modified_flow(method, loss)
        fields = flow, (lambda theta: flow(theta) - flow.memory(theta))
        return [float((integrate(f, path[start], times) - path[start:]).abs().max()) for f in fields]

    coarse, fine = gaps(4e-3), gaps(2e-3)
    assert math.log2(coarse[0] / fine[0]) == pytest.approx(2, abs=0.1)
    assert math.log2(coarse[1] / fine[1]) == pytest.approx(1, abs=0.1)
