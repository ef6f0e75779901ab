"""A fixed number of coordinates that stand for all of theta: as many from each tensor as its share, at least one.

A sum over coordinates is estimated by sum_i w_i y_i, w_i = (coordinates of the tensor) / (sampled ones). Where another quantity
x is known on the sample and in total, and y follows it, the regression estimator uses that:

    sum_i w_i y_i + b (X - sum_i w_i x_i),     b = the weighted least squares slope of y on x
"""

import itertools
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from memoryless.flat import dot, total


class Sample:
    """Coordinates of theta.

    Args:
        sizes: coordinates of each tensor.
        count: how many to sample; all where there are no more.
        seed: of the draw.
        device: where theta lives.
        part: whether there are other parts of theta, not all of which may be sampled whole.

    Attributes:
        index: sampled coordinates, ascending; None for all.
        weights: w of each, shape (coordinates,), float64.
    """

    def __init__(self, sizes: Sequence[int], count: int, seed: int, device: torch.device, part: bool = False):
        d = sum(sizes)
        self.index: Tensor | None = None
        self.strata = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.weights = torch.ones(d, dtype=torch.float64)
        if d > count or part:
            generator = torch.Generator().manual_seed(seed)
            taken = [min(size, max(1, round(count * size / max(d, 1)))) for size in sizes]
            places, start = [], 0
            for size, few in zip(sizes, taken, strict=True):
                places.append(start + torch.randperm(size, generator=generator)[:few].sort().values)
                start += size
            self.index = torch.cat(places)
            self.strata = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(taken))
            share = torch.tensor([size / max(few, 1) for size, few in zip(sizes, taken, strict=True)], dtype=torch.float64)
            self.weights = share[self.strata]
            self.index = self.index.to(device)
        self.strata, self.weights = self.strata.to(device), self.weights.to(device)
        self.tensors = len(sizes)

    def __len__(self) -> int:
        """Coordinates sampled."""
        return len(self.weights)

    @cached_property
    def local(self) -> list[Tensor]:
        """The sampled coordinates of each tensor, counted from its own first."""
        assert self.index is not None
        firsts = torch.bincount(self.strata, minlength=self.tensors).cumsum(0).tolist()
        ends = [0, *firsts]
        shares = [
            float(self.weights[start]) * (stop - start) if stop > start else 0.0 for start, stop in itertools.pairwise(ends)
        ]
        begin, found = 0, []
        for start, stop, size in zip(ends, ends[1:], shares, strict=False):
            found.append(self.index[start:stop] - begin)
            begin += round(size)
        return found

    def of(self, vector: Tensor) -> Tensor:
        """The sampled part of a vector.

        Args:
            vector: shape (d,).
        """
        return vector if self.index is None else vector[self.index]

    def of_tensors(self, tensors: Sequence[Tensor]) -> Tensor:
        """The same of a vector that is given as its tensors: no copy of all of it is made.

        Args:
            tensors: of theta's sizes, in its order.
        """
        if self.index is None:
            return torch.cat([t.reshape(-1) for t in tensors])
        parts = zip(tensors, self.local, strict=True)
        return torch.cat([torch.index_select(t.reshape(-1), 0, part) for t, part in parts])

    def positions(self, index: slice | Tensor, d: int) -> slice | Tensor:
        """Which of the sampled coordinates are among some of theta's.

        Args:
            index: coordinates of theta.
            d: their number in all.
        """
        if self.index is None or index == slice(None):
            return index if self.index is None else slice(None)
        among = torch.zeros(d, dtype=torch.bool, device=self.index.device)
        among[index] = True
        return torch.nonzero(among[self.index]).reshape(-1)

    def total(self, y: Tensor) -> float:
        """sum_i w_i y_i.

        Args:
            y: on the sample, shape (coordinates,).
        """
        return float(dot(self.weights, y.double()))

    def variance(self, y: Tensor) -> float:
        """Of `total`, from the spread of y within each tensor; 0 where all coordinates are taken.

        Args:
            y: on the sample, shape (coordinates,).
        """
        if self.index is None:
            return 0.0
        y, zero = y.double(), torch.zeros(self.tensors, dtype=torch.float64, device=y.device)
        n = torch.zeros_like(zero).index_add_(0, self.strata, torch.ones_like(y)).clamp_min(1)
        mean = zero.index_add(0, self.strata, y) / n
        spread = torch.zeros_like(zero).index_add_(0, self.strata, (y - mean[self.strata]).square()) / (n - 1).clamp_min(1)
        size = torch.zeros_like(zero).index_add_(0, self.strata, self.weights)
        return float(total(size * (size - n).clamp_min(0) / n * spread))

    def slope(self, y: Tensor, x: Tensor) -> float:
        """b of y on x, weighted, without a constant: both are sums whose terms may vanish together.

        Args:
            y: on the sample.
            x: on the sample.
        """
        x, y = x.double(), y.double()
        square = float(dot(self.weights * x, x))
        return float(dot(self.weights * x, y)) / square if square > 0 else 0.0
