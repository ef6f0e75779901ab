"""`memoryless derive` as a user meets it, in-process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from memoryless.cli.main import main

BAD = [
    ("lionx", "unknown optimizer 'lionx'; expected one of heavy_ball"),
    ("adamw --set gamma=1", "no hyperparameter 'gamma'; expected one of lr, betas, eps"),
    ("adamw --set beta1", "--set expects NAME=VALUE such as beta1=0.9, got 'beta1'"),
    ("adamw --set eps=nan", "--set eps must be finite, got nan"),
    ("adamw --set betas=(0.9,-inf)", "--set betas must be finite, got (0.9,-inf)"),
    ("adamw --set lr=1e999", "--set lr must be finite, got 1e999"),
    ("adamw --set beta1=2", "every beta must lie in [0, 1), got 2"),
    ("adamw --set beta1=x+y", "expected a number or a symbol's name, got 'x+y'"),
    ("lion --step 1.5", "--step must be an integer >= 0, or n, got '1.5'"),
    ("lion --step -1", "--step must be an integer >= 0, or n, got '-1'"),
    ("nowhere:method", "nowhere:method not found: No module named 'nowhere'"),
    ("torch.optim:Adagrad", "Adagrad is a black box, which has no formula"),
    ("torch.optim:Muon", "Muon is a black box, which has no formula; its defaults alone do not make one"),
    ("branching:method", "it branches on a value; torch.where does not (line 2 of branching.py: method = ml.Method"),
    ("branching.py:method", "it branches on a value; torch.where does not (line 2 of branching.py: method = ml.Method"),
    ("branching.py:lost", "no function 'lost' in branching.py"),
    ("lost.py:method", "script not found: lost.py"),
    ("zero.py:method", "zero.py raised ZeroDivisionError: division by zero (line 1 of zero.py)"),
    ("adamw --latex mine.html", "mine.html exists and was not written by memoryless"),
    ("adamw --html nowhere/page.html", "no folder nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input(arguments: str, message: str, folder: Path, refused: Callable[..., str]):
    (folder / "branching.py").write_text(
        "import memoryless as ml\n"
        "method = ml.Method(0.1, (ml.Momentum(0.9),), lambda f, m, theta: m[0] if m[0] > 0 else theta)\n"
    )
    (folder / "zero.py").write_text("1 / 0")
    assert message in refused("derive", *arguments.split(" "))


def test_prints_and_writes(folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["derive", "adamw", "--set", "eps=0", "--set", "weight_decay=0", "--latex", "a.tex", "--html", "a.html"])
    shown = capsys.readouterr()
    assert "L̃ = L + h (τ₁ - τ₂) ‖∇L‖₁" in shown.out
    assert "wrote a.tex" in shown.err
    assert r"\begin{document}" in (folder / "a.tex").read_text()
    assert "<math" in (folder / "a.html").read_text()
    main(["derive", "signum", "--json", "--latex", "a.tex"])  # its own file may be overwritten
    assert json.loads(capsys.readouterr().out)["method"] == "signum"


def test_any_step(capsys: pytest.CaptureFixture[str]):
    main(["derive", "heavy_ball", "--step", "100000000"])
    assert "F = g (1 - β^100000001) / (1 - β)" in capsys.readouterr().out.replace("/", " / ")


@pytest.mark.parametrize("text", ["adamw(weight_decay=0, eps=0)", "torch.optim.AdamW(weight_decay=0, eps=0)"])
def test_options_in_the_text_are_those_of_set(text: str, capsys: pytest.CaptureFixture[str]):
    main(["derive", "adamw", "--set", "eps=0", "--set", "weight_decay=0", "--json"])
    expected = json.loads(capsys.readouterr().out)
    main(["derive", text, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["F"], found["M"]) == (expected["F"], expected["M"])
