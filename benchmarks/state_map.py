"""Maps from a checkpoint's own buffers, held out: networks, optimizers, steps, seeds, thresholds and tests fixed beforehand.

Nothing here was looked at while `corrections.recalled` and `audits.state_map` were made: other networks (but for the GPT's and
the CNN's design), other seeds, other splits of the digits, steps up to 5,000. For each run along Adam or AdamW, full batch, and
each stop, all pairs of a 6 x 6 grid but the live one are told from the buffers alone and compared with shadow memories of the
same run, which are exact. Rivals: first order, resummed, path (from theta), a straight drift through m (from the buffers).

Must hold (over all networks; by target region as well, which is reported and not judged):
  known       error < 0.2:  median cosine >= .98, sign >= .97, median error of the change <= 8 %
  share       known cells are >= 2/3 of those with beta_1' <= beta_1, and >= 40 % of all
  coverage    the 90 % intervals of cells that are not blank cover the true change in 85 to 95 %
Batch 32: the same runs along mini-batches, told as if they had been full batch; `beta_map` refuses these, and the figures say
why. A run that is not finite is left out and counted.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import memoryless as ml
from memoryless.audits.grid import Grid
from memoryless.audits.shadow import Shadow
from memoryless.audits.state_map import UNKNOWN, Buffers, state_map
from memoryless.corrections.expansion import expansion
from memoryless.corrections.history import frozen, update_of
from memoryless.corrections.path import follow
from memoryless.experiments import problems
from memoryless.experiments.problems import Problem, cross_entropy
from memoryless.flat import norm
from memoryless.live import loop
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Value, evaluate
from memoryless.loss.point import Point
from output import save, show

BETAS_1 = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
BETAS_2 = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999)
SEEDS = (11, 12, 13, 14, 15)
STOPS = {
    "MLP": (30, 300, 2000, 5000),
    "CNN": (30, 150, 500),
    "GPT": (30, 150),
    "ResNet": (30, 150, 500),
    "LSTM": (30, 150, 500),
}


class Block(nn.Module):
    """x + BN(conv(GELU(BN(conv x)))), its BatchNorms in evaluation mode."""

    def __init__(self, width: int):
        super().__init__()
        convolution = partial(nn.Conv2d, width, width, 3, padding=1, bias=False)
        self.inner = nn.Sequential(convolution(), nn.BatchNorm2d(width), nn.GELU(), convolution(), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(images, width, 8, 8) to the same."""
        return x + self.inner(x)


class Rows(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(images, 64) to (images, 10)."""
        return self.head(self.lstm(x.view(-1, 8, 8))[0][:, -1])


def data(seed: int, count: int) -> tuple[Tensor, Tensor]:
    images, classes = problems.digits(1797)
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images[drawn], classes[drawn]


def network(name: str, seed: int) -> Problem:
    torch.manual_seed(seed)
    if name == "GPT":
        return problems.text_gpt(seed)
    image = (nn.Unflatten(1, (1, 8, 8)),)
    model = {
        "MLP": lambda: nn.Sequential(nn.Linear(64, 28), nn.SiLU(), nn.Linear(28, 20), nn.Tanh(), nn.Linear(20, 10)),
        "CNN": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 6, 3),
            nn.Tanh(),
            nn.Conv2d(6, 8, 3),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(128, 10),
        ),
        "ResNet": lambda: nn.Sequential(
            *image, nn.Conv2d(1, 6, 3), Block(6), Block(6), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 10)
        ).eval(),
        "LSTM": Rows,
    }[name]()
    return Problem(model.double(), cross_entropy, [data(seed, 256 if name == "MLP" else 128)])


def runs(names: list[str]) -> Iterator[tuple[str, int, float, tuple[float, float], float]]:
    """Network, seed, lr, live betas, weight decay; lr and betas alternate with the seed."""
    for name in names:
        for seed in SEEDS:
            lr, betas = (1e-3, 3e-4)[seed % 2], ((0.9, 0.999), (0.9, 0.999), (0.9, 0.95))[seed % 3]
            for decay in (0.0, 0.1):
                yield name, seed, lr, betas, decay


def cells(name: str, seed: int, lr: float, betas: tuple[float, float], decay: float, batch: int | None) -> list[dict[str, Any]]:
    problem = network(name, seed)
    whole = problem.loss
    pieces = problem.batches if batch is None else problems.cut(problem.batches[0], batch)
    loss = Loss(problem.model, problem.criterion, pieces)
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=lr, betas=betas, weight_decay=decay)
    method = ml.AdamW(lr, betas, weight_decay=decay)
    grid = Grid(method, BETAS_1, BETAS_2)
    every = {(b1, b2): grid.cell(i, j) for i, b1 in enumerate(BETAS_1) for j, b2 in enumerate(BETAS_2)}
    shadow, found = Shadow([*every.values(), method], whole.theta), []
    stops = STOPS[name] if batch is None else STOPS[name][:2]
    order = None if batch is None else np.random.default_rng(seed).integers(len(loss), size=stops[-1] + 1).tolist()

    def look(sight: loop.Sight) -> None:
        if sight.taken in stops:
            point = Point(whole, sight.theta)
            (value,) = evaluate(["gradient_1_norm"], point)
            about = {"network": name, "seed": seed, "lr": lr, "live": betas, "decay": decay, "step": sight.taken}
            found.extend(about | cell for cell in told(optimizer, method, grid, every, shadow, point, value, batch is None))
        shadow.update(sight.gradient, sight.theta)

    loop.run(optimizer, loss, stops[-1] + (batch is not None), look, order)
    return found


def told(
    optimizer: torch.optim.Optimizer,
    method: ml.Method,
    grid: Grid,
    every: dict[tuple[float, float], Any],
    shadow: Shadow,
    point: Point,
    value: Value,
    rivals: bool,
) -> Iterator[dict[str, Any]]:
    """Each pair: what the buffers tell beside what its shadow measures, and the rivals' cosines, errors and changes."""
    buffers = Buffers(optimizer, point)
    map_ = state_map(buffers, grid, [value], check=False)
    known, step, g = buffers.recalled(list(every.values())), buffers.step, point.gradient
    assert map_.error is not None
    assert map_.intervals is not None
    own = method.hyper["betas"]
    assert step is not None
    k = np.arange(step + 1.0)
    a1 = {b: float(k @ b**k / (b**k).sum()) for b in BETAS_1}
    m = known.memory(method.variables[0])
    drift = (m - g) / a1[own[0]]
    path = follow(method, point, step, [grid.oldest]) if rivals else None
    for i, b1 in enumerate(BETAS_1):
        for j, b2 in enumerate(BETAS_2):
            if (b1, b2) == own:
                continue
            each = every[b1, b2]
            F, true = frozen(each, g, point.theta, step), shadow.effect(each, g, point.theta)
            effects = {"state": update_of(each, point.theta, known.memory) - F}
            if rivals and path is not None:
                expanded = expansion(each, point, step)
                effects |= {"first": expanded.first().value, "resummed": expanded.resummed().value, "path": path.effect(each)}
                w2 = b2**k
                mean, square = (float(k**p @ w2 / w2.sum()) for p in (1, 2))
                straight = [g + a1[b1] * drift, (g**2 + 2 * g * drift * mean + drift**2 * square).clamp_min(0)]
                effects["drift"] = each.readout(straight, point.theta) - F
            change = value.slope(true, each.lr)
            yield {
                "betas": (b1, b2),
                "error": float(map_.error[i, j]),
                "interval": float(map_.intervals[value.name][i, j]),
                "change": change,
            } | {kind: _figures(E, true, value.slope(E, each.lr), change) for kind, E in effects.items()}


def _figures(E: Tensor, true: Tensor, told: float, change: float) -> dict[str, float]:
    cosine = float(torch.nn.functional.cosine_similarity(E, true, dim=0, eps=1e-300))
    return {"cosine": cosine, "error": float(norm(E - true) / norm(true)), "change": told, "sign": float(told * change > 0)}


def summary(cells: list[dict[str, Any]], kind: str = "state") -> dict[str, float]:
    off = [abs(c[kind]["change"] - c["change"]) / abs(c["change"]) for c in cells]
    figures = {name: median(c[kind][name] for c in cells) for name in ("cosine", "error")}
    return {"cells": len(cells), **figures, "sign": sum(c[kind]["sign"] for c in cells) / len(cells), "change_off": median(off)}


def verdict(cells: list[dict[str, Any]]) -> dict[str, Any]:
    known = [c for c in cells if c["error"] < 0.2]
    short = [c for c in cells if c["betas"][0] <= c["live"][0]]
    shown = [c for c in cells if c["error"] < UNKNOWN]
    figures = summary(known)
    share = {"short": sum(c["error"] < 0.2 for c in short) / len(short), "all": len(known) / len(cells)}
    cover = sum(abs(c["state"]["change"] - c["change"]) <= c["interval"] for c in shown) / len(shown)
    return {
        "known": figures | {"holds": figures["cosine"] >= 0.98 and figures["sign"] >= 0.97 and figures["change_off"] <= 0.08},
        "share": share | {"holds": share["short"] >= 2 / 3 and share["all"] >= 0.4},
        "coverage": {"of_shown": cover, "shown": len(shown) / len(cells), "holds": 0.85 <= cover <= 0.95},
    }


REGIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "beta_1' <= live, beta_2' <= live": lambda c: c["betas"][0] <= c["live"][0] and c["betas"][1] <= c["live"][1],
    "beta_1' <= live, beta_2' > live": lambda c: c["betas"][0] <= c["live"][0] and c["betas"][1] > c["live"][1],
    "beta_1' > live": lambda c: c["betas"][0] > c["live"][0],
}


def main(names: list[str]) -> None:
    full, mini, left_out = [], [], 0
    for about in runs(names or list(STOPS)):
        for batch, into in ((None, full), (32, mini)):
            if batch is not None and (about[0] not in ("MLP", "CNN") or about[4] > 0):
                continue
            try:
                into += cells(*about, batch)
            except ml.errors.NotFinite:
                left_out += 1
        print(*about, len(full), len(mini), file=sys.stderr, flush=True)
    kinds = ("state", "drift", "path", "resummed", "first")
    figures = {
        "verdict": verdict(full),
        "all": {kind: summary(full, kind) for kind in kinds},
        "regions": {name: {kind: summary([c for c in full if of(c)], kind) for kind in kinds} for name, of in REGIONS.items()},
        "networks": {n: verdict([c for c in full if c["network"] == n]) for n in dict.fromkeys(c["network"] for c in full)},
        "batch 32, as if full batch": {"all": summary(mini), **verdict(mini)} if mini else None,
        "left_out": left_out,
    }
    save("state_map", figures)
    show(
        "Maps from buffers, held out",
        ["what", "cells", "cosine", "error", "sign", "change off"],
        [[k, *(f"{figures['all'][k][x]:.3g}" for x in ("cells", "cosine", "error", "sign", "change_off"))] for k in kinds],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
