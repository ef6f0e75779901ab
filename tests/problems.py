"""The losses and the one registry of methods that the common tests share."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import memoryless as ml
from memoryless.methods.method import AnyOptimizer, Groups, Part

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())


def tensor(values: Sequence) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Wave(NamedTuple):
    """L(t) = t.A t/2 + b.t + sum_i c_i (1 - cos t_i): smooth, not convex, with derivatives of every order."""

    A: Tensor
    b: Tensor
    c: Tensor

    def __call__(self, t: Tensor) -> Tensor:
        return t @ self.A @ t / 2 + self.b @ t + self.c @ (1 - t.cos())

    def gradient(self, t: Tensor) -> Tensor:
        return self.A @ t + self.b + self.c * t.sin()

    def hessian(self, t: Tensor) -> Tensor:
        return self.A + torch.diag(self.c * t.cos())

    @classmethod
    def mean(cls, waves: Sequence["Wave"]) -> "Wave":
        return cls(*(torch.stack(parts).mean(0) for parts in zip(*waves, strict=True)))

    @classmethod
    def random(cls, d: int, seed: int) -> "Wave":
        generator = torch.Generator().manual_seed(seed)
        A, b, c = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((d, d), d, d))
        return cls((A + A.T) / 2, b, c)


BATCHES = [Wave(*map(tensor, parts)) for parts in zip(REFERENCE["A"], REFERENCE["b"], REFERENCE["c"], strict=True)]
FULL_BATCH = Wave.mean(BATCHES)
THETA = tensor(REFERENCE["theta"])


def reference_loss() -> ml.Loss:
    return ml.Loss.of(BATCHES, THETA)


def quartic(t: Tensor) -> Tensor:
    return (t**4).sum() / 4


def norm(c: Tensor) -> Tensor:
    """Convex and smooth, but not a sum over coordinates: normalized momentum."""
    return (c.square().sum() + 0.1).sqrt()


def custom(lr: float) -> ml.Method:
    """A memory of |g| and one of theta, neither polynomial in the gradient."""
    return ml.Method(
        lr,
        variables=(
            ml.Momentum(0.8, weight=lambda n: 0.2 / (1 - 0.8 ** (n + 1.0)), degree=1),
            ml.Momentum(0.9, lambda g, theta: (g * g + 0.1).sqrt(), weight=lambda n: 0.1),
            ml.Momentum(0.6, lambda g, theta: g * theta.tanh(), lag=1, first=0.5),
        ),
        phi=lambda f, m, theta: m[0] / (m[1] + 0.3) + 0.1 * f.tanh(m[2]) + 0.05 * theta,
    )


def groups(lr: float) -> Groups:
    """Two methods on coordinates out of order; coordinate 3 belongs to neither and stays."""
    first, second = ml.AdamW(lr, (0.8, 0.9), 0.01, 0.1), ml.Nesterov(2 * lr, 0.7, 0.1)
    return Groups((Part(first, torch.tensor([5, 0, 2]), 1.0), Part(second, torch.tensor([1, 4]), 2.0)), lr)


# Betas and eps keep every memory and every second derivative moderate, so that all digits of a comparison count.
METHODS: dict[str, Callable[[float], AnyOptimizer]] = {
    "heavy_ball": lambda lr: ml.HeavyBall(lr, 0.9),
    "heavy_ball_dampened": lambda lr: ml.HeavyBall(lr, 0.9, dampening=0.4),
    "heavy_ball_coupled_decay": lambda lr: ml.HeavyBall(lr, 0.8, weight_decay=0.1),
    "nesterov": lambda lr: ml.Nesterov(lr, 0.8, weight_decay=0.1),
    "rmsprop": lambda lr: ml.RMSprop(lr, 0.95, 0.01),
    "rmsprop_eps_inside": lambda lr: ml.RMSprop(lr, 0.95, 0.01, eps_inside_root=True),
    # At rest the variance of a constant gradient is 0 but for rounding, which only an eps inside the root absorbs.
    "rmsprop_centered": lambda lr: ml.RMSprop(lr, 0.9, 0.1, centered=True, eps_inside_root=True),
    "adam_coupled_decay": lambda lr: ml.Adam(lr, (0.9, 0.95), 0.01, weight_decay=0.1),
    "adam_eps_inside": lambda lr: ml.Adam(lr, (0.9, 0.95), 0.01, eps_inside_root=True),
    "adamw": lambda lr: ml.AdamW(lr, (0.9, 0.95), 0.01, 0.1),
    "adamw_eps_inside": lambda lr: ml.AdamW(lr, (0.8, 0.95), 0.01, 0.1, eps_inside_root=True),
    "nadam": lambda lr: ml.NAdam(lr, (0.9, 0.95), 0.01, 0.1),
    "nadam_schedule": lambda lr: ml.NAdam(lr, (0.9, 0.95), 0.01, momentum_decay=4e-3),
    "nadam_coupled_decay": lambda lr: ml.NAdam(lr, (0.9, 0.95), 0.01, 0.1, eps_inside_root=True, decoupled_weight_decay=False),
    "lion": lambda lr: ml.Lion(lr, (0.9, 0.95), 0.1, smoothing=0.1),
    "signum": lambda lr: ml.Signum(lr, 0.9, 0.1, smoothing=0.1),
    "lion_k": lambda lr: ml.LionK(lr, (0.8, 0.95), 0.1, norm),
    "custom": custom,
    "groups": groups,
}
LINEAR = {"heavy_ball", "heavy_ball_dampened", "heavy_ball_coupled_decay", "nesterov"}


def variables(method: AnyOptimizer) -> list[ml.Momentum]:
    return [v for part in method.parts for v in part.method.variables]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.isfinite().all()
    difference = float((actual - expected).norm())
    return difference / float(expected.norm()) if difference else 0.0
