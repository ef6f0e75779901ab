"""The door to the maps: what memory does over a grid of (beta_1, beta_2), by theory or by a live optimizer's buffers.

"first", "resummed" and "path" are predictions from theta alone (`audits.beta_map`, `corrections.path`), "state" reads the
buffers that a live optimizer has (`audits.state_map`), and with `steps` starts shadows of every pair with them and takes real
steps (`audits.ahead`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from memoryless.audits.ahead import look_ahead
from memoryless.audits.beta_map import BetaMap, checked, grid_of, map_of, predicted_effect, predicted_maps
from memoryless.audits.grid import BETAS_1, BETAS_2, Grid, from_memory, pair_by_pair, share_update
from memoryless.audits.state_map import Buffers, mapped_method, state_map
from memoryless.corrections import history
from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.path import Path, follow
from memoryless.errors import BadInput
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, Value, evaluate
from memoryless.loss.point import Point
from memoryless.methods import live_optimizer
from memoryless.methods.method import AnyOptimizer
from memoryless.methods.wrapped import unwrapped

ORDERS = ("first", "resummed", "path", "state")


@valid_arguments
def beta_map(
    optimizer: Optimizer | AnyOptimizer,
    loss: Loss,
    betas_1: Sequence[float] = BETAS_1,
    betas_2: Sequence[float] = BETAS_2,
    theta: Tensor | None = None,
    *,
    step: int | None = None,
    order: Literal["first", "resummed", "path", "state"] = "resummed",
    measures: Sequence[str | Differentiable] = ("gradient_1_norm",),
    check: bool = True,
    steps: int | None = None,
    full_batch: bool = False,
) -> BetaMap:
    """Tell what memory does to some measures at theta, for every pair of betas. Nothing is changed, bit for bit.

    Args:
        optimizer: a live torch optimizer, or a method with two betas; its other hyperparameters hold for the whole grid.
        loss: L; full batch.
        betas_1: first axis, each in [0, 1).
        betas_2: second axis, each in [0, 1).
        theta: shape (d,); default `loss.theta`, where a live optimizer always is.
        step: n; default what a live optimizer counts, or the steady state.
        order: "first", "resummed", or "path": the way back followed by 13 gradients or so, look at `.trusted`; where pairs
            do not share F, a path each. "state": from a live optimizer's own buffers, by no product at all; `.error` tells how
            far each pair is known, and those that are not are NaN. An optimizer without betas (SGD) stands for Adam's at its
            lr. `audit_run` gives measured maps, which take a run.
        measures: names in `loss.measures.MEASURES`, or differentiable functions theta -> scalar.
        check: whether to say what happens at the method's own pair and the corners; ten values of a measure at most.
        steps: for order "state", start a shadow of every pair with what the buffers tell, take so many real steps on a copy of
            theta, and measure there: one gradient each, `.settled` tells which pairs the live steps speak for; no checks.
        full_batch: for order "state" of a loss with several batches, that every past step took their mean gradient; single
            batches leave their noise in the buffers, where nothing tells it from memory (`audit_batch_sizes` measures it).

    Returns:
        The map; `.change` where there is one measure.

    Raises:
        NotRecognised: order "state" of an optimizer whose buffers are not averages of g and g^2.
        BadInput: the method has no pair of betas, or an argument is out of range.

    Example:
        >>> import memoryless as ml
        >>> loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, -2.0]))
        >>> found = ml.beta_map(ml.Adam(eps=1e-3), loss, (0.9,), (0.9, 0.99, 0.999), order="first")
        >>> (1000 * found.change).round(2)  # older memory in the denominator: anti-regularizes
        array([[-0.  ,  0.27,  2.97]])
    """
    if order not in ORDERS:
        raise BadInput(
            f"order must be 'first', 'resummed', 'path' or 'state', got {order!r}; measured maps come from audit_run"
        )
    if steps is not None and order != "state":
        raise BadInput(f"steps start from a live optimizer's buffers: they go with order='state', not {order!r}")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise BadInput(f"steps must be an integer >= 1, got {steps!r}")
    axes = tuple(betas_1), tuple(betas_2)
    if order == "state":
        live = _live(optimizer, theta)
        if steps is not None:
            return _ahead(live, loss, steps, step, measures, axes, full_batch)
        point = Point(loss)
        buffers = Buffers(live, point, step, full_batch=full_batch)
        return state_map(buffers, grid_of(mapped_method(buffers.method), *axes), evaluate(measures, point), check)
    method = unwrapped(optimizer)
    if isinstance(method, Optimizer):
        step = live_optimizer.step_of(method) if step is None else step
        method = live_optimizer.method_of(_live(method, theta), loss.layout)
    grid, point = grid_of(method, *axes), Point(loss, theta)
    values = evaluate(measures, point)
    if order == "path":
        return _path_map(grid, point, step, values, check)
    (found,) = predicted_maps(grid, point, step, values, orders=(order,))
    return checked(found, grid, values, point, lambda each: predicted_effect(each, point, step, order)) if check else found


def _path_map(grid: Grid, point: Point, step: int | None, values: Sequence[Value], check: bool) -> BetaMap:
    own = follow(grid.method, point, step, [grid.oldest])
    shared = share_update(grid, point.gradient, point.theta, step)

    def path_of(method: AnyOptimizer) -> Path:
        return own if shared or method is grid.method else follow(method, point, step)

    slopes = torch.stack([value.gradient for value in values])
    if shared:
        inner = from_memory(grid, own.F, slopes, point.theta, own.memory)
    else:
        inner = pair_by_pair(grid, slopes, lambda method: path_of(method).effect(method))
    found = replace(map_of(inner, grid, values, "path"), growth=own.growth)

    def effect(method: AnyOptimizer) -> tuple[Tensor, Tensor]:
        return history.frozen(method, point.gradient, point.theta, step), path_of(method).effect(method)

    return checked(found, grid, values, point, effect) if check else found


def _live(method: Optimizer | AnyOptimizer, theta: Tensor | None) -> Optimizer:
    """The optimizer inside a wrapper."""
    found = unwrapped(method)
    if not isinstance(found, Optimizer):
        raise BadInput(
            f"order='state' reads the buffers of a live optimizer, and {method} has none; use order='resummed' or 'path'"
        )
    if theta is not None:
        raise BadInput("a live optimizer is mapped where it is; leave out theta, or give its method: ml.method_of(optimizer)")
    return found


def _ahead(
    optimizer: Optimizer,
    loss: Loss,
    steps: int,
    step: int | None,
    measures: Sequence[str | Differentiable],
    axes: tuple[tuple[float, ...], tuple[float, ...]],
    full_batch: bool,
) -> BetaMap:
    found = look_ahead(optimizer, loss, ahead=steps, step=step, measures=measures, betas=axes, full_batch=full_batch).map
    assert found is not None
    return found
