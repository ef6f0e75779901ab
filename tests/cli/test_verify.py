"""`memoryless verify` as a user meets it, in-process."""

import json
import sys
from pathlib import Path

import pytest
import torch
import tyro

import memoryless as ml
from memoryless.cli.verify import Verify
from memoryless.errors import BadInput
from memoryless.experiments.theorem import PROBLEMS, Example, verify, visible
from memoryless.paths.accuracy import Accuracy
from tests.cli.scripts import SETUP
from tests.experiments.test_theorem import QUADRATIC, of

FEW = ["--problem", "quadratic", "--lrs", "0.02", "0.01", "--horizon", "0.1", "--kinds", "frozen", "first"]


def run(*arguments: str) -> None:
    tyro.cli(Verify, args=arguments).run()


def test_any_optimizer_of_torch(capsys: pytest.CaptureFixture[str]):
    run("torch.optim.SGD", *FEW, "--json")
    sgd = json.loads(capsys.readouterr().out)
    run("heavy_ball", *FEW, "--json")
    heavy_ball = json.loads(capsys.readouterr().out)
    assert sgd["chosen"] == heavy_ball["chosen"]
    for ours, theirs in zip(heavy_ball["kinds"], sgd["kinds"], strict=True):
        assert theirs["errors"] == pytest.approx(ours["errors"], rel=1e-6)  # forward mode and differences agree to less


def test_json_is_the_numbers(capsys: pytest.CaptureFixture[str]):
    run("heavy_ball", *FEW, "--json")
    shown = json.loads(capsys.readouterr().out)
    found = verify(visible("heavy_ball", QUADRATIC)[0], QUADRATIC, (0.02, 0.01), 0.1, ["frozen", "first"])
    about = {"chosen": {"lr": 0.008, "momentum": 0.5}, "seed": 0, "loss": "random convex quadratic"}
    assert shown == json.loads(json.dumps(found.as_dict())) | about
    assert shown["kinds"][1]["errors"] == list(found.accuracies[1].errors)
    nothing = of(Accuracy("first", (2.0, 1.0), (0.0, 0.0), 1e-9)).as_dict()
    assert json.loads(json.dumps(nothing, allow_nan=False))["kinds"][0]["slopes"] == [None]


def test_the_table_says_what_was_chosen_and_what_came_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    run("rmsprop(alpha=0.7)", *FEW)
    shown = capsys.readouterr().out
    assert shown.startswith("Not given, so chosen here: lr=0.002, eps=0.1 (")
    text = " ".join(shown.split())
    assert "rmsprop(alpha=0.7, eps=0.1) on random convex quadratic: 8 parameters in float64, up to time 0.1." in text
    for part in ("theorem 1.00 2.00", "frozen", "first", "rounding"):
        assert part in text
    assert max(map(len, shown.splitlines())) <= 80


def test_a_script_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine.py").write_text(SETUP)
    torch.set_default_dtype(torch.float32)
    try:
        run("adamw", *FEW[2:], "--problem", "mine.py:setup")
    finally:
        torch.set_default_dtype(torch.float64)
    text = " ".join(capsys.readouterr().out.split())
    assert "on mine.py:setup: 21 parameters in float32" in text
    assert "float32 rounds at" in text


def test_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    for name, start in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF")):
        for _ in range(2):  # its own picture may be overwritten
            run("heavy_ball", *FEW, "--png", name)
        assert Path(name).read_bytes().startswith(start)
        assert f"wrote {name}" in capsys.readouterr().err
    Path("mine.png").write_bytes(b"\x89PNG the user's own")
    with pytest.raises(ValueError, match="was not written by memoryless"):
        run("heavy_ball", *FEW, "--png", "mine.png")
    assert Path("mine.png").read_bytes() == b"\x89PNG the user's own"


def test_divergence_shows_what_was_computed_before(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def steep(seed: int) -> ml.Loss:
        return ml.Loss.of(lambda theta: theta.pow(4).sum(), torch.full((2,), 40.0, dtype=torch.float64))

    monkeypatch.setitem(PROBLEMS, "quadratic", Example("steep", steep))
    options = ["--problem", "quadratic", "--lrs", "3e-3", "1e-4", "--horizon", "0.1", "--kinds", "frozen", "first", "--json"]
    with pytest.raises(
        ValueError, match=r"^at lr 0.003, comparing \w+: kind '\w+' diverged at step \d+: .* \(take smaller lrs\)$"
    ):
        run("heavy_ball(momentum=0.9)", *options)
    assert [each["kind"] for each in json.loads(capsys.readouterr().out)["kinds"]] == []


BAD = [
    ("adagrad", "unknown optimizer 'adagrad'; expected one of heavy_ball"),
    ("torch.optim.Nothing", "torch.optim.Nothing not found: torch.optim has no 'Nothing'"),
    ("nowhere.Thing", "nowhere.Thing not found: No module named 'nowhere'"),
    ("torch.nn.Linear", "torch.nn.Linear is a class of another kind; expected a torch optimizer's class"),
    ("adamw(rho=1)", "adamw(rho=1): no option 'rho'; expected some of lr, betas, eps"),
    ("adamw(betas=(0.9,1.5))", "every beta must lie in [0, 1), got 1.5"),
    ("heavy_ball(lr=0)", "lr must be positive"),
    ("heavy_ball --problem cifar", "problem must be one of digits, quadratic, smooth, or script.py:function, got 'cifar'"),
    ("heavy_ball --problem nowhere.py:setup", "script not found: nowhere.py"),
    ("heavy_ball --kinds second", "kinds must be among frozen, first, resummed, or integer orders >= 1, got 'second'"),
    ("heavy_ball --kinds memory", "got 'memory'"),
    ("heavy_ball --kinds frozen 0", "got 0"),
    ("heavy_ball --kinds", "kinds must name at least one"),
    ("heavy_ball --lrs 0.001 0.002", "lrs must be at least two positive numbers, strictly decreasing, got [0.001, 0.002]"),
    ("heavy_ball --lrs 0.001", "lrs must be at least two positive numbers"),
    ("heavy_ball --lrs", "lrs must be at least two positive numbers"),
    ("heavy_ball --lrs 0.001 -0.001", "lrs must be at least two positive numbers"),
    ("heavy_ball --horizon 0.0001", "horizon must be at least one step of the largest lr, 0.008, got 0.0001"),
    ("heavy_ball --horizon nan", "got nan"),
    ("heavy_ball --png a.svg", "--png must end in .png or .pdf, got 'a.svg'"),
    ("heavy_ball --png nowhere/a.png", "no folder nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input(arguments: str, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(BadInput) as caught:
        run(*arguments.split(" "))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out
