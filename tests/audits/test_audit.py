import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

import memoryless as ml
from memoryless.corrections.history import frozen
from memoryless.experiments import problems
from tests.problems import THETA, reference_loss, relative_error

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "adam": lambda params: torch.optim.Adam(params, lr=1e-3, betas=(0.9, 0.99)),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "nadam": lambda params: torch.optim.NAdam(params, lr=1e-3),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=1e-3),
}


def small(make=OPTIMIZERS["adamw"], dtype=torch.float64):
    problem = problems.digits_mlp(width=8, count=100, dtype=dtype)
    return problem.loss, make(problem.model.parameters())


def plain_run(optimizer: torch.optim.Optimizer, loss: ml.Loss, steps: int) -> None:
    for _ in range(steps):
        loss.layout.set_gradients(loss.gradient(loss.theta))
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_run_is_bit_identical_with_and_without_the_audit(name: str, dtype: torch.dtype):
    (with_loss, with_optimizer), (without_loss, without_optimizer) = (small(OPTIMIZERS[name], dtype) for _ in range(2))
    before = torch.get_rng_state()
    ml.audit_run(with_optimizer, with_loss, steps=12, betas=((0.5, 0.9), (0.9, 0.99)))
    assert torch.equal(before, torch.get_rng_state())
    plain_run(without_optimizer, without_loss, 12)
    assert torch.equal(with_loss.theta, without_loss.theta)
    for a, b in zip(with_optimizer.state.values(), without_optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_an_audit_at_a_point_changes_nothing():
    loss, optimizer = small()
    plain_run(optimizer, loss, 3)
    theta, state = loss.theta, copy.deepcopy(optimizer.state_dict())
    grads = [p.grad.clone() for p in loss.layout.tensors if p.grad is not None]
    ml.audit(optimizer, loss)
    assert torch.equal(theta, loss.theta)
    assert all(torch.equal(p.grad, g) for p, g in zip(loss.layout.tensors, grads, strict=True) if p.grad is not None)
    assert str(state) == str(optimizer.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_measured_is_what_the_optimizer_really_does_less_the_frozen_update(name: str):
    loss, optimizer = small(OPTIMIZERS[name])
    plain_run(optimizer, loss, 7)
    found, theta, gradient = ml.audit(optimizer, loss, step=7), loss.theta, loss.gradient(loss.theta)
    plain_run(optimizer, loss, 1)
    lr = optimizer.param_groups[0]["lr"]
    really = (theta - loss.theta) / lr - frozen(ml.method_of(optimizer, loss.layout), gradient, theta, 7)
    assert found.measured is not None
    assert relative_error(found.measured, really) < 1e-9


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_shadow_of_the_live_method_measures_the_same(name: str):
    loss, optimizer = small(OPTIMIZERS[name])
    method = ml.method_of(optimizer, loss.layout)
    assert isinstance(method, ml.Method)
    run = ml.audit_run(optimizer, loss, steps=9, stops=[0, 1, 9], compare=[method], betas=((0.9,), (0.99,)))
    for stop in run.stops:
        other = stop.others[0]
        for effect, slope, change in zip(stop.audit.effects, other.measured, other.change, strict=True):
            assert slope == pytest.approx(effect.slopes.measured, rel=1e-8, abs=1e-15)
            assert effect.measure == "sharpness" or change == pytest.approx(effect.measured, rel=1e-8, abs=1e-15)
        assert other.change[2] is None  # the sharpness takes products
        assert stop.others[0].same_update


@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_changes_are_differences_of_two_values(lr):
    problem = problems.digits_mlp(width=8, count=100)
    loss, optimizer = problem.loss, torch.optim.AdamW(problem.model.parameters(), lr=lr)
    plain_run(optimizer, loss, 20)
    found = ml.audit(optimizer, loss)
    literal = {
        "gradient_1_norm": lambda theta: loss.gradient(theta).abs().sum(),
        "gradient_norm_squared": lambda theta: loss.gradient(theta).square().sum(),
        "sharpness": lambda theta: torch.linalg.eigvalsh(hessian(problem, theta))[-1],
    }
    for e in found.effects:
        S = literal[e.measure]
        without = S(loss.theta - lr * found.F)
        for kind in ("measured", "first", "resummed"):
            happens = S(loss.theta - lr * (found.F + getattr(found, kind))) - without
            assert getattr(e, kind) == pytest.approx(float(happens / S(loss.theta)), rel=1e-6, abs=1e-9)
        assert e.update == pytest.approx(float(without / S(loss.theta) - 1), rel=1e-6, abs=1e-9)
        assert e.measured is not None
        assert found.validity.straight[e.measure] == pytest.approx(e.measured / e.slopes.best)


def hessian(problem: problems.Problem, theta: torch.Tensor) -> torch.Tensor:
    shapes = {name: p.shape for name, p in problem.model.named_parameters()}

    def value(theta: torch.Tensor) -> torch.Tensor:
        parts = theta.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        inputs, classes = problem.batches[0]
        return torch.nn.functional.cross_entropy(torch.func.functional_call(problem.model, named, (inputs,)), classes)

    return torch.func.hessian(value)(theta)


def test_words_follow_what_happens_where_a_slope_misleads():
    """|grad L|^2 of L = theta^2 / 2 is theta^2, which a step far across the minimum makes larger; its slope says smaller."""
    theta = torch.nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64))
    loss = ml.Loss.of(lambda t: t.square().sum() / 2, theta)
    optimizer = torch.optim.SGD([theta], lr=1.0, momentum=0.9)
    theta.grad = torch.tensor([5.0, -5.0], dtype=torch.float64)
    optimizer.step()
    theta.grad = None
    with torch.no_grad():
        theta.copy_(torch.tensor([1.0, -1.0]))
    (e,) = ml.audit(optimizer, loss, step=1, measures=["gradient_norm_squared"]).effects
    # F[1] = 1.9 theta, Delta = 3.6 theta: S goes from 0.81 to 4.5^2.
    assert e.measured == pytest.approx(4.5**2 - 0.9**2)
    assert e.slopes.measured == pytest.approx(-7.2)
    assert e.word == "anti-regularizes"
    assert not e.straight
    assert "one step is too long here for slopes, which say" in e.sentence


def test_a_change_that_is_not_finite_is_infinite():
    loss = ml.Loss.of(lambda t: (t**4).sum() / 4, torch.tensor([1.0, -2.0], dtype=torch.float64))
    (e,) = ml.audit(ml.HeavyBall(1e100, 0.9), loss, measures=["gradient_1_norm"]).effects
    assert e.best == math.inf
    assert e.ratio is None
    assert e.word == "anti-regularizes"


def test_slopes_are_derivatives_along_the_effects():
    loss, optimizer = small()
    plain_run(optimizer, loss, 20)
    found = ml.audit(optimizer, loss)

    def S(theta: torch.Tensor) -> torch.Tensor:
        return loss.gradient(theta).square().sum()

    slopes = next(e for e in found.effects if e.measure == "gradient_norm_squared").slopes
    for vector, change in ((found.measured, slopes.measured), (found.resummed, slopes.resummed), (found.F, slopes.update)):
        assert vector is not None
        step = found.lr * 1e-3 * vector
        expected = (S(loss.theta - step) - S(loss.theta + step)) / (2e-3 * S(loss.theta))
        assert change == pytest.approx(float(expected), rel=1e-5)
    for e in found.effects:
        assert sum(e.slopes.layers.values()) == pytest.approx(e.slopes.measured, rel=1e-10)


def test_heavy_ball_regularizes_and_adam_anti_regularizes_in_theory():
    """Theory.md section 2: L + h beta/(2(1-beta)^2) |grad L|^2, and L - h dt |grad L|_1 for eps -> 0."""
    loss = reference_loss()
    ball = ml.audit(ml.HeavyBall(0.01, 0.9), loss, measures=["gradient_norm_squared"])
    adam = ml.audit(ml.Adam(1e-5, (0.9, 0.999), 1e-12), loss, measures=["gradient_1_norm"])
    assert ball.effects[0].first is not None
    assert adam.effects[0].first is not None
    assert ball.effects[0].first < 0
    assert adam.effects[0].first > 0
    # -h <H sign g, -h dt |g|^-1 H sign g> / |g|_1
    gradient = loss.gradient(THETA)
    slope = loss.curvature(THETA, gradient.sign())
    expected = 1e-10 * 990 * slope @ (slope / gradient.abs()) / gradient.abs().sum()
    assert adam.effects[0].slopes.first == pytest.approx(float(expected))


def test_words():
    loss, optimizer = small()
    run = ml.audit_run(optimizer, loss, steps=30, stops=[0, 5, 30], betas=((0.9,), (0.999,)))
    first, *_, last = run.stops
    assert {e.word for e in first.audit.effects} == {"neutral"}  # nothing to remember yet
    assert "Memory has no effect on this update" in first.audit.verdict
    for e in last.audit.effects:
        assert (e.word == "neutral") == (abs(e.best) <= e.random)
        assert e.word == "neutral" or (e.word == "regularizes") == (e.best < 0)
    assert "At step 30" in run.verdict
    assert "measured" in run.verdict


def test_memory_that_does_nothing_is_neutral_for_every_optimizer_without_memory():
    loss, optimizer = small(lambda params: torch.optim.SGD(params, lr=0.1))
    plain_run(optimizer, loss, 3)
    found = ml.audit(optimizer, loss, step=3)
    assert found.measured is not None
    assert found.measured.norm() < 1e-12 * found.F.norm()
    assert found.first is not None
    assert found.resummed is not None
    assert found.first.norm() == found.resummed.norm() == 0


def test_param_groups():
    problem = problems.digits_mlp(width=8, count=100)
    weights = [p for p in problem.model.parameters() if p.ndim > 1]
    biases = [p for p in problem.model.parameters() if p.ndim == 1]
    groups = [{"params": biases, "weight_decay": 0.0, "lr": 3e-3}, {"params": weights}]
    loss, optimizer = problem.loss, torch.optim.AdamW(groups, lr=1e-3)
    run = ml.audit_run(optimizer, loss, steps=20, stops=[20], betas=((0.5, 0.9), (0.9, 0.999)))
    audit, maps = run.stops[0].audit, run.stops[0].maps
    assert audit.validity.resummed is not None
    assert audit.validity.resummed.cosine > 0.8
    own = {m.order: m.changes["gradient_1_norm"][1, 1] for m in maps}
    assert own["measured"] == pytest.approx(audit.effects[0].slopes.measured, rel=1e-8)
    assert own["resummed"] == pytest.approx(audit.effects[0].slopes.resummed, rel=1e-8)
    assert own["first"] == pytest.approx(audit.effects[0].slopes.first, rel=1e-8)


def test_a_run_that_continues_from_a_state():
    loss, optimizer = small()
    plain_run(optimizer, loss, 15)
    run = ml.audit_run(optimizer, loss, steps=5, stops=[0, 5], betas=((0.9,), (0.999,)))
    assert [stop.audit.step for stop in run.stops] == [15, 20]


def test_divergence_keeps_what_was_audited():
    loss, optimizer = small(lambda params: torch.optim.SGD(params, lr=1e200, momentum=0.9))
    with pytest.raises(ml.errors.Diverged, match=r"after [12] steps") as caught:
        ml.audit_run(optimizer, loss, steps=10, stops=[0, 10])
    assert [stop.audit.step for stop in caught.value.so_far.stops] == [0]


def test_bad_input_is_not_divergence():
    loss, optimizer = small()
    with pytest.raises(ValueError, match=r"^unknown measure 'flatness'") as caught:
        ml.audit_run(optimizer, loss, steps=2, measures=["flatness"])
    assert not isinstance(caught.value, ml.errors.Diverged)


def test_several_batches_and_frozen_parameters_are_said():
    problem = problems.digits_mlp(width=8, count=100)
    problem.model.get_parameter("2.bias").requires_grad_(False)
    (inputs, targets), *_ = problem.batches
    loss = ml.Loss(problem.model, problem.criterion, list(zip(inputs.split(50), targets.split(50), strict=True)))
    found = ml.audit(torch.optim.SGD([p for p in problem.model.parameters() if p.requires_grad], 0.1, 0.9), loss)
    assert any("several batches" in note for note in found.validity.notes)
    run = ml.audit_run(torch.optim.Adam([p for p in problem.model.parameters() if p.requires_grad]), loss, steps=2, stops=[2])
    assert not any("several batches" in note for note in run.stops[0].audit.validity.notes)  # full batch from its first step
    assert any("2.bias" in note for note in found.validity.notes)


def test_json():
    loss, optimizer = small()
    run = ml.audit_run(optimizer, loss, steps=4, stops=[2, 4], betas=((0.5, 0.9), (0.9, 0.99)))
    plain = json.loads(run.to_json())
    assert [stop["step"] for stop in plain["stops"]] == [2, 4]
    assert len(plain["stops"][0]["maps"]) == 9
    assert json.loads(run.stops[0].audit.to_json())["effects"][0]["measured"] == run.stops[0].audit.effects[0].measured


@pytest.mark.parametrize("step", [None, 40])
def test_a_black_box_is_audited_like_its_catalogue_method(step):
    """The optimizer is torch's AdamW under another name, so that it is not recognised."""
    theta = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, theta)
    mine = type("Mine", (torch.optim.AdamW,), {})
    audits = []
    for make in (mine, torch.optim.AdamW):
        theta.data = torch.tensor([1.0, -2.0, 3.0])
        optimizer = make([theta], lr=1e-3, betas=(0.8, 0.9), eps=0.01)
        for _ in range(40):
            theta.grad = loss.gradient(loss.theta)
            optimizer.step()
        audits.append(ml.audit(optimizer, loss, step=step))
    black_box, catalogue = audits
    assert black_box.step == catalogue.step == 40
    for name in ("measured", "first", "resummed"):
        torch.testing.assert_close(getattr(black_box, name), getattr(catalogue, name), rtol=1e-7, atol=1e-10)
    assert [effect.word for effect in black_box.effects] == [effect.word for effect in catalogue.effects]
    assert any("black box" in note for note in black_box.validity.notes)


def test_the_path_is_the_prediction_to_go_by_where_it_is_trusted():
    loss = reference_loss()
    calm = ml.audit(ml.Adam(1e-5), loss, step=30, measures=["gradient_1_norm"])
    wild = ml.audit(ml.HeavyBall(0.05, 0.9), loss, step=30, measures=["gradient_1_norm"])
    for found, name in ((calm, "path"), (wild, "resummed")):
        (e,) = found.effects
        assert found.validity.prediction == name
        assert found.validity.growth is not None
        assert (found.validity.growth <= 1.1) == (name == "path")
        assert e.predicted == e.best == getattr(e, name)
        assert e.slopes.predicted == e.slopes.best == getattr(e.slopes, name)
        assert e.path != e.resummed
        assert sum(e.slopes.layers.values()) == pytest.approx(e.slopes.predicted, rel=1e-10)
        plain = json.loads(found.to_json())
        assert plain["validity"]["prediction"] == name
        assert plain["effects"][0]["predicted"] == e.predicted
        assert f"is the {'path' if name == 'path' else 'resummed'}" in found.verdict
    assert "seven steps back on the path" in calm.to_html()
    own = ml.correction(ml.Adam(1e-5), loss, step=30, order="path")
    assert calm.path is not None
    assert torch.equal(calm.path, own.M)
    assert calm.validity.growth == own.growth


def test_what_has_no_path_says_so():
    loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, -2.0], dtype=torch.float64))
    far = ml.audit(ml.HeavyBall(0.1, 0.9), loss, measures=[])
    assert far.path is None
    assert any("no path back" in note for note in far.validity.notes)
    batches = ml.audit(ml.Adam(1e-5), reference_loss(), batches=[0, 1, 0], measures=["gradient_1_norm"])
    assert batches.path is batches.validity.growth is batches.effects[0].path is None
    assert batches.validity.prediction == "resummed"


def test_what_autocast_leaves_of_a_change():
    """The bound holds the difference from the same model without autocast, and is no more than a few times as large."""
    x, y = problems.digits(200, torch.float32)

    def rounded(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[0])
        return nn.functional.cross_entropy(logits.float(), batch[1])

    found = []
    for criterion in (rounded, problems.cross_entropy):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10)).float()
        loss = ml.Loss(model, criterion, [(x, y)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(40):
            loss.layout.set_gradients(loss.gradient(loss.theta))
            optimizer.step()
        found.append(ml.audit(optimizer, loss, measures=["gradient_1_norm", "gradient_norm_squared"]))
    low, plain = found
    assert any("autocast to bfloat16 rounds changes by up to" in note for note in low.validity.notes)
    assert not any("autocast" in note for note in plain.validity.notes)
    for a, b in zip(low.effects, plain.effects, strict=True):
        assert b.rounding == 0
        assert abs(a.measured - b.measured) < a.rounding < 0.3 * abs(b.measured)
        assert a.random >= a.rounding
