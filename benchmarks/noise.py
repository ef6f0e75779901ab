"""What an estimate of the expected correction costs, against Eq. 9 written out, and a table over batch sizes; float64.

The digits network 64-32-10 after 60 steps of Adam at batch size 32, then lr 1e-5.
"""

import time
from typing import Any

import numpy as np
import torch

import memoryless as ml
from memoryless.corrections.expected import expected
from memoryless.corrections.sequences import random_order
from memoryless.experiments.problems import Problem, digits_mlp
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from memoryless.methods import kernel
from output import save, show

LR = 1e-5
WARM_LRS = (1e-3, 3e-3, 1e-2)
MEASURE = "gradient_1_norm"
WANTED = 0.05
LEFT_AWAY = 1e-3
"""Share of the longest memory that Eq. 9 written out may leave away."""
WHOLE_ORDERS = 16
SIZES = (128, 32, 8)
BETAS = ((0.9, 0.99), (0.9, 0.9))
SAMPLES = 600


def batches(problem: Problem, size: int) -> ml.Loss:
    """The loss of the problem's images in batches of one size, in random order; the rest of the images is left out."""
    ((images, classes),) = problem.batches
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order[: len(order) // size * size].split(size)
    return ml.Loss(problem.model, problem.criterion, [(images[part], classes[part]) for part in parts])


def trained(problem: Problem, lr: float, steps: int = 60) -> torch.Tensor:
    """theta after some steps of Adam at batch size 32, from seed 0."""
    loss, method = batches(problem, 32), ml.Adam(lr)
    theta, state = loss.theta, method.init(loss.theta)
    for i in random_order(len(loss), steps, np.random.default_rng(0)):
        state, F = method.update(state, loss.gradient(theta, int(i)), theta)
        theta = theta - lr * F
    return theta


def seconds() -> np.ndarray:
    """On the clock, and of CPU."""
    return np.array([time.perf_counter(), time.process_time()])


def cost(problem: Problem, theta: torch.Tensor) -> dict[str, Any]:
    """To reach the wanted standard error: by random lags, and by Eq. 9 with a product per lag of whole orders."""
    loss, method = batches(problem, 32), ml.AdamW(LR, (0.9, 0.999))
    start, samples = seconds(), 256
    pilot = ml.expected_correction(method, loss, theta, samples=samples, measures=[MEASURE], seed=1)
    samples = max(2, round(1.2 * samples * (pilot.relative_error / WANTED) ** 2))
    found = ml.expected_correction(method, loss, theta, samples=samples, measures=[MEASURE])
    wall, cpu = seconds() - start

    slowest = max(v.beta for v in method.variables)
    lags = int(np.ceil(np.log(LEFT_AWAY) / np.log(slowest)))
    start = seconds()
    whole = ml.expected_correction(method, loss, theta, step=lags, samples=WHOLE_ORDERS, whole=True, measures=[MEASURE])
    whole_wall, whole_cpu = seconds() - start
    spread = whole.relative_error * WHOLE_ORDERS**0.5
    enough = max(2, int(np.ceil((spread / WANTED) ** 2)))  # two at least, which show how far orders differ
    return {
        "change": found.effects[0].mean / LR**2,
        "standard_error": found.effects[0].standard_error / LR**2,
        "relative_error": found.relative_error,
        "samples": found.samples,
        "products": found.products,
        "products_of_pilot": pilot.products,
        "seconds": wall,
        "cpu_seconds": cpu,
        "whole_orders": WHOLE_ORDERS,
        "whole_change": whole.effects[0].mean / LR**2,
        "whole_standard_error": whole.effects[0].standard_error / LR**2,
        "whole_spread": spread,
        "whole_products_per_order": whole.products / WHOLE_ORDERS,
        "whole_seconds_per_order": whole_wall / WHOLE_ORDERS,
        "whole_cpu_seconds_per_order": whole_cpu / WHOLE_ORDERS,
        "orders_wanted": enough,
        "lags": lags,
        "lags_in_double_precision": kernel.window(method.variables, 10**9) - 1,
    }


def table(problem: Problem, theta: torch.Tensor) -> list[dict[str, Any]]:
    """Change of the measure over lr^2 at each batch size."""
    rows = []
    for betas in BETAS:
        method = ml.Adam(LR, betas)
        full = ml.correction(method, problem.loss, theta).M
        (value,) = evaluate([MEASURE], Point(problem.loss, theta))
        scale = -1 / (LR * value.value)
        cells = [{"batch_size": "full", "change": scale * float(value.gradient @ full), "standard_error": 0.0}]
        for size in SIZES:
            loss = batches(problem, size)
            # Of the measure of all images, also of those that no batch of this size has.
            found = expected.sampled(method, Point(loss, theta), [value], None, expected.Plan(SAMPLES, 0))
            (effect,) = found.effects
            cells.append({"batch_size": size, "change": effect.mean / LR**2, "standard_error": effect.standard_error / LR**2})
        rows.append({"betas": betas, "measure": value.value, "cells": cells})
    return rows


def main() -> None:
    problem = digits_mlp(width=32)
    figures: dict[str, Any] = {"table": {}}
    for lr in WARM_LRS:
        theta = trained(problem, lr)
        figures["table"][f"{lr:g}"] = rows = table(problem, theta)
        show(
            f"relative change of the gradient 1-norm per step over lr^2, after 60 steps at lr {lr:g}",
            ["betas", "full", *map(str, SIZES)],
            [[str(r["betas"]), *(f"{c['change']:.2g} +- {c['standard_error']:.1g}" for c in r["cells"])] for r in rows],
        )
    figures["cost"] = cost(problem, trained(problem, WARM_LRS[0]))
    show("5 % standard error, AdamW (0.9, 0.999), batch size 32", ["", ""], [[k, v] for k, v in figures["cost"].items()])
    save("noise", figures)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
