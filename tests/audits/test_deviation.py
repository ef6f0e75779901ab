"""Deviation of what does not run, against its own states fed by hand with the run's gradients."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import memoryless as ml
from memoryless.audits import deviation
from memoryless.audits.beta_map import BetaMap
from memoryless.audits.deviation import settles, usual
from memoryless.audits.grid import Grid
from memoryless.audits.shadow import Shadow
from memoryless.experiments.problems import digits_batches, digits_mlp
from memoryless.methods.method import AnyOptimizer, Groups, Part
from tests.problems import THETA, norm, reference_loss

BETAS_1, BETAS_2 = (0.0, 0.5, 0.9), (0.5, 0.9, 0.99)
LION_K = ml.LionK(0.01, (0.9, 0.95), K=norm)
GRIDS = {
    "adam": ml.Adam(0.01, (0.9, 0.95), 0.01, weight_decay=0.1),
    "nadam": ml.NAdam(0.01, (0.9, 0.95), 0.01, momentum_decay=4e-3),
    "lion": ml.Lion(0.01, (0.9, 0.95), 0.1, smoothing=0.1),
    "lion_k": LION_K,
    "groups": Groups(
        (Part(ml.AdamW(0.01, (0.8, 0.9), 0.01, 0.1), torch.tensor([5, 0, 2]), 1.0), Part(ml.AdamW(0.02), slice(3, 5), 2.0)),
        0.01,
    ),
}


def run(method: AnyOptimizer, steps: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """theta[0..steps] and its gradients."""
    loss, theta = reference_loss(), THETA
    state, thetas, gradients = method.init(theta), [theta], []
    for _ in range(steps):
        gradients.append(loss.gradient(theta))
        state, F = method.update(state, gradients[-1], theta)
        theta = theta - method.lr * F
        thetas.append(theta)
    return thetas, gradients


def literal(other, lr: float, thetas: list[torch.Tensor], gradients: list[torch.Tensor]) -> float:
    """From the method's own states, fed with the run's gradients."""
    state, updates = other.init(thetas[0]), []
    for theta, gradient in zip(thetas[:-1], gradients, strict=True):
        state, u = other.update(state, gradient, theta)
        updates.append(u)
    live = [(a - b) / lr for a, b in itertools.pairwise(thetas)]
    walked = torch.stack(live[-10:]).sum(0)
    return float((torch.stack(updates[-10:]).sum(0) - walked).norm() / walked.norm())


@pytest.mark.parametrize("steps", [1, 6, 25])
@pytest.mark.parametrize("name", GRIDS)
def test_deviation_is_that_of_the_methods_own_states(name: str, steps: int):
    method = GRIDS[name]
    others = [ml.Adam(0.01), ml.HeavyBall(0.01), ml.Lion(0.01, smoothing=0.1)]
    thetas, gradients = run(method, steps)
    grid = Grid(method, BETAS_1, BETAS_2)
    shadow = Shadow([*others, *grid.spanning()], THETA)
    found = deviation.Deviations(others, grid, THETA, method.lr)
    for theta, gradient in zip(thetas[:-1], gradients, strict=True):
        found.feed(shadow, gradient, theta)
        shadow.update(gradient, theta)
    alone, pairs = found.of(thetas[-1])
    assert alone == pytest.approx([literal(other, method.lr, thetas, gradients) for other in others], rel=1e-9)
    expected = [[literal(grid.cell(i, j), method.lr, thetas, gradients) for j in range(3)] for i in range(3)]
    assert pairs is not None
    np.testing.assert_allclose(pairs, expected, rtol=1e-9, atol=1e-12)


def small(betas=((0.5, 0.9), (0.9, 0.999)), stops=(0, 2, 20)):
    problem = digits_mlp(width=8, count=50)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-3)
    others = [ml.Adam(1e-3), ml.HeavyBall(1e-3)]
    return ml.audit_run(optimizer, problem.loss, 20, stops=stops, betas=betas, compare=others, measures=["gradient_1_norm"])


def test_a_run_speaks_for_itself_and_not_for_a_method_on_another_scale():
    start, early, last = small().stops
    assert [other.settled for other in start.others] == [None, None]
    assert start.maps[0].settled is None
    for stop in (early, last):
        itself, ball = stop.others
        assert itself.deviation == pytest.approx(0, abs=1e-8)
        assert itself.settled == (True,)
        assert ball.settled == (False,)
        measured, *predicted = stop.maps
        assert measured.deviation is not None
        assert measured.settled is not None
        assert measured.deviation[1, 1] == pytest.approx(0, abs=1e-8)
        assert measured.settled[1, 1]
        assert all(each.settled is None for each in predicted)
    plain = json.loads(last.to_json())
    assert [other["changes"]["gradient_1_norm"]["settled"] for other in plain["others"]] == [True, False]
    assert plain["maps"][0]["settled"][1][1] is True


def test_it_is_estimated_from_some_coordinates_of_many(monkeypatch):
    exact = small(stops=(20,)).stops[0]
    monkeypatch.setattr(deviation, "COORDINATES", 300)
    few = small(stops=(20,)).stops[0]
    assert exact.maps[0].deviation is not None
    assert few.maps[0].deviation is not None
    assert few.maps[0].deviation == pytest.approx(exact.maps[0].deviation, rel=0.15, abs=1e-8)
    assert not np.array_equal(few.maps[0].deviation, exact.maps[0].deviation)
    assert few.maps[0].changes["gradient_1_norm"] == pytest.approx(exact.maps[0].changes["gradient_1_norm"])


def test_along_mini_batches():
    problem = digits_batches(size=200, width=4)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-3)
    steps = np.arange(30) % len(problem.loss)
    (stop,) = ml.audit_run(
        optimizer, problem.loss, steps, stops=[29], betas=((0.5, 0.9), (0.9, 0.999)), compare=[], measures=["gradient_1_norm"]
    ).stops
    assert stop.maps[0].deviation is not None
    assert stop.maps[0].deviation[1, 1] == pytest.approx(0, abs=1e-8)
    assert stop.maps[0].deviation[0, 0] > 0.1


def test_a_small_change_among_large_ones_is_not_settled_by_a_path_that_is_left():
    changes = np.array([0.1, -0.11, 0.02, np.nan, 0.12, 0.09])
    assert usual(changes) == pytest.approx(0.1)
    deviations = np.array([0.3, 0.0, 0.3, 0.1, 0.41, 0.39])
    assert settles(deviations, changes, usual(changes)).tolist() == [True, True, False, False, False, True]
    assert not settles(np.array(0.0), np.array(np.nan), usual(np.array([np.nan])))


def test_a_map_is_settled_where_each_of_its_measures_is():
    axes, deviation = ((0.5, 0.9), (0.9, 0.999)), np.array([[0.1, 0.3], [0.0, 0.5]])
    changes = {"one": np.array([[0.1, 0.1], [0.1, 0.1]]), "two": np.array([[0.01, 0.1], [0.1, 0.1]])}
    found = BetaMap(*axes, "measured", changes, deviation=deviation)
    one = found.settled_for("one")
    assert one is not None
    assert one.tolist() == [[True, True], [True, False]]
    assert found.settled is not None
    assert found.settled.tolist() == [[False, True], [True, False]]
    known = replace(found, usual={"one": np.full((2, 2), 0.2), "two": np.full((2, 2), 0.01)})
    assert known.settled is not None
    assert known.settled.tolist() == [[True, False], [True, False]]
