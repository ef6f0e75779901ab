"""Where the memory of a black box comes to rest, and how it answers a disturbance.

A product with A_s is one step with a tangent; averages give I - A_s as many distinct eigenvalues as they have betas, which is
how many products GMRES takes, whatever the size of s.
"""

from collections.abc import Callable, Collection

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from memoryless.errors import NeverForgets, NoSteadyState, NotResolved, Stalled
from memoryless.methods.black_box.derivative import not_finite
from memoryless.methods.black_box.state_vector import FAR, OTHERWISE, Answer, StateVector, signs
from memoryless.methods.forgetting import KEPT, LONGEST

PRODUCTS = 60
"""Most products with A_s for one solution."""
NEWTON = 8
"""Most iterations to find the memory at rest, from one point."""
FOLLOWED = 0, 10, 100, 1000
"""Steps to follow the optimizer, from point to point, where Newton's method starts too far from rest."""
SMALLEST = 1e-8
"""Differences that change their arguments by less than this share of them are not made smaller."""
DROPPED = "forward mode is {}: the step drops a tangent"
GROWS = 0.01 / sum(FOLLOWED)
"""What a memory that never comes to rest moves by a step, relative to it."""


class Memory(StateVector):
    """The memory as one vector s, brought to rest and disturbed there."""

    def rest(self) -> tuple[Tensor, Tensor]:
        """The fixed point s = A(s; g, theta), by Newton's method, and F there.

        Raises:
            NeverForgets: it is not found.
        """
        # A derivative that sees nothing would never bring s to rest.
        probe = self.s * signs(self.s)
        expected, _ = self.push(probe, self.gradient, self.theta)
        if not self.missing and (error := self.error(expected, *self.around(probe, self.gradient, self.theta))):
            self.missing = DROPPED.format(error)
        followed, why = self.s, f"Newton's method fails after {sum(FOLLOWED)} steps, too"
        for length in FOLLOWED:
            for _ in range(length):
                followed, _ = self.advance(followed)
            self.s = followed
            for _ in range(NEWTON):
                after, F = self.advance(self.s)
                moved = self.size(after - self.s)
                if moved <= 10 * self.epsilon or not len(self.s):
                    if not F.isfinite().all():
                        raise NoSteadyState(
                            f"the update at rest is not finite{not_finite(self.gradient, self.theta)}", self.method
                        )
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
        for far in OTHERWISE if self.counters else ():
            with self.at_count(far):
                after, _ = self.advance(self.s)
            moves = [float(x.norm()) / y for x, y in zip(self.split(after - self.s), self.norms(), strict=True)]
            if max(moves, default=0.0) > 1e-6:
                name = self.names[int(np.argmax(moves))]
                raise self._counting(f"'{name}' comes to rest at some step counts only")

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
        size = torch.where(s == 0, self.units(), s.abs()) if len(s) else s
        return 1e-3 * signs(s) * size

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
        for far in OTHERWISE:
            with self.at_count(far):
                other = change()
            if float((other - usual).norm()) > 1e-6 * float(self.s.norm()):
                return True
        return False

    def solve(self, rhs: Tensor, tolerance: float = 0.0) -> Tensor:
        """x with (I - A_s) x = rhs, by GMRES, every tensor of s in units of its own size.

        Args:
            rhs: shape (size,).
            tolerance: relative residual that is enough; at best what the derivative's rounding allows.

        Raises:
            Stalled: no solution is found.
        """
        units, way = self.units(), self.missing

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
            self.require_smooth(*self.around(torch.zeros_like(self.s), drift, back)[:2])
            raise NeverForgets(f"its memory at rest never forgets a disturbance ({stalled})", self.method) from None
        self.require_same_at_other_counts(a + b)
        ages = [float(x.norm() / y.norm()) if y.any() else 0.0 for x, y in zip(self.split(b), self.split(r), strict=True)]
        if max(ages) > LONGEST:
            name = self.names[int(np.argmax(ages))]
            raise NotResolved(f"'{name}' remembers {max(ages):,.0f} steps", LONGEST, self.method)
        # From lag 1 to lag 0: one step of the optimizer itself confirms a and b.
        beside = self.around(a + b, drift, back)
        self.require_smooth(*beside[:2])
        if error := self.error(a, *beside):
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

    def require_smooth(self, up: Answer, down: Answer) -> None:
        """Raise where A turns a corner at rest, by what `around` gave there."""
        odd, even = (up[0] - down[0]) / 2, (up[0] + down[0]) / 2 - self.s
        for name, x, y, norm in zip(self.names, *map(self.split, (odd, even)), self.norms(), strict=True):
            corners = (y.abs() > 0.2 * x.abs()) & (y.abs() > 1e-3 * self.share * norm / len(x) ** 0.5)
            if float(corners.double().mean()) > 0.05:
                raise NeverForgets(
                    f"at rest '{name}' answers a rise and a fall of the gradient differently, as a running maximum does, "
                    "which never forgets",
                    self.method,
                )

    def require_same_at_other_counts(self, direction: Tensor) -> None:
        """Raise if a step from beside s depends on the step count."""
        beside = self.s + 1e-3 / (self.size(direction) or 1.0) * direction
        after, F = self.advance(beside)
        if not (after.isfinite().all() and F.isfinite().all()):
            raise NoSteadyState(f"a step from beside rest is not finite{not_finite(self.gradient, self.theta)}", self.method)
        for far in OTHERWISE:
            with self.at_count(far):
                other, F_other = self.advance(beside)
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
            with self.at_count(far):
                return self._lost(self.s)

        for name, sooner, later in zip(self.names, lost(FAR), lost(2 * FAR), strict=True):
            if sooner < 1e-3 and later < 0.9 * sooner:
                return NeverForgets(f"{why}: '{name}' remembers ever longer", self.method)
        return NoSteadyState(f"{why}, so there is no steady state", self.method)

    def _never(self, s: Tensor, why: str) -> NoSteadyState:
        """What to raise where the memory, followed to s, does not come to rest."""
        gap = self.advance(s)[0] - s
        if not gap.isfinite().all():
            holes = [name for name, x in zip(self.names, self.split(gap), strict=True) if not x.isfinite().all()]
            return NoSteadyState(f"'{holes[0]}' at rest is not finite{not_finite(self.gradient, self.theta)}", self.method)
        moves = [float(x.norm()) / norm for x, norm in zip(self.split(gap), self.norms(), strict=True)]
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
