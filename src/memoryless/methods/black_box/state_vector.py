"""The memory of a black box as one vector s, a step of it, and the derivative of a step.

One step maps s to A(s; g, theta) and gives F = U(s, g, theta).

A step count enters through bias corrections and schedules: it is set far out (`FAR`), and what it does there must have ended.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from memoryless.errors import NoSteadyState, NotResolved
from memoryless.methods.black_box.derivative import no_formula, tangent
from memoryless.methods.black_box.snapshot import State
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.forward_mode import forward_mode

Answer = tuple[Tensor, Tensor]
"""The next s, and F."""

FAR, OTHERWISE = 5_544_000, (5_543_999, 11_088_007)
"""Steps taken before the steady state, as far as the optimizer knows. Float32 counts so far one by one; a multiple of most
periods, so that what is done every k-th step shows as a difference to other counts."""
ENTRIES = 64
"""Most steps until the state has all its entries."""
CHECKED = 1e-4
"""Relative error of the response, against one step of the optimizer, from which it is not believed."""


class StateVector:
    """The moving part of an optimizer's memory as one vector s, and its step at frozen counters.

    What belongs to s is found by trying: tensors and numbers that change from step to step, or are others after another past,
    be they written every step or once. Numbers that grow by one a step, whatever the past, are counters.

    Attributes:
        steps: optimizer steps spent.
        share: what a difference changes its arguments by, relative to them.
        missing: why differences take the place of forward mode; empty for forward mode.
        s: after the first steps, until something moves it.
    """

    def __init__(self, method: TorchMethod, gradient: Tensor, theta: Tensor):
        self.method, self.gradient, self.theta = method, gradient, theta
        self.steps, self.missing, self.far = 0, "", FAR
        twin = method.twin(theta)
        states: list[State] = []
        while len(states) < 4 or len({len(state.leaves()) for state in states[-3:]}) > 1:
            if len(states) == ENTRIES:
                raise NotResolved("its state gains entries step by step", ENTRIES, method)
            F = self._step(twin, gradient, theta)
            method.require_finite(F, twin.leaves(), len(states))
            states.append(twin.saved(len(states) + 1))
        # Another past: other gradients at another theta, from the first step on.
        flips = signs(theta)
        other = 1.1 * flips * gradient + 0.1 * gradient.norm() * flips, theta + 0.1 * (1 + theta.abs()) * flips
        elsewhere = method.twin(other[1])
        for _ in states:
            self._step(elsewhere, *other)
        records = [*(state.leaves() for state in states[-3:]), elsewhere.leaves()]
        if len(records[-1]) != len(records[0]):
            raise NoSteadyState("what its state holds depends on the gradient", method)
        self.state = states[-1]
        self.names: list[str] = []
        self.moving: dict[int, Tensor] = {}
        self.counters: set[int] = set()
        self.still: dict[int, Any] = {}
        self.switches: dict[int, tuple[str, Any]] = {}
        for i, leaves in enumerate(zip(*records, strict=True)):
            earlier, before, after, otherwise = (value for _, value in leaves)
            answers = not _equal(after, otherwise)
            if not answers and _number(after) and after - before == before - earlier == 1:
                self.counters.add(i)
            elif floating(after) and (answers or not _equal(before, after)):
                self.moving[i] = torch.as_tensor(after)
                self.names.append(leaves[0][0])
            else:
                self.still[i] = after
                if answers:
                    self.switches[i] = leaves[0][0], otherwise
        # A queue fills step by step, and what is behind its first entries moves only later.
        while (later := self._moved_later(twin)) and len(states) + len(later) <= ENTRIES:
            leaves = self.state.leaves()
            self.moving = {i: torch.as_tensor(leaves[i][1]) for i in sorted({*self.moving, *later})}
            self.names = [leaves[i][0] for i in self.moving]
            self.still = {i: x for i, x in self.still.items() if i not in later}
        self.sizes = [x.numel() for x in self.moving.values()]
        self.epsilon = max([torch.finfo(x.dtype).eps for x in self.moving.values() if x.ndim], default=2.0**-52)
        self.share = self.epsilon ** (1 / 3)
        self.s = torch.cat([x.double().reshape(-1) for x in self.moving.values()] or [theta.new_zeros(0)])
        self.first = [float(x.norm()) for x in self.split(self.s)]

    def _moved_later(self, twin: Any) -> list[int]:
        """Which averages that were still move in one step more."""
        self._step(twin, self.gradient, self.theta)
        after = twin.leaves()
        return [i for i, x in self.still.items() if floating(x) and i not in self.switches and not _equal(after[i][1], x)]

    def _step(self, twin: Any, gradient: Tensor, theta: Tensor) -> Tensor:
        self.steps += 1
        return self.method.displacement(twin, gradient, theta)

    def advance(self, s: Tensor, gradient: Tensor | None = None, theta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A(s; g, theta) and U(s, g, theta); all may be dual tensors.

        Args:
            s: shape (size,).
            gradient: default the frozen one.
            theta: default the frozen one.

        Returns:
            The next s and F.

        Raises:
            NoSteadyState: something else than s changed.
        """
        parts, place = iter(self.split(s)), itertools.count()

        def leaf(value: Any) -> Any:
            i = next(place)
            if i in self.moving:
                part = next(parts)
                return part.view(value.shape).to(value.dtype, copy=True) if isinstance(value, Tensor) else float(part)
            if i in self.counters:
                return torch.full_like(value, self.far) if isinstance(value, Tensor) else type(value)(self.far)
            value = self.still.get(i, value)
            return value.clone() if isinstance(value, Tensor) else value

        twin = self.state.restored(leaf)
        F = self._step(twin, self.gradient if gradient is None else gradient, self.theta if theta is None else theta)
        after = twin.leaves()
        for i, (name, value) in enumerate(after):
            if i in self.counters and float(value) not in (self.far, self.far + 1):
                raise NoSteadyState(f"'{name}' counts the steps in cycles, so there is no steady state", self.method)
            if i in self.still and not _equal(value, self.still[i]):
                raise NoSteadyState(f"'{name}' still changes at rest, so there is no steady state", self.method)
        with torch.no_grad():
            tensors = [torch.as_tensor(after[i][1]).to(s).reshape(-1) for i in self.moving]
            return torch.cat(tensors) if tensors else s, F

    def push(self, ds: Tensor, dg: Tensor | None = None, dtheta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The derivatives of A and U at s along a direction.

        Args:
            ds: shape (size,).
            dg: shape (d,); default 0.
            dtheta: shape (d,); default 0.

        Returns:
            Those of s and of F.
        """
        if not self.missing:
            dual = forward_ad.make_dual
            try:
                with forward_mode():
                    g = None if dg is None else dual(self.gradient, dg)
                    theta = None if dtheta is None else dual(self.theta, dtheta)
                    after, F = map(tangent, self.advance(dual(self.s, ds), g, theta))
                if (holes := ~after.isfinite()).any():  # the slope of a root at 0
                    (up, _), (down, _), e = self.around(ds, dg, dtheta)
                    after = torch.where(holes, (up - down) / (2 * e), after)
                return after, F
            except (RuntimeError, ValueError) as error:
                self.missing = no_formula(error)
        (up, F_up), (down, F_down), e = self.around(ds, dg, dtheta)
        return (up - down) / (2 * e), (F_up - F_down) / (2 * e)

    def around(self, ds: Tensor, dg: Tensor | None = None, dtheta: Tensor | None = None) -> tuple[Answer, Answer, float]:
        """A and U at e times a direction to either side, and e, which changes no argument by more than `share` of it."""
        dg = torch.zeros_like(self.gradient) if dg is None else dg
        dtheta = torch.zeros_like(self.theta) if dtheta is None else dtheta
        reach = max(
            self.size(ds), *(float(dx.norm() / (x.norm() or 1)) for dx, x in ((dg, self.gradient), (dtheta, self.theta)))
        )
        e = self.share / (reach or 1.0)
        up, down = (self.advance(self.s + x * ds, self.gradient + x * dg, self.theta + x * dtheta) for x in (e, -e))
        return up, down, e

    def error(self, expected: Tensor, up: Answer, down: Answer, e: float) -> str:
        """What is wrong with a derivative of A, by what `around` gave in its direction; empty if nothing.

        Args:
            expected: the derivative, shape (size,).
            up: A and U at e times the direction.
            down: at -e times.
            e: from `around`.
        """
        parts = zip(self.names, *map(self.split, ((up[0] - down[0]) / 2, e * expected)), self.norms(), strict=True)
        for name, actual, claimed, norm in parts:
            # Of what the argument changed by, a thousandth is no answer.
            size = max(float(actual.norm()), float(claimed.norm()), 1e-3 * self.share * norm)
            error = float((actual - claimed).norm()) / size
            if error > CHECKED:
                return f"off by {error:.1g} in '{name}' relative to a difference"
        return ""

    @contextmanager
    def run_by(self, method: TorchMethod) -> Iterator[Self]:
        """For a while another variant of the same optimizer takes the steps, one that computes in coarser types, say."""
        own, self.method = self.method, method
        try:
            yield self
        finally:
            self.method = own

    @contextmanager
    def at_count(self, far: int) -> Iterator[None]:
        """For a while so many steps have been taken, as far as the optimizer knows."""
        self.far = far
        try:
            yield
        finally:
            self.far = FAR

    def split(self, s: Tensor) -> tuple[Tensor, ...]:
        """The tensors of s, each as a vector."""
        return s.split(self.sizes)

    def norms(self) -> list[float]:
        """The norm of each tensor of s, or what it had at first if that is larger: it may come to rest at 0."""
        return [max(first, float(x.norm())) or 1.0 for first, x in zip(self.first, self.split(self.s), strict=True)]

    def units(self) -> Tensor:
        """The typical size of a coordinate of each tensor of s, shape (size,)."""
        norms = zip(self.split(self.s), self.norms(), strict=True)
        return torch.cat([torch.full_like(x, norm / len(x) ** 0.5) for x, norm in norms])

    def size(self, ds: Tensor) -> float:
        """The largest change of a tensor of s, relative to it; infinite where it is not finite.

        Args:
            ds: shape (size,).
        """
        if not ds.isfinite().all():
            return np.inf
        return max((float(x.norm()) / norm for x, norm in zip(self.split(ds), self.norms(), strict=True)), default=0.0)


def signs(like: Tensor) -> Tensor:
    """Random signs, ever the same, in the shape and type of `like`."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like).sign()


def floating(value: Any) -> bool:
    """Whether it is a number, or a tensor of numbers, that a memory can average."""
    return value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and torch.equal(x, y)
    return type(x) is type(y) and x == y
