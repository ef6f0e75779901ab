"""What a check leaves as it was, whatever a copy of an optimizer does: parameters, state, buffers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memoryless as ml
from memoryless.live.check import recording
from memoryless.live.check.record import Untouched
from tests.live.check.mutations import LR

O = torch.optim


class Shrinks(O.Optimizer):
    """Its step goes over the parameters that a function gives: in a copy those of the original."""

    def __init__(self, tensors: list[nn.Parameter]):
        self.get: Callable[[], list[nn.Parameter]] = lambda: tensors
        super().__init__(tensors, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("m", torch.zeros_like(p))
        for p in self.get():
            p.mul_(0.9)
            self.state[p]["m"].add_(1)  # a copy has none of that tensor


@pytest.mark.parametrize("way", [ml.check_step, ml.recorded])
def test_a_copy_that_fails_half_way_leaves_the_parameters(way: Any):
    p = nn.Parameter(torch.tensor([1.0, -2.0, float("nan")], dtype=torch.float64))
    optimizer = Shrinks([p])
    p.grad = torch.ones_like(p)
    with way(optimizer) as check:
        optimizer.step()
    assert p[:2].tolist() == [0.9, -1.8]
    result = check.result if way is ml.check_step else check.check()
    assert "a copy of it writes into what the run holds" in result.verdict
    assert p[:2].tolist() == [0.9, -1.8]


def test_what_is_put_back_may_hold_a_nan():
    p = nn.Parameter(torch.tensor([float("nan"), 1.0]))
    kept = Untouched(O.SGD([p], lr=LR))
    p.data[1] = 2.0
    assert kept.restore()
    assert float(p.detach()[1]) == 1.0
    assert not kept.restore()


class Counts(nn.Linear):
    """Counts its passes, in a new tensor each time."""

    seen: Tensor

    def __init__(self):
        super().__init__(4, 1, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return super().forward(input)


def test_buffers_that_a_pass_replaces_are_as_without():
    model = Counts()
    optimizer = O.SGD(model.parameters(), lr=LR)
    batch, before = torch.randn(6, 4, dtype=torch.float64), model.seen
    with ml.check_step(optimizer, model, lambda net, x: net(x).square().mean(), batches=[batch]) as check:
        assert model.seen is before
        model(batch).square().mean().backward()
        optimizer.step()
    assert check.result is not None
    assert check.result.ok
    assert not check.result.notes
    assert (float(model.seen), float(before)) == (1, 0)


def test_of_an_optimizer_of_torch_no_second_copy_is_held(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recording, "Untouched", lambda _: pytest.fail("a copy of what is never written to"))
    p = nn.Parameter(torch.ones(3))
    optimizer = O.AdamW([p])
    p.grad = torch.ones(3)
    with ml.recorded(optimizer) as step:
        optimizer.step()
    assert step.check().ok
