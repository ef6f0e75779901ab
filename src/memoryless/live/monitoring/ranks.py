"""The processes of a run: effects are those of the global batch.

With one copy of the parameters each (DistributedDataParallel) every process takes its own part of a batch again; the gradients
are averaged, as those of the run were, and all that follows from them is the same everywhere. (For sharded ones see `shards`:
each process has its part of everything.) Double backward is not supported through the wrapper (PyTorch issues 47562, 63812), so
that gradients are taken of the module inside it.

What differs between processes could keep one of them waiting for ever: whether a stop is paid for, a batch that cannot be had
again. So each stop, and each step that is checked, begins with an agreement, and with every gradient goes whether a process
could not take it. They talk in a group of their own: what the training sends is never taken for what the monitor does.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from memoryless.errors import BadInput
from memoryless.flat import sharded
from memoryless.isolation import Standing
from memoryless.live.monitoring.shards import ShardedLoss
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable
from memoryless.loss.one_batch import OneBatch

T = TypeVar("T")

PATIENCE = timedelta(minutes=5)
"""For how long a process waits for the others."""
SAME = 1e-6
"""Relative difference up to which copies are the same."""


def inside(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel; another one as it is.

    Args:
        model: of the run.

    Raises:
        BadInput: it exchanges numbers in its forward pass.
    """
    found = model.module if isinstance(model, DistributedDataParallel) else model
    if _world() > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in found.modules()):
        raise BadInput("SyncBatchNorm exchanges numbers between processes in each forward pass; a monitor expects BatchNorm")
    return found


def _world() -> int:
    there = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if there else 1


class Here(NamedTuple):
    """What a process says when a stop comes.

    Attributes:
        step: that it has taken.
        affords: whether the stop is paid for; that of the first process counts.
        sizes: norms of gradient and theta, the same everywhere.
        error: why it cannot measure; None where it can.
    """

    step: int
    affords: bool
    sizes: tuple[float, ...]
    error: str | None


class Ranks:
    """The processes; of a run of one, nothing is sent.

    Attributes:
        count: how many.
        rank: which one this is.
        sharded: whether each has its part of the parameters.

    Raises:
        BadInput: not all of them make a monitor.
    """

    def __init__(self) -> None:
        self.count, self.rank, self._group, self._lost = _world(), 0, None, False
        self.sharded = False
        if self.count > 1:
            self.rank = dist.get_rank()
            try:
                self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
            except RuntimeError as error:
                raise BadInput(f"not all {self.count} processes made a monitor, and each must: {_line(error)}") from None

    @property
    def lost(self) -> bool:
        """Whether the processes are no longer at the same step: none measures any more."""
        return self._lost

    def told(self, value: T) -> list[T]:
        """What each process says, by rank.

        Args:
            value: of this one.

        Raises:
            BadInput: some process does not come.
        """
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.count
        self._sent(lambda: dist.all_gather_object(values, value, group=self._group))
        return values

    def _sent(self, send: Callable[[], object]) -> None:
        try:
            send()
        except RuntimeError as error:
            self._lost = True
            raise BadInput(
                f"process {self.rank} waited for the others in vain: one has ended, or not every one calls monitor.step after "
                f"each of the same steps; no more is measured ({_line(error)})"
            ) from None

    def together(self, action: Callable[[], T]) -> T:
        """Something that every process does by itself; if one cannot, none goes on.

        Args:
            action: local.

        Raises:
            BadInput: one of them could not, in its own words.
        """
        if self._group is None:
            return action()
        result, error = _tried(action)
        self._require(self.told(error))
        return result  # type: ignore[return-value]

    def each(self, action: Callable[[], T]) -> list[T]:
        """What every process finds by itself, by rank; if one cannot, none goes on.

        Args:
            action: local; what it finds is small.

        Raises:
            BadInput: one of them could not, in its own words.
        """
        if self._group is None:
            return [action()]
        every = self.told(_tried(action))
        self._require([error for _, error in every])
        return [found for found, _ in every]  # type: ignore[misc]

    def require_alike(self, given: Mapping[str, Any]) -> None:
        """What every process must be given alike: one that measures something else would wait for answers to other questions.

        Args:
            given: argument -> its value, as this process has it.

        Raises:
            BadInput: one that differs.
        """
        every = self.told({name: repr(value) for name, value in given.items()})
        for name in given:
            if len(set(values := [each[name] for each in every])) > 1:
                raise BadInput(f"{name}= must be the same in each process, got {', '.join(value[:80] for value in values)}")

    def _require(self, errors: list[str | None]) -> None:
        said = [(rank, error) for rank, error in enumerate(errors) if error is not None]
        if said and len({error for _, error in said}) == 1 and len(said) == self.count:
            raise BadInput(str(said[0][1]))
        if said:
            raise BadInput("; ".join(f"process {rank}: {error}" for rank, error in said))

    def mean(self, action: Callable[[], Tensor], like: Tensor) -> Tensor:
        """A gradient's mean over the processes, as DistributedDataParallel's.

        Args:
            action: takes this process's.
            like: of the gradient's shape, type and place.

        Raises:
            BadInput: some process could not take it, in its own words.
        """
        if self._group is None:
            return action()
        found, error = _tried(action)
        # The last number counts those that could not: whether to talk about it is known without a word more.
        sent = torch.cat(
            [torch.zeros_like(like).reshape(-1) if found is None else found.detach().reshape(-1), like.new_zeros(1)]
        )
        sent[-1] = error is not None
        self._sent(lambda: dist.all_reduce(sent, group=self._group))
        if float(sent[-1]):
            self._require(self.told(error))
        return sent[:-1].div_(self.count).reshape(like.shape)

    def summed(self, x: Tensor) -> Tensor:
        """The sum over the processes.

        Args:
            x: this one's, small.
        """
        if self._group is None:
            return x
        sent = x.detach().to(torch.float64, copy=True).cpu()
        self._sent(lambda: dist.all_reduce(sent, group=self._group))
        return sent.to(x)

    def loss(self, model: nn.Module, criterion: Callable[[nn.Module, Any], Any], batches: Any, **options: Any) -> Loss:
        """As `Loss(...)`; of sharded parameters that of all processes, products by differences.

        Args:
            model: of the run.
            criterion: of it.
            batches: this process's.
            **options: of `Loss`.
        """
        if self.sharded:
            return ShardedLoss(model, criterion, batches, lambda x: self.summed(x) / self.count)
        return Loss(model, criterion, batches, **options)

    def agree(self, here: Here) -> bool:
        """Whether to measure a stop that comes: the same answer everywhere.

        Args:
            here: what this process says.

        Raises:
            BadInput: some process cannot, or they are no longer alike: then none measures any more.
        """
        every = self.told(here)
        if len({each.step for each in every}) > 1:
            self._lost = True
            steps = ", ".join(f"process {rank} {each.step:,}" for rank, each in enumerate(every))
            raise BadInput(f"the processes have taken different numbers of steps ({steps}): no more is measured")
        self._require([each.error for each in every])
        for name, sizes in zip(("gradient", "theta"), zip(*(each.sizes for each in every), strict=True), strict=False):
            if max(sizes) - min(sizes) > SAME * max(sizes):
                raise BadInput(f"the {name} is not the same in every process: expected the mean of DistributedDataParallel")
        return every[0].affords

    def measure(self, measure: Differentiable) -> Differentiable:
        """A function of theta on this process's data as its mean over the processes, value and gradient.

        Args:
            measure: theta -> scalar.
        """
        if self._group is None:
            return measure

        def mean(theta: Tensor) -> Tensor:
            here = self.together(lambda: measure(_Mean.apply(theta, self)))
            detached = here.detach().reshape(())
            return here.reshape(()) + (self.mean(lambda: detached, detached) - detached)

        mean.__name__ = getattr(measure, "__name__", type(measure).__name__)
        return mean


class _Mean(torch.autograd.Function):
    """theta, whose gradient is the mean over the processes."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return theta.view_as(theta)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return ctx.ranks.mean(lambda: grad_outputs[0], grad_outputs[0]), None


class SharedBatch(OneBatch):
    """A batch of which every process has its part: its gradient is the mean of theirs."""

    ranks: Ranks

    def gradient(self, theta: Tensor, data: Any, index: int, noise: Standing | None = None) -> Tensor:
        """The mean over the processes, as `OneBatch`."""
        return self.ranks.mean(lambda: OneBatch.gradient(self, theta, data, index, noise), theta)


class SharedLoss(Loss):
    """A loss whose batch i is that of all processes: gradients and products are the mean of theirs."""

    _of_one = SharedBatch

    @classmethod
    def of_all(cls, ranks: Ranks, *args: Any, **options: Any) -> Loss:
        """As `Loss(...)`, in every process.

        Args:
            ranks: the processes.
            *args: of `Loss`.
            **options: of `Loss`.
        """
        if ranks.count == 1:
            return ranks.loss(*args, **options)

        def made() -> Loss:
            loss = ranks.loss(*args) if ranks.sharded else cls(*args, **options)
            loss.batches.require_replayable()
            return loss

        with sharded(None):  # a sum over the processes within it would be heard by those alone that came so far
            loss = ranks.together(made)
        if len(set(counts := ranks.told(len(loss)))) > 1:
            raise BadInput(f"data= must have as many batches in each process, got {counts}")
        if isinstance(loss._one, SharedBatch):
            loss._one.ranks = ranks
        return loss


def _tried(action: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return action(), None
    except Exception as error:
        return None, str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]
