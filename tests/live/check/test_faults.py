"""`check_step` where a step cannot be checked, is skipped, or was not the last one: told as that, never as another fault."""

from typing import Any

import pytest
import torch
from torch import nn

import memoryless as ml
from memoryless.errors import BadInput
from memoryless.live.check.step_check import Cause, StepCheck, StepChecks
from memoryless.methods.black_box.remade import acting
from tests.live.check.mutations import LR, Loop, criterion

O = torch.optim


def adamw(model: nn.Module) -> O.Optimizer:
    return O.AdamW(model.parameters(), lr=LR)


class Late(O.AdamW):
    """Steps with the lr of the step before."""

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        (group,) = self.param_groups
        lr, group["lr"] = group["lr"], getattr(self, "last", group["lr"])
        super().step(closure)
        group["lr"] = self.last = lr


def test_a_schedule_slower_than_the_digits_that_are_told():
    """Each of its learning rates is tried, though they read alike."""
    loop = Loop(lambda model: Late(model.parameters(), lr=LR))
    results = []
    for n in range(8):
        loop.optimizer.param_groups[0]["lr"] = LR * (1 - 1e-5 * n)
        results.append(loop.steps(1))
    result = results[-1]
    assert result.ok is False
    assert result.causes[0].name == "lr read before the scheduler"


def test_what_fails_while_a_step_is_noted_is_told_after_it():
    table = nn.Embedding(4, 2, sparse=True)
    with ml.check_step(optimizer := O.SGD(table.parameters(), lr=LR)) as check:
        table(torch.tensor([1])).sum().backward()
        optimizer.step()
    assert check.result is not None
    assert check.result.ok is None
    assert check.result.verdict.startswith("Step 0 could not be checked: a gradient is sparse")
    loop = Loop(adamw, tells=True)
    before = [p.detach().clone() for p in loop.model.parameters()]
    loop.check.criterion = lambda model, batch: model(batch[:, :3])
    result = loop.steps(1)
    assert result.ok is None
    assert "mat1 and mat2 shapes cannot be multiplied" in result.verdict
    assert not any(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))
    loop.check.criterion = criterion
    assert loop.steps(1).verdict.startswith("Step 1 is the documented one")


def test_a_step_that_the_scaler_skips_beside_a_scheduler_is_none():
    loop = Loop(adamw, torch.float32)
    O.lr_scheduler.ExponentialLR(loop.optimizer, 0.9)  # patches step
    assert loop.steps(1).ok
    assert "no step was taken" in loop.steps(1, loop.backward).verdict
    assert loop.steps(1).verdict.startswith("Step 1 is the documented one")


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_step_that_a_fused_optimizer_skips_is_none(scheduled: bool):
    loop = Loop(lambda model: O.AdamW(model.parameters(), fused=True), torch.float32)
    if scheduled:
        O.lr_scheduler.ExponentialLR(loop.optimizer, 0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def body(batches: list[torch.Tensor], by: float = 1.0) -> None:
        scaler.scale(by * criterion(loop.model, batches[0])).backward()
        scaler.step(loop.optimizer)
        scaler.update()

    assert loop.steps(1, body).ok
    assert "no step was taken" in loop.steps(1, lambda batches: body(batches, float("inf"))).verdict
    assert loop.steps(1, body).verdict.startswith("Step 1 is the documented one")


def test_steps_outside_the_block_count_and_what_was_known_before_them_is_dropped():
    loop = Loop(adamw)
    loop.steps(1)
    loop.optimizer.zero_grad()
    loop.plain(loop.batches())
    assert loop.steps(1).verdict.startswith("Step 2 is the documented one")
    with pytest.raises(ZeroDivisionError):
        loop.step(loop.batches(), lambda batches: (loop.plain(batches), 1 / 0))
    assert loop.steps(1).verdict.startswith("Step 4 is the documented one")
    with torch.no_grad():
        loop.model[0].weight.mul_(0.9)  # type: ignore[operator]
    assert "parameters changed between steps" in loop.steps(1).verdict
    assert acting(loop.optimizer) is None  # its hook only counts
    del loop.check
    assert not loop.optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("named", [False, True])
def test_the_gradient_of_a_closure_is_the_one_it_leaves(named: bool):
    loop = Loop(lambda model: O.AdamW(model.parameters(), lr=LR), tells=True)

    def body(batches: list[torch.Tensor]) -> None:
        def closure() -> torch.Tensor:
            loop.optimizer.zero_grad()
            loss = criterion(loop.model, batches[0])
            loss.backward()
            return loss

        assert loop.optimizer.step(closure=closure) if named else loop.optimizer.step(closure)

    for _ in range(3):
        assert loop.steps(1, body).ok, loop.check.result

    class Own(O.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            with torch.enable_grad():
                closure()

    loop.check = ml.check_step(own := Own(loop.model.parameters(), {}))
    result = loop.steps(1, lambda batches: own.step(lambda: criterion(loop.model, batches[0])))
    assert "could not be checked: its gradient comes from a closure" in result.verdict
    with pytest.raises(BadInput, match="LBFGS evaluates the loss within its step"):
        ml.check_step(O.LBFGS(loop.model.parameters()))


def test_gradients_that_are_not_finite_are_named():
    loop = Loop(adamw, tells=True)

    def body(batches: list[torch.Tensor]) -> None:
        loop.backward(batches)
        for p in loop.model.parameters():
            p.grad.fill_(float("nan"))  # type: ignore[union-attr]
        loop.optimizer.step()

    for _ in range(3):
        assert [c.name for c in loop.steps(1, body).causes] == ["gradient not finite"]


def test_a_gradient_that_cannot_be_had_again_is_not_told_off():
    loop = Loop(adamw, torch.float32, tells=True)

    def mixed(batches: list[torch.Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion(loop.model, batches[0])
        loss.backward()
        loop.optimizer.step()

    assert "; the gradient was not checked: autocast is on in the block alone" in loop.steps(1, mixed).verdict
    loop.model.append(nn.Dropout())

    def noisy(batches: list[torch.Tensor]) -> None:
        torch.randn_like(batches[0])
        loop.plain(batches)

    result = loop.steps(1, noisy)
    assert result.ok
    assert "the gradient was not checked: criterion or model draws random numbers" in result.notes[0]
    assert loop.steps(1).notes == ()
    half = loop.steps(1, lambda batches: (loop.backward(batches, by=2), loop.optimizer.step()))
    assert half.causes[0].name == "gradient clipped"


def test_momentum_that_a_schedule_cycles_is_no_alarm():
    loop = Loop(adamw)
    scheduler = O.lr_scheduler.OneCycleLR(loop.optimizer, 0.01, total_steps=20)
    for _ in range(4):
        assert loop.steps(1, lambda batches: (loop.plain(batches), scheduler.step())).ok


def test_steps_that_could_not_be_checked_hide_no_wrong_one():
    wrong = StepCheck(7, "AdamW", causes=(Cause("decay", "twice", (), 1.0),))
    checks = StepChecks(20, (7, 9), wrong, {}, (2,))
    assert checks.ok is False
    said = "2 of 20 steps are not the documented ones, 1 of 20 steps could not be checked. Step 7 is not the documented one"
    assert checks.verdict.startswith(said)
    checks = StepChecks(20, (), StepCheck(2, "AdamW", unchecked="a gradient is sparse"), {}, (2,))
    assert checks.ok is None
    assert checks.verdict == "1 of 20 steps could not be checked. Step 2 could not be checked: a gradient is sparse."
    assert checks.as_dict()["unchecked"] == [2]


def test_no_batches_is_one_line():
    loop = Loop(adamw, tells=True)
    given: dict[str, Any] = {"model": loop.model, "criterion": criterion}
    for ask in (lambda: ml.check_step(loop.optimizer, **given, batches=[]), lambda: loop.check.at([])):
        with pytest.raises(BadInput, match="batches is empty; expected those of the step"):
            ask()
