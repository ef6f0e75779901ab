"""What memory does here: measured, predicted, and whether the prediction holds.

At one theta, for a live optimizer,

    measured      Delta = (what the optimizer does next) - F[n](theta), from a copy of it
    first order   M[n] of Eq. 9 (https://arxiv.org/abs/2502.02132)
    resummed      the same drift through the optimizer itself (`corrections.correction`)

and for each measure S of the loss the relative change per step that each of them causes, -lr <grad S, effect> / S. Memory
regularizes S if it lowers it, anti-regularizes if it raises it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memoryless.corrections import history
from memoryless.corrections.correction import batch_sequence, correction, first_order, outside, resummed
from memoryless.corrections.history import Linearization
from memoryless.corrections.sequences import Pool
from memoryless.loss.loss import Loss
from memoryless.loss.measures import MEASURES, Differentiable, Value, evaluate
from memoryless.methods import live_optimizer
from memoryless.methods.black_box.torch_method import AnyOptimizer, TorchMethod
from memoryless.methods.method import AnyMethod
from memoryless.render.numbers import label, percent

COSINE, ERROR = 0.9, 0.5
"""A prediction holds where its cosine to the measured effect and its relative error are at least and at most these."""

UNKNOWN_PAST = "several batches: the measured effect is memory's alone only if every past step used their mean gradient"


@dataclass(frozen=True)
class Effect:
    """What memory does to one measure S, relative to S, per step.

    Attributes:
        measure: name of S.
        value: S(theta).
        measured: -lr <grad S, Delta> / S; None without a live optimizer.
        first: the same for the first-order prediction.
        resummed: the same for the resummed prediction.
        update: the same for F, what the update does without memory.
        random: what a random direction as long as the effect E would do at two standard deviations,
            min(2 / sqrt(d), 1/2) lr |grad S| |E| / S; a change below it is called neutral.
        layers: contribution of each parameter tensor to `measured` (to `resummed` without a live optimizer).
    """

    measure: str
    value: float
    measured: float | None
    first: float
    resummed: float
    update: float
    random: float
    layers: dict[str, float]

    @property
    def best(self) -> float:
        """The measured change, or the resummed one where nothing is measured."""
        return self.resummed if self.measured is None else self.measured

    @property
    def word(self) -> str:
        """Regularizes, anti-regularizes or neutral."""
        if abs(self.best) <= self.random:
            return "neutral"
        return "regularizes" if self.best < 0 else "anti-regularizes"


@dataclass(frozen=True)
class Agreement:
    """A prediction against the measured effect: cosine, and |prediction - Delta| / |Delta|."""

    cosine: float
    error: float

    @property
    def holds(self) -> bool:
        """Within the limits of this module."""
        return self.cosine >= COSINE and self.error <= ERROR


@dataclass(frozen=True)
class Validity:
    """How far the numbers can be trusted.

    Attributes:
        outside: share of the coordinates outside the first-order expansion's radius.
        first: agreement of the first-order prediction; None without a measured effect, or where it is zero.
        resummed: agreement of the resummed prediction, likewise.
        notes: what else a reader must know.
    """

    outside: float
    first: Agreement | None
    resummed: Agreement | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """The effect of memory at one theta; effects are updates, theta_next = theta - lr * effect.

    Attributes:
        method: the optimizer, as text.
        step: n, or None for the steady state.
        lr: step size.
        loss: L(theta) before the step.
        F: update with the history frozen, shape (d,).
        measured: Delta, shape (d,), or None.
        first: M, shape (d,).
        resummed: resummed M, shape (d,).
        effects: one per measure.
        validity: how far to trust it.
    """

    method: str
    step: int | None
    lr: float
    loss: float
    F: Tensor
    measured: Tensor | None
    first: Tensor
    resummed: Tensor
    effects: tuple[Effect, ...]
    validity: Validity

    @property
    def verdict(self) -> str:
        """In words: what memory does to each measure, by how much, how it is known, and whether first order holds."""
        return " ".join([*(_sentence(e) for e in self.effects), _on_theory(self)])

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text, without the vectors."""
        plain = {
            "method": self.method,
            "step": self.step,
            "lr": self.lr,
            "loss": self.loss,
            "norms": {
                name: None if vector is None else float(vector.norm())
                for name, vector in (
                    ("F", self.F),
                    ("measured", self.measured),
                    ("first", self.first),
                    ("resummed", self.resummed),
                )
            },
            "effects": [asdict(e) | {"word": e.word} for e in self.effects],
            "validity": asdict(self.validity) | {"limits": {"cosine": COSINE, "error": ERROR}},
            "verdict": self.verdict,
        }
        for name in ("first", "resummed"):
            agreement = getattr(self.validity, name)
            if agreement is not None:
                plain["validity"][name]["holds"] = agreement.holds
        return plain

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict(), indent=2)

    def to_html(self) -> str:
        """One self-contained page."""
        from memoryless.live.run import Run
        from memoryless.render.page import page

        return page(Run.of(self).as_dict())


def audit(
    optimizer: torch.optim.Optimizer | AnyOptimizer,
    loss: Loss,
    measures: Sequence[str | Differentiable] = tuple(MEASURES),
    step: int | None = None,
    batches: Iterable[int] | None = None,
) -> Audit:
    """Audit the memory of an optimizer at the loss's present parameters. Nothing is changed, bit for bit.

    Args:
        optimizer: a live torch optimizer whose state comes from steps on this loss, or a method (then nothing is measured).
        loss: the loss; measures are of its full batch.
        measures: names in `MEASURES`, or differentiable functions theta -> scalar.
        step: n, the number of past steps; default what the optimizer's state says, or the steady state.
        batches: index of the batch of each step 0..n, the next step's included; None if every step took the full batch.
            Then F[n] is that of the same batches at the present theta, which costs their gradients once.

    Returns:
        The audit.

    Raises:
        NeverForgets: the steady state was asked of a memory that does not fade.
        BadInput: the optimizer cannot be run as a function of gradient and theta, or something is out of range or not
            finite; says what was expected.

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
    if isinstance(optimizer, torch.optim.Optimizer):
        try:
            method = live_optimizer.method_of(optimizer, loss)
        except live_optimizer.NotRecognised:
            method = TorchMethod.of(optimizer, loss)
        step = live_optimizer.step_of(optimizer) if step is None else step
    else:
        method = optimizer
    theta = loss.theta
    sequence = None if batches is None else batch_sequence(batches, step, len(loss))
    step = step if sequence is None else len(sequence) - 1
    linearization = loss.linearize(theta)
    live = None
    if isinstance(optimizer, torch.optim.Optimizer):
        gradient = linearization[0] if sequence is None else loss.gradient(theta, sequence[-1])
        live = live_optimizer.next_update(optimizer, loss, gradient)
    values = evaluate(measures, loss, theta, *linearization)
    notes = [UNKNOWN_PAST] if live is not None and len(loss) > 1 and sequence is None else []
    return inspect(method, loss, linearization, theta, step, values, live, notes, sequence)


def inspect(
    method: AnyOptimizer,
    loss: Loss,
    linearization: Linearization,
    theta: Tensor,
    step: int | None,
    values: Sequence[Value],
    live: Tensor | None = None,
    notes: Sequence[str] = (),
    batches: Sequence[int] | None = None,
) -> Audit:
    """Audit a method at theta from what is already known there.

    Args:
        method: in momentum form, or a black box.
        loss: the loss.
        linearization: gradient and curvature at theta.
        theta: shape (d,).
        step: n, or None for the steady state.
        values: the measures at theta.
        live: the measured update, shape (d,), if there is one; float64 keeps its digits.
        notes: what a reader must know besides.
        batches: of each step 0..n; None is full batch.

    Returns:
        The audit.
    """
    if isinstance(method, TorchMethod):
        F, first, summed, share, how = _of_black_box(method, loss, theta, step, batches)
        notes = [*notes, how]
    else:
        past = (
            history.full_batch(method, linearization, theta, step)
            if batches is None
            else history.of_batches(method, loss, theta, batches)
        )
        first, summed, share = first_order(method, past, theta), resummed(method, past, theta), outside(method, past)
        # The measured effect keeps the digits of float64.
        F = past.F if live is None else _frozen(method, loss, linearization[0], theta, step, batches)
    delta = None
    if live is not None:
        # (theta - theta_next) / lr is known to the rounding of theta / lr: nothing below it is memory.
        rounding = 100 * torch.finfo(torch.float64).eps * (theta.norm() / method.lr + F.norm())
        delta = (live - F).to(theta.dtype)
        if delta.norm() <= rounding:
            delta = torch.zeros_like(delta)
    F = F.to(theta.dtype)
    effects = tuple(_effect(value, method.lr, F, delta, first, summed, loss) for value in values)
    validity = Validity(share, _agreement(first, delta), _agreement(summed, delta), (*notes, *_notes(loss, live, step)))
    value = float(loss(theta).detach())
    return Audit(str(method), step, method.lr, value, F, delta, first, summed, effects, validity)


def _frozen(
    method: AnyMethod, loss: Loss, gradient: Tensor, theta: Tensor, step: int | None, batches: Sequence[int] | None
) -> Tensor:
    """F[n](theta) in float64, of the full batch or of the batches of each step."""
    if batches is None:
        return history.frozen(method, gradient.double(), theta.double(), step)
    used = sorted(set(batches))
    gradients = torch.stack([loss.gradient(theta, i).double() for i in used])
    return Pool(method, gradients, theta.double()).update(np.searchsorted(used, batches))


def _of_black_box(
    method: TorchMethod, loss: Loss, theta: Tensor, step: int | None, batches: Sequence[int] | None
) -> tuple[Tensor, Tensor, Tensor, float, str]:
    """F in float64, both corrections, the share outside, and how its step was differentiated."""
    first, summed = (correction(method, loss, theta, step, order, batches) for order in ("first", "resummed"))
    assert first.response is not None
    how = f"black box, differentiated by {first.response.derivative}: {first.response.derivative_reason}"
    return first.F, first.M.to(theta.dtype), summed.M.to(theta.dtype), first.outside, how


def _effect(value: Value, lr: float, F: Tensor, delta: Tensor | None, first: Tensor, summed: Tensor, loss: Loss) -> Effect:
    def change(vector: Tensor) -> float:
        return value.change(vector, lr)

    best = summed if delta is None else delta
    share = min(2 / best.numel() ** 0.5, 0.5)
    random = share * lr * float(value.gradient.norm() * best.norm()) / (abs(value.value) or 1)
    product = value.gradient * best * (-lr / (value.value or 1))
    layers = {name: float(product[part].sum()) for name, part in loss.slices.items()}
    measured = None if delta is None else change(delta)
    return Effect(value.name, value.value, measured, change(first), change(summed), change(F), random, layers)


def _agreement(prediction: Tensor, delta: Tensor | None) -> Agreement | None:
    if delta is None or delta.norm() == 0:
        return None
    cosine = float(torch.nn.functional.cosine_similarity(prediction.double(), delta.double(), dim=0, eps=1e-300))
    return Agreement(cosine, float((prediction - delta).norm() / delta.norm()))


def _notes(loss: Loss, live: Tensor | None, step: int | None) -> tuple[str, ...]:
    notes = []
    if live is None:
        notes.append("no live optimizer: predicted only")
    if live is not None and step is None:
        notes.append("the optimizer does not count its steps: its steady state is assumed, pass step=n for exact transients")
    if loss.uses_differences:
        notes.append("curvature by differences of gradients")
    if loss.frozen:
        notes.append(f"frozen parameters left out: {', '.join(loss.frozen)}")
    return tuple(notes)


def _sentence(effect: Effect) -> str:
    name = label(effect.measure)
    how = "measured" if effect.measured is not None else "predicted only"
    if effect.word == "neutral":
        return f"Neutral for the {name}: {percent(effect.best)} per step ({how}), no more than a random direction would do."
    return f"Memory {effect.word} the {name}: {percent(effect.best)} per step ({how})."


def _on_theory(audit: Audit) -> str:
    validity = audit.validity
    share = f"{validity.outside:.0%} of the coordinates lie outside its radius"
    if validity.first is None or validity.resummed is None:
        if audit.measured is not None:
            return "Memory has no effect on this update."
        return f"First-order theory: {share}."
    says = f"cosine {validity.first.cosine:.2f}, relative error {validity.first.error:.2g}"
    first = f"First-order theory {'holds' if validity.first.holds else 'does not hold'} here ({says}; {share})"
    agree = f"cosine {validity.resummed.cosine:.2f}, relative error {validity.resummed.error:.2g}"
    return f"{first}; the resummed prediction {'holds' if validity.resummed.holds else 'does not hold'} ({agree})."
