"""`memoryless reproduce` as a user meets it, in-process."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tyro

from memoryless.cli.reproduce import Reproduce
from memoryless.experiments.images import FILES
from tests.experiments.test_fig1 import BETAS, CLASSES, PIXELS, idx


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """MNIST's two files, small."""
    (tmp_path / FILES[0]).write_bytes(idx(PIXELS))
    (tmp_path / FILES[1]).write_bytes(idx(CLASSES))
    return tmp_path


def go(*arguments: str) -> None:
    tyro.cli(Reproduce, args=["fig1", *arguments]).run()


def test_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)
    short = ("--data", ".", "--steps", "3", "--seeds", "2", "--jobs", "1")
    go(*short, "--betas", "0.9", "0.95", "0.5", "0.6", "--json")
    found = json.loads(capsys.readouterr().out)
    where = [(c["optimizer"], tuple(c["betas"]), c["lr"]) for c in found["comparisons"]]
    assert where == list(itertools.product(("AdamW", "Lion"), (BETAS, (0.5, 0.6)), (1e-4, 3e-4)))
    assert found["comparisons"][0]["weight_decay"] == pytest.approx(10)
    assert np.shape(found["comparisons"][0]["distances"]["frozen"]) == (2, 3)
    assert found["comparisons"][0]["distances"]["frozen"][0][0] == 0  # M[0] = 0
    assert b"Software\x00memoryless" in (folder / "memoryless-fig1.png").read_bytes()
    for _ in range(2):  # its own picture may be overwritten
        go(*short, "--lrs", "1e-3", "--picture", "fig.pdf")
    shown = capsys.readouterr()
    assert shown.out.count("\nAdamW (0.9, 0.95), lr 1e-3\n") == 2
    assert shown.err.count("wrote fig.pdf") == 2
    assert b"/Creator (memoryless" in (folder / "fig.pdf").read_bytes()


BAD = [
    ("--data cifar", "--data cifar: no such folder; expected digits, mnist, or a folder with train-images-idx3-ubyte and"),
    ("--data empty", "--data empty: no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in the folder"),
    ("--data torn", "train-labels-idx1-ubyte is damaged: its header promises 6 bytes of data, it has 3"),
    ("--data unlike", "expected images of shape (count, height, width) and as many classes, got (6, 4, 3) and (5,)"),
    ("--betas 0.9 1", "adamw: every beta must lie in [0, 1), got 1.0"),
    ("--betas 0.9 0", "lion: betas must lie in [0, 1) and (0, 1), got (0.9, 0.0)"),
    ("--lrs 0", "lr must be positive and finite, got 0.0"),
    ("--lrs 1 2 3 4 5", "expected one to four --lrs and at least one pair of --betas, got 5 and 1"),
    ("--eps 0", "--eps must be positive and finite, got 0.0"),
    ("--eps nan", "--eps must be positive and finite, got nan"),
    ("--steps 1", "--steps must be at least 2, got 1"),
    ("--seeds 0", "--seeds must be at least 1, got 0"),
    ("--jobs 0", "--jobs must be at least 1, got 0"),
    ("--picture fig.svg", "--picture must end in .png or .pdf, got 'fig.svg'"),
    ("--picture mine.png", "--picture mine.png exists and was not written by memoryless"),
    ("--picture nowhere/fig.png", "no folder nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input_is_one_clear_line(arguments: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    (folder / "mine.png").write_bytes(b"the user's own")
    for name, classes in (("empty", None), ("torn", idx(CLASSES)[:-3]), ("unlike", idx(CLASSES[:5]))):
        (folder / name).mkdir()
        if classes is not None:
            (folder / name / FILES[0]).write_bytes(idx(PIXELS))
            (folder / name / FILES[1]).write_bytes(classes)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=r".") as caught:
        go("--steps", "2", *arguments.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["fig9"], ["fig1", "--betas", "0.9"], ["fig1", "--steps", "many"]])
def test_unknown_options_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        tyro.cli(Reproduce, args=arguments)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
