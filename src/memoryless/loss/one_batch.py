"""L of one batch at one theta: its value, gradient and Hessian-vector product, and what is wrong with them, if anything is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from memoryless.errors import BadInput, BadType, NotFinite
from memoryless.flat import Layout, flat, total
from memoryless.isolation import Standing, isolated
from memoryless.loss.double_backward import twice_differentiable
from memoryless.loss.scope import Action, loss_in

Function = Callable[[Sequence[Tensor], Any], Any]
"""(parameters, batch data) -> L of that batch, or an output that holds it."""
At = Callable[[Sequence[Tensor], Action], Any]
"""Runs an action with other parameters in the model's place."""


class OneBatch:
    """The loss of one batch as a function of theta.

    Args:
        layout: of theta.
        function: what is evaluated.
        at: where.
        noise: None where L draws nothing; else each batch draws from its index as a seed.

    Attributes:
        unreached: names of the parameters that have had no gradient so far.
    """

    def __init__(self, layout: Layout, function: Function, at: At, noise: Literal["fixed"] | int | None):
        self.layout, self.function, self.at, self.noise = layout, function, at, noise
        self.unreached = set(layout.names)

    def plain_value(self, theta: Tensor, data: Any) -> Tensor:
        """L without checks, for torch.func's transforms; shape ().

        Args:
            theta: shape (d,).
            data: of the batch.
        """
        tensors = self.layout.views(theta)
        return loss_in(self.at(tensors, lambda: self.function(tensors, data))).reshape(())

    def value(self, tensors: Sequence[Tensor], data: Any, index: int, noise: Standing | None = None) -> Tensor:
        """L, shape (), within `at`.

        Args:
            tensors: the parameters.
            data: of the batch.
            index: of the batch.
            noise: where the generators stand; default the seed of the batch, if it has one.
        """
        with isolated(self.layout.device, noise or (None if self.noise is None else index)):
            return self.scalar(self.function(tensors, data), tensors, index)

    def scalar(self, value: Any, tensors: Sequence[Tensor], index: int) -> Tensor:
        """What a criterion returned, shape (), if it can be a loss.

        Args:
            value: what it returned.
            tensors: the parameters.
            index: of the batch.

        Raises:
            BadType: it is no scalar.
            NotFinite: it is infinite or NaN.
            BadInput: it does not depend on the parameters.
        """
        value = loss_in(value)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise BadType(f"criterion must return a scalar tensor, got {got}; take the mean over the batch")
        if not torch.isfinite(value):
            self.require_finite(flat(t.detach() for t in tensors), "parameter")
            raise NotFinite(f"the loss is {value.item()} on batch {index}; lower the learning rate or check the data")
        if torch.is_grad_enabled() and not value.requires_grad and any(t.requires_grad for t in tensors):
            raise BadInput("the loss does not depend on the parameters: criterion returned a tensor without a graph")
        return value.reshape(())

    def backward(
        self, theta: Tensor, data: Any, index: int, create_graph: bool, noise: Standing | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters as leaves, and the gradient of each, 0 where there is none.

        Args:
            theta: shape (d,).
            data: of the batch.
            index: of the batch.
            create_graph: whether the gradients will be differentiated.
            noise: as in `value`.
        """
        leaves = [view.requires_grad_() for view in self.layout.views(theta.detach())]

        def differentiate() -> tuple[Tensor | None, ...]:
            value = self.value(leaves, data, index, noise)
            return torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)

        with torch.enable_grad():
            # The backward pass in the scope too: a model with checkpointing runs its forward pass again in it.
            grads = self.at(leaves, differentiate)
        self.require_dense(grads)
        self.unreached -= {n for n, g in zip(self.layout.names, grads, strict=True) if g is not None}
        return leaves, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]

    def gradient(self, theta: Tensor, data: Any, index: int, noise: Standing | None = None) -> Tensor:
        """grad L, shape (d,), detached.

        Args:
            theta: shape (d,).
            data: of the batch.
            index: of the batch.
            noise: as in `value`.

        Raises:
            NotFinite: it is infinite or NaN somewhere.
        """
        _, grads = self.backward(theta, data, index, False, noise)
        gradient = flat(grads)
        self.require_finite(gradient, f"on batch {index} the gradient of")
        return gradient

    def linearize(self, theta: Tensor, data: Any, index: int) -> tuple[Tensor, Callable[[Tensor, bool], Tensor]]:
        """grad L, shape (d,), and (v, keep the graph) -> H v, of v of shape (d,), or of rows of several v.

        Args:
            theta: shape (d,).
            data: of the batch.
            index: of the batch.

        Raises:
            NotFinite: the gradient is infinite or NaN somewhere.
        """
        with twice_differentiable():
            leaves, grads = self.backward(theta, data, index, create_graph=True)
        gradient = flat(g.detach() for g in grads)
        self.require_finite(gradient, f"on batch {index} the gradient of")

        # grads[j] without a graph is linear in nothing: its parameter enters the gradient as a constant.
        dependent = [j for j, g in enumerate(grads) if g.requires_grad]

        def product(v: Tensor, keep: bool) -> Tensor:
            many = v.shape[:-1]  # rows of several v
            if many:
                pieces = v.split([x.numel() for x in leaves], -1)
                seeds = [piece.view(*many, *x.shape) for piece, x in zip(pieces, leaves, strict=True)]
            else:
                seeds = self.layout.views(v)
            if not dependent:
                return torch.zeros_like(v)
            with twice_differentiable():  # a checkpoint runs its forward pass again, as it was
                parts = self.at(
                    leaves,
                    lambda: torch.autograd.grad(
                        [grads[j] for j in dependent],
                        leaves,
                        [seeds[j] for j in dependent],
                        retain_graph=keep,
                        allow_unused=True,
                        materialize_grads=True,
                        is_grads_batched=bool(many),
                    ),
                )
            if not many:
                return flat(parts)
            # What no gradient depends on comes without rows.
            rows = [part.expand(*many, *x.shape).reshape(*many, -1) for part, x in zip(parts, leaves, strict=True)]
            return torch.cat(rows, -1)

        return gradient, product

    def require_dense(self, grads: Sequence[Tensor | None]) -> None:
        """Raise `BadType` where a gradient is sparse.

        Args:
            grads: of each parameter.
        """
        named = zip(self.layout.names, grads, strict=True)
        if sparse := next((n for n, g in named if g is not None and g.is_sparse), None):
            raise BadType(f"the gradient of '{sparse}' is sparse; expected dense, use Embedding(sparse=False)")

    def require_finite(self, vector: Tensor, what: str) -> None:
        """Raise `NotFinite` where a vector is not; it says where first.

        Args:
            vector: shape (d,).
            what: it is, in words before the parameter's name.
        """
        # One pass: a sum is finite only if all terms are, but for overflow, which the second look rules out.
        if torch.isfinite(total(vector)) or torch.isfinite(vector).all():
            return
        first = int((~torch.isfinite(vector)).nonzero()[0])
        for name, part in self.layout.slices.items():
            if part.start <= first < part.stop:
                raise NotFinite(f"{what} '{name}' is {vector[first].item()} first at flat index {first - part.start}")


def require_parameters(parameters: Mapping[str, Tensor]) -> None:
    """Raise where parameters cannot make up one real vector.

    Args:
        parameters: by name.

    Raises:
        BadType: one is complex, of half precision, or of another dtype or device than the others.
        BadInput: there are none, or they hold no numbers.
    """
    for name, p in parameters.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise BadType(f"parameter '{name}' is {p.dtype}; expected a real one, float32 or float64: {_advice(p.dtype)}")
    if not parameters:
        raise BadInput("the model has no trainable parameters (requires_grad is False for all): nothing to audit")
    if len({p.dtype for p in parameters.values()}) > 1 or len({p.device for p in parameters.values()}) > 1:
        kinds = sorted({f"{p.dtype} on {p.device}" for p in parameters.values()})
        raise BadType(f"all parameters must share one dtype and device, got {', '.join(kinds)}")
    if next(iter(parameters.values())).is_meta:
        raise BadInput("the parameters are on the meta device, which holds no numbers; build the model on cpu or cuda")


def _advice(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "hold it as torch.view_as_real(w) and compute with torch.view_as_complex"
    if dtype.is_floating_point:
        return "rounding to so few digits hides what memory does; audit model.float() on batches in float32"
    return "freeze it with requires_grad_(False)"
