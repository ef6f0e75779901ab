"""Run what is left of a grid, each run once, whatever is killed meanwhile.

The driver alone writes results. A run whose process, worker or node is lost begins again from its checkpoint, which it writes
by itself; so does one whose driver was killed, when the same command is given again. A run that fails by itself (its optimizer
refuses, its script raises, it takes its process with it again and again) is kept with its reason, and tried anew on request.
"""

import os
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from pathlib import Path
from statistics import fmean
from typing import Any

from memoryless.errors import BadInput
from memoryless.experiments.sweep.engines import Answer, Engine, Task
from memoryless.experiments.sweep.grid import Grid, Run, different
from memoryless.experiments.sweep.results import Results, Row, Sweep, look
from memoryless.experiments.sweep.versions import versions
from memoryless.progress import OnStep, silent

PATIENCE = 0.25
"""Seconds between two looks."""
LOST = 5
"""Times in a row that a run may lose its process without a further checkpoint."""


Kind = tuple[Any, ...]


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
        self._all, self._over, self._took = Counter[Kind](), Counter[Kind](), dict[Kind, tuple[float, int]]()

    def run(self, retry: bool = False) -> Sweep:
        """Run what is left.

        Args:
            retry: the failed, too.

        Returns:
            The grid with its results.

        Raises:
            BadInput: a problem or an optimizer is not as expected, or nothing can go on: a full disk, a node of other versions.
        """
        rows = look(self._grid, self._results).rows
        waiting = deque(self._task(row) for row in rows if row.state == "left" or (retry and row.state == "failed"))
        wanted = {task.key for task in waiting}
        for row in rows:
            self._all[_kind(row.run)] += row.run.steps
            if row.key not in wanted:
                self._ended(row.run, row.record)
        try:
            self._require(different(task.run for task in waiting))
            while waiting or self._under_way:
                while waiting and len(self._under_way) < self._engine.room():
                    task = waiting.popleft()
                    self._under_way[self._engine.start(task)] = task
                ended, _ = wait(self._under_way, timeout=PATIENCE, return_when=FIRST_COMPLETED)
                for future in ended:
                    task = self._under_way.pop(future)
                    if self._kept(task, future):
                        self._ended(task.run, self._results.done.get(task.key))
                    else:
                        waiting.appendleft(task)
                self._tell()
        finally:
            self._engine.stop()
        return look(self._grid, self._results)

    def _require(self, runs: list[Run]) -> None:
        """Raise where a run cannot begin."""
        try:
            refusal = self._engine.refusal(runs, self._grid.place)
        except Exception:  # its process was lost: the runs themselves will say
            return
        if refusal is not None:
            raise BadInput(refusal)

    def _ended(self, run: Run, record: Answer | None) -> None:
        kind = _kind(run)
        self._over[kind] += run.steps
        if record is not None and record["kind"] == "done" and record["diverged"] is None:
            took, steps = self._took.get(kind, (0.0, 0))
            self._took[kind] = took + record["seconds"], steps + run.steps

    def _tell(self) -> None:
        """Progress in steps, each counting by what a step of its kind has taken so far: all would else be of one pace."""
        means = {kind: took / steps for kind, (took, steps) in self._took.items()}
        usual = fmean(means.values()) if means else 1.0
        under_way = Counter[Kind]()
        for task in self._under_way.values():
            under_way[_kind(task.run)] += min(_at(task)[0], task.run.steps)

        def work(steps: Counter[Kind]) -> float:
            return sum(count * means.get(kind, usual) for kind, count in steps.items())

        self._on_step(round(self._all.total() * work(self._over + under_way) / work(self._all)), self._all.total())

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


def _kind(run: Run) -> Kind:
    """Runs whose steps take about as long."""
    return run.problem, run.batch_size, bool(run.dial)


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


def usual_jobs(grid: Grid) -> int:
    """Runs at a time on this machine: as many as its cores take, one where there is one GPU for all.

    Args:
        grid: to run.
    """
    run = grid.runs[0]
    return 1 if run.device != "cpu" else max(1, (os.cpu_count() or 1) // run.cores)


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
