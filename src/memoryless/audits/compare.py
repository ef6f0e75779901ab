"""The same loss under several optimizers: each along its own full-batch run, audited where it arrives.

A run is theta[n+1] = theta[n] - lr F[n] by the optimizer's own `update`, from the same start; the measured effect is the update
it makes next, less the frozen one, as in `audits.audit`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from memoryless.audits.audit import Audit, inspect
from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.expansion import expansion
from memoryless.errors import BadInput, NotFinite
from memoryless.loss.loss import Loss
from memoryless.loss.measures import USUAL, Differentiable, evaluate
from memoryless.loss.point import Point
from memoryless.methods.method import AnyOptimizer
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import finite, label, percent, plain
from memoryless.render.result import Result


@dataclass(frozen=True)
class Compared(Result):
    """One optimizer of a comparison.

    Attributes:
        name: as the user gave it.
        audit: at the end of its run; None if it did not get there.
        reason: why it did not; None if it did.
    """

    name: str
    audit: Audit | None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return plain({"name": self.name, "reason": self.reason, "audit": self.audit})


@dataclass(frozen=True)
class Answer:
    """Under which optimizers memory does what to one measure.

    Attributes:
        measure: its name.
        changes: what memory does, in a word, -> optimizer -> its change, the largest first, in words and in each of them.
    """

    measure: str
    changes: dict[str, dict[str, float]]

    @property
    def sentence(self) -> str:
        """The same in words."""
        said = []
        for word, changes in self.changes.items():
            if word == "neutral":
                said.append(f"is neutral under {', '.join(changes)} (no more than chance)")
                continue
            first, *others = (f"{name} ({percent(c) if finite(c) else 'not finite'})" for name, c in changes.items())
            most, then = (" most", f", then {', '.join(others)}") if others else ("", "")
            said.append(f"{word}{most} under {first}{then}")
        return f"On the {label(self.measure)}, per step: memory {'; '.join(said)}."


@dataclass(frozen=True)
class Comparison(Result):
    """Several optimizers on one loss, each where its own run arrived: their losses differ.

    Attributes:
        rows: one per optimizer, in their order.
        steps: that each of them took.
        about: what was compared, for the page's head: text by label; "command" goes to the foot.
    """

    rows: tuple[Compared, ...]
    steps: int
    about: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Compared]:
        """Row by row."""
        return iter(self.rows)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """One per measure; none where no optimizer was audited."""
        done = {row.name: row.audit.effects for row in self.rows if row.audit is not None}
        found = []
        for k, first in enumerate(next(iter(done.values()), ())):
            changes: dict[str, dict[str, float]] = {}
            by_size = sorted(done, key=lambda name: -abs(done[name][k].best))
            for name in sorted(by_size, key=lambda name: done[name][k].word == "neutral"):
                changes.setdefault(done[name][k].word, {})[name] = done[name][k].best
            found.append(Answer(first.measure, changes))
        return tuple(found)

    @property
    def verdict(self) -> str:
        """In words: under which optimizers memory does what to each measure, the largest change first."""
        return " ".join(answer.sentence for answer in self.answers) or "No optimizer could be run."

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        answers = [plain(answer) | {"sentence": answer.sentence} for answer in self.answers]
        return plain({"about": self.about, "steps": self.steps, "verdict": self.verdict, "answers": answers, "rows": self.rows})

    def to_html(self) -> str:
        """One self-contained page."""
        from memoryless.render.comparison import page

        return page(self.as_dict())


@valid_arguments
def compare(
    optimizers: Sequence[AnyOptimizer] | Mapping[str, AnyOptimizer],
    loss: Loss,
    theta: Tensor | None = None,
    *,
    steps: int = 100,
    measures: Sequence[str | Differentiable] = USUAL,
    on_step: OnStep = silent,
) -> Comparison:
    """Run each optimizer from the same start and audit it after the last step.

    Args:
        optimizers: methods, by name if names matter.
        loss: full batch.
        theta: the start, shape (d,); default `loss.theta`.
        steps: how many each of them takes.
        measures: names in `loss.measures.MEASURES`, or differentiable functions theta -> scalar.
        on_step: told the steps taken by all together and their number.

    Returns:
        One row per optimizer, in their order; what cannot be run or differentiated has the reason in its row.

    Raises:
        BadInput: no steps, no optimizers, or batches that are others each time.

    Example:
        >>> import torch, memoryless as ml
        >>> loss = Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> rows = compare([ml.Adam(), ml.HeavyBall()], loss, steps=10, measures=["gradient_norm_squared"])
        >>> [row.audit.effects[0].word for row in rows]
        ['neutral', 'regularizes']
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise BadInput(f"steps must be an integer >= 1, got {steps!r}")
    named = dict(optimizers) if isinstance(optimizers, Mapping) else {str(method): method for method in optimizers}
    if not named:
        raise BadInput("expected at least one optimizer to compare, got none")
    loss.batches.require_replayable()
    total = steps * len(named)
    rows = [
        _compared(name, method, Point(loss, theta), steps, measures, lambda done, j=j: on_step(j * steps + done, total))
        for j, (name, method) in enumerate(named.items())
    ]
    return Comparison(tuple(rows), steps)


def _compared(
    name: str,
    method: AnyOptimizer,
    start: Point,
    steps: int,
    measures: Sequence[str | Differentiable],
    on_step: Callable[[int], object],
) -> Compared:
    loss, theta = start.loss, start.theta
    try:
        state = method.init(theta)
        for n in range(steps):
            state, F = method.update(state, loss.gradient(theta), theta)
            theta = theta - method.lr * F.to(theta.dtype)
            on_step(n + 1)
        point = Point(loss, theta)
        live = method.update(state, point.gradient, theta)[1].double()
        values = evaluate(measures, point)
        return Compared(name, inspect(method, point, expansion(method, point, steps), steps, values, live))
    except NotFinite as error:
        return Compared(name, None, f"diverged: {error}")
    except BadInput as error:
        return Compared(name, None, str(error))
