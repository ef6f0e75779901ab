"""What a batch does by being one of those that are remembered.

The twin of the same batches has their effect on themselves besides: since step n - k batch b has pushed theta by each variable
m_u, by the part 1 - beta_u^k of h dF/dm_u (g_u - mbar_u),

    m_F <- m_F - c sum_u sum_k K[k] (1 - beta_u^k) w_u[n-k],      w_u = g_l(theta + h dF/dm_u (g_u - mbar_u)) - g_l(theta)

of the batch's own gradient there, with the weights K[k] of M; dF/dm_u is a secant, taken where the batch has half of its weight
on the average. m_F, v_F are then those of the same batches to second order in lr, in the mean. Phi of them is, too, where it is
linear (heavy ball). Where not, their error has a covariance of first order with the noise in them, as a past batch's gradient
is moved by other batches' curvature,

    E Phi(m_F, v_F) = Phi + sum_{l,u} d2Phi/dm_l dm_u A(beta_l, beta_u) Cov(g_l, d_u)

some 1 % of memory's effect, estimated by the present batch and taken off where every memory is carried by its own beta; a
shorter one adds a term of its own, which does not vanish with lr.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memoryless.live.monitoring.frozen import nonnegative
from memoryless.live.transport import Memory, Now, Past


def own_effect(memory: Memory, now: Now, state: Any, c: Sequence[float], past: Sequence[Past]) -> tuple[list[Tensor], Tensor]:
    """What the batch does by being one of those that are remembered; 0 before the second step.

    Args:
        memory: of the tensors.
        now: the group.
        state: of the optimizer, after its step.
        c: weight of all ages in each variable.
        past: of each chunk, as for `moved`, which has been done.

    Returns:
        For each variable u that remembers its push h dF/dm_u c_u (g_u - mbar_u), shape (coordinates,); and an estimate of
        the bias of Phi, shape (coordinates,), empty where a memory is not carried by its own beta.
    """
    remembering = [l for l, v in enumerate(now.method.variables) if v.has_memory]
    like = memory.before
    assert like is not None
    if not past or not all(memory.S[l] for l in remembering):
        return [torch.zeros_like(like) for _ in remembering], like[:0]
    found: list[list[Tensor]] = [[] for _ in remembering]
    biases = list[Tensor]()
    for chunk, there in zip(memory.chunks(), past, strict=True):
        theta, g = memory.present(chunk)
        seen = [v.g(g, theta) for v in now.method.variables]
        x = {u: seen[u] - memory.M[u][chunk.part] for u in remembering}
        held = [
            memory.held(now, state, l, chunk) if v.has_memory else c[l] * seen[l] for l, v in enumerate(now.method.variables)
        ]
        m = _without(now, held, {l: _lighter(memory, now, l) * each for l, each in x.items()})
        for into, u, slope in zip(found, remembering, _slopes(now, m, theta, remembering), strict=True):
            into.append(now.lr * c[u] * slope * x[u])
        if now.by_own_betas:
            m = _without(now, held, {l: _weight(memory, now, l) * each for l, each in x.items()})
            d = {u: seen[u] - now.method.variables[u].g(*there) for u in remembering}
            biases.append(_bias(memory, now, m, theta, {u: c[u] * x[u] for u in x}, {u: c[u] * d[u] for u in d}))
    return [torch.cat(each) for each in found], torch.cat(biases) if biases else like[:0]


def _without(now: Now, held: Sequence[Tensor], less: dict[int, Tensor]) -> list[Tensor]:
    """m_l less a part that is the present batch's; of a second moment at most half."""
    return [
        y if l not in less else torch.maximum(y - less[l], y / 2) if nonnegative(v) else y - less[l]
        for l, (v, y) in enumerate(zip(now.method.variables, held, strict=True))
    ]


def _slopes(now: Now, m: Sequence[Tensor], theta: Tensor, variables: Sequence[int]) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in m]
        partial = torch.autograd.grad(now.method.readout(leaves, theta).sum(), leaves, materialize_grads=True)
    return [partial[u] for u in variables]


def _bias(memory: Memory, now: Now, m: Sequence[Tensor], theta: Tensor, x: dict[int, Tensor], d: dict[int, Tensor]) -> Tensor:
    """sum_{l,u} Phi_lu A(beta_l, beta_u) x_l d_u."""
    total = torch.zeros_like(theta)
    with torch.enable_grad():
        leaves = [each.detach().requires_grad_() for each in m]
        first = torch.autograd.grad(now.method.readout(leaves, theta).sum(), leaves, create_graph=True, materialize_grads=True)
        for u in d:
            if not first[u].requires_grad:
                continue
            second = torch.autograd.grad(first[u].sum(), leaves, retain_graph=True, materialize_grads=True)
            for l in x:
                total += _covariance(now.decay(l), now.decay(u), memory.n - 1) * second[l] * x[l] * d[u]
    return total


def _weight(memory: Memory, now: Now, l: int) -> float:
    """Of the present gradient in m_l."""
    v = now.method.variables[l]
    return 0.0 if v.lag else v.weight(memory.n - 1)


def _lighter(memory: Memory, now: Now, l: int) -> float:
    """By how much that is more than where the gradient's push is linear.

    i steps later the push is Phi with beta^i of that weight less Phi without, a secant at half of it: its mean over i, with
    the weights (1 - beta) beta^i of the pushes, is 1/(2 (1 + beta)) of the weight.
    """
    return _weight(memory, now, l) * (1 - 1 / (2 * (1 + now.rates(l)[0])))


@lru_cache(2**12)
def covariance(beta: float, carried: float, n: int) -> float:
    """A: of the noise of a memory with the error of a carried one, over that of one batch's g_l with its d.

    A batch of lag k has the weight c_k ~ beta^k in the noise. The carried memory moves all that is older by its d,
    sum_{j > k} c_j, and itself, which has moved k times since, not by its own: sum_k c_k (sum_{j > k} c_j - k c_k).

    Args:
        beta: of the one.
        carried: of the other.
        n: past steps.

    Example:
        >>> round(covariance(0.5, 0.5, 100), 12) == round(0.5 / 1.5**2, 12)
        True
    """
    k = np.arange(n + 1)
    noise, error = beta**k, carried**k
    noise, error = noise / noise.sum(), error / error.sum()
    return float(noise @ (1 - error.cumsum() - k * error))


def _covariance(beta: float, carried: float, n: int) -> float:
    """The same for any n: beyond some ages no weight is left."""
    return covariance(beta, carried, min(n, math.ceil(40 / (1 - beta * carried))))
