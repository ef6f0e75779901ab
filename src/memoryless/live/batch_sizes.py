"""At my batch size, which betas? The effect of memory over pairs of betas, measured and predicted, at several batch sizes.

From a checkpoint the optimizer goes on at each batch size, its memory empty at first, for as many steps as memory is to see.
Measured: with a shadow memory of every pair attached, the batches are replayed at some of the last steps (`live.run`).
Predicted: at every second of them, along the order of batches that the run has behind it, to first order and resummed
(`audits.order_map`). All pairs share their stream, measured and predicted share theta and order, so that differences between
them are known better than the effects themselves.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.audits.beta_map import BetaMap, Check
from memoryless.audits.grid import Grid
from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.expected.estimate import Samples
from memoryless.corrections.sequences import random_order
from memoryless.errors import BadInput
from memoryless.isolation import isolated
from memoryless.live import loop
from memoryless.live.loop import Sight
from memoryless.live.run import Run
from memoryless.live.watches import MiniBatches, Watched
from memoryless.loss.batches import cut, together
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, evaluate
from memoryless.loss.noise_scale import GradientNoise, gradient_noise
from memoryless.loss.point import Point
from memoryless.methods import live_optimizer
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import plain
from memoryless.render.result import Result

BETAS_1 = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
BETAS_2 = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
STOPS = 20
"""Of each run; every second is predicted as well."""
PARTS = 1000
"""Into which the work at one batch size is divided for progress."""


@dataclass(frozen=True)
class AtSize:
    """Maps at one batch size, slopes relative to S per step, and what happens at some pairs.

    Attributes:
        size: samples in a batch; None is the full batch.
        batches: how many of that size the data make.
        values: S of each measure where the run ended.
        noise: of the gradient there; None at full batch.
        change: what memory does in one step at the own pair (`Effect.measured`), over the last quarter of the run, (measures,).
        measured: slopes along the last quarter of the run, over (betas_1, betas_2, measures).
        first: the same to first order, at every second step of those.
        resummed: likewise, resummed.
        checks: what happens beside the slope at the run's last audited step, at the own pair and the corners.
    """

    size: int | None
    batches: int
    values: tuple[float, ...]
    noise: GradientNoise | None
    change: Samples
    measured: Samples
    first: Samples
    resummed: Samples
    checks: tuple[Check, ...]

    def misleads(self, found: "BatchSizes", k: int) -> np.ndarray:
        """Where the measured slopes are not to be believed (`BetaMap.misleads`), over (betas_1, betas_2).

        Args:
            found: to which this belongs.
            k: which measure.
        """
        name = found.measures[k]
        slopes = {name: self.measured.mean[..., k]}
        return BetaMap(found.betas_1, found.betas_2, "measured", slopes, self.checks).misleads(name)


@dataclass(frozen=True)
class BatchSizes(Result):
    """Maps at several batch sizes, from one theta.

    Attributes:
        betas_1: first axis.
        betas_2: second axis.
        own: where the optimizer's own pair is.
        measures: their names.
        lr: step size.
        steps: of each run.
        sizes: the batch sizes.
        taken: steps of training before, if whoever asked says so.
    """

    betas_1: tuple[float, ...]
    betas_2: tuple[float, ...]
    own: tuple[int, int]
    measures: tuple[str, ...]
    lr: float
    steps: int
    sizes: tuple[AtSize, ...]
    taken: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return {
            "betas_1": self.betas_1,
            "betas_2": self.betas_2,
            "own": (self.betas_1[self.own[0]], self.betas_2[self.own[1]]),
            "measures": self.measures,
            "lr": self.lr,
            "taken": self.taken,
            "steps": self.steps,
            "sizes": [
                {
                    "size": each.size or "full",
                    "batches": each.batches,
                    "values": each.values,
                    "noise_scale": None if each.noise is None else _finite(each.noise.scale),
                    "noise_scale_interval": None
                    if each.noise is None or each.noise.interval is None
                    else [_finite(x) for x in each.noise.interval],
                    "change": {
                        name: {"change": float(mean), "standard_error": float(error)}
                        for name, mean, error in zip(self.measures, each.change.mean, each.change.standard_error, strict=True)
                    },
                    "checks": plain(each.checks),
                    "maps": {
                        kind: {
                            name: {"slope": maps.mean[..., k].tolist(), "standard_error": maps.standard_error[..., k].tolist()}
                            for k, name in enumerate(self.measures)
                        }
                        for kind, maps in (("measured", each.measured), ("first", each.first), ("resummed", each.resummed))
                    },
                }
                for each in self.sizes
            ],
        }


@valid_arguments
def audit_batch_sizes(
    optimizer: Optimizer,
    loss: Loss,
    sizes: Sequence[int | None] = (8, 32, 128, None),
    *,
    measures: Sequence[str | Differentiable] = ("gradient_1_norm",),
    betas: tuple[Sequence[float], Sequence[float]] = (BETAS_1, BETAS_2),
    steps: int = 1000,
    seed: int = 0,
    on_step: OnStep = silent,
) -> BatchSizes:
    """What memory does at each batch size over a grid of pairs of betas; model and optimizer are left alone.

    Args:
        optimizer: with a pair of betas, recognised by `method_of`; its hyperparameters count, not its memory.
        loss: of a model; its batches, of tensors with samples along their first dimension, are put together and cut anew; a
            remainder shorter than a batch is left out.
        sizes: samples in a batch; None is the full batch.
        measures: names, or differentiable functions theta -> scalar.
        betas: two axes of the grid; the optimizer's own pair is added.
        steps: of the run at each batch size; its last quarter is measured.
        seed: of the order of the batches, and of what the model draws.
        on_step: told how much is done of all.

    Returns:
        The maps.

    Raises:
        NotRecognised: the optimizer has no catalogue method.
        BadInput: it has no pair of betas, the loss has no model, or a batch size does not fit the data.
    """
    if steps < 8:
        raise BadInput(f"expected at least 8 steps, got {steps}")
    own = live_optimizer.recognised(optimizer).parts[0].method
    if "betas" not in own.hyper:
        raise BadInput(f"expected an optimizer with a pair of betas, such as AdamW, got {own.name}")
    one, other = own.hyper["betas"]
    axes = tuple(sorted({*betas[0], one})), tuple(sorted({*betas[1], other}))
    data = together([batch for _, batch in loss.batches.select(None)])
    pieces_of = {size: [data] if size is None else cut(data, size) for size in sizes}
    most = max(loss.batches.sizes or [1])
    setting = Setting(measures, axes, (axes[0].index(one), axes[1].index(other)), steps, seed)
    found = []
    for j, (size, pieces) in enumerate(pieces_of.items()):
        model, live = _copied(loss.model, optimizer)

        def share(x: float, j: int = j) -> None:
            on_step(round(PARTS * (j + x)), PARTS * len(pieces_of))

        with isolated(loss.device, seed):  # the run draws what the model draws
            found.append(_at_size(size, live, loss.on(model, pieces, most // (size or most)), setting, share))
    names = tuple(measure if isinstance(measure, str) else measure.__name__ for measure in measures)
    return BatchSizes(*axes, setting.own, names, own.lr, steps, tuple(found))


def _copied(model: nn.Module | None, optimizer: Optimizer) -> tuple[nn.Module | None, Optimizer]:
    """A model, and an optimizer with empty memory over its parameters."""
    modules = () if model is None else model.modules()
    # Tensors that a forward pass left (the weight of a weight norm) hang on a graph, which is not copied.
    left = [x for module in modules for x in vars(module).values() if isinstance(x, Tensor) and not x.is_leaf]
    copied, live = copy.deepcopy((model, optimizer), {id(x): x.detach().clone() for x in left})
    live.state.clear()
    return copied, live


class Setting(NamedTuple):
    """The arguments of `audit_batch_sizes` that hold at every batch size.

    Attributes:
        measures: names, or differentiable functions theta -> scalar.
        axes: betas_1 and betas_2 of the grid, increasing.
        own: index of the optimizer's own pair on them.
        steps: of the run.
        seed: of the order of the batches.
    """

    measures: Sequence[str | Differentiable]
    axes: tuple[tuple[float, ...], tuple[float, ...]]
    own: tuple[int, int]
    steps: int
    seed: int


def _at_size(size: int | None, optimizer: Optimizer, loss: Loss, setting: Setting, share: Callable[[float], None]) -> AtSize:
    """Measure and predict along a run from here; share is told how much of that is done."""
    steps, seed, measures = setting.steps, setting.seed, setting.measures
    stops = sorted({int(s) for s in np.linspace(0.75 * steps, steps - 1, STOPS)})
    order = random_order(len(loss), steps, np.random.default_rng((seed, size or 0)))
    method = live_optimizer.recognised(optimizer, loss.layout)
    watched = Watched(optimizer, method, loss, measures, (), Grid(method, *setting.axes))
    watch = MiniBatches(watched, order, stops, predict=stops[::-2])
    run = Run([])

    def look(sight: Sight) -> None:
        if sight.taken in stops:
            run.stops.append(watch.stop(sight))
            share(len(run.stops) / len(stops))
        watch.feed(sight)

    loop.run(optimizer, loss, steps, look, order)
    values = evaluate(measures, Point(loss))
    measured, first, resummed = map(run.maps_of, ("measured", "first", "resummed"))
    assert measured is not None
    assert first is not None
    assert resummed is not None
    noise = gradient_noise(loss) if size else None
    at = tuple(value.value for value in values)
    (checks,) = (each.checks for each in run.stops[-1].maps if each.order == "measured")
    return AtSize(size, len(loss), at, noise, run.live, measured, first, resummed, checks)


def _finite(x: float) -> float | None:
    return x if np.isfinite(x) else None


def beside(pair: tuple[int, int], shape: tuple[int, int]) -> list[tuple[int, int]]:
    """The pairs next to one on a grid, up to four.

    Args:
        pair: where it is.
        shape: of the grid.
    """
    i, j = pair
    around = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
    return [(i, j) for i, j in around if 0 <= i < shape[0] and 0 <= j < shape[1]]


def train(optimizer: Optimizer, loss: Loss, steps: int, seed: int = 0, on_step: OnStep = silent) -> None:
    """Train on the loss's batches in a random order, a permutation every epoch.

    Args:
        optimizer: over the loss's parameters, which move.
        loss: one of its batches gives the gradient of a step.
        steps: to take.
        seed: of the order.
        on_step: told the steps taken and their number.
    """
    if steps:
        order = random_order(len(loss), steps, np.random.default_rng(seed)).tolist()
        loop.run(optimizer, loss, steps, batches=order, on_step=on_step)
