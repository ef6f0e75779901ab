"""The memory of a black box as one vector s: where it comes to rest, and how it answers a disturbance.

One step maps s to A(s; g, theta) and gives F = U(s, g, theta). A product with A_s is one step with a tangent; averages give
I - A_s as many distinct eigenvalues as they have betas, which is how many products GMRES takes, whatever the size of s.

A step count enters through bias corrections and schedules: it is set far out (`FAR`), and what it does there must have ended.
"""

import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor
from torch.autograd import forward_ad

from memoryless.errors import NeverForgets, NoSteadyState, NotResolved, Stalled
from memoryless.methods.black_box.derivative import no_formula, tangent
from memoryless.methods.black_box.snapshot import State
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.forgetting import KEPT, LONGEST

Answer = tuple[Tensor, Tensor]
"""The next s, and F."""

FAR = 5_544_000
"""Steps taken before the steady state, as far as the optimizer knows. Float32 counts so far one by one; a multiple of most
periods, so that what is done every k-th step shows as a difference to the next."""
ENTRIES = 64
"""Most steps until the state has all its entries."""
PRODUCTS = 60
"""Most products with A_s for one solution."""
NEWTON = 8
"""Most iterations to find the memory at rest, from one point."""
FOLLOWED = 0, 10, 100, 1000
"""Steps to follow the optimizer, from point to point, where Newton's method starts too far from rest."""
SMALLEST = 1e-8
"""Differences that change their arguments by less than this share of them are not made smaller."""
DROPPED = "forward mode is {}: step() drops a tangent"
GROWS = 0.01 / sum(FOLLOWED)
"""What a memory that never comes to rest moves by a step, relative to it."""
CHECKED = 1e-4
"""Relative error of the response, against one step of the optimizer, from which it is not believed."""


class Memory:
    """The moving part of an optimizer's memory as one vector s, and its step at frozen counters.

    What belongs to s is found by trying: tensors and numbers that change from step to step, or are others after another past,
    be they written every step or once. Numbers that grow by one a step, whatever the past, are counters.

    Attributes:
        steps: optimizer steps spent.
        share: what a difference changes its arguments by, relative to them.
        missing: why differences take the place of forward mode; empty for forward mode.
        s: the memory at rest, once found.
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
        signs = _signs(theta)
        other = 1.1 * signs * gradient + 0.1 * gradient.norm() * signs, theta + 0.1 * (1 + theta.abs()) * signs
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

    def rest(self) -> tuple[Tensor, Tensor]:
        """The fixed point s = A(s; g, theta), by Newton's method, and F there.

        Raises:
            NeverForgets: it is not found.
        """
        # A derivative that sees nothing would never bring s to rest.
        probe = self.s * _signs(self.s)
        expected, _ = self.push(probe, self.gradient, self.theta)
        if not self.missing and (error := self._error(expected, *self.around(probe, self.gradient, self.theta))):
            self.missing = DROPPED.format(error)
        followed, why = self.s, f"Newton's method fails after {sum(FOLLOWED)} steps, too"
        for length in FOLLOWED:
            for _ in range(length):
                followed, _ = self.advance(followed)
            self.s = followed
            for _ in range(NEWTON):
                after, F = self.advance(self.s)
                moved = self._size(after - self.s)
                if moved <= 10 * self.epsilon or not len(self.s):
                    if not F.isfinite().all():
                        raise NoSteadyState("the update is not finite where its memory comes to rest", self.method)
                    self._require_rest_at_other_counts()
                    return self.s, F
                if not np.isfinite(moved):
                    break
                try:
                    self.s = self.s + self.solve(after - self.s, self.epsilon / moved)
                except Stalled as stalled:
                    why = str(stalled)
                    break
        raise self._never(followed, why)

    def _require_rest_at_other_counts(self) -> None:
        """Raise if the memory at rest is moved by a step at another count."""
        for self.far in (FAR - 1, 2 * FAR + 7) if self.counters else ():
            after = self.advance(self.s)[0]
            moves = [float(x.norm()) / y for x, y in zip(self.split(after - self.s), self._norms(), strict=True)]
            if max(moves, default=0.0) > 1e-6:
                self.far = FAR
                name = self.names[int(np.argmax(moves))]
                raise self._counting(f"'{name}' comes to rest at some step counts only")
        self.far = FAR

    def require_fading(self) -> None:
        """Raise if something in the memory at rest is kept for ever, or nearly so, and has a say in the update.

        Raises:
            NeverForgets: it was written once.
            NotResolved: a step keeps more of it than a memory of `LONGEST` steps would.
            NoSteadyState: it is written anew at some step counts.
        """
        if not len(self.s) and not self.switches:
            return
        apart, (still, F) = self._apart(self.s), self.advance(self.s)
        for i, lost in enumerate(self._lost(self.s)):
            if not lost < 1 / LONGEST:
                continue
            beside = self.s + self._only(apart, {i})
            then, told = self.advance(beside)
            rest = torch.cat([x for j, x in enumerate(self.split(then - still)) if j != i] or [F.new_zeros(0)])
            if torch.equal(told, F) and not rest.any():
                continue  # nothing reads it
            if self._rewritten(lambda beside=beside, i=i: self.split(self.advance(beside)[0] - beside)[i]):
                raise NoSteadyState(
                    f"'{self.names[i]}' is written anew at some step counts, so there is no steady state", self.method
                )
            if lost > KEPT:
                raise self._too_slow(i, lost)
            raise NeverForgets(f"'{self.names[i]}' is written once and read for ever", self.method)
        for i, (name, other) in self.switches.items():
            own, self.still[i] = self.still[i], other
            try:
                then, told = self.advance(self.s)
            finally:
                self.still[i] = own
            if not torch.equal(told, F) or not torch.equal(then, still):
                raise NeverForgets(f"'{name}' is written once and read for ever", self.method)

    def _apart(self, s: Tensor) -> Tensor:
        """A disturbance of s, relative to it, so that what has a sign keeps it."""
        size = torch.where(s == 0, self._units(), s.abs()) if len(s) else s
        return 1e-3 * _signs(s) * size

    def _only(self, apart: Tensor, these: Collection[int]) -> Tensor:
        """A disturbance of some tensors of s alone."""
        parts = [x if i in these else torch.zeros_like(x) for i, x in enumerate(self.split(apart))]
        return torch.cat(parts) if parts else apart

    def _lost(self, s: Tensor) -> list[float]:
        """What each tensor of s loses of a disturbance in a step; one kind at a time, as others may feed on it."""
        apart, still = self._apart(s), self.advance(s)[0]
        lost = [1.0] * len(self.names)
        for kind in dict.fromkeys(self.names):
            these = [i for i, name in enumerate(self.names) if name == kind]
            moved = self.split(self.advance(s + self._only(apart, these))[0] - still)
            for i in these:
                first = self.split(apart)[i]
                lost[i] = float((first - moved[i]).norm() / first.norm()) if first.any() else 1.0
        return lost

    def _too_slow(self, i: int, lost: float) -> NotResolved:
        return NotResolved(f"'{self.names[i]}' loses {lost:.1g} of itself a step", LONGEST, self.method)

    def _rewritten(self, change: Callable[[], Tensor]) -> bool:
        """Whether a change of the memory is another at other step counts."""
        usual = change()
        try:
            for self.far in (FAR - 1, 2 * FAR + 7):
                if float((change() - usual).norm()) > 1e-6 * float(self.s.norm()):
                    return True
        finally:
            self.far = FAR
        return False

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
                with forward_ad.dual_level():
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
            self._size(ds), *(float(dx.norm() / (x.norm() or 1)) for dx, x in ((dg, self.gradient), (dtheta, self.theta)))
        )
        e = self.share / (reach or 1.0)
        up, down = (self.advance(self.s + x * ds, self.gradient + x * dg, self.theta + x * dtheta) for x in (e, -e))
        return up, down, e

    def solve(self, rhs: Tensor, tolerance: float = 0.0) -> Tensor:
        """x with (I - A_s) x = rhs, by GMRES, every tensor of s in units of its own size.

        Args:
            rhs: shape (size,).
            tolerance: relative residual that is enough; at best what the derivative's rounding allows.

        Raises:
            Stalled: no solution is found.
        """
        units, way = self._units(), self.missing

        def product(y: np.ndarray) -> np.ndarray:
            x = units * torch.from_numpy(y).to(units)
            return ((x - self.push(x)[0]) / units).cpu().numpy()

        right = (rhs / units).cpu().numpy()
        operator = LinearOperator((len(right), len(right)), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
        reached = max(1e-9, 10 * self.epsilon / self.share) if self.missing else max(1e-12, 100 * self.epsilon)
        tolerance = max(tolerance, reached)
        solution, failed = gmres(operator, right, rtol=tolerance, atol=0.0, restart=min(PRODUCTS, len(right)), maxiter=1)
        if failed and not np.linalg.norm(right - product(solution)) <= 1e3 * tolerance * np.linalg.norm(right):
            if self.missing != way:
                return self.solve(rhs, tolerance)
            raise Stalled(f"I - dA/ds cannot be inverted within {PRODUCTS} products")
        return units * torch.from_numpy(solution).to(units)

    def lag(self, drift: Tensor, back: Tensor) -> tuple[Tensor, Tensor, float]:
        """How the memory lags behind a gradient that drifts.

        Args:
            drift: w = lr H F.
            back: lr F.

        Returns:
            a and b, so that the memory of k steps ago is s + a + k b, and the mean age of the longest memory.

        Raises:
            NeverForgets: the memory does not fade, or turns a corner at rest.
            NotResolved: it is longer than `LONGEST`.
            NoSteadyState: it has no derivative.
        """
        try:
            r = self.push(torch.zeros_like(self.s), drift, back)[0]
            b = self.solve(r)
            a = self.solve(b)
        except Stalled as stalled:
            if self._sharpened():
                return self.lag(drift, back)
            self._require_smooth(*self.around(torch.zeros_like(self.s), drift, back)[:2])
            raise NeverForgets(f"its memory at rest never forgets a disturbance ({stalled})", self.method) from None
        self._check_count(a + b)
        ages = [float(x.norm() / y.norm()) if y.any() else 0.0 for x, y in zip(self.split(b), self.split(r), strict=True)]
        if max(ages) > LONGEST:
            name = self.names[int(np.argmax(ages))]
            raise NotResolved(f"'{name}' remembers {max(ages):,.0f} steps", LONGEST, self.method)
        # From lag 1 to lag 0: one step of the optimizer itself confirms a and b.
        beside = self.around(a + b, drift, back)
        self._require_smooth(*beside[:2])
        if error := self._error(a, *beside):
            if self.missing and not self._sharpened():
                raise NoSteadyState(f"its memory has no derivative at rest (it is {error})", self.method)
            self.missing = self.missing or DROPPED.format(error)
            return self.lag(drift, back)
        return a, b, max(ages)

    def _sharpened(self) -> bool:
        """Make differences smaller, if they are used and can be: they may have crossed the corners of a maximum."""
        if not self.missing or self.share < SMALLEST:
            return False
        self.share /= 100
        return True

    def _error(self, expected: Tensor, up: Answer, down: Answer, e: float) -> str:
        """What is wrong with a derivative of A, by what `around` gave in its direction."""
        parts = zip(self.names, *map(self.split, ((up[0] - down[0]) / 2, e * expected)), self._norms(), strict=True)
        for name, actual, claimed, norm in parts:
            # Of what the argument changed by, a thousandth is no answer.
            size = max(float(actual.norm()), float(claimed.norm()), 1e-3 * self.share * norm)
            error = float((actual - claimed).norm()) / size
            if error > CHECKED:
                return f"off by {error:.1g} in '{name}' relative to a difference"
        return ""

    def _require_smooth(self, up: Answer, down: Answer) -> None:
        """Raise where A turns a corner at rest, by what `around` gave there."""
        odd, even = (up[0] - down[0]) / 2, (up[0] + down[0]) / 2 - self.s
        for name, x, y, norm in zip(self.names, *map(self.split, (odd, even)), self._norms(), strict=True):
            corners = (y.abs() > 0.2 * x.abs()) & (y.abs() > 1e-3 * self.share * norm / len(x) ** 0.5)
            if float(corners.double().mean()) > 0.05:
                raise NeverForgets(
                    f"at rest '{name}' answers a rise and a fall of the gradient differently, as a running maximum does, "
                    "which never forgets",
                    self.method,
                )

    def _check_count(self, direction: Tensor) -> None:
        """Raise if a step from beside s depends on the step count."""
        beside = self.s + 1e-3 / (self._size(direction) or 1.0) * direction
        after, F = self.advance(beside)
        for far in (FAR - 1, 2 * FAR + 7):
            self.far = far
            other, F_other = self.advance(beside)
            self.far = FAR
            gaps = zip(
                ["the update", *self.names],
                [F_other - F, *self.split(other - after)],
                [F, *self.split(after - beside)],
                strict=True,
            )
            for name, change, step in gaps:
                if not float(change.norm()) <= 1e-6 * float(step.norm()):
                    what = name if name == "the update" else repr(name)
                    raise self._counting(f"{what} still depends on the step count after {FAR} steps")

    def _counting(self, why: str) -> NoSteadyState:
        """What to raise where a step depends on the count: a memory that lengthens with it never fades, a period may."""

        def lost(far: int) -> list[float]:
            self.far = far
            try:
                return self._lost(self.s)
            finally:
                self.far = FAR

        for name, sooner, later in zip(self.names, lost(FAR), lost(2 * FAR), strict=True):
            if sooner < 1e-3 and later < 0.9 * sooner:
                return NeverForgets(f"{why}: '{name}' remembers ever longer", self.method)
        return NoSteadyState(f"{why}, so there is no steady state", self.method)

    def _never(self, s: Tensor, why: str) -> NoSteadyState:
        """What to raise where the memory, followed to s, does not come to rest."""
        gap = self.advance(s)[0] - s
        moves = [float(x.norm()) / norm for x, norm in zip(self.split(gap), self._norms(), strict=True)]
        why = (
            f"'{self.names[int(np.argmax(moves))]}' never comes to rest, it moves by {max(moves):.1g} of itself a step ({why})"
        )
        if self._rewritten(lambda: self.advance(s)[0] - s):
            return NoSteadyState(f"{why}, but for some step counts", self.method)
        longest = int(np.argmax(moves))
        if KEPT < (lost := self._lost(s)[longest]) < 1 / LONGEST:
            return self._too_slow(longest, lost)
        # A sum of N steps grows by about 1 / N of itself; less is a memory at rest but for rounding and switches.
        return (NeverForgets if max(moves) > GROWS else NoSteadyState)(why, self.method)

    @contextmanager
    def run_by(self, method: TorchMethod) -> Iterator["Memory"]:
        """For a while another variant of the same optimizer takes the steps, one that computes in coarser types, say."""
        own, self.method = self.method, method
        try:
            yield self
        finally:
            self.method = own

    def split(self, s: Tensor) -> tuple[Tensor, ...]:
        """The tensors of s, each as a vector."""
        return s.split(self.sizes)

    def _norms(self) -> list[float]:
        """The norm of each tensor of s, or what it had at first if that is larger: it may come to rest at 0."""
        return [max(first, float(x.norm())) or 1.0 for first, x in zip(self.first, self.split(self.s), strict=True)]

    def _units(self) -> Tensor:
        norms = zip(self.split(self.s), self._norms(), strict=True)
        return torch.cat([torch.full_like(x, norm / len(x) ** 0.5) for x, norm in norms])

    def _size(self, ds: Tensor) -> float:
        """The largest change of a tensor of s, relative to it; infinite where it is not finite."""
        if not ds.isfinite().all():
            return np.inf
        return max((float(x.norm()) / norm for x, norm in zip(self.split(ds), self._norms(), strict=True)), default=0.0)


def _signs(like: Tensor) -> Tensor:
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
