"""The coordinates of some tensors in pieces that suit the machine: several small tensors at a time, large ones in parts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from memoryless.flat import block, joined


@dataclass(frozen=True)
class Chunk:
    """Some coordinates of a memory, small enough that intermediate results stay in the cache.

    Attributes:
        part: where they are in it.
        pieces: tensors, and which of their numbers.
    """

    part: slice
    pieces: list[tuple[Tensor, slice]]

    def of(self, get: Callable[[Tensor], Tensor]) -> Tensor:
        """What there is for them, end to end, shape (coordinates,), to be read only.

        Args:
            get: of a tensor.
        """
        return joined(get(p).reshape(-1)[own] for p, own in self.pieces)

    @property
    def gradient(self) -> Tensor:
        """Of the tensors, which all have one."""
        return self.of(_gradient)

    def subtract(self, e: Tensor) -> None:
        """theta <- theta - e.

        Args:
            e: shape (coordinates,).
        """
        for (p, own), x in zip(self.pieces, e.split([own.stop - own.start for _, own in self.pieces]), strict=True):
            if x.numel() == p.numel():
                p.sub_(x.view_as(p))
            else:
                p.view(-1)[own].sub_(x)


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def chunks(tensors: Sequence[Tensor], *, cut: bool = True) -> Iterator[Chunk]:
    """All coordinates, end to end.

    Args:
        tensors: on one device.
        cut: whether tensors may be cut.
    """
    size, pieces, start, end = block(tensors[0].device), list[tuple[Tensor, slice]](), 0, 0
    for p in tensors:
        parts = _parts(p.numel(), size) if cut and p.is_contiguous() else [slice(0, p.numel())]
        for own in parts:
            if pieces and end - start + own.stop - own.start > size:
                yield Chunk(slice(start, end), pieces)
                pieces, start = [], end
            pieces.append((p, own))
            end += own.stop - own.start
    if pieces:
        yield Chunk(slice(start, end), pieces)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, max(count, 1), size)]
