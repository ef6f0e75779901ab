"""Audit an optimizer along its run: the run itself, what other methods would do on it, and the beta map.

The run is full batch, bit for bit the one that would have happened without the audit.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memoryless.audits.audit import UNKNOWN_PAST, Audit, inspect
from memoryless.audits.beta_map import BETAS_1, BETAS_2, BetaMap, Grid, measured_maps, predicted_maps
from memoryless.audits.shadow import Shadow
from memoryless.corrections import history
from memoryless.corrections.correction import first_order, outside, resummed
from memoryless.corrections.history import Linearization
from memoryless.errors import BadInput, Diverged, NotFinite
from memoryless.loss.loss import Loss
from memoryless.loss.measures import MEASURES, Differentiable, Value, evaluate
from memoryless.methods import catalogue, live_optimizer
from memoryless.methods.method import AnyMethod, Method
from memoryless.render.numbers import label, percent


@dataclass(frozen=True)
class Other:
    """Another method's memory at a stop of the live run; changes per step relative to S, in the order of the measures.

    Attributes:
        method: as text, its lr left out where it is the live one.
        same_update: whether its F is the live one, so that the live path is its own to first order in lr.
        measured: by its shadow.
        first: predicted.
        resummed: predicted.
        outside: share of the coordinates outside the radius.
    """

    method: str
    same_update: bool
    measured: tuple[float, ...]
    first: tuple[float, ...]
    resummed: tuple[float, ...]
    outside: float


@dataclass(frozen=True)
class Stop:
    """One audited step: the live optimizer, the others, and the beta maps (none for a method without a pair of betas)."""

    audit: Audit
    others: tuple[Other, ...] = ()
    maps: tuple[BetaMap, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        names = [effect.measure for effect in self.audit.effects]
        others = [
            {
                "method": o.method,
                "same_update": o.same_update,
                "outside": o.outside,
                "changes": {
                    name: {"measured": o.measured[k], "first": o.first[k], "resummed": o.resummed[k]}
                    for k, name in enumerate(names)
                },
            }
            for o in self.others
        ]
        maps = [{"kind": m.kind, "measure": m.measure, "change": m.change.tolist()} for m in self.maps]
        return self.audit.as_dict() | {"others": others, "maps": maps}


@dataclass
class Run:
    """An audited run.

    Attributes:
        stops: the audited steps, in order.
        betas: the live optimizer's own pair, if it has one.
        betas_1: first axis of the beta maps.
        betas_2: second axis.
        about: what was audited, for the page's head: text by label.
    """

    stops: list[Stop]
    betas: tuple[float, float] | None = None
    betas_1: tuple[float, ...] = ()
    betas_2: tuple[float, ...] = ()
    about: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, audit: Audit) -> "Run":
        """A run of one stop."""
        return cls([Stop(audit)])

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

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict())

    def to_html(self) -> str:
        """One self-contained page with charts."""
        from memoryless.render.page import page

        return page(self.as_dict())


def log_spaced(steps: int, count: int) -> list[int]:
    """About `count` steps from 1 to `steps`, evenly spaced in their logarithm.

    Args:
        steps: the last.
        count: how many, before equal ones are merged.
    """
    return sorted({round(s) for s in np.geomspace(1, steps, count)})


def rivals(method: AnyMethod) -> list[Method]:
    """The methods that `audit_run` compares with: the live one at other betas, Lion, Signum and heavy ball, at its lr.

    Args:
        method: the live one.
    """
    base = method.parts[0].method
    pairs = ((0.9, 0.9), (0.9, 0.95))
    variants = [base.with_hyper(betas=pair) for pair in pairs] if base.name in ("adam", "adamw", "nadam") else []
    if not variants:
        variants = [catalogue.AdamW(method.lr, pair) for pair in ((0.9, 0.999), *pairs)]
    return [*variants, catalogue.Lion(method.lr), catalogue.Signum(method.lr), catalogue.HeavyBall(method.lr)]


def audit_run(
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    steps: int = 1000,
    stops: Sequence[int] | None = None,
    measures: Sequence[str | Differentiable] = tuple(MEASURES),
    compare: Sequence[Method] | None = None,
    betas_1: Sequence[float] = BETAS_1,
    betas_2: Sequence[float] = BETAS_2,
    on_step: Callable[[int], None] = lambda step: None,
) -> Run:
    """Run a torch optimizer full batch on the loss's own parameters, auditing it at some of the steps.

    The model and the optimizer end where they would have ended without the audit, bit for bit.

    Args:
        optimizer: live; its state may come from a checkpoint.
        loss: of the parameters that the optimizer holds.
        steps: to take.
        stops: after how many of these steps to audit; default about ten, evenly spaced in their logarithm.
        measures: names, or differentiable functions theta -> scalar.
        compare: other methods, measured by shadow memory and predicted; default `rivals`.
        betas_1: first axis of the beta maps.
        betas_2: second axis.
        on_step: called with the number of steps taken, for progress.

    Returns:
        The audited run.

    Raises:
        NotRecognised: the optimizer has no catalogue method.
        Diverged: loss or gradient became infinite or NaN; carries the stops so far.
        BadInput: an argument is out of range.
    """
    if steps < 1:
        raise BadInput(f"steps must be at least 1, got {steps}")
    wanted = set(log_spaced(steps, 10) if stops is None else stops)
    if bad := [s for s in wanted if not 0 <= s <= steps]:
        raise BadInput(f"stops must lie in 0..{steps}, got {bad[0]}")
    method = live_optimizer.method_of(optimizer, loss)
    before = live_optimizer.step_of(optimizer)
    others = list(rivals(method) if compare is None else compare)
    betas = method.parts[0].method.hyper.get("betas")
    grid = Grid(method, betas_1, betas_2) if betas else None
    shadow = Shadow([*others, *(grid.spanning() if grid else ())], loss.theta)
    run = Run([], betas, tuple(betas_1), tuple(betas_2))
    for taken in range(steps + 1):
        theta = loss.theta
        try:
            gradient = loss.gradient(theta)
            if taken in wanted:
                step = None if before is None else before + taken
                run.stops.append(_stop(optimizer, method, loss, theta, step, measures, others, shadow, grid))
        except NotFinite as error:
            raise Diverged(f"after {taken} steps {error}", taken, run) from error
        on_step(taken)
        if taken == steps:
            return run
        shadow.update(gradient, theta)
        for p, part in zip(loss.parameters, loss.slices.values(), strict=True):
            p.grad = gradient[part].view_as(p)
        optimizer.step()
    raise AssertionError("unreachable")


def _stop(
    optimizer: torch.optim.Optimizer,
    method: AnyMethod,
    loss: Loss,
    theta: Tensor,
    step: int | None,
    measures: Sequence[str | Differentiable],
    others: Sequence[Method],
    shadow: Shadow,
    grid: Grid | None,
) -> Stop:
    gradient, curvature = loss.linearize(theta)
    linearization = gradient, _remembering(curvature)
    values = evaluate(measures, loss, theta, gradient, curvature)
    live = live_optimizer.next_update(optimizer, loss, gradient)
    notes = [UNKNOWN_PAST] if len(loss) > 1 and step != shadow.n else []  # steps before this run
    audit = inspect(method, loss, linearization, theta, step, values, live, notes)
    compared = tuple(_other(m, audit, linearization, theta, values, shadow) for m in others)
    maps: list[BetaMap] = []
    if grid is not None:
        maps = measured_maps(grid, shadow, gradient, theta, values)
        maps += predicted_maps(grid, linearization, theta, shadow.n, values)
    return Stop(audit, compared, tuple(maps))


def _other(
    method: Method, live: Audit, linearization: Linearization, theta: Tensor, values: Sequence[Value], shadow: Shadow
) -> Other:
    past = history.full_batch(method, linearization, theta, shadow.n)
    effects = (
        shadow.effect(method, linearization[0], theta),
        first_order(method, past, theta),
        resummed(method, past, theta),
    )
    measured, first, summed = (tuple(v.change(effect, method.lr) for v in values) for effect in effects)
    same = bool((past.F - live.F).norm() <= 1e-3 * live.F.norm())
    name = method.describe(omit=("lr",) if method.lr == live.lr else ())
    return Other(name, same, measured, first, summed, outside(method, past))


def _remembering(curvature: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """H v, computed once for all v that agree to rounding: methods that share F share the product."""
    known: list[tuple[Tensor, Tensor]] = []

    def product(v: Tensor) -> Tensor:
        tolerance = 100 * torch.finfo(v.dtype).eps * v.norm()
        for seen, result in known:
            if (v - seen).norm() <= tolerance:
                return result
        known.append((v, curvature(v)))
        return known[-1][1]

    return product
