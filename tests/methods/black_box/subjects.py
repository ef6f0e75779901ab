"""Torch optimizers to run as black boxes, and Eq. 9 taken literally for them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import memoryless as ml
from memoryless.corrections.correction import Correction
from memoryless.methods.black_box.torch_method import TorchMethod
from tests.problems import BATCHES, FULL_BATCH, THETA, Wave

LR = 0.01


SHAPES = [(2, 3)]


def unrolled(
    method: TorchMethod, loss: ml.Loss, theta: Tensor, step: int, order: Any = "first", batches: Any = None
) -> Correction:
    return ml.correction(method, loss, theta, step=step, order=order, batches=batches)


def steady(method: TorchMethod, loss: ml.Loss, theta: Tensor, order: Any = "first") -> Correction:
    return ml.correction(method, loss, theta, order=order)


# Betas and eps keep every memory and every second derivative moderate, so that all digits of a comparison count.
TORCH: dict[str, Callable[..., Optimizer]] = {
    "heavy_ball": lambda p, **k: SGD(p, lr=LR, momentum=0.9, **k),
    "heavy_ball_dampened": lambda p, **k: SGD(p, lr=LR, momentum=0.9, dampening=0.4, weight_decay=0.1, **k),
    "nesterov": lambda p, **k: SGD(p, lr=LR, momentum=0.8, nesterov=True, weight_decay=0.1, **k),
    "sgd": lambda p, **k: SGD(p, lr=LR, **k),
    "adam": lambda p, **k: Adam(p, lr=LR, betas=(0.9, 0.95), eps=0.01, weight_decay=0.1, **k),
    "adamw": lambda p, **k: AdamW(p, lr=LR, betas=(0.9, 0.95), eps=0.01, weight_decay=0.1, **k),
    "nadam": lambda p, **k: NAdam(p, lr=LR, betas=(0.9, 0.95), eps=0.01, momentum_decay=0.1, **k),
    "rmsprop": lambda p, **k: RMSprop(p, lr=LR, alpha=0.95, eps=0.01, **k),
    "rmsprop_centered": lambda p, **k: RMSprop(p, lr=LR, alpha=0.95, eps=0.1, centered=True, **k),
}


class LionK(Optimizer):
    """c = rho1 m + (1 - rho1) g, theta -= lr slope(c), m = rho2 m + (1 - rho2) g, with slope = grad K."""

    def __init__(self, params, lr, slope, betas=(0.9, 0.9)):
        super().__init__(params, {"lr": lr, "slope": slope, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        for group in self.param_groups:
            rho1, rho2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.sub_(group["lr"] * group["slope"](rho1 * m + (1 - rho1) * p.grad))
                m.mul_(rho2).add_(p.grad, alpha=1 - rho2)


def orthogonal(c: Tensor) -> Tensor:
    """The slope of the nuclear norm."""
    u, _, v = torch.linalg.svd(c, full_matrices=False)
    return u @ v


# With its own betas Muon is no Lion-K; its Newton-Schulz iteration is near, but not at, the orthogonal factor.
SLOPES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "heavy_ball": (lambda c: c, (0.9, 0.9)),
    "signum": (lambda c: c / (c * c + 0.1).sqrt(), (0.9, 0.9)),
    "lion": (lambda c: c / (c * c + 0.1).sqrt(), (0.8, 0.95)),
    "normalized_momentum": (lambda c: c / c.norm(), (0.9, 0.9)),
    "muon": (orthogonal, (0.95, 0.9)),
}


class Amnesiac(SGD):
    """Heavy ball that goes through detached tensors: forward mode sees nothing of its memory."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.mul_(group["momentum"]).add_(p.grad.detach())
                p.sub_(group["lr"] * m)


class Elsewhere(SGD):
    """Heavy ball in NumPy, which no tangent enters."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.copy_(torch.from_numpy(group["momentum"] * m.numpy() + p.grad.numpy()))
                p.sub_(group["lr"] * m)


class Clipped(Adam):
    """Writes into the gradient, keeps a count as an attribute, wraps another optimizer that shares its groups."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.inner = SGD(self.param_groups, lr=options["lr"], momentum=0.5)
        self.taken = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.taken += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(1 + 1 / self.taken)
        self.inner.step()
        super().step()


def onecycle(params: list[nn.Parameter]) -> tuple[Optimizer, Any]:
    """Moves both lr and momentum."""
    optimizer = SGD(params, lr=LR, momentum=0.9)
    return optimizer, OneCycleLR(optimizer, max_lr=2 * LR, total_steps=40)


def warmup(params: list[nn.Parameter]) -> tuple[Optimizer, Any]:
    optimizer = AdamW(params, lr=LR, betas=(0.8, 0.9), eps=0.01)
    return optimizer, LambdaLR(optimizer, lambda n: n / 10)


OTHERS: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "adafactor": lambda p: Adafactor(p, lr=LR, beta2_decay=-0.5),
    "rmsprop_momentum": lambda p: RMSprop(p, lr=LR, alpha=0.9, eps=0.01, momentum=0.9),
    "radam": lambda p: RAdam(p, lr=LR, betas=(0.8, 0.9)),
    "adamax": lambda p: Adamax(p, lr=LR, betas=(0.9, 0.95)),
    "adagrad": lambda p: Adagrad(p, lr=LR, lr_decay=0.1, eps=0.01),
    "adadelta": lambda p: Adadelta(p, lr=LR, eps=0.01),
    "amsgrad": lambda p: Adam(p, lr=LR, betas=(0.9, 0.95), eps=0.01, amsgrad=True),
    "amnesiac": lambda p: Amnesiac(p, lr=LR, momentum=0.9),
    "elsewhere": lambda p: Elsewhere(p, lr=LR, momentum=0.9),
    "clipped": lambda p: Clipped(p, lr=LR, betas=(0.8, 0.9), eps=0.01),
    "onecycle": onecycle,
    "warmup": warmup,
} | {
    name: functools.partial(lambda p, slope, betas: LionK(p, LR, slope, betas), slope=s, betas=b)
    for name, (s, b) in SLOPES.items()
}


def black_box(name: str, **options: Any) -> TorchMethod:
    return TorchMethod(lambda params: TORCH[name](params, **options), SHAPES)


def catalogue(name: str) -> Any:
    return ml.method_of(TORCH[name]([nn.Parameter(torch.zeros(2, 3))]))


def order_of(n: int, batches: bool) -> list[int] | None:
    return [[2, 0, 0, 3, 1, 3, 2][s % 7] for s in range(n + 1)] if batches else None


def waves(n: int, sequence: list[int] | None) -> list[Wave]:
    return [FULL_BATCH] * (n + 1) if sequence is None else [BATCHES[i] for i in sequence]


def streamed(
    factory: Callable[[list[nn.Parameter]], Any], gradients: Sequence[Tensor], thetas: Tensor | Sequence[Tensor], lr: float = LR
) -> Tensor:
    """F[0], ..., F[n], shape (n + 1, d), of a torch optimizer run as everyone does."""
    p = nn.Parameter(thetas[0].clone().view(*SHAPES))
    made = factory([p])
    optimizer, scheduler = made if isinstance(made, tuple) else (made, None)
    updates = []
    for g, theta in zip(gradients, thetas, strict=True):
        with torch.no_grad():
            p.copy_(theta.view(*SHAPES))
        p.grad = g.clone().view(*SHAPES)
        optimizer.step()
        if scheduler:
            scheduler.step()
        updates.append((theta - p.detach().flatten()) / lr)
    return torch.stack(updates)


def literal(factory: Callable[[list[nn.Parameter]], Any], seen: list[Wave], lr: float = LR) -> tuple[Tensor, Tensor, Tensor]:
    """F[n]; M[n] = d/de F[n] along theta[j] = THETA + e lr D[j], by brute force; and the resummed M[n]."""
    history = THETA.expand(len(seen), -1)
    F = streamed(factory, [wave.gradient(THETA) for wave in seen], history, lr)
    D = torch.stack([F[j:-1].sum(0) for j in range(len(seen))])

    def along(e: float) -> Tensor:
        moved = history + e * lr * D
        return streamed(factory, [wave.gradient(theta) for wave, theta in zip(seen, moved, strict=True)], moved, lr)[-1]

    coarse, fine = ((along(e) - along(-e)) / (2 * e) for e in (1e-3, 5e-4))
    lagging = [wave.gradient(THETA) + lr * wave.hessian(THETA) @ back for wave, back in zip(seen, D, strict=True)]
    return F[-1], (4 * fine - coarse) / 3, streamed(factory, lagging, history + lr * D, lr)[-1] - F[-1]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative, with a floor for an M that cancels to nothing."""
    assert actual.isfinite().all()
    assert float((actual - expected).norm()) <= tolerance * (float(expected.norm()) + 1e-3)
