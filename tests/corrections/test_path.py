"""The path back: its memory against a sum over every age, its order against relaxation, its indicator where it must speak."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import memoryless as ml
from memoryless.corrections.history import frozen
from memoryless.corrections.path import Path, follow
from memoryless.loss.point import Point
from memoryless.methods import kernel
from tests.problems import METHODS, THETA, reference_loss, relative_error, variables

STEADY = 1000
"""By then the memories of the registry have faded to the last digit."""


def every_age(path: Path, v: ml.Momentum, step: int | None) -> torch.Tensor:
    """sum_k kernel[k] g_l(g(k), x(k)), both linear between the nodes and beyond the last."""
    ages, n = list(path.ages), STEADY if step is None else step
    total = torch.zeros_like(path.gradients[0])
    for k, weight in enumerate(kernel.kernel(v, n, limit=step is None)):
        j = max(i for i, a in enumerate(ages[:-1] or ages) if a <= k)
        share = (k - ages[j]) / (ages[j + 1] - ages[j]) if len(ages) > 1 else 0.0
        points = path.points if v.uses_theta else path.gradients  # not looked at
        g, x = ((1 - share) * y[j] + share * y[min(j + 1, len(y) - 1)] for y in (path.gradients, points))
        total += weight * v.g(g, x)
    return total


@pytest.mark.parametrize(
    ("step", "ages"), [(0, (0,)), (1, (0, 1)), (12, (0, 1, 3, 7, 12)), (40, (0, 1, 3, 7)), (None, (0, 1, 3, 7))]
)
@pytest.mark.parametrize("name", METHODS)
def test_memory_is_a_sum_over_every_age(name: str, step: int | None, ages: tuple[int, ...]):
    generator = torch.Generator().manual_seed(1)
    x, g = torch.randn(2, len(ages), 6, generator=generator, dtype=torch.float64)
    # Smooth in the age, as sixteen quadrature nodes want it where g_l is no polynomial.
    x, g = x[0] + 0.01 * (x - x[0]), g[0] + 0.01 * (g - g[0])
    path = Path(ages, x[0], g[0], x, g, x[0], 1.0, 0, step, {}, {})
    for v in variables(METHODS[name](0.01)):
        assert relative_error(path.memory(v), every_age(path, v, step)) < (1e-6 if v.degree is None else 1e-10)
        assert torch.equal(path.memory(v, slice(2, 4)), path.memory(v)[2:4])


@pytest.mark.parametrize("step", [0, 1, 12, None])
@pytest.mark.parametrize("name", METHODS)
def test_memory_read_on_the_way_is_that_of_the_gradients_kept(name: str, step: int | None):
    method = METHODS[name](1e-3)
    path = follow(method, Point(reference_loss()), step, [method])
    alone = follow(method, Point(reference_loss()), step)
    assert not alone.gradients.numel()
    kept = replace(path, _own={})
    for v in variables(method):
        assert torch.equal(alone.memory(v), path.memory(v))
        assert relative_error(path.memory(v), kept.memory(v)) < 1e-14


@pytest.mark.parametrize("step", [1, 20])
@pytest.mark.parametrize("name", METHODS)
def test_second_order_in_lr(name: str, step: int):
    """The way back exact to O(lr^4), by relaxation; the frozen update is off by O(lr), a first-order miss would show as 1."""
    errors = []
    for lr in (2e-4, 1e-4):
        method = METHODS[name](lr)
        truth = ml.correction(method, reference_loss(), step=step, order=3).M
        found = ml.correction(method, reference_loss(), step=step, order="path").M
        errors.append(float((found - truth).norm()))
        assert errors[-1] < 0.1 * truth.norm() or truth.norm() < 1e-12
    if errors[-1] > 1e-11:
        assert np.log2(errors[0] / errors[1]) > 1.8


@pytest.mark.parametrize(("name", "power"), [("adamw", 2), ("lion", 2), ("groups", 2)])
def test_second_order_in_the_steady_state(name: str, power: int):
    errors = []
    for lr in (1e-4, 5e-5):
        method = METHODS[name](lr)
        truth = ml.correction(method, reference_loss(), order=3).M
        errors.append(float((follow(method, Point(reference_loss()), None).effect(method) - truth).norm()))
    assert np.log2(errors[0] / errors[1]) > power - 0.2


@pytest.mark.parametrize(
    ("beta", "step", "last", "spent"),
    [(0.999, 5, 5, 6), (0.999, 1000, 984, 13), (0.999, 10**6, 4603, 13), (0.9999, None, 46050, 13), (0.5, None, 7, 6)],
)
def test_thirteen_gradients_at_most(beta: float, step: int | None, last: int, spent: int):
    count = 0

    def counted(t: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return (t**2).sum() / 2

    point = Point(ml.Loss.of(counted, torch.ones(2, dtype=torch.float64)), products=0)
    point.gradient  # noqa: B018
    before = count
    path = follow(ml.Adam(1e-6, (0.5, beta)), point, step)
    assert count - before == path.spent - 1
    assert path.spent == spent
    assert path.ages[-1] == last
    assert list(path.ages) == sorted(set(path.ages))


def test_a_method_without_memory_has_no_path():
    method = ml.HeavyBall(0.1, 0.0)
    path = follow(method, Point(reference_loss()), 5)
    assert path.ages == (0,)
    assert path.effect(method).norm() == 0
    assert path.growth == 1


def test_growth_speaks_where_a_stiff_direction_is_excited():
    """Back from (1, 1e-3) on (t_1^2 + 2000 t_2^2)/2: each step back multiplies what the real past had damped."""
    stiffness = torch.tensor([1.0, 2000.0], dtype=torch.float64)
    loss = ml.Loss.of(lambda t: (stiffness * t**2).sum() / 2, torch.tensor([1.0, 1e-3], dtype=torch.float64))
    found = [ml.correction(ml.HeavyBall(lr, 0.5), loss, order="path") for lr in (1e-3, 1e-6)]
    assert [c.trusted for c in found] == [False, True]
    method = ml.HeavyBall(1e-3, 0.5)
    literal = follow(method, Point(loss), None, [method])
    assert found[0].growth == pytest.approx(float(literal.gradients[3].abs().sum() / literal.gradients[0].abs().sum()))
    assert literal.ages[3] == 7
    with pytest.raises(ml.errors.BadInput, match="expands nothing"):
        found[0].outside  # noqa: B018


def test_a_real_run_is_followed_better_than_by_a_line():
    from memoryless.experiments.problems import digits_mlp

    loss, method = digits_mlp(width=8, count=100).loss, ml.Adam(1e-3)
    theta = loss.theta
    state = method.init(theta)
    for _ in range(10):
        state, F = method.update(state, loss.gradient(theta), theta)
        theta = theta - method.lr * F
    g = loss.gradient(theta)
    delta = method.update(state, g, theta)[1] - frozen(method, g, theta, 10)
    path, line = (ml.correction(method, loss, theta, step=10, order=order) for order in ("path", "resummed"))
    assert path.trusted
    assert relative_error(path.M, delta) < 0.5 * relative_error(line.M, delta)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": ml.TorchMethod(lambda p: torch.optim.Adamax(p, lr=1e-3), [THETA.shape]), "step": 5}, "run as it is"),
        ({"method": ml.Adam(), "batches": [0, 1, 0]}, "leave out batches"),
    ],
)
def test_what_has_no_path(arguments: dict, message: str):
    with pytest.raises(ml.errors.BadInput, match=message):
        ml.correction(loss=reference_loss(), order="path", **arguments)


def test_a_steady_state_that_never_forgets_is_refused():
    with pytest.raises(ml.errors.NeverForgets):
        ml.correction(ml.Method(0.1, (ml.Momentum(1.0),), lambda f, m, theta: m[0]), reference_loss(), order="path")
