"""A step as it was taken: parameters, gradients, state and groups before it, parameters and state after."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.flat import local
from memoryless.isolation import Standing, standing


def mapped(f: Any, tree: Any) -> Any:
    """A nested state with f of its tensors in their place; what else it holds is shared.

    Args:
        f: tensor -> tensor.
        tree: dictionaries, lists and tuples.
    """
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, Mapping):
        return {key: mapped(f, value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(f, value) for value in tree)
    return tree


def copied(tree: Any) -> Any:
    """A nested state, its tensors copied."""
    return mapped(lambda x: x.detach().clone(), tree)


def kept(x: Any, known: Any) -> Any:
    """A copy of a nested state; where a tensor is the known one bit for bit that itself, which spares the copy.

    Args:
        x: live.
        known: what is likely there; never changed in place.
    """
    if isinstance(x, Tensor):
        same = isinstance(known, Tensor) and (x.dtype, x.device, x.shape) == (known.dtype, known.device, known.shape)
        return known if same and x.layout == known.layout and torch.equal(x.detach(), known) else x.detach().clone()
    if isinstance(x, Mapping):
        there = known if isinstance(known, Mapping) else {}
        return {key: kept(value, there.get(key)) for key, value in x.items()}
    return copied(x)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers; a NaN counts as equal to a NaN."""
    return a is b or torch.equal(a, b) or (a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all()))


def real(x: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; a complex one as pairs of real numbers, as torch's steps take it."""
    part = local(x.detach())
    return torch.view_as_real(part.resolve_conj()) if part.is_complex() else part


def here(state: Mapping[str, Any]) -> dict[str, Any]:
    """A tensor's state, as `real`."""
    return {key: mapped(real, value) for key, value in state.items()}


ROUND = 64
"""Steps in a row of which one is looked at whole, the others at two parts of 63 of each large tensor."""
LARGE = 2**12
"""Coordinates beyond which a tensor is looked at in parts."""
Window = tuple[int, int]


def window_of(size: int, n: int) -> Window | None:
    """The part of a tensor that is looked at: it overlaps with that of the step before and of the next; None for all of it.

    Args:
        size: coordinates of the tensor.
        n: number of the step.
    """
    j, parts = n % ROUND, ROUND - 1
    if not j or size <= LARGE:
        return None
    return (j - 1) * size // parts, min(size, (j + 1) * size // parts)


def cut(tree: Any, p: Tensor, window: Window | None) -> Any:
    """What lies beside a tensor, its part alone.

    Args:
        tree: a tensor, or the tensor's state.
        p: that tensor, whole.
        window: of it.
    """
    if window is None:
        return tree
    return mapped(lambda x: x.reshape(-1)[window[0] : window[1]] if x.shape == p.shape else x, tree)


@dataclass
class Held:
    """One tensor at one step.

    Attributes:
        name: in the model, or its place in the optimizer.
        group: number of its param group.
        place: address of its memory: tied tensors share it.
        size: coordinates of the whole tensor.
        window: the part of it that everything here is of; None for all.
        buffers_at: addresses of the state's buffers: no two tensors share one.
        trained: whether it requires a gradient.
        theta: before the step, in its own dtype.
        gradient: as the optimizer saw it; None where there was none.
        state: the optimizer's, before.
        after: the tensor after the step.
        state_after: the optimizer's, after.
    """

    name: str
    group: int
    place: int
    trained: bool
    theta: Tensor
    gradient: Tensor | None
    state: dict[str, Any]
    size: int = 0
    window: Window | None = None
    buffers_at: set[int] = field(default_factory=set)
    after: Tensor = field(default_factory=lambda: torch.empty(0))
    state_after: dict[str, Any] = field(default_factory=dict)

    def picked(self, pick: Callable[[Tensor], Tensor]) -> "Held":
        """Some of its coordinates.

        Args:
            pick: of a tensor like theta, those.
        """
        shape = self.theta.shape

        def of(tree: Any) -> Any:
            return mapped(lambda x: pick(x) if x.shape == shape and x.ndim else x, tree)

        parts = {key: of(getattr(self, key)) for key in ("theta", "gradient", "state", "after", "state_after")}
        return replace(self, **parts)

    @property
    def count(self) -> int | None:
        """Steps that its state counts; None where it counts none."""
        step = self.state.get("step")
        return None if step is None else int(step)


@dataclass
class Record:
    """One step.

    Attributes:
        held: the tensors, each once.
        groups: hyperparameters at the step.
        groups_after: when the block ended, after a scheduler's step.
        defaults: what the optimizer was built with.
        cls: the optimizer's class.
        noise: where the generators stood.
        part: whether the tensors are this process's parts of sharded ones.
        complex: whether some are complex; here each number is a pair of real ones.
        compiled: whether the step was traced by torch.compile.
    """

    held: list[Held]
    groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    cls: type[Optimizer]
    groups_after: list[dict[str, Any]] = field(default_factory=list)
    noise: Standing | None = None
    compiled: bool = False
    part: bool = False
    complex: bool = False


def before(optimizer: Optimizer, names: Mapping[int, str], previous: Record | None = None, n: int = 0) -> Record:
    """Note a step that is about to be taken.

    Args:
        optimizer: its gradients are in place.
        names: of tensors by id.
        previous: the step before; what it left and is still there is not copied again.
        n: number of the step, which tells the parts that are looked at.

    Raises:
        BadInput: a gradient is sparse.
    """
    held, seen = [], set()
    scale = getattr(optimizer, "grad_scale", None)
    for number, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            if id(p) in seen:
                continue
            seen.add(id(p))
            if p.grad is not None and p.grad.is_sparse:
                raise BadInput("a gradient is sparse; expected dense, use Embedding(sparse=False)")
            whole = real(p)
            window = window_of(whole.numel(), n)
            gradient = None if p.grad is None else cut(real(p.grad), whole, window).clone()
            if gradient is not None and scale is not None:
                gradient /= scale
            name = names.get(id(p), f"tensor {len(held)}")
            left = previous.held[len(held)] if previous is not None and len(held) < len(previous.held) else None
            own, now = cut(whole, whole, window), cut(here(optimizer.state.get(p, {})), whole, window)
            theta = kept(own, None if left is None else left.after)
            state = kept(now, None if left is None else left.state_after)
            at = {v.data_ptr() for v in now.values() if isinstance(v, Tensor) and v.ndim} - {0}
            place = whole.data_ptr() or -len(held) - 1  # 0 of all that are empty here
            held.append(Held(name, number, place, p.requires_grad, theta, gradient, state, whole.numel(), window, at))
    own = type(optimizer).__module__.startswith("torch.optim")  # draws no random numbers, where it is elementwise
    noise = None if own else standing(held[0].theta.device)
    record = Record(held, settings(optimizer), dict(optimizer.defaults), type(optimizer), noise=noise)
    record.complex = any(p.is_complex() for group in optimizer.param_groups for p in group["params"])
    record.part = any(hasattr(p, "to_local") for group in optimizer.param_groups for p in group["params"])
    return record


def skips(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer under a GradScaler, which is called for every step, skips this one for an infinity it met.

    Args:
        optimizer: in its step.
    """
    infinite = getattr(optimizer, "found_inf", None)
    return infinite is not None and float(infinite) != 0


def after(record: Record, optimizer: Optimizer, known: tuple[list[Tensor], list[dict[str, Any]]] | None = None) -> None:
    """Note what the step led to.

    Args:
        record: from `before`.
        optimizer: the same, after.
        known: parameters and states that it likely led to.
    """
    tensors = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    thetas, states = known or ([None] * len(tensors), [None] * len(tensors))
    for held, p, theta, state in zip(record.held, tensors.values(), thetas, states, strict=True):
        whole, now = real(p), here(optimizer.state.get(p, {}))
        held.after = kept(cut(whole, whole, held.window), theta)
        held.state_after = kept(cut(now, whole, held.window), state)
    record.groups_after = settings(optimizer)


class Untouched:
    """What a run holds, to be put back where a copy of its optimizer writes into it: by a closure over the original, say.

    Args:
        optimizer: of the run.
    """

    def __init__(self, optimizer: Optimizer):
        held = {id(p): p for group in optimizer.param_groups for p in group["params"]}.values()
        tensors = [local(x.detach()) for p in held for x in (p, p.grad) if x is not None and not x.is_sparse]
        mapped(lambda x: tensors.append(x) or x, [dict(optimizer.state.get(p, {})) for p in held])
        self._kept = [(x, x.detach().clone()) for x in tensors]

    def restore(self) -> bool:
        """Whether something was written to; it is as it was."""
        touched = [(x, value) for x, value in self._kept if not equal(x, value)]
        with torch.no_grad():
            for x, value in touched:
                x.copy_(value)
        return bool(touched)


def settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Hyperparameters of each group, its tensors copied."""
    return [{key: copied(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
