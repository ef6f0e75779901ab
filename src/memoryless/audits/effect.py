"""What an effect does to the measures, how far it can be trusted, and both in words.

An effect E is part of an update, theta_next = theta - lr (F + E). What it does to a measure S in one step is

    change = (S(theta - lr (F + E)) - S(theta - lr F)) / S(theta)        two values of S
    slope  = -lr <grad S(theta), E> / S(theta)

The change is what happens. The slope is its first order in lr: it adds up over layers and gives whole maps by matrix products,
and is of no use where the step is long on S's own scale, which the ratio of the two tells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memoryless.corrections.path import CLOSE, GROWTH
from memoryless.errors import NotFinite
from memoryless.flat import norm, total
from memoryless.loss.measures import Value
from memoryless.loss.point import Point
from memoryless.render.numbers import label, percent

COSINE, ERROR = 0.9, 0.5
"""A prediction holds where its cosine to the measured effect and its relative error are at least and at most these."""

PAIRS = 4
"""Of random displacements, by which the rounding of autocast is told."""

STRAIGHT = 0.5, 2.0
"""A step is short enough for slopes where change / slope lies between these."""


@dataclass(frozen=True)
class Slopes:
    """What memory does to one measure S to first order in lr, -lr <grad S, effect> / S.

    Attributes:
        measured: of Delta; None without a live optimizer.
        path: of the prediction along the path back; None where it was not made.
        first: of the first-order prediction; None where it was not made.
        resummed: of the resummed prediction; None where it was not made.
        update: of F, the update without memory.
        predicted: of the prediction to go by (`Validity.prediction`); None where nothing was predicted.
        layers: each parameter tensor's part of `best`.
    """

    measured: float | None
    path: float | None
    first: float | None
    resummed: float | None
    update: float
    predicted: float | None
    layers: dict[str, float]

    @property
    def best(self) -> float:
        """Of the measured effect, or of the predicted one where nothing is measured."""
        return _best(self.measured, self.predicted)


@dataclass(frozen=True)
class Effect:
    """What memory does to one measure S in one step, relative to S.

    Attributes:
        measure: name of S.
        value: S(theta).
        measured: (S(theta - lr (F + Delta)) - S(theta - lr F)) / S(theta); None without a live optimizer; infinite where S is
            not finite there.
        path: the same for the prediction along the path back; None where it was not made.
        first: the same for the first-order prediction; None where it was not made.
        resummed: the same for the resummed prediction; None where it was not made.
        update: what the update does without memory, (S(theta - lr F) - S(theta)) / S(theta).
        predicted: the same as `measured` for the prediction to go by (`Validity.prediction`); None where nothing was predicted.
        random: what a random direction as long as the effect E would do at two standard deviations,
            min(2 / sqrt(d), 1/2) lr |grad S| |E| / S, or what rounding does where that is more; a smaller change is neutral.
        slopes: of the same effects.
        rounding: what autocast to fewer digits leaves of such a change, at two standard deviations; 0 without.
    """

    measure: str
    value: float
    measured: float | None
    path: float | None
    first: float | None
    resummed: float | None
    update: float
    predicted: float | None
    random: float
    slopes: Slopes
    rounding: float = 0.0

    @property
    def best(self) -> float:
        """The measured change, or the predicted one where nothing is measured."""
        return _best(self.measured, self.predicted)

    @property
    def word(self) -> str:
        """Regularizes, anti-regularizes or neutral."""
        if abs(self.best) <= self.random:
            return "neutral"
        return "regularizes" if self.best < 0 else "anti-regularizes"

    @property
    def ratio(self) -> float | None:
        """Change / slope; None where the slope is zero or the change not known to be finite."""
        return self.best / self.slopes.best if self.slopes.best and math.isfinite(self.best) else None

    @property
    def straight(self) -> bool:
        """Whether the step is short enough for slopes: the ratio within `STRAIGHT`, or both no more than chance."""
        if max(abs(self.best), abs(self.slopes.best)) <= self.random:
            return True
        return self.ratio is not None and STRAIGHT[0] <= self.ratio <= STRAIGHT[1]

    @property
    def sentence(self) -> str:
        """What memory does to the measure, by how much, how that is known, and whether a slope would have told it."""
        name, how = label(self.measure), "predicted only" if self.measured is None else "measured"
        if self.word == "neutral":
            said = f"Neutral for the {name}: {percent(self.best)} per step ({how}), no more than chance"
        else:
            said = f"Memory {self.word} the {name}: {percent(self.best)} per step ({how})"
        if self.straight:
            return f"{said}."
        return f"{said}; one step is too long here for slopes, which say {percent(self.slopes.best)}."


def _best(measured: float | None, predicted: float | None) -> float:
    found = predicted if measured is None else measured
    assert found is not None
    return found


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
        straight: of each measure, change / slope of memory's effect (`Effect.ratio`): how far slopes can be trusted.
        notes: what else a reader must know.
        path: agreement of the prediction along the path back, likewise.
        growth: |grad L|_1 seven steps back on that path over that at theta; trusted up to `corrections.path.GROWTH`.
        prediction: the best that its own indicator allows: "path" where that is trusted, else "resummed"; None where nothing
            was predicted.
    """

    outside: float | None
    first: Agreement | None
    resummed: Agreement | None
    straight: dict[str, float | None]
    notes: tuple[str, ...]
    path: Agreement | None = None
    growth: float | None = None
    prediction: str | None = None

    @property
    def go_by(self) -> str | None:
        """`prediction`, unless the measured effect says that it fails."""
        trusted = self.path if self.prediction == "path" else self.resummed
        return None if trusted is not None and not trusted.holds else self.prediction


@dataclass(frozen=True)
class Vectors:
    """An update and what memory adds to it, each of shape (d,) in the units of an update.

    Attributes:
        F: update with the history frozen.
        measured: Delta, or None.
        first: M, or None.
        resummed: resummed M, or None.
        path: what memory of the path back adds, or None.
        growth: |grad L|_1 seven steps back on that path over that at theta, or None.
    """

    F: Tensor
    measured: Tensor | None
    first: Tensor | None
    resummed: Tensor | None
    path: Tensor | None = None
    growth: float | None = None

    @property
    def prediction(self) -> str | None:
        """The best that its own indicator allows. All agree to O(lr^2), and resummed is never behind first order."""
        if self.path is not None and self.growth is not None and self.growth <= GROWTH:
            return "path"
        return None if self.resummed is None else "resummed"

    @property
    def best(self) -> Tensor:
        """The measured effect, or the predicted one where nothing is measured."""
        best = self.measured if self.measured is not None else getattr(self, self.prediction or "first")
        assert best is not None
        return best


class Changes:
    """What effects do to the measures in one step from one theta, by values of the measures where the step ends.

    Args:
        values: the measures at theta.
        point: of the loss, at theta.
        lr: step size.

    Example:
        >>> import memoryless as ml
        >>> from memoryless.loss.measures import evaluate
        >>> point = Point(ml.Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([3.0, -4.0])))
        >>> changes = Changes(evaluate(["gradient_norm_squared"], point), point, lr=0.1)
        >>> changes(torch.tensor([3.0, -4.0]), torch.tensor([57.0, -76.0]))  # far across the minimum: slope -3.8
        [0.19]
    """

    def __init__(self, values: Sequence[Value], point: Point, lr: float):
        self.values, self.point, self.lr = values, point, lr
        self._base: tuple[Tensor, list[float]] | None = None

    def __call__(self, F: Tensor, effect: Tensor | None) -> list[float]:
        """(S(theta - lr (F + effect)) - S(theta - lr F)) / S(theta) of each measure; 0 where S(theta) is.

        Args:
            F: the update without the effect, shape (d,).
            effect: shape (d,); None is no effect.

        Returns:
            One number per measure, infinite where S is not finite.
        """
        if effect is None:
            return [0.0] * len(self.values)
        return self._relative(self._at(F + effect), self.without(F))

    def update(self, F: Tensor) -> list[float]:
        """(S(theta - lr F) - S(theta)) / S(theta) of each measure.

        Args:
            F: shape (d,).
        """
        return self._relative(self.without(F), [value.value for value in self.values])

    def rounding(self, effect: Tensor) -> list[float]:
        """What autocast to fewer digits leaves of a difference of two values, relative to S, at two standard deviations.

        A displacement r changes S by its slope, by what is even in r, and by rounding: of (S(theta - lr r) - S(theta + lr r))/2
        less the slope that alone is left, half of that of a difference in the mean square. r is as long as the effect, with
        random signs.

        Args:
            effect: shape (d,).

        Returns:
            One number per measure; 0 without autocast.
        """
        if self.point.loss.autocast is None:
            return [0.0] * len(self.values)
        generator, squares = torch.Generator().manual_seed(0), [0.0] * len(self.values)
        for _ in range(PAIRS):
            r = effect * (2 * torch.randint(2, effect.shape, generator=generator).to(effect) - 1)
            odd = self._relative(self._at(r), self._at(-r))
            off = [x / 2 - value.slope(r, self.lr) for x, value in zip(odd, self.values, strict=True)]
            squares = [square + x**2 / PAIRS for square, x in zip(squares, off, strict=True)]
        return [4 * square**0.5 for square in squares]

    def without(self, F: Tensor) -> list[float]:
        """S(theta - lr F) of each measure, found once for effects in a row whose F agree to rounding.

        Args:
            F: shape (d,).
        """
        same = 100 * torch.finfo(F.dtype).eps * norm(F)
        if self._base is None or norm(F - self._base[0]) > same:
            self._base = F, self._at(F)
        return self._base[1]

    def _at(self, update: Tensor) -> list[float]:
        there = Point(self.point.loss, self.point.theta - self.lr * update, products=0)
        try:
            return [value.at(there) for value in self.values]
        except NotFinite:
            return [math.inf] * len(self.values)

    def _relative(self, there: list[float], here: list[float]) -> list[float]:
        return [  # an infinite S less an infinite S is not a number
            0.0 if not value.value else (a - b) / abs(value.value) if math.isfinite(a - b) else math.inf
            for a, b, value in zip(there, here, self.values, strict=True)
        ]


def effects_of(values: Sequence[Value], lr: float, vectors: Vectors, point: Point) -> tuple[Effect, ...]:
    """What each of the vectors does to each measure.

    Args:
        values: the measures at theta.
        lr: step size.
        vectors: at theta; something measured or predicted among them.
        point: of the loss, at theta.
    """
    best = vectors.best
    changes = Changes(values, point, lr)

    def of(vector: Tensor | None) -> list[float] | list[None]:
        return [None] * len(values) if vector is None else changes(vectors.F, vector)

    def slope(value: Value, vector: Tensor | None) -> float | None:
        return None if vector is None else value.slope(vector, lr)

    def layers(value: Value) -> dict[str, float]:
        product = value.gradient * best * (-lr / (abs(value.value) or 1))
        return {name: float(total(product[part])) for name, part in point.loss.slices.items()}

    measured, path, first, resummed = (of(each) for each in (vectors.measured, vectors.path, vectors.first, vectors.resummed))
    predicted = {"path": path, "resummed": resummed, None: of(None)}[vectors.prediction]
    chosen = None if vectors.prediction is None else getattr(vectors, vectors.prediction)
    update, left = changes.update(vectors.F), changes.rounding(best)
    return tuple(
        Effect(
            measure=value.name,
            value=value.value,
            measured=measured[k],
            path=path[k],
            first=first[k],
            resummed=resummed[k],
            update=update[k],
            predicted=predicted[k],
            random=max(_chance(value, lr, best), _rounding(value, point), left[k]),
            slopes=Slopes(
                measured=slope(value, vectors.measured),
                path=slope(value, vectors.path),
                first=slope(value, vectors.first),
                resummed=slope(value, vectors.resummed),
                update=value.slope(vectors.F, lr),
                predicted=slope(value, chosen),
                layers=layers(value),
            ),
            rounding=left[k],
        )
        for k, value in enumerate(values)
    )


def _chance(value: Value, lr: float, effect: Tensor) -> float:
    """The slope along a random direction as long as the effect, at two standard deviations."""
    share = min(2 / effect.numel() ** 0.5, 0.5)
    return share * lr * float(norm(value.gradient) * norm(effect)) / (abs(value.value) or 1)


def _rounding(value: Value, point: Point) -> float:
    """What rounding theta and the sums in S to their digits leaves of a difference of two values, relative to S."""
    eps = torch.finfo(point.theta.dtype).eps
    return 4 * eps * (1 + float(norm(value.gradient * point.theta)) / (abs(value.value) or 1))


def agreement(prediction: Tensor | None, delta: Tensor | None) -> Agreement | None:
    """Of a prediction with what was measured, where both are and the latter is not zero."""
    if prediction is None or delta is None or norm(delta) == 0:
        return None
    cosine = float(torch.nn.functional.cosine_similarity(prediction.double(), delta.double(), dim=0, eps=1e-300))
    return Agreement(cosine, float(norm(prediction - delta) / norm(delta)))


def in_words(validity: Validity, measured: bool) -> str:
    """Whether the predictions hold here, and which to go by, in two sentences."""
    if validity.outside is None:
        return "Nothing is predicted along mini-batches; see expected_correction."
    share = f"{validity.outside:.0%} of the coordinates lie outside its radius"
    if validity.first is None or validity.resummed is None:
        return "Memory has no effect on this update." if measured else f"First-order theory: {share}. {_by(validity)}"

    def says(found: Agreement) -> tuple[str, str]:
        return "holds" if found.holds else "does not hold", f"cosine {found.cosine:.2f}, relative error {found.error:.2g}"

    (first, how), (summed, summed_how) = says(validity.first), says(validity.resummed)
    path = "" if validity.path is None else "; the one along the path back {} ({})".format(*says(validity.path))
    said = f"First-order theory {first} here ({how}; {share}); the resummed prediction {summed} ({summed_how}){path}."
    return f"{said} {_by(validity)}"


def _by(validity: Validity) -> str:
    """Which prediction to go by, and why."""
    if validity.go_by is None:
        return "Go by what was measured, not by a prediction."
    if validity.growth is None:
        return "The prediction to go by is the resummed one."
    far = f"the gradient is {validity.growth:.3g} times as large {CLOSE} steps back, trusted up to {GROWTH:g}"
    if validity.prediction == "path":
        return f"The prediction to go by is the path's ({far})."
    return f"The prediction to go by is the resummed one: the path is not trusted ({far})."
