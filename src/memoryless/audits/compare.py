"""The same loss under several optimizers: each along its own full-batch run, audited where it arrives.

A run is theta[n+1] = theta[n] - lr F[n] by the optimizer's own `update`, from the same start; the measured effect is the update
it makes next, less the frozen one, as in `audits.audit`.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from memoryless.audits.audit import Audit, inspect
from memoryless.errors import BadInput, NotFinite
from memoryless.loss.loss import Loss
from memoryless.loss.measures import MEASURES, Differentiable, evaluate
from memoryless.methods.black_box.torch_method import AnyOptimizer, TorchMethod
from memoryless.methods.named import call, parse_method


@dataclass(frozen=True)
class Compared:
    """One optimizer of a comparison.

    Attributes:
        name: as the user gave it.
        audit: at the end of its run; None if it did not get there.
        reason: why not.
    """

    name: str
    audit: Audit | None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "reason": self.reason, "audit": self.audit.as_dict() if self.audit else None}


def compare(
    methods: Mapping[str, AnyOptimizer | Exception],
    loss: Loss,
    steps: int = 100,
    measures: Sequence[str | Differentiable] = tuple(MEASURES),
    on_step: Callable[[str, int], None] = lambda name, step: None,
) -> list[Compared]:
    """Run each optimizer from loss.theta and audit it after the last step.

    Args:
        methods: by name; an exception in a method's place becomes the reason of its row.
        loss: full batch.
        steps: how many to take.
        measures: names in `MEASURES`, or differentiable functions theta -> scalar.
        on_step: called with the name and the number of steps taken, for progress.

    Returns:
        One row per method, in their order; what cannot be run or differentiated has the reason in its row.

    Raises:
        BadInput: no steps, or no methods.

    Example:
        >>> import torch
        >>> from memoryless.methods.catalogue import Adam, HeavyBall
        >>> loss = Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> rows = compare({"adam": Adam(), "heavy_ball": HeavyBall()}, loss, steps=10, measures=["gradient_norm_squared"])
        >>> [row.audit.effects[0].word for row in rows]
        ['neutral', 'regularizes']
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise BadInput(f"steps must be an integer >= 1, got {steps!r}")
    if not methods:
        raise BadInput("expected at least one optimizer to compare, got none")
    return [_compared(name, method, loss, steps, measures, on_step) for name, method in methods.items()]


def _compared(
    name: str,
    method: AnyOptimizer | Exception,
    loss: Loss,
    steps: int,
    measures: Sequence[str | Differentiable],
    on_step: Callable[[str, int], None],
) -> Compared:
    if isinstance(method, Exception):
        return Compared(name, None, str(method))
    theta, state = loss.theta, None
    try:
        state: Any = method.init(theta)
        for n in range(steps):
            state, F = method.update(state, loss.gradient(theta), theta)
            theta = theta - method.lr * F.to(theta.dtype)
            on_step(name, n + 1)
        linearization = loss.linearize(theta)
        live = _next(method, state, linearization[0], theta)
        values = evaluate(measures, loss, theta, *linearization)
        return Compared(name, inspect(method, loss, linearization, theta, steps, values, live))
    except NotFinite as error:
        return Compared(name, None, f"diverged: {error}")
    except ValueError as error:
        return Compared(name, None, str(error))


def _next(method: AnyOptimizer, state: Any, gradient: Tensor, theta: Tensor) -> Tensor:
    """The update that the live optimizer makes next, in float64."""
    return method.update(state, gradient, theta)[1].double()


def optimizer_class(path: str) -> Callable[..., Optimizer]:
    """A torch optimizer's class.

    Args:
        path: such as "torch.optim.Muon".

    Raises:
        BadInput: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"{path}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise BadInput(f"{path} is no class of torch optimizers")
    return kind


def parse(text: str, loss: Loss, lr: float | None) -> AnyOptimizer:
    """An optimizer by its description: a catalogue method, or a torch optimizer's class by its path.

    Args:
        text: "lion", "adamw(betas=(0.9, 0.95))", "torch.optim.Muon(lr=1e-3)".
        loss: gives a black box the shapes of its parameters; one that takes matrices only gets those.
        lr: unless the description says its own; None is the class's default, 1e-3 for the catalogue.

    Raises:
        BadInput: unknown, or it refuses its arguments or parameters.
    """
    if "." not in text.partition("(")[0]:
        return parse_method(text, lr or 1e-3)
    path, options = call(text)
    make = optimizer_class(path)
    hyper: dict[str, Any] = ({} if lr is None else {"lr": lr}) | options
    try:
        return TorchMethod(lambda parameters: make(parameters, **hyper), loss.shapes)
    except ValueError as refused:
        matrices = any(len(shape) == 2 for shape in loss.shapes) and any(len(shape) != 2 for shape in loss.shapes)
        if not matrices:
            raise
        try:
            return TorchMethod(lambda parameters: make([p for p in parameters if p.ndim == 2], **hyper), loss.shapes)
        except ValueError:
            raise refused from None
