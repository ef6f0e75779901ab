"""The derivative of a black box: two ways that agree, and what each alone misses."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.optim import (
    Adam,
    Muon,
)

import memoryless as ml
from memoryless.corrections.correction import Correction
from memoryless.methods.black_box.torch_method import TorchMethod
from tests.methods.black_box.subjects import LR, SHAPES, TORCH, LionK, black_box, catalogue, close, literal, steady, unrolled
from tests.problems import FULL_BATCH, THETA, quartic, reference_loss, relative_error


@pytest.mark.parametrize("step", [7, None])
@pytest.mark.parametrize("name", [name for name in TORCH if name != "rmsprop_centered"])
def test_both_derivatives_agree(name, step, monkeypatch):
    def M() -> Correction:
        method = black_box(name)
        if step is None:
            return steady(method, reference_loss(), THETA)
        return unrolled(method, reference_loss(), THETA, step)

    usual = M()

    def missing(*args: Any) -> Any:
        raise NotImplementedError("switched off")

    monkeypatch.setattr(forward_ad, "make_dual", missing)
    other = M()
    assert other.way == ("none" if (name, step) == ("sgd", None) else "difference")
    assert "none" in other.way or "switched off" in other.reason
    close(other.M, usual.M, 1e-7)


def test_a_dropped_tangent_is_caught():
    # Torch's first momentum buffer is a detached copy of the gradient.
    found = unrolled(black_box("heavy_ball"), reference_loss(), THETA, 1)
    assert found.way == "difference"
    assert "drops a tangent" in found.reason
    assert unrolled(black_box("adamw"), reference_loss(), THETA, 1).way == "forward mode"


def test_a_kernel_without_tangents_is_caught():
    method = black_box("adam", fused=True)
    for found in (steady(method, reference_loss(), THETA), unrolled(method, reference_loss(), THETA, 7)):
        assert found.way == "difference"
        assert "drops a tangent" in found.reason
        # Not first believed, so that Newton's method would creep to rest at the optimizer's own pace.
        assert found.steps < 130
        close(found.M, ml.correction(catalogue("adam"), reference_loss(), step=found.step).M, 1e-7)


@pytest.mark.parametrize("step", [7, None])
def test_muon_in_bfloat16(step, monkeypatch):
    def corrections() -> list[Correction]:
        method = TorchMethod(lambda params: Muon(params, lr=LR, momentum=0.9), SHAPES)
        orders: list[Any] = ["first", "resummed"]
        if step is None:
            return [steady(method, reference_loss(), THETA, order) for order in orders]
        return [unrolled(method, reference_loss(), THETA, step, order) for order in orders]

    rounded = corrections()
    assert all("float64 in place of torch.bfloat16" in c.reason for c in rounded)
    assert rounded[0].way == "forward mode"
    # Five Newton-Schulz iterations in three digits leave F one; of a derivative through them nothing.
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self.clone())
    for actual, expected in zip(rounded, corrections(), strict=True):
        assert 1e-4 < relative_error(actual.F, expected.F) < 0.1
        close(actual.M, expected.M, 1e-9)
    _, *found = literal(lambda params: Muon(params, lr=LR, momentum=0.9), [FULL_BATCH] * ((step or 250) + 1))
    for actual, expected in zip(rounded, found, strict=True):
        close(actual.M, expected, 1e-7)


def test_unsmoothed_sign_has_no_first_order():
    method = TorchMethod(lambda params: LionK(params, LR, torch.sign, (0.9, 0.99)), SHAPES)
    for first, summed in [
        [unrolled(method, reference_loss(), THETA, 30, order) for order in ("first", "resummed")],
        [steady(method, reference_loss(), THETA, order) for order in ("first", "resummed")],
    ]:
        assert not first.M.any()
        assert summed.M.isfinite().all()
    lion = ml.correction(ml.Lion(LR, (0.9, 0.99)), reference_loss(), order="resummed")
    close(steady(method, reference_loss(), THETA, "resummed").M, lion.M, 1e-12)


@pytest.mark.parametrize("step", [1, 7, None])
def test_a_dead_coordinate_does_not_move(step):
    loss = ml.Loss.of(lambda theta: quartic(theta[1:]), torch.tensor([1.0, -1.0, 2.0]))
    method = TorchMethod(lambda params: Adam(params, lr=LR), [(3,)])
    found = steady(method, loss, loss.theta) if step is None else unrolled(method, loss, loss.theta, step)
    assert found.M[0] == 0
    close(found.M, ml.correction(ml.Adam(LR), loss, step=step).M, 1e-9)


@pytest.mark.parametrize("step", [0, 7, None])
def test_nothing_moves_without_a_gradient(step):
    loss = ml.Loss.of(quartic, torch.zeros(6))
    for name in ("heavy_ball", "adam"):
        method = black_box(name)
        found = steady(method, loss, loss.theta) if step is None else unrolled(method, loss, loss.theta, step)
        assert not found.F.any()
        assert not found.M.any()
        assert found.outside == 0
