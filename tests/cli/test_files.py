"""Nothing a user has is lost."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from memoryless.cli import files
from memoryless.cli.main import main
from memoryless.errors import BadInput


def derive(path: str, step: int = 1) -> None:
    main(["derive", "signum", "--latex", path, "--step", str(step)])


def test_a_page_of_another_run_is_replaced_with_a_word(folder: Path, capsys: pytest.CaptureFixture[str]):
    said = []
    for step in (1, 1, 2):
        derive("a.tex", step)
        said.append(capsys.readouterr().err.strip())
    first = "memoryless derive signum --latex a.tex --step"
    assert said == ["wrote a.tex", "wrote a.tex", f"wrote a.tex, in place of what {first} 1 wrote"]
    assert f"made by [[{first} 2]]" in (folder / "a.tex").read_text()


@pytest.mark.parametrize("name", ["a.png", "a.pdf"])
def test_pictures_carry_their_command(name: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    from matplotlib.figure import Figure

    files.begin(["verify", "own (1).py:f --> ]]é"])
    files.save(Figure(), Path(name))
    files.begin(["audit"])
    files.save(Figure(), files.picture("--png", name, (".png", ".pdf")))
    assert "in place of what memoryless verify 'own" in capsys.readouterr().err.splitlines()[-1]


def test_a_full_disk_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch):
    derive("a.tex")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"a\.tex cannot be written: No space left on device; what was there is unchanged"):
        files.write(Path("a.tex"), "% short")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_mode_and_link_stay(folder: Path):
    derive("a.tex")
    (folder / "a.tex").chmod(0o640)
    (folder / "link.tex").symlink_to("a.tex")
    derive("link.tex", 2)
    assert (folder / "link.tex").is_symlink()
    assert (folder / "a.tex").stat().st_mode & 0o777 == 0o640
    assert "--step 2" in (folder / "a.tex").read_text()


@pytest.mark.parametrize("option", ["--html", "--latex"])
def test_only_regular_files_are_written_and_at_once(option: str, folder: Path, refused: Callable[..., str]):
    os.mkfifo(folder / "pipe")
    answered: list[str] = []
    for name in ("/dev/null", "/dev/full", "pipe"):
        thread = threading.Thread(target=lambda name=name: answered.append(_refusal(option, name)), daemon=True)
        thread.start()
        thread.join(5)
    assert answered == [
        f"{option} {name} is a device or a pipe; expected a file" for name in ("/dev/null", "/dev/full", "pipe")
    ]


def _refusal(option: str, name: str) -> str:
    with pytest.raises(BadInput) as caught:
        files.writable(option, name)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.html", "was not written by memoryless"),
        ("gone/a.html", "no folder gone"),
        ("dangling", "no folder"),
        ("a\0b", "is no name of a file"),
        ("x" * 300, "File name too long"),
        ("\udcff\ud800", "is no name of a file"),
    ],
)
def test_other_names(name: str, message: str, folder: Path):
    (folder / "dangling").symlink_to("gone/target")
    assert message in _refusal("--html", name)


def test_an_empty_file_is_nobodys_loss(folder: Path):
    (folder / "empty.html").touch()
    assert files.writable("--html", "empty.html") == Path("empty.html")
