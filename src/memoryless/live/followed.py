"""A schedule that is stepped along a run, and the hyperparameters that it gave each step, which F[n] asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from memoryless.errors import BadInput
from memoryless.methods import past
from memoryless.methods.past import Hyper, Schedule


class Followed:
    """A schedule along a run.

    Args:
        optimizer: live, whose groups it moves.
        schedule: a torch scheduler, stepped once after each step; or the hyperparameters of each step, put there.
        before: steps that the optimizer has behind it; None if that is not known.
        count: steps of the run.

    Attributes:
        moved: names of the hyperparameters that it has moved.

    Raises:
        BadType: the schedule is none of its kinds.
        BadInput: the past is not known, or does not fit.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, before: int | None, count: int):
        if before is None:
            raise BadInput(
                f"{type(optimizer).__name__} has steps behind it that it does not count: with scheduler= start it anew"
            )
        if isinstance(schedule, ReduceLROnPlateau):
            raise BadInput(
                "ReduceLROnPlateau follows what it is told along a run; give scheduler= a function n -> {'lr': ...}, or a list"
            )
        if isinstance(schedule, LRScheduler) and schedule.optimizer is not optimizer:
            raise BadInput("the scheduler moves another optimizer; make it of the one that is audited")
        self.optimizer, self.moved = optimizer, set[str]()
        self._scheduler = schedule if isinstance(schedule, LRScheduler) else None
        self._planned: list[list[Hyper]] = []
        if self._scheduler is None:
            self._planned = past.steps_of(schedule, optimizer, before + count)
            self.moved = {key for step in self._planned for group in step for key in group}
        elif before:
            self._planned = past.steps_of(self._scheduler, optimizer, before)[:-1]
            self.moved = {key for step in self._planned for group in step for key in group}
        self._n = before
        self._taken: list[list[dict[str, Any]]] = []  # by the scheduler in this run
        self._now()

    def _now(self) -> None:
        """The present step's hyperparameters: put there as planned, or taken as the scheduler left them."""
        if self._scheduler is not None:
            self._taken.append(_plain(self.optimizer))
            return
        for group, hyper in zip(self.optimizer.param_groups, self._planned[self._n], strict=True):
            if unknown := hyper.keys() - group.keys():
                raise BadInput(f"the schedule moves '{unknown.pop()}', which {type(self.optimizer).__name__} does not have")
            group.update(hyper)

    def step(self) -> None:
        """After a step of the optimizer."""
        if self._scheduler is not None:
            before = _plain(self.optimizer)
            self._scheduler.step()
            after = _plain(self.optimizer)
            self.moved |= {key for x, y in zip(before, after, strict=True) for key in y if key not in x or x[key] != y[key]}
        self._n += 1
        self._now()

    def steps(self) -> list[list[Hyper]]:
        """The hyperparameters of each group at each step 0..n, those that have moved."""
        if self._scheduler is None:
            return self._planned[: self._n + 1]
        keys = self.moved & set(self.optimizer.param_groups[0]) - {"initial_lr"}
        taken: list[list[Hyper]] = [
            [{key: group[key] for key in keys if key in group} for group in step] for step in self._taken
        ]
        return [*self._planned, *taken]

    @contextmanager
    def moving(self) -> Iterator[None]:
        """A context in which lr is not 0 as it may be where a warm-up starts, but the schedule's own or its first other."""
        groups = self.optimizer.param_groups
        before = [group.get("lr") for group in groups]
        for i, group in enumerate(groups if self.still else ()):
            planned = [step[i]["lr"] for step in self._planned if float(step[i].get("lr", 0)) > 0]
            group["lr"] = planned[0] if planned else group.get("initial_lr", 0.0)
        try:
            yield
        finally:
            for group, lr in zip(groups, before, strict=True):
                if lr is not None:
                    group["lr"] = lr

    @property
    def still(self) -> bool:
        """Whether lr is 0 in every group: nothing moves in the next step."""
        return all(float(group.get("lr", 1)) == 0 for group in self.optimizer.param_groups)


def _plain(optimizer: Optimizer) -> list[dict[str, Any]]:
    groups = optimizer.param_groups
    return [{key: _number(x) for key, x in group.items() if _number(x) is not None} for group in groups]


def _number(x: Any) -> Any:
    """A number, or a tuple of them; of a tensor, which is moved in place, what it holds."""
    if isinstance(x, Tensor):
        return x.item() if x.numel() == 1 else None
    return x if isinstance(x, (float, int, tuple)) else None
