"""How an optimizer's history lags behind the present, to first order: what both corrections are made of.

Replace the iterate of k steps ago by theta + lr D[k], D[k] = sum_{s = n-k..n-1} F[s](theta). With e_l = sum_k k kernel_l[k],
the age moment of variable l, its memory sees the past updates through one average,

    Fbar_l = (1/e_l) sum_k kernel_l[k] D[k] = sum_{s<n} (T_l[n-s] / e_l) F[s](theta),        T_l[j] = sum_{k >= j} kernel_l[k]

(exchange the sums), so that per step of age theta lies lr Fbar_l back and the gradient changes by lr H Fbar_l: one
Hessian-vector product per distinct Fbar. Where F[s] does not depend on s (Adam with bias correction, every steady state) all
Fbar_l are F.
With mini-batches the ages split by batch, each with its own gradient, H and Fbar.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from memoryless import kernel
from memoryless.loss import Loss
from memoryless.method import AnyMethod, Momentum, Part
from memoryless.orders import Pool

# A vector of so many numbers fits a core's cache many times; allocated anew for every operation, as torch does, a larger one
# costs more in page faults than in arithmetic. An accelerator wants few kernels instead.
CACHED = 2**17
RESIDENT = 2**24

Linearization = tuple[Tensor, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Lag:
    """How the gradients of one batch enter one variable.

    Attributes:
        gradient: grad L_i(theta), shape (d,).
        ages: quadrature nodes over the ages at which the batch was used.
        weights: their weights, which sum to the frozen weight c.
        back: lr Fbar, shape (d,): how far theta lies back per step of age; None if only the present enters.
        drift: H_i back, shape (d,): how far the gradient lies back per step of age.
    """

    gradient: Tensor
    ages: np.ndarray
    weights: np.ndarray
    back: Tensor | None = None
    drift: Tensor | None = None

    @property
    def weight(self) -> float:
        """c = sum_k kernel[k]."""
        return float(self.weights.sum())

    @property
    def mean_age(self) -> float:
        """sum_k k kernel[k] / c; 0 without weight."""
        return float(self.ages @ self.weights) / self.weight if self.weight else 0.0


@dataclass(frozen=True)
class History:
    """The linearized history of a method at theta.

    Attributes:
        F: update with the history frozen at theta, shape (d,).
        lags: for each part of the method and each of its variables, one Lag per batch.
        products: Hessian-vector products spent.
    """

    F: Tensor
    lags: list[list[list[Lag]]]
    products: int

    def only(self, j: int, l: int) -> "History":
        """The history with all but variable l of part j frozen."""
        lags = [
            [
                per_batch if (j, l) == (jj, ll) else [replace(lag, back=None, drift=None) for lag in per_batch]
                for ll, per_batch in enumerate(variables)
            ]
            for jj, variables in enumerate(self.lags)
        ]
        return replace(self, lags=lags)


def frozen(method: AnyMethod, gradient: Tensor, theta: Tensor, step: int | None) -> Tensor:
    """F[n](theta), full batch: the update had the iterate never moved.

    Args:
        method: in momentum form.
        gradient: grad L(theta), shape (d,).
        theta: shape (d,).
        step: n, or None for the limit.

    Returns:
        Shape (d,).
    """
    F = torch.zeros_like(theta)
    for part in method.parts:
        totals = [kernel.total(v, step) for v in part.method.variables]
        for piece in pieces(part, theta):
            g, point = gradient[piece.index], theta[piece.index]
            m = [total * v.g(g, point) for v, total in zip(part.method.variables, totals, strict=True)]
            F[piece.index] = part.scale * part.method.readout(m, point)
    return F


def pieces(part: Part, theta: Tensor) -> Iterator[Part]:
    """The part cut into blocks of coordinates that suit the machine; whole if phi does not act coordinate by coordinate.

    Args:
        part: of a method.
        theta: shape (d,).
    """
    size = CACHED if theta.device.type == "cpu" else RESIDENT
    if not part.method.elementwise:
        yield part
    elif isinstance(part.index, Tensor):
        yield from (replace(part, index=index) for index in part.index.split(size))
    else:
        start, stop, _ = part.index.indices(theta.numel())
        yield from (replace(part, index=slice(i, min(i + size, stop))) for i in range(start, stop, size))


PROBES = 3
"""Steps at which the interpolation of F[s](theta) over s is compared with F[s](theta)."""


@lru_cache(maxsize=4096)
def _past(variables: tuple[Momentum, ...], n: int, every: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps s and weights, shape (len(variables) + PROBES, steps), with Fbar_l = sum_s weights[l, s] F[s](theta).

    Step n itself stands for every s where F[s](theta) = F[n](theta). Rows of variables without a past at n are zero. The last
    rows give F at the probed steps, which come third; with `every`, all distinct steps are used and nothing is interpolated.
    """
    if kernel.constant(variables, n):
        rows = [float(n > 0 and v.has_memory) for v in variables] + [1.0] * PROBES
        return np.array([n]), np.array(rows)[:, None], np.full(PROBES, n)
    steps = np.arange(max(n + 1 - kernel.window(variables, n), 0), n + 1)
    weights = np.stack([kernel.tails(kernel.kernel(v, n, len(steps)))[::-1] for v in variables])
    weights[:, -1] = 0
    sums = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, sums, out=np.zeros_like(weights), where=sums != 0)
    c = np.stack([kernel.totals(v, steps) for v in variables])
    # Half of the way of c lies before the first probe's step, where it moves most.
    far = np.abs(c - c[:, -1:]).max(axis=0)
    probed = np.array([np.searchsorted(-far, -far[0] * share) for share in (0.5, 0.1, 0.01)]).clip(0, len(steps) - 1)
    at_probes = (np.arange(len(steps)) == probed[:, None]).astype(float)
    index, folded = kernel.compress(c, np.vstack([weights, at_probes]), len(steps) if every else 32)
    return steps[index], folded, steps[probed]


def settled(variables: tuple[Momentum, ...], n: int) -> bool:
    """Whether F[s](theta) = F[n](theta) for every past step s that the variables remember.

    Args:
        variables: of a method.
        n: step.
    """
    return bool((_past(variables, n)[0] == n).all())


def products(method: AnyMethod, step: int | None) -> int:
    """How many Hessian-vector products `full_batch` takes.

    Args:
        method: in momentum form.
        step: n, or None for the steady state.
    """
    variables = tuple(v for part in method.parts for v in part.method.variables)
    if step is None:
        return int(any(v.has_memory for v in variables))
    return max(_distinct(_past(variables, step)[1][:-PROBES]), default=-1) + 1


def full_batch(method: AnyMethod, linearization: Linearization, theta: Tensor, step: int | None) -> History:
    """The history when every step used the full batch.

    Args:
        method: in momentum form.
        linearization: grad L(theta) and v -> H(theta) v, from `Loss.linearize`.
        theta: shape (d,).
        step: n, or None for the steady state.

    Returns:
        The linearized history.

    Raises:
        NeverForgets: steady state of a memory that does not fade.
    """
    gradient, curvature = linearization
    variables = tuple(v for part in method.parts for v in part.method.variables)
    F = frozen(method, gradient, theta, step)
    averages, owner = _averages(method, gradient, theta, step, variables, F)
    backs = [method.lr * average for average in averages]
    drifts = [curvature(back) for back in backs]
    flat = iter(
        Lag(gradient, *kernel.gauss(v, step), *((backs[i], drifts[i]) if i >= 0 else ()))
        for v, i in zip(variables, owner, strict=True)
    )
    return History(F, [[[next(flat)] for _ in part.method.variables] for part in method.parts], len(backs))


def _averages(
    method: AnyMethod, gradient: Tensor, theta: Tensor, step: int | None, variables: tuple[Momentum, ...], F: Tensor
) -> tuple[list[Tensor], list[int]]:
    """The distinct Fbar, and which of them belongs to each variable (-1: none)."""
    if step is None:
        owner = [0 if v.has_memory else -1 for v in variables]
        return [F] * (0 in owner), owner
    steps, weights, probed = _past(variables, step)
    owner = _distinct(weights[:-PROBES])
    if list(steps) == [step]:
        return [F] * (0 in owner), owner

    rows = [owner.index(row) for row in range(max(owner) + 1)]
    updates = _updates(method, gradient, theta)
    *averages, a, b, c = updates(steps, weights[[*rows, -3, -2, -1]])
    tolerance = max(1e-10, 1e3 * torch.finfo(F.dtype).eps)
    at_probes = updates(probed, np.eye(PROBES))
    if any((x - y).norm() > tolerance * y.norm() for x, y in zip((a, b, c), at_probes, strict=True)):
        # F[s] is not a smooth function of the frozen weights: take every step.
        steps, weights, _ = _past(variables, step, every=True)
        averages = updates(steps, weights[rows])
    return averages, owner


def _updates(method: AnyMethod, gradient: Tensor, theta: Tensor) -> Callable[[np.ndarray, np.ndarray], list[Tensor]]:
    """The function (steps, weights) -> sum_s weights[row, s] F[s](theta) for each row."""
    elementwise = all(part.method.elementwise for part in method.parts)

    def one_by_one(steps: np.ndarray, weights: np.ndarray) -> list[Tensor]:
        sums = [torch.zeros_like(theta) for _ in weights]
        for s, column in zip(steps.tolist(), weights.T.tolist(), strict=True):
            F = frozen(method, gradient, theta, s)
            for total, weight in zip(sums, column, strict=True):
                total.add_(F, alpha=weight)
        return sums

    def at_once(steps: np.ndarray, weights: np.ndarray) -> list[Tensor]:
        """All F[s] in one readout, end to end as one long vector."""
        if not elementwise or len(steps) * theta.numel() > 4 * CACHED:
            return one_by_one(steps, weights)
        F = theta.new_zeros(len(steps), theta.numel())
        for part in method.parts:
            g, point = gradient[part.index], theta[part.index]
            totals = [torch.from_numpy(kernel.totals(v, steps)).to(theta) for v in part.method.variables]
            m = [torch.outer(c, v.g(g, point)).flatten() for v, c in zip(part.method.variables, totals, strict=True)]
            F[:, part.index] = part.scale * part.method.readout(m, point.repeat(len(steps))).view(len(steps), -1)
        return list(torch.from_numpy(weights).to(theta) @ F)

    return at_once


def _distinct(rows: np.ndarray) -> list[int]:
    """Number the distinct rows in order of appearance; zero rows are -1."""
    seen: list[np.ndarray] = []
    numbers = []
    for row in rows:
        if not row.any():
            numbers.append(-1)
            continue
        match = next((i for i, other in enumerate(seen) if np.allclose(row, other, rtol=0, atol=1e-13)), None)
        if match is None:
            match = len(seen)
            seen.append(row)
        numbers.append(match)
    return numbers


def reach(method: AnyMethod, n: int) -> int:
    """How many of the steps 0..n, counted back from n, the method remembers to double precision.

    Args:
        method: in momentum form.
        n: step.
    """
    variables = tuple(v for part in method.parts for v in part.method.variables)
    # Many quadrature nodes weigh high powers of the age, which reach further back.
    factor = 4 if any(v.degree is None for v in variables) else 1
    # One more, which the update before a lagging variable's oldest gradient still read.
    return min(factor * kernel.window(variables, n) + 1, n + 1)


def of_batches(method: AnyMethod, loss: Loss, theta: Tensor, sequence: Sequence[int]) -> History:
    """The history when step s used batch sequence[s] of a loss.

    Args:
        method: in momentum form.
        loss: its gradients and curvature are used.
        theta: shape (d,).
        sequence: batch of each step 0..n.

    Returns:
        The linearized history.
    """
    recent = sequence[len(sequence) - reach(method, len(sequence) - 1) :]
    gradients = {i: loss.gradient(theta, i) for i in sorted(set(recent))}
    return mini_batch(method, gradients, lambda v, i: loss.curvature(theta, v, i), theta, sequence)


def mini_batch(
    method: AnyMethod,
    gradients: dict[int, Tensor],
    curvature: Callable[[Tensor, int], Tensor],
    theta: Tensor,
    sequence: Sequence[int],
) -> History:
    """The history when step s used batch sequence[s].

    Args:
        method: in momentum form.
        gradients: grad L_i(theta) of each batch that occurs within `reach`.
        curvature: (v, i) -> H_i(theta) v.
        theta: shape (d,).
        sequence: batch of each step 0..n.

    Returns:
        The linearized history; one product per variable and batch.
    """
    n, count = len(sequence) - 1, reach(method, len(sequence) - 1)
    recent = sequence[n + 1 - count :]
    used = np.array(recent[::-1])  # batch by age
    quadratures: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = {}
    shares: dict[tuple[int, int, int], np.ndarray] = {}
    for j, part in enumerate(method.parts):
        for l, v in enumerate(part.method.variables):
            for i in gradients:
                values = np.where(used == i, kernel.kernel(v, n, count), 0)
                if not values.any():
                    continue
                quadratures[j, l, i] = kernel.gauss_of(values, kernel.node_count(v))
                tails = kernel.tails(values)
                if moment := tails[1:].sum():
                    shares[j, l, i] = tails[::-1] / moment  # by step, the oldest first
    place = {i: row for row, i in enumerate(gradients)}
    pool = Pool(method, torch.stack(list(gradients.values())), theta)
    F = theta
    weights = torch.from_numpy(np.array(list(shares.values()))).to(theta)
    sums = theta.new_zeros(len(shares), len(theta))
    for s, updates in pool.updates(np.array([place[i] for i in recent]), first=n + 1 - count):
        F = updates[-1]
        past = slice(s, min(s + len(updates), count - 1))
        if shares and s < count - 1:
            sums += weights[:, past] @ updates[: past.stop - s]
    averages = dict(zip(shares, sums, strict=True))
    lags: list[list[list[Lag]]] = [[[] for _ in part.method.variables] for part in method.parts]
    for (j, l, i), quadrature in quadratures.items():
        lag = Lag(gradients[i], *quadrature)
        if (j, l, i) in averages:
            back = method.lr * averages[j, l, i]
            lag = Lag(gradients[i], *quadrature, back, curvature(back, i))
        lags[j][l].append(lag)
    return History(F, lags, len(averages))
