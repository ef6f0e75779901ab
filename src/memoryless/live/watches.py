"""What is looked at along a run: the live optimizer itself, others by shadow memories of its gradients, beta maps.

    Delta_n = (what the optimizer does next) - F[n](theta; the batches of every step)

Full batch each memory is measured and predicted; along mini-batches F[n] is that of the same batches replayed at the present
theta (`live.lags`), which tells memory from noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from memoryless.audits.audit import UNKNOWN_PAST, Audit, inspect
from memoryless.audits.beta_map import BetaMap, Order, checked, map_of, measured_map, predicted_effect, predicted_maps
from memoryless.audits.effect import Changes, Validity, Vectors, effects_of
from memoryless.audits.grid import Grid, inner_products
from memoryless.audits.order_map import order_maps
from memoryless.audits.shadow import Shadow
from memoryless.audits.state_map import UNKNOWN, Buffers
from memoryless.corrections import history, sequences
from memoryless.corrections.expansion import expansion
from memoryless.corrections.history import update_of
from memoryless.corrections.unrolled import Unrolled
from memoryless.errors import BadInput
from memoryless.flat import norm
from memoryless.isolation import Standing
from memoryless.live import lags as replayed
from memoryless.live.followed import Followed
from memoryless.live.loop import Sight
from memoryless.live.stop import Other, Stop
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, Value, evaluate
from memoryless.loss.point import Point
from memoryless.methods import live_optimizer
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.method import AnyOptimizer, Index, Momentum
from memoryless.methods.past import Through, changed, require_consistent, scheduled
from memoryless.methods.wrapped import given

REPLAYED = "measured against the same batches, replayed at the present theta"


class Watched(NamedTuple):
    """What is looked at along a run.

    Attributes:
        optimizer: live.
        method: it, with its present hyperparameters.
        loss: of its parameters.
        measures: to tell the effect on.
        others: methods that are not running.
        grid: of pairs of betas, or None.
        followed: a schedule that moves the hyperparameters, or None.
        through: what the loop does to a gradient before the optimizer sees it, or None.
    """

    optimizer: Optimizer
    method: AnyOptimizer
    loss: Loss
    measures: Sequence[str | Differentiable]
    others: tuple[AnyOptimizer, ...]
    grid: Grid | None
    followed: Followed | None = None
    through: Through | None = None

    @property
    def plain(self) -> bool:
        """Whether the hyperparameters stay, and the optimizer sees the gradients of the loss."""
        return self.followed is None and self.through is None

    def now(self) -> AnyOptimizer:
        """The live optimizer's method with the hyperparameters of the next step."""
        return self.method if self.followed is None else live_optimizer.method_of(self.optimizer, self.loss.layout)

    def own(self, step: int, lr: float) -> TorchMethod:
        """The live optimizer as it is, with the hyperparameters that each step 0..n had."""
        if self.followed is None:
            return TorchMethod.of(self.optimizer, self.loss.layout)
        return scheduled(self.optimizer, self.loss.layout, self.followed.steps(), step, lr)

    @property
    def shadowed(self) -> list[AnyOptimizer]:
        """The methods whose memories need a shadow."""
        return [*self.others, *(self.grid.spanning() if self.grid else ())]

    def name(self, other: AnyOptimizer) -> str:
        """Another method as text, its lr left out where it is the live one."""
        return other.describe(omit=("lr",) if other.lr == self.method.lr else ())


class FullBatch:
    """Every step takes the full batch: each memory is measured and predicted.

    Args:
        watched: what to look at; the optimizer may have full-batch steps behind it.

    Raises:
        BadInput: its past is not known, or it is dialled along mini-batches.
    """

    gradients = 0

    def __init__(self, watched: Watched):
        if getattr(watched.optimizer, "along_batches", False):
            raise BadInput(
                "the dial is along mini-batches: give steps= as the index of each step's batch, or dial without model="
            )
        self.watched = watched
        self.before = live_optimizer.step_of(watched.optimizer)
        if self.before is None and not watched.plain:
            raise BadInput(f"{type(watched.optimizer).__name__} has steps behind it that it does not count; start it anew")
        if self.before:
            require_consistent(watched.optimizer, None, self.before, watched.followed and watched.followed.steps())
        self.shadow = Shadow(watched.shadowed, watched.loss.theta)

    def feed(self, sight: Sight) -> None:
        """Feed the shadows with the gradient of the step."""
        self.shadow.update(sight.gradient, sight.theta)

    def stop(self, sight: Sight) -> Stop:
        """Audit the live optimizer, the others and the grid before the step."""
        optimizer, method, loss, measures, others, grid, _, through = self.watched
        step = None if self.before is None else self.before + sight.taken
        point = Point(loss, sight.theta)
        values = evaluate(measures, point)
        seen = changed(point.gradient, through)
        live = live_optimizer.next_update(optimizer, loss.layout, seen)
        notes = [UNKNOWN_PAST] if len(loss) > 1 and step != self.shadow.n else []  # steps before this run
        if not self.watched.plain:
            return self._measured(point, values, seen, live, notes)
        audit = inspect(method, point, expansion(method, point, step), step, values, live, [*notes, *_unfollowed(optimizer)])
        told = self._told(point, step, values, full_batch=not notes)
        compared = tuple(replace(self._other(other, audit, point, values), **told(other)) for other in others)
        maps: list[BetaMap] = []
        if grid is not None:
            maps = [measured_map(grid, self.shadow, point.gradient, sight.theta, values)]
            maps += predicted_maps(grid, point, self.shadow.n, values)
            maps = [checked(each, grid, values, point, self._effects(each.order, audit, point)) for each in maps]
        return Stop(audit, compared, tuple(maps))

    def _told(
        self, point: Point, step: int | None, values: Sequence[Value], *, full_batch: bool
    ) -> Callable[[AnyOptimizer], dict[str, Any]]:
        """Of another method, what the live optimizer's buffers tell: its slopes, and how far that goes."""
        others = self.watched.others
        if not others:
            return lambda other: {}
        try:
            buffers = Buffers(self.watched.optimizer, point, step, full_batch=full_batch)
            known = buffers.recalled(others)
        except BadInput:  # no step yet, or buffers of another kind
            return lambda other: {}
        errors = dict(zip(map(id, others), buffers.errors(others, known), strict=True))

        def told(other: AnyOptimizer) -> dict[str, Any]:
            error, _ = errors[id(other)]
            if error >= UNKNOWN:
                return {"error": error}
            F = history.frozen(other, point.gradient, point.theta, step)
            effect = update_of(other, point.theta, known.memory) - F
            return {"error": error, "state": tuple(value.slope(effect, other.lr) for value in values)}

        return told

    def _measured(self, point: Point, values: Sequence[Value], seen: Tensor, live: Tensor, notes: Sequence[str]) -> Stop:
        """Where a schedule or the loop has a hand in it: the live optimizer by its own steps, the others by their shadows.

        The others go at lr's ratio to its start, as they would on this schedule.
        """
        watched, now, n = self.watched, self.watched.now(), self.shadow.n
        step = (self.before or 0) + n
        own = watched.own(step, now.lr)
        audit = inspect(own, point, Unrolled(own, point, step, through=watched.through), step, values, live, notes)
        share = now.lr / watched.method.lr
        compared = []
        for other in watched.others:
            F, effect = history.frozen(other, seen, point.theta, n), self.shadow.effect(other, seen, point.theta)
            compared.append(_alone(watched, other, other.lr * share, (F, effect), audit.F, values, point))
        maps: tuple[BetaMap, ...] = ()
        if watched.grid is not None:
            found = measured_map(watched.grid, self.shadow, seen, point.theta, values)
            maps = (replace(found, changes={name: share * change for name, change in found.changes.items()}),)
        return Stop(audit, tuple(compared), maps)

    def _effects(self, order: Order, audit: Audit, point: Point) -> Callable[[AnyOptimizer], tuple[Tensor, Tensor]]:
        """Method -> F and its memory's effect of one kind, those of the live one from its audit."""

        def effect(method: AnyOptimizer) -> tuple[Tensor, Tensor]:
            if method is self.watched.method:
                return audit.F, getattr(audit, order)
            if order != "measured":
                return predicted_effect(method, point, self.shadow.n, order)
            F = history.frozen(method, point.gradient, point.theta, self.shadow.n)
            return F, self.shadow.effect(method, point.gradient, point.theta)

        return effect

    def _other(self, method: AnyOptimizer, live: Audit, point: Point, values: Sequence[Value]) -> Other:
        found = expansion(method, point, self.shadow.n)
        effect = self.shadow.effect(method, point.gradient, point.theta)
        kinds = (effect, found.first().value, found.resummed().value)
        measured, first, summed = (tuple(v.slope(each, method.lr) for v in values) for each in kinds)
        same = bool(norm(found.F - live.F) <= 1e-3 * norm(live.F))
        change = _changes(values, point, method.lr, found.F, effect)
        return Other(self.watched.name(method), same, change, measured, first, summed, found.outside)


def _changes(values: Sequence[Value], point: Point, lr: float, F: Tensor, effect: Tensor) -> tuple[float | None, ...]:
    """What an effect does to the measures that need no product; None for the others."""
    found = iter(Changes([value for value in values if not value.products], point, lr)(F, effect))
    return tuple(None if value.products else next(found) for value in values)


def _alone(
    watched: Watched,
    other: AnyOptimizer,
    lr: float,
    known: tuple[Tensor, Tensor],
    F: Tensor,
    values: Sequence[Value],
    point: Point,
) -> Other:
    """Another method of which F and the measured effect are known, and no prediction, beside the live F."""
    there, effect = known
    same = bool(norm(there - F) <= 1e-3 * norm(F))
    slopes = tuple(value.slope(effect, lr) for value in values)
    return Other(watched.name(other), same, _changes(values, point, lr, there, effect), slopes, None, None, None)


def _unfollowed(optimizer: Optimizer) -> list[str]:
    attached = any("initial_lr" in group for group in optimizer.param_groups)
    return ["a scheduler is attached to the optimizer, and this run does not step it; give scheduler="] if attached else []


class MiniBatches:
    """Every step takes a batch: each memory is measured against the same batches at the present theta.

    Args:
        watched: what to look at; the optimizer has no step behind it.
        order: batch of each step.
        stops: at which to look.
        lags: to replay at random; None replays every batch.
        seed: of the lags.
        predict: stops at which the maps are predicted as well (`order_maps`).

    Raises:
        BadInput: an argument is out of range, batches cannot be replayed, or the optimizer has steps behind it.
    """

    def __init__(
        self,
        watched: Watched,
        order: sequences.Order,
        stops: Sequence[int],
        lags: int | None = None,
        seed: int = 0,
        predict: Sequence[int] = (),
    ):
        loss = watched.loss
        if lags is not None and lags < 1:
            raise BadInput(f"lags must be at least 1, or None for all, got {lags}")
        if lags is not None and not watched.method.parts:
            raise BadInput(f"{watched.method} is run as it is, and its memory has no random lags; leave out lags")
        if loss.noise is not None and not watched.method.parts:
            raise BadInput(
                f"{watched.method} is run as it is, and the noise of past steps cannot be replayed; use model.eval()"
            )
        if any(watched.optimizer.state.values()):
            raise BadInput("the optimizer has steps behind it whose batches are not known; start it anew")
        loss.batches.require_indexed()
        self.watched, self.order, self.last, self.gradients = watched, order, stops[-1], 0
        self.predict = frozenset(predict)
        live = [watched.method] if watched.method.parts else []
        self.shadow = Shadow([*live, *watched.shadowed], loss.theta)
        self.past = None if lags is None else replayed.RandomLags(self.shadow.variables, stops, lags, seed)
        self.noise: dict[int, Standing] | None = None if loss.noise is None else {}

    def feed(self, sight: Sight) -> None:
        """Feed the shadows with the gradient of the step, and keep what a later stop will ask for."""
        if self.past is not None:
            self.past.keep(sight)
        if self.noise is not None and sight.noise is not None and (self.past is None or sight.taken in self.past.wanted):
            self.noise[sight.taken] = sight.noise
        self.shadow.update(sight.gradient, sight.theta)

    def stop(self, sight: Sight) -> Stop:
        """Measure the live optimizer, the others and the grid before the step."""
        optimizer, method, loss, measures, others, grid, _, through = self.watched
        theta, order, point = sight.theta, self.order[: sight.taken + 1], Point(loss, sight.theta)
        values = evaluate(measures, point)
        noise = None if self.noise is None or sight.noise is None else self.noise | {sight.taken: sight.noise}
        replay = replayed.Replay(point, order, noise, through)
        frozen = replayed.exact(replay) if self.past is None else self.past.memory(replay, self.shadow, sight)

        def actual(v: Momentum, index: Index = slice(None)) -> Tensor:
            return self.shadow.memory(v, sight.gradient, theta, index)

        now = self.watched.now()
        F = update_of(method, theta, frozen) if self._closed(now) else self._unrolled(now, point, order)
        batches = (data for _, data in loss.batches.select(int(order[-1])))
        live = live_optimizer.next_update(optimizer, loss.layout, sight.gradient, given(optimizer, batches)).to(theta.dtype)
        vectors = Vectors(F, live - F, None, None)
        effects = effects_of(values, now.lr, vectors, point)
        notes = (REPLAYED, *loss.notes, *(_unfollowed(optimizer) if self.watched.followed is None else ()))
        validity = Validity(None, None, None, {effect.measure: effect.ratio for effect in effects}, notes)
        audit = Audit(str(now), sight.taken, now.lr, point.value, vectors, effects, validity)
        compared, share = [], now.lr / method.lr
        for other in others:
            there = update_of(other, theta, frozen)
            known = there, update_of(other, theta, actual) - there
            compared.append(_alone(self.watched, other, other.lr * share, known, F, values, point))
        maps: tuple[BetaMap, ...] = ()
        if grid is not None:
            slopes = torch.stack([value.gradient for value in values])
            gap = inner_products(grid, slopes, theta, actual) - inner_products(grid, slopes, theta, frozen)
            found = map_of(gap * (now.lr / grid.method.lr), grid, values, "measured")

            def effect_of(each: AnyOptimizer) -> tuple[Tensor, Tensor]:
                if each is method:
                    return F, live - F
                there = update_of(each, theta, frozen)
                return there, update_of(each, theta, actual) - there

            # Once a run: a value of a measure costs as much as replaying every batch.
            last = sight.taken == self.last and self.watched.followed is None
            maps = (checked(found, grid, values, point, effect_of) if last else found,)
            if sight.taken in self.predict:
                maps += tuple(order_maps(grid, point, values, order))
        self.gradients += replay.gradients
        return Stop(audit, tuple(compared), maps)

    def _closed(self, now: AnyOptimizer) -> bool:
        """Whether the frozen momenta are F[n]: in momentum form, where nothing but lr has moved, all groups alike."""
        followed, method = self.watched.followed, self.watched.method
        if not method.parts or followed is None:
            return bool(method.parts)
        alike = [part.scale for part in now.parts] == [part.scale for part in method.parts]
        return alike and followed.moved <= {"lr", "initial_lr"}

    def _unrolled(self, now: AnyOptimizer, point: Point, order: sequences.Order) -> Tensor:
        """F[n] by the optimizer's own steps on the same batches, each with the hyperparameters of its time."""
        if self.watched.plain:
            return expansion(now, point, len(order) - 1, order.tolist()).F
        if self.past is not None or self.noise is not None:
            what = "leave out lags" if self.past is not None else "and the noise of past steps cannot be replayed so"
            raise BadInput(f"the schedule moves more than lr, so every past batch is replayed: {what}")
        own = self.watched.own(len(order) - 1, now.lr)
        return Unrolled(own, point, len(order) - 1, order.tolist(), through=self.watched.through).F
