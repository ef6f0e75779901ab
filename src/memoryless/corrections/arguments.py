"""The arguments that public functions share, looked at in one place before any work: what was expected, what came, what to do.

The library has one order of arguments and one name for each, so that a name says what belongs there.
"""

import functools
import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, get_args

import numpy as np
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
            parameter = signature.parameters[name]
            check = _run if parameter.annotation is Optimizer else _CHECKS.get(name)
            if check is _method and Optimizer in get_args(parameter.annotation):
                check = _optimizer
            if check is not None and not (value is None and type(None) in get_args(parameter.annotation)):
                check(f"{function.__name__}: {name}", value)
        theta, loss = given.get("theta"), given.get("loss")
        if isinstance(theta, Tensor) and isinstance(loss, Loss) and theta.dtype != loss.theta.dtype:
            raise BadType(f"{function.__name__}: theta is {theta.dtype}, the loss {loss.theta.dtype}; use theta.to(loss.theta)")
        return function(*args, **kwargs)

    return call


def _loss(what: str, value: Any) -> None:
    if not isinstance(value, Loss):
        hint = _SWAPPED if isinstance(value, Optimizer) or hasattr(value, "parts") else "; see memoryless.Loss"
        raise BadType(f"{what} must be a memoryless.Loss, got {_named(value)}{hint}")


def _optimizer(what: str, value: Any) -> None:
    if isinstance(value, Optimizer) or hasattr(value, "parts"):
        return
    hint = "; make one, such as memoryless.Adam(lr=1e-3)"
    if isinstance(value, (Loss, nn.Module)):
        hint = _SWAPPED
    elif isinstance(getattr(value, "optimizer", None), Optimizer):
        hint = "; give its .optimizer"
    raise BadType(f"{what} must be an optimizer or a method, got {_named(value)}{hint}")


def _method(what: str, value: Any) -> None:
    if isinstance(value, Optimizer):
        raise BadType(f"{what} must be a method, got a live {type(value).__name__}; give ml.method_of(optimizer, loss.layout)")
    _optimizer(what, value)


def _run(what: str, value: Any) -> None:
    if hasattr(value, "parts"):
        raise BadType(f"{what} must be a live torch optimizer, got the method {value}; make one over the loss's parameters")
    _optimizer(what, value)


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
    whole = not isinstance(value, Sequence) or all(isinstance(each, numbers.Integral) for each in value)
    if not whole or (isinstance(value, (Tensor, np.ndarray)) and np.asarray(value).dtype.kind not in "iu"):
        raise BadInput(f"{what} must be batch indices, whole numbers, got {list(value)}")


def _count(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise BadInput(f"{what} must be an integer >= 1, got {value!r}")


def _steps(what: str, value: Any) -> None:
    (_count if isinstance(value, str) or not isinstance(value, Iterable) else _indices)(what, value)


def _stops(what: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(s, numbers.Integral) for s in value):
        raise BadType(f"{what} must be a list of whole numbers of steps, got {value!r}")


def _axes(what: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise BadType(f"{what} must be two lists of betas such as ([0.8, 0.9], [0.95, 0.999]), got {value!r}")
    for axis in value:
        _numbers(what, axis)


def _function(what: str, value: Any) -> None:
    if not callable(value):
        raise BadType(f"{what} must be a function of the gradient, shape (d,), got {_named(value)}")


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
    "optimizer": _optimizer,
    "optimizers": _methods,
    "compare": _methods,
    "steps": _steps,
    "stops": _stops,
    "samples": _count,
    "lags": _count,
    "betas": _axes,
    "gradient": _function,
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
