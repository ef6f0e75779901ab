"""Whose memories a monitor measures: the optimizer's own, other methods', a grid's of its betas."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.optim import Optimizer

from memoryless.audits.grid import Grid
from memoryless.audits.shadow import Shadow
from memoryless.errors import BadInput, BadType, NotRecognised
from memoryless.flat import Layout
from memoryless.live.monitoring.sample import Sample
from memoryless.methods.live_optimizer import by_group
from memoryless.methods.method import AnyOptimizer, Groups, Method, Momentum, Part

Betas = tuple[Sequence[float], Sequence[float]]


class Subjects:
    """The methods.

    Args:
        optimizer: of the run.
        layout: of theta.
        shadows: other methods.
        betas: axes of the map; None for none.

    Attributes:
        groups: the optimizer's param groups as methods (`live_optimizer.by_group`); none of one that is not recognised.
        unknown: why it is not recognised; None where it is.
        others: other methods, as given.
        betas: axes of the map; None where the optimizer has no pair of betas.
        own: the optimizer's momentum variables that remember.

    Raises:
        BadType: betas are no two axes.
        BadInput: a shadow does not act on each coordinate by itself.
    """

    def __init__(self, optimizer: Optimizer, layout: Layout, shadows: Sequence[AnyOptimizer], betas: Betas | None):
        if betas is not None and not _two_axes(betas):
            raise BadType(
                f"betas must be the two axes of the map, such as ([0.8, 0.9], [0.99, 0.999]), or None for none, got {betas!r}"
            )
        self.groups, self.unknown = [], None
        self.groups: list[tuple[int, tuple[Method, Any]]]
        try:
            self.groups = by_group(optimizer, layout)
        except NotRecognised as error:
            self.unknown = str(error)
        paired = bool(self.groups) and all("betas" in method.hyper for _, (method, _) in self.groups)
        self.betas = betas if paired else None
        self.own = [v for _, (method, _) in self.groups for v in method.variables if v.has_memory]
        self.others = list(shadows)
        for method in self.others:
            if any(not part.method.elementwise for part in method.parts):
                raise BadInput(f"a shadow on sampled coordinates needs a method that acts on each by itself, got {method}")

    @property
    def cells(self) -> int:
        """Of the map."""
        return 0 if self.betas is None else len(self.betas[0]) * len(self.betas[1])

    def shadow(self, layout: Layout, sample: Sample) -> Shadow | None:
        """The memories that do not run, on a sample; None if there are none.

        Args:
            layout: of theta.
            sample: coordinates.
        """
        shadowed = list(self.others)
        if self.betas is not None:
            parts = tuple(Part(method, index, 1.0) for _, (method, index) in self.groups)
            shadowed += Grid(Groups(parts, parts[0].method.lr), *self.betas).spanning()
        return Shadow(shadowed, sample.of(layout.theta())) if shadowed else None

    def variables(self, shadow: Shadow | None) -> list[Momentum]:
        """All that remember."""
        return [*self.own, *(() if shadow is None else shadow.variables)]


def _two_axes(betas: Any) -> bool:
    """Whether it is two sequences of numbers."""
    pair = isinstance(betas, (tuple, list, np.ndarray)) and len(betas) == 2
    return pair and all(not isinstance(b, str) and np.ndim(b) == 1 and np.asarray(b).dtype.kind in "fiu" for b in betas)
