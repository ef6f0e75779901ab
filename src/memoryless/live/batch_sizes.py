"""At my batch size, which betas? The effect of memory over pairs of betas, measured and predicted, at several batch sizes.

From a checkpoint the optimizer goes on at each batch size, its memory empty at first, for as many steps as memory is to see.
Measured: with a shadow memory of every pair attached, the batches are replayed at some of the last steps (`live.run`).
Predicted: at the theta where that run ends, the first-order correction averaged over the order of the batches
(`corrections.expected`). All pairs share their stream and their draws, so that differences between them are known better than
the effects themselves.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.audits.beta_map import BetaMap, Check, predicted_maps
from memoryless.audits.grid import Grid
from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.expansion import expansion
from memoryless.corrections.expected.estimate import Samples
from memoryless.corrections.expected.expected import Plan, sampled
from memoryless.corrections.sequences import random_order
from memoryless.errors import BadInput
from memoryless.isolation import isolated
from memoryless.live import loop
from memoryless.live.run import audit_run
from memoryless.loss.batches import cut, together
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, Value, evaluate
from memoryless.loss.noise_scale import GradientNoise, gradient_noise
from memoryless.loss.point import Point
from memoryless.methods import live_optimizer
from memoryless.methods.method import AnyOptimizer
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import plain
from memoryless.render.result import Result

BETAS_1 = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
BETAS_2 = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
STOPS = 20
"""Of each run."""
PARTS = 1000
"""Into which the work at one batch size is divided for progress."""
PRODUCTS = 2000
"""About as many for one resummed effect, but for three orders at least."""


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
        predicted: slopes to first order where the run ended, over (betas_1, betas_2, measures).
        resummed: likewise, at the optimizer's own pair and those beside it on the grid, each over (measures,).
        checks: what happens beside the slope at the run's last audited step, at the own pair and the corners.
        products: Hessian-vector products spent on both predictions.
    """

    size: int | None
    batches: int
    values: tuple[float, ...]
    noise: GradientNoise | None
    change: Samples
    measured: Samples
    predicted: Samples
    resummed: dict[tuple[int, int], Samples]
    checks: tuple[Check, ...]
    products: int

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
                    "products": each.products,
                    "change": {
                        name: {"change": float(mean), "standard_error": float(error)}
                        for name, mean, error in zip(self.measures, each.change.mean, each.change.standard_error, strict=True)
                    },
                    "checks": plain(each.checks),
                    "resummed": [
                        {
                            "betas": (self.betas_1[i], self.betas_2[j]),
                            "slope": dict(zip(self.measures, one.mean.tolist(), strict=True)),
                            "standard_error": dict(zip(self.measures, one.standard_error.tolist(), strict=True)),
                        }
                        for (i, j), one in each.resummed.items()
                    ],
                    "maps": {
                        kind: {
                            name: {"slope": maps.mean[..., k].tolist(), "standard_error": maps.standard_error[..., k].tolist()}
                            for k, name in enumerate(self.measures)
                        }
                        for kind, maps in (("measured", each.measured), ("predicted", each.predicted))
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
    samples: int = 32,
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
        samples: draws for each predicted pair and batch size.
        steps: of the run at each batch size; its last quarter is measured.
        seed: of the order of the batches and the draws.
        on_step: told how much is done of all.

    Returns:
        The maps.

    Raises:
        NotRecognised: the optimizer has no catalogue method.
        BadInput: it has no pair of betas, the loss has no model, or a batch size does not fit the data.
    """
    if steps < 8 or samples < 2:
        raise BadInput(f"expected at least 8 steps and 2 samples, got {steps} and {samples}")
    own = live_optimizer.recognised(optimizer).parts[0].method
    if "betas" not in own.hyper:
        raise BadInput(f"expected an optimizer with a pair of betas, such as AdamW, got {own.name}")
    one, other = own.hyper["betas"]
    axes = tuple(sorted({*betas[0], one})), tuple(sorted({*betas[1], other}))
    data = together([batch for _, batch in loss.batches.select(None)])
    pieces_of = {size: [data] if size is None else cut(data, size) for size in sizes}
    setting = Setting(measures, axes, (axes[0].index(one), axes[1].index(other)), samples, steps, seed)
    found = []
    for j, (size, pieces) in enumerate(pieces_of.items()):
        model, live = _copied(loss.model, optimizer)

        def share(x: float, j: int = j) -> None:
            on_step(round(PARTS * (j + x)), PARTS * len(pieces_of))

        with isolated(loss.device, seed):  # the run draws what the model draws
            found.append(_at_size(size, live, loss.on(model, pieces), setting, share))
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
        samples: draws for each predicted pair.
        steps: of the run.
        seed: of the order of the batches and the draws.
    """

    measures: Sequence[str | Differentiable]
    axes: tuple[tuple[float, ...], tuple[float, ...]]
    own: tuple[int, int]
    samples: int
    steps: int
    seed: int


def _at_size(size: int | None, optimizer: Optimizer, loss: Loss, setting: Setting, share: Callable[[float], None]) -> AtSize:
    """Measure along a run from here, then predict where it ends; share is told how much of that is done."""
    steps, seed = setting.steps, setting.seed
    # The last quarter, which ends where the prediction is made.
    stops = sorted({int(s) for s in np.linspace(0.75 * steps, steps - 1, STOPS)})
    order = random_order(len(loss), steps, np.random.default_rng((seed, size or 0)))
    run = audit_run(
        optimizer,
        loss,
        order,
        stops=stops,
        measures=setting.measures,
        compare=(),
        betas=setting.axes,
        on_step=lambda done, total: share(0.4 * done / total),
    )
    assert run.maps is not None
    point = Point(loss)
    values = evaluate(setting.measures, point)
    step = round(np.mean(stops))
    grid = Grid(live_optimizer.recognised(optimizer, loss.layout), *setting.axes)
    predicted, spent = _predicted(grid, point, values, Plan(setting.samples, seed), step, lambda x: share(0.4 + 0.6 * x))
    pairs = [setting.own, *beside(setting.own, grid.shape)]
    resummed, more = _resummed({pair: grid.cell(*pair) for pair in pairs}, point, values, step, seed)
    noise = gradient_noise(loss) if size else None
    at = tuple(value.value for value in values)
    (last,) = run.stops[-1].maps
    return AtSize(size, len(loss), at, noise, run.live, run.maps, predicted, resummed, last.checks, spent + more)


def _predicted(
    grid: Grid, point: Point, values: Sequence[Value], plan: Plan, step: int, share: Callable[[float], None]
) -> tuple[Samples, int]:
    """The first-order map, and the products spent."""
    if len(point.loss) == 1:
        (found,) = predicted_maps(grid, point, step, values, ("first",))
        return Samples(np.stack(list(found.changes.values()), axis=-1)[None], "exact"), 1
    changes = np.zeros((plan.samples, *grid.shape, len(values)))
    products = 0
    for i, j in np.ndindex(*grid.shape):
        found = sampled(grid.cell(i, j), point, values, step, plan)
        products += found.products
        for k, effect in enumerate(found.effects):
            changes[:, i, j, k] = effect.changes.values
        share((i * grid.shape[1] + j + 1) / (grid.shape[0] * grid.shape[1]))
    return Samples(changes), products


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


Pairs = dict[tuple[int, int], Samples]


def _resummed(
    methods: dict[tuple[int, int], AnyOptimizer], point: Point, values: Sequence[Value], step: int, seed: int
) -> tuple[Pairs, int]:
    """The resummed effect of some methods, over as many whole orders as some products allow, and the products spent."""
    loss, spent = point.loss, 0
    orders = int(np.clip(PRODUCTS // (2 * len(loss)), 3, 16))
    found: Pairs = {}
    for pair, method in methods.items():
        if len(loss) == 1:
            each = expansion(method, point, step)
            M = each.resummed().value
            changes = np.array([[value.slope(M, method.lr) for value in values]])
            found[pair], spent = Samples(changes, "exact"), spent + each.products
        else:
            drawn = sampled(method, point, values, step, Plan(orders, seed, "resummed"))
            found[pair] = Samples(np.stack([effect.changes.values for effect in drawn.effects], axis=-1))
            spent += drawn.products
    return found, spent


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
