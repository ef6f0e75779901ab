"""What the past steps' batches would leave at the present theta, carried along from step to step.

A memory sum_k beta^k g_l[n-k] holds gradients of old points. Each step moves it to the present point by the change of one
gradient, same batch and random numbers, in the form of STORM (https://arxiv.org/abs/1905.10018):

    d = g_l(g_b(theta[n])) - g_l(g_b(theta[n-1])),      M <- beta (M + S d) + g_l,      S <- beta S + 1,      m_F = c M/S

with S d for all of the past, whose weights sum to S before this step, and c the weight of all ages in the optimizer's own m_l:
in full batch m_F = c g_l exactly. The batch of each d is a fresh one, theta[n] - theta[n-1] does not know it, so that m_F is,
to second order in lr and in the mean, that of the mean loss. The twin of the same batches has their effect on themselves
besides: since step n - k batch b has pushed theta by each variable m_u, by the part 1 - beta_u^k of h dF/dm_u (g_u - mbar_u),

    m_F <- m_F - c/S sum_u sum_k beta^k (1 - beta_u^k) w_u[n-k],      w_u = g_b(theta + h dF/dm_u (g_u - mbar_u)) - g_b(theta)

and for a square 2 g_b w_u: sums of beta^k and of (beta beta_u)^k. Phi of them is as good where it is linear (heavy ball); where
not, the covariance of the noise in m_F and v_F, which another path has otherwise, leaves a term of first order in lr, measured
to be 1 % of memory's effect. What is carried too far errs: each step adds the noise of
a d, which over 1/(1 - b') steps of size lr grows with lr/(1 - b'). So a square, which is divided by, has a shorter b'.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from memoryless.flat import block, flat, joined, slices_of
from memoryless.live.monitoring.frozen import nonnegative
from memoryless.live.monitoring.past_weights import Kept
from memoryless.methods import kernel
from memoryless.methods.method import Method, Momentum, one

FLOOR = 0.02
"""Of the optimizer's own second moment, below which a carried one is not trusted."""
REACH = 50.0
"""(1 - b')/lr: a second moment is carried over at most 1/(50 lr) steps, .98 at lr 4e-4 and .95 at 1e-3, where it was tried."""
SHORTEST, LONGEST = 0.2, 0.02
"""Bounds of 1 - b'."""


def carried(beta: float, lr: float) -> float:
    """b' of a second moment: 1 - b' = REACH lr, between LONGEST and SHORTEST; never beyond its own beta.

    Args:
        beta: its own.
        lr: step size.

    Example:
        >>> carried(0.999, 1e-3), carried(0.999, 1e-4), carried(0.9, 1e-4)
        (0.95, 0.98, 0.9)
    """
    return min(beta, 1 - min(max(REACH * lr, LONGEST), SHORTEST))


@dataclass
class Now:
    """One param group at a step.

    Attributes:
        method: with the hyperparameters of this step.
        kept: where the optimizer keeps each variable.
        group: torch's.
        lr: step size.
        second: (b', floor) of second moments; None for `carried` and FLOOR.
    """

    method: Method
    kept: tuple[Kept | None, ...]
    group: dict[str, Any]
    lr: float
    second: tuple[float, float] | None = None

    def rates(self, l: int) -> tuple[float, float]:
        """decay and unit of variable l."""
        own = self.kept[l]
        return (0.0, 1.0) if own is None else own.rates(self.group)

    def decay(self, l: int) -> float:
        """beta or b'."""
        beta = self.rates(l)[0]
        if not nonnegative(self.method.variables[l]):
            return beta
        return carried(beta, self.lr) if self.second is None else min(beta, self.second[0])

    def still(self, c: Sequence[float], theta: Tensor, g: Tensor) -> list[Tensor]:
        """m_l = c_l g_l of some coordinates, with every past gradient the present one.

        Args:
            c: weight of all ages in each variable.
            theta: where they are.
            g: their gradient.
        """
        return [each * v.g(g, theta) for each, v in zip(c, self.method.variables, strict=True)]

    def step(self, m: Sequence[Tensor], theta: Tensor) -> Tensor:
        """lr phi(m, theta), what is subtracted.

        Args:
            m: of each variable.
            theta: where they are.
        """
        return self.lr * self.method.readout(m, theta)

    @property
    def floor(self) -> float:
        """Of second moments."""
        return FLOOR if self.second is None else self.second[1]


@dataclass
class Memory:
    """Tensors of one param group that have the same past.

    Attributes:
        tensors: parameters.
        group: number of their param group.
        n: steps behind them.
        mass: what the optimizer's buffer of each variable would hold of a constant g_l = 1, before this step.
        S: sum of the weights in each carried memory.
        M: carried memories, each shape (coordinates,); empty where nothing is carried.
        own: for each, by each variable that pushes, the two sums of the batches' effect on themselves.
        before: theta[n-1] of the tensors, shape (coordinates,), during a step theta[n]; None before the first.
        at: number of the dial's step at which that was.
    """

    tensors: list[Tensor]
    group: int
    n: int = 0
    mass: list[float] = field(default_factory=list)
    S: list[float] = field(default_factory=list)
    M: list[Tensor] = field(default_factory=list)
    own: list[list[Tensor]] = field(default_factory=list)
    before: Tensor | None = None
    at: int = -1

    @property
    def gradient(self) -> Tensor:
        """Of the tensors, which all have one, shape (coordinates,)."""
        return flat(p.grad for p in self.tensors if p.grad is not None)

    def chunks(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Coordinates and tensors, several small ones at a time: intermediate results take no more memory than that."""
        size, first, start = block(self.tensors[0].device), 0, 0
        parts = slices_of([p.numel() for p in self.tensors])
        for i, part in enumerate(parts):
            if i + 1 == len(parts) or parts[i + 1].stop - start > size:
                yield slice(start, part.stop), self.tensors[first : i + 1]
                first, start = i + 1, part.stop

    def split(self) -> "tuple[Memory, Memory | None]":
        """The tensors that have a gradient, and the others, which the optimizer skips."""
        stepping = [p.grad is not None for p in self.tensors]
        if all(stepping):
            return self, None
        return self._of(stepping), self._of([not each for each in stepping])

    def _of(self, chosen: Sequence[bool]) -> "Memory":
        parts = [part for part, own in zip(slices_of([p.numel() for p in self.tensors]), chosen, strict=True) if own]

        def cut(x: Tensor) -> Tensor:
            return torch.cat([x[part] for part in parts])

        return replace(
            self,
            tensors=[p for p, own in zip(self.tensors, chosen, strict=True) if own],
            mass=list(self.mass),
            S=list(self.S),
            M=[cut(x) for x in self.M],
            own=[[cut(x) for x in pair] for pair in self.own],
            before=None if self.before is None else cut(self.before),
        )

    def begin(self, now: Now) -> None:
        """The mass of n past steps with the present hyperparameters."""
        variables = now.method.variables
        self.mass = [now.rates(l)[1] * _sum(v, self.n) for l, v in enumerate(variables)]
        self.S = [0.0] * len(variables)

    def weights(self, now: Now) -> list[float]:
        """c_l, the weight of all ages in each m_l as this step reads it; the step is counted."""
        found = []
        for l, v in enumerate(now.method.variables):
            decay, unit = now.rates(l)
            before = self.mass[l]
            self.mass[l] = decay * before + unit * (v.first if self.n == 0 else 1.0)
            c = v.weight(self.n)
            found.append(c / unit * (before if v.lag else self.mass[l]) if v.has_memory else c)
        self.n += 1
        return found

    def drop(self) -> None:
        """Let go what is carried: steps have been taken without."""
        self.M, self.own, self.S = [], [], [0.0] * len(self.S)

    def carry(self, now: Now, own: bool) -> None:
        """Begin to carry."""
        if not self.M:
            like = flat(self.tensors).detach()
            self.M = [torch.zeros_like(like) if v.has_memory else like[:0] for v in now.method.variables]
        if own and not self.own:
            pushing = sum(v.has_memory for v in now.method.variables)
            self.own = [[torch.zeros_like(x) for _ in range(2 * pushing)] for x in self.M]

    def moved(self, now: Now, previous: Tensor, there: Tensor, part: slice, tensors: Sequence[Tensor]) -> None:
        """Carry some coordinates to the present point: M += S d.

        Args:
            now: the group.
            previous: the same batch's gradient at the previous point.
            there: that point.
            part: the coordinates.
            tensors: theirs.
        """
        theta, g = self.present(part, tensors)
        for l, v in enumerate(now.method.variables):
            if v.has_memory and self.S[l]:
                self.M[l][part].add_(v.g(g, theta) - v.g(previous, there), alpha=self.S[l])

    def fed(
        self, now: Now, part: slice, tensors: Sequence[Tensor], w: Sequence[Tensor]
    ) -> tuple[list[Tensor | None], list[float]]:
        """Take the present gradient in, and read M/S of some coordinates as this step has it.

        Args:
            now: the group.
            part: the coordinates.
            tensors: theirs.
            w: what the batch does to its own gradient by each variable that remembers; none to leave that out.

        Returns:
            For each variable its mean, None where it has none; and the S that come after.
        """
        theta, g = self.present(part, tensors)
        means, S = list[Tensor | None](), list(self.S)
        betas = [now.rates(l)[0] for l, v in enumerate(now.method.variables) if v.has_memory]
        for l, v in enumerate(now.method.variables):
            if not v.has_memory:
                means.append(None)
                continue
            M, decay, weight = self.M[l][part], now.decay(l), v.first if self.n == 1 else 1.0
            read = M / S[l] if v.lag and S[l] else None
            M.mul_(decay).add_(v.g(g, theta), alpha=weight)
            S[l] = decay * S[l] + weight
            if not v.lag:
                read = M / S[l]
            for each, A, B, beta in zip(w, self.own[l][::2] if w else (), self.own[l][1::2] if w else (), betas, strict=False):
                omega = 2 * g * each if nonnegative(v) else each
                A[part].mul_(decay).add_(omega)
                B[part].mul_(decay * beta).add_(omega)
                assert read is not None
                read = read - (A[part] - B[part]) / S[l]
            means.append(read)
        return means, S

    def present(self, part: slice, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """theta and gradient of some coordinates, as the step found them."""
        assert self.before is not None
        return self.before[part], joined(p.grad for p in tensors if p.grad is not None)

    def held(self, now: Now, state: Any, l: int, part: slice, tensors: Sequence[Tensor]) -> Tensor:
        """m_l of some coordinates from the optimizer's own buffer, after its step."""
        own, v = now.kept[l], now.method.variables[l]
        assert own is not None
        if isinstance(own.name, int):
            buffer = state[self.tensors[0]]["sums"][own.name][part]
        else:
            buffer = joined(state[p][own.name] for p in tensors)
        return v.weight(self.n - 1) / now.rates(l)[1] * buffer

    def pushes(self, now: Now, state: Any, c: Sequence[float]) -> list[Tensor]:
        """For each variable u that remembers, h dF/dm_u c_u (g_u - mbar_u), shape (coordinates,); 0 before the first step.

        Args:
            now: the group.
            state: of the optimizer, after its step.
            c: weight of all ages in each variable.
        """
        remembering = [l for l, v in enumerate(now.method.variables) if v.has_memory]
        if not all(self.S[l] for l in remembering):
            return [torch.zeros_like(self.M[l]) for l in remembering]
        found: list[list[Tensor]] = [[] for _ in remembering]
        for part, tensors in self.chunks():
            theta, g = self.present(part, tensors)
            m = [
                self.held(now, state, l, part, tensors) if v.has_memory else v.weight(self.n - 1) * v.g(g, theta)
                for l, v in enumerate(now.method.variables)
            ]
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in m]
                partial = torch.autograd.grad(now.method.readout(leaves, theta).sum(), leaves, materialize_grads=True)
            for into, u in zip(found, remembering, strict=True):
                x = now.method.variables[u].g(g, theta) - self.M[u][part] / self.S[u]
                into.append(now.lr * c[u] * partial[u] * x)
        return [torch.cat(each) for each in found]

    def saved(self, number: Callable[[Tensor], int]) -> dict[str, Any]:
        """As plain values and tensors; parameters by their numbers."""
        return {"tensors": [number(p) for p in self.tensors]} | {
            key: value for key, value in vars(self).items() if key != "tensors"
        }


def _sum(v: Momentum, n: int) -> float:
    """Of the weights of n past gradients, sum_k beta^k with the first's own."""
    return float(kernel.tail(replace(v, weight=one, lag=0), n - 1, 0)) if n else 0.0
