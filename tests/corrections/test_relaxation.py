"""Waveform relaxation against its literal twin, against first order, and against an exact answer."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memoryless as ml
from memoryless.corrections.correction import Correction
from memoryless.corrections.relaxation import relaxed
from memoryless.errors import BadInput, NeverForgets, NotFinite
from memoryless.loss.point import Point
from memoryless.methods.method import AnyOptimizer, State
from tests.problems import BATCHES, FULL_BATCH, METHODS, THETA, Wave, reference_loss, relative_error, tensor

LR = 0.01


def literal(method: AnyOptimizer, order: int, waves: Sequence[Wave]) -> Tensor:
    """G[n](theta) by running the method over every guess of the history from its first step."""
    n = len(waves) - 1
    history, G = [THETA] * (n + 1), [THETA]
    for _ in range(order):
        state: Any = method.init(history[0])
        G = []
        for theta, wave in zip(history, waves, strict=True):
            state, update = method.update(state, wave.gradient(theta), theta)
            G.append(update)
        history = [THETA]
        for k in range(n - 1, -1, -1):
            history.insert(0, history[0] + method.lr * G[k])
    return G[n]


def shuffled(n: int) -> list[int]:
    return [[2, 0, 0, 3, 1, 3, 2][s % 7] for s in range(n + 1)]


# 100 is more than a block; at 600 what lies before the window of the betas up to 0.9 (about 400 steps) is left out.
@pytest.mark.parametrize(("n", "orders"), [(0, (1, 3)), (1, (1, 2)), (7, (1, 2, 4)), (100, (1, 3)), (600, (2,))])
@pytest.mark.parametrize("mini", [False, True], ids=["full", "mini"])
@pytest.mark.parametrize("name", METHODS)
def test_relaxation_is_the_literal_loop(name, mini, n, orders):
    method, loss = METHODS[name](LR), reference_loss()
    waves = [BATCHES[i] for i in shuffled(n)] if mini else [FULL_BATCH] * (n + 1)
    for order in orders:
        c = ml.correction(method, loss, step=n, order=order, batches=shuffled(n) if mini else None)
        assert relative_error(c.F + c.M, literal(method, order, waves)) < 1e-12


class Opaque:
    """A method known by its init and update only."""

    parts = ()

    def __init__(self, method: ml.Method):
        self.method, self.lr = method, method.lr

    def init(self, theta: Tensor) -> State:
        return self.method.init(theta)

    def update(self, state: State, gradient: Tensor, theta: Tensor) -> tuple[State, Tensor]:
        return self.method.update(state, gradient, theta)

    def __str__(self) -> str:
        return "opaque"


@pytest.mark.parametrize("batches", [None, shuffled(20)], ids=["full", "mini"])
@pytest.mark.parametrize("order", [1, 3])
def test_any_method_with_init_and_update(order, batches):
    method: Any = METHODS["adamw"](LR)
    forms: list[Any] = [method, Opaque(method)]
    known, opaque = (ml.correction(form, reference_loss(), step=20, order=order, batches=batches) for form in forms)
    assert relative_error(opaque.F, known.F) < 1e-13
    assert relative_error(opaque.F + opaque.M, known.F + known.M) < 1e-13


# Small lr and n, so that the next order is far below; the product of both errors stays far above rounding.
@pytest.mark.parametrize("batches", [None, shuffled(7)], ids=["full", "mini"])
@pytest.mark.parametrize("name", METHODS)
def test_order_2_and_first_order_agree_to_second_order(name, batches):
    def gap(lr: float) -> float:
        two, first = (
            ml.correction(METHODS[name](lr), reference_loss(), step=7, order=order, batches=batches) for order in (2, "first")
        )
        return float((two.M - first.M).norm())

    assert math.log2(gap(4e-5) / gap(2e-5)) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "nadam_schedule"])  # its F moves for 10^5 steps
def test_steady_state_is_the_limit(name, order):
    method = METHODS[name](1e-4)
    steady = ml.correction(method, reference_loss(), order=order)
    late = ml.correction(method, reference_loss(), step=1500, order=order)
    assert relative_error(late.F, steady.F) < 1e-12
    assert relative_error(late.F + late.M, steady.F + steady.M) < 1e-12


@pytest.mark.parametrize("R", [1, 2, 3, 4, 5])
def test_heavy_ball_on_a_quadratic(R):
    """Exact G has eigenvalue (1 - mu)/lr, mu the larger root of mu^2 - (1 + beta - lr a) mu + beta = 0."""
    a, beta = tensor([0.3, 1.0, 2.0]), 0.8
    loss = ml.Loss.of(lambda theta: (a * theta * theta).sum() / 2, tensor([1.0, 1.0, 1.0]))

    def error(lr: float) -> float:
        p = 1 + beta - lr * a
        mu = (p + (p * p - 4 * beta).sqrt()) / 2
        # (1 - mu)/lr without cancellation: 1 - mu is the smaller root of z^2 - (1 - beta + lr a) z + lr a = 0.
        q = 1 - beta + lr * a
        exact = 2 * a / (q + (q * q - 4 * lr * a).sqrt())
        assert ((1 - mu) / lr - exact).abs().max() < 1e-9
        _, G = relaxed(ml.HeavyBall(lr, beta), Point(loss), None, R)
        return float((G - exact).abs().max() / exact.max())

    coarse, fine = error(2e-4), error(1e-4)
    assert fine > 1e-14
    assert coarse / fine == pytest.approx(2**R, rel=0.15)


def test_order_one_is_frozen():
    c = ml.correction(METHODS["lion"](LR), reference_loss(), order=1)
    assert torch.equal(c.M, torch.zeros_like(THETA))
    assert c.products == 0
    assert c.order == 1


def networks() -> dict[str, ml.Loss]:
    torch.manual_seed(0)
    data = [torch.randn(4, 3) for _ in range(3)]

    def network(*layers: nn.Module) -> ml.Loss:
        model = nn.Sequential(nn.Linear(3, 5), *layers, nn.Linear(5, 2))
        return ml.Loss(model, lambda model, batch: model(batch).square().mean(), data)

    return {
        "functions": reference_loss(),
        "network": network(nn.GELU()),
        "batch_norm": network(nn.BatchNorm1d(5)),  # updates its buffers in place: no map over points
        "branching": ml.Loss.of(lambda t: t.square().sum() if t[0] > 0 else t.sin().sum(), THETA),
        "large": ml.Loss.of(lambda t: (t[:, None] * torch.ones(2**18)).sin().mean() + t.square().sum(), THETA),
    }


@pytest.mark.parametrize("used", [None, [0, 2, 0]], ids=["full", "mini"])
@pytest.mark.parametrize("name", networks())
def test_gradients_at_many_points(name, used):
    loss = networks()[name]
    used = used if len(loss) > 1 else None
    points = loss.theta + torch.randn(3, len(loss.theta))
    expected = [loss.gradient(theta, used and used[k]) for k, theta in enumerate(points)]
    for _ in range(2):
        assert relative_error(loss.gradients(points, used), torch.stack(expected)) < 1e-13


def test_a_point_that_is_not_finite_is_named():
    loss, points = reference_loss(), THETA.repeat(3, 1)
    loss.gradients(points)
    with pytest.raises(NotFinite, match="parameter 'theta' is nan first at flat index 2"):
        loss.gradients(points.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan)))


def correct(order: Any, method: Any = None, **options: Any) -> Correction:
    return ml.correction(method or METHODS["adamw"](LR), reference_loss(), order=order, **options)


FORGETS_NOTHING = ml.Method(LR, (ml.Momentum(1.0),), lambda f, m, theta: m[0])
BAD = {
    "order_zero": (lambda: correct(0), BadInput, "order must be .*first, resummed, path, or an integer >= 1, got 0"),
    "order_negative": (lambda: correct(-2), BadInput, "order must be .* integer >= 1, got -2"),
    "order_bool": (lambda: correct(True), BadInput, "order must be .* integer >= 1, got True"),
    "order_float": (lambda: correct(2.0), BadInput, r"order must be .* integer >= 1, got 2\.0"),
    "order_none": (lambda: correct(None), BadInput, "order must be .* integer >= 1, got None"),
    "batches_count": (lambda: correct(2, step=2, batches=[0, 1]), BadInput, "3 batch indices.*got 2"),
    "theta": (lambda: correct(2, theta=THETA[:2]), BadInput, r"theta must have shape \(6,\), got \(2,\)"),
    "never_forgets": (lambda: correct(1, FORGETS_NOTHING), NeverForgets, r"never fades \(beta = 1\).*give step=n"),
    "opaque": (
        lambda: correct(2, Opaque(ml.AdamW())),
        BadInput,
        "steady state needs a method in momentum form, got opaque; give step=n",
    ),
    "outside": (lambda: correct(2).outside, BadInput, "order 2 expands nothing and has no radius"),
}


@pytest.mark.parametrize(("call", "exception", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, exception, message):
    with pytest.raises(exception, match=message) as raised:
        call()
    assert raised.type is exception
    assert "\n" not in str(raised.value)
