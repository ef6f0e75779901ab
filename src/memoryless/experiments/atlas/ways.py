"""First order and resummed, each in two ways that share no step: for any optimizer, also one that evaluates the loss itself.

The second way is Eq. 9 taken literally,

    D[j] = sum_{s = j..n-1} F[s](theta),    theta[j] = theta + e lr D[j],    M[n] = dF[n]/de at e = 0,

with the loss's own gradient at every theta[j]: no curvature, no tangent, no span of directions. Its e falls by eights; of two
neighbours (extrapolated) those that differ least are taken, so it knows its own doubt. The resummed M is checked with one
Hessian-vector product for each D[j].
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from memoryless.corrections.expansion import expansion
from memoryless.errors import BadInput, DrawsNumbers
from memoryless.experiments.atlas.subjects import Make, Subject
from memoryless.isolation import isolated
from memoryless.loss.loss import Loss
from memoryless.loss.point import Point
from memoryless.methods.black_box.derivative import Counted
from memoryless.methods.black_box.torch_method import Lifted, TorchMethod

History = Iterable[tuple[Tensor, Tensor]]
Run = Callable[[History], Iterator[Tensor]]
"""Gradient and theta of each step -> F of each step, from empty memory."""

STEP = 30
"""n of the finite step."""
RATIO, RUNGS, ENOUGH = 8, 10, 1e-7
"""The step of the literal difference falls by this, this many times at most, until this doubt."""
AGREE = 1e-3
"""Two ways agree if they differ by at most this share."""
CORNER = 0.02
"""A corner: slopes to the two sides that differ by more than this share of them, so near that differences have converged;
where F[n] is smooth they then differ by a thousandth."""
LAG_BY_LAG = "lag by lag, the loss evaluated at every point"
ROUNDING = 1e-13
"""A change of the gradients that no answer may depend on, relative to them."""


def reason_of(error: BaseException) -> str:
    """One line.

    Args:
        error: why there is no answer.
    """
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


@dataclass(frozen=True)
class Ways:
    """First order and resummed, each found in two ways.

    Attributes:
        first: M of the machine.
        literal: M of Eq. 9 taken literally.
        doubt: of `literal`, by its own account, relative.
        summed: resummed M of the machine.
        summed_literal: with one product for each D[j]; None where there is one way only.
        F: update with the history frozen.
        way: how `first` was differentiated.
        why: reason for the way, or for there being no derivative.
        corner: difference of the slopes to the two sides of the frozen history, relative.
        forgets: whether F[n] is bit for bit the same after a past of entirely different gradients.
        rough: relative change of F[n] with gradients changed by `ROUNDING`, where the ways disagree.
    """

    first: Tensor | None
    literal: Tensor
    doubt: float
    summed: Tensor
    summed_literal: Tensor | None
    F: Tensor
    way: str
    why: str
    corner: float
    forgets: bool
    rough: float = 0.0

    @property
    def gap(self) -> float:
        """Between the two first orders, relative."""
        return math.inf if self.first is None else _gap(self.first, self.literal)

    @property
    def summed_gap(self) -> float | None:
        """Between the two resummed ones, relative; the larger is the unit, or the rounding of F if that is larger still."""
        if self.summed_literal is None:
            return None
        return _gap(self.summed, self.summed_literal, floor=1e-10 * float(self.F.norm()))

    @property
    def kind(self) -> str:
        """Of the answer."""
        if self.forgets:
            return "no memory"
        moves = float(self.literal.norm()) > 1e-9 * float(self.F.norm())
        # Central differences, either way, may agree about a corner without seeing it.
        if self.corner > CORNER and (moves or self.gap > AGREE):
            return "corner" if self.summed_gap is not None and self.summed_gap <= AGREE else "refused"
        if moves:
            return "agreed" if self.gap <= AGREE else "refused"
        return "flat" if max(self.gap, self.summed_gap or 0.0) <= AGREE else "refused"


def _gap(x: Tensor, y: Tensor, floor: float = 0.0) -> float:
    size = max(float(x.norm()), float(y.norm()), floor)
    return float((x - y).norm()) / size if size else 0.0


@dataclass(frozen=True)
class Machine:
    """An optimizer on one problem, ready to run.

    Attributes:
        run: the optimizer as a method.
        lr: its learning rate.
        text: what was run, in words.
        ways: finds first order and resummed.
        method: it as a black box; None where that needs more than gradients.
    """

    run: Run
    lr: float
    text: str
    ways: Callable[[], Ways]
    method: TorchMethod | None


def machine(subject: Subject, loss: Loss, seed: int | None = None) -> Machine:
    """An optimizer on a problem.

    Args:
        subject: the optimizer.
        loss: the problem.
        seed: of what it draws; None leaves its step() as it is.

    Raises:
        BadInput: it cannot be made, or fails.
    """
    make = subject.make if seed is None else subject.seeded(seed)
    if subject.needs == "gradient":
        method = TorchMethod(make, loss.shapes)
        return Machine(Counted(method.exact).run, method.lr, str(method), partial(_of_method, method, loss), method)
    run, lr, text = _live(subject, make, loss)
    return Machine(run, lr, text, partial(_of_live, run, loss, lr), None)


def draws_numbers(subject: Subject, loss: Loss) -> bool:
    """Whether it draws random numbers.

    Args:
        subject: an optimizer.
        loss: the problem.
    """
    if subject.needs != "gradient":
        one, other = (_frozen(machine(subject, loss, seed).run, loss)[-1] for seed in (0, 1))
        return not torch.equal(one, other)
    try:
        TorchMethod(subject.make, loss.shapes)
    except DrawsNumbers:
        return True
    return False


def _of_method(method: TorchMethod, loss: Loss) -> Ways:
    """Both ways for an optimizer that needs no more than gradients."""
    theta = loss.theta
    found = expansion(method, Point(loss), STEP)
    summed = found.resummed().value
    try:
        M, way, why = found.first()
    except BadInput as error:
        M, way, why = None, "none", reason_of(error)
    run = Counted(method.exact).run
    with isolated(theta.device):
        literal, doubt, corner, D, frozen = literally(run, loss, method.lr)
        g, product = loss.linearize(theta)
        history = [(g + product(method.lr * back), theta + method.lr * back) for back in D]
        summed_literal = _last(run, history) - frozen
    ways = Ways(M, literal, doubt, summed, summed_literal, found.F, way, why, corner, _forgets(run, loss))
    return ways if ways.kind != "refused" else replace(ways, rough=_rough(run, history))


def literally(run: Run, loss: Loss, lr: float) -> tuple[Tensor, float, float, list[Tensor], Tensor]:
    """Eq. 9 taken literally: a central difference along the whole history of live gradients.

    Args:
        run: the optimizer.
        loss: its own gradients are used, at every theta[j].
        lr: learning rate.

    Returns:
        M, its doubt of itself relative to it, how sharp a corner F[n] turns at e = 0, D[0..n] and F[n].
    """
    theta, D, frozen = _frozen(run, loss)

    def along(e: float) -> Tensor:
        points = [theta + e * lr * back for back in D]
        return _last(run, [(loss.gradient(point), point) for point in points])

    far = lr * max(float(back.norm()) for back in D) or 1.0
    along = cache(along)
    M, doubt, x = _extrapolated(along, min(1.0, 0.3 * float(theta.norm()) / far))
    return M, doubt, _gap(along(x) - frozen, frozen - along(-x)), D, frozen


def _rough(run: Run, history: list[tuple[Tensor, Tensor]]) -> float:
    """How much F[n] changes, relative to it, with gradients changed by no more than rounding."""
    generator = torch.Generator().manual_seed(0)
    noisy = [(g * (1 + ROUNDING * torch.randn(g.shape, generator=generator, dtype=g.dtype)), theta) for g, theta in history]
    return _gap(_last(run, history), _last(run, noisy))


def _forgets(run: Run, loss: Loss) -> bool:
    """Whether F[n] is what it is after a past at another theta, and of much larger gradients."""
    theta = loss.theta
    now, past = (loss.gradient(theta), theta), (loss.gradient(-2 * theta), -2 * theta)
    large = -1e6 * now[0], theta
    with isolated(theta.device):
        usual = _last(run, [now] * (STEP + 1))
        return all(torch.equal(usual, _last(run, [other] * STEP + [now])) for other in (past, large))


def _frozen(run: Run, loss: Loss) -> tuple[Tensor, list[Tensor], Tensor]:
    """Theta, D[0..n] and F[n]."""
    theta = loss.theta
    g = loss.gradient(theta)
    F = list(run([(g, theta)] * (STEP + 1)))
    back = list(itertools.accumulate(reversed(F[:-1]), initial=torch.zeros_like(theta)))
    return theta, back[::-1], F[-1]


def _last(run: Run, history: History) -> Tensor:
    *_, F = run(history)
    return F


def _extrapolated(along: Callable[[float], Tensor], e: float) -> tuple[Tensor, float, float]:
    """d/de along(e) at 0, the doubt of it, relative, and the e that it was found with.

    Central differences at e / 8^k, Richardson's extrapolation (their error is in e^2), the two neighbours that differ least.
    """
    best, doubt, found = None, math.inf, e
    last = extrapolated = why = None
    for x in (e / RATIO**k for k in range(RUNGS)):
        try:
            central = (along(x) - along(-x)) / (2 * x)
        except ValueError as error:  # not finite so far out
            last, extrapolated, why = None, None, error
            continue
        if last is not None:
            better = central + (central - last) / (RATIO**2 - 1)
            # Two zeros agree at every scale: the smallest decides.
            if extrapolated is not None and (change := _gap(better, extrapolated)) <= doubt:
                best, doubt, found = better, change, x
            extrapolated = better
        if 0 < doubt < ENOUGH:
            break
        last = central
    if best is None:
        raise why or ValueError("no difference of F is finite")
    return best, doubt, found


def _live(subject: Subject, make: Make, loss: Loss) -> tuple[Run, float, str]:
    """An optimizer that evaluates the loss itself, in a plain training loop."""
    # Frozen histories ask again and again at the same theta.
    value, gradient, diagonal = (_remembered(f) for f in (lambda x: loss(x).detach(), loss.gradient, partial(_diagonal, loss)))
    sizes = [shape.numel() for shape in loss.shapes]

    def split(vector: Tensor) -> list[Tensor]:
        return [part.reshape(shape).clone() for part, shape in zip(vector.split(sizes), loss.shapes, strict=True)]

    def run(history: History) -> Iterator[Tensor]:
        parameters = [nn.Parameter(part) for part in split(loss.theta)]
        optimizer: Any = make(parameters)

        def here() -> Tensor:
            return torch.cat([p.detach().reshape(-1) for p in parameters])

        def closure() -> Tensor:
            for p, part in zip(parameters, split(gradient(here())), strict=True):
                p.grad = part
            return value(here()).clone()

        for _, theta in history:
            with torch.no_grad():
                for p, part in zip(parameters, split(theta), strict=True):
                    p.copy_(part)
            closure()
            with Lifted():
                optimizer.step(hessian=split(diagonal(theta))) if subject.needs == "hessian" else optimizer.step(closure)
            F = (theta - here()) / lr
            if not F.isfinite().all():
                raise BadInput(f"{type(optimizer).__name__}: the update is not finite")
            yield F

    optimizer = make([nn.Parameter(part) for part in split(loss.theta)])
    lr = float(optimizer.param_groups[0].get("lr", 1.0))
    return run, lr, f"{type(optimizer).__name__}({subject.given})"


def _diagonal(loss: Loss, theta: Tensor) -> Tensor:
    """Of H."""
    hessian: Any = torch.autograd.functional.hessian(loss, theta, vectorize=True)
    return hessian.diagonal()


def _remembered(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    known: dict[bytes, Tensor] = {}

    def remembered(x: Tensor) -> Tensor:
        key = x.numpy().tobytes()
        if key not in known:
            if len(known) > 100:
                known.clear()
            known[key] = f(x)
        return known[key]

    return remembered


def _of_live(run: Run, loss: Loss, lr: float) -> Ways:
    """Both ways for an optimizer that evaluates the loss itself: all lags at once, and lag by lag as Eq. 9 sums them.

    Resummed is the live history itself, theta[j] = theta + lr D[j].
    """
    literal, doubt, corner, D, frozen = literally(run, loss, lr)
    theta = loss.theta
    g = torch.zeros_like(theta)
    first = torch.zeros_like(theta)
    e = 1e-4 * min(1.0, float(theta.norm()) / (lr * max(float(back.norm()) for back in D) or 1.0))
    for j, back in enumerate(D[:-1]):
        x = e * float(D[0].norm() / back.norm()) if back.any() else e

        def at(x: float, j: int = j, back: Tensor = back) -> Tensor:
            return _last(run, [(g, theta + x * lr * back if i == j else theta) for i in range(STEP + 1)])

        first += (at(x) - at(-x)) / (2 * x)
    summed = _last(run, [(g, theta + lr * back) for back in D]) - frozen
    return Ways(
        first,
        literal,
        doubt,
        summed,
        None,
        frozen,
        "difference",
        LAG_BY_LAG,
        corner,
        _forgets(run, loss),
    )
