"""A live optimizer made anew, with empty memory: by its class, from its hyperparameters.

What is a hyperparameter and what is memory is found by trying. What changes along steps, of the live optimizer or of a new one,
is memory: a count or an estimate kept in a param group as much as a buffer. With the memory of the live one in it the new one
must step as the live one does; where it does not, a hook, a patched step or a setting was lost, and it is refused.
"""

import copy
import inspect
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.errors import BadInput, StepFailed
from memoryless.flat import flat, norm
from memoryless.isolation import isolated
from memoryless.methods.black_box.rewound import PLAIN, equal, rewound
from memoryless.methods.black_box.snapshot import first_line, take_step

SCALES = 1.0, 1e3, 1.0
"""Sizes of the random gradients to try steps with: a clipping, or a step taken every second time, shows."""
LONGER = 1.0, *(0.0,) * 8, *SCALES
"""0: the last gradient again. What only a steady descent moves, such as an estimate of the distance to go, shows."""
TORCHS = {"params", "param_names", "initial_lr"}
"""Of a param group what torch keeps there: parameters, and the lr before a schedule, which the new optimizer has not."""
BESIDE = {"state", "param_groups", "defaults", "step"}
"""Attributes that are not looked at as such."""
HOOKS = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"


def acting(optimizer: Optimizer) -> str | None:
    """What makes a live optimizer's step another than its class's: hooks, a patched step; None if nothing does.

    Args:
        optimizer: live.
    """
    found = (hook for hooks in HOOKS for hook in getattr(optimizer, hooks, {}).values())
    if any(not getattr(hook, "counts", False) for hook in found):  # one of `check_step` only counts
        return "step hooks"
    patched = vars(optimizer).get("step")
    # A schedule notes whether the optimizer steps before it, and calls the step that it found.
    noted = hasattr(patched, "_wrapped_by_lr_sched") and getattr(patched, "__wrapped__", None) is type(optimizer).step
    return None if patched is None or noted else "a step of its own, patched in"


class Remade(NamedTuple):
    """How to make a live optimizer anew.

    Attributes:
        live: the optimizer.
        tensors: its parameters that are to stay in it, in the order of theta.
        memory: keys of its param groups that are not given to the new one.
        settings: attributes that are.
    """

    live: Optimizer
    tensors: Sequence[Tensor]
    memory: frozenset[str]
    settings: frozenset[str] = frozenset()

    def new(self, parameters: Sequence[Tensor]) -> Optimizer:
        """The new one, over parameters that stand for `tensors`.

        Raises:
            BadInput: its class cannot be called so.
        """
        cls, stand_in = type(self.live), self._stand_ins(parameters)
        accepted = _arguments(cls) - TORCHS - self.memory
        # Some settings are attributes, of the name of the argument.
        attributes = {key: value for key, value in vars(self.live).items() if isinstance(value, PLAIN)}
        settings = {key: value for key, value in (attributes | self.live.defaults).items() if key in accepted}
        # Defaults are as they were at the start, but for those that are changed in place.
        start = {key: value for key, value in self.live.defaults.items() if key in self.memory and isinstance(value, PLAIN)}
        groups = [
            start
            | {key: _copied(value, stand_in) for key, value in group.items() if key not in self.memory | TORCHS}
            | {"params": [stand_in[id(p)] for p in group["params"] if id(p) in stand_in]}
            for group in self.live.param_groups
        ]
        try:
            made = cls(groups, **_copied(settings, stand_in))  # pyright: ignore[reportCallIssue]
        except Exception as error:
            raise BadInput(
                f"no second {cls.__name__} can be made from the param groups of this one ({type(error).__name__}: "
                f"{first_line(error)}), so its memory cannot be emptied; give ml.TorchMethod a factory"
            ) from error
        vars(made).update({key: vars(self.live)[key] for key in self.settings})
        for hooks in HOOKS:
            getattr(made, hooks).update(getattr(self.live, hooks))
        return made

    def filled(self, parameters: Sequence[Tensor], attributes: Iterable[str]) -> Optimizer:
        """A new one that has the memory of the live one: state, param groups and these attributes."""
        made, stand_in = self.new(parameters), self._stand_ins(parameters)
        memory = [{key: value for key, value in group.items() if key not in TORCHS} for group in self.live.param_groups]
        kept = dict(self.live.state), memory, {key: vars(self.live)[key] for key in attributes}
        state, groups, own = copy.deepcopy(kept, {id(p): stand_in.get(id(p), p) for p in _parameters(self.live)})
        made.state.update(state)
        for group, values in zip(made.param_groups, groups, strict=True):
            group.update(values)
        vars(made).update(own)
        return made

    def _stand_ins(self, parameters: Sequence[Tensor]) -> dict[int, Tensor]:
        return {id(p): q for p, q in zip(self.tensors, parameters, strict=True)}


def remade(live: Optimizer, tensors: Sequence[Tensor], used: Collection[int], device: torch.device) -> Remade:
    """How to make a live optimizer anew; it is left as it is.

    Args:
        live: the optimizer.
        tensors: its parameters that are to stay in it.
        used: ids of those that get gradients.
        device: of them.

    Raises:
        BadInput: its step fails, or the new one would step otherwise.
    """
    name, own = type(live).__name__, acting(live)
    moving = [id(p) in used for p in tensors]
    with rewound(live, tensors, device) as rewind:
        groups, attributes = _groups(live), _attributes(live)
        path = _path(live, tensors, moving)
        memory = _differing(groups, _groups(live))
        changed = _differing([attributes], [_attributes(live)])
        rewind()
        how = Remade(live, tensors, memory | _suspects(live))
        while True:
            fresh = how.new(parameters := _stand_in(tensors))
            groups, start = _groups(fresh), _attributes(fresh)
            try:
                _path(fresh, parameters, moving, LONGER)
            except StepFailed as error:
                if how.memory == memory:
                    why = f"; it has {own}" if own else ""
                    raise BadInput(f"a second {name} does not run: {error}{why}; give ml.TorchMethod a factory") from error
                how = how._replace(memory=memory)  # a mode that it is in, rather than memory
                continue
            memory |= _differing(groups, _groups(fresh))
            fixed = changed | _differing([start], [_attributes(fresh)])
            plain = {key for key, value in start.items() if isinstance(value, PLAIN) and isinstance(attributes.get(key), PLAIN)}
            settings = how.settings | {key for key in plain - fixed if start[key] != attributes[key]}
            if (memory, settings) == (how.memory, how.settings):
                break
            how = Remade(live, tensors, memory, settings)
        beside = rewind()
        filled = how.filled(parameters := _stand_in(tensors), changed & vars(live).keys())  # less what a first step makes
        again = _path(filled, parameters, moving)
        beside = rewind() | beside
    if beside:
        raise BadInput(
            f"{name} has {own or 'parts'} that act on more than they are given ({', '.join(sorted(beside))}), so a second one "
            "cannot be run beside it; give ml.TorchMethod a factory"
        )
    # theta is rounded at each step, and an inverse root enlarges the rounding of the update.
    eps = torch.finfo(tensors[0].dtype).eps
    rounding = min(10 * eps**0.5, 1e-3) * norm(path[-1] - path[0]) + len(SCALES) * eps * norm(path[0])
    if not all(norm(x - y) <= rounding for x, y in zip(path, again, strict=True)):
        why = f"it has {own}" if own else "a setting or a memory is not in its param groups, state and attributes"
        raise BadInput(
            f"a second {name} with the hyperparameters and the memory of this one steps otherwise: {why}; "
            "give ml.TorchMethod a factory that makes it whole"
        )
    return how


def _path(
    optimizer: Optimizer, tensors: Sequence[Tensor], moving: Iterable[bool], scales: Sequence[float] = SCALES
) -> list[Tensor]:
    """Theta before and after each of a few steps with random gradients, float64."""
    generator = torch.Generator().manual_seed(0)
    parameters = [p for p, moves in zip(tensors, moving, strict=True) if moves]
    theta = [_theta(parameters)]
    with isolated(parameters[0].device, start=0):
        gradients: list[Tensor] = []
        for scale in scales:
            if scale:
                gradients = [scale * torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
            for p in _parameters(optimizer):
                p.grad = None
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient.to(p, copy=True)
            take_step(optimizer, parameters)
            theta.append(_theta(parameters))
    return theta


def _theta(parameters: Sequence[Tensor]) -> Tensor:
    return flat(p.detach().double() for p in parameters)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _stand_in(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [nn.Parameter(p.detach().clone(), p.requires_grad) for p in tensors]


def _arguments(cls: type) -> set[str]:
    """Names of what it can be made from, its parents' arguments too where it hands them on."""
    found: set[str] = set()
    for parent in cls.__mro__:
        arguments = inspect.signature(parent).parameters if parent is not object else {}
        found |= arguments.keys()
        if all(argument.kind is not inspect.Parameter.VAR_KEYWORD for argument in arguments.values()):
            break
    return found - {"args", "kwargs"}


def _suspects(live: Optimizer) -> set[str]:
    """Keys of param groups that have left their defaults, lr apart, which schedules write.

    They count as memory if they change along the steps of a new one, too; else they were set.
    """
    inner = live.defaults.keys() - {"lr"}
    return {key for key in inner for group in live.param_groups if not equal(group.get(key), live.defaults[key])}


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{key: _copied(value, {}) for key, value in group.items() if key not in TORCHS} for group in optimizer.param_groups]


def _attributes(optimizer: Optimizer) -> dict[str, Any]:
    inner = BESIDE | {key for key in vars(optimizer) if key.startswith("_optimizer_") or key.startswith("_zero_grad_")}
    return {key: _copied(value, {}) for key, value in vars(optimizer).items() if key not in inner}


def _differing(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    missing = object()
    return frozenset(
        key
        for one, other in zip(before, after, strict=True)
        for key in one.keys() | other.keys()
        if not equal(one.get(key, missing), other.get(key, missing))
    )


def _copied(value: Any, stand_in: Mapping[int, Tensor]) -> Any:
    """Containers and tensors copied, parameters replaced, anything else as it is."""
    if id(value) in stand_in:
        return stand_in[id(value)]
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (dict, list, deque)):
        new = copy.copy(value)
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            new[key] = _copied(item, stand_in)
        return new
    if isinstance(value, tuple):
        items = [_copied(item, stand_in) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value.copy() if isinstance(value, (set, np.ndarray)) else value
