"""`memoryless audit` as a user meets it, in-process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from memoryless.cli.main import main

SHORT = ["--steps", "3", "--html", "None"]
BAD = [
    ("nowhere.py:setup", "script not found: nowhere.py"),
    ("base.py", "problem must be one of digits, or script.py:function, got 'base.py'"),
    ("base:setup", "expected path/to/script.py:function, got 'base:setup'"),
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
    ("bad.py:lbfgs", "LBFGS.step() evaluates the loss again at other parameters"),
    ("base.py:setup --checkpoint gone.pt", "checkpoint not found: gone.pt"),
    ("base.py:setup --checkpoint torn.pt", "checkpoint torn.pt is damaged or truncated"),
    ("base.py:setup --checkpoint pickled.pt", "checkpoint pickled.pt is not made of plain tensors"),
    ("base.py:setup --checkpoint list.pt", "checkpoint list.pt holds a list"),
    ("base.py:setup --checkpoint keys.pt", "has no 'model', only weights"),
    ("base.py:setup --checkpoint names.pt", "of another model"),
    ("base.py:setup --checkpoint shapes.pt", "'0.weight' is (5, 3) there, (4, 3) in the model"),
    ("base.py:setup --checkpoint groups.pt", "parameters per group [2] there, [4] here"),
    ("--checkpoint fits.pt --optimizer lion", "holds the state of a torch optimizer, which lion is not"),
    ("--optimizer adagrad", "unknown optimizer 'adagrad'; expected one of heavy_ball"),
    ("--optimizer adam(rho=1)", "adam(rho=1): no option 'rho'; expected some of lr, betas, eps"),
    ("--optimizer adam(lr=0)", "lr must be positive, got 0"),
    ("--optimizer adam(betas=(0.9,1.5))", "Invalid beta parameter at index 1: 1.5"),
    ("--optimizer adam(0.1)", "expected a name or name(option=value, ...)"),
    ("--compare muon", "unknown optimizer 'muon'; expected one of heavy_ball"),
    ("--compare torch.optim.Adamax", "Adamax is not recognised; expected one of torch's SGD, Adam, AdamW, NAdam, RMSprop"),
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
    arguments: str, message: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in refused("audit", *SHORT[: 4 if "--html" not in arguments else 2], *arguments.split(" "))


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


OPTIMIZERS = {
    "lion(lr=1e-3)": "lion(lr=0.001, betas=(0.9, 0.99))",
    "torch.optim.Adamax": "Adamax(lr=0.002, betas=(0.9, 0.999))",
    "torch.optim.Muon(lr=1e-3)": "Muon(lr=0.001, momentum=0.95)",
    "torch.optim.Adam(amsgrad=True)": "Adam(lr=0.001, betas=(0.9, 0.999), amsgrad=True)",
    "own.py:method": "mine()",
    "own.py:optimizer(lr=0.01)": "Adamax(lr=0.01, betas=(0.9, 0.999))",
}


@pytest.mark.parametrize("text", OPTIMIZERS)
def test_any_optimizer(text: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["audit", "base.py:setup", "--optimizer", text, *SHORT, "--stops", "1", "--measures", "gradient_1_norm", "--json"])
    (stop,) = json.loads(capsys.readouterr().out)["stops"]
    assert stop["method"] == OPTIMIZERS[text]
    assert stop["effects"][0]["measured"] is not None


def test_a_method_without_a_torch_optimizer_runs_as_itself(folder: Path, capsys: pytest.CaptureFixture[str]):
    """Heavy ball stepped by its own update, and torch's SGD."""
    found = []
    for text in ("heavy_ball(lr=0.1, momentum=0.9)", "sgd(lr=0.1, momentum=0.9)"):
        main(["audit", "base.py:setup", "--optimizer", text, *SHORT, "--dtype", "float64", "--json"])
        found.append([stop["effects"] for stop in json.loads(capsys.readouterr().out)["stops"]])
    for ours, theirs in zip(*found, strict=True):
        for mine, torchs in zip(ours, theirs, strict=True):
            assert mine["measured"] == pytest.approx(torchs["measured"], rel=1e-9)
            assert mine["resummed"] == pytest.approx(torchs["resummed"], rel=1e-9)


def test_divergence_shows_what_was_audited(folder: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["audit", "base.py:setup", "--optimizer", "sgd(lr=1e30, momentum=0.9)", "--steps", "20", "--html", "None"])
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert "Change of the gradient 1-norm" in shown.out
    assert "after " in shown.err
