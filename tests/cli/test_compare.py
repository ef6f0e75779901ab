"""`memoryless compare` as a user meets it, in-process."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

import memoryless as ml
from memoryless.audits.compare import compare
from memoryless.cli.main import main
from memoryless.report.compare import print_comparison


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [
        "adamw",
        "torch.optim.RAdam",
        "torch.optim.LBFGS",
        "--problem",
        "base.py:setup",
        "--steps",
        "3",
        "--png",
        "c.png",
    ]
    arguments += ["--html", "c.html"]
    main(["compare", *arguments])
    shown = capsys.readouterr().out
    for text in ("gradient 1-norm", "sharpness", "adamw", "RAdam", "torch.optim.LBFGS: LBFGS.step() evaluates the loss again"):
        assert text in shown
    assert b"Software\x00memoryless" in (folder / "c.png").read_bytes()
    page = (folder / "c.html").read_text()
    assert f"Made by <code>memoryless compare {' '.join(arguments)}</code>" in page
    assert "<b>torch.optim.LBFGS</b> is not here: LBFGS.step() evaluates the loss again" in page
    main(["compare", "lion", "--problem", "base.py:setup", "--steps", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["about"]["problem"], found["rows"][0]["audit"]["step"]) == ("base.py:setup", 2)


def test_tables_fit_80_columns_with_whole_names():
    loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, -2.0]))
    names = [
        "torch.optim.AdamW(lr=1e-3)",
        "mine.py:AdamW(lr=1e-3)",
        "a.b:DistributedShampoo",
        "adamw(lr=1e-3,betas=(0.9,0.95))",
    ]
    found = compare(dict.fromkeys(names, ml.Adam()), loss, steps=2)
    console = Console(width=80, file=io.StringIO())
    print_comparison(found, console)
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    arrived, *measures = re.split("Change of the", shown[shown.index("Where each") :])
    assert "adamw(lr=1e-3,betas=(0.9,0.95))  " in arrived
    for table in measures:  # numbers of seven digits leave no room for such names
        for n, name in enumerate(names, 1):
            assert re.search(rf"^{n} +\d", table, re.MULTILINE)
            assert f"\n{n} {name}" in table


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
    ("adamw --html mine.html", "mine.html exists and was not written by memoryless"),
    ("adamw --lr -1", "--lr must be positive, got -1"),
    ("adamw --problem cifar", "problem must be one of digits, or script.py:function, got 'cifar'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input(arguments: str, message: str, folder: Path, refused: Callable[..., str]):
    (folder / "mine.png").write_bytes(b"mine")
    assert message in refused("compare", *arguments.split(" "))
