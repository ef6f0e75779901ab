"""Means of samples, with standard errors, also where samples that follow each other depend on each other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BLOCKS = 10
"""Of samples in a row, whose means count as independent."""


@dataclass(frozen=True)
class Samples:
    """Samples of an array of numbers.

    Attributes:
        values: shape (samples, ...).
        kind: "independent" draws; "series", where neighbours depend on each other; "exact", a single one without error.

    Example:
        >>> Samples(np.array([1.0, 3.0]), "independent").standard_error
        array(1.)
    """

    values: Array
    kind: str = "independent"

    @property
    def mean(self) -> Array:
        """Mean over the samples, shape (...)."""
        return np.asarray(self.values.mean(axis=0))

    @property
    def standard_error(self) -> Array:
        """Standard error of the mean, shape (...); of a series from the means of `BLOCKS` blocks (batch means)."""
        if self.kind == "exact":
            return np.zeros(self.values.shape[1:])
        count = len(self.values) if self.kind == "independent" else min(BLOCKS, len(self.values))
        if count < 2:
            return np.full(self.values.shape[1:], np.inf)
        means = np.stack([block.mean(axis=0) for block in np.array_split(self.values, count)])
        return np.asarray(means.std(axis=0, ddof=1) / count**0.5)

    def at(self, index: tuple[int | slice, ...]) -> "Samples":
        """The samples of some entries of the array alone.

        Args:
            index: of the entries in (...), without the sample's axis.
        """
        return Samples(self.values[(slice(None), *index)], self.kind)

    def less(self, other: "Samples") -> "Samples":
        """The difference, sample by sample.

        Args:
            other: drawn along with these.
        """
        return Samples(self.values - other.values, self.kind)
