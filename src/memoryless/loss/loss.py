"""A loss as a function of the flat parameter vector theta: value, gradient, curvature.

theta has shape (d,) and concatenates the trainable parameters in the order of `model.named_parameters()`; the model reads
views of it. Full batch means the plain average over the batches, L = (1/B) sum_i L_i, whatever their sizes, as in
Section 5.2 of https://arxiv.org/abs/2502.02132. Batches are streamed: memory does not grow with their number.

Evaluating a Loss leaves no trace: parameters, `.grad` fields, buffers and random number generators stay as they were. Only
`backward` is the model's own training pass, with all the traces that one leaves.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memoryless.errors import BadInput, BadType, CurvatureWarning, NotFinite
from memoryless.flat import Layout, block, flat, norm, total
from memoryless.isolation import Standing, draws, isolated
from memoryless.loss import guard
from memoryless.loss.batches import Batches, head
from memoryless.loss.double_backward import twice_differentiable
from memoryless.loss.many_points import ManyPoints
from memoryless.loss.plainly import plainly
from memoryless.loss.scope import Action, Scope, loss_in
from memoryless.render.numbers import some

Curvature = Callable[[Tensor], Tensor]
GROUPED = 1e3
"""Roundings of the gradient by which several batches taken as one may differ from their mean."""
GUARDED = 0.25
"""Share of a batch's samples on which the derivatives are tested."""


def _advice(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "hold it as torch.view_as_real(w) and compute with torch.view_as_complex"
    if dtype.is_floating_point:
        return "rounding to so few digits hides what memory does; audit model.float() on batches in float32"
    return "freeze it with requires_grad_(False)"


class Loss:
    """The loss L(theta) = (1/B) sum_i L_i(theta) of a model on batches, with gradient and Hessian-vector products.

    Args:
        model: any module; its floating-point parameters with `requires_grad` make up theta, frozen ones are left out
            (listed in `frozen`). It is used in the mode (train or eval) it is in.
        criterion: `criterion(model, batch)` returns the mean loss of the batch: a scalar, or an output that holds it as `loss`
            (transformers' ModelOutput, a dictionary) or as the one scalar of a tuple.
        batches: re-iterable; a sequence is indexed, anything else (a DataLoader) is iterated anew for each use.
        curvature: "exact" (reverse over reverse, 2 gradients) or "difference" (one-sided difference of gradients, one
            gradient; relative error about 1e-3 in float32, 1e-7 in float64 where the gradient is smooth; where it has kinks
            (ReLU) the difference also sees those that its step crosses, the exact product does not).
        noise: for a loss that draws random numbers (dropout, drop path, VAE, diffusion). "fixed": each batch has a seed, its
            noise is part of it; a number: L is the mean over so many seeds, each batch counting as that many, index i being
            batch i mod (number of batches). None: L draws nothing, which the first curvature checks.

    Attributes:
        layout: where each parameter tensor lies in theta.
        batches: what L averages over.
        frozen: names of the parameters left out.
        noise: as given.

    Raises:
        BadType: a parameter is complex or of half precision, or a batch source is a one-shot iterator.
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
        noise: Literal["fixed"] | int | None = None,
    ):
        if not isinstance(model, nn.Module) or not callable(criterion):
            got = f"{type(model).__name__}, {type(criterion).__name__}"
            raise BadType(f"Loss takes model, criterion(model, batch), batches, in this order, got {got}")
        trainable: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.model: nn.Module | None = model
        self.criterion: Callable[[nn.Module, Any], Tensor] | None = criterion
        self.frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        scope = Scope(model)
        names = [f"model.{name}" for name in trainable]

        def at(tensors: Sequence[Tensor], action: Action) -> Any:
            # Buffers go in as copies: a BatchNorm in training mode updates them in place.
            state = dict(zip(names, tensors, strict=True))
            state |= {f"model.{name}": b.clone() for name, b in (self._earlier or dict(model.named_buffers())).items()}
            with plainly():
                return torch.func.functional_call(scope, state, (action,))

        self._setup(lambda tensors, batch: criterion(model, batch), at, trainable, batches, curvature, noise)

    def on(self, model: nn.Module | None, batches: Iterable[Any], at_once: int = 1) -> "Loss":
        """The same criterion on another model and other batches.

        Args:
            model: such as a copy of this one's.
            batches: re-iterable.
            at_once: batches of one size that means over all may take as one: small ones spend their time on calls. Where the
                model's samples speak of each other (batch normalization), or its noise is the batch's, they stay apart.

        Raises:
            BadInput: this loss was made of plain functions.
        """
        if model is None or self.criterion is None:
            raise BadInput("expected the loss of a model, ml.Loss(model, criterion, batches), got one of plain functions")
        curvature: Literal["exact", "difference"] = "difference" if self._differences else "exact"
        loss = Loss(model, self.criterion, batches, curvature=curvature, noise=self.noise)
        if at_once > 1 and self.noise is None and not loss._same_in_groups(at_once):
            loss.batches.group(1)
        return loss

    def _same_in_groups(self, count: int) -> bool:
        """Whether batches in groups have the same L and gradient, here and where every parameter is another."""
        theta = self.theta
        draw = torch.Generator().manual_seed(0)
        aside = torch.randn(theta.numel(), generator=draw, dtype=torch.float64).to(theta)
        points = [theta, theta + 0.1 * (theta.square().mean().sqrt() + 0.1) * aside]

        def seen() -> Tensor:
            return torch.stack([torch.cat([self(x).detach()[None], self.gradient(x)]) for x in points])

        apart = seen()
        try:
            self.batches.group(count)
        except BadInput:  # they do not fit together
            return False
        off, size = (seen() - apart).norm(dim=1), apart.norm(dim=1)
        return bool((off <= GROUPED * torch.finfo(theta.dtype).eps * size).all() and (size > 0).all())

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
            curvature: "exact" Hessian-vector products, or "difference" of gradients: cheaper, to fewer digits.

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
        loss.model, loss.criterion, loss.frozen = None, None, []
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
        noise: Literal["fixed"] | int | None = None,
    ) -> None:
        for name, p in parameters.items():
            if p.dtype not in (torch.float32, torch.float64):
                raise BadType(f"parameter '{name}' is {p.dtype}; expected a real one, float32 or float64: {_advice(p.dtype)}")
        if not parameters:
            raise BadInput("the model has no trainable parameters (requires_grad is False for all): nothing to audit")
        if len({p.dtype for p in parameters.values()}) > 1 or len({p.device for p in parameters.values()}) > 1:
            kinds = sorted({f"{p.dtype} on {p.device}" for p in parameters.values()})
            raise BadType(f"all parameters must share one dtype and device, got {', '.join(kinds)}")
        first = next(iter(parameters.values()))
        if first.is_meta:
            raise BadInput("the parameters are on the meta device, which holds no numbers; build the model on cpu or cuda")
        if curvature not in ("exact", "difference"):
            raise BadInput(f"curvature must be 'exact' or 'difference', got {curvature!r}")
        if noise not in (None, "fixed") and (not isinstance(noise, int) or isinstance(noise, bool) or noise < 1):
            raise BadInput(f"noise must be None, 'fixed' or a number of seeds to average over, got {noise!r}")
        self._function, self._at = function, at
        self.noise: Literal["fixed"] | int | None = noise
        self._earlier: Mapping[str, Tensor] = {}
        self.layout = Layout(parameters, self._find_unreached)
        self._unreached = set(parameters)
        self._differences = curvature == "difference"
        self._guarded = False
        self._rowwise: bool | None = None
        self.batches = Batches(batches, self.device, noise if isinstance(noise, int) else 1)
        self._many = ManyPoints(self._plain_value, self.gradient, self.batches)
        self._require_finite(self.theta, "parameter")

    @property
    def theta(self) -> Tensor:
        """The current parameters as a new flat vector of shape (d,)."""
        return self.layout.theta()

    @property
    def names(self) -> list[str]:
        """Name of each parameter tensor in theta."""
        return self.layout.names

    @property
    def shapes(self) -> list[torch.Size]:
        """Shape of each parameter tensor in theta."""
        return self.layout.shapes

    @property
    def slices(self) -> dict[str, slice]:
        """Where each named parameter lies in theta."""
        return self.layout.slices

    @property
    def device(self) -> torch.device:
        """Where theta lives."""
        return self.layout.device

    @property
    def uses_differences(self) -> bool:
        """Whether curvature comes from differences of gradients, by choice or because the guard found it wrong."""
        return self._differences

    @property
    def notes(self) -> list[str]:
        """What a reader of numbers about L must know besides, as far as it is known by now."""
        found = []
        if self._differences:
            found.append("curvature by differences of gradients")
        if self.frozen:
            found.append(f"frozen parameters left out: {some(self.frozen)}")
        if self.noise is not None:
            seeds = "a fixed seed" if self.noise == "fixed" else f"{self.noise} seeds"
            found.append(f"L draws random numbers: it is that of {seeds} for each batch")
        if uneven := self.batches.uneven:
            least, most = uneven
            found.append(f"batches of {least} to {most} samples: L is their plain mean, samples of small ones weigh more")
        if moved := self._moved:
            found.append(f"each step moves buffers ({some(moved)}): L is that of those found here, for past steps too")
        return found

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def __call__(self, theta: Tensor, batch: int | None = None) -> Tensor:
        """L(theta), differentiable; of one batch if its index is given.

        Args:
            theta: shape (d,).
            batch: index of a batch; None means the average over all.

        Returns:
            A scalar tensor in the units of the criterion.
        """
        tensors = self.layout.views(theta)
        total, count = torch.zeros((), dtype=theta.dtype, device=theta.device), 0
        for i, data, many in self.batches.parts(batch):
            total = total + many * self._at(tensors, lambda d=data, i=i: self._value(tensors, d, i))
            count += many
        return total / count

    def gradient(self, theta: Tensor, batch: int | None = None, noise: Standing | None = None) -> Tensor:
        """grad L(theta), shape (d,); of one batch if its index is given.

        Args:
            theta: shape (d,).
            batch: index of a batch; None means the average over all.
            noise: where the generators stood at a training step whose noise is to be drawn again; default that of the loss.

        Returns:
            Shape (d,), detached.

        Raises:
            NotFinite: loss or gradient is infinite or NaN; says where first.
            BadInput: the loss does not depend on the parameters.
        """
        return self._average(batch, lambda data, i: self._gradient(theta, data, i, noise))

    def backward(self, batch: int | None = None) -> Tensor:
        """The model's own forward and backward pass, as in training: it fills `.grad`, buffers and generators move.

        Args:
            batch: index of a batch; None means the average over all, accumulated.

        Returns:
            The gradient, shape (d,), 0 where a parameter gets none and its `.grad` stays None.

        Raises:
            NotFinite: loss or gradient is infinite or NaN; says where first.
            BadInput: the loss does not depend on the parameters.
        """
        if self.model is None or self.criterion is None:
            gradient = self.gradient(self.theta, batch)
            self.layout.set_gradients(gradient)
            return gradient
        for p in self.layout.tensors:
            p.grad = None
        used = range(self.batches.different) if batch is None else [batch]
        for i, data in itertools.chain.from_iterable(map(self.batches.select, used)):
            with torch.enable_grad():
                (self._scalar(self.criterion(self.model, data), self.layout.tensors, i) / len(used)).backward()
        grads = [p.grad for p in self.layout.tensors]
        self._require_dense(grads)
        gradient = flat(torch.zeros_like(p) if g is None else g for p, g in zip(self.layout.tensors, grads, strict=True))
        self._require_finite(gradient, "the gradient of" if batch is None else f"on batch {batch} the gradient of")
        return gradient

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the model's buffers."""
        return {} if self.model is None else {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    @contextmanager
    def before(self, buffers: Mapping[str, Tensor]) -> Iterator[None]:
        """A context in which L is that of earlier buffers.

        Args:
            buffers: from `buffers()`.
        """
        self._earlier = buffers
        try:
            yield
        finally:
            self._earlier = {}

    @property
    def _moved(self) -> list[str]:
        """Names of the buffers that have moved since those of `before`; none outside that context."""
        now = dict(self.model.named_buffers()) if self.model is not None and self._earlier else {}
        return [name for name, buffer in now.items() if not torch.equal(buffer, self._earlier[name])]

    def gradients(self, thetas: Tensor, batches: Sequence[int] | None = None) -> Tensor:
        """grad L at each of many points, several in one call where they are small.

        Args:
            thetas: shape (n, d).
            batches: index of the batch of each point; None is full batch.

        Returns:
            Shape (n, d), detached.

        Raises:
            NotFinite: loss or gradient is infinite or NaN at some point.
        """
        return self._many.gradients(thetas, batches)

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
            return self._difference(theta, v, lambda x: self.gradient(x, batch))
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
                return gradient, lambda v: self._difference(theta, v, lambda x: self.gradient(x, batch), gradient)
            return gradient, lambda v: self.curvature(theta, v, batch)
        (index, data), *_ = self.batches.select(batch)
        gradient, product = self._linearize(theta, data, index)
        asked = itertools.count(1)
        return gradient, lambda v: product(v, next(asked) != products)

    def curvatures(self, theta: Tensor, vs: Tensor, batch: int) -> Tensor:
        """H_i(theta) v for several v: small batches spend their time on calls, so one backward pass serves all where torch can.

        Args:
            theta: shape (d,).
            vs: shape (n, d).
            batch: index of a batch.

        Returns:
            Shape (n, d), detached.
        """
        if len(vs) == 1 or vs.numel() > block(theta.device) or self._differences or self._rowwise is False:
            _, product = self.linearize(theta, batch, products=len(vs))
            return torch.stack([product(v) for v in vs])
        self._guard(theta)
        ((index, data),) = self.batches.select(batch)
        _, product = self._linearize(theta, data, index)
        if self._rowwise is None:
            self._rowwise = _same_by_row(lambda v: product(v, True), vs[:2])
        return product(vs, False) if self._rowwise else torch.stack([product(v, True) for v in vs])

    def each(self, theta: Tensor, products: int | None = None) -> Iterator[tuple[Tensor, Curvature]]:
        """`linearize` of every batch in turn, in one pass over them: one graph is held at a time, whatever their number.

        Args:
            theta: shape (d,).
            products: how many will be asked for of each, if that is known; 0 takes gradients alone.

        Yields:
            grad L_i(theta), shape (d,), and the map v -> H_i(theta) v.
        """
        if products != 0:
            self._guard(theta)
        for i, data in self.batches.select(None):
            if products == 0 or self._differences:

                def at(x: Tensor, data: Any = data, i: int = i) -> Tensor:
                    return self._gradient(x, data, i)

                gradient = at(theta)
                yield gradient, lambda v, g=gradient, at=at: self._difference(theta, v, at, g)
            else:
                gradient, product = self._linearize(theta, data, i)
                asked = itertools.count(1)
                yield gradient, lambda v, product=product, asked=asked: product(v, next(asked) != products)

    def _average(self, batch: int | None, term: Callable[[Any, int], Tensor]) -> Tensor:
        total, count = None, 0
        for i, data, many in self.batches.parts(batch):
            value = term(data, i)
            if total is None:
                total = value if many == 1 else value.mul_(many)
            else:
                total.add_(value, alpha=many)
            count += many
        assert total is not None
        return total if count == 1 else total.div_(count)

    def _plain_value(self, theta: Tensor, data: Any) -> Tensor:
        """L of a batch without checks, for torch.func's transforms; shape ()."""
        tensors = self.layout.views(theta)
        return loss_in(self._at(tensors, lambda: self._function(tensors, data))).reshape(())

    def _value(self, tensors: Sequence[Tensor], data: Any, index: int, noise: Standing | None = None) -> Tensor:
        with isolated(self.device, noise or (None if self.noise is None else index)):
            return self._scalar(self._function(tensors, data), tensors, index)

    def _scalar(self, value: Any, tensors: Sequence[Tensor], index: int) -> Tensor:
        """What a criterion returned on a batch, shape (), if it can be a loss."""
        value = loss_in(value)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise BadType(f"criterion must return a scalar tensor, got {got}; take the mean over the batch")
        if not torch.isfinite(value):
            self._require_finite(flat(t.detach() for t in tensors), "parameter")
            raise NotFinite(f"the loss is {value.item()} on batch {index}; lower the learning rate or check the data")
        if torch.is_grad_enabled() and not value.requires_grad and any(t.requires_grad for t in tensors):
            raise BadInput("the loss does not depend on the parameters: criterion returned a tensor without a graph")
        return value.reshape(())

    def _leaves(self, theta: Tensor) -> list[Tensor]:
        return [view.requires_grad_() for view in self.layout.views(theta.detach())]

    def _backward(
        self, theta: Tensor, data: Any, index: int, create_graph: bool, noise: Standing | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        leaves = self._leaves(theta)

        def differentiate() -> tuple[Tensor | None, ...]:
            value = self._value(leaves, data, index, noise)
            return torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)

        with torch.enable_grad():
            # The backward pass in the scope too: a model with checkpointing runs its forward pass again in it.
            grads = self._at(leaves, differentiate)
        self._require_dense(grads)
        self._unreached -= {n for n, g in zip(self.names, grads, strict=True) if g is not None}
        return leaves, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]

    def _gradient(self, theta: Tensor, data: Any, index: int, noise: Standing | None = None) -> Tensor:
        _, grads = self._backward(theta, data, index, False, noise)
        gradient = flat(grads)
        self._require_finite(gradient, f"on batch {index} the gradient of")
        return gradient

    def _find_unreached(self) -> set[str]:
        """Names of the parameters without gradient on any batch."""
        theta = self.theta
        for index, data in self.batches.select(None) if self._unreached else ():
            self._backward(theta, data, index, create_graph=False)
            if not self._unreached:
                break
        return self._unreached

    def _linearize(self, theta: Tensor, data: Any, index: int) -> tuple[Tensor, Callable[[Tensor, bool], Tensor]]:
        with twice_differentiable():
            leaves, grads = self._backward(theta, data, index, create_graph=True)
        gradient = flat(g.detach() for g in grads)
        self._require_finite(gradient, f"on batch {index} the gradient of")

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
            parts = self._at(
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

    @staticmethod
    def _difference(theta: Tensor, v: Tensor, gradient_at: Curvature, gradient: Tensor | None = None) -> Tensor:
        length = norm(v)
        if length == 0:
            return torch.zeros_like(v)
        if gradient is None:
            gradient = gradient_at(theta)
        # Truncation grows with the step, rounding with its inverse; both relative to |theta| they balance at sqrt(eps).
        step = float(torch.finfo(theta.dtype).eps ** 0.5 * (1 + norm(theta)) / length)
        return gradient_at(theta.add(v, alpha=step)).sub_(gradient).div_(step)

    def _guard(self, theta: Tensor) -> None:
        if self._guarded:
            return
        self.batches.require_replayable()
        if not self._differences:
            self._differences = self._needs_differences(theta)
        self._guarded = True  # not before: what was refused once is refused again

    def _needs_differences(self, theta: Tensor) -> bool:
        (index, data), *_ = self.batches.select(0)
        part = self._part(self.layout.views(theta.detach()), data)
        why = self._fault(theta, part, index)
        if why is not None and part is not data:
            why = self._fault(theta, data, index)
        if why is None:
            return False
        warnings.warn(f"Hessian-vector products use differences of gradients: {why}", CurvatureWarning, stacklevel=4)
        return True

    def _fault(self, theta: Tensor, data: Any, index: int) -> str | None:
        views = self.layout.views(theta.detach())

        def linearized(x: Tensor) -> Curvature:
            product = self._linearize(x, data, index)[1]
            return lambda v: product(v, True)

        return guard.fault(
            gradient=lambda x: self._gradient(x, data, index),
            linearized=linearized,
            theta=theta.detach(),
            slices=self.slices,
            model=self.model,
            evaluate=lambda: self._at(views, lambda: self._value(views, data, index)),
            # With a seed a batch the generators stand where it puts them, and nothing is drawn from where they stood.
            draws=self.noise is None and draws(lambda: self._at(views, lambda: self._function(views, data)), self.device),
        )

    def _part(self, views: Sequence[Tensor], data: Any) -> Any:
        """Some samples of a batch, if its tensors are cut alike and the model takes fewer; otherwise all."""
        found = None if self.model is None else head(data, GUARDED)
        if found is None:
            return data
        try:
            with isolated(self.device, 0):
                value = loss_in(self._at(views, lambda: self._function(views, found)))
            told = isinstance(value, Tensor) and value.numel() == 1 and bool(torch.isfinite(value))
        except Exception:  # whatever a model says to fewer samples than it was made for
            return data
        return found if told else data

    def _require_dense(self, grads: Sequence[Tensor | None]) -> None:
        if sparse := next((n for n, g in zip(self.names, grads, strict=True) if g is not None and g.is_sparse), None):
            raise BadType(f"the gradient of '{sparse}' is sparse; expected dense, use Embedding(sparse=False)")

    def _require_finite(self, vector: Tensor, what: str) -> None:
        # One pass: a sum is finite only if all terms are, but for overflow, which the second look rules out.
        if torch.isfinite(total(vector)) or torch.isfinite(vector).all():
            return
        first = int((~torch.isfinite(vector)).nonzero()[0])
        for name, part in self.slices.items():
            if part.start <= first < part.stop:
                raise NotFinite(f"{what} '{name}' is {vector[first].item()} first at flat index {first - part.start}")


def _same_by_row(product: Curvature, vs: Tensor) -> bool:
    """Whether the product with all rows at once is there and is that of each."""
    one_by_one = torch.stack([product(v) for v in vs])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns where it would loop itself
            at_once = product(vs)
    except (RuntimeError, TypeError, ValueError, Warning):
        return False
    return bool(norm(one_by_one) > 0 and norm(at_once - one_by_one) <= GROUPED * torch.finfo(vs.dtype).eps * norm(one_by_one))
