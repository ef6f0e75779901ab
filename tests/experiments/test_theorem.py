"""`memoryless verify`: the theorem on the problems that come with it, the verdict, the table, the picture, bad input."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

import memoryless as ml
from memoryless.cli.verify import Verify
from memoryless.errors import Diverged
from memoryless.experiments.theorem import (
    KINDS,
    PROBLEMS,
    Example,
    Verification,
    holds,
    load,
    power,
    tolerance,
    verify,
    visible,
)
from memoryless.methods.catalogue import CATALOGUE
from memoryless.paths.accuracy import Accuracy, order_of_accuracy
from memoryless.report.verify import GAP, _apart, draw
from tests.cli.test_cli import SETUP

LRS = (1e-3, 5e-4)
QUADRATIC = PROBLEMS["quadratic"].loss(0)
FEW = ["--problem", "quadratic", "--lrs", "0.02", "0.01", "--horizon", "0.1", "--kinds", "frozen", "first"]


def run(*arguments: str) -> None:
    tyro.cli(Verify, args=arguments).run()


def exactly(power: float, kind, scale: float = 1.0, floor: float = 1e-13) -> Accuracy:
    """Errors scale * lr^power."""
    lrs = (4e-3, 2e-3, 1e-3)
    return Accuracy(kind, lrs, tuple(scale * lr**power for lr in lrs), floor)


def of(*accuracies: Accuracy, dtype: str = "float64") -> Verification:
    return Verification("heavy_ball(momentum=0.5)", "a loss", 8, dtype, 0.1, (4e-3, 2e-3, 1e-3), accuracies)


@pytest.mark.parametrize("name", CATALOGUE)
def test_hyperparameters_are_chosen_for_every_method(name):
    method, chosen = visible(name, QUADRATIC)
    assert isinstance(method, ml.Method)
    assert chosen
    assert {key: method.hyper[key] for key in chosen} == chosen


@pytest.mark.parametrize(("name", "problem"), [("adamw", "digits"), ("lion", "smooth"), ("nesterov", "quadratic")])
def test_what_is_chosen_shows_the_powers(name, problem):
    loss, about = load(problem, 0)
    found = verify(visible(name, loss)[0], loss, (5e-4, 2.5e-4), 0.05, ["frozen", "first"], about)
    assert found.holds, found.verdict


def test_its_numbers_are_those_of_order_of_accuracy():
    method, loss = ml.HeavyBall(lr=0.02, momentum=0.5), PROBLEMS["quadratic"].loss(0)
    found = verify(method, loss, horizon=0.1, kinds=["first", 1])
    assert found.lrs == (0.02, 0.01, 0.005, 0.0025)
    assert found.accuracies == tuple(order_of_accuracy(method, loss, 0.1, found.lrs, kind) for kind in ("first", 1))


def test_what_the_user_gave_is_kept():
    method, chosen = visible("adamw(betas=(0.9, 0.99), eps=1e-8, lr=0.1)", QUADRATIC)
    assert isinstance(method, ml.Method)
    assert (chosen, method.lr, method.hyper["betas"], method.hyper["eps"]) == ({}, 0.1, (0.9, 0.99), 1e-8)
    method, chosen = visible("lion(betas=(0.9, 0.99))", QUADRATIC)  # the default, but the user's word
    assert isinstance(method, ml.Method)
    assert chosen == {"lr": 2e-3, "smoothing": 0.1}
    assert method.hyper["betas"] == (0.9, 0.99)


def test_any_optimizer_of_torch(capsys: pytest.CaptureFixture[str]):
    method, chosen = visible("torch.optim.Adamax(eps=0.2)", QUADRATIC)
    assert chosen == {"lr": 2e-3, "betas": (0.5, 0.7)}
    assert str(method) == "Adamax(lr=0.002, betas=(0.5, 0.7), eps=0.2)"
    run("torch.optim.SGD", *FEW, "--json")
    sgd = json.loads(capsys.readouterr().out)
    run("heavy_ball", *FEW, "--json")
    heavy_ball = json.loads(capsys.readouterr().out)
    assert sgd["chosen"] == heavy_ball["chosen"]
    for ours, theirs in zip(heavy_ball["kinds"], sgd["kinds"], strict=True):
        assert theirs["errors"] == pytest.approx(ours["errors"], rel=1e-6)  # forward mode and differences agree to less


def test_a_black_box_is_given_fewer_steps():
    method, _ = visible("torch.optim.SGD", QUADRATIC)
    assert isinstance(method, ml.TorchMethod)
    found = verify(method, QUADRATIC, kinds=["frozen"])
    assert found.lrs == (8e-3, 4e-3, 2e-3)
    assert found.horizon == pytest.approx(16 * 8e-3)


def test_verdict_is_judged_by_the_power_of_each_kind():
    assert [power(kind) for kind in (*KINDS, 1)] == [1, 2, 2, 3, 4, 1]
    assert [tolerance(kind) for kind in KINDS] == [0.15, 0.15, 0.15, 0.2, 0.2]
    for kind in KINDS:
        p, width = power(kind), tolerance(kind)
        for shift, answer in (
            (0, True),
            (0.99 * width, True),
            (1.01 * width, False),
            (-0.99 * width, True),
            (-1.01 * width, False),
        ):
            assert holds(exactly(p + shift, kind)) is answer
    good = of(exactly(1, "frozen"), exactly(2, "first"), exactly(3, 3))
    assert good.holds
    assert good.verdict == "As the theorem says: frozen 1.00, first 2.00, order 3 3.00."
    bad = of(exactly(1.3, "frozen"), exactly(2, "first"))
    assert not bad.holds
    assert "first 2.00. Not reached: frozen reads 1.30, the theorem says 1; take smaller lrs" in bad.verdict
    assert not of().holds
    assert math.isnan(of().floor)


def test_verdict_knows_the_floor():
    # 4^k, spoiled by rounding at the finest: judged where it was still above.
    spoiled = Accuracy(4, (4e-3, 2e-3, 1e-3), (2.56e-10, 1.6e-11, 9e-12), 1e-11)
    assert holds(spoiled) is True
    assert holds(replace(spoiled, floor=1e-12)) is False
    assert holds(replace(spoiled, floor=1e-9)) is None
    hidden = of(exactly(2, "first"), exactly(3, 3, floor=1.0), dtype="float32")
    assert not hidden.holds
    assert "Not judged: order 3: the errors are no larger than rounding" in hidden.verdict
    assert "float64 in place of float32" in hidden.verdict
    memoryless = verify(ml.HeavyBall(momentum=0.0), PROBLEMS["quadratic"].loss(0), LRS, 0.01, ["frozen"])
    assert holds(memoryless.accuracies[0]) is None


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
        assert f"Picture: {name}" in capsys.readouterr().out
    Path("mine.png").write_bytes(b"\x89PNG the user's own")
    with pytest.raises(ValueError, match="was not written by memoryless"):
        run("heavy_ball", *FEW, "--png", "mine.png")
    assert Path("mine.png").read_bytes() == b"\x89PNG the user's own"


def test_picture_of_errors_that_are_zero(tmp_path: Path):
    draw(of(Accuracy("first", (2.0, 1.0), (0.0, 0.0), 1e-9), exactly(3, 3)), tmp_path / "a.png")
    draw(of(Accuracy("first", (2.0, 1.0), (0.0, 0.0), 1e-9)), tmp_path / "b.png")


def test_labels_keep_apart_and_in_order():
    moved = _apart([0.5, 0.5, 0.51, 0.9])
    assert moved == pytest.approx([0.5033 - GAP, 0.5033, 0.5033 + GAP, 0.9], abs=1e-3)
    assert _apart([0.1, 0.4]) == [0.1, 0.4]


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


def test_divergence_keeps_the_kinds_that_were_finished(monkeypatch: pytest.MonkeyPatch):
    finished = exactly(1, "frozen")

    def second_fails(method, loss, horizon, lrs, kind, on_step):
        if kind == "first":
            on_step(7)  # 5 steps at the first lr
            raise Diverged("kind 'first' diverged at step 2: why", 2)
        return finished

    monkeypatch.setattr("memoryless.experiments.theorem.order_of_accuracy", second_fails)
    with pytest.raises(Diverged, match=r"at lr 0\.01, comparing first: kind 'first' diverged at step 2: why") as caught:
        verify(ml.HeavyBall(), PROBLEMS["quadratic"].loss(0), (0.02, 0.01), 0.1, ["frozen", "first"])
    assert caught.value.step == 2
    assert caught.value.so_far.accuracies == (finished,)


BAD = [
    ("adagrad", "unknown optimizer 'adagrad'; expected one of heavy_ball"),
    ("torch.optim.Nothing", "torch.optim.Nothing: module 'torch.optim' has no attribute 'Nothing'"),
    ("nowhere.Thing", "nowhere.Thing: No module named 'nowhere'"),
    ("torch.nn.Linear", "torch.nn.Linear is no class of torch optimizers"),
    ("adamw(rho=1)", "adamw(rho=1): AdamW() got an unexpected keyword argument 'rho'"),
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
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        run(*arguments.split(" "))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out
