"""Checkpoints as people have them: each kind goes on as the plain one does, or one line says why not."""

import argparse
import copy
import importlib.util
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from memoryless.cli.main import main

SCRIPT = """
from base import *

def setup():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    weights, biases = ([p for p in model.parameters() if p.ndim == n] for n in (2, 1))
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    return model, criterion, data(), torch.optim.AdamW(groups, lr=0.01)

def wrapped():
    model, criterion, batches, optimizer = setup()
    return torch.nn.DataParallel(model), criterion, batches, optimizer

def unused():
    model, criterion, batches, optimizer = setup()
    model.unused = nn.Linear(2, 1)
    optimizer.add_param_group({"params": list(model.unused.parameters())})
    model.forward = lambda x: model[2](model[1](model[0](x)))
    return model, criterion, batches, optimizer
"""
SHORT = ["--steps", "2", "--stops", "1", "--measures", "gradient_1_norm", "--html", "None", "--dtype", "float64", "--json"]


def trained(
    make: Callable[[list[Any]], torch.optim.Optimizer] = lambda groups: torch.optim.AdamW(groups, lr=0.01),
    swapped: bool = False,
    steps: int = 5,
) -> dict[str, Any]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    weights, biases = ([p for p in model.parameters() if p.ndim == n] for n in (2, 1))
    groups = [{"params": weights[:: -1 if swapped else 1], "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = make(groups)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def audited(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main(["audit", *arguments, *SHORT])
    return json.loads(capsys.readouterr().out)["stops"][0]


@pytest.fixture
def plain(folder: Path) -> dict[str, Any]:
    (folder / "train.py").write_text(SCRIPT)
    state = trained()
    torch.save(state, "plain.pt")
    return state


def named(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state["model"].items()}


FORMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "state_dict": lambda s: {"epoch": 3, "state_dict": s["model"], "best": torch.tensor(0.5), "optimizer": s["optimizer"]},
    "model_state_dict": lambda s: {"model_state_dict": s["model"], "optimizer_state_dict": s["optimizer"]},
    "namespace": lambda s: s | {"args": argparse.Namespace(lr=1, at=Path("a"))},
    "simple_namespace": lambda s: s | {"args": types.SimpleNamespace(lr=1)},
    "numpy": lambda s: s | {"best": np.float64(0.3), "at": np.int64(3), "curve": np.arange(3.0), "name": np.str_("a")},
    "compiled": lambda s: s | {"model": named(s, "_orig_mod.")},
    "distributed": lambda s: s | {"model": named(s, "module.")},
    "both": lambda s: s | {"model": named(s, "_orig_mod.module.")},
    "lightning": lambda s: {
        "state_dict": named(s, "net.") | {"metric.total": torch.ones(2)},
        "optimizer_states": [s["optimizer"]],
        "callbacks": {},
        "lr_schedulers": [],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, plain: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    torch.save(FORMS[form](plain), "form.pt")
    expected = audited(capsys, "train.py:setup", "--checkpoint", "plain.pt")
    assert audited(capsys, "train.py:setup", "--checkpoint", "form.pt") == expected
    assert expected != audited(capsys, "train.py:setup")


def test_a_wrapped_model_takes_a_bare_checkpoint(plain: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    bare, wrapped = (audited(capsys, f"train.py:{f}", "--checkpoint", "plain.pt") for f in ("setup", "wrapped"))
    assert wrapped["effects"][0]["measured"] == bare["effects"][0]["measured"]


def test_a_trainers_folder(plain: dict[str, Any], capsys: pytest.CaptureFixture[str], refused: Callable[..., str]):
    folder = Path("run/checkpoint-500")
    folder.mkdir(parents=True)
    assert "take run/checkpoint-500" in refused("audit", "train.py:setup", "--checkpoint", "run")
    torch.save(plain["optimizer"], folder / "optimizer.pt")
    torch.save(plain["model"], folder / "pytorch_model.bin")
    expected = audited(capsys, "train.py:setup", "--checkpoint", "plain.pt")
    assert audited(capsys, "train.py:setup", "--checkpoint", str(folder)) == expected
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    message = refused("audit", "train.py:setup", "--checkpoint", str(folder))
    there = importlib.util.find_spec("safetensors") is not None
    assert ("damaged" if there else "takes pip install safetensors") in message


def test_parameters_that_no_gradient_reaches_need_no_state(plain: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    state = copy.deepcopy(plain)
    state["model"] |= {"unused.weight": torch.ones(1, 2), "unused.bias": torch.ones(1)}
    state["optimizer"]["param_groups"].append(state["optimizer"]["param_groups"][1] | {"params": [4, 5]})
    torch.save(state, "unused.pt")
    assert audited(capsys, "train.py:unused", "--checkpoint", "unused.pt")["effects"]


def test_options_win_over_the_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]):
    options = ["base.py:setup", "--checkpoint", "fits.pt"]
    assert "lr=0.01, betas=(0.9, 0.999)" in audited(capsys, *options)["method"]
    assert "lr=0.002, betas=(0.9, 0.999)" in audited(capsys, *options, "--lr", "0.002")["method"]
    chosen = audited(capsys, *options, "--optimizer", "adam(lr=0.003, betas=(0.5, 0.9))")["method"]
    assert "lr=0.003, betas=(0.5, 0.9)" in chosen
    assert "lr=0.004" in audited(capsys, *options, "--optimizer", "adam(lr=0.003)", "--lr", "0.004")["method"]
    assert "lr=0.004" in audited(capsys, "base.py:setup", "--optimizer", "lion", "--lr", "0.004")["method"]


def test_the_end_of_a_schedule(plain: dict[str, Any], refused: Callable[..., str], capsys: pytest.CaptureFixture[str]):
    for group in plain["optimizer"]["param_groups"]:
        group["lr"] = 0.0
    torch.save(plain, "ended.pt")
    assert "is 0, as at the end of a schedule; give --lr" in refused("audit", "train.py:setup", "--checkpoint", "ended.pt")
    expected = audited(capsys, "train.py:setup", "--checkpoint", "plain.pt")
    assert audited(capsys, "train.py:setup", "--checkpoint", "ended.pt", "--lr", "0.01") == expected


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[], Any]:
    def make() -> Any:
        state = copy.deepcopy(trained())
        return change(state) or state

    return make


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "swapped": (lambda: trained(swapped=True), "its parameters are others, or in another order"),
    "sgd": (lambda: trained(lambda g: torch.optim.SGD(g, lr=0.01, momentum=0.9)), "it has momentum_buffer; AdamW keeps step"),
    "adam": (lambda: trained(lambda g: torch.optim.Adam(g, lr=0.01)), "of another optimizer than AdamW"),
    "adagrad": (lambda: trained(lambda g: torch.optim.Adagrad(g, lr=0.01)), "it has step, sum; AdamW keeps step, exp_avg"),
    "empty": (dict, "has no 'model', only nothing"),
    "empty_parts": (lambda: {"model": {}, "optimizer": {}}, "it lacks '0.bias'"),
    "no_groups": (changed(lambda s: s.update(optimizer={})), "has no state dict of an optimizer"),
    "two_optimizers": (changed(lambda s: s.update(optimizer=[{}, {}])), "holds 2 optimizers"),
    "weights_alone": (changed(lambda s: s["model"]), "has no 'model', only 0.weight"),
    "optimizer_alone": (changed(lambda s: s["optimizer"]), "has no 'model', only state"),
    "one_of_four": (
        changed(lambda s: s["optimizer"].update(state={0: s["optimizer"]["state"][0]})),
        "state for 1 of 4 parameters, none for '2.weight'",
    ),
    "negative_step": (
        changed(lambda s: s["optimizer"]["state"][0].update(step=torch.tensor(-3.0))),
        "the step of '0.weight' is -3.0; expected a number >= 0",
    ),
    "step_text": (changed(lambda s: s["optimizer"]["state"][0].update(step="3")), "the step of '0.weight' is 3;"),
    "shape": (
        changed(lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.ones(7))),
        "exp_avg of '0.weight' is (7,) there, (4, 3) here",
    ),
    "nan_state": (
        changed(lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.full((4, 3), torch.nan))),
        "exp_avg of '0.weight' is not finite",
    ),
    "nan_weight": (changed(lambda s: s["model"].update({"0.bias": torch.full((4,), torch.inf)})), "'0.bias' is not finite"),
    "lr_text": (changed(lambda s: s["optimizer"]["param_groups"][0].update(lr="fast")), "lr is 'fast'; expected a number"),
    "weights_numbers": (changed(lambda s: s["model"].update({"0.bias": 3})), "'0.bias' is a int; expected a tensor"),
    "strange_names": (changed(lambda s: s.update(model={1: torch.ones(1)})), "has no state dict of a model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints(case: str, plain: dict[str, Any], refused: Callable[..., str]):
    make, message = BAD[case]
    torch.save(make(), "bad.pt")
    assert message in refused("audit", "train.py:setup", "--checkpoint", "bad.pt", *SHORT)


def test_an_empty_file(plain: dict[str, Any], refused: Callable[..., str]):
    Path("zero.pt").touch()
    assert "checkpoint zero.pt is damaged or truncated" in refused("audit", "train.py:setup", "--checkpoint", "zero.pt")


class Strange:
    pass


def test_what_would_run_code_is_named(plain: dict[str, Any], refused: Callable[..., str]):
    torch.save(plain | {"config": Strange()}, "code.pt")
    assert "(it has tests.cli.test_checkpoint.Strange)" in refused("audit", "train.py:setup", "--checkpoint", "code.pt")
