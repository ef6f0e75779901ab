"""Parameters that are sharded over the processes (`torch.distributed.fsdp.fully_shard`): theta is this process's part of them.

Passes go forward and backward through the wrapped module itself, with theta written into its shards: it gathers the parameters,
and leaves the gradient's mean over the processes as a shard. Products are differences of gradients. What is elementwise is done
on the own part; sums over theta cross processes in `flat` alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from memoryless.errors import BadInput, NotFinite
from memoryless.flat import Layout, across, flat, local, total
from memoryless.isolation import Standing, buffers_kept
from memoryless.loss.loss import Loss
from memoryless.loss.one_batch import OneBatch
from memoryless.loss.plainly import plainly
from memoryless.loss.scope import Action


def are_sharded(model: nn.Module) -> bool:
    """Whether a model's parameters are sharded by `fully_shard`, all that are trained.

    Args:
        model: of the run.

    Raises:
        BadInput: they are so in part, or otherwise.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise BadInput("FullyShardedDataParallel hides the parameters in flat ones; expected torch's fully_shard, or DDP")
    there = {name: p for name, p in trained.items() if isinstance(p, DTensor)}
    if not there:
        return False
    if others := sorted(trained.keys() - there.keys()):
        raise BadInput(f"some parameters are sharded and others are not ({others[0]}): call fully_shard on the whole model too")
    if any(p.device_mesh.ndim > 1 or not isinstance(p.placements[0], Shard) for p in there.values()) or not hasattr(
        model, "reshard"
    ):
        raise BadInput("the parameters are sharded over more than one dimension of processes; expected fully_shard over one")
    return True


class ShardedBatch(OneBatch):
    """A batch of which every process has its part, and of theta, too."""

    def backward(
        self, theta: Tensor, data: Any, index: int, create_graph: bool, noise: Standing | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """This process's part of theta and of the gradient, by the module's own backward pass, as `OneBatch`."""
        tensors = self.layout.views(theta.detach())

        def differentiate() -> list[Tensor]:
            self.value(tensors, data, index, noise).backward()
            found = [p.grad for p in self.layout.parameters.values()]
            self.require_dense(found)
            return [torch.zeros_like(t) if g is None else local(g).clone() for t, g in zip(tensors, found, strict=True)]

        with torch.enable_grad():
            grads = self.at(tensors, differentiate)
        self.unreached = set()
        return tensors, [g.detach().to(theta.dtype) for g in grads]

    def scalar(self, value: Any, tensors: Sequence[Tensor], index: int) -> Tensor:
        """What a criterion returned, as `OneBatch`."""
        # A process that refused a value alone would leave the others waiting: the gradient tells all of them.
        found = value if isinstance(value, Tensor) and value.numel() == 1 else super().scalar(value, tensors, index)
        return found.reshape(())

    def require_finite(self, vector: Tensor, what: str) -> None:
        """Raise in every process where one's part is not finite, as `OneBatch`."""
        if torch.isfinite(total(vector)):
            return
        if float(across((~torch.isfinite(vector)).sum().double())):
            raise NotFinite("a parameter is not finite" if what == "parameter" else f"{what} a parameter is not finite")


class ShardedLoss(Loss):
    """A loss whose batch i is that of all processes; gradients and products are this process's part of theirs.

    Every process asks for the same, in the same order: a forward pass is a conversation.

    Args:
        model: sharded.
        criterion: mean loss of this process's part of a batch.
        batches: this process's parts.
        mean: a scalar of each process -> their mean.
    """

    _of_one = ShardedBatch

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[nn.Module, Any], Any],
        batches: Iterable[Any],
        mean: Callable[[Tensor], Tensor],
    ):
        self.model, self.criterion, self.frozen, self.mean = model, criterion, [], mean
        self._shards: Mapping[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}

        def at(tensors: Sequence[Tensor], action: Action) -> Any:
            with buffers_kept(model), self._placed(tensors), plainly():
                return action()

        self._setup(lambda tensors, batch: criterion(model, batch), at, dict(self._shards), batches, "difference", "fixed")

    @contextmanager
    def _placed(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """A context in which the shards hold other values, and no gradients; both are put back."""
        assert self.model is not None
        shards = list(self._shards.values())
        before, grads = [local(p).clone() for p in shards], [p.grad for p in shards]
        try:
            self._reshard()
            self._write(shards, tensors)
            with torch.no_grad():
                for name, buffer in self.model.named_buffers() if self._earlier else ():
                    buffer.copy_(self._earlier[name])
            for p in shards:
                p.grad = None
            yield
        finally:
            self._reshard()  # what was gathered of other values must not be found by the run
            self._write(shards, before)
            for p, grad in zip(shards, grads, strict=True):
                p.grad = grad

    def _reshard(self) -> None:
        assert self.model is not None
        for module in self.model.modules():
            if hasattr(module, "reshard"):
                module.reshard()  # pyright: ignore[reportCallIssue]

    @staticmethod
    def _write(shards: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for p, value in zip(shards, values, strict=True):
                local(p).copy_(value)

    def __call__(self, theta: Tensor, batch: int | None = None) -> Tensor:
        """L(theta), the mean over the processes, as `Loss`."""
        with torch.no_grad():
            return self.mean(super().__call__(theta, batch))


def whole(layout: Layout, gradient: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """What a function makes of the whole gradient, this process's part of that.

    Args:
        layout: of sharded tensors.
        gradient: this process's part, shape (d,).
        transform: of the whole one, the tensors end to end.
    """
    shards: Any = list(layout.parameters.values())
    wholes = [
        DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()).full_tensor()
        for p, part in zip(shards, layout.views(gradient), strict=True)
    ]
    made = transform(flat(wholes))
    if not isinstance(made, Tensor) or made.numel() != sum(p.numel() for p in shards):
        raise BadInput("gradient= must map the whole gradient to one of its shape")
    parts = zip(shards, made.detach().split([p.numel() for p in shards]), strict=True)
    return flat(distribute_tensor(part.view(p.shape), p.device_mesh, p.placements).to_local() for p, part in parts)
