"""How a kernel over the age of the gradient fades: mean age, half-life, and whether sum_k k^2 kernel[k] converges."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memoryless.methods.forgetting import LONGEST, judgement
from memoryless.render.numbers import plain
from memoryless.render.result import Result

Array = NDArray[np.float64]

IMPULSE = 3.0
"""Size of the one gradient that is out of line, over the usual; it points elsewhere, as what is normalized ignores size."""
DRAWS = 3
"""Random g, theta and dg to average over."""
AGES = 4_000_000
"""Most ages."""
FLOOR = 1e-10
"""Share of the largest weight below which a response is rounding."""


@dataclass(frozen=True)
class Piece:
    """One piece of memory.

    Attributes:
        name: a momentum variable, or a kind of tensor of the optimizer's state.
        kernel: what it holds of the gradient of each age, relative to its largest; of a large one, if that lasts.
        mean_age: sum k kernel / sum kernel, in steps; infinite if it does not fade.
        half_life: age from which the kernel stays below half its largest value.
    """

    name: str
    kernel: Array
    mean_age: float
    half_life: float


@dataclass(frozen=True)
class MemoryKernel(Result):
    """The weight of past gradients in an optimizer's update.

    Attributes:
        method: of whose memory.
        ages: k in steps, log-spaced from 0.
        kernel: response of the update to the gradient of each age.
        mean_age: sum k kernel / sum kernel; infinite if memory does not decay.
        half_life: age from which the kernel stays below half its largest value.
        pieces: of memory.
        decays: whether sum k^2 kernel converges, also for large gradients and uniformly in the step (Assumption 3.1); None if
            not resolved up to `horizon`.
        horizon: last step looked at.
        evidence: why.
        way: how the kernel was found.
        impulse_ages: steps after a gradient `IMPULSE` times as large as usual; empty in closed form.
        impulse: relative change of the update there.
    """

    method: str
    ages: NDArray[np.int64]
    kernel: Array
    mean_age: float
    half_life: float
    pieces: tuple[Piece, ...]
    decays: bool | None
    horizon: int
    evidence: str
    way: str
    impulse_ages: NDArray[np.int64]
    impulse: Array

    @property
    def judgement(self) -> str:
        """Fades, never fades, or not resolved up to a step, in words."""
        return judgement(self.decays, self.horizon)

    def as_dict(self) -> dict[str, Any]:
        """All of it; what is infinite is None."""
        return plain(asdict(self) | {"judgement": self.judgement})


class Impulse(NamedTuple):
    """What follows one gradient `IMPULSE` times as large as usual.

    Attributes:
        ages: steps since.
        update: its relative change.
        pieces: change of each kind of tensor.
        left: change of the whole memory at the last two steps, where it was at rest before.
    """

    ages: NDArray[np.int64]
    update: Array
    pieces: dict[str, Array]
    left: tuple[Tensor, Tensor] | None = None

    def lasting(self, name: str, noise: float) -> "Impulse | None":
        """Itself, if a kind of tensor never lets go of it."""
        return self if name in self.pieces and not tail(self.ages, self.pieces[name], noise).fades else None


def log_ages(last: float, dense: int = 64, per_octave: int = 24) -> NDArray[np.int64]:
    """0, 1, 2, ... dense, then evenly spaced in the logarithm up to `last`.

    Args:
        last: largest age, at most `AGES`.
        dense: up to here every age.
        per_octave: ages per factor of two beyond.
    """
    end = max(int(min(last, AGES)), dense + 1)
    spaced = np.geomspace(dense, end, 2 + int(per_octave * math.log2(end / dense)))
    return np.unique(np.concatenate([np.arange(dense), spaced.round()]).astype(np.int64))


def mean_age(ages: NDArray[np.int64], values: Array) -> float:
    """sum k kernel[k] / sum kernel[k] over every age, exponential between those given.

    Args:
        ages: increasing, from 0.
        values: kernel there.
    """
    if not values.any():
        return 0.0
    k = np.arange(ages[-1] + 1)
    logs = np.interp(k, ages, np.log(np.maximum(values / values.max(), 1e-300)))
    weights = np.exp(logs, where=logs > -400, out=np.zeros(len(k)))
    return float(k @ weights / weights.sum())


def half_life(ages: NDArray[np.int64], values: Array) -> float:
    """The age from which the kernel stays below half its largest value, exponential between those given.

    Args:
        ages: increasing, from 0.
        values: kernel there.
    """
    if not values.any():
        return 0.0
    logs = np.log(np.maximum(values / values.max(), 1e-300))
    i = int(np.flatnonzero(logs >= math.log(0.5))[-1])
    if i == len(ages) - 1:
        return math.inf
    if values[i + 1] == 0:
        return float(ages[i])
    return float(ages[i] + (logs[i] + math.log(2)) / (logs[i] - logs[i + 1]) * (ages[i + 1] - ages[i]))


class Tail(NamedTuple):
    """How a response ends.

    Attributes:
        fades: fast enough for sum k^2 gamma_k; None where only a longer look can tell.
        how: in words.
        span: steps in which it falls by a factor of e, 0 where that has no meaning.
    """

    fades: bool | None
    how: str
    span: float = 0.0


def tail(ages: NDArray[np.int64], values: Array, noise: float = 0.0) -> Tail:
    """Tell an exponential tail from a power law and a plateau by the largest values in the last three octaves.

    Over successive octaves an exponential falls at the same rate per step, a power law at half the rate. What
    looks like a power law may be an average that is still filling, whose bias correction goes as 1 / n until n is its age.

    Args:
        ages: increasing, up to K.
        values: kernel there.
        noise: relative size of its fluctuations.
    """
    K, largest = int(ages[-1]), float(values.max(initial=0))
    a, b, c = (float(values[(ages > K / (2 * j)) & (ages <= K / j)].max(initial=0)) for j in (4, 2, 1))
    if c <= 1e-8 * largest:
        if not (left := np.flatnonzero(values > 1e-8 * largest)).size:
            return Tail(True, "is 0 at every age")
        return Tail(True, f"is gone after {ages[left[-1]]:,} steps")
    before, last = math.log(a / b) / (K / 8), math.log(b / c) / (K / 4)
    if b > (1 + noise + 1e-6) * c and last >= 0.85 * before:
        return Tail(True if 1 / last < LONGEST else None, f"falls by a factor of e every {in_steps(1 / last)}", 1 / last)
    power = math.log2(b / c)
    if power < max(0.1, noise):
        constant = b <= (1 + 1e-9) * c and not noise
        return Tail(
            False if constant else None,
            f"does not fade: {c / largest:.2g} of its largest is left after {K // 2:,} to {K:,} steps",
        )
    return Tail(True if power > 3 else None, f"falls only as k^-{power:.2g} up to {K:,} steps")


def in_steps(number: float) -> str:
    """A number of steps, as text.

    Args:
        number: of steps.
    """
    return f"{number:,.0f} steps" if number >= 100 else f"{number:.3g} steps"


def piece_of(name: str, ages: NDArray[np.int64], values: Array, lasting: "Impulse | None") -> Piece:
    """A piece of a black box's memory from its response.

    Args:
        name: of the state tensor.
        ages: of the response.
        values: its size at each age.
        lasting: the response to a large gradient, where that never fades.
    """
    if lasting is not None:
        values = np.interp(ages, lasting.ages, lasting.pieces[name])
        return Piece(name, values / values.max(), math.inf, math.inf)
    values = above_rounding(values / values.max())
    return Piece(name, values, *ages_of(ages, values))


def ages_of(ages: NDArray[np.int64], values: Array, noise: float = 0.0) -> tuple[float, float]:
    """Mean age and half-life; what remains beyond the last age is as its tail says.

    Args:
        ages: increasing.
        values: weight at each.
        noise: see `tail`.
    """
    end = tail(ages, values, noise)
    if not end.fades:
        return math.inf, half_life(ages, values)
    if end.span and values[-1] > 0:
        beyond = min(int(30 * end.span), AGES)
        ages = np.append(ages, ages[-1] + beyond)
        values = np.append(values, values[-1] * math.exp(-beyond / end.span))
    return mean_age(ages, values), half_life(ages, values)


def draws(d: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Random g, theta, dg; no |g_i| is below 1/2, lest one coordinate near an update's kink at 0 outweigh all others.

    Args:
        d: number of coordinates.
        seed: of the draws.

    Yields:
        Three vectors of shape (d,), DRAWS times.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(DRAWS):
        size, sign, theta, dg = torch.randn(4, d, generator=generator, dtype=torch.float64)
        yield (0.5 + size.abs()) * sign.sign(), theta, dg


def above_rounding(values: Array) -> Array:
    """The weights, 0 where they are rounding.

    Args:
        values: weight at each age.
    """
    return np.where(values > FLOOR * values.max(), values, 0.0)
