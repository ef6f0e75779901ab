"""A loss as a function of the flat parameter vector theta: value, gradient, curvature.

theta has shape (d,) and concatenates the trainable parameters in the order of `model.named_parameters()`; the model reads
views of it. Full batch means the plain average over the batches, L = (1/B) sum_i L_i, whatever their sizes, as in
Section 5.2 of https://arxiv.org/abs/2502.02132. Batches are streamed: memory does not grow with their number.

Evaluating a Loss leaves no trace: parameters, `.grad` fields, buffers and random number generators stay as they were. Only
`backward` is the model's own training pass, with all the traces that one leaves.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memoryless.errors import BadInput, BadType
from memoryless.flat import Layout, flat
from memoryless.isolation import Standing
from memoryless.loss.batches import Batches
from memoryless.loss.many_points import ManyPoints
from memoryless.loss.one_batch import At, Function, OneBatch, require_parameters
from memoryless.loss.plainly import plainly
from memoryless.loss.products import Curvature, Products
from memoryless.loss.scope import Action, Scope
from memoryless.render.numbers import some

GROUPED = 1e3
"""Roundings of the gradient by which several batches taken as one may differ from their mean."""


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

    _of_one: type[OneBatch] = OneBatch
    _scope: Scope | None = None

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
        scope = self._scope = Scope(model)
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
        curvature: Literal["exact", "difference"] = "difference" if self.uses_differences else "exact"
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
        function: Function,
        at: At,
        parameters: dict[str, Tensor],
        batches: Iterable[Any],
        curvature: str,
        noise: Literal["fixed"] | int | None = None,
    ) -> None:
        require_parameters(parameters)
        if curvature not in ("exact", "difference"):
            raise BadInput(f"curvature must be 'exact' or 'difference', got {curvature!r}")
        if noise not in (None, "fixed") and (not isinstance(noise, int) or isinstance(noise, bool) or noise < 1):
            raise BadInput(f"noise must be None, 'fixed' or a number of seeds to average over, got {noise!r}")
        self.noise: Literal["fixed"] | int | None = noise
        self._earlier: Mapping[str, Tensor] = {}
        self.layout = Layout(parameters, self._find_unreached)
        self._one = self._of_one(self.layout, function, at, noise)
        self.batches = Batches(batches, self.device, noise if isinstance(noise, int) else 1)
        self._products = Products(self._one, self.batches, self.gradient, self.model, curvature == "difference")
        self._many = ManyPoints(self._one.plain_value, self.gradient, self.batches)
        self._one.require_finite(self.theta, "parameter")

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
        return self._products.differences

    @property
    def autocast(self) -> torch.dtype | None:
        """The type to which autocast rounds within the model, as far as it is known by now; None without."""
        return None if self._scope is None else self._scope.autocast

    @property
    def notes(self) -> list[str]:
        """What a reader of numbers about L must know besides, as far as it is known by now."""
        found = []
        if self.uses_differences:
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
            total = total + many * self._one.at(tensors, lambda d=data, i=i: self._one.value(tensors, d, i))
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
        return self.batches.average(batch, lambda data, i: self._one.gradient(theta, data, i, noise))

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
                (self._one.scalar(self.criterion(self.model, data), self.layout.tensors, i) / len(used)).backward()
        grads = [p.grad for p in self.layout.tensors]
        self._one.require_dense(grads)
        gradient = flat(torch.zeros_like(p) if g is None else g for p, g in zip(self.layout.tensors, grads, strict=True))
        self._one.require_finite(gradient, "the gradient of" if batch is None else f"on batch {batch} the gradient of")
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
        return self._products.curvature(theta, v, batch)

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
        return self._products.linearize(theta, batch, products)

    def curvatures(self, theta: Tensor, vs: Tensor, batch: int) -> Tensor:
        """H_i(theta) v for several v: small batches spend their time on calls, so one backward pass serves all where torch can.

        Args:
            theta: shape (d,).
            vs: shape (n, d).
            batch: index of a batch.

        Returns:
            Shape (n, d), detached.
        """
        return self._products.of_many(theta, vs, batch)

    def each(self, theta: Tensor, products: int | None = None) -> Iterator[tuple[Tensor, Curvature]]:
        """`linearize` of every batch in turn, in one pass over them: one graph is held at a time, whatever their number.

        Args:
            theta: shape (d,).
            products: how many will be asked for of each, if that is known; 0 takes gradients alone.

        Yields:
            grad L_i(theta), shape (d,), and the map v -> H_i(theta) v.
        """
        yield from self._products.of_each(theta, products)

    def _find_unreached(self) -> set[str]:
        """Names of the parameters without gradient on any batch."""
        theta, one = self.theta, self._one
        for index, data in self.batches.select(None) if one.unreached else ():
            one.backward(theta, data, index, create_graph=False)
            if not one.unreached:
                break
        return one.unreached
