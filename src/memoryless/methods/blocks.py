"""Cutting long vectors into blocks that suit the machine."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from memoryless.methods.method import Part

# A vector of so many numbers fits a core's cache many times; allocated anew for every operation, as torch does, a larger one
# costs more in page faults than in arithmetic. An accelerator wants few kernels instead.
CACHED = 2**17
RESIDENT = 2**24


def pieces(part: Part, theta: Tensor, rows: int = 1) -> Iterator[Part]:
    """The part cut into blocks of coordinates that suit the machine; whole if phi does not act coordinate by coordinate.

    Args:
        part: of a method.
        theta: shape (d,).
        rows: how many numbers there are of each coordinate.
    """
    size = max(1, (CACHED if theta.device.type == "cpu" else RESIDENT) // rows)
    if not part.method.elementwise:
        yield part
    elif isinstance(part.index, Tensor):
        yield from (replace(part, index=index) for index in part.index.split(size))
    else:
        start, stop, _ = part.index.indices(theta.numel())
        yield from (replace(part, index=slice(i, min(i + size, stop))) for i in range(start, stop, size))
