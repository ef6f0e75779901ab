"""Options that commands share, checked before any work is done; the progress bar; files written."""

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
    try:
        if path.exists():
            with path.open("rb") as file:
                start = file.read(4096)
                file.seek(max(path.stat().st_size - 4096, 0))
                ends = start + file.read()
            if not any(mark in ends for mark in MARKS):
                raise BadInput(f"{option} {name} exists and was not written by memoryless; choose another name")
        with path.open("ab"):
            pass
    except OSError as error:
        raise BadInput(f"{option} {name} cannot be written: {error.strerror}") from error
    if path.stat().st_size == 0:
        path.unlink()
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
    """
    from memoryless import __version__

    if path is not None:
        key = "Creator" if path.suffix == ".pdf" else "Software"
        figure.savefig(path, dpi=dpi or "figure", metadata={key: f"memoryless {__version__}"})
        print(f"wrote {path}", file=sys.stderr)


def write(path: Path | None, text: str) -> None:
    """Write a text file and say so on stderr.

    Args:
        path: None for none.
        text: to write.
    """
    if path is not None:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}", file=sys.stderr)


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr while work goes on.

    Args:
        what: is counted, such as "optimizer steps": the words before the bar.

    Yields:
        on_step(done, total), which moves it; without a total it only pulses.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)


def assignments(texts: Iterable[str], example: str) -> dict[str, Any]:
    """Values of --set by name: numbers, tuples and flags as such, anything else as text.

    Args:
        texts: what the user gave, each NAME=VALUE.
        example: such as "betas=0.9,0.999", shown where one has another form.

    Raises:
        BadInput: one has another form.
    """
    found = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name.isidentifier() and equals and value):
            raise BadInput(f"--set expects NAME=VALUE such as {example}, got {text!r}")
        try:
            found[name] = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value, value))
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def device_of(name: str) -> Any:
    """The torch device, None for cpu: work stays where it is.

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
    return None if device.type == "cpu" else device


def dtype_of(name: str | None) -> Any:
    """The torch dtype, None for None.

    Args:
        name: float32 or float64.

    Raises:
        BadInput: it is neither.
    """
    import torch

    if name not in (None, "float32", "float64"):
        raise BadInput(f"--dtype must be float32 or float64, got {name!r}")
    return None if name is None else getattr(torch, name)
