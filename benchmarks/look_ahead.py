"""Twenty steps on from theta alone against the real run there: MLP on the digits, Adam (0.9, 0.999), float64, full batch.

    python benchmarks/look_ahead.py

The truth is the change of the gradient's 1-norm in one step and the effect itself on the run that led to theta, 20 steps on.
"""

import statistics
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

import memoryless as ml
from memoryless.audits.effect import Changes, agreement
from memoryless.corrections.history import frozen
from memoryless.experiments import problems
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from output import save, show

STEPS = (100, 200, 300, 600, 1000)
AHEAD = 20
ORDERS: tuple[Literal["path", "resummed"], ...] = ("path", "resummed")


def truths(loss: ml.Loss, method: ml.Method) -> Iterator[tuple[int, Tensor, Tensor, float]]:
    """Of the real run: n, theta[n], the effect at n + 20, what it changes."""
    theta, kept = loss.theta, {}
    state = method.init(theta)
    for n in range(max(STEPS) + AHEAD + 1):
        gradient = loss.gradient(theta)
        state, u = method.update(state, gradient, theta)
        if n in STEPS:
            kept[n] = theta
        if n - AHEAD in STEPS:
            point = Point(loss, theta)
            F = frozen(method, gradient, theta, n)
            (change,) = Changes(evaluate(["gradient_1_norm"], point), point, method.lr)(F, u - F)
            yield n - AHEAD, kept[n - AHEAD], u - F, change
        theta = theta - method.lr * u


def main() -> None:
    points: list[dict[str, Any]] = []
    for lr in (3e-4, 1e-3):
        for seed in (7, 8):
            loss, method = problems.digits_mlp(seed, width=48, count=300).loss, ml.Adam(lr)
            for n, theta, effect, change in truths(loss, method):
                for order in ORDERS:
                    found = ml.look_ahead(method, loss, theta, AHEAD, step=n, order=order, measures=["gradient_1_norm"])
                    agreed, told = agreement(found.measured, effect), found.effects[0].measured
                    assert agreed is not None
                    assert told is not None
                    numbers = {"truth": change, "found": told, "cosine": agreed.cosine, "gradients": found.gradients}
                    points.append({"lr": lr, "seed": seed, "step": n, "order": order} | numbers)
    figures: dict[str, Any] = {}
    for order in ORDERS:
        some = [p for p in points if p["order"] == order]
        figures[order] = {
            "points": len(some),
            "sign": sum((p["found"] < 0) == (p["truth"] < 0) for p in some) / len(some),
            "median error": statistics.median(abs(p["found"] - p["truth"]) / abs(p["truth"]) for p in some),
            "median cosine": statistics.median(p["cosine"] for p in some),
        }
    show("20 steps on, from theta alone", ["memory started", *figures["path"]], [[n, *f.values()] for n, f in figures.items()])
    save("look_ahead", figures | {"each": points})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
