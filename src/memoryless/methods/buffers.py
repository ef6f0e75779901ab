"""The memory of a live torch optimizer in momentum form: its buffers as the sums that a method keeps.

torch's buffers are averages, (1 - beta) sum_k beta^k g_l, or the sum itself (SGD); a method's state is sum_k beta^k g_l.
"""

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from memoryless.errors import BadInput, NotRecognised
from memoryless.flat import Layout
from memoryless.methods.live_optimizer import recognised
from memoryless.methods.method import Groups, Index, Method, Momentum, Part, State
from memoryless.methods.method_optimizer import MethodOptimizer
from memoryless.methods.wrapped import undialled

_ADAM = {1: "exp_avg", 2: "exp_avg_sq"}
_NAMES: dict[type[Optimizer], dict[int, str]] = {
    SGD: {1: "momentum_buffer"},
    Adam: _ADAM,
    AdamW: _ADAM,
    NAdam: _ADAM,
    RMSprop: {1: "grad_avg", 2: "square_avg"},
}


def names_of(optimizer: Optimizer) -> dict[int, str]:
    """Where an optimizer keeps the memory of g_l, by its degree in the gradient; nowhere if it is none of torch's.

    Args:
        optimizer: any.
    """
    return _NAMES.get(type(optimizer), {})


def states_of(optimizer: Optimizer, layout: Layout) -> tuple[Method | Groups, tuple[State, ...]]:
    """A live optimizer in momentum form with its memory filled, one state for each of the method's parts; it is left alone.

    Args:
        optimizer: torch's SGD, Adam, AdamW, NAdam or RMSprop, or a `MethodOptimizer`.
        layout: of theta.

    Returns:
        The method, and the memory of each of its parts, of the shape of the part's coordinates: what `update` of each does
        next, the optimizer does. Of steps that are not counted (SGD) there is n = 1, if there were any.

    Raises:
        BadInput: some of its tensors have no memory yet, others have.
        NotRecognised: another optimizer, or a branch without momentum form; says that its buffers cannot be read.

    Example:
        >>> import memoryless as ml
        >>> theta = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> loss = ml.Loss.of(lambda theta: (theta**2).sum() / 2, theta)
        >>> optimizer = torch.optim.Adam([theta], betas=(0.5, 0.5))
        >>> theta.grad = loss.gradient(loss.theta)
        >>> optimizer.step()
        >>> method, (state,) = states_of(optimizer, loss.layout)
        >>> state.n, state.sums
        (1, (tensor([ 1., -2.]), tensor([1., 4.])))
    """
    optimizer = undialled(optimizer)
    try:
        method = recognised(optimizer, layout)
    except NotRecognised as error:
        raise NotRecognised(
            f"the buffers of {type(optimizer).__name__} cannot be read as averages of g and g^2: {error}"
        ) from None
    if isinstance(optimizer, MethodOptimizer):
        return method, tuple(_own(optimizer, layout, part) for part in method.parts)
    names, averaged = names_of(optimizer), not isinstance(optimizer, SGD)
    kept = any(value is not None for state in optimizer.state.values() for value in state.values())
    n = max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=int(kept))
    held = [p for group in optimizer.param_groups for p in group["params"] if id(p) in layout.used]
    if kept and (late := [p for p in held if not optimizer.state.get(p)]):
        raise BadInput(
            f"{len(late)} of the {len(held)} tensors that {type(optimizer).__name__} holds have no memory yet, as after "
            "unfreezing a layer: theirs has another age than that of the others; map it before, or drop its state and train on"
        )
    buffers = {name: _gathered(optimizer, layout, name) for name in names.values()}

    def sum_of(variable: Momentum, index: Index) -> Tensor:
        if not variable.has_memory:
            return torch.zeros_like(layout.theta()[index])
        buffer = buffers[names[variable.degree or 0]][index]
        # SGD damps every gradient but its first, which the method counts as `first` of a damped one.
        return buffer / (1 - variable.beta) if averaged else buffer * variable.first

    return method, tuple(State(n, tuple(sum_of(v, part.index) for v in part.method.variables)) for part in method.parts)


def _gathered(optimizer: Optimizer, layout: Layout, name: str) -> Tensor:
    """A buffer of every tensor in its place in theta; 0 where there is none."""
    found = torch.zeros_like(layout.theta())
    for group in optimizer.param_groups:
        for p in group["params"]:
            buffer = optimizer.state.get(p, {}).get(name)
            if buffer is not None and id(p) in layout.used:
                found[layout.used[id(p)]] = buffer.reshape(-1).to(found)
    return found


def _own(optimizer: MethodOptimizer, layout: Layout, part: Part) -> State:
    """The state that a `MethodOptimizer` keeps of a group, in the order of theta."""
    theta, n = layout.theta(), 0
    sums = [torch.zeros_like(theta) for _ in part.method.variables]
    for group in optimizer.param_groups:
        tensors = group["params"]
        memory = optimizer.state.get(tensors[0])
        if not memory or group["method"].variables != part.method.variables:
            continue
        n = memory["step"]
        for whole, own in zip(sums, memory["sums"], strict=True):
            for p, piece in zip(tensors, own.split([p.numel() for p in tensors]), strict=True):
                if id(p) in layout.used:
                    whole[layout.used[id(p)]] = piece.to(whole)
    return State(n, tuple(whole[part.index] for whole in sums))
