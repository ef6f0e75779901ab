"""Predicted beta maps along mini-batches against the measured ones: results/batch_maps.json.

Fixed beforehand. Digits MLP (64-32-10, 896 images) and CNN (512 images), float64, 100 steps of Adam (0.9, 0.999) at lr 3e-4
and batch size 32, then 400 steps from empty memory at batch size 8 and 32, lr 3e-5, 1e-4 and 3e-4, the maps over 7 x 8 betas of
`memoryless betas`, measured at 20 of the last 100 steps, predicted at every second of those, of the gradient 1-norm.

Thresholds: the resummed map has the measured sign in 90 % of the cells where that is beyond two standard errors; it takes at
most 3 times the processor time of the measured map (all stops of each).
"""

import copy
import time
from typing import Any

import numpy as np
import torch

import memoryless as ml
from memoryless.audits.grid import Grid
from memoryless.audits.order_map import order_maps
from memoryless.corrections.sequences import random_order
from memoryless.experiments.problems import Problem, digits_cnn, digits_mlp
from memoryless.live.batch_sizes import BETAS_1, BETAS_2, STOPS, audit_batch_sizes, train
from memoryless.live.run import audit_run
from memoryless.loss.batches import cut
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from memoryless.report.betas import signs
from output import save, show

SIGNS, TIMES = 0.9, 3.0
LRS, SIZES = (3e-5, 1e-4, 3e-4), (8, 32)
BEFORE, STEPS = 100, 400
NETWORKS = {"MLP": lambda: digits_mlp(0, 32, 896), "CNN": lambda: digits_cnn(0, 512)}


def trained(problem: Problem) -> tuple[torch.nn.Module, ml.Loss]:
    """The network after its first steps, and its loss in batches of 32."""
    model = copy.deepcopy(problem.model)
    loss = ml.Loss(model, problem.criterion, cut(problem.batches[0], 32))
    train(torch.optim.Adam(model.parameters(), lr=3e-4), loss, BEFORE)
    return model, loss


def accuracy(problem: Problem, lr: float, size: int) -> dict[str, Any]:
    """How well the predicted maps agree with the measured one."""
    model, loss = trained(problem)
    found = audit_batch_sizes(torch.optim.Adam(model.parameters(), lr=lr), loss, [size], steps=STEPS)
    (at,) = found.sizes
    measured = at.measured.values[::-2][::-1, ..., 0].mean(0)
    row: dict[str, Any] = {}
    for kind in ("first", "resummed"):
        same, known = signs(at, kind, 0)
        gap = np.abs(getattr(at, kind).mean[..., 0] - measured)
        row[kind] = {"signs": same, "known": known, "relative_error": float(gap.sum() / np.abs(measured).sum())}
    return row


def seconds(problem: Problem, size: int) -> dict[str, float]:
    """Processor time of the measured map along a run, and of both predicted ones at half of its stops."""
    model, loss = trained(problem)
    loss = loss.on(model, cut(problem.batches[0], size))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    order = random_order(len(loss), STEPS, np.random.default_rng(0))
    stops = sorted({int(s) for s in np.linspace(0.75 * STEPS, STEPS - 1, STOPS)})
    start = time.thread_time()
    axes = BETAS_1, BETAS_2
    audit_run(optimizer, loss, order, stops=stops, measures=["gradient_1_norm"], compare=(), betas=axes)
    measured = time.thread_time() - start
    point = Point(loss)
    values, grid = evaluate(["gradient_1_norm"], point), Grid(ml.Adam(1e-4), *axes)
    start = time.thread_time()
    for _ in range(2):
        order_maps(grid, Point(loss), values, order)
    predicted = (time.thread_time() - start) / 2 * (len(stops) // 2)
    return {"measured": measured, "predicted": predicted, "ratio": predicted / measured}


def main() -> None:
    torch.set_num_threads(1)
    accuracies, times = [], []
    for name, make in NETWORKS.items():
        for size in SIZES:
            accuracies += [{"network": name, "batch_size": size, "lr": lr} | accuracy(make(), lr, size) for lr in LRS]
            times.append({"network": name, "batch_size": size} | seconds(make(), size))
            save("batch_maps", {"accuracy": accuracies, "seconds": times})
    show(
        f"cells with the measured sign, of those known; at least {SIGNS:.0%} for resummed",
        ["network", "batch", "lr", "first", "resummed", "error of first", "of resummed", "met"],
        [
            [r["network"], str(r["batch_size"]), f"{r['lr']:g}"]
            + [f"{r[kind]['signs']} of {r[kind]['known']}" for kind in ("first", "resummed")]
            + [r[kind]["relative_error"] for kind in ("first", "resummed")]
            + [str(r["resummed"]["signs"] >= SIGNS * r["resummed"]["known"])]
            for r in accuracies
        ],
    )
    heads = ["network", "batch", "measured, s", "predicted, s", "ratio", "met"]
    rows = [
        [t["network"], str(t["batch_size"]), t["measured"], t["predicted"], t["ratio"], str(t["ratio"] <= TIMES)] for t in times
    ]
    show("processor time of the maps", heads, rows)


if __name__ == "__main__":
    main()
