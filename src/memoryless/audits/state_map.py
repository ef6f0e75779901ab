"""A map over betas from a live optimizer's own buffers (`corrections.recalled`), and how far each of its cells is known.

Two curves through the same facts tell different memories, so different effects E and E_second of a pair. What they differ by is
what the buffers do not know:

    error    = SCALE |E - E_second| / |E|,    on a sample of the coordinates
    interval = error sqrt(change^2 + (ACROSS lr |grad S| |E| / S)^2),    half the width of one of 90 %

A change is of the size of `change` where E lies along grad S, and where it does not an error of E counts by what reaches it.
SCALE and ACROSS come from 5,390 cells of small networks under Adam and AdamW (MLPs, convolutional and residual networks, an
LSTM, a GPT; lr 3e-4 and 1e-3, steps 20 to 1,000): SCALE is the median of the true error over the difference in 3,850 of them,
ACROSS makes 90 % of the intervals of the others cover. Held out both are measured by benchmarks/state_map.py.
Where the error is `UNKNOWN` or more the cell is left blank.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from memoryless.audits.beta_map import BetaMap, Guess, checked
from memoryless.audits.grid import Grid, from_memory, inner_products, share_update
from memoryless.corrections import history
from memoryless.corrections.correction import require_step
from memoryless.corrections.history import Memory, update_of
from memoryless.corrections.recalled import Recalled
from memoryless.errors import BadInput
from memoryless.flat import norm
from memoryless.loss.measures import Value
from memoryless.loss.point import Point
from memoryless.methods import kernel, live_optimizer
from memoryless.methods.buffers import states_of
from memoryless.methods.catalogue import Adam, HeavyBall, Lion, Signum
from memoryless.methods.method import AnyOptimizer, Groups, Index, Method, Momentum, Part, State, variables_of

SCALE = 2.4
ACROSS = 0.4
UNKNOWN = 0.5
MOVED = 0.5
"""Of an update that jumps: by what share of its effect a memory may be wrong besides."""
SAMPLE = 2**13
"""Coordinates of which errors are told."""


def mapped_method(method: AnyOptimizer) -> AnyOptimizer:
    """The method whose betas a map is over: the optimizer itself, or Adam at its lr where that has no pair of betas.

    Args:
        method: of the live optimizer.
    """
    return method if all("betas" in part.method.hyper for part in method.parts) else on_its_parts(method, Adam)


def on_its_parts(method: AnyOptimizer, make: Callable[..., Method]) -> AnyOptimizer:
    """Another method at the learning rates of a live one, on the coordinates that it moves.

    Args:
        method: of the live optimizer.
        make: from the catalogue; it gets the decay and the sign that are in the gradients which the live one averages.
    """

    def like(part: Part) -> Method:
        hyper, takes = part.method.hyper, inspect.signature(make).parameters
        averaged = {"maximize": hyper.get("maximize", False)}
        if any(v.degree == 1 and v.uses_theta for v in part.method.variables):
            averaged["weight_decay"] = hyper["weight_decay"]
        return make(part.method.lr, **{name: value for name, value in averaged.items() if name in takes})

    if _whole(method):
        return like(method.parts[0])
    return Groups(tuple(Part(like(part), part.index, part.scale) for part in method.parts), method.lr)


def _whole(method: AnyOptimizer) -> bool:
    """Whether it is one method on all of theta."""
    return len(method.parts) == 1 and isinstance(method.parts[0].index, slice) and method.parts[0].index == slice(None)


class Buffers:
    """A live optimizer's memory in momentum form, at one theta; the optimizer is left alone.

    Args:
        optimizer: whose buffers are averages of g and g^2.
        point: of the loss, where the optimizer is.
        step: n, or None for what it counts, or the steady state where it counts none.
        full_batch: whether every past step took the mean gradient of all batches.

    Attributes:
        method: the optimizer.
        step: n, or None for the steady state.
        notes: what a reader must know besides.

    Raises:
        NotRecognised: its buffers are something else.
        BadInput: it keeps no memory, has taken no step, or single batches left their noise in it.
    """

    def __init__(self, optimizer: Optimizer, point: Point, step: int | None = None, *, full_batch: bool = False):
        require_step(step)
        name, batches = type(optimizer).__name__, len(point.loss)
        if batches > 1 and not full_batch:
            raise BadInput(
                f"the loss has {batches} batches, and the noise of single ones in the buffers cannot be told from memory: use "
                "audit_batch_sizes (memoryless betas), which measures; or, if every past step took their mean gradient, say so "
                "by full_batch=True (--full-batch)"
            )
        self.method, _ = states_of(optimizer, point.loss.layout)
        self._optimizer = optimizer
        self.step = live_optimizer.step_of(optimizer) if step is None else step
        self.point = point
        if not any(v.has_memory for v in variables_of(self.method)):
            raise BadInput(f"{self.method} keeps no memory that could tell of others")
        if self.step == 0:
            raise BadInput(f"{name} has taken no step yet: there is nothing in its buffers")
        uncounted = f"{name} does not count its steps: its steady state is assumed, pass step=n for exact transients"
        self.notes = (uncounted,) if self.step is None else ()

    @property
    def states(self) -> tuple[State, ...]:
        """The memory of each of the method's parts; read anew, not held."""
        return states_of(self._optimizer, self.point.loss.layout)[1]

    def recalled(self, readers: Sequence[AnyOptimizer]) -> Recalled:
        """The memory of other methods, as its buffers tell.

        Args:
            readers: whose memories will be asked for.
        """
        return Recalled(self.method, self.states, self.point.gradient, self.point.theta, self.step, readers)

    def errors(
        self, methods: Sequence[AnyOptimizer], known: Recalled, grid: Grid | None = None
    ) -> Iterator[tuple[float, float]]:
        """How far the effect of each method is known, |E - E_second| / |E| times SCALE, and |E|.

        Args:
            methods: in momentum form.
            known: what was recalled for them.
            grid: whose pairs come before the methods, row by row.

        Yields:
            Both for each method; infinite and 0 where the buffers tell nothing of its memory.
        """
        d = self.point.theta.numel()
        every = [*([grid.oldest, *grid.spanning()] if grid else []), *methods]
        elementwise = all(part.method.elementwise for m in every for part in m.parts)
        sample = torch.arange(d)
        if elementwise and d > SAMPLE:
            sample = torch.randperm(d, generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values
        sample = sample.to(self.point.theta.device)
        gradient, theta = self.point.gradient[sample], self.point.theta[sample]
        own, states = _sampled(self.method, self.states, sample, d)
        first, second = (_kept(Recalled(own, states, gradient, theta, self.step, every, second=each)) for each in (False, True))
        still = _still(gradient, theta, self.step)

        def told(E: Tensor, *others: Tensor) -> tuple[float, float]:
            size, off = float(norm(E)), max(float(norm(E - other)) for other in others)
            return (off / size if size else np.inf if off else 0.0), size * (d / len(sample)) ** 0.5

        # An update that jumps (a sign) does not show how near a jump is: there the memories themselves are moved, both ways, by
        # SCALE times what the curves differ by and MOVED times what memory is in all, unless both know it exactly.
        def moved(sign: float) -> Memory:
            def memory(v: Momentum, index: Index) -> Tensor:
                m, other, present = first(v, index), second(v, index), still(v, index)
                if norm(other - m) <= 1e-6 * norm(m - present):
                    return m
                return m + sign * (SCALE * (other - m).abs() + MOVED * (m - present).abs()) * (m - present).sign()

            return memory

        def readings(jumps: bool) -> tuple[Memory, ...]:
            return (moved(1.0), moved(-1.0)) if jumps else (second,)

        def differ(E: Tensor, others: Sequence[Tensor], jumps: bool) -> list[Tensor]:
            return list(others) if jumps else [E + SCALE * (other - E) for other in others]

        if grid is not None:
            rows, columns = grid.shape
            knows = [[known.knows_all(grid.cell(i, j)) for j in range(columns)] for i in range(rows)]
            there = Grid(_sampled(grid.method, (), sample, d)[0], grid.betas_1, grid.betas_2)
            for i in range(rows):
                if not any(knows[i]):
                    yield from [(float("inf"), 0.0)] * columns
                    continue
                jumps = _jumps(grid.oldest)
                F, E, *others = (_row(there, i, theta, memory) for memory in (still, first, *readings(jumps)))
                others = differ(E, others, jumps)
                yield from (
                    told(E[j] - F[j], *(other[j] - F[j] for other in others)) if knows[i][j] else (float("inf"), 0.0)
                    for j in range(columns)
                )
        for method in methods:
            if not known.knows_all(method):
                yield float("inf"), 0.0
                continue
            there, _ = _sampled(method, (), sample, d)
            jumps = _jumps(method)
            F, E, *others = (update_of(there, theta, memory) for memory in (still, first, *readings(jumps)))
            yield told(E - F, *(other - F for other in differ(E, others, jumps)))


def _jumps(method: AnyOptimizer) -> bool:
    """Whether its update is made of jumps, as a sign is: the same for slightly larger averages of g, tried at random."""
    generator = torch.Generator().manual_seed(0)
    for part in method.parts:
        theta, *m = torch.randn(1 + len(part.method.variables), 64, generator=generator, dtype=torch.float64)
        more = [1.001 * x for x in m]
        if all(v.degree == 1 for v in part.method.variables) and torch.equal(
            part.method.readout(m, theta), part.method.readout(more, theta)
        ):
            return True
    return False


def _row(grid: Grid, i: int, theta: Tensor, memory: Memory) -> Tensor:
    """The updates of a row of pairs, shape (betas_2, d)."""
    if not all(part.method.elementwise for part in grid.oldest.parts):
        return torch.stack([update_of(grid.cell(i, j), theta, memory) for j in range(grid.shape[1])])
    found = theta.new_zeros((grid.shape[1], theta.numel()))
    for p, part in enumerate(grid.oldest.parts):
        m = []
        for l in range(len(part.method.variables)):
            variables, number = grid.variables(p, l)
            m.append(torch.stack([memory(variables[k], part.index) for k in number[min(i, len(number) - 1)]]))
        found[:, part.index] = part.scale * part.method.readout(m, theta[part.index])
    return found


def state_map(buffers: Buffers, grid: Grid, values: Sequence[Value], check: bool) -> BetaMap:
    """The map over a grid, with what is known of Lion, Signum and heavy ball beside it.

    Args:
        buffers: of a live optimizer.
        grid: the pairs.
        values: the measures there.
        check: whether to say what happens at the own pair and the corners that are known.
    """
    point, lr, step = buffers.point, grid.method.lr, buffers.step
    cells = [grid.cell(i, j) for i in range(grid.shape[0]) for j in range(grid.shape[1])]
    others = [on_its_parts(buffers.method, make) for make in (Lion, Signum, HeavyBall)]
    known = buffers.recalled([*cells, *others])
    found = list(buffers.errors(others, known, grid))
    error, size = (np.array(each[: len(cells)]).reshape(grid.shape) for each in zip(*found, strict=True))
    changes = _changes(grid, known, point, values, step)
    blank = error >= UNKNOWN
    across = {v.name: ACROSS * lr * float(norm(v.gradient)) * size / (abs(v.value) or 1) for v in values}
    map_ = BetaMap(
        grid.betas_1,
        grid.betas_2,
        "state",
        {name: np.where(blank, np.nan, change) for name, change in changes.items()},
        error=error,
        intervals={name: np.where(blank, np.nan, error * np.hypot(changes[name], across[name])) for name in changes},
        notes=buffers.notes,
        others=tuple(_guess(each, *found[len(cells) + i], known, point, values, step) for i, each in enumerate(others)),
    )
    if not check:
        return map_

    def effect(method: AnyOptimizer) -> tuple[Tensor, Tensor] | None:
        told = error.flat[cells.index(method)] if method in cells else next(buffers.errors([method], known))[0]
        return None if told >= UNKNOWN else _effect(method, known, point, step)

    return checked(map_, grid, values, point, effect)


def _changes(grid: Grid, known: Recalled, point: Point, values: Sequence[Value], step: int | None) -> dict[str, np.ndarray]:
    """Slopes at every pair; 0 in place of a memory that the buffers tell nothing of."""
    slopes, theta = torch.stack([value.gradient for value in values]), point.theta
    if _whole(grid.oldest) and share_update(grid, point.gradient, theta, step):
        # Sums over theta do not ask for its order: that of the curves makes matrix products of the memories.
        told, inner = known.by_curve([v for v in grid.every() if known.knows(v)]), np.zeros((*grid.shape, len(slopes)))
        for piece in grid.oldest.parts[0].pieces(theta):
            assert isinstance(piece.index, slice)
            order, memory = told.at(piece.index)
            here = theta[order]
            F = history.frozen(grid.oldest, point.gradient[order], here, step)
            inner += from_memory(grid, F, slopes[:, order], here, _or_zero(memory, known, here))
    else:
        inner = inner_products(grid, slopes, theta, _or_zero(known.memory, known, theta)) - inner_products(
            grid, slopes, theta, _still(point.gradient, theta, step)
        )
    return {v.name: -grid.method.lr * inner[..., k] / (abs(v.value) or np.inf) for k, v in enumerate(values)}


def _or_zero(memory: Memory, known: Recalled, theta: Tensor) -> Memory:
    return lambda v, index: memory(v, index) if known.knows(v) else torch.zeros_like(theta[index])


def _effect(method: AnyOptimizer, known: Recalled, point: Point, step: int | None) -> tuple[Tensor, Tensor]:
    F = history.frozen(method, point.gradient, point.theta, step)
    return F, update_of(method, point.theta, known.memory) - F


def _guess(
    method: AnyOptimizer, error: float, size: float, known: Recalled, point: Point, values: Sequence[Value], step: int | None
) -> Guess:
    if error >= UNKNOWN:
        return Guess(method.describe(("lr",)), error, None, None)
    E = _effect(method, known, point, step)[1]
    slopes = {v.name: v.slope(E, method.lr) for v in values}
    across = {v.name: ACROSS * method.lr * float(norm(v.gradient)) * size / (abs(v.value) or 1) for v in values}
    return Guess(method.describe(("lr",)), error, slopes, {k: error * float(np.hypot(s, across[k])) for k, s in slopes.items()})


def _kept(known: Recalled) -> Memory:
    """Each variable's memory, found once; 0 in place of one that is not known."""
    found: dict[Momentum, Tensor] = {}

    def memory(v: Momentum, index: Index) -> Tensor:
        if v not in found:
            found[v] = known.memory(v) if known.knows(v) else torch.zeros_like(known.theta)
        return found[v][index]

    return memory


def _still(gradient: Tensor, theta: Tensor, step: int | None) -> Memory:
    """The memory of a history that stood still."""
    return lambda v, index: kernel.total(v, step) * v.g(gradient[index], theta[index])


def _sampled(method: AnyOptimizer, states: Sequence[State], sample: Tensor, d: int) -> tuple[AnyOptimizer, list[State]]:
    """A method and its memory on some of the coordinates."""
    if _whole(method):
        return method, [State(state.n, tuple(x[sample] for x in state.sums)) for state in states]
    parts, kept = [], []
    for i, part in enumerate(method.parts):
        where = torch.full((d,), -1, device=sample.device)
        where[part.index] = torch.arange(len(where[part.index]), device=sample.device)
        within = where[sample]
        parts.append(Part(part.method, torch.nonzero(within >= 0)[:, 0], part.scale))
        if states:
            kept.append(State(states[i].n, tuple(x[within[within >= 0]] for x in states[i].sums)))
    return Groups(tuple(parts), method.lr), kept
