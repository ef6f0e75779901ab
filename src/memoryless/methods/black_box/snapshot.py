"""A live torch optimizer of our own, and its memory as a value.

A torch optimizer keeps its memory in itself: in `state`, in its param groups, in attributes of its own, and in those of the
objects that it is made of (a wrapped optimizer, a schedule). A `State` is a copy of them all, which can be put back.
"""

import inspect
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.errors import BadInput, Reevaluates, StepFailed

Objects = tuple[tuple[Any, dict[str, Any]], ...]
Leaf = Callable[[Any], Any]
"""What to put in place of a tensor or a number."""


class Twin(NamedTuple):
    """A live optimizer over parameters of its own.

    Attributes:
        parameters: one for each shape, in the order of theta; those that require no gradient get none.
        optimizer: made by the factory for them.
        scheduler: likewise, or None; steps after the optimizer.
        needs_closure: whether step() insists on one.
        loss: what it returns.
    """

    parameters: list[nn.Parameter]
    optimizer: Optimizer
    scheduler: Any
    needs_closure: bool
    loss: float = 0.0

    def step(self, gradient: Tensor, theta: Tensor) -> Tensor:
        """The parameters after one step from theta, in float64; both arguments may be dual tensors."""
        sizes = [p.numel() for p in self.parameters]
        with torch.no_grad():
            for p, g, t in zip(self.parameters, gradient.split(sizes), theta.split(sizes), strict=True):
                p.copy_(t.view(p.shape))
                # A copy: some steps write into the gradient.
                p.grad = g.view(p.shape).to(p, copy=True) if p.requires_grad else None
            closure = made_up(self.optimizer, self.parameters, self.loss) if self.needs_closure else None
            self.optimizer.step() if closure is None else self.optimizer.step(closure)  # pyright: ignore[reportCallIssue, reportArgumentType]
            if self.scheduler is not None:
                self.scheduler.step()
            return torch.cat([p.reshape(-1) for p in self.parameters]).to(theta.device)

    @property
    def objects(self) -> Objects:
        """The optimizer and the scheduler, with their attributes."""
        return tuple((thing, vars(thing)) for thing in (self.optimizer, self.scheduler) if thing is not None)

    def leaves(self) -> list[tuple[str, Any]]:
        """Name and value of every tensor and number of the live memory, in the order of `State.leaves`."""
        return _leaves(self.objects, self.parameters)

    def saved(self, n: int) -> "State":
        """The memory after n steps."""
        return State(n, self, copied(self.objects, self.parameters))


def made_up(optimizer: Optimizer, parameters: Sequence[Tensor], loss: float = 0.0) -> Callable[[], Tensor]:
    """A closure for a step that takes one gradient: a made-up loss, and the gradient that is there.

    Args:
        optimizer: to name.
        parameters: with gradients, which are right where they are now only.
        loss: to return.

    Returns:
        The closure; raises Reevaluates at other parameters.
    """
    start = [p.detach().clone() for p in parameters]

    def closure() -> Tensor:
        if not all(torch.equal(p.detach(), here) for p, here in zip(parameters, start, strict=True)):
            raise Reevaluates(
                f"{type(optimizer).__name__}.step() evaluates the loss again at other parameters: it is no function of one "
                "gradient per step"
            )
        return torch.full((), loss, dtype=start[0].dtype)

    return closure


def insists_on_closure(optimizer: Optimizer) -> bool:
    """Whether step() cannot be called without a closure."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def take_step(optimizer: Optimizer, parameters: Sequence[Tensor], **given: Any) -> None:
    """Step with the gradients that are there, with a made-up closure where the optimizer will not without.

    Args:
        optimizer: live.
        parameters: with gradients.
        given: to its step.

    Raises:
        BadInput: step() raises, or evaluates the loss elsewhere.
    """
    try:
        if not insists_on_closure(optimizer):
            try:
                optimizer.step(**given)
            except Exception:
                if "closure" not in inspect.signature(type(optimizer).step).parameters:
                    raise
            else:
                return
        optimizer.step(made_up(optimizer, parameters), **given)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except BadInput:
        raise
    except Exception as error:
        name = type(optimizer).__name__
        raise StepFailed(f"{name}.step() raised {type(error).__name__} on dense gradients: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Of its message."""
    return (str(error).splitlines() or ["no message"])[0]


class State(NamedTuple):
    """An optimizer's memory; never changed.

    Attributes:
        n: number of past steps.
        twin: the optimizer that it belongs to.
        objects: every object that the optimizer is made of, each with a copy of its attributes.
    """

    n: int
    twin: Twin
    objects: Objects

    def restored(self, leaf: Leaf | None = None) -> Twin:
        """The optimizer with this memory.

        Args:
            leaf: what to put in place of each tensor or number; default a copy.
        """
        for thing, attributes in copied(self.objects, self.twin.parameters, leaf):
            vars(thing).clear()
            vars(thing).update(attributes)
        return self.twin

    def leaves(self) -> list[tuple[str, Any]]:
        """Name and value of every tensor and number, in the order in which `restored` meets them."""
        return _leaves(self.objects, self.twin.parameters)


def copied(
    objects: Iterable[tuple[Any, dict[str, Any]]],
    parameters: Sequence[nn.Parameter],
    leaf: Leaf | None = None,
    names: list[str] | None = None,
) -> Objects:
    """Copy the attributes of objects, and of the objects that they reach; what is shared stays shared.

    Args:
        objects: each with its attributes.
        parameters: not copied.
        leaf: what to put in place of each tensor or number; default a copy.
        names: receives where each tensor or number was found, the last key of the way to it.

    Returns:
        Every object reached, with the copy of its attributes.
    """
    queue = list(objects)
    memo: dict[int, Any] = {id(x): x for x in [*parameters, *(thing for thing, _ in queue)]}
    leaf = leaf or (lambda value: value.detach().clone() if isinstance(value, Tensor) else value)
    names = [] if names is None else names

    def copy(value: Any, name: str) -> Any:
        if isinstance(value, (bool, str, type(None), complex)):
            return value
        if isinstance(value, (int, float)):  # Python shares equal numbers: each is a leaf of its own
            names.append(name)
            return leaf(value)
        if id(value) in memo:
            return memo[id(value)]
        new = value
        if isinstance(value, Tensor):
            names.append(name)
            new = leaf(value)
        elif isinstance(value, (dict, list, deque)):
            new = memo[id(value)] = value.copy()
            for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
                new[key] = copy(item, key if isinstance(key, str) else name)
        elif isinstance(value, tuple):
            items = [copy(item, name) for item in value]
            new = type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        elif isinstance(value, (set, np.ndarray)):
            new = value.copy()
        elif isinstance(value, torch.Generator):
            new = value.clone_state()
        elif _has_state(value):
            queue.append((value, vars(value)))
        memo[id(value)] = new
        return new

    # The queue grows on the way.
    return tuple((thing, {key: copy(value, key) for key, value in attributes.items()}) for thing, attributes in queue)


def _leaves(objects: Objects, parameters: Sequence[nn.Parameter]) -> list[tuple[str, Any]]:
    found: list[Any] = []
    names: list[str] = []
    copied(objects, parameters, lambda value: found.append(value) or value, names)
    return list(zip(names, found, strict=True))


def _has_state(value: Any) -> bool:
    """Whether it is an object with attributes of its own; functions, classes, locks and loggers are left alone."""
    library = type(value).__module__.split(".")[0] in sys.stdlib_module_names
    return hasattr(value, "__dict__") and not isinstance(value, type) and (not library or type(value) is types.SimpleNamespace)
