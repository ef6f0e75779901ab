"""What memory acts on: measures S(theta) of the loss, each with its gradient.

The change that an effect E (an update, theta_next = theta - lr E) makes to S in one step is -lr <grad S, E>, to first order
in lr.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from memoryless.errors import BadInput, BadType
from memoryless.flat import dot, norm, total
from memoryless.loss.point import Point

Differentiable = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Value:
    """A measure at one theta.

    Attributes:
        name: of the measure.
        value: S(theta).
        gradient: grad S(theta), shape (d,).
    """

    name: str
    value: float
    gradient: Tensor

    def change(self, effect: Tensor, lr: float) -> float:
        """The change that an effect makes to S in one step, relative to S: -lr <grad S, effect> / S; 0 where S is.

        Args:
            effect: shape (d,), in the units of an update.
            lr: step size.
        """
        return -lr * float(dot(self.gradient, effect)) / self.value if self.value else 0.0


def gradient_1_norm(point: Point) -> tuple[Tensor, Tensor]:
    """|grad L|_1, what sign-like optimizers descend along; its gradient is H sign(g)."""
    return total(point.gradient.abs()), point.curvature(point.gradient.sign())


def gradient_norm_squared(point: Point) -> tuple[Tensor, Tensor]:
    """|grad L|^2, the flatness penalty of gradient descent; its gradient is 2 H g."""
    return total(point.gradient.square()), 2 * point.curvature(point.gradient)


def sharpness(point: Point) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue of H, by Lanczos (ARPACK); its gradient is the third derivative D^3 L[v, v, .].

    v is the unit eigenvector. By symmetry D^3 L[v, v, .] is the derivative of H(theta + e v) v along e, here a central
    difference of two products: third derivatives through fused layers are not to be trusted. Relative error about 1e-9 in
    float64, 1e-2 in float32.
    """
    loss, theta = point.loss, point.theta

    def matvec(x: np.ndarray) -> np.ndarray:
        return point.curvature(torch.from_numpy(x.reshape(-1)).to(theta)).double().cpu().numpy()

    d = theta.numel()
    double = theta.dtype == torch.float64
    operator = LinearOperator((d, d), matvec=matvec, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    if d <= 2:
        matrix = np.column_stack([matvec(column) for column in np.eye(d)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    else:
        start = np.random.default_rng(0).standard_normal(d)
        tolerance: Any = 1e-7 if double else 1e-3  # scipy's stubs say int
        values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance)
    v = torch.from_numpy(vectors[:, -1].copy()).to(theta)
    step = float(torch.finfo(theta.dtype).eps ** (1 / 3) * (1 + norm(theta)))
    difference = loss.curvature(theta + step * v, v) - loss.curvature(theta - step * v, v)
    return torch.as_tensor(values[-1]), difference / (2 * step)


MEASURES = {f.__name__: f for f in (gradient_1_norm, gradient_norm_squared, sharpness)}


def evaluate(measures: Sequence[str | Differentiable], point: Point) -> list[Value]:
    """Value and gradient of each measure at a point.

    Args:
        measures: names in `MEASURES`, or your own differentiable functions theta -> scalar (a validation `Loss`, say).
        point: of the loss.

    Returns:
        One `Value` per measure.

    Raises:
        BadInput: unknown name, or one that occurs twice.
        BadType: your function returns no differentiable scalar.

    Example:
        >>> from memoryless.loss.loss import Loss
        >>> loss = Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([3.0, -4.0]))
        >>> evaluate(["gradient_1_norm"], Point(loss))
        [Value(name='gradient_1_norm', value=7.0, gradient=tensor([ 1., -1.]))]
    """
    if isinstance(measures, str) or callable(measures):
        raise BadType(f"measures must be a sequence such as ['gradient_1_norm'], got {measures!r}")
    found = []
    for measure in measures:
        if callable(measure):
            found.append(_own(measure, point.theta))
            continue
        if measure not in MEASURES:
            raise BadInput(f"unknown measure {measure!r}; expected one of {', '.join(MEASURES)}, or a function of theta")
        value, slope = MEASURES[measure](point)
        found.append(Value(measure, float(value), slope))
    names = [value.name for value in found]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"two measures are called '{repeated}'; give the functions different names")
    return found


def _own(measure: Differentiable, theta: Tensor) -> Value:
    name = getattr(measure, "__name__", type(measure).__name__)
    with torch.enable_grad():
        leaf = theta.detach().requires_grad_()
        value = measure(leaf)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise BadType(f"measure '{name}' must return a scalar tensor that depends on theta differentiably")
        (slope,) = torch.autograd.grad(value.reshape(()), leaf)
    return Value(name, float(value.detach()), slope)
