"""`memoryless kernel` as a user meets it, in-process."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from memoryless.cli.kernel import Kernel
from memoryless.errors import BadInput


def command(capsys: pytest.CaptureFixture[str], *arguments: Any, **options: Any) -> str:
    Kernel(*arguments, horizon=128, **options).run()
    return capsys.readouterr().out


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, shown = str(tmp_path / "adamw.png"), ""
    for _ in range(2):  # its own picture may be overwritten
        shown = command(capsys, "torch.optim.AdamW", ("betas=0.9,0.999", "lr=1e-3"), png=file)
    for text in ("exp_avg_sq", "999", "692.8", "Memory: fades"):
        assert text in shown
    found = json.loads(command(capsys, "torch.optim.Muon", ("momentum=0.8",), json=True))
    assert found["pieces"][0]["mean_age"] == pytest.approx(4)
    found = json.loads(command(capsys, "torch.optim.Adagrad", json=True))
    assert found["mean_age"] is None
    assert "m_1, of g, beta 0.95" in command(capsys, "nadam(betas=(0.95, 0.99))")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("torch.optim.Nothing",), {}, "torch.optim.Nothing not found: torch.optim has no 'Nothing'"),
        (("nowhere.Adam",), {}, "No module named 'nowhere'"),
        (("torch.nn.Linear",), {}, "torch.nn.Linear is a class of another kind; expected a torch optimizer's class"),
        (("torch.optim.Adam", ("betas=2,3",)), {}, "torch.optim.Adam raised ValueError: Invalid beta parameter"),
        (("torch.optim.Adam", ("rho=2",)), {}, "torch.optim.Adam: no option 'rho'; expected some of lr, betas"),
        (("torch.optim.Muon",), {"shapes": "6"}, "Muon only supports 2D parameters"),
        (("torch.optim.LBFGS",), {}, "LBFGS"),
        (("torch.optim.SparseAdam",), {}, "SparseAdam"),
        (("muon",), {}, "unknown optimizer 'muon'"),
        (("adam", ("rho=2",)), {}, "adam: no option 'rho'; expected some of lr, betas"),
        (("adam", ("betas",)), {}, "--set expects NAME=VALUE"),
        (("adam",), {"shapes": "8x6"}, "--shapes expects sizes"),
        (("adam",), {"png": "a.pdf"}, "--png must end in .png"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(BadInput) as caught:
        Kernel(*arguments, **options).run()
    assert message in str(caught.value)
