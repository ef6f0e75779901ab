"""Audit an optimizer along its run, full batch or mini-batches: the run, what other methods would do on it, beta maps."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.optim import Optimizer

from memoryless.audits.beta_map import Order
from memoryless.audits.grid import BETAS_1, BETAS_2, Grid
from memoryless.corrections import sequences
from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.expected.estimate import Samples
from memoryless.errors import BadInput, Diverged
from memoryless.live import loop
from memoryless.live.beyond import Beyond
from memoryless.live.followed import Followed
from memoryless.live.loop import Sight
from memoryless.live.stop import Stop
from memoryless.live.watches import FullBatch, MiniBatches, Watched
from memoryless.loss.loss import Loss
from memoryless.loss.measures import USUAL, Differentiable
from memoryless.methods import catalogue, live_optimizer
from memoryless.methods.method import AnyOptimizer, Method
from memoryless.methods.past import Schedule, Through
from memoryless.methods.wrapped import unwrapped
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import label, percent
from memoryless.render.result import Result


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
    branch: bool = False,
    anchors: Sequence[tuple[float, float]] = (),
    scheduler: Schedule | None = None,
    gradient: Through | None = None,
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
        branch: whether to check the others and the corners of the map by 20 real steps of their own at each stop, full batch.
        anchors: further pairs of betas to run beside, on copies, full batch; each cell of the measured map is read off the
            nearest run.
        scheduler: of lr, betas, ...: the torch scheduler itself, which is stepped once after each step, or the hyperparameters
            of each step, as for `audit`. Stops at lr 0, where nothing moves, are left out; others and maps are only measured.
        gradient: what the loop does to a gradient before the optimizer sees it, as for `audit`: here it is done.
        seed: of the lags, and of the coordinates on which paths are compared.
        on_step: told the steps taken and their number.

    Returns:
        The audited run.

    Raises:
        Diverged: loss or gradient became infinite or NaN; carries the run so far.
        BadInput: an argument is out of range, batches cannot be replayed, or the past of the optimizer is not known.
    """
    optimizer = unwrapped(optimizer)
    order = None if isinstance(steps, int) else np.asarray(steps, dtype=np.int64)
    count = steps if isinstance(steps, int) else len(steps)
    if order is not None and not ((order >= 0) & (order < len(loss))).all():
        raise BadInput(f"batches must be indices in 0..{len(loss) - 1}, at least one")
    wanted = _stops(stops, count, order is None)
    followed = None if scheduler is None else Followed(optimizer, scheduler, live_optimizer.step_of(optimizer), count)
    with nullcontext() if followed is None else followed.moving():
        method = live_optimizer.method_of(optimizer, loss.layout)
    own = method.parts[0].method.hyper.get("betas") if method.parts else None
    grid = Grid(method, *betas) if own and betas else None
    others = tuple(rivals(method) if compare is None else compare)
    run = Run([], own, grid.betas_1 if grid else (), grid.betas_2 if grid else ())
    watched = Watched(optimizer, method, loss, measures, others, grid, followed, gradient)
    watch = FullBatch(watched) if order is None else MiniBatches(watched, order, wanted, lags, seed)
    beyond = Beyond(watched, wanted, order is None, branch, anchors, seed)

    def look(sight: Sight) -> None:
        if sight.taken in wanted and not (followed and followed.still):
            run.stops.append(beyond.told(watch.stop(sight), watch.shadow, sight))
        beyond.look(watch.shadow, sight)
        watch.feed(sight)

    try:
        loop.run(optimizer, loss, count, look, order, on_step, followed, gradient)
    except Diverged as error:
        error.so_far = run
        raise
    if not run.stops:
        raise BadInput(f"lr is 0 at every stop, {wanted}, and nothing moves there; choose other stops")
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
