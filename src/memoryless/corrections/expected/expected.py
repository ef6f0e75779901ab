"""The correction that mini-batches give on average over their random order, and what of it is noise.

M depends on the order of the batches (Section 5.2 of https://arxiv.org/abs/2502.02132). With the batch of every step given,

    M[n] = lr sum_{k=1..n} W[k] H_{n-k} D[k],    D[k] = sum_{s=n-k..n-1} F[s],    W[k] = dF[n] / dg[n-k]

First order: draw an order, then a lag k with known probability p_k and some of the steps s that D[k] sums over; what one
Hessian-vector product gives, divided by p_k, has M's mean over the orders as its own. Draws are independent: the standard
error is that of a mean. Resummed M is nonlinear in the stream of gradients, so that no single lag is unbiased: whole orders
are drawn.

The split: with the full batch at every step M would be `full_batch`; the rest of the mean is the noise's.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.correction import require_step
from memoryless.corrections.expansion import expansion
from memoryless.corrections.expected import closed_form
from memoryless.corrections.expected.estimate import Samples
from memoryless.corrections.expected.random_lag import Draws, Sample, random_lags
from memoryless.corrections.sequences import Order, Pool, random_order
from memoryless.errors import BadInput, TooFewSamples
from memoryless.flat import norm
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, Value, evaluate
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer, variables_of
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import label, plain
from memoryless.render.result import Result


@dataclass(frozen=True)
class ExpectedEffect:
    """What memory does to one measure S on average, -lr <grad S, E[M]> / S per step.

    Attributes:
        measure: name of S.
        value: S(theta).
        mean: over the orders.
        full_batch: were every step's batch the full one.
        changes: of each sample.
    """

    measure: str
    value: float
    mean: float
    full_batch: float
    changes: Samples = field(repr=False)

    @property
    def standard_error(self) -> float:
        """Standard error of `mean`, which is that of `noise` too: they differ by a constant."""
        return float(self.changes.standard_error)

    @property
    def noise(self) -> float:
        """What the noise of the batches adds."""
        return self.mean - self.full_batch

    @property
    def word(self) -> str:
        """Regularizes, anti-regularizes, or neutral within two standard errors."""
        if abs(self.mean) <= 2 * self.standard_error:
            return "neutral"
        return "regularizes" if self.mean < 0 else "anti-regularizes"


@dataclass(frozen=True)
class ExpectedCorrection(Result):
    """F and M at one theta, averaged over the random order of the batches.

    Attributes:
        F: mean of F[n], shape (d,), in the units of an update.
        M: mean of M[n], shape (d,), same units.
        standard_error: of each coordinate of M, shape (d,); 0 where it is exact.
        full_batch: M with the full batch at every step, shape (d,).
        order: "first" or "resummed".
        step: n, or None for the steady state.
        samples: orders drawn; None for a closed form.
        products: Hessian-vector products spent, each with one batch.
        effects: on each measure asked for.
        method: it belongs to.
    """

    F: Tensor
    M: Tensor
    standard_error: Tensor
    full_batch: Tensor
    order: str
    step: int | None
    samples: int | None
    products: int
    effects: tuple[ExpectedEffect, ...]
    method: AnyOptimizer = field(repr=False)

    @property
    def noise(self) -> Tensor:
        """M less `full_batch`: the part that the noise of the batches makes, shape (d,)."""
        return self.M - self.full_batch

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text, the vectors too."""
        names = ("F", "M", "standard_error", "full_batch", "noise", "order", "step", "samples", "products")
        effects = [
            {key: getattr(e, key) for key in ("measure", "value", "mean", "standard_error", "full_batch", "noise", "word")}
            for e in self.effects
        ]
        return plain({"method": str(self.method)} | {name: getattr(self, name) for name in names} | {"effects": effects})

    @property
    def relative_error(self) -> float:
        """Standard error of the first measure's change over the change; of M in the 2-norm, where no measure was asked for."""
        if self.effects:
            error, size = self.effects[0].standard_error, abs(self.effects[0].mean)
        else:
            error, size = float(norm(self.standard_error)), float(norm(self.M))
        return error / size if size else math.inf if error else 0.0


@valid_arguments
def expected_correction(
    method: AnyOptimizer,
    loss: Loss,
    theta: Tensor | None = None,
    *,
    step: int | None = None,
    order: Literal["first", "resummed"] = "first",
    measures: Sequence[str | Differentiable] = (),
    samples: int | None = 256,
    replacement: bool = False,
    whole: bool = False,
    error: float | None = None,
    seed: int = 0,
    on_step: OnStep = silent,
) -> ExpectedCorrection:
    """F and M averaged over the order of the batches (Section 5.2, https://arxiv.org/abs/2502.02132), with standard errors.

    The batches stay the sets they are; the full batch is their plain average, a short last batch counting as much as the
    others, since a step sees it as often.

    Args:
        method: in momentum form, or any optimizer as a `TorchMethod`, which needs `step`.
        loss: with at least two batches.
        theta: shape (d,); default `loss.theta`.
        step: n, the number of past iterates, an epoch beginning at step 0; None is the steady state, at a random place in an
            epoch.
        order: "first" or "resummed".
        measures: names in `loss.measures.MEASURES`, or differentiable functions theta -> scalar, on which to tell the effect.
        samples: how many orders to draw; first order spends one Hessian-vector product on each, resummed and `whole` one per
            variable and batch. None is the closed form, which methods linear in the gradient have (heavy ball, Nesterov).
        replacement: every step draws its batch afresh; otherwise every epoch is a random permutation.
        whole: all lags of each order, as resummed always takes them, instead of one at random. Where memory spans many epochs
            orders hardly differ, and a few of them are cheaper than many lags.
        error: the relative standard error needed, of the first measure's change (of M without measures).
        seed: of the draws.
        on_step: told the samples done and their number.

    Returns:
        The means, with their standard errors.

    Raises:
        TooFewSamples: `error` was not reached; says how many samples would do.
        NeverForgets: steady state of a memory that does not fade.
        BadInput: fewer than two batches, or an argument out of range.

    Example:
        >>> import memoryless as ml
        >>> losses = [lambda theta, a=a: ((theta - a) ** 2).sum() * (1 + a) / 2 for a in (0.0, 1.0, 3.0)]
        >>> loss = ml.Loss.of(losses, torch.tensor([3.0], dtype=torch.float64))
        >>> found = ml.expected_correction(ml.HeavyBall(lr=0.01, momentum=0.9), loss, step=50, samples=None)
        >>> found.full_batch, found.noise
        (tensor([46.4482], dtype=torch.float64), tensor([-0.1138], dtype=torch.float64))
    """
    if len(loss) < 2:
        raise BadInput("expected at least two batches, got 1: with one batch there is no order, use correction")
    loss.batches.require_replayable()
    _require(method, step, order, samples, error)
    point = Point(loss, theta)
    values = evaluate(measures, point) if measures else []
    if samples is None:
        full = expansion(method, point, step)
        M, (noise, products) = full.first().value, closed_form.noise_of(method, point, step, replacement)
        effects = tuple(_effect(value, method.lr, M + noise, M) for value in values)
        zero = torch.zeros_like(M)
        return ExpectedCorrection(full.F, M + noise, zero, M, order, step, None, products, effects, method)
    at_rest = expansion(method, point, step)
    full = (at_rest.first() if order == "first" else at_rest.resummed()).value
    found = sampled(method, point, values, step, Plan(samples, seed, order, replacement, whole), full=full, on_step=on_step)
    if error is not None and not found.relative_error <= error:
        raise TooFewSamples(_too_few(found, samples, error), found)
    return found


def _require(method: AnyOptimizer, step: int | None, order: str, samples: int | None, error: float | None) -> None:
    if order not in ("first", "resummed"):
        raise BadInput(f"order must be 'first' or 'resummed', got {order!r}")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 2):
        raise BadInput(f"samples must be at least 2, or None for a closed form, got {samples!r}")
    if error is not None and not error > 0:
        raise BadInput(f"error must be a positive relative standard error, such as 0.05, got {error!r}")
    require_step(step)
    if not method.parts and step is None:
        raise BadInput(f"{method}: the steady state of a black box under random batches is not known; give step=n")
    if samples is None and (order != "first" or not method.parts):
        raise BadInput("a closed form is of first order and of a method in momentum form; give samples")


def _too_few(found: "ExpectedCorrection", samples: int, error: float) -> str:
    """What was reached, and how many samples would do."""
    enough = samples * (found.relative_error / error) ** 2
    what = f"the change of the {label(found.effects[0].measure)}" if found.effects else "M"
    would = f"about {math.ceil(enough)} would do" if np.isfinite(enough) else "within them it is 0"
    if 0.5 < found.relative_error < math.inf:
        would += ", a guess as long as it cannot be told from 0"
    return (
        f"{samples} samples give {what} to a relative standard error of {found.relative_error:.2g}, asked for was "
        f"{error:g}: {would}"
    )


class Plan(NamedTuple):
    """How the mean over the orders is estimated.

    Attributes:
        samples: number of random orders.
        seed: sample r of one method and of another shares its draws from the present backwards.
        order: "first" or "resummed".
        replacement: every step draws its batch afresh.
        whole: all lags of each order instead of one at random.
    """

    samples: int
    seed: int
    order: Literal["first", "resummed"] = "first"
    replacement: bool = False
    whole: bool = False


def sampled(
    method: AnyOptimizer,
    point: Point,
    values: Sequence[Value],
    step: int | None,
    plan: Plan,
    *,
    full: Tensor | None = None,
    on_step: OnStep = silent,
) -> ExpectedCorrection:
    """`expected_correction` from what is known at theta already, which many methods share.

    Args:
        method: in momentum form, or a black box.
        point: theta, and the loss whose batches are drawn.
        values: the measures at theta on which to tell the effect.
        step: n, or None for the steady state.
        plan: how many orders to draw, and how each is used.
        full: M of the full batch, shape (d,); default 0, which makes all of M noise.
        on_step: told the samples done and their number.

    Returns:
        The means, with their standard errors.
    """
    loss, theta, order = point.loss, point.theta, plan.order
    full = torch.zeros_like(theta) if full is None else full
    n = _horizon(method) if step is None else step

    def draw(r: int) -> tuple[Order, np.random.Generator]:
        rng = np.random.default_rng((plan.seed, r))
        skip = int(rng.integers(len(loss))) if step is None else -(n + 1) % len(loss)
        backwards = random_order(len(loss), n + 1, rng, plan.replacement, skip)
        return backwards[::-1], np.random.default_rng((plan.seed, r, 1))

    draws = map(draw, range(plan.samples))
    if plan.whole or order == "resummed":
        drawn = _whole_orders(method, point, draws, order)
    elif method.parts:
        drawn = random_lags(Pool(method, point.gradients_of(), theta), point, n, step is None, draws)
    else:
        drawn = _one_lag_each(method, point, draws)
    M, F, products = _Mean(theta), _Mean(theta), 0
    changes = np.zeros((plan.samples, len(values)))
    for r, (update, memory, spent) in enumerate(drawn):
        F.add(update)
        M.add(memory)
        products += spent
        changes[r] = [value.slope(memory, method.lr) for value in values]
        on_step(r + 1, plan.samples)
    effects = tuple(_effect(v, method.lr, M.mean, full, Samples(changes[:, k])) for k, v in enumerate(values))
    return ExpectedCorrection(F.mean, M.mean, M.standard_error, full, order, step, plan.samples, products, effects, method)


def _effect(value: Value, lr: float, M: Tensor, full: Tensor, changes: Samples | None = None) -> ExpectedEffect:
    mean, of_full = (value.slope(x, lr) for x in (M, full))
    return ExpectedEffect(value.name, value.value, mean, of_full, changes or Samples(np.array([mean]), "exact"))


def _horizon(method: AnyOptimizer) -> int:
    """A step at which all has settled to double precision."""
    for v in variables_of(method):
        kernel.require_fading(v)
    return kernel.window(variables_of(method), 10**9)


class _Mean:
    """Running mean of vectors, and its standard error (Welford)."""

    def __init__(self, like: Tensor):
        self.count, self.mean, self._squares = 0, torch.zeros_like(like), torch.zeros_like(like)

    def add(self, x: Tensor) -> None:
        self.count += 1
        change = x - self.mean
        self.mean = self.mean + change / self.count
        self._squares += change * (x - self.mean)

    @property
    def standard_error(self) -> Tensor:
        return (self._squares / (self.count * (self.count - 1))).sqrt()


def _whole_orders(method: AnyOptimizer, point: Point, draws: Draws, kind: Literal["first", "resummed"]) -> Iterator[Sample]:
    """F[n] and M[n] of whole orders."""
    for order, _ in draws:
        found = expansion(method, point, len(order) - 1, order.tolist())
        M = found.first() if kind == "first" else found.resummed()
        yield found.F, M.value, found.products


def _one_lag_each(method: AnyOptimizer, point: Point, draws: Draws) -> Iterator[Sample]:
    """F[n], and one lag's share in M[n], of an optimizer whose kernel is not known: any lag may count, short ones often do."""
    for order, rng in draws:
        n, k, p = len(order) - 1, 0, np.ones(1)
        if n:
            harmonic = 1 / np.arange(1, n + 1)
            p = (harmonic / harmonic.sum() + 1 / n) / 2
            k = 1 + int(rng.choice(n, p=p))
        found = expansion(method, point, n, order.tolist(), only=k)
        yield found.F, found.first().value / p[k - 1], found.products
