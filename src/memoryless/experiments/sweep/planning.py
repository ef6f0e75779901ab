"""What a sweep will take, before it starts: a few steps of each kind of run, measured here, and what they come to.

A kind is a problem, an optimizer, a size of batches, dialled or not: what the cost of a step depends on. Each is measured in a
process of its own, one after the other. How a step's time grows is measured, too: full batch on half of the samples, and for a
built-in problem with a width on a network twice as wide.
"""

import inspect
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from memoryless.errors import BadInput
from memoryless.experiments.sweep.engines import PRELOAD, alone
from memoryless.experiments.sweep.grid import FULL, Run
from memoryless.experiments.sweep.results import Sweep
from memoryless.methods.call import called
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import plain
from memoryless.render.result import Result

STEPS, SECONDS = (3, 50), 0.5
"""Least and most steps of a measurement, and after which time it ends between."""


class Cost(NamedTuple):
    """What a kind of run takes on this machine.

    Attributes:
        d: parameters.
        step: seconds of one.
        record: seconds of measuring what is recorded.
        start: seconds until the first step.
        memory: bytes that its process takes at most.
        checkpoint: bytes.
        data: times that a step takes as long as one on half of the samples; None along mini-batches.
        wide: times as many parameters that a network twice as wide has, and times as long that its step takes; None where there
            is no width.
    """

    d: int
    step: float
    record: float
    start: float
    memory: int
    checkpoint: int
    data: float | None
    wide: tuple[float, float] | None


@dataclass(frozen=True)
class Kind:
    """Runs whose steps cost alike.

    Attributes:
        run: one of them.
        left: those to do.
        cost: of one.
    """

    run: Run
    left: Sequence[Run]
    cost: Cost

    @property
    def seconds(self) -> float:
        """Of all runs that are left, one after the other."""
        c = self.cost
        return sum(c.start + run.steps * c.step + len(run.recorded) * c.record for run in self.left)

    @property
    def longest(self) -> float:
        """Seconds of the longest run."""
        c = self.cost
        return max((c.start + run.steps * c.step + len(run.recorded) * c.record for run in self.left), default=0.0)


@dataclass(frozen=True)
class Plan(Result):
    """What is left of a sweep, and what it will take here.

    Attributes:
        sweep: what is done.
        kinds: of run that are left, measured.
        jobs: runs at a time.
    """

    sweep: Sweep
    kinds: Sequence[Kind]
    jobs: int

    @property
    def work(self) -> float:
        """Seconds of all that is left, one run at a time."""
        return sum(kind.seconds for kind in self.kinds)

    @property
    def seconds(self) -> float:
        """Until all is done, with so many runs at a time; no less than the longest takes."""
        return max([self.work / self.jobs, *(kind.longest for kind in self.kinds)])

    @property
    def memory(self) -> int:
        """Bytes, of the largest runs at a time."""
        return min(self.jobs, self.sweep.count("left")) * max((kind.cost.memory for kind in self.kinds), default=0)

    @property
    def axes(self) -> dict[str, int]:
        """How many values the grid has along each axis."""
        return {name: len({str(row.axes[name]) for row in self.sweep.rows}) for name in self.sweep.rows[0].axes}

    def as_dict(self) -> dict[str, Any]:
        """Runs, seconds, bytes, and how they grow."""
        states = {state: self.sweep.count(state) for state in ("done", "failed", "left")}
        kinds = [
            {"run": kind.run._asdict(), "left": len(kind.left), **kind.cost._asdict(), "seconds": kind.seconds}
            for kind in self.kinds
        ]
        totals = {"jobs": self.jobs, "work_seconds": self.work, "seconds": self.seconds, "memory": self.memory}
        return plain({"runs": len(self.sweep.rows), **states, **totals, "axes": self.axes, "kinds": kinds})


def kind_of(run: Run) -> tuple[Any, ...]:
    """What the cost of a step and of a record depends on.

    Args:
        run: which.
    """
    return run.problem, run.optimizer, run.batch_size, bool(run.dial), run.what, run.test, run.dtype, run.device, run.cores


def plan(sweep: Sweep, jobs: int, on_step: OnStep = silent) -> Plan:
    """Measure each kind of run that is left, each in a process of its own.

    Args:
        sweep: a grid and what is done of it.
        jobs: runs at a time.
        on_step: told the kinds measured, and how many there are.

    Returns:
        What is left, and what it will take.

    Raises:
        BadInput: a problem or an optimizer is not as expected.
    """
    every: dict[tuple[Any, ...], list[Run]] = {}
    for row in sweep.rows:
        if row.state == "left":
            every.setdefault(kind_of(row.run), []).append(row.run)
    kinds = []
    for runs in every.values():
        on_step(len(kinds), len(every))
        kinds.append(Kind(runs[0], runs, apart(runs[0], sweep.grid.place)))
    on_step(len(every), len(every))
    return Plan(sweep, kinds, jobs)


def apart(run: Run, place: Callable[[str], str]) -> Cost:
    """`measured` in a process of its own.

    Args:
        run: which.
        place: finds its scripts.

    Raises:
        BadInput: the problem or the optimizer is not as expected, or its process died.
    """
    from memoryless.experiments import processes

    try:
        return processes.apart(alone, PRELOAD)(measured, run, place).result()
    except BadInput:
        raise
    except Exception as error:
        said = (str(error).splitlines() or ["no message"])[0]
        raise BadInput(f"{run.problem}, {run.optimizer}: {type(error).__name__}: {said}") from error


def measured(run: Run, place: Callable[[str], str]) -> Cost:
    """A few steps of a run, in this process.

    Args:
        run: which.
        place: finds its scripts.
    """
    import torch

    from memoryless.experiments.sweep.problem import map_tensors, measure, parts, size
    from memoryless.experiments.sweep.training import begin, seeded

    torch.set_num_threads(run.cores)
    with seeded(run):
        clock = time.perf_counter()
        training = begin(run, place)
        start = time.perf_counter() - clock
        made = training.made
        made.model.train()
        step, d = _stepping(made, run, training), sum(p.numel() for p in made.parameters)
        seconds, record = _timed(step), _timed(lambda n: measure(made, run.what), least=1)
        saved = io.BytesIO()
        torch.save(training.state(), saved)
        memory, data, wide = _peak(), None, None
        if run.batch_size == FULL and size(made.samples) > 1:
            part = map_tensors(lambda x: x[: size(made.samples) // 2], made.samples)
            data = 1 / _ratio(_stepping(made._replace(samples=part, batches=parts(part)), run, training), step)
        if (problem := _twice_as_wide(run)) is not None:
            wider = begin(run._replace(problem=problem), place)
            count = sum(p.numel() for p in wider.made.parameters)
            wide = count / d, _ratio(_stepping(wider.made, run, wider), step)
        return Cost(d, seconds, record, start, memory, saved.tell(), data, wide)


def _stepping(made: Any, run: Run, training: Any) -> Callable[[int], object]:
    from memoryless.experiments.sweep.problem import Order

    order, mini = Order(made, run), bool(run.dial) and run.batch_size != FULL
    return lambda n: training.step(order[n], mini)


def _twice_as_wide(run: Run) -> str | None:
    from memoryless.experiments.sweep.problem import KNOWN

    path, options = called(run.problem)
    width = inspect.signature(KNOWN[path].make).parameters.get("width") if path in KNOWN else None
    if width is None:
        return None
    told = {**options, "width": 2 * options.get("width", width.default)}
    return f"{path}({', '.join(f'{name}={value}' for name, value in told.items())})"


def _ratio(one: Callable[[int], object], other: Callable[[int], object]) -> float:
    """Processor time of one over that of the other, taken in turn: other work on the machine slows both alike."""
    took, begin, n = ([], []), time.perf_counter(), 0
    while n < 2 * STEPS[0] or (n < STEPS[1] and time.perf_counter() - begin < 2 * SECONDS):
        for action, times in zip((one, other), took, strict=True):
            now = time.process_time()
            action(n)
            times.append(time.process_time() - now)
        n += 1
    return median(took[0][1:]) / median(took[1][1:])


def _timed(action: Callable[[int], object], least: int = STEPS[0]) -> float:
    """Seconds of one call: the median of those after the first, in which much is made ready."""
    action(0)
    took, begin = [], time.perf_counter()
    while len(took) < least or (len(took) < STEPS[1] and time.perf_counter() - begin < SECONDS):
        now = time.perf_counter()
        action(len(took) + 1)
        took.append(time.perf_counter() - now)
    return median(took)


def _peak() -> int:
    """Bytes of memory that this process has taken at most."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
