"""`memoryless map` as a user meets it, in-process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from memoryless.cli.main import main
from memoryless.cli.setup import load
from memoryless.live import loop

GRID = ["--betas1", "0.5", "--betas2", "0.9"]


@pytest.fixture
def checkpoint(folder: Path) -> str:
    """After ten full-batch steps of base.py's own loop."""
    work = load("base.py:setup", 0, {})
    loss, optimizer = work.loss, work.optimizer
    assert optimizer is not None
    assert loss.model is not None
    loop.run(optimizer, loss, 10)
    torch.save({"model": loss.model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "run.pt")
    return "run.pt"


def test_from_a_checkpoint(folder: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]):
    options = ["base.py:setup", "--checkpoint", checkpoint, "--full-batch", *GRID]
    main(["map", *options, "--png", "m.png", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["order"], found["betas_1"], found["betas_2"]) == ("state", [0.5, 0.9], [0.9, 0.999])
    assert found["error"][1][1] < 1e-6  # its own pair
    assert {other["method"].partition("(")[0] for other in found["others"]} == {"lion", "signum", "heavy_ball"}
    assert (folder / "m.png").stat().st_size > 10_000
    main(["map", *options])
    text = capsys.readouterr().out
    assert "Known from the optimizer's own buffers." in text
    assert "*" in text  # the own pair
    assert "heavy_ball(momentum=0.9): gradient 1-norm" in text


@pytest.mark.parametrize("order", ["first", "resummed", "path"])
def test_from_theta_alone(order: str, folder: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]):
    main(["map", "base.py:setup", "--checkpoint", checkpoint, "--order", order, *GRID, "--json"])
    assert json.loads(capsys.readouterr().out)["order"] == order


def test_steps_ahead(folder: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]):
    main(["map", "base.py:setup", "--checkpoint", checkpoint, "--full-batch", "--ahead", "3", *GRID])
    assert "Known by measuring, some real steps on, on a copy." in capsys.readouterr().out


def test_trained_here(folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["map", "base.py:setup", "--train", "5", "--json", *GRID])
    assert json.loads(capsys.readouterr().out)["order"] == "state"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base.py:setup"], "the loss has 2 batches"),
        (["base.py:setup", "--full-batch"], "Adam has taken no step yet"),
        (["base.py:setup", "--train", "-1"], "--train must be at least 0"),
        (["base.py:setup", "--ahead", "0"], "--ahead must be at least 1"),
        (["base.py:setup", "--train", "2", "--ahead", "2", "--order", "path"], "they go with order='state'"),
        (["base.py:setup", "--train", "2", "--betas2", "x"], "--betas2 takes numbers"),
        (["base.py:setup", "--train", "2", "--betas2", "1.5"], "every beta must lie in [0, 1)"),
        (["base.py:setup", "--train", "2", "--optimizer", "torch.optim.Adagrad"], "the buffers of Adagrad cannot be read"),
        (["base.py:setup", "--png", "m.pdf"], "--png must end in .png"),
        (["base.py:setup", "--train", "2", "--measures", "beauty"], "unknown measure 'beauty'"),
    ],
)
def test_bad_input(arguments: list[str], message: str, refused: Callable[..., str]):
    assert message in refused("map", *arguments)
