"""What a command works on: a problem that comes with the installation or the user's script, its optimizer.

Imports torch: commands import this file when they run.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from memoryless.cli.checkpoint import load_checkpoint
from memoryless.errors import BadInput
from memoryless.experiments import problems
from memoryless.experiments.script import load_setup
from memoryless.experiments.theorem import Example
from memoryless.loss.batches import map_tensors
from memoryless.loss.loss import Loss
from memoryless.methods.named import resolve

FULL_BATCH = {
    "digits": Example("digits images of scikit-learn, GELU network 64-64-10", lambda seed: problems.digits_mlp(seed).loss)
}
MINI_BATCHES = {
    "digits": Example("digits in batches of 32, GELU network 64-32-10", lambda seed: problems.digits_batches(seed).loss)
}


class Work(NamedTuple):
    """What a command works on.

    Attributes:
        loss: of the problem, at its initial parameters.
        about: the problem in words.
        optimizer: the script's own; None for a problem that comes with the installation.
    """

    loss: Loss
    about: str
    optimizer: Optimizer | None = None


def load(
    problem: str,
    seed: int,
    known: Mapping[str, Example],
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Work:
    """A problem by its name, or a user's own.

    Args:
        problem: a key of `known`, or script.py:function; the function returns model, criterion, batches, optimizer.
        seed: of the initial parameters.
        known: what comes with the installation.
        device: where to compute; None is where the problem is.
        dtype: of the parameters and batches; None is their own.

    Returns:
        The loss, the problem in words, and the script's optimizer.

    Raises:
        BadInput: unknown, or the script fails; says where.
    """
    moves = device is not None or dtype is not None
    if problem in known:
        # Problems this small gain nothing from a second thread, and lose much on a busy machine.
        torch.set_num_threads(1)
        loss = known[problem].loss(seed)
        if moves and loss.model is not None:
            loss = loss.on(loss.model.to(device, dtype), moved(loss.batches.source, device, dtype))
        return Work(loss, known[problem].about)
    if ":" not in problem:
        raise BadInput(f"problem must be one of {', '.join(known)}, or script.py:function, got {problem!r}")
    model, criterion, batches, optimizer = load_setup(problem, seed)
    if moves:
        model, batches = model.to(device, dtype), moved(batches, device, dtype)
    return Work(Loss(model, criterion, batches), problem, optimizer)


def optimizer_of(
    work: Work, text: str | None, default: str, checkpoint: str | None = None, lr: float | None = None
) -> Optimizer:
    """The live optimizer to go on with, over the parameters of the work's loss.

    Args:
        work: from `load`.
        text: what the user asked for; its options win over the checkpoint's. None is the script's own.
        default: where the problem comes without one.
        checkpoint: for `load_checkpoint`; None for none.
        lr: of every group; wins over all others.

    Raises:
        BadInput: no such optimizer, the checkpoint does not fit, or lr is 0.
    """
    loss, optimizer = work.loss, work.optimizer
    named = None if text is None and optimizer is not None else resolve(text or default)
    if named is not None:
        optimizer = (named if lr is None else named.given(lr=lr)).live(loss.layout.tensors)
    assert optimizer is not None
    if checkpoint is not None:
        load_checkpoint(checkpoint, loss, optimizer)
    wins = {} if named is None or text is None else dict(named.options)
    for group in optimizer.param_groups:
        group.update({key: value for key, value in wins.items() if key in group})
        if lr is not None and "lr" in group:
            group["lr"] = lr
    if all(float(group.get("lr", 1)) == 0 for group in optimizer.param_groups):
        where = f"in checkpoint {checkpoint}" if checkpoint else f"of {work.about}"
        raise BadInput(f"the lr {where} is 0, as at the end of a schedule; give --lr")
    return optimizer


def moved(batches: Iterable[Any], device: torch.device | None, dtype: torch.dtype | None) -> "Moved":
    """Batches with their tensors on a device, and the floating-point ones in a dtype; moved one at a time, when asked for.

    Args:
        batches: tensors in tuples, lists and dictionaries; the result can be indexed if they can.
        device: where to; None leaves them where they are.
        dtype: None leaves it as it is.
    """
    return (MovedSequence if isinstance(batches, Sequence) else Moved)(batches, device, dtype)


class Moved:
    """Batches that are moved each time they are asked for."""

    def __init__(self, batches: Any, device: torch.device | None, dtype: torch.dtype | None):
        self.batches, self.device, self.dtype = batches, device, dtype

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return map(self._move, iter(self.batches))

    def _move(self, batch: Any) -> Any:
        return map_tensors(lambda x: x.to(self.device, self.dtype if x.is_floating_point() else None), batch)


class MovedSequence(Moved, Sequence):
    """The same, where they can be had by index."""

    def __getitem__(self, index: Any) -> Any:
        return self._move(self.batches[index])
