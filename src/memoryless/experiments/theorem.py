"""Theorem 3.2 put to the test on one method and one problem: which power of lr does the error of each iteration follow?

    max_{n <= T/lr} |theta[n] - t[n]|_inf = C lr^p + O(lr^(p+1)),      p = 1 frozen, 2 first order and resummed, R order R

(https://arxiv.org/abs/2502.02132; order R: `corrections.relaxation`). The frozen iteration, which leaves the correction out, is
the negative control. The power is read at the finest halving of lr that rounding has not reached. What hides it at a given lr
is the term of the next order, whose share grows as lr times the age of the memory and the curvature of the update: a shorter
memory and a larger eps show the same power sooner.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memoryless.corrections.correction import is_order
from memoryless.errors import BadInput, Diverged
from memoryless.experiments import problems
from memoryless.loss.loss import Loss
from memoryless.methods.method import AnyOptimizer
from memoryless.methods.named import resolve
from memoryless.paths.accuracy import Accuracy, accuracy_of, own_path, steps_to
from memoryless.paths.trajectory import Kind
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import plain
from memoryless.render.result import Result

POWER = {"frozen": 1, "first": 2, "resummed": 2}
"""What the theorem says of each kind that has a name; an integer R has power R."""

KINDS: tuple[Kind, ...] = (*POWER, 3, 4)

VISIBLE = {"betas": (0.5, 0.7), "momentum": 0.5, "alpha": 0.7, "eps": 0.1, "smoothing": 0.1}
"""Hyperparameters with which every catalogue method shows its powers at moderate lrs."""

LR, HALVINGS, STEPS = 2e-3, 3, 32
"""Largest step size, how often it is halved, and the steps of the largest that make up the horizon."""

KEPT = 2**25
"""Numbers of the optimizer's own path at one step size that are kept for the next kind; of a longer one it is run again."""

BLACK_BOX = 2, 16
"""Halvings and steps of a black box, which takes all steps before each anew."""


def power(kind: Kind) -> int:
    """The p of the theorem.

    Args:
        kind: "frozen", "first", "resummed" or an integer R >= 1.

    Raises:
        BadInput: another kind.
    """
    if isinstance(kind, str) and kind in POWER:
        return POWER[kind]
    if isinstance(kind, str) or not is_order(kind):
        raise BadInput(f"kinds must be among {', '.join(POWER)}, or integer orders >= 1, got {kind!r}")
    return kind


def tolerance(kind: Kind) -> float:
    """How far from p a slope may be; in higher orders the next one's share is larger at the same lr.

    Args:
        kind: "frozen", "first", "resummed", or an integer order R.
    """
    return 0.15 if power(kind) <= 2 else 0.2


def holds(accuracy: Accuracy) -> bool | None:
    """Whether the finest halving above the floor shows the power; None if rounding leaves no halving to judge.

    Args:
        accuracy: of one kind.
    """
    order = accuracy.order
    return None if math.isnan(order) else abs(order - power(accuracy.kind)) <= tolerance(accuracy.kind)


def label(kind: Kind) -> str:
    """A kind of iteration in words: "first", "order 3".

    Args:
        kind: "frozen", "first", "resummed", or an integer order R.
    """
    return kind if isinstance(kind, str) else f"order {kind}"


@dataclass(frozen=True)
class Verification(Result):
    """Errors of several iterations over the same step sizes, and whether they follow the theorem.

    Attributes:
        method: name and hyperparameters, without lr.
        loss: what it ran on, in words.
        parameters: their number d.
        dtype: such as "float64".
        horizon: time n lr up to which paths were compared.
        lrs: step sizes, decreasing.
        accuracies: one per kind.
    """

    method: str
    loss: str
    parameters: int
    dtype: str
    horizon: float
    lrs: tuple[float, ...]
    accuracies: tuple[Accuracy, ...]

    @property
    def holds(self) -> bool:
        """Whether every kind shows its power."""
        return bool(self.accuracies) and all(map(holds, self.accuracies))

    @property
    def floor(self) -> float:
        """The error below which rounding counts."""
        return max((a.floor for a in self.accuracies), default=math.nan)

    @property
    def verdict(self) -> str:
        """What the slopes say; if it is not what the theorem says, with the numbers, and what to do."""
        reached, missed, hidden = ([a for a in self.accuracies if holds(a) is answer] for answer in (True, False, None))
        parts = []
        if reached:
            parts.append(f"As the theorem says: {', '.join(f'{label(a.kind)} {a.order:.2f}' for a in reached)}.")
        if missed:
            read = ", ".join(f"{label(a.kind)} reads {a.order:.2f}, the theorem says {power(a.kind)}" for a in missed)
            parts.append(f"Not reached: {read}; take smaller lrs, or a method with a shorter memory or a larger eps.")
        if hidden:
            why = "the errors are no larger than rounding; take larger lrs or a longer horizon"
            why += "" if self.dtype == "float64" else f", or float64 in place of {self.dtype}"
            parts.append(f"Not judged: {', '.join(label(a.kind) for a in hidden)}: {why}.")
        return " ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text; None where there is no number."""
        return plain(
            {
                "method": self.method,
                "loss": self.loss,
                "parameters": self.parameters,
                "dtype": self.dtype,
                "horizon": self.horizon,
                "lrs": self.lrs,
                "floor": self.floor,
                "kinds": [
                    {
                        "kind": a.kind,
                        "errors": a.errors,
                        "slopes": a.slopes,
                        "order": a.order,
                        "theorem": power(a.kind),
                        "tolerance": tolerance(a.kind),
                        "holds": holds(a),
                    }
                    for a in self.accuracies
                ],
                "holds": self.holds,
            }
        )


def verify(
    method: AnyOptimizer,
    loss: Loss,
    lrs: Iterable[float] | None = None,
    horizon: float | None = None,
    kinds: Iterable[Kind] = KINDS,
    about: str = "the loss",
    on_step: OnStep = silent,
    steps: int = STEPS,
) -> Verification:
    """Measure the power of lr with which each kind of iteration approaches the optimizer.

    Args:
        method: its lr is the largest, if `lrs` does not say otherwise.
        loss: smooth; full batch; float64, or rounding hides the higher orders.
        lrs: at least two, strictly decreasing; default the method's and three halvings of it, of a black box two.
        horizon: time n lr up to which paths are compared; default `steps` of the largest lr, of a black box 16.
        kinds: "frozen", "first", "resummed" and integer orders.
        about: the loss in words.
        on_step: told the pairs of steps taken, over all kinds and step sizes, and their number.
        steps: of the largest lr, where there is no horizon.

    Returns:
        Errors and slopes, and the verdict.

    Raises:
        Diverged: at which kind, lr and step; carries the kinds that were finished before as a `Verification`.
        BadInput: bad lrs, horizon or kinds; says what was expected.

    Example:
        >>> from memoryless.methods.catalogue import HeavyBall
        >>> loss = PROBLEMS["quadratic"].loss(0)
        >>> print(verify(HeavyBall(lr=0.02, momentum=0.5), loss, horizon=0.2, kinds=["frozen", "first"]).verdict)
        As the theorem says: frozen 0.96, first 1.92.
    """
    halvings, steps = (HALVINGS, steps) if method.parts else BLACK_BOX
    lrs = tuple(method.lr / 2**k for k in range(halvings + 1)) if lrs is None else tuple(lrs)
    horizon = steps * max(lrs, default=0.0) if horizon is None else horizon
    kinds = tuple(kinds)
    if not kinds:
        raise BadInput(f"kinds must name at least one of {', '.join(POWER)}, or an integer order, got none")
    for kind in kinds:
        power(kind)
    theta, found, taken = loss.theta, [], 0

    def verification() -> Verification:
        dtype = str(theta.dtype).removeprefix("torch.")
        return Verification(method.describe(omit=("lr",)), about, theta.numel(), dtype, horizon, lrs, tuple(found))

    def stepped(done: int, total: int) -> None:
        nonlocal taken
        taken = done
        on_step(len(found) * total + done, len(kinds) * total)

    @cache
    def shared(lr: float) -> list[Iterator[Tensor]]:
        return list(itertools.tee(own_path(method, loss, horizon, lr), len(kinds)))

    def own(lr: float) -> Iterator[Tensor]:
        short = theta.numel() * steps_to(horizon, lr) < KEPT
        return shared(lr).pop() if short else own_path(method, loss, horizon, lr)

    for kind in kinds:
        taken = 0
        try:
            found.append(accuracy_of(method, loss, horizon, lrs, kind, own, on_step=stepped))
        except Diverged as error:
            lr = _lr_at(taken, horizon, lrs)
            raise Diverged(f"at lr {lr:g}, comparing {label(kind)}: {error}", error.step, verification()) from error
    return verification()


def _lr_at(taken: int, horizon: float, lrs: tuple[float, ...]) -> float:
    """The step size that was running when so many steps had been taken over all of them."""
    for lr in lrs:
        taken -= steps_to(horizon, lr)
        if taken < 0:
            return lr
    return lrs[-1]


def visible(text: str, loss: Loss) -> tuple[AnyOptimizer, dict[str, Any]]:
    """A method from its description; what that leaves open is chosen so that the powers show at moderate lrs.

    Args:
        text: "adamw", "adamw(betas=(0.9, 0.95))", "torch.optim.Adamax", for `methods.named.resolve`.
        loss: gives a black box the shapes of its parameters.

    Returns:
        The method, and the hyperparameters that were chosen.

    Raises:
        BadInput: unknown method or option, or a value out of range.

    Example:
        >>> method, chosen = visible("adamw(eps=0.01)", PROBLEMS["quadratic"].loss(0))
        >>> chosen
        {'lr': 0.002, 'betas': (0.5, 0.7)}
    """
    named = resolve(text)
    known = named.defaults
    # An update linear in the gradient is not normalized to the size of 1: at the same lr its errors drown in rounding.
    choice = {"lr": LR if known.keys() & {"eps", "smoothing"} else 4 * LR} | VISIBLE
    # Some optimizers have three betas: of another shape, they are left alone.
    fitting = [option for option in choice if option in known and np.shape(known[option]) == np.shape(choice[option])]
    chosen = {option: choice[option] for option in fitting if option not in named.options}
    return named.given(**chosen).method(loss.shapes), chosen


@dataclass(frozen=True)
class Example:
    """A small smooth problem that comes with the installation: what it is, its loss for a seed, steps that show the powers."""

    about: str
    loss: Callable[[int], Loss]
    steps: int = STEPS


def _quadratic(seed: int, waves: float) -> Loss:
    """theta.A theta/2 + waves sum_i (1 - cos theta_i) in eight dimensions, A = Q Q^T / 40."""
    generator = torch.Generator().manual_seed(seed)
    Q, start = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((8, 8), 8))
    A = Q @ Q.T / 40
    return Loss.of(lambda theta: theta @ A @ theta / 2 + waves * (1 - theta.cos()).sum(), start)


PROBLEMS = {
    "digits": Example(
        "10 images of digits, GELU network 64-4-10", lambda seed: problems.digits_mlp(seed, width=4, count=10).loss, 20
    ),
    "quadratic": Example("random convex quadratic", lambda seed: _quadratic(seed, 0.0)),
    "smooth": Example("random convex quadratic plus cosines", lambda seed: _quadratic(seed, 0.2)),
}
