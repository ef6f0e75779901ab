"""The frozen memory from a few replayed steps, what it makes of an update, and how well that is known.

For the drawn ages (`draws`) g_then is the gradient that the step used, g_now the one that its batch has at the present
theta; a_j = weight_j kernel[age_j]. A variable whose g_l has a sign takes the old gradients as control variate,

    m_F = m + sum_j a_j (g_l(now_j) - g_l(then_j)),                         z_j = a_j (g_l(now_j) - g_l(then_j))

one whose g_l is nonnegative (a second moment) a ratio, so that it stays positive; E and E' are the sums over the exact ages,
Zn and Zt those over the drawn ones, of now and of then:

    v_F = E + (v - E')_+ Zn/Zt,                                             z_j = a_j (now_j^2 - (Zn/Zt) then_j^2) (v - E')_+/Zt

z_j are the linear terms in which the draws enter: with N of them in the order of their ages, jittered draws have the covariance

    Cov(m, v) = N/(2 (N - 1)) sum_j (zm_{j+1} - zm_j) (zv_{j+1} - zv_j)

Phi is not linear, so that an unbiased m_F, v_F leave a bias. Phi = A/sqrt(v) with A linear in the m: by its second derivatives

    E Phi = Phi (1 + 3/8 Var(v)/v^2) - sum_m Cov(m, v) dPhi/dm / (2 v)

which is taken off, the first part by division. Other readouts (a sign has no derivatives) are formed at m_F and v_F displaced
by random sums of the differences, whose covariance is the same: the mean over +- gives the bias, the difference the error.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memoryless.flat import across
from memoryless.live.monitoring.draws import Draws
from memoryless.methods.method import Method, Momentum

BLOCK = 2**13
"""Coordinates at a time: the terms of all variables of a grid fit the cache's next level."""
ROOTS = {"adam", "adamw", "nadam", "rmsprop"}
"""Catalogue methods with Phi = A/sqrt(v)."""
LINEAR = {"heavy_ball", "nesterov"}
DISPLACED = 16
"""Pairs of displaced memories for the readouts without derivatives."""


@cache
def nonnegative(v: Momentum) -> bool:
    """Whether g_l cannot be negative, tried on random vectors.

    Args:
        v: a momentum variable.
    """
    generator = torch.Generator().manual_seed(0)
    x, a = torch.randn(2, 64, generator=generator, dtype=torch.float64)
    return bool((v.g(x, a) >= 0).all())


class Terms(NamedTuple):
    """The replayed steps on some coordinates.

    Attributes:
        draws: which ages they are.
        now: their gradients at the present theta, shape (terms, coordinates).
        then: their gradients when they were taken, likewise.
        theta: present, shape (coordinates,).
        theta_then: where the old gradients were taken, shape (terms, coordinates); None where no g_l asks for it.
    """

    draws: Draws
    now: Tensor
    then: Tensor
    theta: Tensor
    theta_then: Tensor | None

    def block(self, part: slice) -> "Terms":
        """Of some coordinates."""
        there = None if self.theta_then is None else self.theta_then[:, part]
        return Terms(self.draws, self.now[:, part], self.then[:, part], self.theta[part], there)


class Reading(NamedTuple):
    """A momentum variable at a stop.

    Attributes:
        variable: it.
        kernel: its weight of each term's age, shape (terms,).
        memory: m_l on the sample, as it is, shape (coordinates,).
    """

    variable: Momentum
    kernel: np.ndarray
    memory: Tensor


class Part(NamedTuple):
    """A method on some of the sampled coordinates.

    Attributes:
        method: it.
        positions: which of the sample.
        scale: its lr over the whole's.
        readings: of its variables, in their order.
    """

    method: Method
    positions: slice | Tensor
    scale: float
    readings: tuple[Reading, ...]


class Estimated(NamedTuple):
    """Of one method on the sample; measures in rows.

    Attributes:
        update: Phi(m), what the method does, shape (coordinates,).
        plain: Phi(m_F) without the correction of its bias, likewise.
        frozen: F[n](theta), corrected, likewise.
        variance: of sum_i slopes_i F_i by the draws, for each measure, shape (measures,).
    """

    update: Tensor
    plain: Tensor
    frozen: Tensor
    variance: np.ndarray


class _Frozen(NamedTuple):
    """A variable with its history frozen on a block: its value in float64, linear terms, successive differences."""

    value: Tensor
    z: Tensor
    dz: Tensor

    def at(self, inside: slice | Tensor) -> "_Frozen":
        return _Frozen(self.value[inside], self.z[:, inside], self.dz[:, inside])


def frozen_memory(reading: Reading, terms: Terms, memory: Tensor) -> tuple[Tensor, Tensor]:
    """m_F or v_F, and its linear terms z, shape (drawn, coordinates).

    Args:
        reading: of the variable.
        terms: replayed.
        memory: m_l as it is on the terms' coordinates.
    """
    v, drawn = reading.variable, torch.from_numpy(terms.draws.drawn).to(memory.device)
    theta_then = terms.theta if terms.theta_then is None else terms.theta_then
    now, then = v.g(terms.now, terms.theta), v.g(terms.then, theta_then)
    a = torch.from_numpy(terms.draws.weights * reading.kernel).to(now)
    if not nonnegative(v):
        z = a[:, None] * (now - then)
        return memory.double() + z.sum(0, dtype=torch.float64), z[drawn]
    sure = torch.from_numpy(terms.draws.exact).to(memory.device)
    E, E_then = a[sure] @ now[sure], a[sure] @ then[sure]
    return ratio(memory, E, E_then, a[drawn], now[drawn], then[drawn])


def ratio(memory: Tensor, E: Tensor, E_then: Tensor, a: Tensor, now: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
    """v_F = E + (v - E')_+ Zn/Zt and its linear terms.

    Args:
        memory: v.
        E: sum over the exact ages of now.
        E_then: of then.
        a: weights of the drawn terms.
        now: theirs, shape (drawn, coordinates).
        then: theirs, likewise.
    """
    left = (memory - E_then).clamp_min(0)
    Zn, Zt = a @ now, a @ then
    known = Zt > 0
    Zt = torch.where(known, Zt, 1)
    r = torch.where(known, Zn / Zt, 1)
    z = a[:, None] * (now - r * then) * torch.where(known, left / Zt, 0)
    return E.double() + left.double() * r, z


def _spread(dz: Tensor, other: Tensor) -> Tensor:
    """Covariance by successive differences, per coordinate."""
    N = len(dz) + 1
    return N / (2 * (N - 1)) * (dz * other).sum(0, dtype=torch.float64)


def successive(L: np.ndarray) -> np.ndarray:
    """The variance of a sum over jittered draws, shape (measures,).

    Args:
        L: its terms in the order of their ages, shape (drawn, measures).
    """
    N = len(L)
    return N / (2 * (N - 1)) * np.square(np.diff(L, axis=0)).sum(0) if N > 1 else np.zeros(L.shape[1:])


def estimate(methods: Sequence[Sequence[Part]], terms: Terms, slopes: Tensor, seed: int) -> list[Estimated]:
    """What each method does, and would do with its history frozen.

    Args:
        methods: each as its parts; readings that they share are worked out once.
        terms: replayed, on the sample.
        slopes: of what the error is wanted, sum_i slopes_i F_i, shape (measures, coordinates), float64.
        seed: of the displacements.
    """
    c, measures, N = terms.theta.numel(), len(slopes), len(terms.draws.drawn)
    generator = torch.Generator().manual_seed(seed)
    signs = (2 * torch.randint(2, (DISPLACED, max(N - 1, 1)), generator=generator) - 1).double().to(terms.theta.device)
    out = [torch.zeros(3, c, dtype=torch.float64, device=terms.theta.device) for _ in methods]
    L = [np.zeros((N, measures)) for _ in methods]
    moved = [np.zeros((DISPLACED, measures)) for _ in methods]
    for start in range(0, c, BLOCK):
        block = slice(start, min(start + BLOCK, c))
        here = terms.block(block)
        known: dict[int, tuple[Tensor, _Frozen]] = {}
        for k, parts in enumerate(methods):
            for part in parts:
                inside = _inside(part.positions, block)
                if inside is None:
                    continue
                m, frozen = [], []
                for reading in part.readings:
                    if id(reading) not in known:
                        now = reading.memory[block]
                        value, z = frozen_memory(reading, here, now)
                        known[id(reading)] = now.double(), _Frozen(value, z, z.diff(dim=0) if len(z) > 1 else z)
                    now, then = known[id(reading)]
                    m.append(now[inside])
                    frozen.append(then.at(inside))
                theta, weights = here.theta[inside].double(), slopes[:, block][:, inside] * part.scale
                update = part.method.readout(m, theta)
                plain, corrected, terms_of, displaced = _read(part.method, frozen, theta, weights, signs)
                into = torch.arange(c, device=theta.device)[block][inside]
                out[k][:, into] = part.scale * torch.stack([update, plain, corrected])
                L[k] += terms_of
                moved[k] += displaced
    L, moved = (list(across(torch.from_numpy(np.stack(each))).numpy()) if methods else [] for each in (L, moved))
    # A readout has terms or displacements, never both.
    variances = [successive(terms_of) + np.square(each).mean(0) for terms_of, each in zip(L, moved, strict=True)]
    return [Estimated(rows[0], rows[1], rows[2], variance) for rows, variance in zip(out, variances, strict=True)]


def _inside(positions: slice | Tensor, block: slice) -> slice | Tensor | None:
    """Coordinates of a part within a block, counted from the block's first; None if there are none."""
    if isinstance(positions, slice):
        start, stop = positions.start or 0, positions.stop
        low, high = max(start, block.start), block.stop if stop is None else min(stop, block.stop)
        return slice(low - block.start, high - block.start) if low < high else None
    chosen = positions[(positions >= block.start) & (positions < block.stop)] - block.start
    return chosen if len(chosen) else None


def _read(
    method: Method, frozen: Sequence[_Frozen], theta: Tensor, slopes: Tensor, signs: Tensor
) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Phi(m_F), the same without its bias, its linear terms, and what displacements make of it."""
    z = [each.z for each in frozen]
    N, measures = len(z[0]), len(slopes)
    none = np.zeros((N, measures)), np.zeros((DISPLACED, measures))
    values = [each.value for each in frozen]
    if method.name not in ROOTS | LINEAR or method.hyper.get("centered"):
        F = method.readout(values, theta)
        if N < 2:
            return F, F, *none
        bias, moved = _displaced(method, frozen, theta, slopes, signs, F)
        return F, F - bias, none[0], moved
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in values]
        F = method.readout(leaves, theta)
        partial = torch.autograd.grad(F.sum(), leaves, allow_unused=True, materialize_grads=True)
    F = F.detach()
    linear = sum(each @ (slopes * p).T.to(each.dtype) for each, p in zip(z, partial, strict=True))
    assert isinstance(linear, Tensor)
    corrected = F if N < 2 or method.name in LINEAR else F - _bias(method, frozen, partial, theta, F)
    return F, corrected, linear.double().cpu().numpy(), none[1]


def _bias(method: Method, frozen: Sequence[_Frozen], partial: Sequence[Tensor], theta: Tensor, F: Tensor) -> Tensor:
    """E Phi(m_F, v_F) - Phi at their means, for Phi = A/sqrt(v) + what does not depend on them."""
    root = next(l for l, each in enumerate(frozen) if float(partial[l].abs().sum()) > 0 and _squares(method, l))
    v = frozen[root].value
    known = v > 0
    inverse = torch.where(known, 1 / torch.where(known, v, 1), 0)
    rest = method.readout([x.value if l == root else torch.zeros_like(x.value) for l, x in enumerate(frozen)], theta)
    rho = (_spread(frozen[root].dz, frozen[root].dz) * inverse**2).clamp(0, 1)
    A = F - rest
    crossed = torch.zeros_like(F)
    for l, each in enumerate(frozen):
        if l != root and method.variables[l].has_memory:
            crossed += _spread(each.dz, frozen[root].dz) * partial[l] * inverse / 2
    return A - (A / (1 + 3 * rho / 8) + crossed)


def _squares(method: Method, l: int) -> bool:
    return nonnegative(method.variables[l])


def _displaced(
    method: Method, frozen: Sequence[_Frozen], theta: Tensor, slopes: Tensor, signs: Tensor, F: Tensor
) -> tuple[Tensor, np.ndarray]:
    """The bias of Phi, and half the difference between displacements of either sign for each measure."""
    N = len(frozen[0].z)
    steps = [(N / (2 * (N - 1))) ** 0.5 * (signs.to(each.dz.dtype) @ each.dz).double() for each in frozen]
    bias, halves = torch.zeros_like(F), []
    for r in range(DISPLACED):
        up, down = (
            method.readout(
                [
                    (x.value + sign * step[r]).clamp_min(0 if nonnegative(v) else -torch.inf)
                    for x, step, v in zip(frozen, steps, method.variables, strict=True)
                ],
                theta,
            )
            for sign in (1, -1)
        )
        bias += ((up + down) / 2 - F) / DISPLACED
        halves.append(slopes @ (up - down) / 2)
    return bias, torch.stack(halves).cpu().numpy()
