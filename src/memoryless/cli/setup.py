"""What a command works on: a problem that comes with the installation or the user's script, its optimizer, its checkpoint.

Imports torch: commands import this file when they run.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.experiments import problems
from memoryless.experiments.theorem import Example
from memoryless.loss.batches import map_tensors
from memoryless.loss.loss import Loss
from memoryless.methods.method_optimizer import MethodOptimizer
from memoryless.methods.named import attempt, found, resolve

FULL_BATCH = {
    "digits": Example("digits images of scikit-learn, GELU network 64-64-10", lambda seed: problems.digits_mlp(seed).loss)
}
MINI_BATCHES = {
    "digits": Example("digits in batches of 32, GELU network 64-32-10", lambda seed: problems.digits_batches(seed).loss)
}


class Setup(NamedTuple):
    """What `setup()` of a script returns."""

    model: nn.Module
    criterion: Callable[[nn.Module, Any], Tensor]
    batches: Iterable[Any]
    optimizer: Optimizer


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


def optimizer_of(work: Work, text: str | None, default: str, checkpoint: str | None = None) -> Optimizer:
    """The live optimizer to go on with, over the parameters of the work's loss.

    Args:
        work: from `load`.
        text: what the user asked for; None is the script's own.
        default: where the problem comes without one.
        checkpoint: a file for `load_checkpoint`; None for none.

    Raises:
        BadInput: no such optimizer, or the checkpoint does not fit.
    """
    loss, optimizer = work.loss, work.optimizer
    if text is not None or optimizer is None:
        optimizer = resolve(text or default).live(loss.layout.tensors)
    if checkpoint is not None:
        if loss.model is None:
            raise BadInput(f"--checkpoint {checkpoint}: {work.about} has no model to load it into")
        load_checkpoint(checkpoint, loss.model, optimizer)
    return optimizer


def load_checkpoint(path: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load state dicts into a model and an optimizer; both stay as they were if anything does not fit.

    Args:
        path: written by `torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)`; keys
            ending in "_state_dict" are understood too. Read with `weights_only=True`.
        model: to load into.
        optimizer: to load into.

    Raises:
        BadInput: missing, truncated, not a plain state dict, or of another model or optimizer.
    """
    if isinstance(optimizer, MethodOptimizer):
        name = optimizer.param_groups[0]["method"].name
        raise BadInput(f"checkpoint {path} holds the state of a torch optimizer, which {name} is not; use adamw, say")
    expected = "expected torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, path)"
    if not Path(path).is_file():
        raise BadInput(f"checkpoint not found: {path}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadInput(f"checkpoint {path} is not made of plain tensors and numbers; {expected}") from error
    except (RuntimeError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise BadInput(f"checkpoint {path} is damaged or truncated ({str(error).splitlines()[0]})") from error
    if not isinstance(stored, Mapping):
        raise BadInput(f"checkpoint {path} holds a {type(stored).__name__}; {expected}")
    parts = {key: stored.get(key, stored.get(f"{key}_state_dict")) for key in ("model", "optimizer")}
    for key, part in parts.items():
        if not isinstance(part, Mapping):
            raise BadInput(f"checkpoint {path} has no '{key}', only {', '.join(map(str, stored))[:200]}; {expected}")
    own = model.state_dict()
    for name in sorted(set(own) ^ set(parts["model"])):
        side = "lacks" if name in own else "has an extra"
        raise BadInput(f"checkpoint {path} is of another model: it {side} '{name}'")
    for name, tensor in own.items():
        if tensor.shape != parts["model"][name].shape:
            shapes = f"{tuple(parts['model'][name].shape)} there, {tuple(tensor.shape)} in the model"
            raise BadInput(f"checkpoint {path} is of another model: '{name}' is {shapes}")
    groups = [len(group["params"]) for group in optimizer.param_groups]
    theirs = [len(group.get("params", ())) for group in parts["optimizer"].get("param_groups", ())]
    if groups != theirs:
        raise BadInput(f"checkpoint {path} is of another optimizer: parameters per group {theirs} there, {groups} here")
    model.load_state_dict(parts["model"])
    optimizer.load_state_dict(dict(parts["optimizer"]))


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
