"""What memory does a few steps on: memory starts at what theta alone tells of it, and real steps put right what that misses.

    m_l = memory of the history that leads to theta, resummed or along the path back            (a few gradients)
    theta[k+1] = theta[k] - lr u(m, theta[k]),     k = 0..ahead-1                                (one gradient each)
    Delta = u - F(theta[ahead])

An error of the starting memory fades as beta^k, and the path that the memory has seen since is one that the optimizer takes. So
Delta speaks of theta[ahead], not of theta; and of a run that may leave the real one: where theta lies at the edge of stability
a wrong memory kicks stiff directions, a resummed one more so than a path's (benchmarks/results/look_ahead.json). The model is
not altered: the steps are taken on a copy of theta.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from memoryless.audits.beta_map import BetaMap, measured_map
from memoryless.audits.deviation import STEPS, Deviations
from memoryless.audits.effect import Effect, Vectors, effects_of
from memoryless.audits.grid import Grid
from memoryless.audits.shadow import Shadow
from memoryless.audits.state_map import Buffers, mapped_method
from memoryless.corrections import history
from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.correction import require_step
from memoryless.corrections.history import update_of
from memoryless.corrections.path import follow
from memoryless.errors import BadInput
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, evaluate
from memoryless.loss.point import Point
from memoryless.methods.method import AnyOptimizer
from memoryless.methods.wrapped import unwrapped
from memoryless.render.numbers import plain
from memoryless.render.result import Result


@dataclass(frozen=True)
class Ahead(Result):
    """The effect of memory some steps on from theta; effects are updates, theta_next = theta - lr * effect.

    Attributes:
        method: the optimizer, as text.
        ahead: how many steps were taken.
        step: n there, or None for the steady state.
        lr: step size.
        theta: there, shape (d,).
        F: update there with the history frozen, shape (d,).
        measured: Delta there, shape (d,).
        effects: one per measure.
        map: what the memories of other betas do there, with those that these steps settle; None where it was not asked for.
        gradients: spent.
    """

    method: str
    ahead: int
    step: int | None
    lr: float
    theta: Tensor = field(repr=False)
    F: Tensor = field(repr=False)
    measured: Tensor = field(repr=False)
    effects: tuple[Effect, ...]
    map: BetaMap | None
    gradients: int

    @property
    def verdict(self) -> str:
        """In words: what memory does to each measure there."""
        return " ".join([f"{self.ahead} steps on, on a copy:", *(effect.sentence for effect in self.effects)])

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text, without the vectors."""
        names = ("method", "ahead", "step", "lr", "gradients", "verdict")
        effects = [plain(e) | {"word": e.word, "straight": e.straight, "sentence": e.sentence} for e in self.effects]
        found = None if self.map is None else self.map.as_dict()
        return plain({name: getattr(self, name) for name in names} | {"effects": effects, "map": found})


@valid_arguments
def look_ahead(
    optimizer: Optimizer | AnyOptimizer,
    loss: Loss,
    theta: Tensor | None = None,
    ahead: int = 20,
    *,
    step: int | None = None,
    order: Literal["path", "resummed"] = "path",
    measures: Sequence[str | Differentiable] = ("gradient_1_norm", "gradient_norm_squared"),
    betas: tuple[Sequence[float], Sequence[float]] | None = None,
    full_batch: bool = False,
) -> Ahead:
    """What memory does some real steps on from theta, the memory that it starts with being a prediction.

    Args:
        optimizer: a method in momentum form, which starts with a predicted memory; or a live optimizer, which starts with its
            own (and other betas with what its buffers tell of them, `audits.state_map`).
        loss: full batch; the model is not altered.
        theta: shape (d,); default `loss.theta`, where a live optimizer always is.
        ahead: steps to take, each for one gradient.
        step: n, the number of steps that led to theta; default what a live optimizer counts, or the steady state.
        order: without a live optimizer, of the memory that the steps start with: "path" (13 gradients or so) or "resummed" (4).
        measures: names in `loss.measures.MEASURES`, or differentiable functions theta -> scalar.
        betas: two axes of a map over other betas, for a method with a pair of betas; None for none.
        full_batch: for a live optimizer and a loss with several batches, that every past step took their mean gradient.

    Returns:
        The effect there.

    Raises:
        NeverForgets: steady state of a memory that does not fade.
        BadInput: a method that is run as it is, or an argument out of range.
        NotFinite: the steps diverge.

    Example:
        >>> import torch, memoryless as ml
        >>> loss = ml.Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> found = look_ahead(ml.HeavyBall(lr=0.001, momentum=0.9), loss)
        >>> found.effects[0].word, found.gradients
        ('regularizes', 29)
    """
    require_step(step)
    if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 1:
        raise BadInput(f"ahead must be an integer >= 1, got {ahead!r}")
    if order not in ("path", "resummed"):
        raise BadInput(f"order must be 'path' or 'resummed', got {order!r}")
    live = unwrapped(optimizer)
    if isinstance(live, Optimizer) and theta is not None:
        raise BadInput("a live optimizer looks ahead from where it is; leave out theta")
    point = Point(loss, theta, products=0)
    buffers = None
    if isinstance(live, Optimizer):
        buffers = Buffers(live, point, step, full_batch=full_batch)
        own, step = buffers.method, buffers.step
    else:
        own = live
    grid = None if betas is None else Grid(mapped_method(own), *betas)
    methods = [own, *(grid.spanning() if grid else ())]
    if buffers is not None:
        memory, spent = buffers.recalled(methods).memory, 1
    else:
        path = follow(own, point, step, methods, nodes=2 if order == "resummed" else None)
        memory, spent = path.memory, path.spent
    at, g = point.theta, point.gradient
    shadow = Shadow(methods, at)
    shadow.start(step, memory, g, at)
    recent = Deviations([], grid, at, own.lr)
    at = _walked(own, shadow, point, ahead, recent if grid is not None else None)
    point = Point(loss, at)
    g, values = point.gradient, evaluate(measures, point)
    F, delta = history.frozen(own, g, at, shadow.step), shadow.effect(own, g, at)
    effects = effects_of(values, own.lr, Vectors(F, delta, None, None), point)
    found = None
    if grid is not None:
        found = replace(measured_map(grid, shadow, g, at, values), deviation=recent.of(at)[1])
    return Ahead(str(own), ahead, shadow.step, own.lr, at, F, delta, effects, found, spent + ahead)


def _walked(method: AnyOptimizer, shadow: Shadow, point: Point, ahead: int, recent: Deviations | None) -> Tensor:
    """theta after some steps of a method whose memory, and others', the shadow holds; it is fed on the way."""
    at, g = point.theta, point.gradient
    for k in range(ahead):
        if recent is not None and ahead - k <= STEPS:
            recent.feed(shadow, g, at)
        u = update_of(method, at, lambda v, index, g=g, at=at: shadow.memory(v, g, at, index))
        shadow.update(g, at)
        at = at - method.lr * u
        g = point.loss.gradient(at) if k < ahead - 1 else g
    return at
