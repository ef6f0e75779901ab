"""`Monitor(check=...)` where a step raises, the gradient is another, or nothing can be told: no false alarm, none swallowed."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from memoryless.errors import BadInput
from memoryless.live.monitoring.log import read
from tests.live.monitoring.monitored import LR, Training, criterion, monitor

O = torch.optim


def adamw(parameters: Any) -> O.Optimizer:
    return O.AdamW(parameters, lr=LR, betas=(0.5, 0.8))


def told(training: Training, around: Callable[[int], Any] = lambda n: None, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The monitor of a run, and the checks that it logs.

    Args:
        training: of one micro-batch.
        around: called before each backward pass; returns what the loss is multiplied by.
        **options: of the monitor.
    """
    found: list[dict[str, Any]] = []
    with monitor(training, **{"check": True} | options) as watching:
        watching._checks._told = found.append
        for n, batches in enumerate(training.batches):
            scale = around(n) or 1.0
            training.optimizer.zero_grad()
            (scale * criterion(training.net, batches[0])).backward()
            with contextlib.suppress(MemoryError):
                training.optimizer.step()
            watching.step(batches)
    return watching, found


def test_steps_that_could_not_be_checked_are_counted_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    def fails(*_: Any) -> None:
        raise RuntimeError("no copy")

    monkeypatch.setattr("memoryless.live.check.checking.Reference", fails)
    log = tmp_path / "run.jsonl"
    told(Training(adamw), check="every step", log=log)
    end = read(log)[-1]
    assert (end["checked"], end["off"], end["unchecked"]) == (0, 0, 25)


def test_a_step_that_raised_is_not_what_a_later_one_is_held_to():
    training, fails = Training(adamw), []

    def raises(*_: Any) -> None:
        if fails:
            fails.clear()
            raise MemoryError

    def around(n: int) -> None:
        if n == 0:  # after the monitor's own
            training.optimizer.register_step_pre_hook(raises)
        if n == 12:
            fails.append(n)

    watching, found = told(training, around)
    assert [r["verdict"] for r in found] == []
    assert watching._checks.off == 0


@pytest.mark.parametrize("check", [False, True])
def test_a_closed_monitor_leaves_no_hook(check: bool):
    training = Training(adamw, steps=3)
    told(training, check=check)
    assert not training.optimizer._optimizer_step_post_hooks
    assert not training.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("check", [torch.tensor([1, 2]), 1, None, "stops"])
def test_another_check_is_refused_in_one_line(check: Any):
    with pytest.raises(BadInput, match="check must be True"):
        monitor(Training(adamw), check=check)


def test_clipping_that_the_monitor_is_not_told_of_is_a_note():
    watching, found = told(Training(adamw), lambda n: 0.5)
    assert found == []
    assert watching._checks.off == 0
    (note,) = [note for note in watching.notes if "was not checked" in note]
    assert note.startswith("the gradient of step 12 was not checked: it is 0.5 times that of the batch")
    assert "give gradient=" in note
    _, found = told(Training(adamw), lambda n: 0.5, gradient=lambda g: g)
    assert [r["causes"][0]["name"] for r in found] == ["gradient clipped"]


def test_a_gradient_that_a_hook_changes_as_it_comes_is_not_checked():
    training = Training(adamw)

    def doubled(p: torch.Tensor) -> None:
        assert p.grad is not None
        p.grad.mul_(2.0)

    for p in training.net.parameters():
        p.register_post_accumulate_grad_hook(doubled)
    watching, found = told(training)
    assert found == []
    assert any("the gradient of step 12 was not checked: a hook" in note for note in watching.notes)


def test_a_wrong_gradient_is_told_of_a_step_that_cannot_be_judged(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any) -> None:
        raise RuntimeError("no copy")

    monkeypatch.setattr("memoryless.live.check.checking.Reference", fails)
    watching, found = told(Training(adamw), lambda n: 2.0)
    assert [(r["step"], r["ok"], r["causes"][0]["name"]) for r in found] == [(12, False, "gradient scaled")]
    assert found[0]["verdict"].startswith("Step 12 is not the documented one: gradient scaled")
    assert "the step itself could not be checked: no copy" in found[0]["notes"]
    assert watching._checks.off == 2  # both stops
