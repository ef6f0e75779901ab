"""The expected correction in closed form, for methods linear in the gradient: heavy ball and Nesterov.

Let F[s] = sum_j a[s, j] g_{s-j} + what does not depend on the batches (weight decay). In M[n] = lr sum_k a[n, k] H_{n-k} D[k]
only pairs of batches meet, and their means over the order are known: E[H_i g_j] = H g + r C with
C = E[(H_i - H)(g_i - g)] = (1/2) grad E |g_i - g|^2 and

    r = 1 for the same step;  0 for different epochs, or with replacement;  -1/(B-1) for different steps of one epoch.

So E[M] = M of the full batch + lr c C with one number c. As n and B grow, c = beta / ((1-beta)^2 (1+beta)) for heavy ball: the
last term of the modified loss of Section 5.2 (https://arxiv.org/abs/2502.02132).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memoryless.errors import BadInput
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer

LONGEST = 20_000
"""Steps of memory, whose square is the work."""


def noise_of(method: AnyOptimizer, point: Point, step: int | None, replacement: bool) -> tuple[Tensor, int]:
    """E[M] less M of the full batch, and the Hessian-vector products spent: one per batch.

    Args:
        method: linear in the gradient.
        point: of the loss with its batches.
        step: n, or None for the steady state, averaged over the place in an epoch.
        replacement: every step draws its batch afresh.

    Raises:
        BadInput: the method is not linear in the gradient.
    """
    loss, theta, full = point.loss, point.theta, point.gradient
    mean = torch.zeros_like(theta)
    for i in range(len(loss)):
        g, product = loss.linearize(theta, i, products=1)
        mean += product(g - full)
    return method.lr * coefficient(method, step, None if replacement else len(loss)) * mean / len(loss), len(loss)


def coefficient(method: AnyOptimizer, step: int | None, count: int | None) -> float:
    """C's factor c.

    Args:
        method: linear in the gradient.
        step: n, or None for the steady state.
        count: batches in an epoch; None is with replacement.

    Raises:
        BadInput: the method is not linear in the gradient, or remembers too long.

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
        raise BadInput(f"{method} remembers {n} steps, too many for the closed form; give samples")
    steps = np.arange(n + 1)

    def a(s: int) -> NDArray[np.float64]:
        kernels = (kernel.kernel(v, s, None, step is None) for v in variables)
        return np.sum([slope * values for slope, values in zip(slopes, kernels, strict=True)], axis=0)

    def others(t: int, count: int) -> NDArray[np.float64]:
        """How likely each step is another one of t's epoch; the steady state is at a random place in one."""
        together = np.maximum(1 - np.abs(steps - t) / count, 0) if step is None else 1.0 * (steps // count == t // count)
        together[t] = 0
        return together

    weights = a(n)
    D = np.zeros(n + 1)  # of D[k], what each step's gradient has in it
    total = 0.0
    for k in range(1, n + 1):
        t = n - k
        D[: t + 1] += a(t)[::-1]
        total += weights[k] * (D[t] - (others(t, count) @ D / (count - 1) if count else 0.0))
    return float(total)


def _slopes(method: AnyOptimizer) -> list[float]:
    """F = sum_l slope_l (sum of the gradients in m_l) + what the noise of the gradient does not touch, such as weight decay."""
    if len(method.parts) == 1 and method.parts[0].method.elementwise:
        method = method.parts[0].method
        generator = torch.Generator().manual_seed(0)
        theta, *x = torch.randn(1 + len(method.variables), 7, generator=generator, dtype=torch.float64)

        def F(gradients: Sequence[Tensor]) -> Tensor:
            return method.readout([v.g(g, theta) for v, g in zip(method.variables, gradients, strict=True)], theta)

        rest = F([torch.zeros_like(theta) for _ in x])
        units = torch.eye(len(x), dtype=torch.float64)
        slopes = [float((F([one.expand_as(theta) for one in unit]) - rest)[0]) for unit in units]
        if torch.allclose(F(x), rest + torch.stack(x).T @ torch.tensor(slopes, dtype=torch.float64), rtol=1e-12, atol=1e-12):
            return slopes
    raise BadInput(f"{method} is not linear in the gradient, which the closed form needs; give samples")
