"""Any `torch.optim.Optimizer` as a method: its own, unmodified step(), run as a pure function.

    update(state, gradient, theta) -> (state, F),    theta_next = theta - lr F

To step from a state it is put back into an optimizer over parameters of our own, these are set to theta, and the displacement
is read off. So nothing of the caller's is touched, and any state can be stepped from any number of times.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from memoryless.errors import BadInput, BadType, DrawsNumbers, Reevaluates, StepFailed
from memoryless.flat import Layout, norm, slices_of
from memoryless.isolation import isolated
from memoryless.methods.black_box.remade import remade
from memoryless.methods.black_box.snapshot import State, Twin, first_line, insists_on_closure
from memoryless.methods.method import Part

SHOWN = ("lr", "betas", "momentum", "alpha")


class TorchMethod:
    """Any torch optimizer as a method; it may not be recognised by `method_of`, or not even be torch's.

    Args:
        factory: makes the optimizer from a list of parameters, `lambda params: torch.optim.Muon(params, lr=1e-3)`; may return
            an (optimizer, scheduler) pair, whose scheduler then steps after every step.
        model_or_shapes: a model, whose trainable parameters give theta its shapes (it is not changed), or a list of shapes.

    Attributes:
        lr: of the first param group, as set before any schedule; F is the displacement over it.
        shapes: shape of each parameter.
        names: name of each parameter.
        dtype: the coarsest floating type that step() computes in; parameters and gradients are float64.
        needs_closure: whether step() fails without one, although its signature does not say so.
        lifted: whether step() is kept from computing in less than float64 (see `exact`).
        scheduled: whether there is a scheduler.

    Raises:
        BadType: the factory returns no optimizer, or shapes are not shapes.
        BadInput: the optimizer cannot be run as a function of gradient and theta; the message says why.

    Example:
        >>> method = TorchMethod(lambda params: torch.optim.Adamax(params, lr=0.1), [(2,)])
        >>> theta = torch.ones(2)
        >>> state, F = method.update(method.init(theta), torch.tensor([3.0, -4.0]), theta)
        >>> F
        tensor([ 1., -1.])
    """

    def __init__(
        self,
        factory: Callable[[list[nn.Parameter]], Any],
        model_or_shapes: nn.Module | Sequence[Sequence[int]],
    ):
        self.factory, self.lifted, self.needs_closure = factory, False, False
        if isinstance(model_or_shapes, nn.Module):
            trainable = {name: p for name, p in model_or_shapes.named_parameters() if p.requires_grad}
            self.names, self.shapes = list(trainable), [p.shape for p in trainable.values()]
        else:
            self.shapes = _shapes(model_or_shapes)
            self.names = [str(i) for i in range(len(self.shapes))]
        if not self.shapes:
            raise BadInput("the optimizer has no parameters: the model has no trainable ones, or the list of shapes is empty")
        with isolated(torch.device("cpu")):
            twin = self.twin(torch.zeros(self.d))
        self.lr = stepsize(twin.optimizer, {id(p) for p in twin.parameters}, scheduled=True)
        self.scheduled = twin.scheduler is not None
        self._name, self._shown = type(twin.optimizer).__name__, _shown(twin.optimizer, self.lr)
        try:
            self.dtype = _inspected(self)
        except StepFailed:
            self.needs_closure = "closure" in inspect.signature(type(twin.optimizer).step).parameters
            if not self.needs_closure:
                raise
            self.dtype = _inspected(self)

    @classmethod
    def of(cls, optimizer: Optimizer, layout: Layout | None = None) -> "TorchMethod":
        """A live optimizer's method, with its present hyperparameters and empty memory; it is left alone.

        Args:
            optimizer: its class is called with its hyperparameters.
            layout: of theta; without it theta is the optimizer's parameters in their order. The unused ones do not move.

        Raises:
            BadInput: its class cannot be called so, or what it makes steps otherwise; give `TorchMethod` a factory then.
        """
        own = [p for group in optimizer.param_groups for p in group["params"]]
        order = own if layout is None else layout.tensors
        held = {id(p) for p in own}
        used = held if layout is None else held & layout.used.keys()
        if not used:
            raise BadInput("the optimizer holds none of the loss's parameters; build both from the same model")
        kept = [i for i, p in enumerate(order) if id(p) in held]
        idle = [i for i, p in enumerate(order) if id(p) not in used]
        how = remade(optimizer, [order[i] for i in kept], used, order[0].device)

        def factory(parameters: list[nn.Parameter]) -> Optimizer:
            for i in idle:
                parameters[i].requires_grad_(False)
            return how.new([parameters[i] for i in kept])

        made = cls(factory, [p.shape for p in order])
        made.lr = stepsize(optimizer, used)
        return made

    @cached_property
    def exact(self) -> "TorchMethod":
        """This method with float64 in place of every coarser type inside step(), whose rounding no derivative survives."""
        if self.dtype == torch.float64:
            return self
        exact = copy.copy(self)
        exact.lifted = True
        exact.dtype = _inspected(exact)
        return exact

    @property
    def d(self) -> int:
        """Number of coordinates of theta."""
        return sum(shape.numel() for shape in self.shapes)

    @property
    def slices(self) -> list[slice]:
        """Where each parameter lies in theta."""
        return slices_of([shape.numel() for shape in self.shapes])

    def twin(self, theta: Tensor) -> Twin:
        """A new optimizer at theta.

        Args:
            theta: shape (d,); may be a dual tensor.

        Returns:
            It, with parameters of its own in float64.

        Raises:
            BadType: the factory returned no optimizer.
            BadInput: theta has another shape, the factory failed or gave an optimizer of other parameters.
        """
        if theta.shape != (self.d,):
            raise BadInput(f"theta must have shape ({self.d},), got {tuple(theta.shape)}")
        parts = [theta[part].view(shape) for part, shape in zip(self.slices, self.shapes, strict=True)]
        parameters = [nn.Parameter(torch.empty(part.shape, dtype=torch.float64, device=theta.device)) for part in parts]
        with torch.no_grad():
            for p, part in zip(parameters, parts, strict=True):
                p.copy_(part)
        try:
            made = self.factory(list(parameters))
        except Exception as error:
            raise BadInput(f"the factory raised {type(error).__name__}: {first_line(error)}") from error
        optimizer, scheduler = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(optimizer, Optimizer):
            raise BadType(
                f"the factory must return a torch.optim.Optimizer or an (optimizer, scheduler) pair, got {type(made).__name__}"
            )
        if scheduler is not None and not hasattr(scheduler, "step"):
            raise BadType(f"the factory's scheduler must have a step(), got {type(scheduler).__name__}")
        _require_own(optimizer, parameters)
        return Twin(parameters, optimizer, scheduler, self.needs_closure or insists_on_closure(optimizer))

    def init(self, theta: Tensor) -> State:
        """Empty memory for theta of shape (d,)."""
        with isolated(theta.device):
            return self.twin(theta).saved(0)

    def update(self, state: State, gradient: Tensor, theta: Tensor) -> tuple[State, Tensor]:
        """One step; pure.

        Args:
            state: from `init` or the previous `update`.
            gradient: shape (d,).
            theta: shape (d,).

        Returns:
            The next state and F, shape (d,): theta_next = theta - lr * F.

        Raises:
            BadInput: step() fails, or gives something that is not finite.
        """
        with isolated(theta.device):
            twin = state.restored()
            F = self.displacement(twin, gradient.detach(), theta.detach())
            after = twin.saved(state.n + 1)
        self.require_finite(F, after.leaves(), state.n)
        return after, F.to(theta.dtype)

    def displacement(self, twin: Twin, gradient: Tensor, theta: Tensor) -> Tensor:
        """F of one step of a live optimizer, in float64.

        Args:
            twin: from `twin` or `State.restored`; its memory moves on.
            gradient: shape (d,); may be a dual tensor, like theta.
            theta: shape (d,).

        Returns:
            Shape (d,).

        Raises:
            BadInput: step() failed, or put other parameters in the place of those that it was given.
        """
        theta = theta.double()
        try:
            with Lifted() if self.lifted else nullcontext():
                after = twin.step(gradient.double(), theta)
        except (Reevaluates, NotImplementedError):  # the latter is a derivative that torch lacks
            raise
        except Exception as error:
            name = type(twin.optimizer).__name__
            raise StepFailed(f"{name}.step() raised {type(error).__name__} on dense gradients: {first_line(error)}") from error
        _require_own(twin.optimizer, twin.parameters)
        return (theta - after) / self.lr

    def require_finite(self, F: Tensor, leaves: Iterable[tuple[str, Any]], step: int) -> None:
        """Raise if an update or the memory after it is not finite.

        Args:
            F: update.
            leaves: name and value of all that is in the memory after it.
            step: of it.

        Raises:
            BadInput: says where.
        """
        if not F.isfinite().all():
            where = int((~F.isfinite()).nonzero()[0])
            raise BadInput(f"{self}: the update is {F[where].item()} at coordinate {where} of step {step}")
        for name, value in leaves:
            if isinstance(value, Tensor) and value.is_floating_point() and value.isnan().any():
                raise BadInput(f"{self}: '{name}' of the optimizer's state is nan after step {step}")

    @property
    def parts(self) -> tuple[Part, ...]:
        """None: it is run as it is."""
        return ()

    def at_lr(self, lr: float) -> "TorchMethod":
        """The same optimizer at another learning rate, that of the first group; other groups and the schedule scale with it.

        Args:
            lr: positive.
        """
        made = TorchMethod(functools.partial(_scaled, self.factory, lr / self.lr), self.shapes)
        made.lr = lr
        return made

    def with_betas(self, beta_1: float, beta_2: float) -> "TorchMethod":
        """The same optimizer with another pair of betas in every group.

        Args:
            beta_1: the first.
            beta_2: the second.

        Raises:
            BadInput: a group has no pair of betas.
        """
        made = TorchMethod(functools.partial(_with_betas, self.factory, (beta_1, beta_2)), self.shapes)
        made.lr = self.lr
        return made

    def describe(self, omit: Sequence[str] = ()) -> str:
        """Class and hyperparameters.

        Args:
            omit: hyperparameters not to show.
        """
        shown = (f"{key}={value}" for key, value in self._shown.items() if key not in omit)
        return f"{self._name}({', '.join(shown)})"

    def __str__(self) -> str:
        return self.describe()


def _shapes(shapes: Any) -> list[torch.Size]:
    try:
        sizes = [torch.Size(shape) for shape in shapes]
    except TypeError as error:
        raise BadType(f"expected a model or a list of shapes such as [(4, 3), (3,)], got {shapes!r}") from error
    if negative := [tuple(size) for size in sizes if size.numel() < 1]:
        raise BadInput(f"every shape must have at least one element, got {negative[0]}")
    return sizes


def _with_betas(
    factory: Callable[[list[nn.Parameter]], Any], betas: tuple[float, float], parameters: list[nn.Parameter]
) -> Any:
    made = factory(parameters)
    for group in (made[0] if isinstance(made, tuple) else made).param_groups:
        if np.shape(group.get("betas")) != (2,):
            raise BadInput("expected an optimizer with betas=(beta_1, beta_2) in every group")
        group["betas"] = betas
    return made


def _scaled(factory: Callable[[list[nn.Parameter]], Any], ratio: float, parameters: list[nn.Parameter]) -> Any:
    made = factory(parameters)
    optimizer, scheduler = made if isinstance(made, tuple) else (made, None)
    for group in optimizer.param_groups:
        for key in {"lr", "initial_lr"} & set(group):
            group[key] = group[key] * ratio
    if scheduler is not None:
        for key in {"base_lrs", "_last_lr"} & set(vars(scheduler)):
            setattr(scheduler, key, [lr * ratio for lr in getattr(scheduler, key)])
    return made


def _require_own(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    foreign = set(held) - {id(p) for p in parameters}
    if foreign:
        name = type(optimizer).__name__
        raise BadInput(
            f"{name} holds {len(foreign)} of {len(held)} parameters that it was not given; make it from the factory's argument"
        )


def stepsize(optimizer: Optimizer, moving: Set[int], scheduled: bool = False) -> float:
    """The lr that updates are in units of: that of the first param group that moves something.

    Args:
        optimizer: any torch optimizer.
        moving: ids of the parameters that count.
        scheduled: take the lr before any schedule.

    Raises:
        BadInput: there is none, or it is 0 in every such group, negative or not finite.
    """
    name = type(optimizer).__name__
    groups = [group for group in optimizer.param_groups if any(id(p) in moving for p in group["params"])]
    if any("lr" not in group for group in groups):
        raise BadInput(f"{name} has no 'lr' in its param groups; expected a learning rate there")
    if any(group["lr"] is None for group in groups):
        raise BadInput(f"{name} has lr=None and sizes its steps itself; effects are in units of lr: give it one, such as 1e-3")
    lrs = [float(group["lr"] if not scheduled else group.get("initial_lr", group["lr"])) for group in groups]
    lr = next((lr for lr in lrs if lr != 0), 0.0)
    if lr == 0:
        raise BadInput(f"{name}: lr must be positive, got 0 for all parameters of the loss: nothing moves; set its lr")
    if not (np.isfinite(lr) and lr > 0):
        raise BadInput(f"{name}: lr must be positive and finite, got {lr}")
    return lr


def _shown(optimizer: Optimizer, lr: float) -> dict[str, Any]:
    """The hyperparameters to show: the customary ones, and what differs from the class's default."""
    defaults = inspect.signature(type(optimizer)).parameters
    hyper = optimizer.param_groups[0] | {"lr": lr}
    return {
        key: float(value) if isinstance(value, Tensor) else value
        for key, value in hyper.items()
        if key in SHOWN or (key in defaults and key != "params" and value is not None and value != defaults[key].default)
    }


_COARSE = {torch.bfloat16, torch.float16, torch.float32}
_CASTS = {Tensor.bfloat16, Tensor.half, Tensor.float}


class Lifted(TorchFunctionMode):
    """Gives float64 wherever a coarser floating type is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            return args[0].double()
        lift = {dtype: torch.float64 for dtype in _COARSE}
        args = tuple(lift.get(x, x) if isinstance(x, torch.dtype) else x for x in args)
        kwargs = {key: lift.get(x, x) if isinstance(x, torch.dtype) else x for key, x in (kwargs or {}).items()}
        return func(*args, **kwargs)


class _Dtypes(TorchDispatchMode):
    """Notes the floating types of the vectors computed while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.coarsest = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor) and x.ndim and x.is_floating_point():
                self.coarsest = max(self.coarsest, x.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return result


def same_update(F: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether two runs of one step gave the same to rounding.

    Where a tensor lies in memory may change the order of a sum, and an inverse root enlarges that.

    Args:
        F: update, shape (d,).
        other: likewise.
        dtype: that step() computes in.
    """
    return float(norm(F - other)) <= min(10 * torch.finfo(dtype).eps ** 0.5, 1e-3) * float(norm(F))


def _inspected(method: TorchMethod) -> torch.dtype:
    """Try three steps on random vectors: the type computed in, and whether step() is a function of what it is given."""
    generator = torch.Generator().manual_seed(0)
    theta, *gradients = torch.randn(4, method.d, generator=generator, dtype=torch.float64)

    def run(seed: int, loss: float = 0.0) -> tuple[Tensor, State, torch.dtype]:
        with isolated(theta.device, seed):
            twin = method.twin(theta)._replace(loss=loss)
            start = twin.saved(0)
            F = theta
            with _Dtypes() as dtypes:
                for gradient in gradients:
                    F = method.displacement(twin, gradient, theta)
        method.require_finite(F, twin.leaves(), len(gradients) - 1)
        return F, start, dtypes.coarsest

    F, start, dtype = run(1)
    with isolated(theta.device, 1):
        twin = start.restored()
        again = torch.stack([method.displacement(twin, gradient, theta) for gradient in gradients])[-1]
    name = type(twin.optimizer).__name__
    if not same_update(F, again, dtype):
        raise BadInput(
            f"{name} keeps memory outside itself: two runs from the same state differ, so step() is no function of it"
        )
    if twin.needs_closure and not torch.equal(F, run(1, loss=1.0)[0]):
        raise Reevaluates(f"{name}.step() uses the value of the loss: it is no function of one gradient per step")
    other, *_ = run(2)
    if not same_update(F, other, dtype):
        raise DrawsNumbers(name, float(norm(F - other) / norm(F)))
    return dtype
