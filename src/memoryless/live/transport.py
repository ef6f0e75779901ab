"""What the past steps' batches would leave at the present theta, carried along from step to step.

A memory, the mean of g_l[n-k] with weights beta^k, holds gradients of old points. Each step moves it to the present point by
the change of one gradient, same batch and random numbers, in the form of STORM (https://arxiv.org/abs/1905.10018):

    d = g_l(g_b(theta[n])) - g_l(g_b(theta[n-1])),    M <- M + d,    M <- M + K (g_l - M),    K = 1/S,    S <- beta S + 1

and m_F = c M with c the weight of all ages in the optimizer's own m_l: in full batch m_F = c g_l exactly. The batch of each d
is a fresh one, theta[n] - theta[n-1] does not know it, so that m_F is, to second order in lr and in the mean, that of the mean
loss.

What is carried too far errs: each d is one batch's in place of all. For a square, which is divided by and whose memory is long,
M is the state of a random walk with steps d that is seen through the noise of g_l: its stationary Kalman filter (R. E. Kalman,
https://doi.org/10.1115/1.3662552; for small steps) has the gain

    K = E |d| / E |g_l - M|         within 1 - beta and QUICKEST, and never below 1/S

with means over coordinates and the last steps, sizes in place of deviations. And M >= (mean of g)^2/2, as a mean of squares is
at least the square of a mean with the same weights, and M >= FLOOR of the optimizer's own: M is held there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from memoryless.flat import flat, slices_of
from memoryless.live.chunks import Chunk, chunks
from memoryless.live.monitoring.frozen import nonnegative
from memoryless.live.monitoring.past_weights import Kept
from memoryless.methods import kernel
from memoryless.methods.method import Method, Momentum, one

FLOOR = 0.02
"""Of the optimizer's own second moment, below which a carried one is not trusted."""
QUICKEST = 0.2
"""The largest gain of a second moment."""
SEEN = 0.02
"""Share of the last step in the means that give the gain."""


def gain(walk: Tensor, least: float) -> Tensor:
    """K of a second moment that is carried.

    Args:
        walk: E |d| and E |g_l - M|, shape (2, ...).
        least: 1 - beta.

    Returns:
        Shape (...).

    Example:
        >>> gain(torch.tensor([[2e-2, 1e-5], [1.0, 1.0]]), 0.001)
        tensor([0.0200, 0.0010])
    """
    return (walk[0] / walk[1].clamp_min(torch.finfo(walk.dtype).tiny)).clamp(least, max(least, QUICKEST))


@dataclass
class Now:
    """One param group at a step.

    Attributes:
        method: with the hyperparameters of this step.
        kept: where the optimizer keeps each variable.
        group: torch's.
        lr: step size.
        second: (b', floor) of second moments; None for `gain` and FLOOR.
        roots: of each variable that averages the square of another one's g_l, the number of that.
    """

    method: Method
    kept: tuple[Kept | None, ...]
    group: dict[str, Any]
    lr: float
    second: tuple[float, float] | None = None
    roots: tuple[int | None, ...] = ()

    def rates(self, l: int) -> tuple[float, float]:
        """decay and unit of variable l."""
        own = self.kept[l]
        return (0.0, 1.0) if own is None else own.rates(self.group)

    def decay(self, l: int) -> float:
        """beta or b'."""
        beta = self.rates(l)[0]
        return beta if self.second is None or not nonnegative(self.method.variables[l]) else min(beta, self.second[0])

    @property
    def by_own_betas(self) -> bool:
        """Whether every memory is carried by its own beta, so that no shorter one adds the noise of fewer batches."""
        squares = [l for l, v in enumerate(self.method.variables) if v.has_memory and nonnegative(v)]
        return not squares or (self.second is not None and all(self.decay(l) == self.rates(l)[0] for l in squares))

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


Past = tuple[Tensor, Tensor]
"""The present batch's gradient at the previous point, and that point."""


@dataclass
class Memory:
    """Tensors of one param group that have the same past.

    Attributes:
        tensors: parameters.
        group: number of their param group.
        n: steps behind them.
        mass: what the optimizer's buffer of each variable would hold of a constant g_l = 1, before this step.
        S: sum of beta^k over the steps that each memory has been carried.
        M: carried memories, each shape (coordinates,); empty where nothing is carried.
        walk: of each second moment, means over the last steps of |d|_1 and |g_l - M|_1, shape (2,).
        seen: the same two of the present step.
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
    walk: list[Tensor] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)
    own: list[list[Tensor]] = field(default_factory=list)
    before: Tensor | None = None
    at: int = -1

    @property
    def gradient(self) -> Tensor:
        """Of the tensors, which all have one, shape (coordinates,)."""
        return flat(p.grad for p in self.tensors if p.grad is not None)

    def chunks(self, *, cut: bool = True) -> Iterator[Chunk]:
        """All coordinates: several small tensors at a time, large ones in parts.

        Args:
            cut: whether tensors may be cut.
        """
        return chunks(self.tensors, cut=cut)

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
            walk=[x.clone() for x in self.walk],
            seen=[x.clone() for x in self.seen],
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
        self.M, self.walk, self.seen, self.own, self.S = [], [], [], [], [0.0] * len(self.S)

    def carry(self, now: Now, own: bool) -> None:
        """Begin to carry."""
        if not self.M:
            like = flat(self.tensors).detach()
            kept = now.kept[: len(now.method.variables)]
            self.M = [like[:0] if each is None else torch.zeros_like(like) for each in kept]
            self.walk, self.seen = ([like.new_zeros(2) for _ in self.M] for _ in range(2))
        if own and not self.own:
            pushing = sum(each is not None for each in now.kept[: len(now.method.variables)])
            self.own = [[torch.zeros_like(x) for _ in range(2 * pushing)] for x in self.M]

    def gains(self, now: Now) -> tuple[list[float | Tensor], list[float]]:
        """K of each variable at this step, and the S that comes after.

        Args:
            now: the group.
        """
        K, after = list[float | Tensor](), list[float]()
        for l, v in enumerate(now.method.variables):
            if not v.has_memory:  # nothing is carried, also where its beta is 0 for a while
                K.append(1.0)
                after.append(0.0)
                continue
            weight = v.first if self.n == 1 else 1.0
            after.append(now.decay(l) * self.S[l] + weight)
            adapts = now.second is None and nonnegative(v)
            K.append(gain(self.walk[l], 1 - now.decay(l)).clamp_min(weight / after[l]) if adapts else weight / after[l])
        return K, after

    def moved(self, now: Now, past: Past, chunk: Chunk) -> None:
        """Carry some coordinates to the present point: M += d.

        Args:
            now: the group.
            past: the same batch's gradient at the previous point, and that point.
            chunk: the coordinates.
        """
        theta, g = self.present(chunk)
        for l, v in enumerate(now.method.variables):
            if v.has_memory:
                self._move(l, v, v.g(g, theta), past, self.M[l][chunk.part])

    def _move(self, l: int, v: Momentum, present: Tensor, past: Past, M: Tensor) -> None:
        if not self.S[l]:
            return
        d = present - v.g(*past)
        M.add_(d)
        if nonnegative(v):
            self.seen[l][0] += _size(d)

    def fed(
        self,
        now: Now,
        state: Any,
        c: Sequence[float],
        K: Sequence[float | Tensor],
        chunk: Chunk,
        past: Past | None,
        pushed: Sequence[Past] = (),
    ) -> "Fed":
        """Take the present gradient in, and read some coordinates as this step has them.

        Args:
            now: the group.
            state: of the optimizer, after its step.
            c: weight of all ages in each variable.
            K: of each variable (`gains`).
            chunk: the coordinates.
            past: as for `moved`, to be moved first; None where that has been done.
            pushed: the batch's gradient where each variable that remembers pushes, and that point; none to leave that out.
        """
        theta, g = self.present(chunk)
        fed = Fed([], 0, 0)
        betas = [now.rates(l)[0] for l, v in enumerate(now.method.variables) if v.has_memory]
        for l, v in enumerate(now.method.variables):
            present = v.g(g, theta)
            if not v.has_memory:
                fed.means.append(present)
                continue
            M = self.M[l][chunk.part]
            if past is not None:
                self._move(l, v, present, past, M)
            mean = M.clone() if v.lag and self.S[l] else M
            if nonnegative(v):
                self.seen[l][1] += _size(present - M)
            M.lerp_(present, K[l])  # pyright: ignore[reportArgumentType]
            own = self.own[l] if pushed else []
            for there, A, B, beta in zip(pushed, own[::2], own[1::2], betas, strict=False):
                omega = v.g(*there) - present
                A[chunk.part].lerp_(omega, K[l])  # pyright: ignore[reportArgumentType]
                B[chunk.part].mul_(beta).lerp_(omega, K[l])  # pyright: ignore[reportArgumentType]
                mean = mean - (A[chunk.part] - B[chunk.part])
            fed.means.append(mean)
        for l, v in enumerate(now.method.variables):
            if v.has_memory and not v.lag and nonnegative(v):
                self._hold(fed, now, l, self.held(now, state, l, chunk, now.floor / c[l]), chunk)
        return fed

    def _hold(self, fed: "Fed", now: Now, l: int, floor: Tensor, chunk: Chunk) -> None:
        """A second moment at its floor."""
        M, root, mean = self.M[l][chunk.part], now.roots[l], fed.means[l]
        fed.carried += M.numel()
        fed.floored = fed.floored + (mean < floor).float().sum().long()  # booleans take seven times as long
        if root is not None:
            floor = torch.maximum(floor, self.M[root][chunk.part].square().mul_(0.5))
        torch.maximum(M, floor, out=M)
        fed.means[l] = M if mean.data_ptr() == M.data_ptr() else torch.maximum(mean, floor)

    def learn(self, after: Sequence[float]) -> None:
        """After a step: S, and what the gain follows from.

        Args:
            after: S of each variable (`gains`).
        """
        for S, walk, seen in zip(self.S, self.walk, self.seen, strict=True):
            if S:  # the first step has no d
                walk.lerp_(seen, max(SEEN, 1 / S))
            seen.zero_()
        self.S = list(after)

    def present(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """theta and gradient of some coordinates, as the step found them."""
        assert self.before is not None
        return self.before[chunk.part], chunk.gradient

    def held(self, now: Now, state: Any, l: int, chunk: Chunk, share: float = 1.0) -> Tensor:
        """m_l of some coordinates from the optimizer's own buffer, after its step; or a share of it."""
        own, v = now.kept[l], now.method.variables[l]
        assert own is not None
        if isinstance(own.name, int):
            buffer = state[self.tensors[0]]["sums"][own.name][chunk.part]
        else:
            name = own.name
            buffer = chunk.of(lambda p: state[p][name])
        return share * v.weight(self.n - 1) / now.rates(l)[1] * buffer

    def saved(self, number: Callable[[Tensor], int]) -> dict[str, Any]:
        """As plain values and tensors; parameters by their numbers."""
        return {"tensors": [number(p) for p in self.tensors]} | {
            key: value for key, value in vars(self).items() if key != "tensors"
        }


@dataclass
class Fed:
    """What was read of some coordinates.

    Attributes:
        means: of each variable, shape (coordinates,).
        floored: how many second moments lie at FLOOR of the optimizer's own.
        carried: of how many.
    """

    means: list[Tensor]
    floored: Tensor | int
    carried: int


def roots_of(method: Method) -> tuple[int | None, ...]:
    """Of each variable that averages the square of what another one averages, the number of that.

    Args:
        method: in momentum form.
    """
    g, theta = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signed = [l for l, v in enumerate(method.variables) if v.has_memory and not v.lag and not nonnegative(v)]

    def root(v: Momentum) -> int | None:
        square = v.g(g, theta)
        return next((l for l in signed if torch.allclose(method.variables[l].g(g, theta) ** 2, square)), None)

    return tuple(root(v) if v.has_memory and nonnegative(v) else None for v in method.variables)


def _size(x: Tensor) -> Tensor:
    """|x|_1, which underflows later than squares of squares of gradients."""
    return torch.linalg.vector_norm(x, 1)


def _sum(v: Momentum, n: int) -> float:
    """Of the weights of n past gradients, sum_k beta^k with the first's own."""
    return float(kernel.tail(replace(v, weight=one, lag=0), n - 1, 0)) if n else 0.0
