"""The answer: was the step that was taken the documented one, and if not, why."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from memoryless.render.numbers import plain, share
from memoryless.render.result import Result


@dataclass(frozen=True)
class Cause:
    """A likely cause.

    Attributes:
        name: in a few words.
        text: what it says of this step.
        tensors: names of those that it is about.
        explains: share of the deviation that is gone when the step is taken again with the cause put in, of 1.
        tied: whether another cause, beside it in the list, explains as much.
    """

    name: str
    text: str
    tensors: tuple[str, ...]
    explains: float
    tied: bool = False


@dataclass(frozen=True)
class OffTensor:
    """A tensor that is off by more than rounding can explain.

    Attributes:
        name: of the tensor.
        what: "parameters", or the buffer.
        times: largest deviation over what rounding can explain there.
        factor: of the documented displacement, by least squares; None where that is 0.
    """

    name: str
    what: str
    times: float
    factor: float | None


@dataclass(frozen=True)
class StepCheck(Result):
    """Was that step the documented one for its gradient and state?

    Attributes:
        step: its number in the run, from 0, where `check_step` was called; steps outside of the block count.
        reference: what the step was compared with.
        tensors: what is off.
        causes: likely ones, the best first.
        noise: share of the gradient's squared norm that is noise of the batches; None where fewer than two were given.
        notes: what could not be checked.
        judged: share of the coordinates that were looked at: all at the first step of a check and at every 64th; at the steps
            between a 32nd of tensors with more than 4,096, each time others.
        unchecked: why the step could not be checked; empty where it was.
    """

    step: int
    reference: str
    tensors: tuple[OffTensor, ...] = ()
    causes: tuple[Cause, ...] = ()
    noise: float | None = None
    notes: tuple[str, ...] = ()
    unchecked: str = ""
    judged: float = 1.0
    _shares: Callable[[], dict[str, dict[str, float]] | None] | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        shares = self.shares  # found now: what finds them holds the run's record
        return vars(self) | {"shares": shares, "_shares": None}

    @cached_property
    def shares(self) -> dict[str, dict[str, float]] | None:
        """Of the documented step, by tensor and on the "whole": gradient, memory, decay, which add up to 1; None if unknown.

        Each is <part, step> / |step|^2, of the coordinates that were looked at; found when first asked for, by two more steps,
        which spares a check at every step.
        """
        return None if self._shares is None else self._shares()

    @property
    def ok(self) -> bool | None:
        """Whether nothing is off; None where that could not be checked."""
        return False if self.tensors or self.causes else None if self.unchecked else True

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.unchecked and not self.causes:
            return f"Step {self.step} could not be checked: {self.unchecked}."
        if self.ok:
            part = "" if self.judged == 1 else f" (looked at: {share(self.judged)} of the coordinates)"
            return (
                "; ".join([f"Step {self.step} is the documented one: {self.reference}, to rounding{part}", *self.notes]) + "."
            )
        if not self.causes:
            names = ", ".join(dict.fromkeys(t.name for t in self.tensors))
            said = f"Step {self.step} is not the documented one ({self.reference})"
            return f"{said}; {names} is off, and no cause that was tried says why."
        first = self.causes[0]
        ties = [c.name for c in self.causes[1:] if c.tied and first.tied]
        beside = f" (or {', or '.join(ties)}, which explains as much)" if ties else ""
        where = f", {share(first.explains)} explained" if first.explains < 0.995 else ""
        return f"Step {self.step} is not the documented one: {first.name}{beside}: {first.text}{where}."

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        found = {
            name: getattr(self, name)
            for name in ("step", "ok", "verdict", "reference", "noise", "shares", "judged", "unchecked")
        }
        return plain(
            found | {"causes": [vars(c) for c in self.causes], "tensors": [vars(t) for t in self.tensors], "notes": self.notes}
        )

    def __str__(self) -> str:
        return self.verdict


@dataclass(frozen=True)
class StepChecks(Result):
    """Were the steps of a run the documented ones?

    Attributes:
        steps: how many were taken.
        off: numbers of those that were not.
        first: the first of these, else the first that could not be checked, else the last step.
        about: the run in words.
        unchecked: numbers of those that could not be checked.
    """

    steps: int
    off: tuple[int, ...]
    first: StepCheck
    about: dict[str, str]
    unchecked: tuple[int, ...] = ()

    @property
    def ok(self) -> bool | None:
        """Whether all were; None where no step was found not to be, and some could not be checked."""
        return False if self.off else None if self.unchecked else True

    @property
    def verdict(self) -> str:
        """One sentence, or two."""
        if self.ok:
            return f"All {self.steps} steps are the documented ones: {self.first.reference}, to rounding."
        counts = ((self.off, "are not the documented ones"), (self.unchecked, "could not be checked"))
        said = ", ".join(f"{len(n)} of {self.steps} steps {what}" for n, what in counts if n)
        return f"{said}. {self.first.verdict}"

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        found = {"ok": self.ok, "verdict": self.verdict, "steps": self.steps, "off": self.off}
        return plain(found | {"unchecked": self.unchecked, "about": self.about}) | {"step": self.first.as_dict()}

    def __str__(self) -> str:
        return self.verdict
