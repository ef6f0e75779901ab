"""Run the atlas: every optimizer in a process of its own, with a time limit, its row kept as soon as it is there."""

import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from memoryless.errors import BadInput
from memoryless.experiments import processes, store
from memoryless.experiments.atlas import subjects
from memoryless.experiments.atlas.rows import LATE, PROBLEMS, Row, examine, row_of, versions
from memoryless.experiments.atlas.ways import reason_of
from memoryless.experiments.processes import end_with_parent
from memoryless.experiments.store import Lines

Key = tuple[str, str]
"""Library and name."""
Tasks = Mapping[Key, Callable[[], Iterable[Row]]]
"""What makes the row of each, from the first version to the last."""
LIMIT = 180.0
"""Seconds of processor time for one optimizer."""
MORE = 0.25
"""Share of them to go on for, once there is a first version of its row."""
PRELOAD = "memoryless.experiments.atlas.rows", "torch._dynamo", "torch._decomp.decompositions_for_jvp"
"""What every worker needs; the last two are what torch imports at the first step and at the first tangent."""
PATIENCE = 6
"""Times the limit, by the clock, for one that sleeps or a machine that is busy."""


class Store(Lines):
    """Rows of the atlas, one written at a time: a process that is killed loses no finished row.

    Another kind of row is another `WHAT`, `FIELDS`, `key` and `present`.

    Args:
        path: of the file; made by the first row.

    Raises:
        BadInput: it cannot be read, or a line is no row; the message says which.
    """

    WHAT = "an atlas"
    FIELDS = ("library", "name", "versions", "kind", "problems")
    """What every row has; the first two are the first in its line."""

    def __init__(self, path: Path):
        head = f'{{"{self.FIELDS[0]}": "'.encode()
        super().__init__(path, head, set(self.FIELDS).issubset, f"a store of {self.WHAT}")

    @property
    def rows(self) -> dict[Key, Row]:
        """The last row of each key."""
        return {self.key(row): row for row in self.records}

    def key(self, row: Row) -> Key:
        """What a row is found by.

        Args:
            row: of this store.
        """
        return row[self.FIELDS[0]], row[self.FIELDS[1]]

    def present(self, key: Key) -> dict[str, str]:
        """The versions that a row for this key would have now.

        Args:
            key: of the row.
        """
        return versions(key[0])

    def has(self, key: Key) -> bool:
        """Whether it holds a row for this key, made with what is installed now.

        Args:
            key: of the row; of the atlas library and name.
        """
        row = self.rows.get(key)
        return row is not None and row["versions"] == self.present(key)


@contextmanager
def sole(path: Path) -> Iterator[None]:
    """Be the one process that works on a store.

    Args:
        path: of its file.

    Raises:
        BadInput: another one does, or the path has no name, as "." has none.
    """
    if not path.name:
        raise BadInput(f"{path} cannot be read: not a file; give another file")
    lock = path.with_name(f".{path.name}.lock")
    with store.sole(lock, path):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                lock.unlink()


def tasks(libraries: list[str], only: tuple[str, ...] = ()) -> Tasks:
    """What to examine.

    Args:
        libraries: installed ones.
        only: names, in any of them and any case; default all.

    Raises:
        BadInput: a name that none of them has.
    """
    every = [(library, name) for library in libraries for name in subjects.names(library)]
    known = {name.lower() for _, name in every}
    if unknown := next((name for name in only if name.lower() not in known), None):
        raise BadInput(f"no optimizer is called '{unknown}' in {', '.join(libraries)}")
    wanted = {name.lower() for name in only} or known
    return {key: partial(examine, *key) for key in every if key[1].lower() in wanted}


@dataclass
class _Worker:
    key: Key
    process: Any
    answer: connection.Connection
    end: float
    """When it is stopped."""
    row: Row | None = None
    """The last version that came."""

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.answer.close()


Refused = Callable[[Key, str, float], Row]
"""The row of a task that ended without one: its key, why, and the limit."""


def run(
    tasks: Tasks, jobs: int = 2, limit: float = LIMIT, refused: Refused | None = None, preload: Sequence[str] = PRELOAD
) -> Iterator[Row]:
    """Work on the tasks, each in a process of its own; whatever happens to it, there is a row.

    Args:
        tasks: they must pickle; the first part of a key names a module that they need.
        jobs: at a time.
        limit: seconds of processor time for each.
        refused: makes the row of a task that ended without one; default that of an atlas.
        preload: further modules that tasks need.

    Yields:
        The last version of each row, as they are finished.
    """
    waiting, working = deque(tasks.items()), []
    context = processes.context([*preload, *sorted({library for library, _ in tasks})])
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                working.append(_started(context, *waiting.popleft(), limit))
            left = min(worker.end for worker in working) - time.monotonic()
            ready = connection.wait([worker.answer for worker in working], timeout=min(max(0.0, left), 3600.0))
            for worker in [*working]:
                end = _heard(worker) if worker.answer in ready else ""
                if time.monotonic() > worker.end:
                    end = end or LATE
                if end:
                    working.remove(worker)
                    worker.close()
                    yield worker.row or (refused or _refused)(worker.key, end, limit)
    finally:
        for worker in working:
            worker.close()


def _started(context: Any, key: Key, task: Callable[[], Iterable[Row]], limit: float) -> _Worker:
    answer, end = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(end, task, limit), daemon=True)
    process.start()
    end.close()
    return _Worker(key, process, answer, time.monotonic() + PATIENCE * limit)


def _work(end: connection.Connection, task: Callable[[], Iterable[Row]], limit: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the first one ends the others
    end_with_parent()
    _stop_after(limit)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # What an optimizer prints is not the command's answer.
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    try:
        for version, row in enumerate(task()):
            end.send(row)
            if version == 0:
                _stop_after(MORE * limit)
        end.send("done")
    except BaseException as error:
        end.send(reason_of(error))


def _stop_after(seconds: float) -> None:
    """The system ends this process after so much processor time, whatever it is in; where it cannot, the clock does."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _heard(worker: _Worker) -> str:
    """Take what a worker sent; why it ended, if it did."""
    try:
        found = worker.answer.recv()
    except EOFError:  # it died without a word
        worker.process.join()
        code = worker.process.exitcode
        if hasattr(signal, "SIGPROF") and code == -signal.SIGPROF:
            return LATE
        return f"its process died, {'by signal' if code < 0 else 'with exit code'} {abs(code)}"
    if isinstance(found, str):
        return found
    worker.row = found
    return ""


def _refused(key: Key, end: str, limit: float) -> Row:
    late = end == LATE
    reason = f"{end} of {limit:g} s" if late else end
    found = {problem: {"kind": "refused", "reason": reason} for problem in PROBLEMS}
    return row_of(*key, found, limit if late else 0.0)
