"""What the study of rankings runs: one run's map of memory's effect, and every pair of betas by itself.

Which networks, sizes, rates and pairs, and why, is said in `ranking_study`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memoryless.corrections.sequences import random_order
from memoryless.experiments import fig2a
from memoryless.experiments.along_batches import Plain, train_along
from memoryless.experiments.problems import cross_entropy
from memoryless.experiments.training import Batch, Networks
from memoryless.live.batch_sizes import audit_batch_sizes
from memoryless.loss.loss import Loss
from memoryless.methods.catalogue import AdamW

IMAGES = 288
"""For training: whole batches of 32 and of 8."""


class Setting(NamedTuple):
    """One pair's own runs on one network at one batch size, or the map of it, for all seeds of the task."""

    kind: str
    batch: int | None
    """Samples; None is the full batch."""
    part: str
    """"run" or "map"."""
    betas: tuple[float, float]
    """Of the run; of the map, those of the run that is measured."""
    lr: float
    steps: int
    seeds: tuple[int, ...]
    eps: float = 1e-6
    target: float = 0.05
    """The training loss at which networks are compared."""
    share: float = 0.05
    """Of the steps, after which the map is had."""
    images: int = IMAGES
    """For training."""

    @property
    def every(self) -> int:
        """Steps between two looks at the training loss."""
        return 1 if self.batch is None else 5


LIVE = 0.9, 0.999
"""Of the run that is measured, torch's default."""
FIRST, SECOND = (0.5, 0.8, 0.9, 0.95), (0.9, 0.95, 0.99, 0.999)
"""Axes of the map."""
PAIRS = tuple((one, two) for one in FIRST for two in SECOND if one <= two)
SIZES = None, 32, 8
CELLS = {
    ("residual", None): (2e-4, 300),
    ("residual", 32): (3e-4, 350),
    ("residual", 8): (5e-4, 400),
    ("plain", None): (4e-4, 450),
    ("plain", 32): (1e-3, 700),
    ("plain", 8): (1e-3, 1300),
}
"""Learning rate and steps by network and batch size."""
MEASURES = "gradient_1_norm", "training_loss"
ORDERS = {"measured": "shadow map", "first": "first order", "resummed": "resummed"}
"""Of maps, and how their rankings are called."""
AT_TARGET = "test_accuracy", "test_loss", "gradient_1_norm", "training_loss"
"""What is kept of runs at the first look below the target."""


def data_of(setting: Setting) -> tuple[Batch, list[Batch]]:
    """The images for training, as one batch, and those for testing.

    Args:
        setting: what to run.
    """
    own = fig2a.Setting(setting.kind, "digits", "adamw", setting.betas, setting.lr, 0.0, setting.seeds)
    ((pixels, classes),), test, _ = fig2a.data_of(own)
    return (pixels[: setting.images], classes[: setting.images]), test


def run(setting: Setting) -> dict[str, Any]:
    """The map, or a pair's own runs.

    Args:
        setting: what to run.

    Returns:
        By name, one entry a seed. Of a map by kind and measure, such as "measured gradient_1_norm", memory's effect per step by
        pair, as in `PAIRS`. Of runs "steps" to the target, -1 where it was not met, for each of `AT_TARGET` one number, NaN
        there, and "final_loss".
    """
    return _maps(setting) if setting.part == "map" else _runs(setting)


def _maps(setting: Setting) -> dict[str, Any]:
    whole, _ = data_of(setting)
    found: dict[str, list[list[float]]] = {}
    for seed in setting.seeds:
        model = fig2a.model_of(setting.kind, seed)
        optimizer = torch.optim.AdamW(model.parameters(), setting.lr, setting.betas, setting.eps, weight_decay=0.0)
        loss = Loss(model, cross_entropy, [whole])

        def training_loss(theta: Tensor, loss: Loss = loss) -> Tensor:
            return loss(theta)

        measures, steps = ("gradient_1_norm", training_loss), max(8, round(setting.share * setting.steps))
        # Its order of batches is that of `orders`.
        told = audit_batch_sizes(
            optimizer, loss, (setting.batch,), measures=measures, betas=(FIRST, SECOND), steps=steps, seed=seed
        )
        places = [(told.betas_1.index(one), told.betas_2.index(two)) for one, two in PAIRS]
        for order in ORDERS:
            mean = getattr(told.sizes[0], order).mean
            for k, name in enumerate(MEASURES):
                found.setdefault(f"{order} {name}", []).append([float(mean[i, j, k]) for i, j in places])
    return found


def orders(setting: Setting) -> Iterator[Tensor]:
    """The samples of each step's batch, by seed, shape (seeds, size): for each seed the same for all pairs, and of its map.

    Args:
        setting: what to run.
    """
    size = setting.batch or setting.images
    count = setting.images // size
    drawn = [random_order(count, setting.steps, np.random.default_rng((s, setting.batch or 0))) for s in setting.seeds]
    for batches in torch.from_numpy(np.stack(drawn)).T:
        yield batches[:, None] * size + torch.arange(size)


def _runs(setting: Setting) -> dict[str, Any]:
    whole, test = data_of(setting)
    models = [fig2a.model_of(setting.kind, seed) for seed in setting.seeds]
    networks = Networks(models[0], cross_entropy, [whole])
    starts = torch.stack([Networks(model, cross_entropy, [whole]).layout.theta() for model in models])
    method = Plain(AdamW(setting.lr, setting.betas, setting.eps, 0.0))
    passed = train_along(networks, method, starts, orders(setting), setting.target, setting.every, to_the_end=True)
    found: dict[str, list[float]] = {name: [] for name in AT_TARGET}
    for theta, step in zip(passed.thetas, passed.steps.tolist(), strict=True):
        here = dict.fromkeys(found, float("nan"))
        if step >= 0:
            here["test_accuracy"], here["test_loss"] = fig2a.tested(networks, theta, test)
            (loss,), (gradient,) = networks.at(theta[None])
            here["gradient_1_norm"], here["training_loss"] = float(gradient.abs().sum()), float(loss)
        for name, values in found.items():
            values.append(here[name])
    return found | {"final_loss": networks.losses(passed.last, [whole]).tolist(), "steps": passed.steps.tolist()}
