"""What an effect does to the measures, how far it can be trusted, and both in words."""

from dataclasses import dataclass

import torch
from torch import Tensor

from memoryless.flat import norm, total
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Value

COSINE, ERROR = 0.9, 0.5
"""A prediction holds where its cosine to the measured effect and its relative error are at least and at most these."""


@dataclass(frozen=True)
class Effect:
    """What memory does to one measure S, relative to S, per step.

    Attributes:
        measure: name of S.
        value: S(theta).
        measured: -lr <grad S, Delta> / S; None without a live optimizer.
        first: the same for the first-order prediction; None where it was not made.
        resummed: the same for the resummed prediction; None where it was not made.
        update: the same for F, what the update does without memory.
        random: what a random direction as long as the effect E would do at two standard deviations,
            min(2 / sqrt(d), 1/2) lr |grad S| |E| / S; a change below it is called neutral.
        layers: contribution of each parameter tensor to `measured` (to `resummed` without a live optimizer).
    """

    measure: str
    value: float
    measured: float | None
    first: float | None
    resummed: float | None
    update: float
    random: float
    layers: dict[str, float]

    @property
    def best(self) -> float:
        """The measured change, or the resummed one where nothing is measured."""
        found = self.resummed if self.measured is None else self.measured
        assert found is not None
        return found

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
        outside: share of the coordinates outside the first-order expansion's radius; None where nothing was predicted.
        first: agreement of the first-order prediction; None without a measured effect, or where it is zero.
        resummed: agreement of the resummed prediction, likewise.
        notes: what else a reader must know.
    """

    outside: float | None
    first: Agreement | None
    resummed: Agreement | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Vectors:
    """An update and what memory adds to it, each of shape (d,) in the units of an update.

    Attributes:
        F: update with the history frozen.
        measured: Delta, or None.
        first: M, or None.
        resummed: resummed M, or None.
    """

    F: Tensor
    measured: Tensor | None
    first: Tensor | None
    resummed: Tensor | None


def effect_on(value: Value, lr: float, vectors: Vectors, loss: Loss) -> Effect:
    """What each of the vectors does to one measure.

    Args:
        value: the measure at theta.
        lr: step size.
        vectors: at theta; something measured or resummed among them.
        loss: names the parameter tensors.
    """

    def change(vector: Tensor | None) -> float | None:
        return None if vector is None else value.change(vector, lr)

    best = vectors.resummed if vectors.measured is None else vectors.measured
    assert best is not None
    share = min(2 / best.numel() ** 0.5, 0.5)
    random = share * lr * float(norm(value.gradient) * norm(best)) / (abs(value.value) or 1)
    product = value.gradient * best * (-lr / (value.value or 1))
    layers = {name: float(total(product[part])) for name, part in loss.slices.items()}
    return Effect(
        value.name,
        value.value,
        change(vectors.measured),
        change(vectors.first),
        change(vectors.resummed),
        value.change(vectors.F, lr),
        random,
        layers,
    )


def agreement(prediction: Tensor | None, delta: Tensor | None) -> Agreement | None:
    """Of a prediction with what was measured, where both are and the latter is not zero."""
    if prediction is None or delta is None or norm(delta) == 0:
        return None
    cosine = float(torch.nn.functional.cosine_similarity(prediction.double(), delta.double(), dim=0, eps=1e-300))
    return Agreement(cosine, float(norm(prediction - delta) / norm(delta)))


def in_words(validity: Validity, measured: bool) -> str:
    """Whether the predictions hold here, in one sentence."""
    if validity.outside is None:
        return "Nothing is predicted along mini-batches; see expected_correction."
    share = f"{validity.outside:.0%} of the coordinates lie outside its radius"
    if validity.first is None or validity.resummed is None:
        return "Memory has no effect on this update." if measured else f"First-order theory: {share}."

    def says(found: Agreement) -> tuple[str, str]:
        return "holds" if found.holds else "does not hold", f"cosine {found.cosine:.2f}, relative error {found.error:.2g}"

    (first, how), (summed, summed_how) = says(validity.first), says(validity.resummed)
    return f"First-order theory {first} here ({how}; {share}); the resummed prediction {summed} ({summed_how})."
