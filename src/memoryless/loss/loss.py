"""A loss as a function of the flat parameter vector theta: value, gradient, curvature.

theta has shape (d,) and concatenates the trainable parameters in the order of `model.named_parameters()`; the model reads
views of it. Full batch means the plain average over the batches, L = (1/B) sum_i L_i, whatever their sizes, as in
Section 5.2 of https://arxiv.org/abs/2502.02132. Batches are streamed: memory does not grow with their number.

Evaluating a Loss leaves no trace: parameters, `.grad` fields, buffers and random number generators stay as they were.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memoryless.errors import BadInput, BadType, NotFinite
from memoryless.isolation import isolated
from memoryless.loss import guard
from memoryless.loss.batches import tensors
from memoryless.loss.double_backward import twice_differentiable

Curvature = Callable[[Tensor], Tensor]


Action = Callable[[], Any]


class _Scope(nn.Module):
    """Runs an action with other parameters in a model's place, put there and taken back by `functional_call`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, action: Action) -> Any:
        return action()


class Loss:
    """The loss L(theta) = (1/B) sum_i L_i(theta) of a model on batches, with gradient and Hessian-vector products.

    Args:
        model: any module; its floating-point parameters with `requires_grad` make up theta, frozen ones are left out
            (listed in `frozen`). It is used in the mode (train or eval) it is in.
        criterion: `criterion(model, batch)` returns the mean loss of the batch, a scalar.
        batches: re-iterable; a sequence is indexed, anything else (a DataLoader) is iterated anew for each use.
        curvature: "exact" (reverse over reverse, 2 gradients) or "difference" (one-sided difference of gradients, one
            gradient; relative error about 1e-3 in float32, 1e-7 in float64 where the gradient is smooth; where it has kinks
            (ReLU) the difference also sees those that its step crosses, the exact product does not).

    Attributes:
        names: name of each parameter tensor in theta.
        shapes: shape of each parameter tensor in theta.
        frozen: names of the parameters left out.

    Raises:
        BadType: a parameter is complex, or a batch source is a one-shot iterator.
        BadInput: no batches, no trainable parameters, or a parameter that is not finite.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> data = [(torch.ones(4, 3), torch.zeros(4, 1))]
        >>> loss = Loss(model, lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]), data)
        >>> loss.gradient(loss.theta).shape
        torch.Size([4])
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[nn.Module, Any], Tensor],
        batches: Iterable[Any],
        *,
        curvature: Literal["exact", "difference"] = "exact",
    ):
        trainable: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.model: nn.Module | None = model
        self.frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        scope = _Scope(model)
        buffers = {f"model.{name}": buffer for name, buffer in model.named_buffers()}
        names = [f"model.{name}" for name in trainable]

        def at(tensors: Sequence[Tensor], action: Action) -> Any:
            # Buffers go in as copies: a BatchNorm in training mode updates them in place.
            state = dict(zip(names, tensors, strict=True)) | {name: b.clone() for name, b in buffers.items()}
            return torch.func.functional_call(scope, state, (action,))

        self._setup(lambda tensors, batch: criterion(model, batch), at, trainable, batches, curvature)

    @classmethod
    def of(
        cls,
        functions: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]],
        theta: Tensor,
        *,
        curvature: Literal["exact", "difference"] = "exact",
    ) -> "Loss":
        """The loss of plain functions theta -> scalar, one a batch.

        Args:
            functions: one function, or one per batch; each maps (d,) to a scalar, differentiably.
            theta: the point `loss.theta`, shape (d,), floating point.
            curvature: as for `Loss`.

        Returns:
            A loss without a model.

        Example:
            >>> loss = Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, 2.0]))
            >>> loss.gradient(loss.theta), loss.curvature(loss.theta, torch.ones(2))
            (tensor([1., 8.]), tensor([ 3., 12.]))
        """
        if not isinstance(theta, Tensor) or theta.ndim != 1:
            got = f"shape {tuple(theta.shape)}" if isinstance(theta, Tensor) else type(theta).__name__
            raise BadType(f"Loss.of: theta must be a tensor of shape (d,), got {got}; flatten it with theta.flatten()")
        loss = cls.__new__(cls)
        loss.model, loss.frozen = None, []
        batches = [functions] if callable(functions) else functions
        loss._setup(
            lambda tensors, batch: batch(tensors[0]), lambda tensors, action: action(), {"theta": theta}, batches, curvature
        )
        return loss

    def _setup(
        self,
        function: Callable[[Sequence[Tensor], Any], Tensor],
        at: Callable[[Sequence[Tensor], Action], Any],
        parameters: dict[str, Tensor],
        batches: Iterable[Any],
        curvature: str,
    ) -> None:
        for name, p in parameters.items():
            if not p.is_floating_point():
                raise BadType(f"parameter '{name}' is {p.dtype}; expected a real floating-point parameter")
        if not parameters:
            raise BadInput("the model has no trainable parameters (requires_grad is False for all): nothing to audit")
        if len({p.dtype for p in parameters.values()}) > 1 or len({p.device for p in parameters.values()}) > 1:
            kinds = sorted({f"{p.dtype} on {p.device}" for p in parameters.values()})
            raise BadType(f"all parameters must share one dtype and device, got {', '.join(kinds)}")
        if curvature not in ("exact", "difference"):
            raise BadInput(f"curvature must be 'exact' or 'difference', got {curvature!r}")
        self._function, self._at = function, at
        self._parameters = list(parameters.values())
        self._differences = curvature == "difference"
        self._guarded = self._differences
        self.names = list(parameters)
        self.shapes = [p.shape for p in self._parameters]
        self._sizes = [p.numel() for p in self._parameters]
        sources = batches, getattr(batches, "sampler", None)
        candidates = (getattr(source, "generator", None) for source in sources)
        self._generators = [g for g in candidates if isinstance(g, torch.Generator)]
        self._batches, self._count = _reiterable(batches, self.device, self._generators)
        self._require_finite(self.theta, "parameter")

    @property
    def theta(self) -> Tensor:
        """The current parameters as a new flat vector of shape (d,)."""
        return torch.cat([p.detach().reshape(-1) for p in self._parameters])

    @property
    def parameters(self) -> list[Tensor]:
        """The live parameter tensors, in the order of theta."""
        return self._parameters

    @property
    def uses_differences(self) -> bool:
        """Whether curvature comes from differences of gradients, by choice or because the guard found it wrong."""
        return self._differences

    @property
    def device(self) -> torch.device:
        """Where theta lives."""
        return self._parameters[0].device

    @property
    def slices(self) -> dict[str, slice]:
        """Where each named parameter lies in theta."""
        ends = list(itertools.accumulate(self._sizes))
        return {name: slice(end - size, end) for name, size, end in zip(self.names, self._sizes, ends, strict=True)}

    def __len__(self) -> int:
        """Number of batches."""
        return self._count

    @property
    def sizes(self) -> list[int] | None:
        """Samples in each batch: the length of its first tensor; None where a batch holds no tensor."""
        firsts = [tensors(data)[:1] for _, data in self._select(None)]
        return [len(first) for (first,) in firsts] if all(first and first[0].ndim for first in firsts) else None

    def require_replayable(self) -> None:
        """Raise unless a batch asked for again is the same batch.

        Raises:
            BadInput: it is another; says what to do.
        """
        for i in (0, len(self) - 1):
            (_, one), (_, other) = (next(self._select(i)) for _ in range(2))
            if not all(torch.equal(x, y) for x, y in zip(tensors(one), tensors(other), strict=True)):
                raise BadInput(
                    f"batch {i} is another each time it is asked for: such a sampler cannot be replayed; pass a list of "
                    "batches, or a DataLoader whose sampler draws from torch's generators"
                )

    def __call__(self, theta: Tensor, batch: int | None = None) -> Tensor:
        """L(theta), differentiable; of one batch if its index is given.

        Args:
            theta: shape (d,).
            batch: index of a batch; None means the average over all.

        Returns:
            A scalar tensor in the units of the criterion.
        """
        tensors = self._views(theta)
        values = [self._at(tensors, lambda d=data, i=i: self._value(tensors, d, i)) for i, data in self._select(batch)]
        return torch.stack(values).mean()

    def gradient(self, theta: Tensor, batch: int | None = None) -> Tensor:
        """grad L(theta), shape (d,); of one batch if its index is given.

        Args:
            theta: shape (d,).
            batch: index of a batch; None means the average over all.

        Returns:
            Shape (d,), detached.

        Raises:
            NotFinite: loss or gradient is infinite or NaN; says where first.
        BadInput: the loss does not depend on the parameters.
        """
        return self._average(batch, lambda data, i: self._gradient(theta, data, i))

    def curvature(self, theta: Tensor, v: Tensor, batch: int | None = None) -> Tensor:
        """The Hessian-vector product H(theta) v, shape (d,); of one batch if its index is given.

        The first use checks the second derivative (see `loss.guard`) and falls back to differences of gradients,
        with a warning that names the module, if it is wrong or missing.

        Args:
            theta: shape (d,).
            v: shape (d,).
            batch: index of a batch; None means the average over all.

        Returns:
            Shape (d,), detached.

        Raises:
            BadInput: the loss is not a deterministic function of theta (dropout, say), or not finite.
        """
        self._guard(theta)
        if self._differences:
            return self._difference(theta, v, batch)
        return self._average(batch, lambda data, i: self._linearize(theta, data, i)[1](v, False))

    def linearize(self, theta: Tensor, batch: int | None = None, products: int | None = None) -> tuple[Tensor, Curvature]:
        """grad L(theta) and the map v -> H(theta) v, sharing one forward pass when there is a single batch.

        Args:
            theta: shape (d,).
            batch: index of a batch; None means the average over all.
            products: how many will be asked for, if that is known: the last one then frees the graph as it goes.

        Returns:
            The gradient, shape (d,), and a function from (d,) to (d,). One gradient and one product cost about 3
            gradients; the graph is kept for as long as the function is.
        """
        self._guard(theta)
        if self._differences or (batch is None and len(self) > 1):
            gradient = self.gradient(theta, batch)
            if self._differences:
                return gradient, lambda v: self._difference(theta, v, batch, gradient)
            return gradient, lambda v: self.curvature(theta, v, batch)
        (index, data), *_ = self._select(batch)
        gradient, product = self._linearize(theta, data, index)
        asked = itertools.count(1)
        return gradient, lambda v: product(v, next(asked) != products)

    def _select(self, batch: int | None) -> Iterator[tuple[int, Any]]:
        if batch is None and isinstance(self._batches, (list, tuple)):
            yield from enumerate(self._batches)
            return
        if batch is None:
            # A DataLoader draws its seeds from the global generator, at the first batch at the latest.
            with isolated(self.device, generators=self._generators):
                iterator = iter(self._batches)
            for i in range(len(self)):
                with isolated(self.device, generators=self._generators):
                    data = next(iterator)
                yield i, data
            return
        if not 0 <= batch < len(self):
            raise BadInput(f"batch must be in 0..{len(self) - 1}, got {batch}")
        if isinstance(self._batches, Sequence):
            yield batch, self._batches[batch]
        else:
            with isolated(self.device, generators=self._generators):
                data = next(itertools.islice(iter(self._batches), batch, None))
            yield batch, data

    def _average(self, batch: int | None, term: Callable[[Any, int], Tensor]) -> Tensor:
        total, count = None, 0
        for i, data in self._select(batch):
            value = term(data, i)
            total = value if total is None else total.add_(value)
            count += 1
        assert total is not None
        return total if count == 1 else total.div_(count)

    def _views(self, theta: Tensor) -> list[Tensor]:
        if theta.shape != (sum(self._sizes),):
            raise BadInput(f"theta must have shape ({sum(self._sizes)},), got {tuple(theta.shape)}")
        return [part.view(shape) for part, shape in zip(theta.split(self._sizes), self.shapes, strict=True)]

    def _value(self, tensors: Sequence[Tensor], data: Any, index: int) -> Tensor:
        with isolated(self.device):
            value = self._function(tensors, data)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise BadType(f"criterion must return a scalar tensor, got {got}; take the mean over the batch")
        if not torch.isfinite(value):
            self._require_finite(torch.cat([t.detach().reshape(-1) for t in tensors]), "parameter")
            raise NotFinite(f"the loss is {value.item()} on batch {index}; lower the learning rate or check the data")
        return value.reshape(())

    def _leaves(self, theta: Tensor) -> list[Tensor]:
        return [view.requires_grad_() for view in self._views(theta.detach())]

    def _backward(self, theta: Tensor, data: Any, index: int, create_graph: bool) -> tuple[list[Tensor], list[Tensor]]:
        leaves = self._leaves(theta)

        def differentiate() -> tuple[Tensor | None, ...]:
            value = self._value(leaves, data, index)
            if not value.requires_grad:
                raise BadInput("the loss does not depend on the parameters: criterion returned a tensor without a graph")
            return torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)

        with torch.enable_grad():
            # The backward pass in the scope too: a model with checkpointing runs its forward pass again in it.
            grads = self._at(leaves, differentiate)
        if sparse := next((n for n, g in zip(self.names, grads, strict=True) if g is not None and g.is_sparse), None):
            raise BadType(f"the gradient of '{sparse}' is sparse; expected dense, use Embedding(sparse=False)")
        return leaves, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]

    def _gradient(self, theta: Tensor, data: Any, index: int) -> Tensor:
        _, grads = self._backward(theta, data, index, create_graph=False)
        gradient = torch.cat([g.reshape(-1) for g in grads])
        self._require_finite(gradient, f"on batch {index} the gradient of")
        return gradient

    def _linearize(self, theta: Tensor, data: Any, index: int) -> tuple[Tensor, Callable[[Tensor, bool], Tensor]]:
        with twice_differentiable():
            leaves, grads = self._backward(theta, data, index, create_graph=True)
        gradient = torch.cat([g.detach().reshape(-1) for g in grads])
        self._require_finite(gradient, f"on batch {index} the gradient of")

        # grads[j] without a graph is linear in nothing: its parameter enters the gradient as a constant.
        dependent = [j for j, g in enumerate(grads) if g.requires_grad]

        def product(v: Tensor, keep: bool) -> Tensor:
            seeds = self._views(v)
            if not dependent:
                return torch.zeros_like(v)
            parts = self._at(
                leaves,
                lambda: torch.autograd.grad(
                    [grads[j] for j in dependent],
                    leaves,
                    [seeds[j] for j in dependent],
                    retain_graph=keep,
                    allow_unused=True,
                    materialize_grads=True,
                ),
            )
            return torch.cat([part.reshape(-1) for part in parts])

        return gradient, product

    def _difference(self, theta: Tensor, v: Tensor, batch: int | None, gradient: Tensor | None = None) -> Tensor:
        norm = v.norm()
        if norm == 0:
            return torch.zeros_like(v)
        if gradient is None:
            gradient = self.gradient(theta, batch)
        # Truncation grows with the step, rounding with its inverse; both relative to |theta| they balance at sqrt(eps).
        step = float(torch.finfo(theta.dtype).eps ** 0.5 * (1 + theta.norm()) / norm)
        return self.gradient(theta.add(v, alpha=step), batch).sub_(gradient).div_(step)

    def _guard(self, theta: Tensor) -> None:
        if self._guarded:
            return
        self._guarded = True
        (index, data), *_ = self._select(0)
        views = self._views(theta.detach())
        self._differences = guard.needs_differences(
            gradient=lambda x: self._gradient(x, data, index),
            curvature=lambda x, v: self._linearize(x, data, index)[1](v, False),
            theta=theta.detach(),
            slices=self.slices,
            model=self.model,
            evaluate=lambda: self._at(views, lambda: self._value(views, data, index)),
        )

    def _require_finite(self, vector: Tensor, what: str) -> None:
        # One pass: a sum is finite only if all terms are, but for overflow, which the second look rules out.
        if torch.isfinite(vector.sum()) or torch.isfinite(vector).all():
            return
        first = int((~torch.isfinite(vector)).nonzero()[0])
        for name, part in self.slices.items():
            if part.start <= first < part.stop:
                raise NotFinite(f"{what} '{name}' is {vector[first].item()} first at flat index {first - part.start}")


def _reiterable(batches: Iterable[Any], device: torch.device, generators: list[torch.Generator]) -> tuple[Iterable[Any], int]:
    """Check that batches can be iterated again and again; return them with their number."""
    advice = "pass a list or a DataLoader"
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
        raise BadType(f"batches must be re-iterable, got {type(batches).__name__}; {advice}")
    with isolated(device, generators=generators):
        if iter(batches) is batches:
            raise BadType(f"batches must be re-iterable, got a one-shot {type(batches).__name__}; {advice}")
        count = len(batches) if isinstance(batches, Sequence) else sum(1 for _ in batches)
    if count == 0:
        raise BadInput(f"batches is empty; expected at least one batch, {advice}")
    return batches, count
