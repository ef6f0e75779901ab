"""Measured along a mini-batch run: the past batches, replayed at the present theta.

    Delta_n = (what the optimizer does next) - F[n](theta; the same batches)

for the live optimizer, and for others by shadow memories of the same stream of gradients (`audits.shadow`). Exact: the
frozen memory of a variable is a weighted sum over the batches (`corrections.sequences`): one gradient per batch and stop.
By random lags, which costs as many gradients as there are lags: with g_then the gradient that step n-k used and g_now the one
that its batch has at the present theta,

    m_l - m_l(frozen) = sum_k kernel_l[k] (g_l(g_then) - g_l(g_now)) = E[ kernel_l[k] / p_k (g_l(g_then) - g_l(g_now)) ]

whose mean over the drawn lags is unbiased; phi then makes of its variance a bias that falls as 1 / lags.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from memoryless.audits.beta_map import Grid, Memory, inner_products, update_of
from memoryless.audits.shadow import Shadow
from memoryless.corrections.expected.estimate import Array, Samples
from memoryless.corrections.expected.random_lag import lag_probabilities, weight_at
from memoryless.corrections.sequences import Order, Pool, shares
from memoryless.errors import BadInput, Diverged, NotFinite
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, Value, evaluate
from memoryless.methods import live_optimizer
from memoryless.methods.method import AnyMethod, Index, Momentum


@dataclass(frozen=True)
class Replay:
    """Relative change of each measure per step that memory caused along a mini-batch run, -lr <grad S, Delta_n> / S.

    Attributes:
        measures: their names.
        stops: after how many steps.
        values: each measure at each stop, shape (stops, measures).
        live: of the optimizer that ran, shape (stops, measures); stops share their past, they are a series.
        others: of other methods, by their text.
        maps: of every pair of betas, shape (stops, betas_1, betas_2, measures); None without a grid.
        grid: the pairs.
        gradients: spent on replaying.
    """

    measures: tuple[str, ...]
    stops: tuple[int, ...]
    values: Array
    live: Samples
    others: dict[str, Samples]
    maps: Samples | None
    grid: Grid | None = field(repr=False)
    gradients: int


def replay(
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batches: Sequence[int] | Order,
    stops: Sequence[int],
    measures: Sequence[str | Differentiable] = ("gradient_1_norm",),
    compare: Sequence[AnyMethod] = (),
    betas: tuple[Sequence[float], Sequence[float]] | None = None,
    lags: int | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> Replay:
    """Run a torch optimizer on mini-batches and measure what memory does, its own and that of others.

    The model and the optimizer end where they would have ended without it, bit for bit.

    Args:
        optimizer: live, recognised by `method_of`, with no step taken yet.
        loss: of the parameters that the optimizer holds; measures are of its full batch.
        batches: index of the batch of each step.
        stops: after how many of these steps to measure, each below their number.
        measures: names, or differentiable functions theta -> scalar.
        compare: other methods.
        betas: two axes of a grid of pairs for the optimizer's own kind.
        lags: None is exact; a number replays so many random lags instead of every batch.
        seed: of the lags.
        on_step: called with the number of steps taken, for progress.

    Returns:
        The changes at each stop.

    Raises:
        NotRecognised: the optimizer has no catalogue method.
        Diverged: loss or gradient became infinite or NaN; says after how many steps.
        BadInput: an argument is out of range, batches cannot be replayed, or the optimizer has steps behind it.
    """
    order = np.asarray(batches, dtype=np.int64)
    wanted = sorted(set(stops))
    if len(order) == 0 or not ((order >= 0) & (order < len(loss))).all():
        raise BadInput(f"batches must be indices in 0..{len(loss) - 1}, at least one")
    if not wanted or not 0 < wanted[0] <= wanted[-1] < len(order):
        raise BadInput(f"stops must lie in 1..{len(order) - 1}, below the number of batches, got {list(stops)}")
    if lags is not None and lags < 1:
        raise BadInput(f"lags must be at least 1, or None for all, got {lags}")
    method = live_optimizer.method_of(optimizer, loss)
    if any(optimizer.state.values()):
        raise BadInput("the optimizer has steps behind it whose batches are not known; start it anew")
    loss.require_replayable()
    named = {str(other): other for other in compare}
    grid = None if betas is None else Grid(method, *betas)
    shadow = Shadow([method, *named.values(), *(grid.spanning() if grid else ())], loss.theta)
    past = None if lags is None else _Past(shadow.variables, order, wanted, lags, seed)
    live: list[list[float]] = []
    others: dict[str, list[list[float]]] = {name: [] for name in named}
    values_seen: list[list[float]] = []
    maps: list[Array] = []
    spent = 0
    for taken in range(len(order)):
        theta = loss.theta
        try:
            gradient = loss.gradient(theta, int(order[taken]))
            if taken in wanted:
                so_far = order[: taken + 1]
                full, product = loss.linearize(theta)
                values = evaluate(measures, loss, theta, full, product)
                if past is None:
                    gradients = torch.stack([loss.gradient(theta, i) for i in range(len(loss))])
                    frozen, cost = _exact(Pool(method, gradients, theta), so_far), len(loss)
                else:
                    frozen, cost = past.frozen(loss, theta, shadow, gradient, so_far)
                spent += cost

                def actual(v: Momentum, index: Index = slice(None), g: Tensor = gradient, theta: Tensor = theta) -> Tensor:
                    return shadow.memory(v, g, theta, index)

                update = live_optimizer.next_update(optimizer, loss, gradient)
                F = update_of(method, theta, frozen)
                live.append(_changes(values, method.lr, update.to(theta.dtype) - F))
                for name, m in named.items():
                    others[name].append(_changes(values, m.lr, update_of(m, theta, actual) - update_of(m, theta, frozen)))
                if grid is not None:
                    slopes = torch.stack([value.gradient for value in values])
                    gap = inner_products(grid, slopes, theta, actual) - inner_products(grid, slopes, theta, frozen)
                    maps.append(-method.lr * gap / np.array([value.value for value in values]))
                values_seen.append([value.value for value in values])
        except NotFinite as error:
            raise Diverged(f"after {taken} steps {error}", taken) from error
        if past is not None:
            past.keep(taken, gradient, theta)
        shadow.update(gradient, theta)
        for p, part in zip(loss.parameters, loss.slices.values(), strict=True):
            p.grad = gradient[part].view_as(p)
        optimizer.step()
        on_step(taken + 1)
    names = tuple(measure if isinstance(measure, str) else measure.__name__ for measure in measures)
    return Replay(
        names,
        tuple(wanted),
        np.array(values_seen),
        Samples(np.array(live), "series"),
        {name: Samples(np.array(rows), "series") for name, rows in others.items()},
        Samples(np.array(maps), "series") if grid else None,
        grid,
        spent,
    )


def _changes(values: Sequence[Value], lr: float, effect: Tensor) -> list[float]:
    return [value.change(effect, lr) for value in values]


def _exact(pool: Pool, order: Order) -> Memory:
    """The memory that the same batches give at the present theta."""
    n = len(order) - 1

    def memory(v: Momentum, index: Index = slice(None)) -> Tensor:
        weights = shares(v, order, [n], len(pool))[0]
        used = np.flatnonzero(weights)
        images = torch.stack([v.g(pool.gradients[i, index], pool.theta[index]) for i in used]) if len(used) else None
        if images is None:
            return torch.zeros_like(pool.theta[index])
        return torch.from_numpy(weights[used]).to(images) @ images

    return memory


class _Past:
    """Gradients of the steps that lie a drawn lag before a stop."""

    def __init__(self, variables: Sequence[Momentum], order: Order, stops: Sequence[int], lags: int, seed: int):
        self.variables, self.lags = tuple(variables), lags
        rng = np.random.default_rng(seed)
        self.drawn: dict[int, list[tuple[int, float]]] = {}
        for n in stops:
            p = lag_probabilities(self.variables, n, False)
            self.drawn[n] = [(int(k) + 1, float(p[k])) for k in rng.choice(len(p), size=lags, p=p)]
        self._wanted = {n - k for n, pairs in self.drawn.items() for k, _ in pairs}
        self._last = {n - k: n for n, pairs in sorted(self.drawn.items()) for k, _ in pairs}
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, step: int, gradient: Tensor, theta: Tensor) -> None:
        """Keep what a later stop will ask for, and drop what no stop will ask for any more."""
        if step in self._wanted:
            self._kept[step] = gradient, theta
        for old in [s for s in self._kept if self._last[s] <= step]:
            del self._kept[old]

    def frozen(self, loss: Loss, theta: Tensor, shadow: Shadow, gradient: Tensor, order: Order) -> tuple[Memory, int]:
        """The frozen memory, estimated; and the gradients spent."""
        n = len(order) - 1
        seen: dict[int, Tensor] = {}
        terms = []
        for k, p in self.drawn[n]:
            i = int(order[n - k])
            if i not in seen:
                seen[i] = loss.gradient(theta, i)
            terms.append((k, p, *self._kept[n - k], seen[i]))

        def memory(v: Momentum, index: Index = slice(None)) -> Tensor:
            m = shadow.memory(v, gradient, theta, index).clone()
            for k, p, then, there, now in terms:
                if weight := weight_at(v, n, k) / (p * self.lags):
                    m -= weight * (v.g(then[index], there[index]) - v.g(now[index], theta[index]))
            return m

        return memory, len(seen)
