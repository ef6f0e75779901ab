"""Maps from a live optimizer's buffers: the own pair as measured, others as written out, doubt told, nothing changed."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import memoryless as ml
from memoryless.audits.grid import Grid
from memoryless.audits.shadow import Shadow
from memoryless.audits.state_map import SCALE, UNKNOWN, Buffers
from memoryless.corrections.history import frozen, update_of
from memoryless.corrections.recalled import Recalled
from memoryless.errors import BadInput, NotRecognised
from memoryless.loss.point import Point
from memoryless.methods.method_optimizer import MethodOptimizer

BETAS_1, BETAS_2 = (0.0, 0.5, 0.9), (0.5, 0.9, 0.99)


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def trained(make, steps: int = 60, copies: int = 1):
    """A small network after some full-batch steps, its optimizer, and the gradients of the way."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    batch = torch.randn(24, 4), torch.arange(24) % 3
    loss = ml.Loss(model, cross_entropy, [batch] * copies)
    optimizer, way = make(model), []
    for _ in range(steps):
        way.append((loss.theta, loss.backward(None)))
        optimizer.step()
    return optimizer, loss, way


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.99), eps=1e-4)


MAKERS = {
    "adam": adam,
    "adamw_groups": lambda model: torch.optim.AdamW(
        [{"params": [model[2].weight], "lr": 1e-3}, {"params": [model[0].bias, model[0].weight, model[2].bias]}],
        lr=3e-3, betas=(0.9, 0.99), eps=1e-4, weight_decay=0.1,
    ),
    "coupled": lambda model: torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.99), eps=1e-4, weight_decay=0.1),
    "nadam": lambda model: torch.optim.NAdam(model.parameters(), lr=3e-3, betas=(0.9, 0.99), eps=1e-4),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_the_own_pair_is_as_measured(name):
    optimizer, loss, _ = trained(MAKERS[name])
    found = ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state", measures=["gradient_1_norm", "gradient_norm_squared"])
    measured = ml.audit(optimizer, loss, measures=["gradient_1_norm", "gradient_norm_squared"])
    assert found.error is not None
    assert found.intervals is not None
    assert found.error[2, 2] < 1e-9
    for effect in measured.effects:
        assert found.changes[effect.measure][2, 2] == pytest.approx(effect.slopes.measured, rel=1e-7)
        assert found.intervals[effect.measure][2, 2] == pytest.approx(0, abs=1e-9)
    own = next(check for check in found.checks if check.betas == (0.9, 0.99))
    assert own.changes["gradient_1_norm"] == pytest.approx(measured.effects[0].measured, rel=1e-7)


@pytest.mark.parametrize("name", MAKERS)
def test_every_pair_is_what_the_recalled_memory_does(name):
    """The twin: each pair's update, written out, against the sums over theta for all pairs at once."""
    optimizer, loss, _ = trained(MAKERS[name])
    point = Point(loss)
    found = ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state", check=False)
    buffers = Buffers(optimizer, point)
    grid = Grid(buffers.method, BETAS_1, BETAS_2)
    cells = [grid.cell(i, j) for i in range(3) for j in range(3)]
    known = buffers.recalled(cells)
    second = Recalled(buffers.method, buffers.states, point.gradient, point.theta, buffers.step, cells, second=True)
    sign = point.curvature(point.gradient.sign()) / point.gradient.abs().sum()
    assert found.error is not None
    for method, change, error in zip(cells, found.change.ravel(), found.error.ravel(), strict=True):
        F = frozen(method, point.gradient, point.theta, buffers.step)
        E, other = (update_of(method, point.theta, each.memory) - F for each in (known, second))
        assert error == pytest.approx(SCALE * float((E - other).norm() / E.norm()), rel=1e-8, abs=1e-12)
        if error < UNKNOWN:
            assert change == pytest.approx(-method.lr * float(sign @ E), rel=1e-7, abs=1e-13)
        else:
            assert np.isnan(change)


def test_told_within_its_error():
    """Against shadows of the run itself, which are exact: where the error is told to be small the effect is right."""
    optimizer, loss, way = trained(adam, 200)
    found = ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state", check=False)
    point = Point(loss)
    grid = Grid(ml.method_of(optimizer, loss.layout), BETAS_1, BETAS_2)
    cells = [grid.cell(i, j) for i in range(3) for j in range(3)]
    shadow = Shadow(cells, way[0][0])
    for theta, gradient in way:
        shadow.update(gradient, theta)
    known = Buffers(optimizer, point).recalled(cells)
    assert found.error is not None
    small = 0
    for method, error in zip(cells, found.error.ravel(), strict=True):
        true = shadow.effect(method, point.gradient, point.theta)
        told = update_of(method, point.theta, known.memory) - frozen(method, point.gradient, point.theta, 200)
        if error < 0.2:
            small += 1
            assert float((told - true).norm() / true.norm()) < 0.25
    assert small >= 6


def test_nothing_is_changed():
    optimizer, loss, _ = trained(adam)
    before, theta = copy.deepcopy(optimizer.state_dict()), loss.theta.clone()
    ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state")
    ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state", steps=3)
    assert torch.equal(loss.theta, theta)
    for key, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[name], before["state"][key][name]) for name in state)


def test_steps_ahead_are_the_real_ones():
    """Shadows that start from buffers and take real steps: the own pair is what the optimizer itself does there."""
    optimizer, loss, _ = trained(adam)
    found = ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state", steps=5)
    for _ in range(5):
        loss.backward(None)
        optimizer.step()
    effect = ml.audit(optimizer, loss, measures=["gradient_1_norm"]).effects[0]
    assert found.order == "measured"
    assert found.settled is not None
    assert found.change[2, 2] == pytest.approx(effect.slopes.measured, rel=1e-6)


def test_optimizers_without_betas_stand_for_adamw():
    optimizer, loss, _ = trained(lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    found = ml.beta_map(optimizer, loss, (0.0, 0.9), (0.9, 0.99), order="state")
    assert found.error is not None
    assert np.isfinite(found.error).all()
    ball = next(guess for guess in found.others if guess.method.startswith("heavy_ball"))
    assert ball.error < 1e-9  # its own memory


def test_what_buffers_cannot_tell_is_blank():
    optimizer, loss, _ = trained(lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-3))
    found = ml.beta_map(optimizer, loss, (0.0, 0.9), (0.9, 0.99), order="state")
    assert found.error is not None
    assert np.isinf(found.error[1]).all()  # averages of g, from averages of g^2
    assert np.isnan(found.change[1]).all()
    assert found.as_dict()["changes"]["gradient_1_norm"][1] == [None, None]
    assert all(guess.changes is None for guess in found.others)


def test_lion_of_the_library():
    optimizer, loss, _ = trained(lambda model: MethodOptimizer(model.parameters(), ml.Lion(1e-3, smoothing=1e-2)))
    found = ml.beta_map(optimizer, loss, (0.5, 0.9), (0.9, 0.99), order="state")
    effect = ml.audit(optimizer, loss, measures=["gradient_1_norm"]).effects[0]
    assert found.change[1, 1] == pytest.approx(effect.slopes.measured, rel=1e-7)


@pytest.mark.parametrize(
    ("make", "steps", "copies", "options", "message"),
    [
        (adam, 0, 1, {}, "has taken no step yet"),
        (adam, 5, 2, {}, "the loss has 2 batches, and the noise of single ones"),
        (adam, 5, 1, {"theta": torch.zeros(51, dtype=torch.float64)}, "a live optimizer is mapped where it is"),
        (adam, 5, 1, {"order": "path", "steps": 3}, "they go with order='state'"),
    ],
)
def test_refusals(make, steps, copies, options, message):
    optimizer, loss, _ = trained(make, steps, copies)
    with pytest.raises(BadInput, match=message):
        ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, **{"order": "state"} | options)


def test_several_batches_of_a_full_batch_past():
    optimizer, loss, _ = trained(adam, 20, 2)
    one, same, _ = trained(adam, 20, 1)
    assert_close(
        ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state", full_batch=True).change,
        ml.beta_map(one, same, BETAS_1, BETAS_2, order="state").change,
        rtol=1e-6,
        atol=1e-12,
        equal_nan=True,
    )


def test_a_method_has_no_buffers():
    _, loss, _ = trained(adam, 1)
    with pytest.raises(BadInput, match="order='state' reads the buffers of a live optimizer"):
        ml.beta_map(ml.Adam(), loss, BETAS_1, BETAS_2, order="state")


def test_other_optimizers_are_refused():
    optimizer, loss, _ = trained(lambda model: torch.optim.Adagrad(model.parameters()), 3)
    with pytest.raises(NotRecognised, match="buffers of Adagrad cannot be read"):
        ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state")


def test_a_live_optimizer_is_predicted_as_its_method():
    optimizer, loss, _ = trained(adam, 30)
    live = ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="resummed", check=False)
    method = ml.beta_map(ml.method_of(optimizer, loss.layout), loss, BETAS_1, BETAS_2, step=30, order="resummed", check=False)
    assert_close(live.change, method.change)


def test_errors_on_a_sample(monkeypatch):
    """Of many coordinates the error is told from some: near that of all."""
    optimizer, loss, _ = trained(adam)
    whole = ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state", check=False).error
    monkeypatch.setattr("memoryless.audits.state_map.SAMPLE", 40)
    some = ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state", check=False).error
    assert whole is not None
    assert some is not None
    assert 0 < np.abs(some - whole).max() < 1
    assert np.corrcoef(np.log(some[:2].ravel() + 1e-9), np.log(whole[:2].ravel() + 1e-9))[0, 1] > 0.9


def test_others_along_a_run():
    """At a stop the live buffers tell of other methods, as their shadows measure; of none before the first step."""
    optimizer, loss, _ = trained(adam, 0)
    others = [ml.Adam(3e-3, (0.8, 0.9), eps=1e-4), ml.Signum(3e-3, 0.9, smoothing=1e-2), ml.HeavyBall(3e-3)]
    others.append(ml.Adam(3e-3, weight_decay=0.1))  # of gradients that the live one does not average
    run = ml.audit_run(optimizer, loss, 60, stops=[0, 60], measures=["gradient_1_norm"], compare=others, betas=None)
    assert all(other.state is None and other.error is None for other in run.stops[0].others)
    near, exact, ball, unknown = run.stops[1].others
    assert unknown.error == np.inf
    assert unknown.state is None
    assert json.loads(run.to_json())["stops"][1]["others"][3]["error"] is None
    assert near.state is not None
    assert near.error is not None
    assert near.error < 0.5
    assert near.state[0] == pytest.approx(near.measured[0], rel=0.2)
    for known in (exact, ball):  # the momentum that the buffers hold
        assert known.state is not None
        assert known.error == pytest.approx(0, abs=1e-9)
        assert known.state[0] == pytest.approx(known.measured[0], rel=1e-6, abs=1e-13)


PARTS = {
    "first layer": lambda model: list(model[0].parameters()),
    "last layer": lambda model: list(model[2].parameters()),
    "weights": lambda model: [model[0].weight, model[2].weight],
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("make", ["adam", "sgd"])
def test_optimizers_of_a_part_of_the_model(make, part):
    """What the optimizer does not hold stays, in every method that is told: slopes as their checks, and a small effect."""

    def of(model: nn.Module) -> torch.optim.Optimizer:
        if make == "adam":
            return torch.optim.Adam(PARTS[part](model), lr=3e-3, betas=(0.9, 0.99), eps=1e-4)
        return torch.optim.SGD(PARTS[part](model), lr=3e-3, momentum=0.9)

    optimizer, loss, _ = trained(of)
    found = ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state", step=60)
    assert found.checks
    for check in found.checks:
        if check.betas == (0.9, 0.999):  # Adam's own default, which is not on the axes
            continue
        i, j = BETAS_1.index(check.betas[0]), BETAS_2.index(check.betas[1])
        assert found.change[i, j] == pytest.approx(check.slopes["gradient_1_norm"], rel=1e-7, abs=1e-12)
        assert abs(check.changes["gradient_1_norm"]) < 0.1
    own = ml.audit(optimizer, loss, step=60, measures=["gradient_1_norm"]).effects[0].slopes.measured
    if make == "adam":
        assert found.change[2, 2] == pytest.approx(own, rel=1e-7)
    else:
        ball = next(guess for guess in found.others if guess.method.startswith("heavy_ball"))
        assert ball.changes is not None
        assert ball.changes["gradient_1_norm"] == pytest.approx(own, rel=1e-6)


def test_updates_that_jump_are_not_told_exactly():
    """Lion's signs may turn within what the buffers leave open, though both curves have the same ones."""
    told = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        loss = ml.Loss(model, lambda model, x: (model(x) - x.sum(1, keepdim=True).sin()).square().mean(), [torch.randn(32, 6)])
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(60):
            loss.backward(None)
            optimizer.step()
        found = ml.beta_map(optimizer, loss, (0.9,), (0.99,), order="state", check=False)
        told.append({guess.method.partition("(")[0]: guess.error for guess in found.others})
    assert all(each["lion"] > 0.2 for each in told)
    assert all(each["signum"] < 1e-6 for each in told)  # its memory is the one in the buffers


def test_decay_in_the_gradients_stays_in_them():
    optimizer, loss, _ = trained(lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1))
    found = ml.beta_map(optimizer, loss, (0.0, 0.9), (0.9, 0.99), order="state", step=60)
    assert found.error is not None
    assert np.isfinite(found.error).all()
    known = {guess.method.partition("(")[0]: guess.changes is not None for guess in found.others}
    assert known == {"lion": False, "signum": False, "heavy_ball": True}  # Lion averages plain gradients


def test_steps_that_are_not_counted_are_noted():
    optimizer, loss, _ = trained(lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), 3)
    assert "does not count its steps" in ml.beta_map(optimizer, loss, (0.9,), (0.99,), order="state").notes[0]
    assert not ml.beta_map(optimizer, loss, (0.9,), (0.99,), order="state", step=3).notes


def test_a_layer_unfrozen_on_the_way_is_refused():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    loss = ml.Loss(model, cross_entropy, [(torch.randn(24, 4), torch.arange(24) % 3)])
    optimizer = torch.optim.Adam(model[2].parameters())
    for _ in range(3):
        loss.backward(None)
        optimizer.step()
    optimizer.add_param_group({"params": list(model[0].parameters())})
    with pytest.raises(BadInput, match="2 of the 4 tensors that Adam holds have no memory yet"):
        ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state")


def test_a_group_that_the_sample_misses(monkeypatch):
    monkeypatch.setattr("memoryless.audits.state_map.SAMPLE", 2)
    optimizer, loss, _ = trained(MAKERS["adamw_groups"])
    assert np.isfinite(ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state").change[2, 2])


@pytest.mark.parametrize(
    ("make", "step", "message"),
    [
        (adam, -1, "step must be"),
        (adam, 2.5, "step must be"),
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), None, "keeps no memory"),
    ],
)
def test_refusals_of_buffers(make, step, message):
    optimizer, loss, _ = trained(make, 5)
    with pytest.raises(BadInput, match=message):
        ml.beta_map(optimizer, loss, BETAS_1, BETAS_2, order="state", step=step)


def test_looking_ahead_asks_for_the_past_too():
    optimizer, loss, _ = trained(adam, 5, 2)
    with pytest.raises(BadInput, match="the noise of single ones"):
        ml.look_ahead(optimizer, loss, ahead=2)
    assert ml.look_ahead(optimizer, loss, ahead=2, full_batch=True).step == 7
