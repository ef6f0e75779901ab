"""Run what is left of a grid, each run once, whatever is killed meanwhile.

The driver alone writes results. A run whose process, worker or node is lost begins again from its checkpoint, which it writes
by itself; so does one whose driver was killed, when the same command is given again. A run that fails by itself (its optimizer
refuses, its script raises, it takes its process with it again and again) is kept with its reason, and tried anew on request.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from pathlib import Path

from memoryless.errors import BadInput
from memoryless.experiments.sweep.engines import Answer, Engine, Task
from memoryless.experiments.sweep.grid import Grid
from memoryless.experiments.sweep.results import Results, Row, Sweep, look
from memoryless.experiments.sweep.versions import versions
from memoryless.progress import OnStep, silent

PATIENCE = 0.25
"""Seconds between two looks."""
LOST = 5
"""Times in a row that a run may lose its process without a further checkpoint."""


class Driver:
    """A grid at work.

    Args:
        grid: what to run.
        results: the store, which this process alone writes.
        engine: where.
        on_step: told the optimizer steps done and those of all runs.
    """

    def __init__(self, grid: Grid, results: Results, engine: Engine, on_step: OnStep = silent):
        self._grid, self._results, self._engine, self._on_step = grid, results, engine, on_step
        self._under_way: dict[Future[Answer], Task] = {}
        self._lost: dict[str, tuple[int, int]] = {}

    def run(self, retry: bool = False) -> Sweep:
        """Run what is left.

        Args:
            retry: the failed, too.

        Returns:
            The grid with its results.

        Raises:
            BadInput: nothing can go on: a disk is full, a node has other versions.
        """
        rows = look(self._grid, self._results).rows
        waiting = deque(self._task(row) for row in rows if row.state == "left" or (retry and row.state == "failed"))
        steps = {row.key: row.run.steps for row in rows}
        wanted = {task.key for task in waiting}
        done = sum(count for key, count in steps.items() if key not in wanted)
        try:
            while waiting or self._under_way:
                while waiting and len(self._under_way) < self._engine.room():
                    task = waiting.popleft()
                    self._under_way[self._engine.start(task)] = task
                ended, _ = wait(self._under_way, timeout=PATIENCE, return_when=FIRST_COMPLETED)
                for future in ended:
                    task = self._under_way.pop(future)
                    if self._kept(task, future):
                        done += task.run.steps
                    else:
                        waiting.appendleft(task)
                under_way = sum(min(_at(task)[0], task.run.steps) for task in self._under_way.values())
                self._on_step(done + under_way, sum(steps.values()))
        finally:
            self._engine.stop()
        return look(self._grid, self._results)

    def _task(self, row: Row) -> Task:
        path, grid = self._results.checkpoint(row.key).resolve(), self._grid
        return Task(row.key, row.run, grid.place, versions(row.run, grid.place), path, grid.checkpoint, grid.gpus)

    def _kept(self, task: Task, future: Future[Answer]) -> bool:
        """Whether a run has come to an end that is kept; one that lost its process has not."""
        try:
            answer = future.result()
        except (Exception, CancelledError) as error:  # whatever an engine makes of a lost process
            kept = _at(task)[1]
            count, before = self._lost.get(task.key, (0, kept))
            count = count + 1 if kept <= before else 1
            self._lost[task.key] = count, kept
            if count < LOST:
                return False
            reason = f"its process was lost {LOST} times in a row at step {kept} or later: {_said(error)}"
            answer = {"kind": "failed", "reason": reason}
        if answer["kind"] == "stop":
            raise BadInput(answer["reason"])
        self._results.append({**answer, "key": task.key, "run": task.run._asdict(), "versions": task.versions})
        return True


def _at(task: Task) -> tuple[int, int]:
    """The step at which a run is, and that of its last checkpoint, by its own word."""
    try:
        now, kept = task.checkpoint.with_suffix(".at").read_text().split()
        return int(now), int(kept)
    except (OSError, ValueError):
        return 0, 0


def _said(error: BaseException) -> str:
    code = getattr(error, "exitcode", None)
    if isinstance(code, int) and code < 0:
        return f"signal {-code}"
    return f"exit code {code}" if code is not None else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def sweep(
    grid: Grid,
    folder: Path,
    engine: Callable[[], Engine],
    retry: bool = False,
    wait: Callable[[], object] | None = None,
    on_step: OnStep = silent,
) -> Sweep:
    """Run what a store does not have yet of a grid.

    Args:
        grid: what to run.
        folder: of the store.
        engine: makes where to run it, once there is something to run.
        retry: runs that failed, too.
        wait: called once before waiting for another process on the store; None is not to wait.
        on_step: told the optimizer steps done and those of all runs.

    Returns:
        The grid with its results.

    Raises:
        BadInput: another process works on the store, it cannot be read or written, or nothing can go on.
    """
    with Results(folder).sole(wait) as results:
        found = look(grid, results)
        if not found.count("left") and not (retry and found.count("failed")):
            return found
        return Driver(grid, results, engine(), on_step).run(retry)
