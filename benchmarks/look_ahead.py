"""Twenty steps on from theta alone against the real run there: MLP on the digits, Adam (0.9, 0.999), float64, full batch.

    python benchmarks/look_ahead.py

The truth is the change of the gradient's 1-norm in one step and the effect itself on the run that led to theta, 20 steps on.
"path, own v" starts at the path's first moment and the run's own second one, which theta alone does not tell.
"""

import statistics
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

import memoryless as ml
from memoryless.audits.effect import Changes, agreement
from memoryless.audits.shadow import Shadow
from memoryless.corrections.history import frozen, update_of
from memoryless.corrections.path import follow
from memoryless.experiments import problems
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from output import save, show

STEPS = (100, 200, 300, 600, 1000)
AHEAD = 20
ORDERS: tuple[Literal["path", "resummed"], ...] = ("path", "resummed")
STARTS = (*ORDERS, "path, own v")


def truths(loss: ml.Loss, method: ml.Method) -> Iterator[tuple[int, Tensor, Shadow, Tensor, float]]:
    """Of the real run: n, theta[n], the memory there, the effect at n + 20, what it changes."""
    theta, kept, shadow = loss.theta, {}, Shadow([method], loss.theta)
    state = method.init(theta)
    for n in range(max(STEPS) + AHEAD + 1):
        gradient = loss.gradient(theta)
        state, u = method.update(state, gradient, theta)
        if n in STEPS:
            kept[n] = theta, shadow.copy()
        if n - AHEAD in STEPS:
            F = frozen(method, gradient, theta, n)
            change = changed(loss, theta, F, u - F, method.lr)
            yield n - AHEAD, *kept[n - AHEAD], u - F, change
        shadow.update(gradient, theta)
        theta = theta - method.lr * u


def changed(loss: ml.Loss, theta: Tensor, F: Tensor, E: Tensor, lr: float) -> float:
    """What an effect changes in one step."""
    point = Point(loss, theta)
    return Changes(evaluate(["gradient_1_norm"], point), point, lr)(F, E)[0]


def with_own_v(loss: ml.Loss, method: ml.Method, theta: Tensor, own: Shadow, n: int) -> tuple[Tensor, float]:
    """The effect and its change 20 steps on, from the path's m and the run's own v."""
    point = Point(loss, theta, products=0)
    path, g, second = follow(method, point, n, [method]), point.gradient, method.variables[1]
    shadow = Shadow([method], theta)
    shadow.start(n, lambda v, index: own.memory(v, g, theta, index) if v is second else path.memory(v, index), g, theta)
    for _ in range(AHEAD):
        g = loss.gradient(theta)
        u = update_of(method, theta, lambda v, index, g=g, at=theta: shadow.memory(v, g, at, index))
        shadow.update(g, theta)
        theta = theta - method.lr * u
    g = loss.gradient(theta)
    F, E = frozen(method, g, theta, shadow.step), shadow.effect(method, g, theta)
    return E, changed(loss, theta, F, E, method.lr)


def main() -> None:
    points: list[dict[str, Any]] = []
    for lr in (3e-4, 1e-3):
        for seed in (7, 8):
            loss, method = problems.digits_mlp(seed, width=48, count=300).loss, ml.Adam(lr)
            for n, theta, own, effect, change in truths(loss, method):
                found_of: dict[str, tuple[Tensor, float | None]] = {"path, own v": with_own_v(loss, method, theta, own, n)}
                for order in ORDERS:
                    found = ml.look_ahead(method, loss, theta, AHEAD, step=n, order=order, measures=["gradient_1_norm"])
                    found_of[order] = found.measured, found.effects[0].measured
                for start, (measured, told) in found_of.items():
                    agreed = agreement(measured, effect)
                    assert agreed is not None
                    numbers = {"truth": change, "found": told, "cosine": agreed.cosine}
                    points.append({"lr": lr, "seed": seed, "step": n, "start": start} | numbers)
    figures: dict[str, Any] = {}
    for start in STARTS:
        some = [p for p in points if p["start"] == start]
        figures[start] = {
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
