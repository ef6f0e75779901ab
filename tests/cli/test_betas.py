"""`memoryless betas` as a user meets it, in-process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from memoryless.cli.main import main


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    options = [
        "--batch-sizes",
        "600,full",
        "--steps",
        "12",
        "--stages",
        "2,4",
        "--measures",
        "gradient_1_norm",
    ]
    options += ["--betas1", "0.9", "--betas2", "0.99"]
    main(["betas", *options, "--png", "b.png", "--json"])
    out = json.loads(capsys.readouterr().out)
    assert [stage["taken"] for stage in out["stages"]] == [2, 4]
    assert (folder / "b.png").stat().st_size > 10_000
    main(["betas", *options, "--png", "b.png"])
    text = capsys.readouterr().out
    assert "Change of the gradient 1-norm per step caused by memory" in text
    assert "600 (" in text
    assert "signs as measured, where known: resummed" in text


def test_its_own_grid_of_56_pairs_and_not_the_400_of_an_audit(folder: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--batch-sizes", "full", "--steps", "8", "--png", "None", "--json"]
    main(["betas", "base.py:setup", *options, "--measures", "gradient_1_norm"])
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["betas_1"] == [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99]
    assert stage["betas_2"] == [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999]
    measured = stage["sizes"][0]["maps"]["measured"]["gradient_1_norm"]["slope"]
    assert (len(measured), len(measured[0])) == (7, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes", "8,none"], "--batch-sizes takes whole numbers"),
        (["--batch-sizes", "2000"], "a batch size must lie in 1..896"),
        (["--stages", "a"], "--stages takes whole numbers"),
        (["--steps", "2"], "at least 8 steps"),
        (["--betas1", "0.9,x"], "--betas1 takes numbers"),
        (["--betas2", "1.5"], "every beta must lie in [0, 1)"),
        (["--optimizer", "sgd(lr=0.1)"], "a pair of betas"),
        (["--png", "b.pdf"], "--png must end in .png"),
        (["--measures", "beauty"], "unknown measure 'beauty'"),
    ],
)
def test_bad_input(arguments: list[str], message: str, refused: Callable[..., str]):
    assert message in refused("betas", *arguments)


def test_a_script_of_the_users_own(folder: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--batch-sizes", "10", "--steps", "8", "--png", "None", "--json"]
    main(["betas", "base.py:setup", *options, "--dtype", "float64", "--betas1", "0.5", "--betas2", "0.9"])
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert (stage["taken"], stage["lr"], stage["own"]) == (0, 0.01, [0.9, 0.999])


def test_the_default_sizes_shrink_to_a_small_data_set(folder: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--steps", "8", "--png", "None", "--json", "--dtype", "float64"]
    main(["betas", "base.py:setup", *options, "--betas1", "0.5", "--betas2", "0.9"])  # 40 samples
    assert json.loads(capsys.readouterr().out)["stages"]  # 128 of 40 samples would have been refused
