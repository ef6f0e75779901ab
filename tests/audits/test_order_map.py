"""Maps along an order of mini-batches against every pair on its own, its memory summed age by age."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import memoryless as ml
from memoryless.audits.grid import Grid
from memoryless.audits.order_map import order_maps
from memoryless.corrections.sequences import random_order
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from memoryless.methods.method import AnyOptimizer, Groups, Momentum, Part
from tests.problems import BATCHES, FULL_BATCH, METHODS, THETA, norm, reference_loss

LR, STEPS = 0.01, 9
MEASURES = ("gradient_1_norm", "batch_gradient_variance")
KINDS: tuple[Literal["first"], Literal["resummed"]] = ("first", "resummed")
BETAS_1, BETAS_2 = (0.0, 0.5, 0.8), (0.5, 0.95)
SUBJECTS: dict[str, Callable[[float], AnyOptimizer]] = {
    name: METHODS[name] for name in ("adam_coupled_decay", "adamw", "adamw_eps_inside", "nadam", "lion")
} | {
    "lion_k": lambda lr: ml.LionK(lr, (0.8, 0.95), 0.1, norm),
    "groups": lambda lr: Groups(
        (
            Part(ml.AdamW(lr, (0.8, 0.9), 0.01, 0.1), torch.tensor([5, 0, 2]), 1.0),
            Part(ml.Adam(2 * lr, (0.7, 0.9), 0.1, 0.1), torch.tensor([1, 4]), 2.0),
        ),
        lr,
    ),
}


def kernel(v: Momentum, n: int, k: int) -> float:
    if k < v.lag:
        return 0.0
    return float(v.weight(n)) * v.beta ** (k - v.lag) * (v.first if k == n else 1.0)


def literal(live: AnyOptimizer, pair: AnyOptimizer, order: np.ndarray) -> tuple[Tensor, Tensor]:
    """M of one pair on the live one's path, to first order and resummed, with a sum over the ages for each batch."""
    n, state, F = len(order) - 1, live.init(THETA), []
    for i in order:
        state, update = live.update(state, BATCHES[i].gradient(THETA), THETA)
        F.append(update)
    D = [sum(F[n - k : n], torch.zeros_like(THETA)) for k in range(n + 1)]

    def memory(v: Momentum, lagging: Tensor) -> Tensor:
        m = torch.zeros_like(THETA)
        for i in set(order.tolist()):
            ages = [k for k in range(n + 1) if order[n - k] == i]
            moment = sum(k * kernel(v, n, k) for k in ages)
            back = LR * sum((kernel(v, n, k) * D[k] for k in ages), torch.zeros_like(THETA)) / (moment or 1.0)
            drift = BATCHES[i].hessian(THETA) @ back
            for k in ages:
                m = m + kernel(v, n, k) * v.g(BATCHES[i].gradient(THETA) + lagging * k * drift, THETA + lagging * k * back)
        return m

    def answer(lagging: Tensor) -> Tensor:
        F = torch.zeros_like(THETA)
        for part in pair.parts:
            m = [memory(v, lagging)[part.index] for v in part.method.variables]
            F = F.index_put((torch.arange(6)[part.index],), part.scale * part.method.readout(m, THETA[part.index]))
        return F

    zero, one = torch.zeros((), dtype=THETA.dtype), torch.ones((), dtype=THETA.dtype)
    return torch.func.jvp(answer, (zero,), (one,))[1], answer(one) - answer(zero)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_pair_is_its_literal_sum_over_the_ages(name: str):
    live, point = SUBJECTS[name](LR), Point(reference_loss(), THETA)
    grid, values = Grid(live, BETAS_1, BETAS_2), evaluate(MEASURES, point)
    order = random_order(len(BATCHES), STEPS, np.random.default_rng(0))
    first, resummed = order_maps(grid, point, values, order)
    assert (first.order, resummed.order) == KINDS
    for i, j in np.ndindex(*grid.shape):
        expected = literal(live, grid.cell(i, j), order)
        for found, M in zip((first, resummed), expected, strict=True):
            for value in values:
                assert found.changes[value.name][i, j] == pytest.approx(value.slope(M, LR), rel=1e-9, abs=1e-15)


def test_the_own_pair_is_its_correction():
    live, point = ml.AdamW(LR, (0.8, 0.95), 0.01, 0.1), Point(reference_loss(), THETA)
    order, values = random_order(len(BATCHES), STEPS, np.random.default_rng(1)), evaluate(MEASURES, point)
    for kind, found in zip(KINDS, order_maps(Grid(live, BETAS_1, BETAS_2), point, values, order), strict=True):
        c = ml.correction(live, point.loss, THETA, step=STEPS - 1, order=kind, batches=order.tolist())
        for value in values:
            assert found.changes[value.name][-1, -1] == pytest.approx(value.slope(c.M, LR), rel=1e-9)


def test_products_are_one_for_each_beta_and_batch(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    curvatures = ml.Loss.curvatures

    def counting(self: ml.Loss, theta: Tensor, vs: Tensor, batch: int):
        asked.append(len(vs))
        return curvatures(self, theta, vs, batch)

    point = Point(reference_loss(), THETA)
    values, order = evaluate(["gradient_1_norm"], point), np.arange(STEPS) % len(BATCHES)
    monkeypatch.setattr(ml.Loss, "curvatures", counting)
    order_maps(Grid(ml.Adam(LR), BETAS_1, BETAS_2), point, values, order)
    assert asked == [3] * len(BATCHES)  # 0.5, 0.8, 0.95: the axes share one, 0 remembers nothing


def test_full_batch_is_the_map_of_one_batch():
    point = Point(ml.Loss.of(FULL_BATCH, THETA))
    grid = Grid(ml.AdamW(LR, (0.8, 0.95), 0.01, 0.1), BETAS_1, BETAS_2)
    maps = order_maps(grid, point, evaluate(["gradient_1_norm", "batch_gradient_variance"], point), np.zeros(8, int))
    for kind, found in zip(KINDS, maps, strict=True):
        map_ = ml.beta_map(grid.method, point.loss, BETAS_1, BETAS_2, step=7, order=kind, check=False)
        assert found.changes["gradient_1_norm"] == pytest.approx(map_.change, rel=1e-12)
        assert not found.changes["batch_gradient_variance"].any()  # of one batch, 0
