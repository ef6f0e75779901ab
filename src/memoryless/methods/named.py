"""Load what is to be audited: a user's script, a checkpoint, an optimizer or a method by its description."""

import ast
import pickle
import runpy
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memoryless.errors import BadInput
from memoryless.loss.batches import map_tensors
from memoryless.methods.catalogue import CATALOGUE
from memoryless.methods.method import Method

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "rmsprop": torch.optim.RMSprop,
}


class Setup(NamedTuple):
    """What `setup()` of a script returns."""

    model: nn.Module
    criterion: Callable[[nn.Module, Any], Tensor]
    batches: Iterable[Any]
    optimizer: torch.optim.Optimizer


def load_setup(target: str, seed: int) -> Setup:
    """Run a function of a script that sets up the work to be audited.

    Args:
        target: "path/to/script.py:function"; the function takes nothing and returns model, criterion, batches, optimizer.
        seed: of torch's generators, set before.

    Returns:
        What the function returned, its criterion made to say in one line where it failed.

    Raises:
        BadInput: script or function not found, or raising, or returning something else.
    """
    path, colon, name = target.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise BadInput(f"expected path/to/script.py:function, got {target!r}")
    if not Path(path).is_file():
        raise BadInput(f"script not found: {path}")
    torch.manual_seed(seed)
    sys.path.insert(0, str(Path(path).resolve().parent))
    names = _attempt(path, lambda: runpy.run_path(path))
    if not callable(function := names.get(name)):
        found = ", ".join(k for k, v in names.items() if callable(v) and getattr(v, "__module__", "") == "<run_path>")
        raise BadInput(f"no function '{name}' in {path}; it defines {found or 'none'}")
    returned = _attempt(target, function)
    expected = "expected model, criterion, batches, optimizer"
    if not isinstance(returned, Sequence) or len(returned) != 4:
        got = f"{len(returned)} things" if isinstance(returned, Sequence) else type(returned).__name__
        raise BadInput(f"{target} returned {got}; {expected}")
    model, criterion, batches, optimizer = returned
    if not (isinstance(model, nn.Module) and callable(criterion) and isinstance(optimizer, torch.optim.Optimizer)):
        raise BadInput(f"{target} returned {', '.join(type(x).__name__ for x in returned)}; {expected}")

    def checked(model: nn.Module, batch: Any) -> Tensor:
        return _attempt(f"criterion of {target}", lambda: criterion(model, batch))

    return Setup(model, checked, batches, optimizer)


def _attempt(what: str, action: Callable[[], Any]) -> Any:
    """Run the user's code; whatever it raises becomes one line, with the original behind it."""
    try:
        return action()
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f" (line {place.tb_lineno} of {place.tb_frame.f_code.co_filename})" if place else ""
        message = str(error).splitlines()[0] if str(error) else ""
        raise BadInput(f"{what} raised {type(error).__name__}: {message}{where}") from error


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


def parse_method(text: str, lr: float) -> Method:
    """A catalogue method from its description, at the given lr unless it says its own.

    Args:
        text: "lion" or "adamw(betas=(0.9, 0.95), eps=1e-6)".
        lr: default step size.

    Raises:
        BadInput: unknown method or option, or a value out of range.

    Example:
        >>> print(parse_method("signum(momentum=0.95)", lr=1e-3))
        signum(lr=0.001, momentum=0.95)
    """
    name, options = call(text, CATALOGUE)
    return _built(text, CATALOGUE[name], {"lr": lr} | options)


def parse_optimizer(text: str, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """A torch optimizer from its description.

    Args:
        text: "adamw" or "sgd(lr=0.1, momentum=0.9)".
        parameters: to optimize.

    Raises:
        BadInput: unknown optimizer or option, or a value out of range.
    """
    name, options = call(text, OPTIMIZERS)
    if isinstance(lr := options.get("lr"), (int, float)) and not lr > 0:
        raise BadInput(f"{text}: lr must be positive, got {lr}")
    trainable = [p for p in parameters if p.requires_grad]
    return _built(text, lambda **options: OPTIMIZERS[name](trainable, **options), options)


def call(text: str, known: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Name and options of "name" or "name(key=literal, ...)"; a name may have dots.

    Args:
        text: to parse.
        known: names to expect; None for any.

    Raises:
        BadInput: not of that form, or unknown.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        function = node.func if isinstance(node, ast.Call) else node
        keywords = node.keywords if isinstance(node, ast.Call) and not node.args else []
        name = ast.unparse(function)
        if not all(part.isidentifier() for part in name.split(".")) or (isinstance(node, ast.Call) and node.args):
            raise ValueError
        options = {k.arg: ast.literal_eval(k.value) for k in keywords if k.arg}
    except (ValueError, SyntaxError):
        raise BadInput(f"expected a name or name(option=value, ...), got {text!r}") from None
    if known is not None and name not in known:
        raise BadInput(f"unknown optimizer '{name}'; expected one of {', '.join(known)}")
    return name, options


def _built(text: str, make: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return make(**options)
    except TypeError as error:
        raise BadInput(f"{text}: {str(error).replace('.__init__()', '')}") from None


class Moved:
    """Batches with their tensors on a device, and the floating-point ones in a dtype; moved one at a time, when asked for.

    Args:
        batches: tensors in tuples, lists and dictionaries.
        device: where to.
        dtype: None leaves it as it is.
    """

    def __init__(self, batches: Iterable[Any], device: torch.device, dtype: torch.dtype | None):
        self.batches, self.device, self.dtype = batches, device, dtype

    def __iter__(self) -> Iterator[Any]:
        return map(self._move, iter(self.batches))

    def _move(self, batch: Any) -> Any:
        return map_tensors(lambda x: x.to(self.device, self.dtype if x.is_floating_point() else None), batch)
