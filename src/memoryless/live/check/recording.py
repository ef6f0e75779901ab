"""`recorded`: a step noted as it is taken, and checked whenever that is wanted."""

from contextlib import suppress
from typing import Self

import torch
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.live.check.checking import NONE, TOUCHES, check_step
from memoryless.live.check.judging import judged
from memoryless.live.check.record import Record, Untouched, after
from memoryless.live.check.reference import Reference
from memoryless.live.check.step_check import StepCheck


def recorded(optimizer: Optimizer) -> "Recorded":
    """Note a step as it is taken, to be checked later, elsewhere too: a record can be pickled.

    Args:
        optimizer: as `check_step` takes it.

    Returns:
        To be put around the step: `with ml.recorded(optimizer) as step: ...`; `step.check()` is then its `StepCheck`.

    Raises:
        BadType: no optimizer.
        BadInput: a step that evaluates the loss itself.

    Example:
        >>> import memoryless as ml
        >>> theta = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = torch.optim.AdamW([theta])
        >>> theta.grad = torch.ones(3)
        >>> with ml.recorded(optimizer) as step:
        ...     optimizer.step()
        >>> step.check().ok
        True
    """
    return Recorded(optimizer)


class Recorded:
    """What `recorded` returns.

    Attributes:
        record: what there was before and after the step; None before it, and where none was taken.
    """

    def __init__(self, optimizer: Optimizer):
        self.record: Record | None = None
        self._name, self._why, self._template = type(optimizer).__name__, NONE, None
        self._around = check_step(optimizer)

    def __enter__(self) -> Self:
        if self._around is None:
            raise BadInput("this record has its step; make a new one with ml.recorded(optimizer)")
        self._around.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        around, self._around = self._around, None
        assert around is not None
        self._template = around.template

        def note(previous: Record | None) -> StepCheck:
            if (record := around.found(previous)) is not None and not around.failed:
                after(record, around.optimizer)
                self.record = record
            why = around.failed or NONE
            if self.record is not None and self._template is not None and self._touches(around.optimizer):
                self.record, why = None, TOUCHES
            return StepCheck(0, self._name, unchecked=why)

        around.end(note if kind is None else None)
        self._why = around.result.unchecked if around.result is not None else self._why

    def _touches(self, optimizer: Optimizer) -> bool:
        """Whether a copy of the optimizer writes into what the run holds: it would do so later, when nobody looks."""
        assert self.record is not None
        touched, kept = False, Untouched(optimizer)
        try:
            with suppress(Exception):  # told by `check`
                Reference(self.record, None, self._template).redo()
        finally:
            touched = kept.restore()
        return touched

    def check(self, reference: type[Optimizer] | None = None) -> StepCheck:
        """Is the step the documented one? Nothing of the run is needed any more.

        Args:
            reference: the class whose step is documented, for an optimizer of one's own; default the nearest of torch's.

        Raises:
            BadInput: no step was taken in the block yet.
        """
        if self._around is not None:
            raise BadInput("no step is recorded yet: take it within `with ml.recorded(optimizer) as step`")
        if self.record is None:
            return StepCheck(0, self._name, unchecked=self._why)
        try:
            with torch.no_grad():
                return judged(0, Reference(self.record, reference, self._template))
        except Exception as error:  # whatever a copy of an optimizer may fail at
            return StepCheck(0, self._name, unchecked=" ".join(str(error).split()) or type(error).__name__)
