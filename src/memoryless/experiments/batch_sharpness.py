"""Where does SGD with momentum let the sharpness settle (https://arxiv.org/abs/2604.14108)?

    mean_i g_i . H_i g_i / |g_i|^2  at  2 (1 - beta) / lr  with small batches,    lambda_1(H)  at  2 (1 + beta) / lr  with all

The batch sharpness, of batches as they are drawn, against what momentum makes of the step, lr / (1 - beta); full batch against
the threshold of heavy ball's stability, where the gradient's own direction is of no use: its curvature reads 0 or spikes. The
tests, fixed before the run, are `SMALL` and `FULL`: ratios to the two values, means over the second half of training. At two
learning rates, since the claim is about the power of lr. Seeds below 200 had been looked at, those from 200 on had not.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from memoryless.errors import BadInput
from memoryless.experiments import fig5
from memoryless.experiments.figure import Cell, Claim, Experiment, Found, Level, Line, Numbers, Panel, Verdict
from memoryless.loss import measures
from memoryless.loss.loss import Loss
from memoryless.loss.point import Point
from memoryless.loss.top_eigenvalue import TopEigenvalue


class Setting(NamedTuple):
    """A run of SGD for each seed."""

    batch: int
    """Images of a step's batch, drawn with replacement; as many as `images` is the full batch."""
    lr: float
    steps: int
    every: int
    seeds: tuple[int, ...]
    momentum: float = 0.9
    images: int = 1000
    width: int = 64
    drawn: int = 32
    """Batches that a batch sharpness is the mean of."""

    @property
    def full(self) -> bool:
        """Whether each step sees all images."""
        return self.batch >= self.images

    @property
    def small(self) -> float:
        """2 (1 - beta) / lr."""
        return 2 * (1 - self.momentum) / self.lr

    @property
    def large(self) -> float:
        """2 (1 + beta) / lr."""
        return 2 * (1 + self.momentum) / self.lr


ABOUT = {
    "small": "MLP 64-64-64-10 with tanh on 1,000 digits images, squared error, SGD with momentum 0.9",
    "medium": "the same, more batch sizes and twice as many steps",
    "paper": "the same as medium with 16 seeds: the other paper's networks are not here",
}
BATCHES = {
    "small": (4, 16, 128, 1000),
    "medium": (2, 4, 8, 16, 32, 64, 128, 256, 1000),
    "paper": (2, 4, 8, 16, 32, 64, 128, 256, 1000),
}
LRS = 0.05, 0.1
TOLD = 16
"""A batch up to which the claim about small ones is judged."""

SMALL = Claim(
    "With small batches batch sharpness settles at 2 (1 - β)/lr", "its mean over the second half, over that", low=0.8, high=1.25
)
FULL = Claim(
    "With the full batch λ₁(H) settles at 2 (1 + β)/lr", "its mean over the second half, over that", low=0.8, high=1.25
)


def settings(scale: str, data: str | None, seeds: int | None) -> list[Setting]:
    """The tasks.

    Args:
        scale: small, medium or paper.
        data: must be None.
        seeds: how many; default 4, 8 and 16.
    """
    if data is not None:
        raise BadInput(f"--data {data}: the {scale} scale runs on the digits images; leave it out")
    steps, own = {"small": (3000, 4), "medium": (6000, 8), "paper": (6000, 16)}[scale]
    every = range(fig5.FROM, fig5.FROM + (seeds or own))
    return [Setting(batch, lr, steps, steps // 20, (seed,)) for lr in LRS for batch in BATCHES[scale] for seed in every]


def run(setting: Setting) -> dict[str, Any]:
    """Train and look.

    Args:
        setting: what to run.

    Returns:
        By name, one list a seed: "loss" and "top", lambda_1(H), of all images, NaN where its search did not converge,
        "batch_sharpness", NaN full batch; and "residual", the largest one of the searches over the eigenvalue.
    """
    rows = [follow(setting, seed) for seed in setting.seeds]
    return {name: [row[name] for row in rows] for name in rows[0]}


def follow(setting: Setting, seed: int) -> dict[str, Any]:
    """One seed of `run`: torch.optim.SGD on batches of its own generator.

    Args:
        setting: what to run.
        seed: of the network and of the batches.
    """
    one = fig5.Setting("mlp", "digits", setting.images, (setting.momentum, 0.0), setting.lr, 0, 1, (seed,), width=setting.width)
    whole = fig5.loss_of(one, seed)
    model, ((_, (inputs, targets)),) = whole.model, whole.batches.select(None)
    assert model is not None
    random, top = torch.Generator().manual_seed(seed), TopEigenvalue(relative=1e-2)
    optimizer = torch.optim.SGD(model.parameters(), setting.lr, setting.momentum)

    def drawn() -> tuple[torch.Tensor, torch.Tensor]:
        if setting.full:
            return inputs, targets
        rows = torch.randint(setting.images, (setting.batch,), generator=random)
        return inputs[rows], targets[rows]

    found: dict[str, Any] = {"loss": [], "top": [], "batch_sharpness": [], "residual": 0.0}
    at: Callable[[Point], float] | None = None
    for step in range(1, setting.steps + 1):
        optimizer.zero_grad()
        fig5.squared_error(model, drawn()).backward()
        optimizer.step()
        if step % setting.every == 0:
            optimizer.zero_grad()
            point = Point(whole)
            found["loss"].append(point.value)
            largest = top.at(point)
            found["top"].append(largest.known)
            found["residual"] = max(found["residual"], largest.relative)
            if setting.full:
                found["batch_sharpness"].append(float("nan"))
                continue
            there = Point(Loss(model, fig5.squared_error, [drawn() for _ in range(setting.drawn)]))
            at = at or measures.batch_sharpness(there).at
            found["batch_sharpness"].append(at(there))
    return found


def ratios(every: Sequence[Found]) -> dict[float, dict[int, dict[str, Numbers]]]:
    """By lr and batch size the mean over the second half over what it is said to settle at, by seed.

    Args:
        every: what was found.
    """
    rows: dict[float, dict[int, dict[str, list[float]]]] = {}
    for setting, numbers in every:
        here = rows.setdefault(setting.lr, {}).setdefault(setting.batch, {"batch_sharpness": [], "top": []})
        for name, threshold in (("batch_sharpness", setting.small), ("top", setting.large)):
            values = np.array(numbers[name], dtype=float)
            here[name] += (values[:, values.shape[1] // 2 :].mean(1) / threshold).tolist()
    return {lr: {b: {name: np.array(x) for name, x in by[b].items()} for b in sorted(by)} for lr, by in rows.items()}


def _full(every: Sequence[Found]) -> set[int]:
    """The batch sizes that are all images."""
    return {setting.batch for setting, _ in every if setting.full}


def panels(every: Sequence[Found]) -> list[list[Panel]]:
    """A panel for each lr: both ratios against the batch size."""
    row, full = [], _full(every)
    for lr, by in ratios(every).items():
        names = {"batch_sharpness": "batch sharpness over 2 (1 - β)/lr", "top": "λ₁(H) over 2 (1 + β)/lr"}
        lines = []
        for k, (name, label) in enumerate(names.items()):
            shown = [(place, of[name]) for place, of in enumerate(by.values()) if np.isfinite(of[name]).any()]
            if shown:
                lines.append(Line(label, [place for place, _ in shown], np.stack([y for _, y in shown], 1), float(k)))
        ticks = ["all" if b in full else str(b) for b in by]
        row.append(Panel(f"lr {lr:g}", "batch size", "sharpness over what it is said to be", lines, [Level("1", 1.0)], ticks))
    return [row]


def verdicts(every: Sequence[Found]) -> list[Verdict]:
    """On small batches, and on the full one; of an lr without it there is nothing to tell."""
    found, full = ratios(every), _full(every)
    small = [
        Cell(f"batch {b}, lr {lr:g}", of["batch_sharpness"])
        for lr, by in found.items()
        for b, of in by.items()
        if b <= TOLD and b not in full
    ]
    whole = [
        Cell(f"all images, lr {lr:g}", np.concatenate([np.zeros(0), *(of["top"] for b, of in by.items() if b in full)]))
        for lr, by in found.items()
    ]
    return [Verdict(SMALL, small), Verdict(FULL, whole)]


FIGURES = {
    "batch_sharpness": Experiment(
        "batch_sharpness", "Where momentum lets the sharpness settle", ABOUT, settings, run, panels, verdicts
    )
}
