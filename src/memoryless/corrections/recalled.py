"""What an optimizer's own buffers tell of the memories that other betas would have kept.

Averages of g and g^2 with weights w1[k], w2[k] over the ages k are two facts about the gradients G(k) that each coordinate met
on its way, beside the present one, G(0) = g. Written m, v (weights of sum 1), y = m - g, the memory of any other weights is
read off a curve through all three (`corrections.curves`),

    G(k) = g + s tau(k),    tau(k) = (e^(kappa k) - 1) / kappa,    s from m, kappa from v, each coordinate's own

kappa -> 0 is a gradient that drifts, exact to first order in lr; kappa > 0 one that was larger once, as in any training that
gets somewhere. Where no kappa does, v being smaller than for any such curve with this m, the gradient went to and fro: then G
is a fractional Brownian motion pinned at g (Mandelbrot and Van Ness 1968, https://doi.org/10.1137/1010093), H = 0.85, and the
memories are its conditional means, scaled so that v comes out. With m alone G drifts, with v alone G^2 is such a motion. No v'
is smaller than what is known allows: v' >= w'[0] g^2, and by Cauchy and Schwarz m^2 <= v' sum_k w1[k]^2 / w'[k].

At the live betas m and v come back exactly. How far it goes elsewhere, a second curve tells that knows the same, k e^(kappa k)
(`error` in `audits.state_map`).
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memoryless.corrections.curves import STILL, Ages, Curves, Facts, exponential, steeper
from memoryless.corrections.history import Memory
from memoryless.errors import BadInput
from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer, Index, Momentum, Part, State, variables_of


class _Table(NamedTuple):
    """Of one variable: A, B, C of each part's curves, what each gains up to the next, the factors of g^2 and m^2 below v'."""

    at: Tensor
    gain: Tensor
    floor: Tensor


class Recalled:
    """The memory of any variable of the same gradients, from a live optimizer's.

    Args:
        method: in momentum form.
        states: the memory of each of its parts (`methods.buffers`).
        gradient: the present one, shape (d,), not fed.
        theta: shape (d,).
        step: n, or None for the steady state.
        readers: other methods whose memories will be asked for.
        second: take the second curve that knows the same, to tell how far the first is to be believed.

    Raises:
        BadInput: the method keeps no average of g or of g^2.

    Example:
        >>> import memoryless as ml
        >>> loss = ml.Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> method, theta = ml.Adam(lr=1e-3), loss.theta
        >>> state = method.init(theta)
        >>> for _ in range(20):
        ...     state, F = method.update(state, theta, theta)
        ...     theta = theta - method.lr * F
        >>> found = Recalled(method, [state], loss.gradient(theta), theta, 20, [ml.Adam(betas=(0.5, 0.9))])
        >>> found.memory(ml.Adam(betas=(0.5, 0.9)).variables[0])  # of gradients that fell by 0.001 a step
        tensor([ 0.9810, -1.9810], dtype=torch.float64)
    """

    def __init__(
        self,
        method: AnyOptimizer,
        states: Sequence[State],
        gradient: Tensor,
        theta: Tensor,
        step: int | None,
        readers: Sequence[AnyOptimizer] = (),
        *,
        second: bool = False,
    ):
        self.gradient, self.theta, self.step = gradient, theta, step
        self._ages = Ages(step, [v for m in (method, *readers) for v in variables_of(m)])
        self._parts: list[tuple[_Known, Curves, int]] = []
        self._G, (self._m, self._share, self._rest) = gradient, (torch.zeros_like(theta) for _ in range(3))
        self._row = torch.zeros(theta.shape, dtype=torch.int32, device=theta.device)
        self._tables: dict[Momentum, _Table] = {}
        rows = 0
        for part, state in zip(method.parts, states, strict=True):
            known = _known(part, state, step)
            curves = Curves(self._ages, known.facts(self._ages), steeper if second else exponential, second=second)
            self._place(part, known, curves, rows)
            self._parts.append((known.without_past(), curves, rows))
            rows += curves.rows

    def _place(self, part: Part, known: "_Known", curves: Curves, rows: int) -> None:
        """G, m, and the curve of each coordinate of a part."""
        start = 0
        for piece in part.pieces(self.theta):
            g, x = self.gradient[piece.index], self.theta[piece.index]
            own = slice(start, start := start + len(g))
            G, m, v = known.averages(own, g, x)
            if self._G is self.gradient and not torch.equal(G, g):
                self._G = self.gradient.clone()
            if self._G is not self.gradient:
                self._G[piece.index] = G
            row, share, rest = curves.place(G, m, v)
            self._row[piece.index] = row + rows
            for whole, each in ((self._m, m), (self._share, share), (self._rest, rest)):
                whole[piece.index] = each

    def knows(self, variable: Momentum) -> bool:
        """Whether such a memory can be told: one of the gradient that was averaged, or of its square; of g not from g^2 alone.

        Args:
            variable: of any method.
        """
        return not variable.has_memory or all(known.power_of(variable) for known, _, _ in self._parts)

    def knows_all(self, method: AnyOptimizer) -> bool:
        """Whether it knows every memory of a method.

        Args:
            method: in momentum form.
        """
        return all(self.knows(v) for v in variables_of(method))

    def memory(self, variable: Momentum, index: Index = slice(None)) -> Tensor:
        """m_l after a step with the present gradient.

        Args:
            variable: one that it knows.
            index: coordinates wanted.

        Returns:
            Shape (d,), or of the coordinates.

        Raises:
            BadInput: it does not know it.
        """
        gradient, theta = self.gradient[index], self.theta[index]
        if not variable.has_memory:
            return variable.weight(np.inf if self.step is None else self.step) * variable.g(gradient, theta)
        table, row, share, G = self._table(variable), self._row[index], self._share[index], self._G[index]
        y, c = self._m[index] - G, kernel.total(variable, self.step)
        A = torch.addcmul(table.at[0][row], share, table.gain[0][row])
        if self.power_of(variable) == 1:
            return c * torch.addcmul(G, y, A)
        B, C = (torch.addcmul(table.at[k][row], share, table.gain[k][row]) for k in (1, 2))
        least = torch.maximum(table.floor[0][row] * G**2, table.floor[1][row] * self._m[index] ** 2)
        return c * torch.maximum(G**2 + y * (2 * G * A + y * B) + self._rest[index] * C, least)

    def power_of(self, variable: Momentum) -> int:
        """1 for an average of G, 2 for one of G^2.

        Args:
            variable: one that it knows.
        """
        return self._parts[0][0].power_of(variable)

    def by_curve(self, variables: Sequence[Momentum]) -> "ByCurve":
        """The memories of many variables, those of a curve at once.

        Args:
            variables: that it knows.
        """
        return ByCurve(self, variables)

    def _table(self, variable: Momentum) -> _Table:
        if variable not in self._tables:
            if not self.knows(variable):
                raise BadInput(
                    "these buffers hold no average that such a memory could be told from: it averages another function of "
                    f"gradient and theta, or g where g^2 alone is kept (beta={variable.beta:g})"
                )
            w = self._ages.weights(variable)
            all_curves = [curves for _, curves, _ in self._parts]
            tables = [curves.table(w) for curves in all_curves]
            floors = [np.tile(_floor(curves.w1, w), (curves.rows, 1)) for curves in all_curves]
            at, gain, floor = (
                torch.from_numpy(np.concatenate(x)).to(self.theta).T.contiguous()
                for x in (tables, [_gain(table) for table in tables], floors)
            )
            self._tables[variable] = _Table(at, gain, floor)
        return self._tables[variable]


def _gain(table: np.ndarray) -> np.ndarray:
    """From each curve to the next; none from the last of the family to the motion, nor from that."""
    gain = np.zeros_like(table)
    gain[:-2] = np.diff(table[:-1], axis=0)
    return gain


def _floor(w1: np.ndarray | None, w: np.ndarray) -> tuple[float, float]:
    """v' >= w[0] g^2, as no term of it is negative, and m^2 <= v' sum_k w1[k]^2 / w[k]."""
    if w1 is None:
        return float(w[0]), 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.nan_to_num(w1**2 / w, nan=0.0, posinf=np.inf).sum()
    return float(w[0]), 1 / float(bound)


class ByCurve:
    """The memories of many variables at some coordinates, put in the order of their curves: matrix products for each of these.

        m' = g + (y, y share) (A, gain of A)'        v' = g^2 + (2 g y, .. share, y^2, .. share, rest, .. share) (A, .., C)'

    Args:
        known: what tells them.
        variables: that it knows.
    """

    def __init__(self, known: Recalled, variables: Sequence[Momentum]):
        self._known, step, like = known, known.step, known._share
        self._of = {
            power: [v for v in dict.fromkeys(variables) if v.has_memory and known.power_of(v) == power] for power in (1, 2)
        }
        self._place = {v: (power, i) for power, of in self._of.items() for i, v in enumerate(of)}
        weights = {power: [known._table(v) for v in of] for power, of in self._of.items()}
        # Of each curve, shape (curves, variables, columns and their gains).
        self._tables = {
            power: torch.stack([torch.stack([x[k] for k in columns for x in (t.at, t.gain)], -1) for t in weights[power]], 1)
            for power, columns in ((1, (0,)), (2, (0, 1, 2)))
            if weights[power]
        }
        self._floors = torch.stack([t.floor for t in weights[2]], 1) if weights[2] else like.new_zeros((2, 0, 1))
        self._totals = {power: like.new_tensor([kernel.total(v, step) for v in of])[:, None] for power, of in self._of.items()}

    def at(self, index: slice) -> tuple[Tensor, Memory]:
        """Coordinates in the order of their curves, shape (n,), and (variable, slice of that order) -> m_l there.

        Args:
            index: so many coordinates as suit the cache.
        """
        known = self._known
        row, order = known._row[index].sort(stable=True)
        order += index.start
        curves, sizes = torch.unique_consecutive(row, return_counts=True)
        ends = sizes.cumsum(0)
        pieces = list(zip(curves.tolist(), (ends - sizes).tolist(), ends.tolist(), strict=True))
        kept: dict[tuple[int, int], dict[int, Tensor]] = {}

        def memory(variable: Momentum, index: Index) -> Tensor:
            assert isinstance(index, slice)
            if not variable.has_memory:
                here = order[index]
                n = np.inf if known.step is None else known.step
                return variable.weight(n) * variable.g(known.gradient[here], known.theta[here])
            if (index.start, index.stop) not in kept:
                kept.clear()
                kept[index.start, index.stop] = self._between(pieces, order, index.start, index.stop)
            power, i = self._place[variable]
            return kept[index.start, index.stop][power][i]

        return order, memory

    def _between(self, pieces: Sequence[tuple[int, int, int]], order: Tensor, start: int, stop: int) -> dict[int, Tensor]:
        """By power the memories of all variables, shape (variables, stop - start)."""
        here = order[start:stop]
        g, m, share, rest = (x[here] for x in (self._known._G, self._known._m, self._known._share, self._known._rest))
        y, found = m - g, {power: g.new_empty((len(of), len(g))) for power, of in self._of.items()}
        squares, twice, least = y * y, 2 * g * y, torch.stack([g * g, m * m])
        basis = {
            1: torch.stack([y, y * share]),
            2: torch.stack([twice, twice * share, squares, squares * share, rest, rest * share]),
        }
        offset = {1: g, 2: least[0]}
        for curve, first, end in pieces:
            own = slice(max(first, start) - start, min(end, stop) - start)
            if own.start >= own.stop:
                continue
            for power, tables in self._tables.items():
                rows = offset[power][own].expand(len(tables[curve]), -1)
                found[power][:, own] = torch.addmm(rows, tables[curve], basis[power][:, own])
            if self._of[2]:
                v, floors = found[2][:, own], self._floors[:, :, curve, None]
                torch.maximum(v, floors[0] * least[0, own], out=v)
                torch.maximum(v, floors[1] * least[1, own], out=v)
        return {power: each.mul_(self._totals[power]) for power, each in found.items()}


class _Mean(NamedTuple):
    """An average that a method keeps: past sums, shape (coordinates,), and what they and the present count for."""

    variable: Momentum
    past: Tensor
    fed: float
    scale: float

    def at(self, own: slice, g: Tensor, x: Tensor) -> Tensor:
        """After a step with the present gradient, of weights of sum 1."""
        if self.variable.lag:
            return self.scale * self.past[own]
        return self.scale * (self.variable.beta * self.past[own] + self.fed * self.variable.g(g, x))


class _Known(NamedTuple):
    """The averages that a method keeps in one part: of G, of G^2, and what G is."""

    process: Momentum
    first: _Mean | None
    second: _Mean | None

    def facts(self, ages: Ages) -> Facts:
        """Their weights."""
        w1, w2 = (None if mean is None else ages.weights(mean.variable) for mean in (self.first, self.second))
        return Facts(w1, w2, np.inf if self.second is None else STILL / (1 - self.second.variable.beta))

    def averages(self, own: slice, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """G, m and v of some of the part's coordinates; G for those that are not known."""
        G = self.process.g(g, x)
        m, v = (G if mean is None else mean.at(own, g, x) for mean in (self.first, self.second))
        return G, m, v

    def without_past(self) -> "_Known":
        """The same without the sums, which are not asked for again."""
        first, second = (None if x is None else x._replace(past=x.past[:0].clone()) for x in (self.first, self.second))
        return self._replace(first=first, second=second)

    def power_of(self, variable: Momentum) -> int:
        """1 if the variable averages G and that can be told, 2 if G^2, else 0."""
        power = power_of(variable, self.process)
        return 0 if power == 1 and self.first is None else power


def _known(part: Part, state: State, step: int | None) -> _Known:
    method = part.method
    process = next((v for v in method.variables if v.degree == 1), None)
    means: dict[int, _Mean] = {}
    for variable, past in zip(method.variables, state.sums, strict=True):
        power = power_of(variable, process) if process and variable.has_memory else 0
        c = kernel.total(variable, step)
        if power and c and power not in means:
            n = np.inf if step is None else step
            means[power] = _Mean(variable, past, variable.first if step == 0 else 1.0, float(variable.weight(n)) / c)
    if process is None or not means:
        raise BadInput(f"{method} keeps no average of the gradient or of its square, by which other memories could be told")
    return _Known(process, means.get(1), means.get(2))


@cache
def power_of(variable: Momentum, process: Momentum) -> int:
    """1 where the variable's g_l is the process's, 2 where it is its square, else 0; tried on random vectors.

    Args:
        variable: any.
        process: whose g is G.
    """
    generator = torch.Generator().manual_seed(0)
    gradient, theta = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    try:
        G, found = process.g(gradient, theta), variable.g(gradient, theta)
    except (RuntimeError, ValueError, IndexError):
        return 0
    return 1 if torch.allclose(found, G, rtol=1e-12) else 2 if torch.allclose(found, G**2, rtol=1e-12) else 0
