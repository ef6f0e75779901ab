"""theta as one flat vector of shape (d,): where each parameter tensor lies in it, and sums over it.

Every sum over theta goes through `total`, `dot` and `norm`: where theta is sharded, these alone cross ranks.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from memoryless.errors import BadInput

CACHED = 2**17
"""A vector of so many numbers fits a core's cache many times; allocated anew for every operation, as torch does, a larger one
costs more in page faults than in arithmetic."""
RESIDENT = 2**24
"""An accelerator wants few kernels instead."""


def block(device: torch.device) -> int:
    """How many numbers to work on at a time."""
    return CACHED if device.type == "cpu" else RESIDENT


@dataclass(frozen=True)
class Layout:
    """Where named tensors lie in theta, one after the other.

    Attributes:
        parameters: the live tensors by name, in the order of theta; of sharded ones (DTensor) theta is this process's part.
        unreached: finds the names of those that get no gradient.
    """

    parameters: Mapping[str, Tensor]
    unreached: Callable[[], Iterable[str]] = field(default=tuple, compare=False)

    @cached_property
    def unused(self) -> frozenset[str]:
        """Names of the tensors that get no gradient: their .grad is None, and a torch optimizer skips them."""
        return frozenset(self.unreached())

    @cached_property
    def used(self) -> dict[int, slice]:
        """Where each tensor that gets a gradient lies in theta, by the tensor's id."""
        return {id(p): self.slices[name] for name, p in self.parameters.items() if name not in self.unused}

    @property
    def names(self) -> list[str]:
        """Name of each tensor."""
        return list(self.parameters)

    @property
    def tensors(self) -> list[Tensor]:
        """The live tensors, of sharded ones this process's part."""
        return [local(p) for p in self.parameters.values()]

    @cached_property
    def shapes(self) -> list[torch.Size]:
        """Shape of each tensor."""
        return [p.shape for p in self.tensors]

    @cached_property
    def sizes(self) -> list[int]:
        """Number of coordinates of each tensor."""
        return [p.numel() for p in self.tensors]

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each named tensor lies in theta."""
        return dict(zip(self.names, slices_of(self.sizes), strict=True))

    @property
    def device(self) -> torch.device:
        """Where theta lives."""
        return self.tensors[0].device

    @property
    def d(self) -> int:
        """Number of coordinates."""
        return sum(self.sizes)

    def theta(self) -> Tensor:
        """The present values as a new vector, shape (d,)."""
        return flat(p.detach() for p in self.tensors)

    def views(self, theta: Tensor) -> list[Tensor]:
        """The tensors as views of a vector.

        Args:
            theta: shape (d,).

        Raises:
            BadInput: another shape.
        """
        if theta.shape != (self.d,):
            raise BadInput(f"theta must have shape ({self.d},), got {tuple(theta.shape)}")
        return [part.view(shape) for part, shape in zip(theta.split(self.sizes), self.shapes, strict=True)]

    def set_gradients(self, gradient: Tensor) -> None:
        """Give every live tensor its part of a gradient, and None to the unused.

        Args:
            gradient: shape (d,).
        """
        for (name, p), part in zip(self.parameters.items(), self.views(gradient), strict=True):
            p.grad = None if name in self.unused else part


def slices_of(sizes: Sequence[int]) -> list[slice]:
    """Where tensors of these sizes lie, one after the other."""
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors end to end, as one new vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """The same to be read only: of one tensor it is a view where that can be."""
    pieces = [t.reshape(-1) for t in tensors]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def local(x: Tensor) -> Tensor:
    """This process's part of a sharded tensor (DTensor), in the same memory; any other tensor as it is."""
    whole: Any = x
    if not hasattr(whole, "to_local"):
        return x
    return (whole.detach() if torch.is_grad_enabled() else whole).to_local()


_SUMMED: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("summed", default=None)


@contextmanager
def sharded(summed: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """A context in which theta is this process's part of it, and sums over it are those of all processes.

    Args:
        summed: a small tensor of each process -> their sum, the same everywhere; None where theta is whole.
    """
    before = _SUMMED.set(summed)
    try:
        yield
    finally:
        _SUMMED.reset(before)


def across(x: Tensor) -> Tensor:
    """The sum over the processes of what each has found on its part of theta; where theta is whole, x."""
    summed = _SUMMED.get()
    return x if summed is None else summed(x)


def total(x: Tensor) -> Tensor:
    """sum_i x_i, a scalar."""
    return across(x.sum())


def dot(x: Tensor, y: Tensor) -> Tensor:
    """<x, y>, a scalar."""
    return across(torch.dot(x, y))


def norm(x: Tensor) -> Tensor:
    """The 2-norm, a scalar."""
    return x.norm() if _SUMMED.get() is None else across(x.norm().double().square()).sqrt().to(x.dtype)
