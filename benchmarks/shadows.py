"""Shadow memories on a live Adam run against each pair's own run from the same start: float64, full batch."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch

import memoryless as ml
from memoryless.audits.effect import Changes
from memoryless.audits.shadow import Shadow
from memoryless.corrections.history import frozen
from memoryless.experiments import problems
from memoryless.experiments.problems import Problem
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from output import save, show

Pair = tuple[float, float]

LIVE = (0.9, 0.999)
PAIRS = [(0.9, 0.99), (0.9, 0.95), (0.9, 0.9), (0.99, 0.999), (0.5, 0.999)]
RUNS: list[tuple[str, Callable[[], Problem], float, tuple[int, ...]]] = [
    ("MLP", problems.digits_mlp, 1e-4, (150, 300)),
    ("MLP", problems.digits_mlp, 1e-3, (150, 300)),
    ("CNN", problems.digits_cnn, 3e-4, (50, 150, 299)),
    ("GPT", problems.text_gpt, 3e-4, (50, 150)),
    ("GPT", problems.text_gpt, 1e-3, (50, 150)),
]


def changes(
    problem: Problem, lr: float, live: Pair, pairs: Sequence[Pair], steps: Sequence[int]
) -> Iterator[tuple[int, dict[Pair, float]]]:
    """Run Adam with the live pair; at the steps, what each pair's memory does to the gradient's 1-norm in one step."""
    loss = problem.loss
    theta = loss.theta
    methods = {pair: ml.Adam(lr, pair) for pair in (live, *pairs)}
    shadow = Shadow(methods.values(), theta)
    state = methods[live].init(theta)
    for n in range(max(steps) + 1):
        gradient = loss.gradient(theta)
        if n in steps:
            point = Point(loss, theta)
            happens = Changes(evaluate(["gradient_1_norm"], point), point, lr)
            F = {pair: frozen(methods[pair], gradient, theta, n) for pair in pairs}
            yield n, {pair: happens(F[pair], shadow.effect(methods[pair], gradient, theta))[0] for pair in pairs}
        shadow.update(gradient, theta)
        state, F = methods[live].update(state, gradient, theta)
        theta = theta - lr * F


def main() -> None:
    figures, rows = [], []
    for name, make, lr, steps in RUNS:
        shadows = dict(changes(make(), lr, LIVE, PAIRS, steps))
        own = {pair: dict(changes(make(), lr, pair, [pair], steps)) for pair in PAIRS}
        for n in steps:
            cells = [{"betas": pair, "shadow": shadows[n][pair], "own": own[pair][n][pair]} for pair in PAIRS]
            figures.append({"network": name, "lr": lr, "step": n, "pairs": cells})
            rows.append([f"{name} {lr:g} {n}", *(f"{c['shadow']:.2g} / {c['own']:.2g}" for c in cells)])
    cells = [cell for figure in figures for cell in figure["pairs"]]
    agree = sum(math.copysign(1, c["shadow"]) == math.copysign(1, c["own"]) for c in cells)
    errors = [abs(c["shadow"] - c["own"]) / abs(c["own"]) for c in cells]
    show("change of the gradient 1-norm per step: shadow / own run", ["run, lr, step", *map(str, PAIRS)], rows)
    median = statistics.median(errors)
    print(f"sign agrees in {agree} of {len(cells)} cells; median relative error {median:.2f}")
    save("shadows", {"points": figures, "cells": len(cells), "signs_agree": agree, "median_relative_error": median})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
