"""Shadow memories on live Adam runs against each pair's own run at EQUAL LOSS: float64, full batch.

    python benchmarks/shadows.py

A cell is the change of the gradient's 1-norm that a pair's memory makes in one step, by its shadow on the live run at a step, and
on the pair's own run, from the same start, where that first has the loss that the live run has there: the mean over the five steps
around, and so for the shadow, since both oscillate. A cell whose own run never has that loss is left out, and counted. Settled is
what `audits.deviation` says; anchors are three live runs, each cell read off the nearest.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import memoryless as ml
from memoryless.audits.deviation import SETTLED, STEPS, Deviations
from memoryless.audits.effect import Changes
from memoryless.audits.shadow import Shadow
from memoryless.corrections.history import frozen
from memoryless.experiments import problems
from memoryless.experiments.problems import Problem
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Value, gradient_1_norm
from memoryless.loss.point import Point
from output import save, show

Pair = tuple[float, float]

ANCHORS = [(0.9, 0.999), (0.9, 0.9), (0.99, 0.999)]
PAIRS = [(b1, b2) for b1 in (0.5, 0.9, 0.95, 0.99) for b2 in (0.9, 0.95, 0.99, 0.999) if (b1, b2) != (0.99, 0.9)]
RUNS: list[tuple[str, Callable[[], Problem], float, tuple[int, ...]]] = [
    (f"{name} seed {seed}", lambda make=make, seed=seed: make(seed), lr, steps)
    for seed in (7, 8)
    for name, make, lr, steps in (
        ("MLP", lambda seed: problems.digits_mlp(seed, width=24, count=300), 3e-4, (50, 150, 300)),
        ("MLP", lambda seed: problems.digits_mlp(seed, width=24, count=300), 1e-3, (50, 150, 300)),
        ("CNN", lambda seed: problems.digits_cnn(seed, count=100), 3e-4, (50, 150)),
        ("CNN", lambda seed: problems.digits_cnn(seed, count=100), 1e-3, (50, 150)),
    )
]
AROUND = 2


class Along(NamedTuple):
    """What is known of a run: its losses, and by step and pair the change, and the deviation."""

    losses: list[float]
    changes: dict[int, dict[Pair, float]]
    deviations: dict[int, dict[Pair, float]]


def along(loss: Loss, lr: float, live: Pair, pairs: Sequence[Pair], steps: Sequence[int], last: int) -> Along:
    """Run Adam with the live pair; near the steps, what each pair's memory does."""
    methods = {pair: ml.Adam(lr, pair) for pair in (live, *pairs)}
    theta, near = loss.theta, {n + k for n in steps for k in range(-AROUND, AROUND + 1)}
    shadow, state = Shadow(methods.values(), theta), methods[live].init(theta)
    recent = Deviations([methods[pair] for pair in pairs], None, theta, lr)
    found = Along([], {}, {})
    for n in range(last + AROUND + 1):
        found.losses.append(float(loss(theta)))
        gradient = loss.gradient(theta)
        if n in near:
            found.changes[n] = changes(loss, lr, methods, pairs, shadow, gradient, theta)
            found.deviations[n] = dict(zip(pairs, (d or 0.0 for d in recent.of(theta)[0]), strict=True))
        if any(0 < n2 - n <= STEPS for n2 in near):
            recent.feed(shadow, gradient, theta)
        shadow.update(gradient, theta)
        state, F = methods[live].update(state, gradient, theta)
        theta = theta - lr * F
    return found


def changes(
    loss: Loss,
    lr: float,
    methods: dict[Pair, ml.Method],
    pairs: Sequence[Pair],
    shadow: Shadow,
    gradient: Tensor,
    theta: Tensor,
) -> dict[Pair, float]:
    """Of the gradient's 1-norm in one step, for each pair."""
    point = Point(loss, theta, products=0)
    norm = float(gradient.abs().sum())
    # The change takes values alone: no product for a slope that is not asked for.
    value = Value("gradient_1_norm", norm, torch.zeros_like(theta), lambda there: float(there.gradient.abs().sum()))
    assert value.name == gradient_1_norm.__name__
    happens = Changes([value], point, lr)
    return {
        pair: happens(frozen(methods[pair], gradient, theta, shadow.n), shadow.effect(methods[pair], gradient, theta))[0]
        for pair in pairs
    }


def mean(of: dict[int, dict[Pair, float]], n: int, pair: Pair) -> float:
    """Over the steps around n."""
    return statistics.mean(of[n + k][pair] for k in range(-AROUND, AROUND + 1))


class Own:
    """A pair's own run, asked at given losses."""

    def __init__(self, loss: Loss, lr: float, pair: Pair, longest: int):
        self._loss, self._lr, self._pair, self._longest = loss, lr, pair, longest
        self.losses = along(loss, lr, pair, [pair], [], longest).losses
        self._asked: dict[int, float] = {}

    def at(self, level: float) -> float | None:
        """The change where the run first has that loss; None where it never has, or too near its start."""
        n = next((n for n, value in enumerate(self.losses[: self._longest]) if value <= level), None)
        if n is None or n < 2 * AROUND:
            return None
        if n not in self._asked:
            self._asked[n] = mean(along(self._loss, self._lr, self._pair, [self._pair], [n], n).changes, n, self._pair)
        return self._asked[n]


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """How often the sign is right, and how large the error is."""
    if not cells:
        return {"cells": 0}
    right = [(c["shadow"] < 0) == (c["own"] < 0) for c in cells]
    errors = [abs(c["shadow"] - c["own"]) / abs(c["own"]) for c in cells]
    return {"cells": len(cells), "sign": sum(right) / len(cells), "median_error": statistics.median(errors)}


def main() -> None:
    cells: list[dict[str, Any]] = []
    anchored: list[dict[str, Any]] = []
    missed = 0
    for name, make, lr, steps in RUNS:
        loss = make().loss
        runs = {live: along(loss, lr, live, [p for p in PAIRS if p != live], steps, max(steps)) for live in ANCHORS}
        own = {pair: Own(loss, lr, pair, 2 * max(steps)) for pair in PAIRS}
        for n in steps:
            for pair in PAIRS:
                told = {}
                for live, run in runs.items():
                    if pair == live:
                        continue
                    told[live] = run.deviations[n][pair], mean(run.changes, n, pair), own[pair].at(run.losses[n])
                for live, (apart, shadow, truth) in told.items():
                    if truth is None:
                        missed += 1
                        continue
                    about = {"run": name, "lr": lr, "step": n, "live": live, "betas": pair}
                    cells.append(about | {"deviation": apart, "shadow": shadow, "own": truth})
                if pair in ANCHORS:
                    continue  # read off itself
                _, shadow, truth = told[min(told, key=lambda live: told[live][0])]
                if truth is not None:
                    anchored.append({"shadow": shadow, "own": truth, "deviation": min(d for d, _, _ in told.values())})
    first = [c for c in cells if c["live"] == ANCHORS[0]]
    settled = [c for c in first if c["deviation"] < SETTLED]
    figures = {
        "one run, all cells": summary(first),
        "one run, settled": summary(settled),
        "one run, not settled": summary([c for c in first if c["deviation"] >= SETTLED]),
        "any of three runs, settled": summary([c for c in cells if c["deviation"] < SETTLED]),
        "three anchors, all cells": summary(anchored),
        "three anchors, settled": summary([c for c in anchored if c["deviation"] < SETTLED]),
    }
    rows = [[name, *(f"{x:.3g}" for x in found.values())] for name, found in figures.items()]
    show("shadow against own run at equal loss, gradient 1-norm", ["", "cells", "sign", "median error"], rows)
    share = len(settled) / len(first)
    print(f"settled: {share:.2f} of the cells; {missed} cells left out, whose own run never has the loss")
    correlation = float(
        np.corrcoef([c["deviation"] < SETTLED for c in first], [c["shadow"] * c["own"] > 0 for c in first])[0, 1]
    )
    save("shadows", figures | {"settled share": share, "left out": missed, "settled and right": correlation, "points": first})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
