"""At my batch size, which betas? The effect of memory over pairs of betas, measured and predicted, at several batch sizes.

From a checkpoint the optimizer goes on at each batch size, its memory empty at first, for as many steps as memory is to see.
Measured: with a shadow memory of every pair attached, the batches are replayed at some of the last steps (`live.replay`).
Predicted: at the theta where that run ends, the first-order correction averaged over the order of the batches
(`corrections.expected`). All pairs share their stream and their draws, so that differences between them are known better than
the effects themselves.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memoryless.audits.beta_map import Grid, predicted_maps
from memoryless.corrections.correction import correction
from memoryless.corrections.expected.estimate import Samples
from memoryless.corrections.expected.expected import Known, sampled
from memoryless.corrections.sequences import random_order
from memoryless.errors import BadInput
from memoryless.live.replay import replay
from memoryless.loss.batches import cut, together
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, Value, evaluate
from memoryless.loss.noise_scale import GradientNoise, gradient_noise
from memoryless.methods import live_optimizer
from memoryless.methods.method import AnyMethod

BETAS_1 = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
BETAS_2 = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
STOPS = 20
"""Of each run."""
PRODUCTS = 2000
"""About as many for one resummed effect, but for three orders at least."""


@dataclass(frozen=True)
class AtSize:
    """Maps at one batch size; changes are relative to S, per step.

    Attributes:
        size: samples in a batch; None is the full batch.
        batches: how many.
        values: S of each measure where the run ended.
        noise: of the gradient there; None at full batch.
        measured: over (betas_1, betas_2, measures).
        predicted: likewise, to first order.
        resummed: at the optimizer's own pair and those beside it on the grid, each over (measures,).
        products: Hessian-vector products spent on both predictions.
    """

    size: int | None
    batches: int
    values: tuple[float, ...]
    noise: GradientNoise | None
    measured: Samples
    predicted: Samples
    resummed: dict[tuple[int, int], Samples]
    products: int


@dataclass(frozen=True)
class BatchSizes:
    """Maps at several batch sizes, from one theta.

    Attributes:
        betas_1: first axis.
        betas_2: second axis.
        own: where the optimizer's own pair is.
        measures: their names.
        lr: step size.
        steps: of each run.
        sizes: the batch sizes.
        taken: steps of training before.
    """

    betas_1: tuple[float, ...]
    betas_2: tuple[float, ...]
    own: tuple[int, int]
    measures: tuple[str, ...]
    lr: float
    steps: int
    sizes: tuple[AtSize, ...]
    taken: int

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
                    "resummed": [
                        {
                            "betas": (self.betas_1[i], self.betas_2[j]),
                            "change": dict(zip(self.measures, one.mean.tolist(), strict=True)),
                            "standard_error": dict(zip(self.measures, one.standard_error.tolist(), strict=True)),
                        }
                        for (i, j), one in each.resummed.items()
                    ],
                    "maps": {
                        kind: {
                            name: {"change": maps.mean[..., k].tolist(), "standard_error": maps.standard_error[..., k].tolist()}
                            for k, name in enumerate(self.measures)
                        }
                        for kind, maps in (("measured", each.measured), ("predicted", each.predicted))
                    },
                }
                for each in self.sizes
            ],
        }


def audit_batch_sizes(
    model: nn.Module,
    criterion: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    sizes: Sequence[int | None] = (8, 32, 128, None),
    *,
    measures: Sequence[str | Differentiable] = ("gradient_1_norm",),
    betas_1: Sequence[float] = BETAS_1,
    betas_2: Sequence[float] = BETAS_2,
    samples: int = 32,
    steps: int = 1000,
    seed: int = 0,
    taken: int = 0,
    on_progress: Callable[[str, float], None] = lambda what, share: None,
) -> BatchSizes:
    """What memory does at each batch size over a grid of pairs of betas; model and optimizer are left alone.

    Args:
        model: at the parameters to ask about.
        criterion: (model, batch) -> mean loss.
        batches: of tensors with samples along their first dimension, which are put together and cut anew; a remainder
            shorter than a batch is left out.
        optimizer: with a pair of betas, recognised by `method_of`; its hyperparameters count, not its memory.
        sizes: samples in a batch; None is the full batch.
        measures: names, or differentiable functions theta -> scalar.
        betas_1: first axis; the optimizer's own is added.
        betas_2: second axis, likewise.
        samples: draws for each predicted pair and batch size.
        steps: of each run; its last quarter is measured.
        seed: of the order of the batches and the draws.
        taken: steps before, for the record.
        on_progress: called with what is done, and which share of all.

    Returns:
        The maps.

    Raises:
        NotRecognised: the optimizer has no catalogue method.
        BadInput: it has no pair of betas, or a batch size does not fit the data.
    """
    if steps < 8 or samples < 2:
        raise BadInput(f"expected at least 8 steps and 2 samples, got {steps} and {samples}")
    own = live_optimizer.method_of(optimizer).parts[0].method
    if "betas" not in own.hyper:
        raise BadInput(f"expected an optimizer with a pair of betas, such as AdamW, got {own.name}")
    one, other = own.hyper["betas"]
    axes = tuple(sorted({*betas_1, one})), tuple(sorted({*betas_2, other}))
    data = together(list(batches))
    pieces_of = {size: [data] if size is None else cut(data, size) for size in sizes}
    place = axes[0].index(one), axes[1].index(other)
    # The last quarter, which ends where the prediction is made.
    stops = sorted({int(s) for s in np.linspace(0.75 * steps, steps - 1, STOPS)})
    found: list[AtSize] = []
    names: tuple[str, ...] = ()
    for j, (size, pieces) in enumerate(pieces_of.items()):
        name = f"batch size {size}" if size else "full batch"

        def progress(share: float, j: int = j, name: str = name) -> None:
            on_progress(name, (j + share) / len(pieces_of))

        mine, live = copy.deepcopy((model, optimizer))
        live.state.clear()
        loss = Loss(mine, criterion, pieces)
        order = random_order(len(loss), steps, np.random.default_rng((seed, size or 0)))
        measured = replay(
            live, loss, order, stops, measures, betas=axes, on_step=lambda step, p=progress: p(0.4 * step / steps)
        ).maps
        assert measured is not None
        values = evaluate(measures, loss, loss.theta, *loss.linearize(loss.theta))
        names = tuple(value.name for value in values)
        step = round(np.mean(stops))
        grid = Grid(live_optimizer.method_of(live, loss), *axes)
        predicted, spent = _predicted(grid, loss, values, step, samples, seed, lambda x, p=progress: p(0.4 + 0.6 * x))
        pairs = [place, *beside(place, grid.shape)]
        resummed, more = _resummed({pair: grid.cell(*pair) for pair in pairs}, loss, values, step, seed)
        noise = gradient_noise(loss) if size else None
        at = tuple(value.value for value in values)
        found.append(AtSize(size, len(loss), at, noise, measured, predicted, resummed, spent + more))
    return BatchSizes(*axes, place, names, own.lr, steps, tuple(found), taken)


def _predicted(
    grid: Grid, loss: Loss, values: Sequence[Value], step: int, samples: int, seed: int, progress: Callable[[float], None]
) -> tuple[Samples, int]:
    """The first-order map, and the products spent."""
    theta = loss.theta
    if len(loss) == 1:
        maps = predicted_maps(grid, loss.linearize(theta), theta, step, values, ("first",))
        return Samples(np.stack([m.change for m in maps], axis=-1)[None], "exact"), 1
    known = Known.at(loss, theta, values)
    changes = np.zeros((samples, *grid.shape, len(values)))
    products = 0
    for i, j in np.ndindex(*grid.shape):
        method: AnyMethod = grid.cell(i, j)
        found = sampled(method, known, step, samples, seed)
        products += found.products
        for k, effect in enumerate(found.effects):
            changes[:, i, j, k] = effect.changes.values
        progress((i * grid.shape[1] + j + 1) / (grid.shape[0] * grid.shape[1]))
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
    methods: dict[tuple[int, int], AnyMethod], loss: Loss, values: Sequence[Value], step: int, seed: int
) -> tuple[Pairs, int]:
    """The resummed effect of some methods, over as many whole orders as some products allow, and the products spent."""
    known, spent = Known.at(loss, loss.theta, values), 0
    orders = int(np.clip(PRODUCTS // (2 * len(loss)), 3, 16))
    found: Pairs = {}
    for pair, method in methods.items():
        if len(loss) == 1:
            c = correction(method, loss, known.theta, step, "resummed")
            changes = np.array([[value.change(c.M, method.lr) for value in values]])
            found[pair], spent = Samples(changes, "exact"), spent + c.products
        else:
            drawn = sampled(method, known, step, orders, seed, "resummed")
            found[pair] = Samples(np.stack([effect.changes.values for effect in drawn.effects], axis=-1))
            spent += drawn.products
    return found, spent


def train(
    model: nn.Module,
    criterion: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    steps: int,
    seed: int = 0,
) -> None:
    """Train a model on its batches in a random order, a permutation every epoch.

    Args:
        model: to train.
        criterion: (model, batch) -> mean loss.
        batches: re-iterable.
        optimizer: of the model's parameters.
        steps: to take.
        seed: of the order.
    """
    pool = list(batches)
    for i in random_order(len(pool), steps, np.random.default_rng(seed)):
        optimizer.zero_grad()
        criterion(model, pool[i]).backward()
        optimizer.step()
