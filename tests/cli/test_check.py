"""`memoryless check` as a user meets it, in-process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from memoryless.cli.main import main

COUPLED = """
from base import *

class Own(torch.optim.AdamW):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad += group["weight_decay"] * p
            group["weight_decay"], kept = 0.0, group["weight_decay"]
            torch.optim.AdamW.step.__wrapped__(self)
            group["weight_decay"] = kept

def broken():
    model, criterion, batches, _ = setup()
    return model, criterion, batches, Own(model.parameters(), weight_decay=0.1)

def late():
    model, criterion, batches, _ = setup()
    optimizer, calls = Own(model.parameters(), weight_decay=0.1), []
    def sometimes(model, batch):
        calls.append(batch)
        if len(calls) == 1:  # asked by the check alone
            raise ValueError("not yet")
        return criterion(model, batch)
    return model, sometimes, batches, optimizer

def half():
    model = nn.Linear(3, 1).bfloat16()
    batches = [tuple(x.bfloat16() for x in batch) for batch in data()]
    return model, criterion, batches, torch.optim.AdamW(model.parameters(), lr=1e-5)
"""

CYCLE = """
from base import *

def cycled():
    model, criterion, batches, optimizer = setup()
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=20)
    return model, criterion, batches, optimizer
"""


def test_clean_steps(folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["check", "base.py:setup", "--steps", "4", "--html", "page.html"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("All 4 steps are the documented ones: Adam, single-tensor path in float64, to rounding.")
    assert "What the documented step 3 is made of" in shown
    assert "All 4 steps" in (folder / "page.html").read_text()


def test_a_broken_step_and_its_cause(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "coupled.py").write_text(COUPLED)
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["check", "coupled.py:broken", "--steps", "3"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("3 of 3 steps are not the documented ones. Step 0 is not the documented one: weight decay coupled")
    assert "Off by more than rounding can explain" in shown
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["check", "coupled.py:half", "--steps", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["step"]["causes"][0]["name"] == "parameters swallow the step"


def test_a_step_that_cannot_be_checked_hides_no_wrong_one(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "coupled.py").write_text(COUPLED)
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["check", "coupled.py:late", "--steps", "4", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["unchecked"], found["off"], found["step"]["step"]) == (False, [0], [1, 2, 3], 1)
    assert found["verdict"].startswith("3 of 4 steps are not the documented ones, 1 of 4 steps could not be checked. Step 1 is")


def test_a_cycle_of_momentum_is_no_alarm(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "cycle.py").write_text(CYCLE)
    main(["check", "cycle.py:cycled", "--steps", "3"])
    assert capsys.readouterr().out.startswith("All 3 steps are the documented ones")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "base.py:setup", "--steps", "0"], "--steps must be at least 1"),
        (["check", "base.py:setup", "--reference", "torch.nn.Linear"], "is no class of optimizer"),
        (["check", "base.py:setup", "--reference", "bogus"], "--reference bogus is no class of optimizer; expected such as"),
        (["check", "bad.py:lbfgs"], "LBFGS evaluates the loss within its step"),
        (["check", "bad.py:empty"], "batches is empty"),
        (["check", "bad.py:one_shot"], "batches must be re-iterable"),
        (["check", "bad.py:three_once"], "batches must be re-iterable"),
        (["check", "base.py:nothing"], "no function 'nothing' in base.py"),
        (["check", "base.py:setup", "--html", "mine.html"], "was not written by memoryless"),
    ],
)
def test_bad_input(arguments: list[str], message: str, folder: Path, refused: Callable[..., str]):
    assert message in refused(*arguments)
