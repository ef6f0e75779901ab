"""With which power of lr each iteration approaches the optimizer, judged at one fine halving; the frozen one is the control."""

import math

import pytest
import torch
from torch import Tensor

import memoryless as ml
from memoryless.errors import BadInput, Diverged
from memoryless.experiments.theorem import PROBLEMS, visible
from memoryless.paths.accuracy import Accuracy, order_of_accuracy
from memoryless.paths.trajectory import trajectory
from tests.problems import METHODS, Wave, groups, quartic

# Curvature and memory so moderate that the powers show while trajectories are short.
WAVE = Wave(*(0.2 * part for part in Wave.random(6, 0)))
START = Wave.random(6, 1).b
HORIZON, LRS = 0.25, (2e-3, 1e-3)
HEAVY_BALL = ml.HeavyBall(momentum=0.5)
POWER = {"frozen": (1, 0.15), "first": (2, 0.15), "resummed": (2, 0.15), 3: (3, 0.2), 4: (4, 0.2)}


def wave_loss() -> ml.Loss:
    return ml.Loss.of(WAVE, START)


NAMES = ("heavy_ball", "nesterov", "rmsprop", "adamw", "adamw(eps_inside_root=True)", "nadam", "lion", "signum")


@pytest.mark.parametrize("kind", POWER)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("problem", ["smooth", "digits"])
def test_order_of_accuracy(problem, name, kind):
    """With the hyperparameters, the problems and the horizon of `memoryless verify`, the digits' network among them."""
    loss = PROBLEMS[problem].loss(0)
    method, _ = visible(name, loss)
    power, tolerance = POWER[kind]
    finest = method.lr / (8 if problem == "digits" else 4)
    result = order_of_accuracy(method, loss, PROBLEMS[problem].steps * method.lr, (2 * finest, finest), kind)
    assert result.errors[-1] > result.floor
    assert result.order == pytest.approx(power, abs=tolerance)


@pytest.mark.parametrize("kind", ["frozen", "first", "resummed", 3])
def test_order_of_accuracy_of_a_black_box(kind):
    """RMSprop with momentum averages g / sqrt(v), a memory of a memory.

    A black box pays for all steps before each: a short horizon, and a memory short against it.
    """
    method = ml.TorchMethod(
        lambda params: torch.optim.RMSprop(params, lr=1e-3, alpha=0.3, eps=0.1, momentum=0.3), [START.shape]
    )
    power, tolerance = POWER[kind]
    result = order_of_accuracy(method, wave_loss(), 0.05, LRS, kind)
    assert result.errors[-1] > 10 * result.floor
    assert result.order == pytest.approx(power, abs=tolerance)


@pytest.mark.parametrize("kind", POWER)
def test_order_of_accuracy_of_a_black_box_on_a_network(kind):
    loss = PROBLEMS["digits"].loss(0)
    method, _ = visible("torch.optim.Adamax(betas=(0.2, 0.3))", loss)
    power, tolerance = POWER[kind]
    result = order_of_accuracy(method, loss, 0.024, (1e-3, 5e-4), kind)
    assert result.errors[-1] > 10 * result.floor
    assert result.order == pytest.approx(power, abs=tolerance)


def test_steady_values_from_the_start_cost_an_order():
    """The transients matter: a second negative control."""

    def error(lr: float) -> float:
        method, loss, steps = HEAVY_BALL.at_lr(lr), wave_loss(), round(HORIZON / lr)
        steady = [loss.theta]
        for _ in range(steps):
            c = ml.correction(method, loss, steady[-1])
            steady.append(steady[-1] - lr * (c.F + c.M))
        return float((trajectory(method, loss, steps) - torch.stack(steady)).abs().max())

    coarse, fine = (error(lr) for lr in LRS)
    assert math.log2(coarse / fine) == pytest.approx(1, abs=0.15)


def test_errors_are_the_distances_between_the_trajectories():
    # In a bowl the distance is largest on the way.
    method, loss = HEAVY_BALL, ml.Loss.of(lambda theta: theta.square().sum() / 2, START)
    result = order_of_accuracy(method, loss, 4, [0.25, 0.1])
    for lr, error, steps in zip(result.lrs, result.errors, (16, 40), strict=True):
        with_memory, first = (trajectory(method.at_lr(lr), loss, steps, kind) for kind in ("memory", "first"))
        distances = (with_memory - first).abs().amax(1)
        assert error == distances.max() > 2 * distances[-1]
    assert result.slopes == (pytest.approx(math.log(result.errors[0] / result.errors[1]) / math.log(2.5)),)


def test_what_rounding_has_reached_is_not_judged():
    assert Accuracy(3, (4.0, 2.0, 1.0), (8.0, 1.0, 1e-12), 1e-10).order == 3
    assert math.isnan(Accuracy(3, (2.0, 1.0), (1e-11, 0.0), 1e-10).order)
    assert all(map(math.isnan, Accuracy(3, (2.0, 1.0), (0.0, 0.0), 1e-10).slopes))
    memoryless = order_of_accuracy(ml.HeavyBall(momentum=0.0), wave_loss(), 0.01, LRS, "frozen")
    assert max(memoryless.errors) <= memoryless.floor


def test_progress_counts_all_steps():
    seen: list[tuple[int, int]] = []
    assert 0.3 / 0.1 < 3
    order_of_accuracy(HEAVY_BALL, wave_loss(), 0.3, [0.1, 0.05], on_step=lambda *told: seen.append(told))
    assert seen == [(k, 3 + 6) for k in range(1, 3 + 6 + 1)]


@pytest.mark.parametrize("name", METHODS)
def test_at_lr_is_the_same_method_at_another_step_size(name):
    for expected, actual in zip(METHODS[name](2e-3).parts, METHODS[name](1e-3).at_lr(2e-3).parts, strict=True):  # type: ignore[union-attr]
        assert actual.method.lr == expected.method.lr
        assert actual.scale == expected.scale
        assert actual.method.hyper == expected.method.hyper
        assert [v.beta for v in actual.method.variables] == [v.beta for v in expected.method.variables]


def test_at_lr_of_groups_and_black_boxes():
    assert groups(1e-3).at_lr(1e-4).lr == 1e-4
    assert ml.TorchMethod(lambda params: torch.optim.Adamax(params, lr=1e-3), [(2,)]).at_lr(1e-4).lr == 1e-4


def measure(horizon: float = 0.1, lrs=LRS, kind="first", loss: ml.Loss | None = None) -> Accuracy:
    return order_of_accuracy(HEAVY_BALL, loss or wave_loss(), horizon, lrs, kind)


def steep() -> ml.Loss:
    def explosive(theta: Tensor) -> Tensor:
        return quartic(1e3 * theta)

    return ml.Loss.of(explosive, START)


BAD = {
    "horizon_short": (
        lambda: measure(1e-3),
        BadInput,
        "horizon must be at least one step of the largest lr, 0.002, got 0.001",
    ),
    "horizon_nan": (lambda: measure(math.nan), BadInput, "horizon must be .* got nan"),
    "lrs_one": (
        lambda: measure(lrs=[1e-3]),
        BadInput,
        r"lrs must be at least two .* strictly decreasing, got \[0.001\]",
    ),
    "lrs_rising": (lambda: measure(lrs=[1e-3, 2e-3]), BadInput, r"strictly decreasing, got \[0.001, 0.002\]"),
    "lrs_equal": (lambda: measure(lrs=[1e-3, 1e-3]), BadInput, r"strictly decreasing, got \[0.001, 0.001\]"),
    "lrs_zero": (lambda: measure(lrs=[1e-3, 0.0]), BadInput, r"positive numbers, .* got \[0.001, 0.0\]"),
    "lrs_nan": (lambda: measure(lrs=[math.nan, 1e-3]), BadInput, r"strictly decreasing, got \[nan, 0.001\]"),
    "kind": (lambda: measure(kind="second"), BadInput, "kind must be one of memory, frozen, .* got 'second'"),
    "diverged": (lambda: measure(loss=steep()), Diverged, r"kind '(memory|first)' diverged at step \d+: "),
}


@pytest.mark.parametrize(("call", "exception", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, exception, message):
    with pytest.raises(exception, match=message) as raised:
        call()
    assert raised.type is exception
    assert "\n" not in str(raised.value)
