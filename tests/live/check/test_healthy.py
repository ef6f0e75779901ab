"""Steps of healthy runs that look strange, which are no faults; and what cannot be told is said."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import memoryless as ml
from memoryless.live.check.record import LARGE, Record, before
from memoryless.live.check.reference import _kinds
from tests.live.check.mutations import LR, Loop, criterion, wrapped

O = torch.optim


def steps(optimizer: O.Optimizer, n: int) -> list[Any]:
    generator, check, found = torch.Generator().manual_seed(0), ml.check_step(optimizer), []
    for _ in range(n):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        with check:
            optimizer.step()
        found.append(check.result)
    return found


@pytest.mark.parametrize("make", [O.Adam, O.SGD, O.RMSprop])
def test_a_wrong_step_of_complex_parameters_is_found(make: Any):
    def imaginary(self: Any, step: Any) -> None:
        step()
        self.param_groups[0]["params"][0].add_(0.1j)

    for cls, ok in ((make, True), (wrapped(make, imaginary), False)):
        p = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
        assert [r.ok for r in steps(cls([p], lr=LR), 2)] == [ok, ok]


def test_the_gradient_of_complex_parameters_is_told():
    model = nn.Linear(3, 2, dtype=torch.complex128)
    optimizer = O.SGD(model.parameters(), lr=LR)
    batch = torch.randn(4, 3, dtype=torch.complex128)
    check = ml.check_step(optimizer, model, lambda net, x: net(x).abs().square().mean(), batches=[batch])
    for shift, ok in ((0.0, True), (0.1j, False)):
        optimizer.zero_grad()
        with check:
            model(batch).abs().square().mean().backward()
            for p in model.parameters():
                p.grad.add_(shift)  # type: ignore[union-attr]
            optimizer.step()
        assert check.result is not None
        assert check.result.ok is ok


def test_a_step_of_ones_own_on_complex_parameters_is_not_checked():
    class Own(O.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            for p in self.param_groups[0]["params"]:
                p.sub_(p.grad, alpha=LR)

    (result,) = steps(Own([nn.Parameter(torch.tensor([1 + 2j]))], {}), 1)
    assert result.ok is None
    assert "complex parameters" in result.verdict


def test_an_empty_tensor_ahead_of_others_disables_nothing():
    tensors = [nn.Parameter(torch.empty(0)), nn.Parameter(torch.randn(LARGE + 1))]
    found = steps(O.AdamW(tensors), 3)
    assert [r.ok for r in found] == [True] * 3, found[1].verdict
    assert found[1].judged < 1


def test_amsgrad_of_one_group_is_a_choice():
    a, b = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = O.Adam([{"params": [a]}, {"params": [b], "amsgrad": False}], amsgrad=True)
    assert [r.verdict for r in steps(optimizer, 2) if not r.ok] == []


def test_tensors_on_two_devices_are_of_two_kinds():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    record: Record = before(O.SGD([p], lr=LR), {})
    here = record.held[0]
    there = replace(here, theta=here.theta.to("meta"))
    assert _kinds({0: here, 1: there, 2: here}) == [[0, 2], [1]]


def test_an_answer_can_be_pickled_with_its_shares():
    p = nn.Parameter(torch.ones(3))
    (result,) = steps(O.AdamW([p]), 1)
    again = pickle.loads(pickle.dumps(result))
    assert again == result
    assert again.shares == result.shares
    assert result.shares is not None
    assert copy.deepcopy(result).to_json() == result.to_json()


def test_a_gradient_that_a_hook_changes_as_it_comes_is_not_checked():
    loop = Loop(lambda model: O.AdamW(model.parameters(), lr=LR), tells=True)

    def halved(p: torch.Tensor) -> None:
        assert p.grad is not None
        p.grad.mul_(0.5)

    for p in loop.model.parameters():
        p.register_post_accumulate_grad_hook(halved)
    result = loop.steps(2)
    assert result.ok, result.verdict
    assert "the gradient was not checked: a hook" in result.notes[0]


def test_a_healthy_gradient_in_half_precision_under_a_scaler_is_the_same_or_not_checked():
    def half(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.float16):
            return 1e-6 * criterion(model, batch)

    verdicts = []
    for tells in (True, False):
        loop = Loop(lambda model: O.AdamW(model.parameters(), lr=LR), torch.float32, tells=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        given: dict[str, Any] = {"scaler": scaler} if tells else {}
        loop.check = ml.check_step(loop.optimizer, loop.model, half, **given)

        def body(batches: list[torch.Tensor], loop: Loop = loop, scaler: Any = scaler, by: float = 1.0) -> None:
            scaler.scale(by * half(loop.model, batches[0])).backward()
            scaler.step(loop.optimizer)
            scaler.update()

        verdicts.append(loop.steps(2, body))
        assert verdicts[-1].ok, verdicts[-1].verdict
        if tells:
            assert loop.steps(1, lambda batches, body=body: body(batches, by=0.5)).causes[0].name == "gradient clipped"
    assert verdicts[0].notes == ()
    assert "float16" in verdicts[1].notes[0]
    assert "give scaler=" in verdicts[1].notes[0]


def test_parameters_that_the_loop_changes_between_steps_are_a_note():
    loop = Loop(lambda model: O.RMSprop(model.parameters(), lr=LR))
    for _ in range(2):
        loop.steps(1)
        with torch.no_grad():
            for p in loop.model.parameters():
                p.clamp_(-0.1, 0.1)
    result = loop.steps(1)
    assert result.ok
    assert "parameters changed between steps: they are not what the last step left" in result.verdict
    assert result.notes[0].startswith("parameters changed between steps")
