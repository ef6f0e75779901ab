"""The largest eigenvalue of the Hessian along a run, plain or preconditioned, each search begun where the last one ended.

    lambda_1(H),    lambda_1(P^-1 H) = lambda_1(P^-1/2 H P^-1/2)

for a diagonal P > 0: the two matrices are similar, and the second is symmetric, so that its largest eigenvalue is found from
products with H alone, by Lanczos (ARPACK) from the last eigenvector and some noise. Of a symmetric A and a unit vector v with
r = A v - rho v, rho = v . A v, some eigenvalue lies within |r| of rho. That it is the largest no residual tells: the last
eigenvector stays one, of residual 0, when another overtakes it, and an iteration that ends there (LOBPCG, power method) does
not see it. A Krylov space of 16 vectors grows whatever lies above out of the noise, by a Chebyshev polynomial of degree 15.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from memoryless.errors import BadInput
from memoryless.loss.point import Point

NOISE = 0.1
"""Of the length of the last eigenvector: in it shows one that has overtaken."""
BASIS = 16
"""Vectors that Lanczos keeps."""


@dataclass(frozen=True)
class Eigenvalue:
    """What a search found.

    Attributes:
        value: rho, in the units of H, or of P^-1 H.
        residual: |A v - rho v| of the unit vector v: some eigenvalue lies so near.
        tolerance: what the residual was to fall below.
        products: with H that were taken.
    """

    value: float
    residual: float
    tolerance: float
    products: int

    @property
    def converged(self) -> bool:
        """Whether the residual fell below the tolerance."""
        return self.residual <= self.tolerance

    @property
    def known(self) -> float:
        """The value; NaN where the search did not converge."""
        return self.value if self.converged else math.nan

    @property
    def relative(self) -> float:
        """The residual over the value, 0 where both are."""
        return self.residual / abs(self.value) if self.value else math.inf if self.residual else 0.0


class TopEigenvalue:
    """Follows lambda_1(H) or lambda_1(P^-1 H) from point to point.

    Args:
        relative: the residual over the eigenvalue that is aimed at.
        products: with H at one point by each search, about, at most.
        seed: of the vectors that the first search begins with.

    Example:
        >>> from memoryless.loss.loss import Loss
        >>> loss = Loss.of(lambda t: (t**2 * torch.arange(1.0, 21.0, dtype=t.dtype)).sum() / 2, torch.ones(20).double())
        >>> top = TopEigenvalue(relative=1e-6)
        >>> round(top.at(Point(loss)).value, 6), round(top.at(Point(loss), P=2 * torch.ones(20).double()).value, 6)
        (20.0, 10.0)
    """

    def __init__(self, relative: float = 1e-3, products: int = 400, seed: int = 0):
        self.relative, self.products = relative, products
        self._random = np.random.default_rng(seed)
        self._last: NDArray[np.float64] | None = None

    def at(self, point: Point, P: Tensor | None = None) -> Eigenvalue:
        """The largest eigenvalue at a point.

        Args:
            point: of the loss, theta of shape (d,).
            P: diagonal of the preconditioner, shape (d,), positive; None for H itself.

        Returns:
            It, with its residual.

        Raises:
            BadInput: P is of another shape, or not positive and finite.
        """
        d, taken = point.theta.numel(), 0
        if P is not None and (P.shape != point.theta.shape or not bool(((P > 0) & P.isfinite()).all())):
            raise BadInput(f"the preconditioner must be {d} positive finite numbers, one for each parameter")
        scale = torch.ones_like(point.theta) if P is None else P.rsqrt()

        def product(x: NDArray[np.float64]) -> NDArray[np.float64]:
            nonlocal taken
            taken += 1
            found = scale * point.curvature(scale * torch.from_numpy(x.reshape(-1).copy()).to(point.theta))
            return found.double().cpu().numpy().reshape(x.shape)

        if d < 5:  # too few dimensions to iterate in
            matrix = np.stack([product(x) for x in np.eye(d)])
            values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
            rho, v = float(values[-1]), vectors[:, -1]
        else:
            operator = LinearOperator((d, d), matvec=product, matmat=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
            start = self._random.standard_normal(d)
            if self._last is not None and len(self._last) == d:
                start = self._last + NOISE * start / np.linalg.norm(start)
            rho, v = _lanczos(operator, start, self.relative, self.products)
        self._last = v
        residual = float(np.linalg.norm(product(v) - rho * v))
        return Eigenvalue(rho, residual, self.relative * abs(rho), taken)


def _lanczos(
    operator: LinearOperator, v: NDArray[np.float64], relative: float, products: int
) -> tuple[float, NDArray[np.float64]]:
    """The eigenvalue and its unit vector; the start's Rayleigh quotient where Lanczos finds none."""
    basis = min(BASIS, len(v))
    tolerance: Any = relative / 3  # ARPACK's is an estimate; scipy's stubs say int
    try:
        values, vectors = eigsh(operator, k=1, which="LA", v0=v, tol=tolerance, ncv=basis, maxiter=max(1, products // basis))
        return float(values[0]), vectors[:, 0]
    except ArpackError:  # not found within so many products, or A is zero
        v = v / np.linalg.norm(v)
        return float(v @ operator.matvec(v)), v
