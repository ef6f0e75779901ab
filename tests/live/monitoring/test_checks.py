"""`Monitor(check=...)`: broken steps are told once with their causes, clean ones not at all; the run stays what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import memoryless as ml
from memoryless.errors import BadInput
from memoryless.live.monitoring.log import read
from memoryless.report import report, watch
from tests.live.monitoring.monitored import LR, Training, criterion, monitor, noisy_model

O = torch.optim
EVERY = "every step"


def adamw(parameters: Any) -> O.Optimizer:
    return O.AdamW(parameters, lr=LR, betas=(0.5, 0.8))


class Coupled(O.AdamW):
    """AdamW as a user may get it wrong."""

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        (group,) = self.param_groups
        for p in group["params"]:
            p.grad.add_(p.detach(), alpha=group["weight_decay"])
        decay, group["weight_decay"] = group["weight_decay"], 0.0
        super().step()  # hooked too, once an AdamW was built
        group["weight_decay"] = decay


@pytest.mark.parametrize("check", [True, EVERY])
def test_clean_steps_are_told_of_by_their_shares_alone(check: Any):
    training = Training(adamw, noisy_model, micro=2, clip=0.5)
    with monitor(training, check=check, gradient=training.clipped) as watching:
        training.run(watching.step)
    assert watching.notes == []
    assert [stop["check"]["ok"] for stop in watching.stops] == [True, True]
    for stop in watching.stops:
        shares = stop["check"]["shares"]
        assert set(shares) == {*dict(training.net.named_parameters()), "whole"}
        assert all(sum(each.values()) == pytest.approx(1, rel=1e-9) for each in shares.values())
        scale = stop["noise_scale"]
        assert stop["check"]["noise"] == (None if scale is None else pytest.approx(scale / (1 + scale)))
    assert watching._checks.steps == (2 if check is True else training.steps)


@pytest.mark.parametrize("check", [True, EVERY])
def test_the_run_is_bit_for_bit_the_one_without(check: Any):
    ends = []
    for watched in (False, True):
        training = Training(adamw, noisy_model)
        if watched:
            with monitor(training, check=check) as watching:
                training.run(watching.step)
        else:
            training.run()
        kept = [*training.net.state_dict().values(), *(v for s in training.optimizer.state.values() for v in s.values())]
        ends.append(torch.cat([x.double().reshape(-1) for x in [*kept, torch.get_rng_state()]]))
    assert torch.equal(*ends)


def test_a_broken_step_is_told_once_with_its_causes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    log = tmp_path / "run.jsonl"
    training = Training(lambda p: Coupled(p, lr=LR, weight_decay=0.1))
    with monitor(training, check=EVERY, log=log) as watching:
        training.run(watching.step)
    records = read(log)
    found = [r for r in records if r["kind"] == "check"]
    assert len(found) == 1
    assert found[0]["step"] == 0
    assert found[0]["causes"][0]["name"] == "weight decay coupled"
    assert sum("weight decay coupled" in r.getMessage() for r in caplog.records) == 1
    assert (records[-1]["checked"], records[-1]["off"]) == (training.steps, training.steps)
    with (console := Console(width=200)).capture() as shown:
        watch.print_once(records, "run.jsonl", console)
    assert "weight decay coupled" in shown.get()
    assert "25 of 25 checked steps are not the documented ones" in shown.get()


def test_a_step_that_is_broken_once_does_not_hide_in_the_page(tmp_path: Path):
    log = tmp_path / "run.jsonl"
    training = Training(adamw)

    def tell(batches: list[Any]) -> None:
        watching.step(batches)
        if watching._watching.step == 24:
            training.optimizer.state[next(training.net.parameters())]["exp_avg"].mul_(2)

    with monitor(training, check=EVERY, log=log) as watching:
        training.run(tell)
    (found,) = [r for r in read(log) if r["kind"] == "check"]
    assert (found["step"], found["causes"][0]["name"]) == (24, "state changed between steps")
    page = report.page(read(log))
    assert "state changed between steps" in page
    assert "step 24 is " in page


def test_a_gradient_that_is_not_that_of_the_batch_is_told_at_the_stop():
    training = Training(adamw)
    told: list[dict[str, Any]] = []
    with monitor(training, check=True) as watching:
        watching._checks._told = told.append
        for batches in training.batches:
            training.optimizer.zero_grad()
            (2.0 * criterion(training.net, batches[0])).backward()
            training.optimizer.step()
            watching.step(batches)
    assert [(r["step"], r["causes"][0]["name"]) for r in told] == [(12, "gradient scaled")]
    assert "cannot be had again" in watching.notes[0]


def test_what_cannot_be_checked_is_said_and_the_run_is_measured_all_the_same():
    training = Training(lambda p: O.LBFGS(p, lr=LR))
    with monitor(training, check=True, shadows=[ml.HeavyBall(LR)]) as watching:
        pass
    assert any("steps are not checked: LBFGS evaluates the loss" in note for note in watching.notes)
    with pytest.raises(BadInput, match="check must be True"):
        monitor(training, check="always")


def test_a_resumed_run_tells_of_a_step_once(tmp_path: Path):
    log = tmp_path / "run.jsonl"
    for _ in range(2):  # the second run goes over the same steps, as after a kill
        training = Training(lambda p: Coupled(p, lr=LR, weight_decay=0.1), steps=5)
        with monitor(training, check=EVERY, log=log, start=0) as watching:
            training.run(watching.step)
    assert len([line for line in log.read_text().splitlines() if json.loads(line)["kind"] == "check"]) == 1


def test_a_recorded_step_is_checked_later_and_elsewhere(tmp_path: Path):
    model = nn.Linear(3, 2)
    for optimizer, ok in ((adamw(model.parameters()), True), (Coupled(model.parameters(), lr=LR, weight_decay=0.1), False)):
        model(torch.randn(4, 3)).square().mean().backward()
        with ml.recorded(optimizer) as step:
            optimizer.step()
        torch.save(step, tmp_path / "step.pt")
        del optimizer
        result = torch.load(tmp_path / "step.pt", weights_only=False).check()
        assert result.ok is ok
        assert result.to_json() == step.check().to_json()
    assert result.causes[0].name == "weight decay coupled"
    assert result.shares is not None
    step = ml.recorded(adamw(model.parameters()))
    with pytest.raises(BadInput, match="no step is recorded yet"):
        step.check()
    with step:
        pass
    assert step.check().ok is None
    with pytest.raises(BadInput, match="has its step"):
        step.__enter__()
