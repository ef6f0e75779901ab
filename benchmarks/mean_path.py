"""The mean over many seeds of short mini-batch runs against memoryless paths: order in lr, at the horizon; float64.

Along each seed's order of batches (without replacement) the optimizer is followed by t[n+1] = t[n] - lr (F[n](t) + M), M being

    frozen:    0
    own:       M[n](t) of that order, Eq. 9 taken literally
    expected:  the mean of M[n] over the seeds, whose orders differ: E[M], as `expected_correction` estimates it

What is compared is the mean over the seeds. The frozen path should be off by O(lr), both others by O(lr^2).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

import memoryless as ml
from memoryless.corrections.sequences import random_order
from memoryless.methods.black_box.derivative import tangent
from output import save, show

SEEDS, BATCHES, DIMENSION, HORIZON = 1000, 8, 6, 0.4
STEPS = (16, 32, 64, 128)
MEMORY = 32
"""Steps that 0.5^k and 0.6^k are remembered to, 1e-7."""
METHODS: dict[str, Callable[[float], ml.Method]] = {
    "heavy ball 0.6": lambda lr: ml.HeavyBall(lr, 0.6),
    "Adam (0.5, 0.6), eps 0.1": lambda lr: ml.Adam(lr, (0.5, 0.6), 0.1),
}
KINDS = ("frozen", "own", "expected")


class Batches:
    """L_i(t) = t.A_i t/2 + b_i.t + sum_j c_ij (1 - cos t_j), for many seeds at once."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        A = torch.randn(BATCHES, DIMENSION, DIMENSION, generator=generator, dtype=torch.float64)
        self.A = torch.eye(DIMENSION, dtype=torch.float64) + 0.2 * (A + A.mT)
        self.b, self.c = torch.randn(2, BATCHES, DIMENSION, generator=generator, dtype=torch.float64)
        self.start = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)

    def gradient(self, t: Tensor, i: Tensor) -> Tensor:
        """At t of shape (..., seeds, d), of batches i of shape (..., seeds)."""
        return (self.A[i] @ t[..., None])[..., 0] + self.b[i] + self.c[i] * t.sin()

    def product(self, t: Tensor, i: Tensor, v: Tensor) -> Tensor:
        """Hessian times v."""
        return (self.A[i] @ v[..., None])[..., 0] + self.c[i] * t.cos() * v


def frozen(method: ml.Method, gradients: Iterable[Tensor], theta: Tensor, first: int) -> list[Tensor]:
    """F of consecutive steps, the first one number `first`, from empty memory."""
    state: Any = method.init(theta)._replace(n=first)
    updates = []
    for g in gradients:
        state, F = method.update(state, g, theta)
        updates.append(F)
    return updates


def literal(
    method: ml.Method, batches: Batches, theta: Tensor, orders: Tensor, n: int, corrected: bool
) -> tuple[Tensor, Tensor]:
    """F[n] and M[n] of each seed's order, shape (seeds, d)."""
    low = max(0, n + 1 - MEMORY)
    used = orders[low : n + 1]
    gradients = batches.gradient(theta, used)
    updates = frozen(method, gradients, theta, low)
    F = updates[-1]
    if not corrected or n == 0:
        return F, torch.zeros_like(F)
    D = torch.stack([*updates[:-1], torch.zeros_like(F)]).flip(0).cumsum(0).flip(0)
    drifts = method.lr * batches.product(theta, used, D)
    with forward_ad.dual_level():
        drifting = [forward_ad.make_dual(g, drift) for g, drift in zip(gradients, drifts, strict=True)]
        return F, tangent(frozen(method, drifting, theta, low)[-1])


def errors(method: ml.Method, batches: Batches, steps: int, kinds: tuple[str, ...] = KINDS) -> dict[str, Tensor]:
    """Optimizer less memoryless path at the horizon, for each seed."""
    rng = np.random.default_rng(steps)
    orders = torch.from_numpy(np.stack([random_order(BATCHES, steps, rng) for _ in range(SEEDS)], axis=1))
    theta = batches.start.repeat(SEEDS, 1)
    paths, state = {kind: theta for kind in kinds}, method.init(theta)
    for n in range(steps):
        state, F = method.update(state, batches.gradient(theta, orders[n]), theta)
        theta = theta - method.lr * F
        for kind in kinds:
            F, M = literal(method, batches, paths[kind], orders, n, kind != "frozen")
            paths[kind] = paths[kind] - method.lr * (F + (M.mean(0) if kind == "expected" else M))
    return {kind: theta - path for kind, path in paths.items()}


def size(error: Tensor) -> tuple[float, float]:
    """Length of the mean over the seeds, and its standard error."""
    mean = error.mean(0)
    along = error @ mean / mean.norm()
    return float(mean.norm()), float(along.std() / len(error) ** 0.5)


def main() -> None:
    batches, figures, rows = Batches(), [], []
    for name, make in METHODS.items():
        found = {steps: {k: size(e) for k, e in errors(make(HORIZON / steps), batches, steps).items()} for steps in STEPS}
        for kind in KINDS:
            sizes = [found[steps][kind] for steps in STEPS]
            (a, da), (b, db) = sizes[-2:]
            slope, uncertain = math.log2(a / b), math.hypot(da / a, db / b) / math.log(2)
            rows.append([name, kind, *(f"{x:.2g} +- {dx:.1g}" for x, dx in sizes), f"{slope:.2f} +- {uncertain:.2f}"])
            figures.append({"method": name, "kind": kind, "errors": sizes, "slope": slope, "standard_error": uncertain})
    lrs = [f"lr {HORIZON / steps:.2g}" for steps in STEPS]
    show(f"error of the mean path of {SEEDS} seeds, slope at the finest halving", ["method", "M", *lrs, "slope"], rows)
    save("mean_path", {"seeds": SEEDS, "horizon": HORIZON, "lrs": [HORIZON / steps for steps in STEPS], "rows": figures})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
