"""Every exception of the package.

`BadInput` and its kin are the user's to mend: one line that says what was expected, what came and what to do. The command line
turns these, and only these, into one line and exit code 2; anything else is a bug of ours and keeps its traceback.
"""

import sysconfig
from pathlib import Path
from typing import Any

_OURS = str(Path(__file__).parent)
_STANDARD = sysconfig.get_paths()["stdlib"]


class MemorylessError(Exception):
    """The base of all."""


class BadInput(MemorylessError, ValueError):
    """An argument, script, file, optimizer or loss is not what was expected."""


class BadType(BadInput, TypeError):
    """An argument is of another type than expected."""


class NotFinite(BadInput):
    """A loss, gradient or parameter is infinite or NaN; the message says where first."""


class Diverged(BadInput):
    """A path left the finite numbers.

    Attributes:
        step: the last one with finite parameters.
        so_far: what was computed up to it.
    """

    def __init__(self, message: str, step: int, so_far: Any = None):
        super().__init__(message)
        self.step, self.so_far = step, so_far


class NoSteadyState(BadInput):
    """The limit n -> infinity was asked, and there is none: a schedule, a count in cycles, a memory that does not fade.

    Attributes:
        reason: why, without the optimizer's name and without advice.
    """

    def __init__(self, reason: str, method: object = None):
        named = "" if method is None else f"{method}: "
        super().__init__(f"{named}{reason}; give step=n")
        self.reason = reason


class NeverForgets(NoSteadyState):
    """The steady state was asked of a memory that does not fade (Assumption 3.1 of https://arxiv.org/abs/2502.02132 fails)."""


class NotRecognised(BadInput):
    """The optimizer, or a branch of it, has no catalogue method."""


class StepFailed(BadInput):
    """An optimizer's step() raised."""


class NotResolved(NoSteadyState):
    """The steady state was asked of a memory that has not faded by the last step looked at; it may beyond.

    Attributes:
        up_to: that step.
    """

    def __init__(self, reason: str, up_to: int, method: object = None):
        super().__init__(f"{reason}, so whether it fades is not resolved up to step {up_to:,}", method)
        self.up_to = up_to


class DrawsNumbers(BadInput):
    """step() draws random numbers.

    Attributes:
        change: of the update from one seed to another, relative.
    """

    def __init__(self, optimizer: str, change: float):
        super().__init__(
            f"{optimizer}.step() draws random numbers: two seeds give updates that differ by {change:.1%}; switch its noise off"
        )
        self.change = change


class Reevaluates(BadInput):
    """step() asks for the loss at other parameters than those it was given."""


class NotDerivable(BadInput):
    """No formula: what was asked is a black box, or its readout does something that formulas cannot."""


class NoModifiedLoss(BadInput):
    """F + M is not a preconditioned gradient of any loss, or of none that a formula tells; the message says why.

    Attributes:
        asymmetry: |<u, J v> - <v, J u>| / (|<u, J v>| + |<v, J u>|) of the Jacobian J of (F + M - lambda theta) / P, in random
            directions: 0 for the gradient of a loss, up to 1 otherwise; None where P is not known.
    """

    def __init__(self, reason: str, asymmetry: float | None = None):
        measured = "" if asymmetry is None else f"; measured asymmetry of its Jacobian: {asymmetry:.2g}"
        super().__init__(f"no modified loss: {reason}{measured}")
        self.asymmetry = asymmetry


class TooFewSamples(BadInput):
    """The standard error asked for was not reached; the message says how many samples would do.

    Attributes:
        so_far: the `ExpectedCorrection` of the samples drawn.
    """

    def __init__(self, message: str, so_far: Any):
        super().__init__(message)
        self.so_far = so_far


class NoForwardMode(MemorylessError):
    """Forward mode gives no derivative, or a wrong one; the message says why."""


class Stalled(MemorylessError):
    """GMRES found no solution."""


class CurvatureWarning(UserWarning):
    """The exact second derivative is wrong or missing; differences of gradients are used instead."""


def users_line(error: BaseException) -> str | None:
    """Where the user's own code raised an error, or called what raised it: "line 3 of train.py".

    Args:
        error: caught.

    Returns:
        None where no code of the user's was running, or it had called back into this package.
    """
    found, place = None, error.__traceback__
    while place is not None:
        file = place.tb_frame.f_code.co_filename
        if file.startswith(_OURS):
            found = None
        elif not (file.startswith(("<", _STANDARD)) or {"site-packages", "dist-packages"} & set(Path(file).parts)):
            found = f"line {place.tb_lineno} of {file}"
        place = place.tb_next
    return found
