"""The command line as a user meets it. In-process, but for what only a process shows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memoryless.cli.main import main

SETUP = """
import torch
from torch import nn

def data():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(20, 3, generator=generator), torch.randn(20, 1, generator=generator)) for _ in range(2)]

def criterion(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])

def setup():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, criterion, data(), torch.optim.Adam(model.parameters(), lr=0.01)
"""

VARIANTS = """
from base import *

def raising():
    raise KeyError("weights")

def three():
    return setup()[:3]

def no_scalar():
    model, _, batches, optimizer = setup()
    return model, lambda model, batch: model(batch[0]), batches, optimizer

def no_gradient():
    model, _, batches, optimizer = setup()
    return model, lambda model, batch: torch.zeros(()), batches, optimizer

def criterion_raises():
    model, _, batches, optimizer = setup()
    return model, lambda model, batch: model(batch[1]), batches, optimizer

def empty():
    model, criterion, _, optimizer = setup()
    return model, criterion, [], optimizer

def one_shot():
    model, criterion, batches, optimizer = setup()
    return model, criterion, iter(batches), optimizer

def nan_loss():
    model, criterion, batches, optimizer = setup()
    batches[1][1][3] = float("nan")
    return model, criterion, batches, optimizer

def nan_parameter():
    model, criterion, batches, optimizer = setup()
    model[2].weight.data[0, 2] = float("inf")
    return model, criterion, batches, optimizer

def complex_parameter():
    model, criterion, batches, optimizer = setup()
    model.extra = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return model, criterion, batches, optimizer

def all_frozen():
    model, criterion, batches, optimizer = setup()
    model.requires_grad_(False)
    return model, criterion, batches, optimizer

def dropout():
    model, criterion, batches, _ = setup()
    model.insert(2, nn.Dropout(0.5))
    return model, criterion, batches, torch.optim.Adam(model.parameters())

def other_model():
    model, criterion, batches, _ = setup()
    return model, criterion, batches, torch.optim.Adam(setup()[0].parameters())

def lbfgs():
    model, criterion, batches, _ = setup()
    return model, criterion, batches, torch.optim.LBFGS(model.parameters())

def amsgrad():
    model, criterion, batches, _ = setup()
    return model, criterion, batches, torch.optim.Adam(model.parameters(), amsgrad=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "base.py").write_text(SETUP)
    (tmp_path / "bad.py").write_text(VARIANTS)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    (tmp_path / "mine.html").write_text("<p>the user's own</p>")
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "fits.pt")
    torch.save(model, tmp_path / "pickled.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weights": model.state_dict()}, tmp_path / "keys.pt")
    torch.save(state | {"model": torch.nn.Linear(3, 4).state_dict()}, tmp_path / "names.pt")
    wide = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    torch.save(state | {"model": wide.state_dict()}, tmp_path / "shapes.pt")
    few = torch.optim.Adam(list(model.parameters())[:2])
    torch.save(state | {"optimizer": few.state_dict()}, tmp_path / "groups.pt")
    return tmp_path


SHORT = ["--steps", "3", "--html", "None"]
BAD = [
    ("nowhere.py:setup", "script not found: nowhere.py"),
    ("base.py", "expected path/to/script.py:function, got 'base.py'"),
    ("base.py:start", "no function 'start' in base.py; it defines data, criterion, setup"),
    ("broken.py:setup", "broken.py raised ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("bad.py:raising", "bad.py:raising raised KeyError: 'weights' (line "),
    ("bad.py:three", "returned 3 things; expected model, criterion, batches, optimizer"),
    ("bad.py:no_scalar", "criterion must return a scalar tensor, got shape (20, 1)"),
    ("bad.py:no_gradient", "the loss does not depend on the parameters"),
    ("bad.py:criterion_raises", "criterion of bad.py:criterion_raises raised RuntimeError"),
    ("bad.py:empty", "batches is empty"),
    ("bad.py:one_shot", "batches must be re-iterable, got a one-shot list_iterator"),
    ("bad.py:nan_loss", "the loss is nan on batch 1"),
    ("bad.py:nan_parameter", "parameter '2.weight' is inf first at flat index 2"),
    ("bad.py:complex_parameter", "parameter 'extra' is torch.complex64"),
    ("bad.py:all_frozen", "no trainable parameters"),
    ("bad.py:dropout", "not a function of theta alone"),
    ("bad.py:other_model", "holds none of the loss's parameters"),
    ("bad.py:lbfgs", "LBFGS is not recognised; expected one of torch's SGD, Adam, AdamW, NAdam, RMSprop"),
    ("bad.py:amsgrad", "amsgrad"),
    ("base.py:setup --checkpoint gone.pt", "checkpoint not found: gone.pt"),
    ("base.py:setup --checkpoint torn.pt", "checkpoint torn.pt is damaged or truncated"),
    ("base.py:setup --checkpoint pickled.pt", "checkpoint pickled.pt is not made of plain tensors"),
    ("base.py:setup --checkpoint list.pt", "checkpoint list.pt holds a list"),
    ("base.py:setup --checkpoint keys.pt", "has no 'model', only weights"),
    ("base.py:setup --checkpoint names.pt", "of another model"),
    ("base.py:setup --checkpoint shapes.pt", "'0.weight' is (5, 3) there, (4, 3) in the model"),
    ("base.py:setup --checkpoint groups.pt", "parameters per group [2] there, [4] here"),
    ("--optimizer adagrad", "unknown optimizer 'adagrad'; expected one of sgd, adam, adamw, nadam, rmsprop"),
    ("--optimizer adam(rho=1)", "adam(rho=1): Adam got an unexpected keyword argument 'rho'"),
    ("--optimizer adam(lr=0)", "lr must be positive, got 0"),
    ("--optimizer adam(betas=(0.9,1.5))", "Invalid beta parameter at index 1: 1.5"),
    ("--optimizer adam(0.1)", "expected a name or name(option=value, ...)"),
    ("--compare muon", "unknown optimizer 'muon'; expected one of heavy_ball"),
    ("--compare lion(smoothing=-1)", "smoothing must be >= 0"),
    ("--measures flatness", "unknown measure 'flatness'"),
    ("--steps 0", "--steps must be at least 1, got 0"),
    ("--dtype float16", "--dtype must be float32 or float64, got 'float16'"),
    ("--device gpu", "--device must be cpu, cuda or cuda:N, got 'gpu'"),
    ("--device cuda", "torch sees no CUDA device"),
    ("--html mine.html", "mine.html exists and was not written by memoryless"),
    ("--html nowhere/page.html", "no folder nowhere"),
    ("--html .", "is a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input_is_one_clear_line_and_nothing_is_lost(
    arguments: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        main(["audit", *SHORT[: 4 if "--html" not in arguments else 2], *arguments.split(" ")])
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("memoryless: ")
    assert message in line
    after = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before


DERIVE_BAD = [
    ("lionx", "unknown method 'lionx'; expected one of heavy_ball"),
    ("adamw --set gamma=1", "no hyperparameter 'gamma'; expected one of lr, betas, eps"),
    ("adamw --set beta1", "--set expects NAME=VALUE such as beta1=0.9, got 'beta1'"),
    ("adamw --set beta1=2", "every beta must lie in [0, 1), got 2"),
    ("adamw --set beta1=x+y", "expected a number or a symbol's name, got 'x+y'"),
    ("lion --step -1", "--step must be an integer >= 0, or n, got '-1'"),
    ("nowhere:method", "nowhere:method not found"),
    ("torch.optim:Adagrad", "Adagrad is a black box, which has no formula"),
    ("torch.optim:Muon", "Muon is a black box, which has no formula; its defaults alone do not make one"),
    ("branching:method", "it branches on a value; torch.where does not (line 2 of branching.py: method = ml.Method"),
    ("branching.py:method", "it branches on a value; torch.where does not (line 2 of branching.py: method = ml.Method"),
    ("branching.py:lost", "branching.py has no 'lost'"),
    ("lost.py:method", "lost.py:method not found"),
    ("broken.py:method", "broken.py:method: running broken.py raised ZeroDivisionError: division by zero"),
    ("adamw --latex mine.html", "mine.html exists and was not written by memoryless"),
    ("adamw --html nowhere/page.html", "no folder nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), DERIVE_BAD, ids=[arguments for arguments, _ in DERIVE_BAD])
def test_bad_input_of_derive(arguments: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "branching.py").write_text(
        "import memoryless as ml\n"
        "method = ml.Method(0.1, (ml.Momentum(0.9),), lambda f, m, theta: m[0] if m[0] > 0 else theta)\n"
    )
    (folder / "broken.py").write_text("1 / 0")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        main(["derive", *arguments.split(" ")])
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("memoryless: ")
    assert message in line
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_derive_prints_and_writes(folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["derive", "adamw", "--set", "eps=0", "--set", "weight_decay=0", "--latex", "a.tex", "--html", "a.html"])
    shown = capsys.readouterr()
    assert "L̃ = L + h (τ₁ - τ₂) ‖∇L‖₁" in shown.out
    assert "wrote a.tex" in shown.err
    assert r"\begin{document}" in (folder / "a.tex").read_text()
    assert "<math" in (folder / "a.html").read_text()
    main(["derive", "signum", "--json", "--latex", "a.tex"])  # its own file may be overwritten
    assert json.loads(capsys.readouterr().out)["method"] == "signum"


@pytest.mark.parametrize("arguments", [["--step"], ["--betas", "1"], ["--steps", "many"], ["--no-such"]])
def test_unknown_options_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["audit", *arguments])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_default_problem(folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["audit", "--steps", "5", "--stops", "2", "--html", "page.html"])
    shown = capsys.readouterr().out
    for text in ("gradient 1-norm", "measured", "regularizes", "lion", "0.weight", "page.html"):
        assert text in shown
    assert "memoryless" in (folder / "page.html").read_text()
    main(["audit", "--steps", "2", "--html", "page.html"])  # its own page may be overwritten


def test_script_with_options_as_json(folder: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--dtype", "float64", "--measures", "gradient_1_norm", "--compare", "lion", "signum(lr=1e-3)", "--stops", "2"]
    main(["audit", "base.py:setup", *SHORT, *options, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["about"]["problem"] == "base.py:setup"
    assert [stop["step"] for stop in found["stops"]] == [1, 3]
    others = [other["method"] for other in found["stops"][0]["others"]]
    assert others == ["lion(betas=(0.9, 0.99))", "signum(lr=0.001, momentum=0.9)"]
    assert [e["measure"] for e in found["stops"][0]["effects"]] == ["gradient_1_norm"]


def test_checkpoint_and_optimizer(folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["audit", "base.py:setup", "--checkpoint", "fits.pt", *SHORT, "--json", "--seed", "1"])
    continued = json.loads(capsys.readouterr().out)
    main(["audit", "base.py:setup", *SHORT, "--json", "--seed", "0"])
    same = json.loads(capsys.readouterr().out)
    assert continued["stops"] == same["stops"]  # the checkpoint holds the initial state of seed 0
    main(["audit", "base.py:setup", "--optimizer", "sgd(lr=0.1, momentum=0.9)", *SHORT, "--json"])
    assert json.loads(capsys.readouterr().out)["stops"][0]["method"] == "heavy_ball(lr=0.1, momentum=0.9)"


def test_divergence_shows_what_was_audited(folder: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["audit", "base.py:setup", "--optimizer", "sgd(lr=1e30, momentum=0.9)", "--steps", "20", "--html", "None"])
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert "Change of the gradient 1-norm" in shown.out
    assert "after " in shown.err


def test_help_does_not_wait_for_torch():
    code = """
import sys
from memoryless.cli.main import main
try:
    main(["audit", "--help"])
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--checkpoint" in done.stdout


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(example: Path):
    subprocess.run([sys.executable, str(example)], check=True, capture_output=True, cwd=example.parent)
