"""The arguments that public functions share, looked at in one place before any work: what was expected, what came, what to do.

The library has one order of arguments and one name for each, so that a name says what belongs there.
"""

import functools
import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.errors import BadInput, BadType
from memoryless.loss.loss import Loss

P = ParamSpec("P")
R = TypeVar("R")

_SWAPPED = "; the optimizer comes first, then the loss"


def valid_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Look at the arguments of a public function before it runs.

    Args:
        function: its parameters have the library's names.

    Returns:
        The same function, which raises `BadInput` and kin for what cannot be meant.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            if name in _CHECKS and not (value is None and signature.parameters[name].default is None):
                _CHECKS[name](f"{function.__name__}: {name}", value)
        theta, loss = given.get("theta"), given.get("loss")
        if isinstance(theta, Tensor) and isinstance(loss, Loss) and theta.dtype != loss.theta.dtype:
            raise BadType(f"{function.__name__}: theta is {theta.dtype}, the loss {loss.theta.dtype}; use theta.to(loss.theta)")
        return function(*args, **kwargs)

    return call


def _loss(what: str, value: Any) -> None:
    if not isinstance(value, Loss):
        hint = _SWAPPED if isinstance(value, Optimizer) or hasattr(value, "parts") else "; see memoryless.Loss"
        raise BadType(f"{what} must be a memoryless.Loss, got {_named(value)}{hint}")


def _method(what: str, value: Any) -> None:
    if isinstance(value, Optimizer) or hasattr(value, "parts"):
        return
    hint = "; make one, such as memoryless.Adam(lr=1e-3)"
    if isinstance(value, (Loss, nn.Module)):
        hint = _SWAPPED
    elif isinstance(getattr(value, "optimizer", None), Optimizer):
        hint = "; give its .optimizer"
    raise BadType(f"{what} must be an optimizer or a method, got {_named(value)}{hint}")


def _methods(what: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, (Sequence, Mapping)):
        raise BadType(f"{what} must be a list of optimizers, got {_named(value)}")
    for each in value.values() if isinstance(value, Mapping) else value:
        _method(what, each)


def _vector(what: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise BadType(f"{what} must be a floating-point tensor of shape (d,), got {_named(value)}")


def _names(what: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadType(f"{what.rpartition(' ')[2]} must be a sequence such as ['gradient_1_norm'], got {value!r}")


def _number(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise BadType(f"{what} must be a number, got {value!r}")


def _numbers(what: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise BadType(f"{what} must be a list of numbers, got {value!r}")
    if isinstance(value, Sequence):  # anything else is read once, where it is used
        for each in value:
            _number(what, each)


def _indices(what: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise BadType(f"{what} must be batch indices, got {value!r}")
    if isinstance(value, Sequence) and not all(isinstance(each, numbers.Integral) for each in value):
        raise BadInput(f"{what} must be batch indices, whole numbers, got {list(value)}")


def _sizes(what: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise BadType(f"{what} must be a list of batch sizes, None for all samples, got {value!r}")
    if isinstance(value, Sequence):
        for each in value:
            if each is not None:
                _number(what, each)


def _seed(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise BadType(f"{what} must be a whole number, got {value!r}")


def _named(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    return repr(value) if isinstance(value, (str, int, float)) or value is None else type(value).__name__


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "loss": _loss,
    "method": _method,
    "optimizer": _method,
    "optimizers": _methods,
    "theta": _vector,
    "measures": _names,
    "horizon": _number,
    "lrs": _numbers,
    "betas_1": _numbers,
    "betas_2": _numbers,
    "batches": _indices,
    "sizes": _sizes,
    "seed": _seed,
}
