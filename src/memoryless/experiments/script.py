"""What a user's script sets up: script.py:setup."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.methods.named import attempt, found


class Setup(NamedTuple):
    """What `setup()` of a script returns."""

    model: nn.Module
    criterion: Callable[[nn.Module, Any], Tensor]
    batches: Iterable[Any]
    optimizer: Optimizer


def load_setup(target: str, seed: int) -> Setup:
    """Run a function of a script that sets up the work.

    Args:
        target: "path/to/script.py:function"; the function takes nothing and returns model, criterion, batches, optimizer.
        seed: of torch's generators, set before.

    Returns:
        What the function returned, its criterion made to say in one line where it failed.

    Raises:
        BadInput: script or function not found, or raising, or returning something else.
    """
    if not target.rpartition(":")[0].endswith(".py"):
        raise BadInput(f"expected path/to/script.py:function, got {target!r}")
    torch.manual_seed(seed)
    function = found(target)
    expected = "expected model, criterion, batches, optimizer"
    if not callable(function):
        raise BadInput(f"{target} is a {type(function).__name__}; expected a function that sets up the work")
    returned = attempt(target, function)
    if not isinstance(returned, Sequence) or len(returned) != 4:
        got = f"{len(returned)} things" if isinstance(returned, Sequence) else type(returned).__name__
        raise BadInput(f"{target} returned {got}; {expected}")
    model, criterion, batches, optimizer = returned
    if not (isinstance(model, nn.Module) and callable(criterion) and isinstance(optimizer, Optimizer)):
        raise BadInput(f"{target} returned {', '.join(type(x).__name__ for x in returned)}; {expected}")

    def checked(model: nn.Module, batch: Any) -> Tensor:
        return attempt(f"criterion of {target}", lambda: criterion(model, batch))

    return Setup(model, checked, batches, optimizer)
