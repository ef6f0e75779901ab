"""The steady correction of a black box: by the linear solve, against the unrolled response, and against plain steps.

    python benchmarks/black_box.py

Unrolled: the exact response of a history of 80,000 frozen gradients, which is what the steady state means. Ratios of times
measured side by side in one run.
"""

import time
from functools import partial

import torch

import memoryless as ml
from output import save, show

STEPS = 80_000


def adam(params: list) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3, betas=(0.9, 0.999))


def timed(work):
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def small() -> dict[str, float]:
    """Adam on a smooth function of ten variables."""
    generator = torch.Generator().manual_seed(0)
    A, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((10, 10), (10,)))
    loss = ml.Loss.of(lambda theta: (A @ theta - b).cos().sum() + theta @ theta, b)
    method = ml.TorchMethod(adam, [(10,)])
    ml.correction(method, loss)
    steady, seconds = timed(lambda: ml.correction(method, loss))
    late, unrolled = timed(lambda: ml.correction(method, loss, step=STEPS))
    return {
        "optimizer steps": steady.steps,
        "Hessian-vector products": steady.products,
        "optimizer steps, unrolled": late.steps,
        "time, unrolled over steady": unrolled / seconds,
        "difference": float((steady.M - late.M).norm() / late.M.norm()),
    }


def large(d: int = 10**6) -> dict[str, float]:
    """AdamW on a million variables; the unit is one plain step of torch's AdamW."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(d, generator=generator, dtype=torch.float64)
    loss = ml.Loss.of(lambda theta: (theta**2 / (1 + theta**2)).sum(), theta)
    method = ml.TorchMethod(partial(torch.optim.AdamW, lr=1e-3), [(d,)])
    parameter = torch.nn.Parameter(theta.clone())
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)

    def plain() -> None:
        for _ in range(10):
            parameter.grad = loss.gradient(parameter.detach())
            optimizer.step()

    plain()
    c, seconds = timed(lambda: ml.correction(method, loss))
    _, ten = timed(plain)
    exact = ml.correction(ml.AdamW(lr=1e-3), loss)
    return {
        "optimizer steps": c.steps,
        "seconds": seconds,
        "time, in plain steps": seconds / ten * 10,
        "difference from the catalogue": float((c.M - exact.M).norm() / exact.M.norm()),
    }


if __name__ == "__main__":
    figures = {"Adam (0.9, 0.999), d = 10": small(), "AdamW, d = 1,000,000": large()}
    for title, found in figures.items():
        show(title, ["figure", "value"], [[key, value] for key, value in found.items()])
    save("black_box", figures)
