"""Every way to say an optimizer in text: what is said, what it is, or the one line that says why not."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.optim import SGD, Adam, Adamax, AdamW, Muon, Optimizer

import memoryless as ml
from memoryless.errors import BadInput, Reevaluates
from memoryless.methods.live_optimizer import recognised
from memoryless.methods.method_optimizer import MethodOptimizer
from memoryless.methods.named import resolve
from tests.cli.scripts import OWN

SHAPES = [(4, 3), (3,)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "owned.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    (tmp_path / "failing.py").write_text("1 / 0")
    importlib.invalidate_caches()
    yield
    for name in ("owned", "failing"):
        sys.modules.pop(name, None)


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]


# text: the method, the live optimizer's class and its lr
SAID: dict[str, tuple[str, type[Optimizer], float]] = {
    "adamw": ("adamw(lr=0.001, betas=(0.9, 0.999))", AdamW, 1e-3),
    "adamw(lr=1e-2, betas=(0.9, 0.95))": ("adamw(lr=0.01, betas=(0.9, 0.95))", AdamW, 1e-2),
    " adam ( eps = 1e-6 ) ": ("adam(lr=0.001, betas=(0.9, 0.999), eps=1e-06)", Adam, 1e-3),
    "sgd(lr=0.1, momentum=0.9)": ("SGD(lr=0.1, momentum=0.9)", SGD, 0.1),
    "lion": ("lion(lr=0.001, betas=(0.9, 0.99))", MethodOptimizer, 1e-3),
    "heavy_ball(momentum=0.5)": ("heavy_ball(lr=0.001, momentum=0.5)", MethodOptimizer, 1e-3),
    "torch.optim.Adamax": ("Adamax(lr=0.002, betas=(0.9, 0.999))", Adamax, 2e-3),
    "torch.optim:Adamax(lr=0.1)": ("Adamax(lr=0.1, betas=(0.9, 0.999))", Adamax, 0.1),
    "torch.optim.AdamW": ("AdamW(lr=0.001, betas=(0.9, 0.999))", AdamW, 1e-3),
    "torch.optim.Muon(lr=1e-2)": ("Muon(lr=0.01, momentum=0.95)", Muon, 1e-2),
    "memoryless.Lion(lr=0.1)": ("lion(lr=0.1, betas=(0.9, 0.99))", MethodOptimizer, 0.1),
    "memoryless:Lion": ("lion(lr=0.0001, betas=(0.9, 0.99))", MethodOptimizer, 1e-4),
    "owned:method": ("mine()", MethodOptimizer, 0.1),
    "owned.makes(beta=0.5)": ("mine()", MethodOptimizer, 0.05),
    "own.py:method": ("mine()", MethodOptimizer, 0.1),
    "own.py:makes": ("mine()", MethodOptimizer, 0.05),
    "own.py:optimizer": ("Adamax(lr=0.02, betas=(0.9, 0.999))", Adamax, 0.02),
    "./own.py:optimizer(lr=0.3)": ("Adamax(lr=0.3, betas=(0.9, 0.999))", Adamax, 0.3),
    "own.py:gives_class": ("Adamax(lr=0.002, betas=(0.9, 0.999))", Adamax, 2e-3),
    "own.py:Mine": ("Mine(lr=0.002, betas=(0.9, 0.999))", Adamax, 2e-3),
    "tests.problems:custom": ("custom()", MethodOptimizer, 1e-3),
}


@pytest.mark.parametrize("text", SAID)
def test_what_is_said(text: str):
    shown, kind, lr = SAID[text]
    method, live = resolve(text).method(SHAPES), resolve(text).live(parameters())
    assert str(method) == shown
    assert method.lr == pytest.approx(lr)
    assert isinstance(live, kind)
    assert live.param_groups[0]["lr"] == pytest.approx(lr)


# text: the exception and its message
REFUSED: dict[str, tuple[type[BadInput], str]] = {
    "": (BadInput, "expected a name or name(option=value, ...), got ''"),
    "adam(0.1)": (BadInput, "expected a name or name(option=value, ...), got 'adam(0.1)'"),
    "adam(lr=one)": (BadInput, "expected a name or name(option=value, ...), got 'adam(lr=one)'"),
    "adam(lr=0.1": (BadInput, "expected a name or name(option=value, ...), got 'adam(lr=0.1'"),
    "adam(**{})": (BadInput, "expected a name or name(option=value, ...), got 'adam(**{})'"),
    "adamx": (BadInput, "unknown optimizer 'adamx'; expected one of heavy_ball, nesterov, "),
    "adam(rho=1)": (BadInput, "adam(rho=1): no option 'rho'; expected some of lr, betas, eps, "),
    "adam(lr=0)": (BadInput, "lr must be positive"),
    "lion(betas=(0.9, 1.5))": (BadInput, "lion: every beta must lie in [0, 1), got 1.5"),
    "torch.optim.Adam(betas=(2, 3))": (BadInput, "torch.optim.Adam(betas=(2, 3)) raised ValueError: Invalid beta parameter"),
    "torch.optim.Nothing": (BadInput, "torch.optim.Nothing not found: torch.optim has no 'Nothing'"),
    "nowhere.Thing": (BadInput, "nowhere.Thing not found: No module named 'nowhere'"),
    "failing:method": (BadInput, "failing raised ZeroDivisionError: division by zero (line 1 of "),
    "torch.nn.Linear": (BadInput, "torch.nn.Linear is a class of another kind; expected a torch optimizer's class, a "),
    "torch.optim.lr_scheduler.StepLR": (BadInput, "is a class of another kind"),
    "nowhere.py:method": (BadInput, "script not found: nowhere.py"),
    "own.py:lost": (BadInput, "no function 'lost' in own.py; it defines makes, optimizer, gives_class, Mine, fails, nothing"),
    "broken.py:method": (BadInput, "broken.py raised ModuleNotFoundError: No module named 'nothing_of_this_name' (line 1 of"),
    "own.py:number": (
        BadInput,
        "own.py:number is of type int; expected a torch optimizer's class, a memoryless.Method, or",
    ),
    "own.py:nothing": (BadInput, "own.py:nothing returned NoneType; expected"),
    "own.py:two": (BadInput, "own.py:two needs one, other; write own.py:two(one=...)"),
    "own.py:fails": (BadInput, "own.py:fails raised KeyError: 'weights' (line 20 of "),
    "own.py:makes(gamma=1)": (BadInput, "own.py:makes(gamma=1): no option 'gamma'; expected some of lr, beta"),
    "own.py:method(beta=1)": (BadInput, "mine is not a catalogue method"),
}
WAYS: dict[str, Callable[[str], object]] = {
    "method": lambda text: resolve(text).method(SHAPES),
    "live": lambda text: resolve(text).live(parameters()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text: str, way: str):
    exception, message = REFUSED[text]
    with pytest.raises(exception) as caught:
        WAYS[way](text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_is_no_function_of_one_gradient():
    with pytest.raises(Reevaluates, match=r"LBFGS.step\(\) evaluates the loss again"):
        resolve("torch.optim.LBFGS").method(SHAPES)


def test_lr_is_for_those_that_do_not_say_theirs():
    for text, lr in {
        "lion": 0.2,
        "lion(lr=0.3)": 0.3,
        "torch.optim.Adamax": 0.2,
        "own.py:makes": 0.2,
        "own.py:method": 0.1,
    }.items():
        assert resolve(text).method(SHAPES, lr=0.2).lr == lr
        assert resolve(text).live(parameters(), lr=0.2).param_groups[0]["lr"] == lr


def test_matrices_go_to_an_optimizer_that_takes_nothing_else():
    muon = resolve("torch.optim.Muon(lr=1e-3)")
    assert not muon.takes(SHAPES)
    assert muon.takes(SHAPES[:1])
    method, theta = muon.method(SHAPES), torch.ones(15, dtype=torch.float64)
    _, F = method.update(method.init(theta), torch.arange(15.0), theta)
    assert F[:12].abs().min() > 0
    assert F[12:].abs().max() == 0
    live = muon.live(parameters())
    assert [p.shape for p in live.param_groups[0]["params"]] == [(4, 3)]
    with pytest.raises(BadInput, match="Muon only supports 2D parameters"):
        muon.method(SHAPES[1:])


def test_defaults_and_further_options():
    assert resolve("lion").defaults == {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "smoothing": 0.0}
    assert resolve("torch.optim.Adamax(eps=1)").defaults["eps"] == 1e-8
    assert str(resolve("lion(lr=1)").given(lr=2, betas=(0.5, 0.5)).method(SHAPES)) == "lion(lr=2, betas=(0.5, 0.5))"


@pytest.mark.parametrize("name", ["heavy_ball", "adamw"])
def test_a_method_as_a_live_optimizer_is_its_own_update_and_recognised(name: str):
    """Against torch's own, over two parameters; the lr may be changed as a scheduler does."""
    ours, theirs = parameters(), parameters()
    method = {"heavy_ball": ml.HeavyBall(0.1, 0.9), "adamw": ml.AdamW(0.1)}[name]
    stepped = MethodOptimizer(ours, method)
    torchs = SGD(theirs, lr=0.1, momentum=0.9) if name == "heavy_ball" else AdamW(theirs, lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for n in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        stepped.step()
        torchs.step()
        for optimizer in (stepped, torchs):
            optimizer.param_groups[0]["lr"] = 0.1 / (n + 2)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert str(recognised(stepped)) == str(method.at_lr(0.1 / 6))
