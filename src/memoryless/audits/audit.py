"""What memory does here: measured, predicted, and whether the prediction holds.

At one theta, for a live optimizer,

    measured      Delta = (what the optimizer does next) - F[n](theta), from a copy of it
    first order   M[n] of Eq. 9 (https://arxiv.org/abs/2502.02132)
    resummed      the same drift through the optimizer itself (`corrections.expansion`)
    path          the way back followed by gradients, and its memory of them (`corrections.path`)

and for each measure S of the loss the relative change that each of them causes in one step, as it happens and as a slope
(`audits.effect`). Memory regularizes S if it lowers it, anti-regularizes if it raises it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from memoryless.audits.effect import COSINE, ERROR, STRAIGHT, Effect, Validity, Vectors, agreement, effects_of, in_words
from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.correction import batch_sequence
from memoryless.corrections.expansion import Expansion, expansion
from memoryless.corrections.path import GROWTH
from memoryless.corrections.unrolled import Unrolled
from memoryless.errors import BadInput, NotFinite
from memoryless.flat import norm
from memoryless.loss.loss import Loss
from memoryless.loss.measures import USUAL, Differentiable, Value, evaluate
from memoryless.loss.point import Point
from memoryless.methods import live_optimizer, past
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.method import AnyOptimizer
from memoryless.methods.past import Schedule
from memoryless.methods.wrapped import unwrapped
from memoryless.render.numbers import label, percent, plain
from memoryless.render.result import Result

AS_THEY_ARE = "past gradients are taken as they are: if the loop sums, clips or scales them give gradient="
UNKNOWN_PAST = "several batches: the measured effect is memory's alone only if every past step used their mean gradient"


@dataclass(frozen=True)
class Audit(Result):
    """The effect of memory at one theta; effects are updates, theta_next = theta - lr * effect.

    Attributes:
        method: the optimizer, as text.
        step: n, or None for the steady state.
        lr: step size.
        loss: L(theta) before the step.
        vectors: F, and memory's effect measured and predicted.
        effects: one per measure.
        validity: how far to trust it.
    """

    method: str
    step: int | None
    lr: float
    loss: float
    vectors: Vectors
    effects: tuple[Effect, ...]
    validity: Validity

    @property
    def F(self) -> Tensor:
        """Update with the history frozen, shape (d,)."""
        return self.vectors.F

    @property
    def measured(self) -> Tensor | None:
        """Delta, shape (d,), or None."""
        return self.vectors.measured

    @property
    def first(self) -> Tensor | None:
        """M, shape (d,), or None where it was not predicted."""
        return self.vectors.first

    @property
    def resummed(self) -> Tensor | None:
        """Resummed M, shape (d,), or None where it was not predicted."""
        return self.vectors.resummed

    @property
    def path(self) -> Tensor | None:
        """What memory of the path back adds, shape (d,); None for a black box, along batches, or without a finite path."""
        return self.vectors.path

    @property
    def verdict(self) -> str:
        """In words: what memory does to each measure, by how much, how it is known, and whether first order holds."""
        return " ".join([*(e.sentence for e in self.effects), in_words(self.validity, self.measured is not None)])

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text, without the vectors."""
        found = {
            "method": self.method,
            "step": self.step,
            "lr": self.lr,
            "loss": self.loss,
            "norms": {
                name: None if vector is None else float(norm(vector))
                for name, vector in (
                    ("F", self.F),
                    ("measured", self.measured),
                    ("first", self.first),
                    ("resummed", self.resummed),
                    ("path", self.path),
                )
            },
            "effects": [plain(e) | {"word": e.word, "straight": e.straight, "sentence": e.sentence} for e in self.effects],
            "validity": plain(self.validity)
            | {
                "go_by": self.validity.go_by,
                "limits": {"cosine": COSINE, "error": ERROR, "straight": STRAIGHT, "growth": GROWTH},
            },
            "verdict": self.verdict,
        }
        for name in ("first", "resummed", "path"):
            agreed = getattr(self.validity, name)
            if agreed is not None:
                found["validity"][name]["holds"] = agreed.holds
        return plain(found)

    def to_html(self) -> str:
        """One self-contained page."""
        from memoryless.render.page import page

        stop = self.as_dict() | {"others": [], "maps": [], "branches": []}
        return page({"about": {}, "verdict": self.verdict, "betas": None, "betas_1": (), "betas_2": (), "stops": [stop]})


@valid_arguments
def audit(
    optimizer: Optimizer | AnyOptimizer,
    loss: Loss,
    theta: Tensor | None = None,
    *,
    step: int | None = None,
    batches: Iterable[int] | None = None,
    scheduler: Schedule | None = None,
    gradient: Callable[[Tensor], Tensor] | None = None,
    measures: Sequence[str | Differentiable] = USUAL,
) -> Audit:
    """Audit the memory of an optimizer at one theta. Nothing is changed, bit for bit.

    Args:
        optimizer: a live torch optimizer whose state comes from steps on this loss, or a method (then nothing is measured).
        loss: the loss; measures are of its full batch.
        theta: shape (d,); default `loss.theta`, where a live optimizer always is.
        step: n, the number of past steps; default what the optimizer's state says, or the steady state.
        batches: index of the batch of each step 0..n, the next step's included; None if every step took the full batch.
            Then F[n] is that of the same batches at the present theta, which costs their gradients once.
        scheduler: of a live optimizer, what moved its lr and betas: the torch scheduler itself, if it steps once a step, or a
            function n -> {"lr": ..., "betas": ...} (or a list of one such for each group), or the list of these for steps 0..n.
            Then F[n] has at each past step the hyperparameters of its time, and the past lies back by sum_s lr_s F[s].
        gradient: of a live optimizer, what the loop does to a gradient, as one vector of shape (d,), before the optimizer sees
            it: clips its norm, sums instead of averaging.
        measures: names in `loss.measures.MEASURES`, or differentiable functions theta -> scalar.

    Returns:
        The audit.

    Raises:
        NeverForgets: the steady state was asked of a memory that does not fade.
        BadInput: the optimizer cannot be run as a function of gradient and theta, its state contradicts the history that is
            assumed, or something is out of range or not finite; says what was expected.

    Example:
        >>> import memoryless as ml
        >>> theta = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        >>> loss = ml.Loss.of(lambda theta: (theta**2).sum() / 2, theta)
        >>> optimizer = torch.optim.SGD([theta], lr=0.001, momentum=0.9)
        >>> for _ in range(100):
        ...     theta.grad = loss.gradient(loss.theta)
        ...     optimizer.step()
        >>> found = audit(optimizer, loss, measures=["gradient_norm_squared"])
        >>> found.effects[0].word  # the heavy ball lags behind a falling gradient: it moves on, and flattens
        'regularizes'
    """
    optimizer = unwrapped(optimizer)
    if batches is not None:
        loss.batches.require_indexed()
    if isinstance(optimizer, Optimizer):
        if theta is not None:
            raise BadInput(
                "a live optimizer is audited where it is; leave out theta, or give its method: ml.method_of(optimizer)"
            )
        return _audit_live(optimizer, loss, step, batches, scheduler, gradient, measures)
    if scheduler is not None or gradient is not None:
        raise BadInput("scheduler and gradient tell the past of a live optimizer; a method has none: leave them out")
    sequence, step = _sequence(batches, step, loss)
    point = Point(loss, theta)
    return inspect(optimizer, point, expansion(optimizer, point, step, sequence), step, evaluate(measures, point))


def _sequence(batches: Iterable[int] | None, step: int | None, loss: Loss) -> tuple[list[int] | None, int | None]:
    """The batch of each step 0..n, and n."""
    if batches is None:
        return None, step
    sequence = batch_sequence(batches, step, len(loss))
    return sequence, len(sequence) - 1


def _audit_live(
    live: Optimizer,
    loss: Loss,
    step: int | None,
    batches: Iterable[int] | None,
    scheduler: Schedule | None,
    gradient: Callable[[Tensor], Tensor] | None,
    measures: Sequence[str | Differentiable],
) -> Audit:
    method = live_optimizer.method_of(live, loss.layout)
    counted = live_optimizer.step_of(live)
    past.require_consistent(live, step, counted, scheduler)
    sequence, step = _sequence(batches, counted if step is None else step, loss)
    point = Point(loss)
    values = evaluate(measures, point)
    seen = point.gradient if sequence is None else point.gradient_of(sequence[-1])
    notes = past.notes_on(live, loss.layout, scheduler, counted)
    if len(loss) > 1 and sequence is None:
        notes.append(UNKNOWN_PAST)
    elif gradient is None and sequence is None and past.keeps_adams(live):
        notes += past.notes_on_gradients(live, seen, loss.layout)
    elif gradient is None and any(live.state.values()):
        notes.append(AS_THEY_ARE)
    update = live_optimizer.next_update(live, loss.layout, past.changed(seen, gradient))
    if scheduler is None and gradient is None:
        return inspect(method, point, expansion(method, point, step, sequence), step, values, update, notes)
    if step is None:
        raise BadInput("a schedule or a changed gradient has no steady state, and the optimizer counts no steps; give step=n")
    if scheduler is None:
        own = TorchMethod.of(live, loss.layout)
    else:
        own = past.scheduled(live, loss.layout, scheduler, step, method.lr)
    return inspect(own, point, Unrolled(own, point, step, sequence, through=gradient), step, values, update, notes)


def inspect(
    method: AnyOptimizer,
    point: Point,
    found: Expansion,
    step: int | None,
    values: Sequence[Value],
    live: Tensor | None = None,
    notes: Sequence[str] = (),
    predict: bool = True,
) -> Audit:
    """Audit a method from what is already known at a point.

    Args:
        method: in momentum form, or a black box.
        point: of the loss.
        found: the method's expansion there.
        step: n, or None for the steady state.
        values: the measures there.
        live: the measured update, shape (d,), if there is one, in the type in which the step was taken.
        notes: what a reader must know besides.
        predict: whether to ask for first order, resummed and the path.

    Returns:
        The audit.
    """
    theta, loss, lr = point.theta, point.loss, method.lr
    E, growth = None, None
    try:
        path = found.path() if predict else None
        if path is not None:
            E, growth = path.effect(method), path.growth
        del path  # what it holds is let go before more is asked for
    except NotFinite:
        notes = [*notes, "no path back from here: it leads to where the loss is not finite"]
    first = found.first() if predict else None
    summed = found.resummed() if predict else None
    if first is not None and first.way != "momentum form":
        notes = [*notes, f"black box, differentiated by {first.way}: {first.reason}"]
    F, delta = found.F if live is None else found.precise_F, None
    if live is not None:
        # (theta - theta_next) / lr is known to the rounding of theta / lr, in the type in which the step was taken, and F to
        # that of its arithmetic: nothing below them is memory.
        rounding = torch.finfo(live.dtype).eps * (norm(theta) / lr + 100 * norm(F))
        delta = (live - F).to(theta.dtype)
        if norm(delta) <= rounding:
            delta = torch.zeros_like(delta)
    vectors = Vectors(
        F.to(theta.dtype),
        delta,
        None if first is None else first.value,
        None if summed is None else summed.value,
        E,
        growth,
    )
    effects = effects_of(values, lr, vectors, point)
    validity = Validity(
        found.outside if predict else None,
        agreement(vectors.first, delta),
        agreement(vectors.resummed, delta),
        {effect.measure: effect.ratio for effect in effects},
        (*notes, *_notes(loss, live, step), *_digits(effects, loss)),
        agreement(vectors.path, delta),
        vectors.growth,
        vectors.prediction,
    )
    return Audit(str(method), step, lr, point.value, vectors, effects, validity)


def _digits(effects: Sequence[Effect], loss: Loss) -> list[str]:
    """What autocast leaves of the changes."""
    if loss.autocast is None or not effects:
        return []
    left = ", ".join(f"{percent(e.rounding).removeprefix('+')} of the {label(e.measure)}" for e in effects)
    kind = str(loss.autocast).removeprefix("torch.")
    return [f"autocast to {kind} rounds changes by up to {left}: for more digits give a criterion without it"]


def _notes(loss: Loss, live: Tensor | None, step: int | None) -> tuple[str, ...]:
    notes = []
    if live is None:
        notes.append("no live optimizer: predicted only")
    if live is not None and step is None:
        notes.append("the optimizer does not count its steps: its steady state is assumed, pass step=n for exact transients")
    if live is not None and loss.noise is not None:
        notes.append("each past step drew its own noise, which counts as memory here; audit_run along batches replays it")
    return (*notes, *loss.notes)
