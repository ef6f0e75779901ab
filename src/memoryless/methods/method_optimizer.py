"""A method as a live torch optimizer, for those that torch does not have: Lion, Signum, a `Method` of one's own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from memoryless.flat import flat
from memoryless.methods.method import Method, State


class MethodOptimizer(Optimizer):
    """Steps theta <- theta - lr F by a method's own `update`, theta being all parameters end to end.

    Args:
        parameters: to move, all of them with gradients at each step.
        method: its lr is that of the param group, where it may be changed.
    """

    def __init__(self, parameters: Iterable[Tensor], method: Method):
        super().__init__(parameters, {"lr": method.lr, "method": method})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step.

        Args:
            closure: evaluates the loss and its gradients anew, if given.

        Returns:
            What the closure returns.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            tensors, method = group["params"], group["method"]
            theta, gradient = flat(tensors), flat(p.grad for p in tensors)
            memory = self.state[tensors[0]]
            before = State(memory["step"], memory["sums"]) if memory else method.init(theta)
            after, F = method.update(before, gradient, theta)
            memory.update(step=after.n, sums=after.sums)
            for p, part in zip(tensors, F.split([p.numel() for p in tensors]), strict=True):
                p.sub_(group["lr"] * part.view_as(p))
        return value
