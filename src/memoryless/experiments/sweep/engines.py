"""Where runs are worked on: processes of this machine, or the tasks of a Ray cluster. One task is one run.

Both take a task and give a future of its answer; what a process, a worker or a node that is lost leaves behind is a future that
raises, and the driver gives the run to another, which goes on from the checkpoint.
"""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from memoryless.errors import BadInput
from memoryless.experiments.sweep.grid import Run

PRELOAD = "memoryless.experiments.sweep.training", "sklearn.datasets", "torch._dynamo"
"""What every run imports, the last at an optimizer's first step."""

Answer = dict[str, Any]


class Task(NamedTuple):
    """One run, as a process anywhere gets it.

    Attributes:
        key: of its result.
        run: which.
        place: finds its scripts.
        versions: with which it is to be run.
        checkpoint: its file.
        every: seconds between two.
        gpus: that it asks a cluster for.
    """

    key: str
    run: Run
    place: Callable[[str], str]
    versions: dict[str, str]
    checkpoint: Path
    every: float
    gpus: float = 0.0


def answer(task: Task) -> Answer:
    """Work on a run; whatever it raises is an answer.

    Args:
        task: which.

    Returns:
        kind "done" and the result, "failed" and the reason, or "stop" and the reason why no run can go on.
    """
    import torch

    from memoryless.experiments.sweep.training import Kept, Unwritable, train
    from memoryless.experiments.sweep.versions import versions

    torch.set_num_threads(task.run.cores)
    try:
        here = versions(task.run, task.place)
        if other := [name for name in {**here, **task.versions} if here.get(name) != task.versions.get(name)]:
            name = other[0]
            there = f"{here.get(name)} on {os.uname().nodename}, {task.versions.get(name)} where the sweep was started"
            return {"kind": "stop", "reason": f"{name} is {there}: install the same on every node"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {"kind": "done", **train(task.run, Kept(task.checkpoint, task.every), task.place)}
    except Unwritable as error:
        return {"kind": "stop", "reason": str(error)}
    except BadInput as error:
        return {"kind": "failed", "reason": str(error)}
    except (Exception, SystemExit) as error:
        message = (str(error).splitlines() or ["no message"])[0]
        return {"kind": "failed", "reason": f"{type(error).__name__}: {message}"}


def refusal(runs: Sequence[Run], place: Callable[[str], str]) -> str | None:
    """Why one of these runs cannot begin; None where all can.

    Args:
        runs: to look at, before any is started.
        place: finds their scripts.
    """
    from memoryless.experiments.sweep.training import begin, seeded

    try:
        for run in runs:
            here = run._replace(device="cpu")
            with seeded(here), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                begin(here, place)
    except BadInput as error:
        return str(error)
    return None


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function in a process of its own, which ends with the one that started it.

    Args:
        function: of a module.
        *arguments: its own.
    """
    from memoryless.experiments.processes import end_with_parent

    end_with_parent()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # what a script prints is not the command's answer
    return function(*arguments)


class Engine(Protocol):
    """What the driver needs."""

    def refusal(self, runs: Sequence[Run], place: Callable[[str], str]) -> str | None:
        """Why one of these runs cannot begin."""
        ...

    def room(self) -> int:
        """How many tasks to have under way."""
        ...

    def start(self, task: Task) -> Future[Answer]:
        """Begin a task."""
        ...

    def stop(self) -> None:
        """End what is under way."""
        ...


class Local:
    """Processes of this machine, one a run.

    Args:
        jobs: at a time.
    """

    def __init__(self, jobs: int):
        from memoryless.experiments import processes

        self._jobs, self._started = jobs, list[Future[Any]]()
        self._start = processes.apart(alone, PRELOAD)

    def refusal(self, runs: Sequence[Run], place: Callable[[str], str]) -> str | None:
        """Why one of these runs cannot begin, found out in a process of its own.

        Args:
            runs: to look at.
            place: finds their scripts.
        """
        self._started.append(future := self._start(refusal, runs, place))
        return future.result()

    def room(self) -> int:
        """The jobs."""
        return self._jobs

    def start(self, task: Task) -> Future[Answer]:
        """Begin a task in a process of its own.

        Args:
            task: which.
        """
        self._started = [future for future in self._started if not future.done()]
        self._started.append(self._start(answer, task))
        return self._started[-1]

    def stop(self) -> None:
        """Kill the processes."""
        for future in self._started:
            future.cancel()


class Cluster:
    """Tasks of Ray: on the cluster that RAY_ADDRESS names, one that runs on this machine, or a new one here.

    The store must lie on a file system that all nodes share.

    Args:
        address: of the cluster; None looks for it.
    """

    def __init__(self, address: str | None = None):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise BadInput("--on ray needs Ray: pip install 'memoryless[cluster]'") from None
        self._ray, self._own = ray, not ray.is_initialized()
        if self._own:
            try:
                options: dict[str, Any] = (
                    {"include_dashboard": False} if address is None and "RAY_ADDRESS" not in os.environ else {}
                )
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise BadInput(f"no Ray cluster: {str(error).splitlines()[0]}") from error
        self._refs: dict[Future[Answer], Any] = {}
        self._asked, self._fits = 1.0, False

    def refusal(self, runs: Sequence[Run], place: Callable[[str], str]) -> str | None:
        """Why one of these runs cannot begin, found out by a task.

        Args:
            runs: to look at.
            place: finds their scripts.
        """
        return self._ray.get(self._ray.remote(refusal).remote(runs, place))

    def room(self) -> int:
        """Twice what the cluster's cores take: a task waits at each core for the last one to end."""
        there = self._ray.cluster_resources().get("CPU", 1.0)
        return max(2, int(2 * there / self._asked))

    def start(self, task: Task) -> Future[Answer]:
        """Begin a task wherever there are the cores and GPUs it asks for.

        Args:
            task: which.

        Raises:
            BadInput: no node has so many, so that the first task would wait for ever.
        """
        self._asked = float(task.run.cores)
        if not self._fits:
            self._require({"CPU": self._asked, "GPU": task.gpus})
        remote = self._ray.remote(num_cpus=task.run.cores, num_gpus=task.gpus, max_retries=0)(answer)
        ref = remote.remote(task)
        future = ref.future()
        self._refs = {future: ref for future, ref in self._refs.items() if not future.done()} | {future: ref}
        return future

    def _require(self, wanted: dict[str, float]) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._fits = any(all(node.get(name, 0.0) >= count for name, count in wanted.items()) for node in nodes)
        if not self._fits:
            asks, *there = (f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in (wanted, *nodes))
            has = "; ".join(sorted(set(there)))
            raise BadInput(f"a run asks for {asks}, and no node has them: there are nodes of {has}; change [run] cores or gpus")

    def stop(self) -> None:
        """End what is under way, and leave the cluster."""
        for future, ref in self._refs.items():
            if not future.done():
                self._ray.cancel(ref, force=True)
        if self._own:
            self._ray.shutdown()
