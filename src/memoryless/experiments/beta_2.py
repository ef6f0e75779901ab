"""What Fig. 2a, 2b, 3 and 4 share: AdamW against beta_2, Lion beside it from the same starts, and the gap between the two."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from memoryless.experiments.figure import Cell, Claim, Level, Line, Numbers, Panel, Verdict
from memoryless.isolation import isolated
from memoryless.methods.catalogue import AdamW, Lion
from memoryless.methods.method import Method

LION = (0.9, 0.99), 1 / 3
"""Its betas, and its lr over that of AdamW."""
FROM = 2000
"""The first seed."""


def method_of(optimizer: str, lr: float, betas: tuple[float, float], eps: float, decay: float) -> Method:
    """AdamW or Lion.

    Args:
        optimizer: "adamw" or "lion".
        lr: its own.
        betas: its own.
        eps: of AdamW.
        decay: of its weights.
    """
    return Lion(lr, betas, decay) if optimizer == "lion" else AdamW(lr, betas, eps, decay)


def compared(one: Any, pairs: Sequence[tuple[float, float]]) -> list[Any]:
    """AdamW at each pair of betas, and Lion beside it.

    Args:
        one: the setting that they share; lr and decay are AdamW's.
        pairs: of betas.
    """
    made = [one._replace(optimizer="adamw", betas=pair) for pair in pairs]
    # Lion's update is of the size of lr in every coordinate: the decay relative to it stays.
    return [*made, one._replace(optimizer="lion", betas=LION[0], lr=one.lr * LION[1], decay=one.decay / LION[1])]


def lr_beside(optimizer: str, lr: float) -> float:
    """The lr of the AdamW that a run stands beside, or is.

    Args:
        optimizer: "adamw" or "lion".
        lr: its own.
    """
    return round(lr / LION[1] if optimizer == "lion" else lr, 12)


def started(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network from its seed's start, float32.

    Args:
        make: builds it.
        seed: of the initial parameters.
    """
    with isolated(torch.device("cpu"), seed):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return make()
        finally:
            torch.set_default_dtype(before)


def on_the_gap(gap: Claim, closed: Claim, cells: Sequence[tuple[str, Numbers, Numbers]]) -> list[Verdict]:
    """Whether Lion is better than AdamW at the largest beta_2, and, where it is, whether the smallest closes half of the gap.

    Args:
        gap: the first claim.
        closed: the second one.
        cells: where, and by how much Lion is better than AdamW at the smallest and at the largest beta_2, by seed.
    """
    first = Verdict(gap, [Cell(name, high) for name, _, high in cells])
    open_ = [cell for cell, answer in zip(cells, first.answers, strict=True) if answer == "yes"]
    return [first, Verdict(closed, [Cell(name, low - high / 2) for name, low, high in open_])]


def against(title: str, y: str, adam: Mapping[float, Numbers], lion: Numbers | None) -> Panel:
    """A quantity against beta_2, and Lion's as a level.

    The spread between seeds is no error of a comparison within them: each seed's own mean over beta_2 is taken out before.

    Args:
        title: of the panel.
        y: what it shows, in words.
        adam: the quantity by beta_2 and seed.
        lion: of Lion, by the same seeds; None for none.
    """
    values = np.stack([*adam.values()], 1) if adam else np.zeros((0, 0))
    if not len(values):
        return Panel(f"{title}: no seed came so far", "β₂", y, [], [], [f"{beta_2:g}" for beta_2 in adam])
    own = values.mean(1, keepdims=True)
    levels = []
    if lion is not None and np.isfinite(lion).all():
        level = lion - own[:, 0] + own.mean()
        levels = [Level("Lion", float(level.mean()), float(stats.sem(level)) if len(level) > 1 else 0.0)]
    line = Line("AdamW", range(values.shape[1]), values - own + own.mean(), 0.0)
    return Panel(title, "β₂", y, [line], levels, [f"{beta_2:g}" for beta_2 in adam])
