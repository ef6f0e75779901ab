"""The expected correction in closed form, for methods linear in the gradient: heavy ball and Nesterov.

Let F[s] = sum_j a[s, j] g_{s-j}. In M[n] = lr sum_k a[n, k] H_{n-k} D[k] only pairs of batches meet, and their means over the
order are known: E[H_i g_j] = H g + r C with C = E[(H_i - H)(g_i - g)] = (1/2) grad E |g_i - g|^2 and

    r = 1 for the same step;  0 for different epochs, or with replacement;  -1/(B-1) for different steps of one epoch.

So E[M] = M of the full batch + lr c C with one number c. As n and B grow, c = beta / ((1-beta)^2 (1+beta)) for heavy ball: the
last term of the modified loss of Section 5.2 (https://arxiv.org/abs/2502.02132).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memoryless import kernel
from memoryless.loss import Loss
from memoryless.method import AnyMethod, Method, gradient

LONGEST = 20_000
"""Steps of memory, whose square is the work."""


def noise_of(method: AnyMethod, loss: Loss, theta: Tensor, step: int | None, replacement: bool) -> tuple[Tensor, int]:
    """E[M] less M of the full batch, and the Hessian-vector products spent: one per batch.

    Args:
        method: linear in the gradient.
        loss: its batches.
        theta: shape (d,).
        step: n, or None for the steady state, averaged over the place in an epoch.
        replacement: every step draws its batch afresh.

    Raises:
        ValueError: the method is not linear in the gradient.
    """
    full = loss.gradient(theta)
    mean = torch.zeros_like(theta)
    for i in range(len(loss)):
        g, product = loss.linearize(theta, i, products=1)
        mean += product(g - full)
    return method.lr * coefficient(method, step, None if replacement else len(loss)) * mean / len(loss), len(loss)


def coefficient(method: AnyMethod, step: int | None, count: int | None) -> float:
    """C's factor c.

    Args:
        method: linear in the gradient.
        step: n, or None for the steady state.
        count: batches in an epoch; None is with replacement.

    Raises:
        ValueError: the method is not linear in the gradient, or remembers too long.

    Example:
        >>> import memoryless as ml
        >>> round(coefficient(ml.HeavyBall(lr=0.1, momentum=0.9), None, None), 9) == round(0.9 / (0.1**2 * 1.9), 9)
        True
    """
    slopes = _slopes(method)
    variables = method.parts[0].method.variables
    if step is None:
        for v in variables:
            kernel.require_fading(v)
    n = kernel.window(variables, 10**9) if step is None else step
    if n > LONGEST:
        raise ValueError(f"{method} remembers {n} steps, too many for the closed form; give samples")

    def a(s: int) -> NDArray[np.float64]:
        kernels = (kernel.kernel(v, s, None, step is None) for v in variables)
        return np.sum([slope * values for slope, values in zip(slopes, kernels, strict=True)], axis=0)

    weights = a(n)
    # In D[k], by the step t of the gradient: all of it, and what is of the epoch of step n - k.
    D, phases = np.zeros(n + 1), range(1) if step is not None or count is None else range(count)
    total = 0.0
    for k in range(1, n + 1):
        D[: n - k + 1] += a(n - k)[::-1]
        t = n - k
        same = D[t]
        if count is not None and count > 1:
            starts = [(t + skip) // count * count - skip for skip in phases]
            epochs = [D[max(start, 0) : start + count].sum() for start in starts]
            same -= (np.mean(epochs) - D[t]) / (count - 1)
        total += weights[k] * same
    return float(total)


def _slopes(method: AnyMethod) -> list[float]:
    """F = sum_l slope_l m_l."""
    if isinstance(method, Method) and method.elementwise and all(v.g is gradient for v in method.variables):
        generator = torch.Generator().manual_seed(0)
        theta, *m = torch.randn(1 + len(method.variables), 7, generator=generator, dtype=torch.float64)
        units = torch.eye(len(m), dtype=torch.float64)
        slopes = [float(method.readout(list(unit[:, None]), theta[:1])) for unit in units]
        combined = sum((slope * x for slope, x in zip(slopes, m, strict=True)), torch.zeros(7, dtype=torch.float64))
        if torch.allclose(method.readout(m, theta), combined, rtol=1e-12, atol=1e-12):
            return slopes
    raise ValueError(f"{method} is not linear in the gradient, which the closed form needs; give samples")
