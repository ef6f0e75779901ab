"""Checkpoints as people have them: a file of state dicts under the usual keys, or a folder that a Trainer wrote.

Read with `weights_only=True`: a checkpoint runs no code. Everything is looked at before anything is loaded; where something
does not fit, model and optimizer stay as they were.
"""

import argparse
import copy
import math
import pathlib
import pickle
import types
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.loss.loss import Loss
from memoryless.methods.method_optimizer import MethodOptimizer

MODEL = ("model", "state_dict", "model_state_dict", "model_state", "module")
OPTIMIZER = ("optimizer", "optimizer_state_dict", "optimizer_states", "optimizer_state", "optim")
EXPECTED = "expected torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, path)"
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put into names."""

_scalar: Any = np.float64(0).__reduce__()[0]
_array: Any = np.zeros(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    defaultdict,
    pathlib.Path,
    pathlib.PosixPath,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "uint8", "float16", "float32", "float64", "U1")),
    # The module moved between the versions 1 and 2 of NumPy.
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
"""Plain data beside the tensors: what a script was called with, its best accuracy."""


def load_checkpoint(path: str, loss: Loss, optimizer: Optimizer) -> None:
    """Load a checkpoint into a model and its optimizer.

    Args:
        path: a file that `torch.save` wrote, with state dicts under keys of `MODEL` and `OPTIMIZER`; names may have `WRAPPERS`,
            or the prefix that the model has in a larger module (Lightning's). Or the folder of a Trainer's checkpoint.
        loss: of the model to load into.
        optimizer: to load into.

    Raises:
        BadInput: missing, damaged, not plain data, or of another model or optimizer; says how it differs.
    """
    if isinstance(optimizer, MethodOptimizer):
        name = optimizer.param_groups[0]["method"].name
        raise BadInput(f"checkpoint {path} holds the state of a torch optimizer, which {name} is not; use adamw, say")
    if loss.model is None:
        raise BadInput(f"--checkpoint {path}: this problem has no model to load it into")
    theirs, state = _folder(Path(path)) if Path(path).is_dir() else _file(path)
    weights = _fitting(path, theirs, loss.model)
    state = _checked(path, state, optimizer, loss)
    loss.model.load_state_dict(weights, strict=False)
    optimizer.load_state_dict(state)


def _read(path: str | Path) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"checkpoint not found: {path}") from None
    except pickle.UnpicklingError as error:
        names: list[str] = []
        with suppress(Exception), torch.serialization.safe_globals(HARMLESS):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        which = f" (it has {', '.join(names[:3])})" if names else ""
        raise BadInput(f"checkpoint {path} is not made of plain tensors and numbers{which}; {EXPECTED}") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, IndexError, TypeError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"checkpoint {path} is damaged or truncated ({reason})") from error


def _file(path: str) -> tuple[Mapping[str, Any], Any]:
    """State dicts of model and optimizer."""
    stored = _read(path)
    if not isinstance(stored, Mapping):
        raise BadInput(f"checkpoint {path} holds a {type(stored).__name__}; {EXPECTED}")
    found: list[Any] = []
    for keys in (MODEL, OPTIMIZER):
        part = next((stored[key] for key in keys if key in stored), None)
        if isinstance(part, (list, tuple)):
            if len(part) != 1:
                raise BadInput(f"checkpoint {path} holds {len(part)} optimizers; expected one")
            part = part[0]
        if not isinstance(part, Mapping):
            had = ", ".join(map(str, stored))[:200] or "nothing"
            raise BadInput(f"checkpoint {path} has no '{keys[0]}', only {had}; {EXPECTED}")
        found.append(part)
    return found[0], found[1]


def _folder(path: Path) -> tuple[Mapping[str, Any], Any]:
    """State dicts from what a Trainer of transformers wrote."""
    model, packed, optimizer = path / "model.safetensors", path / "pytorch_model.bin", path / "optimizer.pt"
    if not optimizer.is_file() or not (model.is_file() or packed.is_file()):
        later = sorted(each.name for each in path.glob("checkpoint-*"))
        raise BadInput(
            f"checkpoint {path} is a folder without model.safetensors or pytorch_model.bin, and optimizer.pt"
            + (f"; take {path / later[-1]}" if later else "")
        )
    if packed.is_file():
        return _read(packed), _read(optimizer)
    try:
        from safetensors import SafetensorError  # pyright: ignore[reportMissingImports]
        from safetensors.torch import load_file  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise BadInput(f"{model} takes pip install safetensors") from None
    try:
        return load_file(model), _read(optimizer)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"checkpoint {model} is damaged or truncated ({str(error).splitlines()[0]})") from error


def _bare(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
    return name


def _fitting(path: str, theirs: Any, model: nn.Module) -> dict[str, Tensor]:
    """Their tensors under the names of the model."""
    own = model.state_dict()
    if not isinstance(theirs, Mapping) or not all(isinstance(name, str) for name in theirs):
        raise BadInput(f"checkpoint {path} has no state dict of a model; {EXPECTED}")
    stored, bare = {_bare(name): value for name, value in theirs.items()}, {_bare(name): name for name in own}
    if not set(bare) <= set(stored):
        # In Lightning's files the model is an attribute of the module that trains it, beside others.
        first = next(iter(bare))
        prefixes = [name.removesuffix(first) for name in stored if name.endswith(f".{first}")]
        prefix = next((each for each in prefixes if all(each + name in stored for name in bare)), None)
        if prefix is not None:
            stored = {name: stored[prefix + name] for name in bare}
    # A file of safetensors holds tensors that share their memory once.
    shared = {own[bare[name]].data_ptr() for name in bare if name in stored}
    lacking = [name for name in bare if name not in stored and own[bare[name]].data_ptr() not in shared]
    for name in sorted(set(lacking) | (set(stored) - set(bare))):
        side = "lacks" if name in bare else "has an extra"
        raise BadInput(f"checkpoint {path} is of another model: it {side} '{name}'")
    for name, value in stored.items():
        mine = own[bare[name]]
        if isinstance(mine, Tensor) and not isinstance(value, Tensor):
            raise BadInput(f"checkpoint {path} is of another model: '{name}' is a {type(value).__name__}; expected a tensor")
        if isinstance(mine, Tensor) and mine.shape != value.shape:
            shapes = f"{tuple(value.shape)} there, {tuple(mine.shape)} in the model"
            raise BadInput(f"checkpoint {path} is of another model: '{name}' is {shapes}")
        _require_finite(path, f"'{name}'", value)
    return {bare[name]: value for name, value in stored.items()}


def _checked(path: str, state: Any, optimizer: Optimizer, loss: Loss) -> dict[str, Any]:
    """The state dict, if the optimizer could have written it."""
    kind = type(optimizer).__name__
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    memory = state.get("state") if isinstance(state, Mapping) else None
    plain = isinstance(groups, list) and all(isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups)
    if not plain or not isinstance(memory, Mapping) or not all(isinstance(each, Mapping) for each in memory.values()):
        raise BadInput(f"checkpoint {path} has no state dict of an optimizer, with 'state' and 'param_groups'; {EXPECTED}")
    assert groups is not None
    here, there = [len(g["params"]) for g in optimizer.param_groups], [len(g["params"]) for g in groups]
    if here != there:
        raise BadInput(f"checkpoint {path} is of another optimizer: parameters per group {there} there, {here} here")
    for mine, other in zip(optimizer.param_groups, groups, strict=True):
        # AdamW's own mark: Adam takes the option, AdamW does not.
        if mine.get("decoupled_weight_decay") != other.get("decoupled_weight_decay", mine.get("decoupled_weight_decay")):
            raise BadInput(f"checkpoint {path} is of another optimizer than {kind}: decoupled_weight_decay differs")
    # What an older version did not write is as it is here.
    groups = [{**mine, **other} for mine, other in zip(optimizer.param_groups, groups, strict=True)]
    for mine, other in zip(optimizer.param_groups, groups, strict=True):
        for key, value in mine.items():
            if isinstance(value, (int, float)) and not isinstance(other[key], (int, float, Tensor)):
                raise BadInput(f"checkpoint {path} is of another optimizer: {key} is {other[key]!r}; expected a number")
    expected = _after_a_step(optimizer, groups) if memory else None
    numbers = [number for group in groups for number in group["params"]]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in loss.model.named_parameters()} if loss.model else {}
    lacking = []
    for i, (number, p) in enumerate(zip(numbers, own, strict=True)):
        name, stored = names.get(id(p), f"parameter {i}"), memory.get(number, {})
        for key, value in stored.items():
            _require_finite(path, f"{key} of '{name}'", value)
        step = stored.get("step", 0)
        if not isinstance(step, (int, float, Tensor)) or (torch.as_tensor(step) < 0).any():
            raise BadInput(f"checkpoint {path}: the step of '{name}' is {step}; expected a number >= 0")
        want = {} if expected is None else expected[i]
        if not stored and want:
            lacking.append((name, p))
        elif expected is not None and (not set(want) <= set(stored) or (stored and not want)):
            has, keeps = (", ".join(map(str, keys)) or "nothing" for keys in (stored, want))
            raise BadInput(f"checkpoint {path} is of another optimizer: of '{name}' it has {has}; {kind} keeps {keeps}")
        for key, value in want.items():
            other = stored.get(key)
            if isinstance(value, Tensor) and isinstance(other, Tensor) and value.ndim and value.shape != other.shape:
                raise BadInput(
                    f"checkpoint {path}: {key} of '{name}' is {tuple(other.shape)} there, {tuple(value.shape)} here; "
                    "its parameters are others, or in another order"
                )
    _require_unused(path, lacking, loss, len(own))
    return {"state": dict(memory), "param_groups": groups}


def _require_unused(path: str, lacking: list[tuple[str, Tensor]], loss: Loss, count: int) -> None:
    """Raise unless parameters without a memory are those that no gradient reaches."""
    if lacking:
        sizes = [p.numel() for p in loss.layout.tensors]
        parts = loss.gradient(loss.theta, 0).split(sizes)
        reached = {id(p) for p, part in zip(loss.layout.tensors, parts, strict=True) if part.any()}
        if missing := [name for name, p in lacking if id(p) in reached]:
            some = f"{count - len(lacking)} of {count} parameters"
            raise BadInput(f"checkpoint {path} has an optimizer's state for {some}, none for '{missing[0]}'")


def _after_a_step(optimizer: Optimizer, groups: list[Any]) -> list[Mapping[Any, Any]] | None:
    """What a copy with these groups keeps of each parameter after one step; None where it cannot be copied and stepped."""
    try:
        twin = copy.deepcopy(optimizer)
        twin.load_state_dict({"state": {}, "param_groups": copy.deepcopy(groups)})
        with torch.random.fork_rng():
            parameters = [p for group in twin.param_groups for p in group["params"]]
            for p in parameters:
                p.grad = torch.randn_like(p)
            twin.step()
    except Exception:  # a stranger's step; the audit says what is wrong with it
        return None
    return [{k: v for k, v in twin.state.get(p, {}).items() if v is not None} for p in parameters]


def _require_finite(path: str, what: str, value: Any) -> None:
    bad = isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all()
    if bad or (isinstance(value, float) and not math.isfinite(value)):
        raise BadInput(f"checkpoint {path}: {what} is not finite")
