"""Files that a command writes: looked at before any work is done, written beside and renamed, so that nothing is lost.

Only a new file, or one that memoryless wrote, is written; each carries the command that made it, and the next one that takes
its place says so.
"""

import os
import re
import shlex
import stat
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from memoryless.errors import BadInput
from memoryless.experiments.store import replaced

MARKS = (
    b'name="generator" content="memoryless',
    b"% written by memoryless",
    b"Software\x00memoryless",
    b"/Creator (memoryless",
)
"""What pages, LaTeX, PNG and PDF files that memoryless wrote have near their beginning or end."""


_MADE = re.compile(rb"made by \[\[(.*?)\]\]", re.DOTALL)
_NEAR = 8192
"""Bytes of the beginning and of the end that are read for these."""

_command = "memoryless"


def begin(arguments: Sequence[str]) -> None:
    """Say what command writes from now on.

    Args:
        arguments: its own, without the program's name.
    """
    global _command
    _command = shlex.join(["memoryless", *arguments])


def command() -> str:
    """The command line that runs, as a shell takes it."""
    return _command


def writable(option: str, name: str | None, marks: Sequence[bytes] = MARKS) -> Path | None:
    """The path of a file to write, checked before any work is done.

    Args:
        option: its name on the command line, for messages.
        name: what the user gave; None for none.
        marks: what a file that may be overwritten has near its beginning or end.

    Raises:
        BadInput: it cannot be written, or is no file, or one that memoryless did not write.
    """
    if name is None:
        return None
    path = Path(name)
    try:
        mode = path.stat().st_mode if path.exists() else None
        if mode is not None and stat.S_ISDIR(mode):
            raise BadInput(f"{option} {name} is a folder; expected a file")
        if mode is not None and not stat.S_ISREG(mode):
            raise BadInput(f"{option} {name} is a device or a pipe; expected a file")
        if not path.resolve().parent.is_dir():
            raise BadInput(f"{option} {name}: no folder {path.parent}")
        if mode is not None:
            if path.stat().st_size and not any(mark in _ends(path) for mark in marks):
                raise BadInput(f"{option} {name} exists and was not written by memoryless; choose another name")
            if not os.access(path, os.W_OK):
                raise BadInput(f"{option} {name} cannot be written: it is read-only")
        beside = _beside(path)
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        beside.unlink()
    except OSError as error:
        raise BadInput(f"{option} {name} cannot be written: {error.strerror}") from error
    except (UnicodeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{option} {name!r} is no name of a file ({error})") from error
    return path


def picture(option: str, name: str | None, suffixes: tuple[str, ...] = (".png",)) -> Path | None:
    """The path of a picture to write.

    Args:
        option: its name on the command line, for messages.
        name: what the user gave; None for none.
        suffixes: that are understood.

    Raises:
        BadInput: it ends otherwise, cannot be written, or is a file that memoryless did not write.
    """
    if name is not None and not name.endswith(suffixes):
        raise BadInput(f"{option} must end in {' or '.join(suffixes)}, got {name!r}")
    return writable(option, name)


def save(figure: Any, path: Path | None, dpi: int | None = None) -> None:
    """Write a picture, marked as memoryless's, and say so on stderr.

    Args:
        figure: of Matplotlib.
        path: .png or .pdf; None for none.
        dpi: pixels per inch; default the figure's own.

    Raises:
        BadInput: it cannot be written.
    """
    from memoryless import __version__

    if path is not None:
        kind = path.suffix.removeprefix(".")
        creator, about = ("Creator", "Subject") if kind == "pdf" else ("Software", "Description")
        data = BytesIO()
        metadata = {creator: f"memoryless {__version__}", about: _made()}
        figure.savefig(data, format=kind, dpi=dpi or "figure", metadata=metadata)
        _put(path, data.getvalue())


def write(path: Path | None, text: str) -> None:
    """Write a page, LaTeX or Markdown, and say so on stderr.

    Args:
        path: None for none.
        text: to write.

    Raises:
        BadInput: it cannot be written.
    """
    if path is not None:
        if text.startswith("%"):
            text = f"{text.rstrip()}\n% {_made()}\n"
        elif text.startswith("<!"):
            text = f"{text.rstrip()}\n<!-- {_made()} -->\n"
        _put(path, text.encode())


def _made() -> str:
    """The command that runs, so that it can stand in any comment and be found there."""
    plain = _command.encode("ascii", "backslashreplace").decode()
    return f"made by [[{plain.replace(']]', '] ]').replace('-->', '-- >')}]]".replace("\n", " ")


def _put(path: Path, data: bytes) -> None:
    """Write beside and rename: whatever happens, there is the old file or the whole new one."""
    instead = ""
    try:
        if path.exists() and path.stat().st_size:
            earlier = _MADE.search(_ends(path))
            by = earlier[1].decode("ascii", "replace") if earlier else "an earlier run"
            instead = "" if earlier and earlier[0] == _made().encode() else f", in place of what {by} wrote"
        with replaced(path) as file:
            file.write(data)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}; what was there is unchanged") from error
    print(f"wrote {path}{instead}", file=sys.stderr)


def _beside(path: Path) -> Path:
    place = path.resolve()
    return place.with_name(f".{place.name}.{os.getpid()}")


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(_NEAR)
        file.seek(max(path.stat().st_size - _NEAR, 0))
        return start + file.read(_NEAR)
