"""`memoryless reproduce` as a user meets it, in-process."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from memoryless.cli.main import main
from memoryless.cli.reproduce import Reproduce
from memoryless.errors import BadInput
from memoryless.experiments import fig5
from memoryless.experiments.images import FILES
from tests.experiments.test_fig1 import BETAS, CLASSES, PIXELS, idx
from tests.experiments.test_figure import TOY


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


# The figures with claims


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """fig5 of two tiny runs."""
    recipe = fig5.FIGURES["fig5"]
    tiny = [TOY._replace(steps=4, every=2, betas=(0.9, b)) for b in (0.9, 0.99)]
    monkeypatch.setitem(fig5.FIGURES, "fig5", replace(recipe, settings=lambda scale, data, seeds: tiny))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_figure_with_claims(toy: Path, capsys: pytest.CaptureFixture[str]):
    main(["reproduce", "fig5", "--jobs", "1"])
    shown = capsys.readouterr()
    assert shown.out.startswith("How sharp Adam lets the loss become, β₁ = 0.9 (small: MLP")
    assert "  test, fixed before the run: mean of λ₁(P⁻¹H)" in shown.out
    assert b"Software\x00memoryless" in (toy / "memoryless-fig5.png").read_bytes()
    assert len((toy / "memoryless-fig5.jsonl").read_text().splitlines()) == 2
    main(["reproduce", "fig5", "--jobs", "1", "--json", "--picture", "None"])
    found = json.loads(capsys.readouterr().out)
    assert [claim["claim"][:9] for claim in found["claims"]] == ["At β₁ = 0", "The small"]
    assert found["runs"][1]["setting"]["betas"] == [0.9, 0.99]
    assert len((toy / "memoryless-fig5.jsonl").read_text().splitlines()) == 2


def test_ctrl_c_says_what_is_kept(toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    recipe, asked = fig5.FIGURES["fig5"], []

    def run(setting: Any) -> Any:
        asked.append(setting)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return recipe.run(setting)

    monkeypatch.setitem(fig5.FIGURES, "fig5", replace(recipe, run=run))
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", "fig5", "--jobs", "1"])
    assert caught.value.code == 130
    kept = "1 of 2 runs are in memoryless-fig5.jsonl; the same command goes on from there"
    assert capsys.readouterr().err.splitlines()[-1] == f"memoryless: interrupted; {kept}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--eps 1e-3", "--eps is an option of fig1; the settings of fig5 are those of its --scale"),
        ("--data mnist", "--data mnist: the small scale runs on the digits images; leave it out, or take --scale paper"),
        ("--scale paper --data nowhere", "no such folder; expected cifar10, or a folder with data_batch_1.bin"),
        ("--store nowhere/a.jsonl", "--store nowhere/a.jsonl: no folder nowhere"),
        ("--store mine.jsonl", "mine.jsonl:1 is no row of a figure"),
        ("--seeds 0", "--seeds must be at least 1, got 0"),
    ],
)
def test_bad_options_of_a_figure(arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("mine\n")
    with pytest.raises(BadInput) as caught:
        tyro.cli(Reproduce, args=["fig5", "--seeds", "1", "--jobs", "1", *arguments.split()]).run()
    assert message in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.jsonl"}
