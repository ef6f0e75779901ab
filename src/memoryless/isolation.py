"""Leave every random number generator that a model or a data loader may draw from as it was, and a model's buffers."""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Standing(NamedTuple):
    """Where the generators stand: what is drawn from there is the same each time."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: Tensor | None


def standing(device: torch.device) -> Standing:
    """Where the generators of Python, NumPy, torch and the device stand.

    Args:
        device: a CUDA device's generator counts too.
    """
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return Standing(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)


def restore(there: Standing, device: torch.device) -> None:
    """Put the generators where they once stood.

    Args:
        there: from `standing`.
        device: a CUDA device's generator is put back too.
    """
    random.setstate(there.python)
    np.random.set_state(there.numpy)
    torch.set_rng_state(there.torch)
    if there.cuda is not None:
        torch.cuda.set_rng_state(there.cuda, device)


@contextlib.contextmanager
def isolated(
    device: torch.device, start: int | Standing | None = None, generators: Iterable[torch.Generator] = ()
) -> Iterator[None]:
    """Run a block, then restore the generators of Python, NumPy, torch and the device.

    Args:
        device: a CUDA device's generator is restored too.
        start: a seed, or where the generators once stood, from which the block draws; None is where they stand.
        generators: restored too.
    """
    before = standing(device)
    own = [(generator, generator.get_state()) for generator in generators]
    try:
        if isinstance(start, int):
            random.seed(start)
            np.random.seed(start)
            torch.manual_seed(start)
        elif start is not None:
            restore(start, device)
        yield
    finally:
        restore(before, device)
        for generator, state in own:
            generator.set_state(state)


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Run a block, then put back a model's buffers: their values, and the tensors themselves where a pass put others there.

    Args:
        model: whose passes may write to them.
    """
    before = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in before:
                module._buffers[name] = buffer
                buffer.copy_(value)


def draws(action: Callable[[], Any], device: torch.device) -> bool:
    """Whether an action draws from the generators; they are restored.

    Args:
        action: to run.
        device: a CUDA device's generator counts too.
    """
    with isolated(device):
        before = standing(device)
        action()
        after = standing(device)
    return bool(moved(before, after))


def moved(before: Standing, after: Standing) -> set[str]:
    """Which of the generators stand elsewhere: "python", "numpy", "torch", "cuda".

    Args:
        before: from `standing`.
        after: the same, at another time.
    """
    found = {
        "python": before.python != after.python,
        "numpy": repr(before.numpy) != repr(after.numpy),
        "torch": not torch.equal(before.torch, after.torch),
        "cuda": before.cuda is not None and after.cuda is not None and not torch.equal(before.cuda, after.cuda),
    }
    return {name for name, differs in found.items() if differs}
