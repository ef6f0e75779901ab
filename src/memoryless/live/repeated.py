"""F[n] of an optimizer without a formula, by its own steps: n + 1 from empty memory, the gradient and theta the present ones.

Each has the hyperparameters of its own time. It is exact, and affordable for as long as n + 1 elementwise steps are little
beside a gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.flat import Layout
from memoryless.isolation import isolated
from memoryless.live.transport import Memory
from memoryless.methods.black_box.torch_method import TorchMethod

TRIED = 3
"""Steps in which it shows whether coordinates act on each other."""
TOUCHED = 1e-9
"""Relative change of a coordinate's update by the gradients of others that is more than rounding."""


class Repeated:
    """A black box and its frozen updates.

    Args:
        optimizer: live, without steps behind it; left alone.

    Attributes:
        past: steps from which on hyperparameters were what they were, by group.

    Raises:
        BadInput: its coordinates act on each other, or it cannot be run as a function of gradient and theta.
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        tensors = [p for group in optimizer.param_groups for p in group["params"]]
        self._layout = Layout({str(i): p for i, p in enumerate(tensors)})
        self._method = TorchMethod.of(optimizer, self._layout)
        self.past: list[tuple[int, list[dict[str, Any]]]] = []
        require_elementwise(self._method)

    def note(self, n: int) -> None:
        """What the hyperparameters are at step n; asked at every step.

        Args:
            n: steps taken before.

        Raises:
            BadInput: those of earlier steps are not known.
        """
        hyper = _hyper(self._optimizer)
        if n and not self.past:
            raise BadInput("without a formula F[n] needs the hyperparameters of all steps: dial it before its first one")
        if not self.past or hyper != self.past[-1][1]:
            self.past.append((n, hyper))

    def displacements(self, memories: Sequence[Memory], gradients: Sequence[Tensor]) -> list[Tensor]:
        """lr F[n](theta) of each memory's tensors.

        Args:
            memories: of the tensors that step.
            gradients: theirs, each shape (coordinates,).

        Raises:
            BadInput: tensors have different n, or came later than the others.
        """
        if len({memory.n for memory in memories}) > 1 or any(
            id(p) not in self._layout.used for m in memories for p in m.tensors
        ):
            raise BadInput("parameters came later than others, and without a formula F[n] needs one n for all")
        theta = self._layout.theta()
        gradient, own = torch.zeros_like(theta), [[self._layout.used[id(p)] for p in memory.tensors] for memory in memories]
        for memory, g, where in zip(memories, gradients, own, strict=True):
            assert memory.before is not None
            sizes = [p.numel() for p in memory.tensors]
            for at, x, y in zip(where, memory.before.split(sizes), g.split(sizes), strict=True):
                theta[at], gradient[at] = x, y
        F = theta
        with isolated(theta.device):
            twin, moves = self._method.twin(theta), dict(self.past)
            for k in range(memories[0].n + 1):
                for group, hyper in zip(twin.optimizer.param_groups, moves.get(k, ()), strict=False):
                    group.update(hyper)
                F = self._method.displacement(twin, gradient, theta)
        F = (self._method.lr * F).to(theta)
        return [torch.cat([F[at] for at in where]) for where in own]


def require_elementwise(method: TorchMethod) -> None:
    """Raise where the gradient of one coordinate moves another.

    Args:
        method: to try, on random vectors of its shapes.

    Raises:
        BadInput: it does.
    """
    generator = torch.Generator().manual_seed(0)
    theta, *gradients = torch.randn(1 + TRIED, method.d, generator=generator, dtype=torch.float64)
    odd = torch.arange(method.d) % 2 == 1
    others = [torch.where(odd, 3 * g.flip(0), g) for g in gradients]

    def last(stream: list[Tensor]) -> Tensor:
        with isolated(theta.device, 0):
            twin = method.twin(theta)
            return torch.stack([method.displacement(twin, g, theta) for g in stream])[:, ~odd]

    one, two = last(gradients), last(others)
    if float((one - two).abs().max()) > TOUCHED * float(one.abs().max()):
        raise BadInput(
            f"{method} moves a coordinate by the gradients of others, so its memory cannot be dialled: expected one that "
            "acts on each coordinate by itself, such as SGD, Adam, RMSprop or Lion"
        )


def _hyper(optimizer: Optimizer) -> list[dict[str, Any]]:
    kinds = (bool, int, float, str, tuple, type(None))
    keys = optimizer.defaults.keys()  # what changes along steps is kept beside these
    return [{k: v for k, v in group.items() if k in keys and isinstance(v, kinds)} for group in optimizer.param_groups]
