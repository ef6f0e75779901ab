"""What an optimizer with memory is.

    theta[n+1] = theta[n] - lr * F[n](theta[n], ..., theta[0])                                                    (Eq. 1)

Nearly every optimizer has the momentum form (Assumption C.1 of https://arxiv.org/abs/2502.02132): exponential memories of
functions g_l of the gradient, read out by a function phi,

    m_l[n+1] = weight_l(n) * sum_{k = lag_l..n} beta_l^(k - lag_l) g_l(gradient[n-k], theta[n-k])
    F[n]     = phi(m_1, ..., m_L, theta[n])

so a method is data: its momentum variables and phi. F[n](theta) with one argument is F with the whole history frozen at
theta, what the update would be had the iterate never moved; there m_l = c_l[n] g_l(theta), with c_l[n] the weight of all ages.
The past enters only through the weight that a variable gives to the gradient of k steps ago (its kernel over the age k):

    kernel_l[k] = weight_l(n) beta_l^(k - lag_l),    c_l = sum_k kernel_l[k],    mean age = sum_k k kernel_l[k] / c_l

and everything that memory does to first order follows from linearizing the history: the iterate of k steps ago lies lr * D[k]
back, D[k] = sum_{s = n-k..n-1} F[s](theta), so m_l is not c_l g_l(theta) but lags behind it (`corrections.correction`).

Defining a method (RMSprop, say):

    >>> import torch
    >>> square = lambda gradient, theta: gradient**2
    >>> method = Method(
    ...     lr=0.01,
    ...     variables=(Momentum(0.0), Momentum(0.75, square, weight=lambda n: 1 - 0.75)),
    ...     phi=lambda f, m, theta: m[0] / (f.sqrt(m[1]) + 1e-8),
    ... )
    >>> state = method.init(torch.ones(2))
    >>> state, F = method.update(state, torch.tensor([3.0, -4.0]), torch.ones(2))
    >>> F
    tensor([ 2., -2.])
"""

import inspect
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from memoryless.errors import BadInput, BadType
from memoryless.flat import block

Index = slice | Tensor


def gradient(gradient: Tensor, theta: Tensor) -> Tensor:
    """g_l = g, the usual momentum."""
    return gradient


def square(gradient: Tensor, theta: Tensor) -> Tensor:
    """g_l = g^2, the usual second moment."""
    return gradient * gradient


def is_number(x: Any) -> bool:
    """Whether a hyperparameter has a value; where formulas are derived it may be a symbol."""
    return isinstance(x, numbers.Real)


def require_number(what: str, x: Any) -> None:
    """Raise unless a hyperparameter is a number or a symbol.

    Args:
        what: it is, for the message.
        x: its value.

    Raises:
        BadType: it is a string, None, or a thing of another kind.
    """
    if not is_number(x) and not hasattr(x, "free_symbols"):
        raise BadType(f"{what} must be a number, got {x!r}")


def one(n: float) -> float:
    """weight = 1: a plain sum of powers of beta."""
    return 1.0


@dataclass(frozen=True)
class Momentum:
    """One momentum variable, m[n+1] = weight(n) * sum_{k = lag..n} beta^(k-lag) g(gradient[n-k], theta[n-k]).

    Args:
        beta: in [0, 1]; 0 is a variable without memory, 1 one that never forgets.
        g: (gradient, theta) -> tensor of the same shape.
        weight: n -> weight(n); takes an integer, an array of them, and, where a steady state is wanted, `math.inf`.
        first: weight of the very first gradient relative to the others (torch's SGD exempts it from dampening).
        lag: 0, or 1 if the variable is read before this step's gradient enters (Lion).
        degree: degree of g as a polynomial in (gradient, theta), if it is one of degree at most 3; makes resummation exact
            with two quadrature nodes instead of sixteen.
    """

    beta: float
    g: Callable[[Tensor, Tensor], Tensor] = gradient
    weight: Callable[[Any], Any] = one
    first: float = 1.0
    lag: int = 0
    degree: int | None = None

    def __post_init__(self) -> None:
        require_number("beta of a momentum variable", self.beta)
        if is_number(self.beta) and not 0 <= self.beta <= 1:
            raise BadInput(f"a momentum variable needs beta in [0, 1], got {self.beta}")
        if self.lag not in (0, 1):
            raise BadInput(f"lag must be 0 or 1, got {self.lag}")

    @property
    def has_memory(self) -> bool:
        """Does any gradient but the present one enter?"""
        return self.beta > 0 or self.lag > 0

    @property
    def uses_theta(self) -> bool:
        """Does g depend on theta (coupled weight decay, say)? Tried on random vectors."""
        return _uses_theta(self.g)


@cache
def _uses_theta(g: Callable[[Tensor, Tensor], Tensor]) -> bool:
    generator = torch.Generator().manual_seed(0)
    x, a, b = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    try:
        return not torch.equal(g(x, a), g(x, b))
    except (RuntimeError, ValueError, IndexError):
        return True


class State(NamedTuple):
    """Memory of a method in momentum form: the number of past steps and sum_k beta_l^k g_l of each variable."""

    n: int
    sums: tuple[Tensor, ...]


class Functions:
    """What phi may call, for tensors: every function of torch, with a square root whose slope at 0 is 0.

    An exactly zero gradient (a dead pixel) makes v = 0; there 0/0 would turn an effect of 0 into NaN.
    """

    @staticmethod
    def grad(K: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
        """The gradient of K, a function of the whole vector; None is half the squared norm."""
        return torch.func.grad(K) if K else lambda c: c

    @staticmethod
    def sqrt(x: Tensor) -> Tensor:
        """Elementwise square root; its value and slope at 0 are those of a constant, the smallest normal number's root."""
        return x.clamp_min(torch.finfo(x.dtype).tiny).sqrt()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(torch, name)


@dataclass(frozen=True, eq=False)  # coordinates are not compared: a slice has no hash, tensors no single answer
class Part:
    """The coordinates that one method moves; `scale` is its learning rate over the whole's."""

    method: "Method"
    index: Index
    scale: float

    def pieces(self, theta: Tensor, rows: int = 1) -> Iterator["Part"]:
        """Itself cut into blocks of coordinates that suit the machine; whole if phi does not act coordinate by coordinate.

        Args:
            theta: shape (d,).
            rows: how many numbers there are of each coordinate.
        """
        size = max(1, block(theta.device) // rows)
        if not self.method.elementwise:
            yield self
        elif isinstance(self.index, Tensor):
            yield from (replace(self, index=index) for index in self.index.split(size))
        else:
            start, stop, _ = self.index.indices(theta.numel())
            yield from (replace(self, index=slice(i, min(i + size, stop))) for i in range(start, stop, size))


class AnyOptimizer(Protocol):
    """What every optimizer answers, in momentum form (`Method`, `Groups`) or run as it is (`TorchMethod`)."""

    @property
    def lr(self) -> float:
        """Step size."""
        ...

    @property
    def parts(self) -> tuple[Part, ...]:
        """The momentum form, a method for each group of coordinates; empty for an optimizer that is run as it is."""
        ...

    def init(self, theta: Tensor) -> Any:
        """Empty memory for theta of shape (d,)."""
        ...

    def update(self, state: Any, gradient: Tensor, theta: Tensor) -> tuple[Any, Tensor]:
        """One step, pure: the next state and F, shape (d,)."""
        ...

    def at_lr(self, lr: float) -> "AnyOptimizer":
        """The same at another step size; groups keep their ratios."""
        ...

    def with_betas(self, beta_1: float, beta_2: float) -> "AnyOptimizer":
        """The same with another pair of betas, in every group."""
        ...

    def describe(self, omit: Sequence[str] = ()) -> str:
        """Name and hyperparameters as text, without those to omit."""
        ...


@dataclass(frozen=True)
class Method:
    """An optimizer in momentum form.

    Args:
        lr: step size h > 0.
        variables: the momentum variables.
        phi: (f, m, theta) -> F; f offers sqrt, abs, sign, ..., m is the tuple of the m_l. Hyperparameters other than the
            betas belong here, the betas in the variables.
        name: for tables.
        hyper: hyperparameters by name, for tables and for `with_hyper`.
        make: builds the method from `hyper`, if it comes from the catalogue.

    Raises:
        BadInput: lr is not positive.
    """

    lr: float
    variables: tuple[Momentum, ...]
    phi: Callable[[Any, Sequence[Tensor], Tensor], Tensor]
    name: str = "custom"
    hyper: dict[str, Any] = field(default_factory=dict, compare=False)
    make: Callable[..., "Method"] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        require_number(f"{self.name}: lr", self.lr)
        if not isinstance(self.variables, Sequence) or not all(isinstance(v, Momentum) for v in self.variables):
            raise BadType(f"{self.name}: variables must be a tuple of memoryless.Momentum, got {self.variables!r}")
        if not callable(self.phi):
            raise BadType(f"{self.name}: phi must be a function (f, m, theta) -> F, got {self.phi!r}")
        if is_number(self.lr) and not (math.isfinite(self.lr) and self.lr > 0):
            raise BadInput(f"{self.name}: lr must be positive and finite, got {self.lr}")

    @property
    def parts(self) -> tuple[Part, ...]:
        """One part: all coordinates."""
        return (Part(self, slice(None), 1.0),)

    @cached_property
    def elementwise(self) -> bool:
        """Whether phi and the g_l act coordinate by coordinate, found by giving them parts of a vector and the whole."""
        generator = torch.Generator().manual_seed(0)
        theta, *m = torch.randn(1 + len(self.variables), 5, generator=generator, dtype=torch.float64)

        def of(part: slice) -> Tensor:
            g = [v.g(x[part], theta[part]) for v, x in zip(self.variables, m, strict=True)]
            return self.readout(g, theta[part])

        try:
            return torch.equal(of(slice(5)).nan_to_num(), torch.cat([of(slice(2)), of(slice(2, 5))]).nan_to_num())
        except (RuntimeError, ValueError, IndexError):
            return False

    def init(self, theta: Tensor) -> State:
        """Empty memory for theta of shape (d,)."""
        return State(0, tuple(torch.zeros_like(theta) for _ in self.variables))

    def update(self, state: State, gradient: Tensor, theta: Tensor) -> tuple[State, Tensor]:
        """One step; pure.

        Args:
            state: from `init` or the previous `update`.
            gradient: shape (d,).
            theta: shape (d,).

        Returns:
            The next state and F, shape (d,): theta_next = theta - lr * F.
        """
        sums = tuple(
            v.beta * s + (v.first if state.n == 0 else 1.0) * v.g(gradient, theta)
            for v, s in zip(self.variables, state.sums, strict=True)
        )
        read = (old if v.lag else new for v, old, new in zip(self.variables, state.sums, sums, strict=True))
        m = [v.weight(state.n) * s for v, s in zip(self.variables, read, strict=True)]
        return State(state.n + 1, sums), self.readout(m, theta)

    def readout(self, m: Sequence[Tensor], theta: Tensor) -> Tensor:
        """F = phi(m, theta) for tensors."""
        found = self.phi(Functions(), m, theta)
        shape = torch.broadcast_shapes(theta.shape, *(x.shape for x in m))
        if not isinstance(found, Tensor) or found.shape != shape:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise BadType(f"{self.name}: phi must return a tensor of theta's shape {tuple(shape)}, got {got}")
        return found

    def with_hyper(self, **changes: Any) -> "Method":
        """The same catalogue method with some hyperparameters changed.

        Args:
            **changes: new values by the method's own names, such as lr, betas, eps.

        Raises:
            BadInput: not from the catalogue, or an unknown hyperparameter.
        """
        if self.make is None:
            raise BadInput(f"{self.name} is not a catalogue method: build the variant you want directly")
        if unknown := set(changes) - set(self.hyper):
            raise BadInput(f"{self.name} has no {', '.join(sorted(unknown))}; it has {', '.join(self.hyper)}")
        return self.make(**self.hyper | changes)

    def at_lr(self, lr: float) -> "Method":
        """The same method at another step size.

        Args:
            lr: positive.

        Example:
            >>> from memoryless.methods.catalogue import AdamW
            >>> AdamW(lr=1e-3).at_lr(5e-4).lr
            0.0005
        """
        if self.make and "lr" in self.hyper:
            return self.with_hyper(lr=lr)
        return replace(self, lr=lr, hyper=self.hyper | ({"lr": lr} if "lr" in self.hyper else {}))

    def with_betas(self, beta_1: float, beta_2: float) -> "Method":
        """The same catalogue method with other betas.

        Args:
            beta_1: of the first momentum.
            beta_2: of the second.

        Raises:
            BadInput: the method has no pair of betas.
        """
        if "betas" not in self.hyper:
            raise BadInput(f"expected a method with betas=(beta_1, beta_2), got {self.name}")
        return self.with_hyper(betas=(beta_1, beta_2))

    def describe(self, omit: Sequence[str] = ()) -> str:
        """Name and hyperparameters: lr, the betas, and what differs from the default.

        Args:
            omit: hyperparameters not to show.
        """
        defaults = inspect.signature(self.make).parameters if self.make else {}
        always = ("lr", "betas", "momentum", "alpha")
        shown = [
            f"{k}={_short(v)}"
            for k, v in self.hyper.items()
            if k not in omit and (k in always or k not in defaults or v != defaults[k].default)
        ]
        return f"{self.name}({', '.join(shown)})"

    def __str__(self) -> str:
        return self.describe()


@dataclass(frozen=True)
class Groups:
    """Several methods side by side on disjoint coordinates (torch's param groups); coordinates of none do not move.

    Args:
        parts: method and coordinates of each group.
        lr: the step size of the whole; group j moves by lr * scale_j * F_j.
    """

    parts: tuple[Part, ...]
    lr: float

    def init(self, theta: Tensor) -> tuple[State, ...]:
        """Empty memory for theta of shape (d,)."""
        return tuple(part.method.init(theta[part.index]) for part in self.parts)

    def update(self, state: tuple[State, ...], gradient: Tensor, theta: Tensor) -> tuple[tuple[State, ...], Tensor]:
        """One step of every group on its own coordinates; pure.

        Args:
            state: one memory per group.
            gradient: shape (d,).
            theta: shape (d,).

        Returns:
            The new memories, and F, shape (d,): theta_next = theta - lr * F with the lr of the whole.
        """
        F = torch.zeros_like(theta)
        states = []
        for part, before in zip(self.parts, state, strict=True):
            after, update = part.method.update(before, gradient[part.index], theta[part.index])
            states.append(after)
            F[part.index] = part.scale * update
        return tuple(states), F

    def at_lr(self, lr: float) -> "Groups":
        """The same at another step size of the whole; the ratios between groups stay.

        Args:
            lr: positive.
        """
        ratio = lr / self.lr
        return Groups(tuple(replace(part, method=part.method.at_lr(part.method.lr * ratio)) for part in self.parts), lr)

    def with_betas(self, beta_1: float, beta_2: float) -> "Groups":
        """The same with other betas in every group.

        Args:
            beta_1: of each group's first momentum.
            beta_2: of the second.

        Raises:
            BadInput: a group's method has no pair of betas.
        """
        return Groups(tuple(replace(part, method=part.method.with_betas(beta_1, beta_2)) for part in self.parts), self.lr)

    def describe(self, omit: Sequence[str] = ()) -> str:
        """Each group's name and hyperparameters.

        Args:
            omit: hyperparameters not to show.
        """
        return " + ".join(part.method.describe(omit) for part in self.parts)

    def __str__(self) -> str:
        return self.describe()


def variables_of(method: AnyOptimizer) -> tuple[Momentum, ...]:
    """The momentum variables of all parts, in their order.

    Args:
        method: in momentum form.
    """
    return tuple(v for part in method.parts for v in part.method.variables)


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_short(v) for v in value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)
