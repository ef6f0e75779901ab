"""The live pair's sums over old gradients, of all coordinates, as a run goes by: no gradient is kept.

For a stop at step n each drawn step s = n - k adds  a g_l(g_then),  a = weight kernel[k], where

    kernel[k] = weight(n) / unit[n] * unit[s] prod_{j = s+1..n} decay[j]

is not known before the stop if betas move: a sum decays as the buffer does, by the decays since it was last added to.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from memoryless.live.monitoring.draws import Draws
from memoryless.live.monitoring.frozen import nonnegative
from memoryless.live.monitoring.past_weights import Live, Past
from memoryless.methods.method import Momentum

Key = tuple[int, int]
"""(param group, variable)."""


class Image(NamedTuple):
    """g_l of a step on the coordinates of a group."""

    variable: Momentum
    value: Tensor


class _Sum(NamedTuple):
    sure: Tensor
    drawn: Tensor


class Whole:
    """For one stop.

    Args:
        draws: its ages.
        stop: its step, as the past counts.
        past: of the optimizer.
    """

    def __init__(self, draws: Draws, stop: int, past: Past):
        self._past = past
        self._weights: dict[int, list[float]] = {}
        for age, weight, exact in zip(draws.ages.tolist(), draws.weights.tolist(), draws.exact.tolist(), strict=True):
            if age:
                self._weights.setdefault(stop - age, [0.0, 0.0])[0 if exact else 1] += weight
        self._then: dict[Key, _Sum] = {}
        self._now: dict[Key, _Sum] = {}
        self._since = -1

    def add(self, step: int, images: Mapping[Key, Image]) -> None:
        """What a step saw.

        Args:
            step: just noted by the past.
            images: of its gradient.
        """
        sure, drawn = self._weights[step]
        for key, (v, image) in images.items():
            decay = self._past.survives(*key, self._since)
            unit = self._past.unit(*key) * (v.first if step == 0 and not self._past.before else 1.0)
            self._add(self._then, key, v, image, decay, unit * sure, unit * drawn)
        self._since = step

    def add_now(self, step: int, live: Live, stop: int, images: Mapping[Key, Image]) -> None:
        """What a step's batch gives at the stop.

        Args:
            step: past.
            live: at the stop.
            stop: its step.
            images: of the gradient there.
        """
        sure, drawn = self._weights[step]
        for p, l in live.variables:
            v, image = images[live.groups[p], l]
            weight = float(live.kernel_at(p, l, stop - step))
            self._add(self._now, (live.groups[p], l), v, image, 1.0, weight * sure, weight * drawn)

    def _add(
        self, into: dict[Key, _Sum], key: Key, v: Momentum, image: Tensor, decay: float, sure: float, drawn: float
    ) -> None:
        if key not in into:
            # What has a sign takes one sum of both.
            into[key] = _Sum(torch.zeros_like(image), torch.zeros_like(image if nonnegative(v) else image[:0]))
        if not nonnegative(v):
            into[key].sure.mul_(decay).add_(image, alpha=sure + drawn)
            return
        for total, weight in zip(into[key], (sure, drawn), strict=True):
            total.mul_(decay)
            if weight:
                total.add_(image, alpha=weight)

    def frozen(self, live: Live, p: int, l: int, memory: Tensor, present: Tensor) -> Tensor:
        """m_F or v_F of all coordinates of a part.

        Args:
            live: at the stop.
            p: part.
            l: variable.
            memory: m_l.
            present: g_l of the stop's own gradient.
        """
        v, key = live.method.parts[p].method.variables[l], (live.groups[p], l)
        if key not in self._then:
            return memory
        decay, unit = live.past.survives(*key, self._since), live.past.unit(*key)
        if v.lag:
            decay /= live.past.rates(*key, 1)[0][0]
        scale = v.weight(live.n) / unit * decay
        then, now = self._then[key], self._now[key]
        if not nonnegative(v):
            return memory + now.sure - scale * then.sure
        own = live.kernel_at(p, l, 0) * present
        left = (memory - own - scale * then.sure).clamp_min(0)
        known = then.drawn > 0
        r = torch.where(known, now.drawn / torch.where(known, scale * then.drawn, 1), 1)
        return own + now.sure + left * r

    def __contains__(self, step: int) -> bool:
        """Whether it asks for a step."""
        return step in self._weights


def images(live: list[tuple[int, tuple]], gradient: Tensor, theta: Tensor) -> dict[Key, Image]:
    """g_l of a gradient for every variable of every group.

    Args:
        live: from `live_optimizer.by_group`.
        gradient: shape (d,).
        theta: shape (d,).
    """
    return {
        (i, l): Image(v, v.g(gradient[index], theta[index]))
        for i, (method, index) in live
        for l, v in enumerate(method.variables)
        if v.has_memory
    }
