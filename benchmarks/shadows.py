"""Shadow memories on live Adam runs against each pair's own run at EQUAL LOSS: float64, full batch.

    python benchmarks/shadows.py

A cell is the change of the gradient's 1-norm that a pair's memory makes in one step, by its shadow on the live run at a step,
and on the pair's own run, from the same start, where that first has the loss that the live run has there: the mean over the
five steps around, and so for the shadow, since both oscillate. A cell whose own run never has that loss is left out, and
counted. Settled is what `audits.deviation` says, whose rule was found on the seeds 3 to 6; anchors are three live runs, each
cell read off the nearest.

Must hold: settled cells of one run have the sign of the own run's in .98 and a median error of .10, and are at least half of
all; with three anchors all cells .97 and .12.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import memoryless as ml
from memoryless.audits.deviation import STEPS, Deviations, settles, usual
from memoryless.audits.effect import Changes
from memoryless.audits.shadow import Shadow
from memoryless.corrections.history import frozen
from memoryless.experiments import problems
from memoryless.experiments.problems import Problem
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Value
from memoryless.loss.point import Point
from output import save, show

Pair = tuple[float, float]

ANCHORS = [(0.9, 0.999), (0.9, 0.9), (0.99, 0.999)]
PAIRS = [(b1, b2) for b1 in (0.5, 0.9, 0.99) for b2 in (0.9, 0.95, 0.99, 0.999) if b2 >= 0.95 or b1 < 0.99]
RUNS: list[tuple[str, Callable[[], Problem], float, tuple[int, ...]]] = [
    (f"{name} seed {seed}", lambda make=make, seed=seed: make(seed), lr, steps)
    for seed in (9, 10, 11, 12)
    for name, make, lr, steps in (
        ("MLP", lambda seed: problems.digits_mlp(seed, width=16, count=150), 3e-4, (50, 120, 240)),
        ("MLP", lambda seed: problems.digits_mlp(seed, width=16, count=150), 1e-3, (50, 120, 240)),
        ("CNN", lambda seed: problems.digits_cnn(seed, count=50), 3e-4, (50, 120)),
        ("CNN", lambda seed: problems.digits_cnn(seed, count=50), 1e-3, (50, 120)),
    )
]
AROUND = 2


class Stream(NamedTuple):
    """A run of Adam, step by step."""

    loss: Loss
    lr: float
    pair: Pair
    thetas: list[Tensor]
    gradients: list[Tensor]
    losses: list[float]


def stream(loss: Loss, lr: float, pair: Pair, steps: int) -> Stream:
    """Run Adam with a pair of betas."""
    method, theta, found = ml.Adam(lr, pair), loss.theta, Stream(loss, lr, pair, [], [], [])
    state = method.init(theta)
    for _ in range(steps):
        found.thetas.append(theta)
        found.losses.append(float(loss(theta)))
        found.gradients.append(loss.gradient(theta))
        state, F = method.update(state, found.gradients[-1], theta)
        theta = theta - lr * F
    return found


class Told(NamedTuple):
    """By step and pair, the change around it, and the deviation at it."""

    changes: dict[int, dict[Pair, float]]
    deviations: dict[int, dict[Pair, float]]


def shadows(run: Stream, pairs: Sequence[Pair], steps: Sequence[int], apart: bool = True) -> Told:
    """What the pairs' memories, fed with the run's gradients, do around the steps."""
    methods = {pair: ml.Adam(run.lr, pair) for pair in pairs}
    shadow = Shadow(methods.values(), run.thetas[0])
    recent = Deviations(list(methods.values()), None, run.thetas[0], run.lr)
    near = {n + k for n in steps for k in range(-AROUND, AROUND + 1)}
    each: dict[int, dict[Pair, float]] = {}
    deviations: dict[int, dict[Pair, float]] = {}
    for n in range(max(near) + 1):
        gradient, theta = run.gradients[n], run.thetas[n]
        if n in near:
            each[n] = changes(run, methods, shadow, gradient, theta)
        if n in steps and apart:
            deviations[n] = dict(zip(pairs, (d or 0.0 for d in recent.of(theta)[0]), strict=True))
        if apart and any(0 < stop - n <= STEPS for stop in steps):
            recent.feed(shadow, gradient, theta)
        shadow.update(gradient, theta)
    around = {
        n: {pair: statistics.mean(each[n + k][pair] for k in range(-AROUND, AROUND + 1)) for pair in pairs} for n in steps
    }
    return Told(around, deviations)


def changes(run: Stream, methods: dict[Pair, ml.Method], shadow: Shadow, gradient: Tensor, theta: Tensor) -> dict[Pair, float]:
    """Of the gradient's 1-norm in one step, for each pair; no slope, so no product."""
    norm = float(gradient.abs().sum())
    value = Value("gradient_1_norm", norm, torch.zeros_like(theta), lambda there: float(there.gradient.abs().sum()))
    happens = Changes([value], Point(run.loss, theta, products=0), run.lr)
    return {
        pair: happens(frozen(method, gradient, theta, shadow.n), shadow.effect(method, gradient, theta))[0]
        for pair, method in methods.items()
    }


def at_losses(run: Stream, levels: set[float]) -> dict[float, float | None]:
    """What the run's own memory does where it first has each loss; None where it never has, or too near its start."""
    first = {level: next((n for n, value in enumerate(run.losses) if value <= level), None) for level in levels}
    known = {level: n for level, n in first.items() if n is not None and AROUND <= n < len(run.losses) - AROUND}
    told = shadows(run, [run.pair], sorted(set(known.values())), apart=False).changes if known else {}
    return {level: told[known[level]][run.pair] if level in known else None for level in levels}


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
        runs = {pair: stream(loss, lr, pair, int(1.7 * max(steps))) for pair in PAIRS}
        lives = {live: shadows(runs[live], PAIRS, steps) for live in ANCHORS}
        levels = {runs[live].losses[n] for live in ANCHORS for n in steps}
        own = {pair: at_losses(run, levels) for pair, run in runs.items()}
        print(name, lr, flush=True)
        for n in steps:
            size = {live: usual(np.array(list(told.changes[n].values()))) for live, told in lives.items()}
            for pair in PAIRS:
                told = {}
                for live, run in lives.items():
                    if pair != live:
                        apart, shadow = run.deviations[n][pair], run.changes[n][pair]
                        speaks = bool(settles(np.array(apart), np.array(shadow), size[live]))
                        told[live] = apart, shadow, own[pair][runs[live].losses[n]], speaks
                for live, (apart, shadow, truth, speaks) in told.items():
                    if truth is None:
                        missed += 1
                        continue
                    about = {"run": name, "lr": lr, "step": n, "live": live, "betas": pair}
                    cells.append(about | {"deviation": apart, "shadow": shadow, "own": truth, "settled": speaks})
                if pair in ANCHORS:
                    continue  # read off itself
                _, shadow, truth, speaks = told[min(told, key=lambda live: told[live][0])]
                if truth is not None:
                    anchored.append({"shadow": shadow, "own": truth, "settled": speaks})
    first = [c for c in cells if c["live"] == ANCHORS[0]]
    settled = [c for c in first if c["settled"]]
    figures = {
        "one run, all cells": summary(first),
        "one run, settled": summary(settled),
        "one run, not settled": summary([c for c in first if not c["settled"]]),
        "any of three runs, settled": summary([c for c in cells if c["settled"]]),
        "three anchors, all cells": summary(anchored),
        "three anchors, settled": summary([c for c in anchored if c["settled"]]),
    }
    rows = [[name, *(f"{x:.3g}" for x in found.values())] for name, found in figures.items()]
    show("shadow against own run at equal loss, gradient 1-norm", ["", "cells", "sign", "median error"], rows)
    share = len(settled) / len(first)
    print(f"settled: {share:.2f} of the cells; {missed} cells left out, whose own run never has the loss")
    print(f"settled: {sum(c['settled'] for c in anchored) / len(anchored):.2f} of the cells read off three anchors")
    correlation = float(np.corrcoef([c["settled"] for c in first], [c["shadow"] * c["own"] > 0 for c in first])[0, 1])
    save("shadows", figures | {"settled share": share, "left out": missed, "settled and right": correlation, "points": first})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
