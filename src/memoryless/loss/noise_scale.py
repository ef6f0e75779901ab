"""How noisy mini-batch gradients are: tr(Sigma), |g|^2 and the simple noise scale B_simple = tr(Sigma) / |g|^2.

Sigma is the covariance of one sample's gradient, g its mean. The mean gradient over b samples satisfies

    E |g_b|^2 = |g|^2 + tr(Sigma) / b

(McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, Appendix A.1), so two batch sizes b < B give both without bias,

    tr(Sigma) = (|g_b|^2 - |g_B|^2) / (1/b - 1/B),        |g|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b)

Gradients of batches of a data set are such a pair: b of each, B of all together. With sizes b_i that differ, the batches
weighted by their size keep it unbiased: tr(Sigma) = sum_i b_i |g_i - g_B|^2 / (batches - 1), |g|^2 = |g_B|^2 - tr(Sigma) / B.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from memoryless.errors import BadInput, BadType
from memoryless.flat import dot
from memoryless.loss.loss import Loss
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import plain
from memoryless.render.result import Result

LEVEL = 0.95
"""Of the confidence interval."""


@dataclass(frozen=True)
class GradientNoise(Result):
    """The noise of the gradient at one theta.

    Attributes:
        trace: tr(Sigma), of one sample's gradient.
        gradient_norm_squared: |g|^2, without the noise's share; may be negative where the noise hides the gradient.
        interval: 95 % confidence interval of `scale`, by Fieller's theorem from the jackknife over batches: it has no upper
            end (infinity) where |g|^2 cannot be told from 0. None from a single pair of norms.
        batches: how many gradients it was made of.
        batch_size: samples in each; their mean where they differ.
    """

    trace: float
    gradient_norm_squared: float
    interval: tuple[float, float] | None
    batches: int
    batch_size: float

    @property
    def scale(self) -> float:
        """B_simple = tr(Sigma) / |g|^2, in samples: at that batch size noise and gradient are as long as each other."""
        return self.trace / self.gradient_norm_squared if self.gradient_norm_squared > 0 else math.inf

    def as_dict(self) -> dict[str, Any]:
        """Attributes and the noise scale; None for an end of the interval that there is not."""
        return plain(
            {
                "trace": self.trace,
                "gradient_norm_squared": self.gradient_norm_squared,
                "scale": self.scale,
                "interval": self.interval,
                "batches": self.batches,
                "batch_size": self.batch_size,
            }
        )

    @classmethod
    def of_two_sizes(cls, small: ArrayLike, small_size: int, big: ArrayLike, big_size: int) -> "GradientNoise":
        """From the squared norms of gradients of two batch sizes, such as one device's and the average over all of them.

        Args:
            small: |g_b|^2, one or several.
            small_size: b.
            big: |g_B|^2 at the same theta, one or several; as many as `small` where an interval is wanted.
            big_size: B > b.

        Raises:
            BadInput: the sizes do not differ, or there is nothing to average.

        Example:
            >>> noise = GradientNoise.of_two_sizes([5.0, 7.0], 4, [3.0, 3.0], 16)
            >>> noise.trace, noise.gradient_norm_squared, noise.scale
            (16.0, 2.0, 8.0)
        """
        if not 0 < small_size < big_size:
            raise BadInput(f"expected two different batch sizes, the smaller first, got {small_size} and {big_size}")
        one, other = (np.atleast_1d(np.asarray(x, dtype=float)) for x in (small, big))
        if not (one.size and other.size and np.isfinite(one).all() and np.isfinite(other).all()):
            raise BadInput("expected finite squared norms, at least one of each batch size")

        def both(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
            x, y = x.mean(-1), y.mean(-1)
            trace = (x - y) / (1 / small_size - 1 / big_size)
            return np.stack([trace, (big_size * y - small_size * x) / (big_size - small_size)], axis=-1)

        found, interval = both(one, other), None
        if one.size == other.size > 1:
            others = ~np.eye(one.size, dtype=bool)
            left = both(*(np.array([x[keep] for keep in others]) for x in (one, other)))
            interval = _interval(found, left)
        return cls(float(found[0]), float(found[1]), interval, one.size, small_size)


def gradient_noise(
    loss: Loss,
    theta: Tensor | None = None,
    *,
    sizes: int | Sequence[int] | None = None,
    on_step: OnStep = silent,
) -> GradientNoise:
    """The noise of the gradient from the loss's batches, each taken twice.

    Args:
        loss: with at least two batches.
        theta: shape (d,); default `loss.theta`.
        sizes: samples in each batch, one number or one per batch; default the length of the first tensor of each. Batches of
            different sizes are weighted by them.
        on_step: told the gradients taken and their number, two per batch.

    Returns:
        Unbiased estimates of tr(Sigma) and |g|^2 and the noise scale with its confidence interval.

    Raises:
        BadType: the loss is none.
        BadInput: fewer than two batches, or sizes unknown or not positive.

    Example:
        >>> data = torch.tensor([[0.0], [2.0], [4.0], [6.0]], dtype=torch.float64)
        >>> losses = [lambda theta, x=x: ((theta - x) ** 2).mean() / 2 for x in data.split(1)]
        >>> noise = gradient_noise(Loss.of(losses, torch.tensor([9.0], dtype=torch.float64)), sizes=1)
        >>> round(noise.trace, 9), round(noise.gradient_norm_squared, 9)
        (6.666666667, 34.333333333)
    """
    if not isinstance(loss, Loss):
        raise BadType(f"gradient_noise: loss must be a memoryless.Loss, got {type(loss).__name__}; see memoryless.Loss")
    if len(loss) < 2:
        raise BadInput("expected at least two batches, got 1: the noise of one gradient cannot be told from the gradient")
    loss.batches.require_replayable()
    theta = loss.theta if theta is None else theta.detach()
    b = np.array(_sizes(loss, sizes), dtype=float)
    total = torch.zeros_like(theta, dtype=torch.float64)
    for i, size in enumerate(b):
        total += size * loss.gradient(theta, i).double()
        on_step(i + 1, 2 * len(b))
    # Of n_i = |g_i|^2 and r_i = <g_i, sum_j b_j g_j> the estimates are functions, those without one batch too.
    n, r = np.zeros(len(b)), np.zeros(len(b))
    for i in range(len(b)):
        g = loss.gradient(theta, i).double()
        n[i], r[i] = float(dot(g, g)), float(dot(g, total))
        on_step(len(b) + i + 1, 2 * len(b))
    square = float(dot(total, total))

    def both(square: ArrayLike, weighted: ArrayLike, samples: ArrayLike, count: int) -> NDArray[np.float64]:
        square, samples = np.asarray(square), np.asarray(samples)
        trace = (np.asarray(weighted) - square / samples) / (count - 1)
        return np.stack([trace, square / samples**2 - trace / samples], axis=-1)

    found = both(square, b @ n, b.sum(), len(b))
    interval = None
    if len(b) > 2:
        left = both(square - 2 * b * r + b**2 * n, b @ n - b * n, b.sum() - b, len(b) - 1)
        interval = _interval(found, left)
    return GradientNoise(float(found[0]), float(found[1]), interval, len(b), float(b.mean()))


def _sizes(loss: Loss, sizes: int | Sequence[int] | None) -> Sequence[int]:
    found = loss.batches.sizes if sizes is None else [sizes] * len(loss) if isinstance(sizes, int) else sizes
    if found is None:
        raise BadInput("the batches do not tell how many samples they hold; give sizes")
    if len(found) != len(loss) or not all(size > 0 for size in found):
        raise BadInput(f"sizes must be positive, one for each of the {len(loss)} batches, got {list(found)}")
    return found


def _interval(found: NDArray[np.float64], left: NDArray[np.float64]) -> tuple[float, float]:
    """Fieller's interval of found[0] / found[1], covariances by the jackknife.

    The ratios x with (found[0] - x found[1])^2 <= q (v00 - 2 x v01 + x^2 v11), q the squared quantile of Student's t.
    """
    count = len(left)
    v = (count - 1) ** 2 / count * np.cov(left.T)
    from scipy.stats import t as student  # as slow to import as torch

    q = float(student.ppf((1 + LEVEL) / 2, count - 1)) ** 2
    a, b, c = found[1] ** 2 - q * v[1, 1], found[0] * found[1] - q * v[0, 1], found[0] ** 2 - q * v[0, 0]
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0 and found[1] > 0:
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
    # |g|^2 may be 0: the ratio has no upper end, and a lower one only where tr(Sigma) is away from 0.
    return max(c / (b + root), 0.0) if c > 0 and b + root > 0 else 0.0, math.inf
