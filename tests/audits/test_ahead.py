"""Steps on from theta, against the method's own states fed with the interpolated path and then with the same steps."""

import json

import pytest
import torch

import memoryless as ml
from memoryless.audits.grid import Grid
from memoryless.audits.shadow import Shadow
from memoryless.corrections.history import frozen
from memoryless.corrections.path import follow
from memoryless.experiments.problems import digits_mlp
from memoryless.loss.point import Point
from tests.problems import METHODS, THETA, reference_loss, relative_error, variables


def replayed(method, n: int, nodes: int | None):
    """The state after n steps along the path, linear between its nodes and beyond the last."""
    path = follow(method, Point(reference_loss()), n, [method], nodes)
    points = path.points if len(path.points) else path.gradients  # not looked at
    state, ages = method.init(THETA), path.ages
    for k in range(n, 0, -1):
        j = max(i for i, a in enumerate(ages[:-1]) if a <= k)
        share = (k - ages[j]) / (ages[j + 1] - ages[j])
        x, g = ((1 - share) * y[j] + share * y[j + 1] for y in (points, path.gradients))
        state, _ = method.update(state, g, x)
    return state


@pytest.mark.parametrize("order", ["path", "resummed"])
@pytest.mark.parametrize("name", ["adamw", "adam_coupled_decay", "adam_eps_inside"])
def test_it_is_the_method_itself_from_the_path_on(name: str, order):
    method, loss, theta, n = METHODS[name](1e-3), reference_loss(), THETA, 12
    state = replayed(method, n, None if order == "path" else 2)
    for _ in range(5):
        state, F = method.update(state, loss.gradient(theta), theta)
        theta = theta - method.lr * F
    delta = method.update(state, loss.gradient(theta), theta)[1] - frozen(method, loss.gradient(theta), theta, n + 5)
    found = ml.look_ahead(method, loss, ahead=5, step=n, order=order)
    assert relative_error(found.theta, theta) < 1e-12
    assert relative_error(found.measured, delta) < 1e-9
    assert found.step == n + 5
    S = [float(loss.gradient(theta - method.lr * E).abs().sum()) for E in (found.F + delta, found.F)]
    expected = (S[0] - S[1]) / float(loss.gradient(theta).abs().sum())
    assert found.effects[0].measured == pytest.approx(expected, rel=1e-7)
    assert found.gradients == (7 if order == "path" else 4) + 5


@pytest.mark.parametrize("step", [0, 1, 12, None])
@pytest.mark.parametrize("name", METHODS)
def test_a_shadow_starts_where_it_is_told(name: str, step: int | None):
    method, loss = METHODS[name](1e-3), reference_loss()
    path = follow(method, Point(loss), step)
    shadow = Shadow([method], THETA)
    shadow.start(step, path.memory, loss.gradient(THETA), THETA)
    assert shadow.step == step
    for v in variables(method):
        if v.has_memory:
            assert relative_error(shadow.memory(v, loss.gradient(THETA), THETA), path.memory(v)) < 1e-12
    difference = shadow.effect(method, loss.gradient(THETA), THETA) - path.effect(method)
    assert difference.norm() < 1e-9 * path.effect(method).norm() + 1e-13


def test_a_map_speaks_for_each_pair():
    problem = digits_mlp(width=4, count=50)
    loss, betas = problem.loss, ((0.5, 0.9), (0.9, 0.99))
    before = loss.theta
    found = ml.look_ahead(ml.Adam(1e-3, (0.9, 0.99)), loss, step=30, betas=betas, measures=["gradient_1_norm"])
    assert torch.equal(before, loss.theta)
    assert found.map is not None
    assert found.map.change[1, 1] == pytest.approx(found.effects[0].slopes.measured, rel=1e-8)
    assert found.map.deviation is not None
    assert found.map.settled is not None
    assert found.map.deviation[1, 1] == pytest.approx(0, abs=1e-8)
    assert found.map.settled[1, 1]
    cell = Grid(ml.Adam(1e-3, (0.9, 0.99)), *betas).cell(0, 1)
    # A pair's own steps part from those of the grid's method with lr: to first order its effect is the same.
    assert found.map.change[0, 1] == pytest.approx(
        ml.look_ahead(cell, loss, step=30, measures=["gradient_1_norm"]).effects[0].slopes.measured, rel=0.2
    )
    plain = json.loads(found.to_json())
    assert plain["map"]["settled"][1][1] is True
    assert "20 steps on" in plain["verdict"]
    assert "<" in found.to_html()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ahead": 0}, "ahead must be an integer >= 1, got 0"),
        ({"order": "first"}, "order must be 'path' or 'resummed', got 'first'"),
        ({"step": -1}, "step must be"),
        ({"optimizer": ml.TorchMethod(lambda p: torch.optim.Adamax(p), [THETA.shape])}, "run as it is"),
        ({"optimizer": torch.optim.Adam([torch.nn.Parameter(THETA)]), "theta": THETA}, "leave out theta"),
    ],
)
def test_bad_input(arguments: dict, message: str):
    with pytest.raises(ml.errors.BadInput, match=message):
        ml.look_ahead(**{"optimizer": ml.Adam(), "loss": reference_loss()} | arguments)
