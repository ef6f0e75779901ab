"""`memoryless compare` as a user meets it, in-process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from memoryless.cli.main import main


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["compare", "adamw", "torch.optim.RAdam", "torch.optim.LBFGS", "--steps", "3", "--png", "c.png"])
    shown = capsys.readouterr().out
    for text in ("gradient 1-norm", "sharpness", "adamw", "RAdam", "torch.optim.LBFGS: LBFGS.step() evaluates the loss again"):
        assert text in shown
    assert b"Software\x00memoryless" in (folder / "c.png").read_bytes()
    main(["compare", "lion", "--steps", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["rows"][0]["audit"]["step"] == 2


def test_any_optimizer_in_the_order_given(folder: Path, capsys: pytest.CaptureFixture[str]):
    texts = ["own.py:makes", "foo", "torch.optim.Muon(lr=1e-3)", "own.py:Mine(lr=1e-3)", "sgd"]
    options = ["--problem", "base.py:setup", "--steps", "2", "--measures", "gradient_1_norm", "--json"]
    main(["compare", *texts, *options])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in rows] == texts
    assert [row["reason"] is None for row in rows] == [True, False, True, True, True]
    assert rows[1]["reason"].startswith("unknown optimizer 'foo'")


BAD = [
    ("foo", "unknown optimizer 'foo'"),
    ("--steps 3", "expected at least one optimizer"),
    ("adamw --steps 0", "steps must be an integer >= 1, got 0"),
    ("adamw --png mine.html", "--png must end in .png, got 'mine.html'"),
    ("adamw --png mine.png", "mine.png exists and was not written by memoryless"),
    ("adamw --lr -1", "--lr must be positive, got -1"),
    ("adamw --problem cifar", "problem must be one of digits, or script.py:function, got 'cifar'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input(arguments: str, message: str, folder: Path, refused: Callable[..., str]):
    (folder / "mine.png").write_bytes(b"mine")
    assert message in refused("compare", *arguments.split(" "))
