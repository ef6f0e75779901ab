"""The derivative of a black box's update along a direction, found in two ways.

Forward mode through step() is exact but blind where an optimizer detaches or calls .item(); a central difference sees all, to
fewer digits. Neither is believed alone.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from memoryless.errors import BadInput, NoForwardMode
from memoryless.flat import norm
from memoryless.methods.black_box.torch_method import TorchMethod

Way = Literal["forward mode", "difference", "none", "momentum form"]
RATIO = 8
"""Between successive steps of a difference."""
ONE_SIDED = 1e-3
"""How far a one-sided difference may be from a central one: its error is of first order in its step, 1e-5."""
FINER = 6
"""Steps of a difference, ever finer, to confirm forward mode with."""
CERTAIN = 0.9
"""Differences count if they agree with each other on the whole or at this share of the coordinates; a few may turn sharply."""


JUMP = 1e-6, 0.1
"""A jump: displaced by the first share, F changes by the second, or more, of what the whole displacement changes it by."""
NONE = 'the resummed correction needs none: ml.correction(..., order="resummed")'
"""What to do without a derivative."""
STEEP = 10
"""|M| over |F| from which a jump is looked for although differences agree."""


class Derivative(NamedTuple):
    """A derivative, and how it was found.

    Attributes:
        value: shape (d,).
        way: of differentiating.
        reason: why that way.
    """

    value: Tensor
    way: Way
    reason: str


def no_formula(error: Exception) -> str:
    """Why there is no forward mode, from what torch raised."""
    return f"forward mode has no formula here ({str(error).splitlines()[0]})"


def not_finite(gradient: Tensor, theta: Tensor) -> str:
    """Why an update is not finite, and what to do.

    Args:
        gradient: that it was made of.
        theta: likewise.
    """
    if not (gradient.isfinite().all() and theta.isfinite().all()):
        return ", nor is its gradient; lower lr or check the loss"
    return (
        ", though its gradient is: step() divides by, or takes the root of, what rounding leaves of 0, the variance of a "
        "gradient that stays the same, say; switch that part off (centered=False)"
    )


class Counted:
    """A black box whose steps are counted."""

    def __init__(self, method: TorchMethod):
        self.method, self.steps = method, 0

    def run(self, history: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """F of each step from empty memory.

        Args:
            history: gradient and theta of each step, which may be dual tensors.

        Yields:
            F, shape (d,), float64.

        Raises:
            BadInput: F is not finite, or the memory at the end is not.
        """
        twin, n, F = None, 0, None
        for n, (gradient, theta) in enumerate(history):
            twin = twin or self.method.twin(theta)
            self.steps += 1
            F = self.method.displacement(twin, gradient, theta)
            if not F.isfinite().all():
                raise BadInput(f"{self.method}: the update is not finite at step {n}{not_finite(gradient, theta)}")
            yield F
        if twin is not None and F is not None:
            self.method.require_finite(F, twin.leaves(), n)

    def last(self, history: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """F of the last step of `run`."""
        *_, F = self.run(history)
        return F


def tangent(dual: Tensor) -> Tensor:
    """The tangent of a dual tensor; 0 if it has none."""
    found = forward_ad.unpack_dual(dual).tangent
    return torch.zeros_like(dual) if found is None else found


def derivative(
    method: TorchMethod,
    forward: Callable[[], Tensor],
    along: Callable[[float], Tensor],
    F: Tensor,
    theta: Tensor,
) -> Derivative:
    """d/de along(e) at 0, by forward mode where it is right, else by differences.

    The step e of a difference changes F by a share epsilon^(1/3) of it, where truncation and the rounding epsilon of
    F = (theta - theta_next) / lr balance. Where forward mode disagrees, or differences do with each other, four steps are
    compared coordinate by coordinate.

    Args:
        method: any torch optimizer.
        forward: the derivative by forward mode; may raise.
        along: e -> F at e times the direction.
        F: along(0).
        theta: shape (d,), where F was read off.

    Returns:
        The derivative, shape (d,).

    Raises:
        BadInput: neither way gives one.
    """
    try:
        M, missing = forward(), ""
    except NoForwardMode as why:
        M, missing = None, str(why)
    except (RuntimeError, ValueError) as error:  # step() works without tangents: it is their fault
        M, missing = None, no_formula(error)
    epsilon = rounding(method, F, theta)
    tolerance = min(max(1e-5, 30 * epsilon ** (2 / 3)), 0.5)
    digits = "" if method.dtype == torch.float64 else f"; {method.dtype} inside step() limits it"
    along = functools.cache(along)
    e = _scale(M, along, F, epsilon ** (1 / 3))

    def central(e: float) -> Tensor:
        return (along(e) - along(-e)) / (2 * e)

    if M is not None and _confirmed(method, M, lambda k: central(e / RATIO**k), tolerance):
        # Beside a switch differences, ever finer, end where rounding keeps them on this side of it: at 0.
        if not M.any() or float(norm(M)) > STEEP * float(norm(F)):
            _require_no_jump(method, along, F)
        return Derivative(M, "forward mode", "a difference agrees" + digits)
    if M is None:
        # One side of a step eight times as large sees the same derivative: three runs in place of eight.
        fine, coarse = central(e / RATIO), (along(e) - F) / e
        if fine.any() and _worst(method, coarse, fine, torch.zeros_like(F), 0.0) <= ONE_SIDED:
            return Derivative(fine, "difference", missing + digits)
    _require_no_jump(method, along, F)
    return _by_differences(method, M, missing, along, F, e, tolerance, digits)


def _require_no_jump(method: TorchMethod, along: Callable[[float], Tensor], F: Tensor) -> None:
    """Raise where F changes at once: e -> 0 shrinks the change of a smooth F in proportion, of a switch not at all."""
    near, share = JUMP
    for side in (1.0, -1.0):
        try:
            whole, change = (float(norm(along(side * e) - F)) for e in (1.0, near))
        except BadInput:  # not finite so far out
            continue
        if change >= share * whole > 1e-3 * float(norm(F)):
            raise BadInput(
                f"{method}: the update has no derivative here: it jumps, a displacement {near:g} as large changes it by "
                f"{change / whole:.0%} of what the whole one does; {NONE}"
            )


def _confirmed(method: TorchMethod, M: Tensor, finer: Callable[[int], Tensor], tolerance: float) -> bool:
    """Whether a central difference agrees with M; where a corner is near, only a finer one stays on this side of it."""
    if not M.isfinite().all():
        return False
    last = None
    for k in range(FINER if M.any() else 1):
        D = finer(k)
        if _worst(method, M, D, torch.zeros_like(M), 0.0) <= tolerance:
            return True
        if last is not None and _worst(method, last, D, torch.zeros_like(M), 0.0) <= tolerance:
            return False  # differences have converged, to something else
        last = D
    return False


def _by_differences(
    method: TorchMethod,
    M: Tensor | None,
    missing: str,
    along: Callable[[float], Tensor],
    F: Tensor,
    e: float,
    tolerance: float,
    digits: str,
) -> Derivative:
    """Central differences of four steps, compared coordinate by coordinate, and what of forward mode they bear out."""
    steps = [(along(x) - along(-x)) / (2 * x) for x in (e * RATIO**k for k in range(-2, 2))]
    # Truncation falls with e and rounding grows: of neighbours take those that differ least, and of the two the finer.
    doubt, which = torch.stack([(fine - coarse).abs() for fine, coarse in itertools.pairwise(steps)]).min(dim=0)
    D = torch.stack(steps).gather(0, which[None])[0]
    # Where the terms of D cancel (Adam at n = 1), they count.
    size = max(float(norm(D)), float(norm(along(e) - F)) / e)
    share = float((doubt <= tolerance**0.5 * D.abs()).double().mean())
    certain = float(norm(doubt)) <= tolerance**0.5 * size or share > CERTAIN
    if M is not None:
        holes = ~M.isfinite()
        M = torch.where(holes, D, M)
        if not certain and not holes.any() and M.any():
            return Derivative(M, "forward mode", f"differences are too coarse to check it{digits}")
        if (error := _worst(method, M, D, 10 * doubt, size)) <= tolerance:
            where = f"; at {int(holes.sum())} coordinates, where it is not finite, the difference" if holes.any() else ""
            return Derivative(M, "forward mode", f"a difference agrees{where}{digits}")
        missing = f"forward mode is off by {error:.1g} relative to it: the step drops a tangent"
    if not certain:
        raise BadInput(
            f"{method}: the update has no derivative here ({missing}, and differences of two steps disagree by "
            f"{float(norm(doubt) / norm(D)):.0%}); {NONE}"
        )
    return Derivative(D, "difference", missing + digits)


def rounding(method: TorchMethod, F: Tensor, theta: Tensor) -> float:
    """Relative rounding of F: that of the type computed in, or of reading it off theta."""
    double = torch.finfo(torch.float64).eps
    read = double * float(norm(theta)) / (method.lr * float(norm(F))) if F.any() else 0.0
    return min(max(torch.finfo(method.dtype).eps, read), 1e-2)


def _scale(M: Tensor | None, along: Callable[[float], Tensor], F: Tensor, share: float) -> float:
    """The e that changes F by that share of it, from M where that is known."""
    if not F.any():
        return share
    known = M is not None and M.isfinite().all() and M.any()
    e = share * float(norm(F) / norm(M)) if M is not None and known else share
    for _ in range(4):
        change = float(norm(along(e) - F) / norm(F))
        if not change or share / 10 < change < 10 * share:
            break
        e *= min(max(share / change, 1e-3), 1e3)
    return e


def _worst(method: TorchMethod, M: Tensor, D: Tensor, doubt: Tensor, size: float) -> float:
    """The largest relative difference of M and D over the parameters, beyond doubt; against D, or `size` if larger."""
    gap = ((M - D).abs() - doubt).clamp_min(0)
    scales = [float(norm(D[part])) + 1e-2 * max(float(norm(D)), size) for part in method.slices]
    gaps = [float(norm(gap[part])) for part in method.slices]
    return max((g / scale if scale else float(g > 0) for g, scale in zip(gaps, scales, strict=True)), default=0.0)
