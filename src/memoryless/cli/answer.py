"""Standard output carries a command's answer and nothing else.

While a command runs, `sys.stdout` is stderr, and so is file descriptor 1, which C code and child processes write to: whatever a
user's script prints is seen, and `--json | jq` still reads JSON.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

from memoryless.errors import BadInput

_CLOSED = 141
"""128 + SIGPIPE: what a shell reports of a program whose reader, such as head, has gone."""


class _Answer:
    """A text stream whose reader may go, and whose disk may be full: the command still ends its work and writes its files.

    Attributes:
        lost: why it could not be written, first.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self.lost = self.lost or error
            with suppress(OSError, ValueError):  # what is still buffered goes nowhere, and raises nothing at exit
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


_answer: _Answer | None = None


@contextmanager
def alone(last: bool = False) -> Iterator[None]:
    """Keep everything but `say` and `console` from standard output.

    Args:
        last: the process ends after this: what is printed at exit goes to stderr too.

    Raises:
        BadInput: standard output could not be written.
        SystemExit: 141, nobody reads it.
    """
    global _answer
    stream, inner = sys.stdout, None
    if stream is sys.__stdout__:
        stream.flush()
        inner = os.fdopen(os.dup(1), "w", encoding=stream.encoding, errors="backslashreplace")
        os.dup2(2, 1)
    answer = _answer = _Answer(inner or stream)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        answer.flush()
        _answer = None
        if inner is not None:
            if not last:
                os.dup2(inner.fileno(), 1)
            inner.close()
    if isinstance(answer.lost, BrokenPipeError):
        raise SystemExit(_CLOSED)
    if answer.lost is not None:
        raise BadInput(f"standard output cannot be written: {answer.lost.strerror}")


def say(text: str) -> None:
    """Print a line of the answer.

    Args:
        text: without its end.
    """
    print(text, file=_answer or sys.stdout)


def console(aside: bool = False) -> Any:
    """A rich Console for the answer; brackets are text: names and paths of the user's own have them.

    Args:
        aside: it is on stderr instead, where the answer is JSON.
    """
    from rich.console import Console

    where: Any = {"stderr": True} if aside else {"file": _answer or sys.stdout}
    return Console(markup=False, **where)
