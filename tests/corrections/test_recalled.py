"""Memories told by buffers: exact at the live betas, the literal sums, what is not known refused, and the order of accuracy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import memoryless as ml
from memoryless.audits.shadow import Shadow
from memoryless.corrections.curves import GROWTHS, Ages, exponential, steeper
from memoryless.corrections.history import frozen, update_of
from memoryless.corrections.recalled import Recalled
from memoryless.errors import BadInput
from memoryless.methods.method import AnyOptimizer, Groups, Method, Momentum, Part, State
from tests.problems import Wave

LIVE = {
    "adam": lambda lr: ml.Adam(lr, (0.8, 0.95), eps=1e-4),
    "adamw": lambda lr: ml.AdamW(lr, (0.9, 0.9), eps=1e-4, weight_decay=0.1),
    "coupled": lambda lr: ml.Adam(lr, (0.8, 0.95), eps=1e-4, weight_decay=0.1),
    "nadam": lambda lr: ml.NAdam(lr, (0.8, 0.95), eps=1e-4, momentum_decay=4e-3),
    "rmsprop": lambda lr: ml.RMSprop(lr, 0.9, eps=1e-4),
    "centered": lambda lr: ml.RMSprop(lr, 0.9, eps=1e-2, centered=True),
    "heavy_ball": lambda lr: ml.HeavyBall(lr, 0.8),
    "dampened": lambda lr: ml.HeavyBall(lr, 0.8, dampening=0.5),
    "nesterov": lambda lr: ml.Nesterov(lr, 0.8),
    "lion": lambda lr: ml.Lion(lr, smoothing=1e-2),
    "signum": lambda lr: ml.Signum(lr, 0.8, smoothing=1e-2),
    "groups": lambda lr: Groups(
        (
            Part(ml.Adam(lr, (0.8, 0.95), eps=1e-4), torch.tensor([4, 0, 2]), 1.0),
            Part(ml.Adam(lr / 2, (0.5, 0.9), eps=1e-4), torch.tensor([1, 3, 5]), 0.5),
        ),
        lr,
    ),
}
WAVE = Wave.random(6, 3)
START = torch.linspace(-1, 1, 6, dtype=torch.float64)


def run(method: AnyOptimizer, readers: list[AnyOptimizer], steps: int) -> tuple[Tensor, Tensor, list, Shadow]:
    """theta, its gradient, the method's state there, and shadows of the readers."""
    theta, state = START, method.init(START)
    shadow = Shadow([method, *readers], theta)
    for _ in range(steps):
        g = WAVE.gradient(theta)
        shadow.update(g, theta)
        state, F = method.update(state, g, theta)
        theta = theta - method.lr * F
    states = [state] if isinstance(method, Method) else list(state)
    return theta, WAVE.gradient(theta), states, shadow


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 30, 300])
@pytest.mark.parametrize("name", LIVE)
def test_own_memory_comes_back(name, steps, second):
    method = LIVE[name](0.01)
    theta, g, states, shadow = run(method, [], steps)
    found = Recalled(method, states, g, theta, steps, second=second)
    for part in method.parts:
        for v in part.method.variables:
            assert_close(found.memory(v, part.index), shadow.memory(v, g, theta, part.index), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", [exponential, steeper])
def test_literal_sums_along_the_curve(tau):
    """Gradients that lie on a curve of the family are told exactly, for any betas: the sums over every age, written out."""
    n, kappa = 40, float(GROWTHS[45]) / 40  # a curve laid out
    k = np.arange(n + 1)
    way = [torch.tensor([1.0, -2.0, 0.5]) + torch.tensor([0.1, -0.05, 0.3]) * float(t) for t in tau(k, kappa)]
    way = [g.double() for g in way]

    def mean(beta: float, power: int) -> Tensor:
        return sum((beta**a * g**power for a, g in enumerate(way)), torch.zeros(3).double()) / sum(beta**a for a in k)

    method, theta = ml.Adam(0.1, (0.8, 0.95)), torch.zeros(3, dtype=torch.float64)
    sums = tuple(
        sum((v.beta**a * v.g(g, theta) for a, g in enumerate(way[1:])), torch.zeros(3).double()) for v in method.variables
    )
    other = ml.Adam(0.1, (0.5, 0.99))
    found = Recalled(method, [State(n, sums)], way[0], theta, n, [other], second=tau is steeper)
    for power, v in enumerate(other.variables, 1):
        assert_close(found.memory(v), mean(v.beta, power), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(LIVE) - {"rmsprop"}))
def test_order_of_accuracy(name):
    """Along smooth paths the memory of other betas is told to O(lr^2), and so agrees with M to first order.

    Once F[s] has come to rest: before, the way back bends in the age even to first order, which two averages do not show.
    """
    settling = {
        "nadam": lambda lr: ml.NAdam(lr, (0.8, 0.95), eps=1e-4),
        "lion": lambda lr: ml.Lion(lr, (0.9, 0.9), smoothing=1e-2),
    }
    errors, steps = [], 300
    fast = name in ("heavy_ball", "dampened", "nesterov", "centered")
    for lr in (8e-6, 4e-6, 2e-6) if fast else (4e-4, 2e-4, 1e-4):
        method = (LIVE | settling)[name](lr)
        reader = ml.Adam(lr, (0.6, 0.9), eps=1e-2, weight_decay=0.1 if name == "coupled" else 0.0)
        theta, g, states, shadow = run(method, [reader], steps)
        found = Recalled(method, states, g, theta, steps, [reader])
        true = shadow.effect(reader, g, theta)
        errors.append(float((update_of(reader, theta, found.memory) - frozen(reader, g, theta, steps) - true).norm()))
    assert [math.log2(a / b) for a, b in pairwise(errors)][-1] > 1.8, errors


def test_memory_of_g_is_not_told_by_g_squared():
    method = ml.RMSprop(0.01, 0.9)
    theta, g, states, _ = run(method, [], 20)
    found = Recalled(method, states, g, theta, 20)
    v = ml.Adam(0.01).variables[0]
    assert not found.knows(v)
    with pytest.raises(BadInput, match="hold no average that such a memory could be told from"):
        found.memory(v)


def test_memory_of_another_function_is_not_told():
    method = ml.Adam(0.01, weight_decay=0.1)  # averages of g + 0.1 theta
    theta, g, states, _ = run(method, [], 20)
    assert not Recalled(method, states, g, theta, 20).knows_all(ml.HeavyBall(0.01))


def test_nothing_averaged_is_refused():
    method = ml.Method(0.1, (Momentum(0.0, degree=1),), lambda f, m, theta: m[0])
    theta, g, states, _ = run(method, [], 3)
    with pytest.raises(BadInput, match="keeps no average of the gradient or of its square"):
        Recalled(method, states, g, theta, 3)


@pytest.mark.parametrize("n", [5, 63, 64, 65, 3000, None])
def test_ages_hold_all_the_weight(n):
    variables = [Momentum(0.9), Momentum(0.999)]
    ages = Ages(n, variables)
    for v in variables:
        w = ages.weights(v)
        last = 10**5 if n is None else n
        exact = v.beta ** np.arange(last + 1.0)
        assert w.sum() == pytest.approx(1)
        assert w[0] == pytest.approx(1 / exact.sum(), rel=1e-9)
        assert w @ ages.at == pytest.approx(np.arange(last + 1) @ exact / exact.sum(), rel=1e-9)
