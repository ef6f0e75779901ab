"""A live torch optimizer as a method: recognise it, read its step, ask what it would do next."""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from memoryless.errors import BadInput, NotRecognised
from memoryless.flat import Layout, norm
from memoryless.isolation import isolated
from memoryless.methods import catalogue
from memoryless.methods.black_box.remade import acting
from memoryless.methods.black_box.rewound import rewound
from memoryless.methods.black_box.snapshot import take_step
from memoryless.methods.black_box.torch_method import TorchMethod, same_update, stepsize
from memoryless.methods.method import AnyOptimizer, Groups, Index, Method, Part
from memoryless.methods.method_optimizer import MethodOptimizer
from memoryless.methods.wrapped import undialled

NONE: Mapping[str, Any] = MappingProxyType({})


def _sgd(group: dict[str, Any]) -> Method:
    common = {"lr": float(group["lr"]), "momentum": group["momentum"], "weight_decay": group["weight_decay"]}
    if group["nesterov"]:
        return catalogue.Nesterov(**common, maximize=group["maximize"])
    # Without momentum torch keeps no buffer and ignores dampening.
    dampening = group["dampening"] if group["momentum"] else 0.0
    if dampening == 1:
        raise NotRecognised("SGD with dampening 1 remembers its first gradient only, which has no momentum form")
    return catalogue.HeavyBall(**common, dampening=dampening, maximize=group["maximize"])


def _adam(group: dict[str, Any]) -> Method:
    if group["amsgrad"]:
        raise NotRecognised("amsgrad keeps a running maximum of v, which never forgets and has no momentum form")
    make = catalogue.AdamW if group["decoupled_weight_decay"] else catalogue.Adam
    return make(**_shared(group, "betas", "eps", "weight_decay", "maximize"))


def _nadam(group: dict[str, Any]) -> Method:
    names = ("betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay", "maximize")
    return catalogue.NAdam(**_shared(group, *names))


def _rmsprop(group: dict[str, Any]) -> Method:
    if group["momentum"]:
        raise NotRecognised("RMSprop with momentum averages g / sqrt(v), a memory of a memory, which has no momentum form")
    return catalogue.RMSprop(**_shared(group, "alpha", "eps", "weight_decay", "centered", "maximize"))


def _shared(group: dict[str, Any], *names: str) -> dict[str, Any]:
    plain = {name: group[name] for name in ("lr", *names)}
    return {k: float(v) if isinstance(v, Tensor) else v for k, v in plain.items()}


_RECOGNISED: dict[type[Optimizer], Callable[[dict[str, Any]], Method]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    NAdam: _nadam,
    RMSprop: _rmsprop,
    MethodOptimizer: lambda group: group["method"].at_lr(float(group["lr"])),
}


def method_of(optimizer: Optimizer, layout: Layout | None = None) -> AnyOptimizer:
    """The method that a live optimizer is, with its present hyperparameters and empty memory; it is left alone.

    Args:
        optimizer: torch's SGD (momentum, Nesterov, dampening), Adam, AdamW, NAdam or RMSprop, with any param groups, is
            recognised; any other is run as it is.
        layout: of theta (`loss.layout`); without it theta is the optimizer's parameters in their order.

    Returns:
        A `Method`, `Groups` of them where param groups differ or leave out part of theta, or a `TorchMethod`.

    Raises:
        BadInput: the optimizer does not hold the layout's parameters, or cannot be run as a function of gradient and theta.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> print(method_of(torch.optim.AdamW(model.parameters())))
        adamw(lr=0.001, betas=(0.9, 0.999))
    """
    try:
        return recognised(optimizer, layout)
    except NotRecognised:
        return TorchMethod.of(undialled(optimizer), layout)


def recognised(optimizer: Optimizer, layout: Layout | None = None) -> Method | Groups:
    """The catalogue method that a torch optimizer is; as `method_of`, but nothing else will do.

    Args:
        optimizer: any torch optimizer.
        layout: of theta.

    Raises:
        NotRecognised: another optimizer, or a branch without momentum form (amsgrad, RMSprop with momentum).
        BadInput: the optimizer does not hold the parameters of the layout.
    """
    optimizer = undialled(optimizer)
    recognise = _recognise(optimizer)
    if (acts := acting(optimizer)) is not None:
        raise NotRecognised(f"{type(optimizer).__name__} has {acts}, so its step is not that of its class")
    where, count = _coordinates(optimizer, layout)
    lr = stepsize(optimizer, {id(p) for p in _parameters(optimizer)} if layout is None else layout.used.keys())
    # A group without lr moves nothing, as one without coordinates.
    groups = zip(optimizer.param_groups, where, strict=True)
    parts = [(recognise(group), index) for group, index in groups if len(index) and float(group["lr"]) != 0]
    first = parts[0][0]
    if all((m.name, m.hyper) == (first.name, first.hyper) for m, _ in parts) and sum(len(index) for _, index in parts) == count:
        return first
    return Groups(tuple(Part(m, _index(index), m.lr / lr) for m, index in parts), lr)


def by_group(optimizer: Optimizer, layout: Layout) -> list[tuple[int, tuple[Method, Index]]]:
    """Number, method and coordinates of each param group that has any; an lr of 0, as a warm-up begins with, is put at 1.

    Args:
        optimizer: as for `recognised`, but hooks of its step are allowed: whoever asks looks at what the step really does.
        layout: of theta.

    Raises:
        NotRecognised: as there.
        BadInput: as there.
    """
    where, _ = _coordinates(optimizer, layout)
    found = enumerate(zip(optimizer.param_groups, where, strict=True))
    return [(i, (of_group(optimizer, group), _index(index))) for i, (group, index) in found if len(index)]


def of_group(optimizer: Optimizer, group: dict[str, Any]) -> Method:
    """The method of one param group, as for `by_group`.

    Args:
        optimizer: whose group it is.
        group: its hyperparameters.

    Raises:
        NotRecognised: as for `recognised`.
    """
    return _recognise(optimizer)(group if float(group["lr"]) else group | {"lr": 1.0})


def _recognise(optimizer: Optimizer) -> Callable[[dict[str, Any]], Method]:
    recognise = _RECOGNISED.get(type(optimizer))
    if recognise is None:
        known = ", ".join(cls.__name__ for cls in _RECOGNISED if cls is not MethodOptimizer)
        raise NotRecognised(f"{type(optimizer).__name__} is not recognised; expected one of torch's {known}")
    return recognise


def step_of(optimizer: Optimizer) -> int | None:
    """n, the number of past steps: from the state where torch counts them, 0 before the first, else None (SGD).

    Args:
        optimizer: any torch optimizer.

    Raises:
        BadInput: parameters have taken different numbers of steps.
    """
    states = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]
    steps = {int(s["step"]) for s in states if "step" in s}
    if len(steps) > 1:
        raise BadInput(f"the optimizer's parameters have taken different numbers of steps: {sorted(steps)}")
    if steps:
        return steps.pop()
    # SGD creates its state before it keeps a buffer; others keep their count in the group, or nowhere.
    if any(value is not None for s in states for value in s.values()):
        count = optimizer.param_groups[0].get("step")
        return int(count) if isinstance(count, (int, Tensor)) else None
    return 0


def next_update(optimizer: Optimizer, layout: Layout, gradient: Tensor, given: Mapping[str, Any] = NONE) -> Tensor:
    """What the optimizer does with this gradient, (theta - theta_next) / lr: it steps itself, and is put back.

    It steps twice from the same start: a memory that putting back does not reach shows as another second step.

    Args:
        optimizer: any torch optimizer over parameters of the layout; it, they and the generators of random numbers stay bit
            for bit as they are, with all that hooks and attributes reach.
        layout: the parameters' places in theta; those that are unused get no gradient, as in a run.
        gradient: shape (d,).
        given: to its step, as a dial along mini-batches wants the batch (`wrapped.given`).

    Returns:
        Shape (d,), in units of the lr of `method_of`; 0 where the optimizer moves nothing. The type is that in which the step
        was taken: float64 where a copy in float64 does the same to the parameters' own rounding, so that more digits are known.

    Raises:
        BadInput: step() fails, evaluates the loss elsewhere, or reaches what cannot be put back.
    """
    if getattr(optimizer, "along_batches", False) and not given:
        raise BadInput("this dial's step wants its batch: audit a run, audit_run(dial, loss, index of each step's batch)")
    lr = stepsize(optimizer, layout.used.keys())
    with rewound(optimizer, layout.tensors, layout.device) as rewind:
        update, again = (_step(optimizer, layout, gradient, lr, rewind, given) for _ in range(2))
        if not same_update(update, again, layout.tensors[0].dtype):
            raise BadInput(f"{type(optimizer).__name__} keeps memory outside itself: two looks at its next step differ")
        if layout.tensors[0].dtype == torch.float64 or given:  # gradients taken within the step are of the parameters' type
            return update.to(layout.tensors[0].dtype)
        finer = _in_float64(optimizer, layout, gradient, lr, rewind)
    own = layout.tensors[0].dtype
    # theta_next is rounded to its own type, the arithmetic of a step to a few times that.
    rounding = torch.finfo(own).eps * (norm(layout.theta().double()) / lr + 10 * norm(update))
    return finer if finer is not None and norm(finer - update) <= rounding else update.to(own)


def _step(
    optimizer: Optimizer,
    layout: Layout,
    gradient: Tensor,
    lr: float,
    rewind: Callable[[], object],
    given: Mapping[str, Any],
) -> Tensor:
    """The update of the optimizer itself, in float64, read off and taken back."""
    theta = layout.theta().double()
    with isolated(layout.device):
        for p in _parameters(optimizer):
            part = layout.used.get(id(p))
            # A copy: some steps write into the gradient.
            p.grad = None if part is None else gradient[part].view(p.shape).to(p.dtype, copy=True)
        take_step(optimizer, layout.tensors, **given)
        update = (theta - layout.theta().double()) / lr
    rewind()
    return update


def _in_float64(
    optimizer: Optimizer, layout: Layout, gradient: Tensor, lr: float, rewind: Callable[[], object]
) -> Tensor | None:
    """The update of a copy whose parameters and state are float64; None where a copy cannot step."""
    update = torch.zeros_like(gradient, dtype=torch.float64)
    try:
        with isolated(layout.device):
            twin = copy.deepcopy(optimizer)
            pairs = [(q, part) for p, q in zip(_parameters(optimizer), _parameters(twin), strict=True)
                     if (part := layout.used.get(id(p)))]  # fmt: skip
            for q, part in pairs:
                q.data = q.data.double()
                q.grad = gradient[part].view(q.shape).to(torch.float64, copy=True)
                for key, value in twin.state[q].items():
                    if isinstance(value, Tensor) and value.is_floating_point():
                        twin.state[q][key] = value.double()
            before = [q.detach().clone() for q, _ in pairs]
            twin.step()
            for (q, part), start in zip(pairs, before, strict=True):
                update[part] = ((start - q.detach()) / lr).reshape(-1)
    except Exception:  # whatever it misses: the step of the optimizer itself counts then
        return None
    finally:
        rewind()
    return update


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _coordinates(optimizer: Optimizer, layout: Layout | None) -> tuple[list[Tensor], int]:
    """The coordinates of theta that each param group moves, and d."""
    groups: list[list[Tensor]] = [group["params"] for group in optimizer.param_groups]
    if layout is None:
        sizes = [sum(p.numel() for p in group) for group in groups]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        return [torch.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)], sum(sizes)
    where = layout.used
    held = {id(p) for group in groups for p in group}
    if not held & set(where):
        raise BadInput("the optimizer holds none of the loss's parameters; build both from the same model")
    indices = [
        torch.cat([torch.arange(part.start, part.stop) for p in group if (part := where.get(id(p)))] or [torch.arange(0)])
        for group in groups
    ]
    return indices, layout.d


def _index(index: Tensor) -> Index:
    """A slice where the coordinates are consecutive: a view then, not a copy."""
    start, stop = int(index[0]), int(index[-1]) + 1
    consecutive = len(index) == stop - start and bool((index[1:] > index[:-1]).all())
    return slice(start, stop) if consecutive else index
