"""A model's own operations without what stands between them and their derivatives.

A compiled graph has no second derivative, and a reentrant checkpoint none with respect to tensors put in the parameters' place:
it takes its gradients by `.backward()` into the parameters that its module holds. Both only say how to compute: the functions
are those that they wrap, so inside they are called as they are.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint

_PLAINLY: ContextVar[bool] = ContextVar("plainly", default=False)


def is_plain() -> bool:
    """Whether the model is called to evaluate the loss somewhere, not by the loop that trains it."""
    return _PLAINLY.get()


@contextmanager
def plainly() -> Iterator[None]:
    """A context in which compiled functions run uncompiled, and reentrant checkpoints keep what they would compute again."""
    # What was compiled has brought the compiler in; importing it takes seconds.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    reentrant = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _Kept  # pyright: ignore[reportAttributeAccessIssue]
    before = _PLAINLY.set(True)
    try:
        with eager:
            yield
    finally:
        _PLAINLY.reset(before)
        checkpoint.CheckpointFunction = reentrant


class _Kept:
    """In the place of torch's `CheckpointFunction`."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        # As there: where no input needs a gradient, nothing inside gets one.
        needed = any(isinstance(x, Tensor) and x.requires_grad for x in args)
        with torch.set_grad_enabled(torch.is_grad_enabled() and needed):
            return function(*args)
