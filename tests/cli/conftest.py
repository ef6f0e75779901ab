"""A user's folder: scripts, checkpoints, files of their own."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from memoryless.cli.main import main
from tests.cli.scripts import HOSTILE, OWN, SETUP, TALKS, VARIANTS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "base.py").write_text(SETUP)
    (tmp_path / "bad.py").write_text(VARIANTS)
    (tmp_path / "hostile.py").write_text(HOSTILE)
    (tmp_path / "talks.py").write_text(TALKS)
    (tmp_path / "own.py").write_text(OWN)
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


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a command says to bad input; it exits with 2, and the folder's files stay as they were."""

    def line(*arguments: str) -> str:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        shown = capsys.readouterr()
        (line,) = [line for line in shown.err.splitlines() if line.strip()]
        assert line.startswith("memoryless: ")
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert after == before
        return line

    return line
