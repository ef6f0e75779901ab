"""Trajectories against the loop one would write by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import memoryless as ml
from memoryless.errors import BadInput, Diverged
from memoryless.paths.flow import integrate
from memoryless.paths.trajectory import KINDS, iterates, trajectory
from tests.problems import BATCHES, METHODS, THETA, quartic, reference_loss

LR, STEPS = 0.01, 7
ORDER = [2, 0, 0, 3, 1, 3, 2]
SEQUENCES = pytest.mark.parametrize("batches", [None, ORDER], ids=["full", "mini"])


@SEQUENCES
@pytest.mark.parametrize("name", METHODS)
def test_memory_is_the_optimizer(name, batches):
    method, loss = METHODS[name](LR), reference_loss()
    theta, state = THETA, method.init(THETA)
    expected = [theta]
    for n in range(STEPS):
        gradient = loss.gradient(theta, None if batches is None else batches[n])
        state, F = method.update(state, gradient, theta)  # pyright: ignore[reportArgumentType]
        theta = theta - LR * F
        expected.append(theta)
    assert torch.equal(trajectory(method, loss, STEPS, batches=batches), torch.stack(expected))


@SEQUENCES
@pytest.mark.parametrize(("kind", "order"), [("frozen", None), ("first", "first"), ("resummed", "resummed"), (3, 3)])
@pytest.mark.parametrize("name", ["heavy_ball", "adamw", "nadam", "lion_k", "groups"])
def test_memoryless_is_the_loop_over_corrections(name, kind, order, batches):
    method, loss = METHODS[name](LR), reference_loss()
    theta = THETA
    expected = [theta]
    for n in range(STEPS):
        c = ml.correction(
            method, loss, theta, step=n, order=order or "first", batches=None if batches is None else batches[: n + 1]
        )
        theta = theta - LR * (c.F + c.M if order else c.F)
        expected.append(theta)
    actual = trajectory(method, loss, STEPS, kind, batches=batches)
    assert (actual - torch.stack(expected)).abs().max() <= 1e-14


def test_one_is_frozen_and_starts_where_told():
    method, loss = METHODS["adamw"](LR), reference_loss()
    frozen, one = (trajectory(method, loss, STEPS, kind, theta=2 * THETA) for kind in ("frozen", 1))
    assert torch.equal(frozen, one)
    assert torch.equal(one[0], 2 * THETA)


@pytest.mark.parametrize("kind", [*KINDS, 2])
def test_record(kind):
    method, loss = METHODS["adamw"](LR), reference_loss()
    path = trajectory(method, loss, STEPS, kind)
    assert path.shape == (STEPS + 1, len(THETA))
    assert torch.equal(trajectory(method, loss, STEPS, kind, record=[7, 0, 3, 3]), path[[7, 0, 3, 3]])
    largest = trajectory(method, loss, STEPS, kind, record=lambda n, theta: (n, float(theta.abs().max())))
    assert largest == [(n, float(theta.abs().max())) for n, theta in enumerate(path)]
    assert torch.equal(torch.stack(list(iterates(method, loss, STEPS, kind))), path)


def test_flow_is_the_integral_of_the_modified_flow():
    method, loss = ml.HeavyBall(LR, 0.5), reference_loss()
    flow = integrate(ml.modified_flow(method, loss), THETA, LR * torch.arange(STEPS + 1.0))
    # Between its own steps dopri5 interpolates.
    assert (trajectory(method, loss, STEPS, "flow") - flow).abs().max() < 1e-8


@pytest.mark.parametrize(("kind", "power"), [("frozen", 1), ("first", 2), ("resummed", 2), (3, 3)])
def test_the_powers_hold_along_a_batch_order(kind, power):
    """The batches take turns: the theorem is one about any order of them."""

    def error(lr: float) -> float:
        method, loss, steps = ml.AdamW(lr, (0.3, 0.5), 0.1), reference_loss(), round(0.05 / lr)
        batches = [ORDER[n % len(ORDER)] for n in range(steps)]
        paths = [trajectory(method, loss, steps, k, batches=batches) for k in ("memory", kind)]
        return float((paths[0] - paths[1]).abs().max())

    assert math.log2(error(1e-3) / error(5e-4)) == pytest.approx(power, abs=0.2)


def test_progress_counts_steps_taken():
    seen: list[tuple[int, int]] = []
    trajectory(METHODS["lion"](LR), reference_loss(), STEPS, record=[STEPS], on_step=lambda *told: seen.append(told))
    assert seen == [(n, STEPS) for n in range(STEPS + 1)]


@pytest.mark.parametrize("kind", ["memory", "frozen", "first", "resummed", 3])  # the flow goes downhill in any case
def test_divergence_says_where_and_keeps_what_was_recorded(kind):
    loss = ml.Loss.of(quartic, torch.tensor([20.0, 1.0]))
    with pytest.raises(Diverged, match=rf"kind {kind!r} diverged at step \d+: ") as raised:
        trajectory(ml.HeavyBall(0.1, 0.5), loss, 100, kind)
    diverged = raised.value
    assert diverged.so_far.shape == (diverged.step + 1, 2)
    assert diverged.so_far.isfinite().all()
    assert torch.equal(diverged.so_far[0], loss.theta)


def test_divergence_of_the_last_step_is_seen():
    loss = ml.Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([1e100]))
    with pytest.raises(Diverged, match="at step 0: its update is not finite"):
        trajectory(ml.HeavyBall(1e300, 0.0), loss, 1)


def go(steps: Any = 3, **options: Any) -> Tensor:
    return trajectory(METHODS["adamw"](LR), reference_loss(), steps, **options)


BAD = {
    "kind": (
        lambda: go(kind="second"),
        BadInput,
        "kind must be one of memory, frozen, first, resummed.*got 'second'",
    ),
    "kind_zero": (lambda: go(kind=0), BadInput, "kind must be .* an integer order >= 1, got 0"),
    "kind_bool": (lambda: go(kind=True), BadInput, "kind must be .* an integer order >= 1, got True"),
    "kind_float": (lambda: go(kind=2.0), BadInput, "kind must be .* an integer order >= 1, got 2.0"),
    "steps_zero": (lambda: go(0), BadInput, "steps must be an integer >= 1, got 0"),
    "steps_float": (lambda: go(1.5), BadInput, "steps must be an integer >= 1, got 1.5"),
    "steps_bool": (lambda: go(True), BadInput, "steps must be an integer >= 1, got True"),
    "theta": (lambda: go(theta=THETA[:2]), BadInput, r"theta must have shape \(6,\), got \(2,\)"),
    "batches_count": (lambda: go(batches=[0]), BadInput, r"batches must give 3 batch indices, .* 0\.\.2, got 1"),
    "batches_index": (lambda: go(batches=[0, 1, 4]), BadInput, rf"indices in 0\.\.{len(BATCHES) - 1}, got 4"),
    "record_range": (lambda: go(record=[0, 4]), BadInput, r"record must list steps in 0\.\.3, got 4"),
    "record_float": (lambda: go(record=[0.5]), BadInput, r"record must list steps in 0\.\.3, got 0.5"),
    "record_empty": (lambda: go(record=[]), BadInput, r"record must list at least one step in 0\.\.3, got none"),
}


@pytest.mark.parametrize(("call", "exception", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, exception, message):
    with pytest.raises(exception, match=message) as raised:
        call()
    assert raised.type is exception
    assert "\n" not in str(raised.value)
