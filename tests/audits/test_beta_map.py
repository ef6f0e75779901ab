import sys

import numpy as np
import pytest
import torch

import memoryless as ml
from memoryless.audits.beta_map import BetaMap, Check, measured_map
from memoryless.audits.grid import Grid, share_update
from memoryless.audits.shadow import Shadow
from memoryless.corrections.history import frozen
from memoryless.corrections.path import follow
from memoryless.loss import measures
from memoryless.loss.point import Point
from tests.problems import THETA, Wave, reference_loss

BETAS_1, BETAS_2 = (0.0, 0.5, 0.9), (0.5, 0.9, 0.95, 0.99)
METHODS = {
    "adam": ml.Adam(0.01, (0.9, 0.95), 0.01, weight_decay=0.1),
    "adamw_eps_inside": ml.AdamW(0.01, (0.9, 0.95), 0.01, 0.1, eps_inside_root=True),
    "nadam_schedule": ml.NAdam(0.01, (0.9, 0.95), 0.01, momentum_decay=4e-3),
    "lion": ml.Lion(0.01, (0.9, 0.95), 0.1, smoothing=0.1),
    "lion_k": ml.LionK(0.01, (0.9, 0.95), K=lambda c: (c.square().sum() + 0.1).sqrt()),
}


def pair_by_pair(method: ml.Method, loss: ml.Loss, step: int | None, kind, slope: torch.Tensor, S: float):
    return [
        [
            -method.lr * float(slope @ ml.correction(method.with_hyper(betas=(b1, b2)), loss, step=step, order=kind).M) / S
            for b2 in BETAS_2
        ]
        for b1 in BETAS_1
    ]


@pytest.mark.parametrize("step", [None, 0, 7])
@pytest.mark.parametrize("kind", ["first", "resummed"])
@pytest.mark.parametrize("name", METHODS)
def test_predicted_map_is_one_correction_for_each_pair(name: str, kind, step: int | None):
    loss, method = reference_loss(), METHODS[name]
    found = ml.beta_map(method, loss, BETAS_1, BETAS_2, order=kind, step=step)
    (value,) = measures.evaluate(["gradient_1_norm"], Point(loss, THETA))
    expected = pair_by_pair(method, loss, step, kind, value.gradient, value.value)
    assert found.change == pytest.approx(torch.tensor(expected).numpy(), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("name", METHODS)
def test_measured_map_is_each_pairs_own_state_on_the_live_gradients(name: str):
    """Twin: a method's own init/update for each pair, fed with the stream."""
    method, wave = METHODS[name], Wave.random(6, seed=1)
    theta = torch.nn.Parameter(THETA.clone())
    loss = ml.Loss.of(wave, theta)
    optimizer = torch.optim.AdamW([theta], lr=0.01)
    grid = Grid(method, BETAS_1, BETAS_2)
    shadow = Shadow(grid.spanning(), THETA)
    pairs = [[method.with_hyper(betas=(b1, b2)) for b2 in BETAS_2] for b1 in BETAS_1]
    states = [[m.init(THETA) for m in row] for row in pairs]
    for _ in range(6):
        point, gradient = loss.theta, loss.gradient(loss.theta)
        shadow.update(gradient, point)
        states = [
            [m.update(s, gradient, point)[0] for m, s in zip(*rows, strict=True)] for rows in zip(pairs, states, strict=True)
        ]
        theta.grad = gradient
        optimizer.step()
    point, gradient = loss.theta, loss.gradient(loss.theta)
    values = measures.evaluate(["gradient_norm_squared"], Point(loss))
    found = measured_map(grid, shadow, gradient, point, values)

    def change(m: ml.Method, state) -> float:
        delta = m.update(state, gradient, point)[1] - frozen(m, gradient, point, 6)
        return -m.lr * float(values[0].gradient @ delta) / values[0].value

    expected = [[change(m, s) for m, s in zip(*rows, strict=True)] for rows in zip(pairs, states, strict=True)]
    assert found.change == pytest.approx(torch.tensor(expected).numpy(), rel=1e-9, abs=1e-15)


def test_blocks_of_coordinates_change_nothing(monkeypatch: pytest.MonkeyPatch):
    loss = reference_loss()
    whole = ml.beta_map(METHODS["adam"], loss, BETAS_1, BETAS_2)
    monkeypatch.setattr(sys.modules[Grid.__module__], "BLOCK", 24)  # two coordinates at a time
    assert ml.beta_map(METHODS["adam"], loss, BETAS_1, BETAS_2).change == pytest.approx(whole.change, rel=1e-12)


@pytest.mark.parametrize("name", ["adam", "nadam_schedule", "lion"])
def test_one_product_serves_the_whole_map_and_one_its_measure(name: str, monkeypatch: pytest.MonkeyPatch):
    loss, used = reference_loss(), []
    gradient, curvature = loss.linearize(THETA)
    monkeypatch.setattr(loss, "linearize", lambda theta, products=None: (gradient, lambda v: used.append(v) or curvature(v)))
    for kind in ("first", "resummed"):
        ml.beta_map(METHODS[name], loss, BETAS_1, BETAS_2, order=kind)
    assert len(used) == 4


@pytest.mark.parametrize(
    ("method", "betas", "kind", "message"),
    [
        (ml.HeavyBall(), (0.9,), "first", "expected a method with betas"),
        (ml.Adam(), (0.9, 0.5), "first", "must increase"),
        (ml.Adam(), (), "first", "must increase"),
        (ml.Adam(), (0.5, 1.0), "first", "must lie in"),
        (ml.Adam(), (0.5,), "measured", "measured maps come from audit_run"),
    ],
)
def test_bad_input(method: ml.Method, betas: tuple[float, ...], kind, message: str):
    with pytest.raises(ValueError, match=message):
        ml.beta_map(method, reference_loss(), betas, (0.9,), order=kind)


def test_checks_are_what_happens_at_the_own_pair_and_the_corners():
    loss = reference_loss()
    method = METHODS["adam"]
    found = ml.beta_map(method, loss, BETAS_1, BETAS_2, order="resummed", step=7)
    corners = {(b1, b2) for b1 in (BETAS_1[0], BETAS_1[-1]) for b2 in (BETAS_2[0], BETAS_2[-1])}
    assert {check.betas for check in found.checks} == {method.hyper["betas"], *corners}
    (value,) = measures.evaluate(["gradient_1_norm"], Point(loss))
    for check in found.checks:
        c = ml.correction(method.with_betas(*check.betas), loss, step=7, order="resummed")
        ends = [loss.gradient(loss.theta - method.lr * update).abs().sum() for update in (c.F + c.M, c.F)]
        assert check.changes["gradient_1_norm"] == pytest.approx(float(ends[0] - ends[1]) / value.value, rel=1e-9)
        if check.betas in corners:
            i, j = BETAS_1.index(check.betas[0]), BETAS_2.index(check.betas[1])
            assert check.slopes["gradient_1_norm"] == pytest.approx(found.change[i, j], rel=1e-9)
    assert not ml.beta_map(method, loss, BETAS_1, BETAS_2, check=False).checks


def test_a_map_misleads_near_a_pair_where_the_sign_is_another():
    checks = tuple(Check((0.9, b2), {"S": 1.0}, {"S": happens}) for b2, happens in ((0.5, -1.0), (0.999, 1.0)))
    found = BetaMap((0.9,), (0.5, 0.7, 0.99, 0.999), "measured", {"S": np.ones((1, 4))}, checks)
    assert found.misleads("S").tolist() == [[True, True, False, False]]
    assert not found.misleads("another").any()


@pytest.mark.parametrize("name", ["adam", "adamw_eps_inside", "lion"])
def test_a_map_along_the_path(name: str):
    """One path serves all pairs that share F, the method's own and as long as the oldest remembers; else a path each."""
    method, loss, betas = METHODS[name], reference_loss(), ((0.5, 0.9), (0.9, 0.95))
    grid = Grid(method, *betas)
    point = Point(loss)
    (value,) = measures.evaluate(["gradient_norm_squared"], point)
    own = follow(method, point, 30, [grid.oldest])
    found = ml.beta_map(method, loss, *betas, step=30, order="path", measures=["gradient_norm_squared"])
    assert found.growth == own.growth
    assert found.trusted == own.trusted
    shared = share_update(grid, point.gradient, point.theta, 30)
    assert shared == (name != "lion")
    for i in range(2):
        for j in range(2):
            cell = grid.cell(i, j)
            path = own if shared else follow(cell, point, 30)
            assert found.change[i, j] == pytest.approx(value.slope(path.effect(cell), method.lr), rel=1e-8, abs=1e-14)
    assert found.as_dict()["trusted"] == found.trusted
