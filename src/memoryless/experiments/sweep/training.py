"""One run of a sweep, which may be killed anywhere and goes on from its last checkpoint as if nothing had been.

On a CPU it ends with the same bits: the batch of a step is known from the seed and the step alone (`problem.Order`), all else
that a step depends on is in the checkpoint: parameters, buffers, the optimizer's state, the dial's, the generators' standing.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.experiments.store import replaced
from memoryless.experiments.sweep.grid import FULL, Run
from memoryless.experiments.sweep.problem import Order, Work, measure, work
from memoryless.isolation import Standing, isolated, restore, standing
from memoryless.live.dial import Dial, dial
from memoryless.methods.black_box.snapshot import insists_on_closure
from memoryless.methods.named import resolve

TOLD = 1.0
"""Seconds between two words of how far a run is."""
COST = 100
"""Times that a checkpoint's own time lies between two, at least."""

State = dict[str, Any]


class Unwritable(BadInput):
    """What a run keeps cannot be written: that is not the run's fault."""


@dataclass
class Kept:
    """What a run keeps on the disk, until its result is in the store.

    Attributes:
        path: of the checkpoint; None keeps nothing.
        every: seconds between two.
    """

    path: Path | None = None
    every: float = 30.0
    _told: float = field(default=0.0, init=False)
    _step: int = field(default=0, init=False)
    _next: float = field(default=math.inf, init=False)

    def load(self) -> State | None:
        """The last checkpoint; None where there is none, or it holds what torch does not load from strangers."""
        self._next = time.monotonic() + self.every
        if self.path is None or not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception:  # an optimizer may keep anything: the run begins anew
            return None
        self._step = state["step"]
        return state

    def due(self, step: int) -> bool:
        """Whether it is time for one; tells how far the run is.

        Args:
            step: that comes next.
        """
        now = time.monotonic()
        if self.path is not None and now - self._told > TOLD:
            self._told = now
            with suppress(OSError):
                self.path.with_suffix(".at").write_text(f"{step} {self._step}")
        return self.path is not None and now >= self._next

    def save(self, state: State) -> None:
        """Write a checkpoint in place of the last one.

        Args:
            state: of the run.

        Raises:
            Unwritable: the last one is still there.
        """
        assert self.path is not None
        began = time.monotonic()
        try:
            with replaced(self.path) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:  # torch's own writer has no other
            why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise Unwritable(
                f"checkpoint {self.path} cannot be written: {why}; the last one is unchanged: make room, and the same command "
                "goes on from there"
            ) from error
        now, self._step = time.monotonic(), state["step"]
        self._next = now + max(self.every, COST * (now - began))


class Training(NamedTuple):
    """A run as it stands: what steps change."""

    made: Work
    optimizer: Optimizer
    device: torch.device

    def state(self) -> State:
        """Everything that the further run depends on, of types that torch loads from strangers."""
        there, optimizer = standing(self.device), self.optimizer.state_dict()
        name, numbers, *rest = there.numpy
        # A method is made anew with the optimizer.
        groups = [{key: value for key, value in group.items() if _plain(value)} for group in optimizer["param_groups"]]
        return {
            "model": self.made.model.state_dict(),
            "optimizer": optimizer | {"param_groups": groups},
            "modes": [module.training for module in self.made.model.modules()],
            "generators": [there.python, [name, numbers.tolist(), *rest], there.torch, there.cuda],
        }

    def load(self, state: State) -> None:
        """Stand where a state was taken.

        Args:
            state: from `state`.
        """
        self.made.model.load_state_dict(state["model"])
        for module, training in zip(self.made.model.modules(), state["modes"], strict=True):
            module.training = training
        fresh, kept = self.optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"]
        groups = [{**new, **old} for new, old in zip(fresh, kept, strict=True)]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        # torch turns what an optimizer keeps to the dtype of its parameter: NAdam's product of momenta is of another.
        for group, saved in zip(self.optimizer.param_groups, kept, strict=True):
            for p, i in zip(group["params"], saved["params"], strict=True):
                for name, value in state["optimizer"]["state"].get(i, {}).items():
                    if isinstance(value, torch.Tensor):
                        self.optimizer.state[p][name] = value.to(self.optimizer.state[p][name].device, copy=True)
        python, numbers, *rest = state["generators"]
        numbers = (numbers[0], np.array(numbers[1], dtype=np.uint32), *numbers[2:])
        restore(Standing(python, numbers, *rest), self.device)

    def step(self, batch: Any, dialled: bool) -> float:
        """One step of the optimizer; the loss before it.

        Args:
            batch: of this step.
            dialled: the optimizer is a dial along mini-batches.
        """

        def closure() -> Any:
            self.optimizer.zero_grad()
            loss = self.made.mean(batch)
            loss.backward()
            return loss

        if insists_on_closure(self.optimizer):
            loss: Any = self.optimizer.step(closure)
            return float(loss.detach())
        value = float(closure().detach())
        self.optimizer.step(**({"batch": batch} if dialled else {}))
        return value

    def fingerprint(self) -> str:
        """Of the parameters' bits."""
        found = hashlib.sha256()
        for p in self.made.parameters:
            found.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if p.numel() else b"")
        return found.hexdigest()[:16]


def _plain(value: Any) -> bool:
    """Whether torch loads it from strangers."""
    if isinstance(value, (tuple, list)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.Tensor))


def begin(run: Run, place: Callable[[str], str] = lambda target: target) -> Training:
    """A run before its first step.

    Args:
        run: which.
        place: where its scripts are.

    Raises:
        BadInput: problem, optimizer, options or dial are not as expected.
    """
    made = work(run, place)
    options = dict(run.options)
    if run.optimizer is not None:
        optimizer = resolve(place(run.optimizer)).given(**options).live(made.parameters)
    elif made.optimizer is None:
        raise BadInput("optimizer is missing")
    else:
        optimizer = made.optimizer
        for group in optimizer.param_groups:
            if unknown := next((name for name in options if name not in group), None):
                raise BadInput(f"the optimizer of {run.problem} has no option '{unknown}'")
            group.update(options)
    if run.dial:
        mini = {} if run.batch_size == FULL else {"model": made.model, "criterion": made.criterion}
        optimizer = dial(optimizer, run.dial, **mini)
    return Training(made, optimizer, torch.device(run.device))


@contextmanager
def seeded(run: Run) -> Iterator[None]:
    """Its own generators, and the default dtype of a fresh process."""
    dtype = torch.get_default_dtype()
    with isolated(torch.device(run.device), run.seed):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def train(
    run: Run,
    kept: Kept | None = None,
    place: Callable[[str], str] = lambda target: target,
    on_step: Callable[[int], object] = lambda step: None,
) -> State:
    """Run it to its end, from its last checkpoint if there is one.

    Args:
        run: which.
        kept: its checkpoint.
        place: where its scripts are.
        on_step: told each step before it is taken.

    Returns:
        records: what was measured at `run.recorded`; d: parameters; diverged: the step whose loss was not finite, where the run
        ends, or None; fingerprint: of the final parameters' bits; seconds, those of the processor, and how often it went on
        from a checkpoint.

    Raises:
        BadInput: problem, optimizer or dial are not as expected, or the dial gave up.
        Unwritable: a checkpoint cannot be written.
    """
    kept = kept or Kept()
    with seeded(run):
        training = begin(run, place)
        training.made.model.train()
        torch.manual_seed(run.seed)
        order, mini = Order(training.made, run), bool(run.dial) and run.batch_size != FULL
        now: State = {"step": 0, "records": [], "diverged": None, "seconds": 0.0, "processor": 0.0, "resumed": 0}
        if (state := kept.load()) is not None:
            training.load(state)
            now = {key: state[key] for key in now} | {"resumed": state["resumed"] + 1}
        clocks = {"seconds": time.monotonic, "processor": time.process_time}
        began = {name: clock() - now[name] for name, clock in clocks.items()}
        while (n := now["step"]) <= run.steps:
            on_step(n)
            now |= {name: clock() - began[name] for name, clock in clocks.items()}
            if kept.due(n):
                kept.save(training.state() | now)
            if n % run.every == 0 or n == run.steps:
                now["records"].append({"step": n, **measure(training.made, run.what)})
            if n < run.steps and not math.isfinite(training.step(order[n], mini)):
                now["diverged"], n = n, run.steps
            _require_dialled(training.optimizer, n)
            now["step"] = n + 1
        now |= {name: clock() - began[name] for name, clock in clocks.items()}
        if kept.path is not None and now["seconds"] > TOLD:  # the result may be lost on its way to the store
            kept.save(training.state() | now)
        del now["step"]
        return now | {"d": sum(p.numel() for p in training.made.parameters), "fingerprint": training.fingerprint()}


def _require_dialled(optimizer: Optimizer, step: int) -> None:
    if isinstance(optimizer, Dial) and optimizer.off is not None:
        raise BadInput(f"memory could not be dialled at step {step}: {optimizer.off}")
