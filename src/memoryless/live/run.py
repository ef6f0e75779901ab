"""Audit an optimizer along its run, full batch or mini-batches: the run itself, what other methods would do on it, beta maps.

    Delta_n = (what the optimizer does next) - F[n](theta; the batches of every step)

for the live optimizer, and for others by shadow memories of the same stream of gradients (`audits.shadow`). Along mini-batches
F[n] is that of the same batches replayed at the present theta (`live.lags`), which tells memory from noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from memoryless.audits.audit import UNKNOWN_PAST, Audit, inspect
from memoryless.audits.beta_map import BetaMap, Order, checked, map_of, measured_map, predicted_effect, predicted_maps
from memoryless.audits.effect import Changes, Validity, Vectors, effects_of
from memoryless.audits.grid import BETAS_1, BETAS_2, Grid, inner_products, update_of
from memoryless.audits.order_map import order_maps
from memoryless.audits.shadow import Shadow
from memoryless.corrections import history, sequences
from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.expansion import expansion
from memoryless.corrections.expected.estimate import Samples
from memoryless.errors import BadInput, Diverged
from memoryless.flat import norm
from memoryless.isolation import Standing
from memoryless.live import lags as replayed
from memoryless.live import loop
from memoryless.live.loop import Sight
from memoryless.loss.loss import Loss
from memoryless.loss.measures import USUAL, Differentiable, Value, evaluate
from memoryless.loss.point import Point
from memoryless.methods import catalogue, live_optimizer
from memoryless.methods.method import AnyOptimizer, Index, Method, Momentum
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import label, percent
from memoryless.render.result import Result

REPLAYED = "measured against the same batches, replayed at the present theta"


@dataclass(frozen=True)
class Other:
    """Another method's memory at a stop of the live run; per step relative to S, in the order of the measures.

    Attributes:
        method: as text, its lr left out where it is the live one.
        same_update: whether its F is the live one, so that the live path is its own to first order in lr.
        change: what its memory, measured by its shadow, does in one step (`Effect.measured`); None for a measure that takes
            Hessian-vector products, too many of which it would be.
        measured: slope of the same.
        first: slope of the prediction; None along mini-batches.
        resummed: slope of the prediction; None along mini-batches.
        outside: share of the coordinates outside the radius; None along mini-batches.
    """

    method: str
    same_update: bool
    change: tuple[float | None, ...]
    measured: tuple[float, ...]
    first: tuple[float, ...] | None
    resummed: tuple[float, ...] | None
    outside: float | None


@dataclass(frozen=True)
class Stop(Result):
    """One audited step: the live optimizer, the others, and the beta maps (none for a method without a pair of betas)."""

    audit: Audit
    others: tuple[Other, ...] = ()
    maps: tuple[BetaMap, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        names = [effect.measure for effect in self.audit.effects]

        def changes(other: Other) -> dict[str, Any]:
            slopes = {kind: getattr(other, kind) for kind in ("measured", "first", "resummed")}
            return {
                name: {"measured": other.change[k], "slopes": {kind: each and each[k] for kind, each in slopes.items()}}
                for k, name in enumerate(names)
            }

        others = [
            {"method": o.method, "same_update": o.same_update, "outside": o.outside, "changes": changes(o)} for o in self.others
        ]
        maps = [
            {
                "kind": m.order,
                "measure": name,
                "change": change.tolist(),
                "misleads": m.misleads(name).tolist(),
                "checks": [
                    {"betas": c.betas, "slope": c.slopes[name], "change": c.changes[name]}
                    for c in m.checks
                    if name in c.changes
                ],
            }
            for m in self.maps
            for name, change in m.changes.items()
        ]
        return self.audit.as_dict() | {"others": others, "maps": maps}


@dataclass
class Run(Result):
    """An audited run.

    Attributes:
        stops: the audited steps, in order.
        betas: the live optimizer's own pair, if it has one.
        betas_1: first axis of the beta maps.
        betas_2: second axis.
        gradients: spent on replaying mini-batches.
        about: what was audited, for the page's head: text by label.
    """

    stops: list[Stop]
    betas: tuple[float, float] | None = None
    betas_1: tuple[float, ...] = ()
    betas_2: tuple[float, ...] = ()
    gradients: int = 0
    about: dict[str, str] = field(default_factory=dict)

    @property
    def live(self) -> Samples:
        """Measured change of each measure at each stop, shape (stops, measures); stops share their past, they are a series."""
        return Samples(np.array([[effect.measured for effect in stop.audit.effects] for stop in self.stops]), "series")

    @property
    def others(self) -> dict[str, Samples]:
        """Slopes of the measured effect of the other methods, by their text."""
        names = [other.method for other in self.stops[0].others]
        rows = {name: np.array([stop.others[j].measured for stop in self.stops]) for j, name in enumerate(names)}
        return {name: Samples(values, "series") for name, values in rows.items()}

    @property
    def maps(self) -> Samples | None:
        """The measured maps (slopes), shape (stops, betas_1, betas_2, measures); None without a grid."""
        return self.maps_of("measured")

    def maps_of(self, order: Order) -> Samples | None:
        """The maps (slopes) of one kind at the stops that have one, shape (stops, betas_1, betas_2, measures).

        Args:
            order: "measured", "first" or "resummed".
        """
        found = [np.stack(list(m.changes.values()), axis=-1) for stop in self.stops for m in stop.maps if m.order == order]
        return Samples(np.array(found), "series") if found else None

    @property
    def verdict(self) -> str:
        """The last stop's verdict, and how often each measure came out each way."""
        last = self.stops[-1].audit
        lines = [f"At step {last.step}: {last.verdict}" if last.step is not None else last.verdict]
        if len(self.stops) > 1:
            for k, effect in enumerate(last.effects):
                words = [stop.audit.effects[k].word for stop in self.stops]
                counts = ", ".join(f"{word} at {words.count(word)}" for word in dict.fromkeys(words))
                peak = max(self.stops, key=lambda stop, k=k: abs(stop.audit.effects[k].best)).audit
                lines.append(
                    f"Of {len(words)} stops, memory for the {label(effect.measure)}: {counts}; "
                    f"most at step {peak.step}, {percent(peak.effects[k].best)} per step."
                )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return {
            "about": self.about,
            "verdict": self.verdict,
            "betas": self.betas,
            "betas_1": self.betas_1,
            "betas_2": self.betas_2,
            "stops": [stop.as_dict() for stop in self.stops],
        }

    def to_html(self) -> str:
        """One self-contained page with charts."""
        from memoryless.render.page import page

        return page(self.as_dict())


def log_spaced(steps: int, count: int) -> list[int]:
    """About `count` steps from 1 to `steps`, evenly spaced in their logarithm; a single one is the last.

    Args:
        steps: the last of them.
        count: how many, before equal ones are merged.
    """
    return sorted({round(s) for s in np.geomspace(steps, 1, count)})


def rivals(method: AnyOptimizer) -> list[Method]:
    """The methods that `audit_run` compares with: the live one at other betas, Lion, Signum and heavy ball, at its lr.

    Args:
        method: of the run.
    """
    base = method.parts[0].method if method.parts else None
    pairs = ((0.9, 0.9), (0.9, 0.95))
    variants = [base.with_hyper(betas=pair) for pair in pairs] if base and base.name in ("adam", "adamw", "nadam") else []
    if not variants:
        variants = [catalogue.AdamW(method.lr, pair) for pair in ((0.9, 0.999), *pairs)]
    return [*variants, catalogue.Lion(method.lr), catalogue.Signum(method.lr), catalogue.HeavyBall(method.lr)]


@valid_arguments
def audit_run(
    optimizer: Optimizer,
    loss: Loss,
    steps: int | Sequence[int] | sequences.Order = 1000,
    *,
    stops: Sequence[int] | None = None,
    measures: Sequence[str | Differentiable] = USUAL,
    compare: Sequence[AnyOptimizer] | None = None,
    betas: tuple[Sequence[float], Sequence[float]] | None = (BETAS_1, BETAS_2),
    lags: int | None = None,
    seed: int = 0,
    on_step: OnStep = silent,
) -> Run:
    """Run a torch optimizer on the loss's own parameters, auditing it at some of the steps.

    The model and the optimizer end where they would have ended without the audit, bit for bit.

    Args:
        optimizer: live; full batch its state may come from a checkpoint, along mini-batches it has no step behind it.
        loss: of the parameters that the optimizer holds; measures are of its full batch.
        steps: how many to take full batch, or the index of the batch of each step.
        stops: after how many of these steps to audit; default about ten, evenly spaced in their logarithm. Along mini-batches
            each is below their number, as the next step's batch counts.
        measures: names, or differentiable functions theta -> scalar.
        compare: other methods, measured by shadow memory, full batch also predicted; default `rivals`.
        betas: two axes of the beta maps, for an optimizer with a pair of betas; None for none.
        lags: along mini-batches replay so many random lags at a stop instead of every batch (every step, for a loss with
            noise, whose noise is replayed too).
        seed: of the lags.
        on_step: told the steps taken and their number.

    Returns:
        The audited run.

    Raises:
        Diverged: loss or gradient became infinite or NaN; carries the run so far.
        BadInput: an argument is out of range, batches cannot be replayed, or the past of the optimizer is not known.
    """
    order = None if isinstance(steps, int) else np.asarray(steps, dtype=np.int64)
    count = steps if isinstance(steps, int) else len(steps)
    if order is not None and not ((order >= 0) & (order < len(loss))).all():
        raise BadInput(f"batches must be indices in 0..{len(loss) - 1}, at least one")
    wanted = _stops(stops, count, order is None)
    method = live_optimizer.method_of(optimizer, loss.layout)
    own = method.parts[0].method.hyper.get("betas") if method.parts else None
    grid = Grid(method, *betas) if own and betas else None
    others = tuple(rivals(method) if compare is None else compare)
    run = Run([], own, grid.betas_1 if grid else (), grid.betas_2 if grid else ())
    watched = Watched(optimizer, method, loss, measures, others, grid)
    watch = FullBatch(watched) if order is None else MiniBatches(watched, order, wanted, lags, seed)

    def look(sight: Sight) -> None:
        if sight.taken in wanted:
            run.stops.append(watch.stop(sight))
        watch.feed(sight)

    try:
        loop.run(optimizer, loss, count, look, order, on_step)
    except Diverged as error:
        error.so_far = run
        raise
    run.gradients = watch.gradients
    return run


def _stops(stops: Sequence[int] | None, count: int, full_batch: bool) -> list[int]:
    if count < 1:
        raise BadInput(f"steps must be at least 1, got {count}")
    first, last = (0, count) if full_batch else (1, count - 1)
    wanted = sorted(set(log_spaced(last, 10) if stops is None else stops)) if last else []
    if not wanted or not first <= wanted[0] <= wanted[-1] <= last:
        where = f"{first}..{last}" + ("" if full_batch else ", below the number of batches")
        raise BadInput(f"stops must lie in {where}, got {list(wanted)}")
    return wanted


class Watched(NamedTuple):
    """What is looked at along a run.

    Attributes:
        optimizer: live.
        method: it, with its present hyperparameters.
        loss: of its parameters.
        measures: to tell the effect on.
        others: methods that are not running.
        grid: of pairs of betas, or None.
    """

    optimizer: Optimizer
    method: AnyOptimizer
    loss: Loss
    measures: Sequence[str | Differentiable]
    others: tuple[AnyOptimizer, ...]
    grid: Grid | None

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
    """

    gradients = 0

    def __init__(self, watched: Watched):
        self.watched = watched
        self.before = live_optimizer.step_of(watched.optimizer)
        self.shadow = Shadow(watched.shadowed, watched.loss.theta)

    def feed(self, sight: Sight) -> None:
        """Feed the shadows with the gradient of the step."""
        self.shadow.update(sight.gradient, sight.theta)

    def stop(self, sight: Sight) -> Stop:
        """Audit the live optimizer, the others and the grid before the step."""
        optimizer, method, loss, measures, others, grid = self.watched
        step = None if self.before is None else self.before + sight.taken
        point = Point(loss, sight.theta)
        values = evaluate(measures, point)
        live = live_optimizer.next_update(optimizer, loss.layout, point.gradient)
        notes = [UNKNOWN_PAST] if len(loss) > 1 and step != self.shadow.n else []  # steps before this run
        audit = inspect(method, point, expansion(method, point, step), step, values, live, notes)
        compared = tuple(self._other(other, audit, point, values) for other in others)
        maps: list[BetaMap] = []
        if grid is not None:
            maps = [measured_map(grid, self.shadow, point.gradient, sight.theta, values)]
            maps += predicted_maps(grid, point, self.shadow.n, values)
            maps = [checked(each, grid, values, point, self._effects(each.order, audit, point)) for each in maps]
        return Stop(audit, compared, tuple(maps))

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
        optimizer, method, loss, measures, others, grid = self.watched
        theta, order, point = sight.theta, self.order[: sight.taken + 1], Point(loss, sight.theta)
        values = evaluate(measures, point)
        noise = None if self.noise is None or sight.noise is None else self.noise | {sight.taken: sight.noise}
        replay = replayed.Replay(point, order, noise)
        frozen = replayed.exact(replay) if self.past is None else self.past.memory(replay, self.shadow, sight)

        def actual(v: Momentum, index: Index = slice(None)) -> Tensor:
            return self.shadow.memory(v, sight.gradient, theta, index)

        F = update_of(method, theta, frozen) if method.parts else expansion(method, point, sight.taken, order.tolist()).F
        live = live_optimizer.next_update(optimizer, loss.layout, sight.gradient).to(theta.dtype)
        vectors = Vectors(F, live - F, None, None)
        effects = effects_of(values, method.lr, vectors, point)
        validity = Validity(None, None, None, {effect.measure: effect.ratio for effect in effects}, (REPLAYED, *loss.notes))
        audit = Audit(str(method), sight.taken, method.lr, point.value, vectors, effects, validity)
        compared = []
        for other in others:
            there = update_of(other, theta, frozen)
            effect = update_of(other, theta, actual) - there
            same = bool(norm(there - F) <= 1e-3 * norm(F))
            slopes = tuple(value.slope(effect, other.lr) for value in values)
            change = _changes(values, point, other.lr, there, effect)
            compared.append(Other(self.watched.name(other), same, change, slopes, None, None, None))
        maps: tuple[BetaMap, ...] = ()
        if grid is not None:
            slopes = torch.stack([value.gradient for value in values])
            gap = inner_products(grid, slopes, theta, actual) - inner_products(grid, slopes, theta, frozen)
            found = map_of(gap, grid, values, "measured")

            def effect_of(each: AnyOptimizer) -> tuple[Tensor, Tensor]:
                if each is method:
                    return F, live - F
                there = update_of(each, theta, frozen)
                return there, update_of(each, theta, actual) - there

            # Once a run: a value of a measure costs as much as replaying every batch.
            maps = (checked(found, grid, values, point, effect_of) if sight.taken == self.last else found,)
            if sight.taken in self.predict:
                maps += tuple(order_maps(grid, point, values, order))
        self.gradients += replay.gradients
        return Stop(audit, tuple(compared), maps)
