"""Options that commands share, checked before any work is done."""

from pathlib import Path
from typing import Any

from memoryless.errors import BadInput

MARKS = (
    b'name="generator" content="memoryless',
    b"% written by memoryless",
    b"Software\x00memoryless",
    b"/Creator (memoryless",
)
"""What pages, LaTeX, PNG and PDF files that memoryless wrote have near their beginning or end."""


def writable(option: str, name: str | None) -> Path | None:
    """The path of a file to write, checked before any work is done.

    Args:
        option: its name on the command line, for messages.
        name: what the user gave; None for none.

    Raises:
        BadInput: it cannot be written, or is a file that memoryless did not write.
    """
    if name is None:
        return None
    path = Path(name)
    if not path.parent.is_dir():
        raise BadInput(f"{option} {name}: no folder {path.parent}")
    if path.is_dir():
        raise BadInput(f"{option} {name} is a folder; expected a file")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(4096)
            file.seek(max(path.stat().st_size - 4096, 0))
            ends = start + file.read()
            if not any(mark in ends for mark in MARKS):
                raise BadInput(f"{option} {name} exists and was not written by memoryless; choose another name")
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise BadInput(f"{option} {name} cannot be written: {error.strerror}") from error
    if path.stat().st_size == 0:
        path.unlink()
    return path


def device_of(name: str) -> Any:
    """The torch device.

    Args:
        name: cpu, cuda or cuda:N.

    Raises:
        BadInput: unknown, or not there.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"--device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda asked for, but torch sees no CUDA device; use --device cpu")
    return device


def dtype_of(name: str | None) -> Any:
    """The torch dtype, None for None.

    Args:
        name: float32 or float64.

    Raises:
        BadInput: another.
    """
    import torch

    if name not in (None, "float32", "float64"):
        raise BadInput(f"--dtype must be float32 or float64, got {name!r}")
    return None if name is None else getattr(torch, name)
