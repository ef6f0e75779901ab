"""What memory acts on: measures S(theta) of the loss, each with its gradient, and with its value at other points.

The change that an effect E (an update, theta_next = theta - lr E) makes to S in one step is -lr <grad S, E> to first order in
lr, the slope; what happens is a difference of two values.

Some speak of the batches, of which the terms that noise adds to a modified loss are made: of a batch's own gradient g_i and
Hessian H_i, averaged over the loss's batches. At full batch each is the one of L itself, the variance 0. They are found in one
pass over the batches, a gradient and a product of each (a gradient where only S is asked for), one graph held at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from memoryless.errors import BadInput, BadType
from memoryless.flat import dot, norm, total
from memoryless.loss.point import Point
from memoryless.loss.products import Curvature

Differentiable = Callable[[Tensor], Tensor]
At = Callable[[Point], float]
"""S at a point."""


@dataclass(frozen=True)
class Value:
    """A measure at one theta.

    Attributes:
        name: of the measure.
        value: S(theta).
        gradient: grad S(theta), shape (d,).
        at: S at another point.
        products: whether S takes Hessian-vector products; the others take one gradient.
    """

    name: str
    value: float
    gradient: Tensor
    at: At
    products: bool = False

    def slope(self, effect: Tensor, lr: float) -> float:
        """How an effect changes S per step to first order in lr, relative to S: -lr <grad S, effect> / |S|; 0 where S is.

        Args:
            effect: shape (d,), in the units of an update.
            lr: step size.
        """
        return -lr * float(dot(self.gradient, effect)) / abs(self.value) if self.value else 0.0


def gradient_1_norm(point: Point) -> Value:
    """|grad L|_1, what sign-like optimizers descend along; its gradient is H sign(g)."""

    def at(there: Point) -> float:
        return float(total(there.gradient.abs()))

    return Value("gradient_1_norm", at(point), point.curvature(point.gradient.sign()), at)


def gradient_norm_squared(point: Point) -> Value:
    """|grad L|^2, the flatness penalty of gradient descent; its gradient is 2 H g."""

    def at(there: Point) -> float:
        return float(total(there.gradient.square()))

    return Value("gradient_norm_squared", at(point), 2 * point.curvature(point.gradient), at)


def sharpness(point: Point) -> Value:
    """The largest eigenvalue of H, by Lanczos (ARPACK); its gradient is the third derivative D^3 L[v, v, .].

    v is the unit eigenvector. By symmetry D^3 L[v, v, .] is the derivative of H(theta + e v) v along e, here a central
    difference of two products: third derivatives through fused layers are not to be trusted. Relative error about 1e-9 in
    float64, 1e-2 in float32.
    """
    loss, theta = point.loss, point.theta
    noise = np.random.default_rng(0).standard_normal(theta.numel())
    value, v = _largest(point, noise)

    def at(there: Point) -> float:
        # From v, nearly the eigenvector there; the noise finds another one that has overtaken it. An eigenvalue's error is
        # quadratic in its vector's, so that a small basis and a wider tolerance do.
        start = v.double().cpu().numpy() + 0.1 * noise / np.linalg.norm(noise)
        return _largest(there, start, basis=6, wider=10)[0]

    step = _third_derivative_step(theta)
    difference = loss.curvature(theta + step * v, v) - loss.curvature(theta - step * v, v)
    return Value("sharpness", value, difference / (2 * step), at, products=True)


def batch_gradient_1_norm(point: Point) -> Value:
    """mean_i |g_i|_1 over the batches; its gradient is mean_i H_i sign(g_i)."""

    def at(there: Point) -> float:
        return _mean(float(total(g.abs())) for g, _ in there.loss.each(there.theta, products=0))

    return _batch_mean("batch_gradient_1_norm", point, lambda g, H: (float(total(g.abs())), H(g.sign())), at)


def batch_gradient_norm_squared(point: Point) -> Value:
    """mean_i |g_i|^2 over the batches, what small batches add to the flatness penalty; its gradient is mean_i 2 H_i g_i."""

    def at(there: Point) -> float:
        return _mean(float(dot(g, g)) for g, _ in there.loss.each(there.theta, products=0))

    return _batch_mean("batch_gradient_norm_squared", point, lambda g, H: (float(dot(g, g)), 2 * H(g)), at)


def batch_gradient_variance(point: Point) -> Value:
    """tr(Sigma) = mean_i |g_i - g|^2 over the batches, g their mean; its gradient is mean_i 2 H_i (g_i - g).

    E_i |grad L_i - grad L|^2 in the modified loss of heavy ball along mini-batches (Section 5.2 of
    https://arxiv.org/abs/2502.02132): the batches are all there are, so that it is their plain mean. Samples of a larger pool
    have B / (B - 1) times it. The mean g is taken beforehand: one more gradient of each batch.
    """
    g = point.gradient

    def at(there: Point) -> float:
        # Welford: with m the mean of k - 1 gradients, the k-th adds |g_k - m|^2 (k - 1) / k to the sum of squares.
        m, squares, k = torch.zeros_like(there.theta), 0.0, 0
        for each, _ in there.loss.each(there.theta, products=0):
            k, gap = k + 1, each - m
            squares += float(dot(gap, gap)) * (k - 1) / k
            m += gap / k
        return squares / k

    def term(g_i: Tensor, H: Curvature) -> tuple[float, Tensor]:
        gap = g_i - g
        return float(dot(gap, gap)), 2 * H(gap)

    return _batch_mean("batch_gradient_variance", point, term, at)


def batch_sharpness(point: Point) -> Value:
    """mean_i g_i . H_i g_i / |g_i|^2, the curvature of each batch along its own gradient (https://arxiv.org/abs/2604.14108).

    With v = g_i / |g_i|, r = v . H_i v and dg_i = H_i dtheta its gradient is D^3 L_i[v, v, .] + 2 H_i (H_i v - r v) / |g_i|,
    the first term as in `sharpness`: four products of each batch, S alone one. Early in training it may be negative, or near 0,
    where changes relative to it say little.

    Raises:
        BadInput: the gradient of a batch is zero, so that there is no direction.
    """
    loss, theta = point.loss, point.theta
    step = _third_derivative_step(theta)

    def along(g: Tensor, H: Curvature) -> tuple[float, Tensor, Tensor]:
        if not (length := float(norm(g))):
            raise BadInput("the gradient of a batch is zero here, so batch sharpness has no direction; leave it out")
        v = g / length
        Hv = H(v)
        return float(dot(v, Hv)), v, 2 / length * (Hv - dot(v, Hv) * v)

    def at(there: Point) -> float:
        return _mean(along(g, H)[0] for g, H in there.loss.each(there.theta, products=1))

    # The third derivative wants each batch's Hessian at two points of its own, theta +- step v_i.
    value, gradient = 0.0, torch.zeros_like(theta)
    for i, (g, H) in enumerate(loss.each(theta, products=2)):
        r, v, turning = along(g, H)
        there, back = (loss.curvature(theta + s * step * v, v, i) for s in (1, -1))
        value += r / len(loss)
        gradient += (H(turning) + (there - back) / (2 * step)) / len(loss)
    return Value("batch_sharpness", value, gradient, at, products=True)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _batch_mean(name: str, point: Point, term: Callable[[Tensor, Curvature], tuple[float, Tensor]], at: At) -> Value:
    """A measure that is a mean over the batches of (g_i, H_i) -> what batch i gives to S and to its gradient."""
    value, gradient = 0.0, torch.zeros_like(point.theta)
    for g, H in point.loss.each(point.theta, products=1):
        S, slope = term(g, H)
        value += S / len(point.loss)
        gradient += slope / len(point.loss)
    return Value(name, value, gradient, at)


def _third_derivative_step(theta: Tensor) -> float:
    """Along a unit vector, for a central difference: truncation grows with its square, rounding with its inverse."""
    return float(torch.finfo(theta.dtype).eps ** (1 / 3) * (1 + norm(theta)))


def _largest(point: Point, start: np.ndarray, basis: int | None = None, wider: float = 1) -> tuple[float, Tensor]:
    """The largest eigenvalue of H and its unit vector, shape (d,).

    Args:
        point: of the loss.
        start: a vector with a share of it, shape (d,).
        basis: vectors that ARPACK keeps; default its own, 20.
        wider: by how much its tolerance, 1e-7 in float64 and 1e-3 in float32, is multiplied.
    """
    theta, d = point.theta, point.theta.numel()

    def matvec(x: np.ndarray) -> np.ndarray:
        return point.curvature(torch.from_numpy(x.reshape(-1)).to(theta)).double().cpu().numpy()

    if d <= 2:
        matrix = np.column_stack([matvec(column) for column in np.eye(d)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    else:
        operator = LinearOperator((d, d), matvec=matvec, dtype=np.float64)  # pyright: ignore[reportCallIssue]
        tolerance: Any = (1e-7 if theta.dtype == torch.float64 else 1e-3) * wider  # scipy's stubs say int
        basis = None if basis is None else min(basis, d)
        try:
            values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, ncv=basis)
        except ArpackError as error:
            if np.any(matvec(start)):
                raise
            raise BadInput("the Hessian is zero here, so sharpness has no direction; leave it out of the measures") from error
    return float(values[-1]), torch.from_numpy(vectors[:, -1].copy()).to(theta)


MEASURES = {
    f.__name__: f
    for f in (
        gradient_1_norm,
        gradient_norm_squared,
        sharpness,
        batch_gradient_1_norm,
        batch_gradient_norm_squared,
        batch_gradient_variance,
        batch_sharpness,
    )
}
USUAL = ("gradient_1_norm", "gradient_norm_squared", "sharpness")
"""Those of the full batch, which are told where none are asked for."""


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
        [Value(name='gradient_1_norm', value=7.0, gradient=tensor([ 1., -1.]), ...]
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
        found.append(MEASURES[measure](point))
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

    def at(there: Point) -> float:
        with torch.no_grad():
            return float(measure(there.theta))

    return Value(name, float(value.detach()), slope, at)
