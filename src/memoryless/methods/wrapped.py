"""The optimizer inside what a training framework puts around it."""

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from memoryless.errors import BadType

AROUND = ("accelerate", "lightning", "pytorch_lightning")
"""Packages whose optimizers only pass steps on; others that hold an optimizer (Lookahead, SAM) do something of their own."""


def undialled(optimizer: Any) -> Any:
    """The optimizer whose memory a dial turns: F is that one's, the steps are the dial's.

    Args:
        optimizer: perhaps a dial.
    """
    return getattr(optimizer, "dialled", optimizer)


def given(optimizer: Any, batches: Iterable[Any]) -> dict[str, Any]:
    """What a step asks for besides gradients: the batch, of a dial along mini-batches.

    Args:
        optimizer: of the step.
        batches: whose gradients it has, averaged; only looked at where they are asked for.
    """
    if not getattr(optimizer, "along_batches", False):
        return {}
    found = list(batches)
    return {"batch": found[0] if len(found) == 1 else found}


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that takes the steps; anything but such a wrapper is given back.

    Args:
        optimizer: an optimizer, perhaps wrapped, or a method.

    Raises:
        BadType: a trainer, which has an optimizer but is none.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        if not isinstance(optimizer, Optimizer) and not hasattr(optimizer, "parts"):
            name = type(optimizer).__name__
            raise BadType(f"expected an optimizer or a method, got {name}, which holds one: give its .optimizer")
        if not any(base.__module__.split(".")[0] in AROUND for base in type(optimizer).__mro__):
            break
        optimizer = inner
    return optimizer
