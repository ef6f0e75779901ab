"""The weight that a momentum variable gives to each age k of the gradient, and sums over it. Scalars only.

    kernel[k] = weight(n) * beta^(k - lag) * (first if k = n else 1),     k = lag..n

c = sum_k kernel[k], the age moment sum_k k kernel[k], the tails sum_{k >= j} kernel[k], and Gauss quadrature over the ages.
`step` is n, or None for the steady state n -> infinity.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal, qr

from memoryless.errors import NeverForgets, NotResolved
from memoryless.methods.forgetting import KEPT, LONGEST
from memoryless.methods.method import Momentum, is_number, one

Array = NDArray[np.float64]


def require_fading(variable: Momentum) -> None:
    """Raise if the variable has no steady state.

    Args:
        variable: any momentum variable.

    Raises:
        NeverForgets: beta is 1 but for rounding, or a weight without a limit.
        NotResolved: it remembers more than `LONGEST` steps.
    """
    weight, beta_known = variable.weight(math.inf), is_number(variable.beta)
    kept = beta_known and 1 - variable.beta < KEPT
    if kept or (is_number(weight) and not math.isfinite(weight)):
        why = f"beta = {variable.beta:.15g}" if kept else "weight(n) has no limit"
        raise NeverForgets(f"the steady state of a memory that never fades ({why}) does not exist")
    if beta_known and variable.beta > LONGEST * (1 - variable.beta):
        raise NotResolved(f"beta = {variable.beta!r} remembers {variable.beta / (1 - variable.beta):,.0f} steps", LONGEST)


@lru_cache(maxsize=16)
def kernel(variable: Momentum, n: int, count: int | None = None, limit: bool = False) -> Array:
    """kernel[k] for k = 0..n, or for the first `count` of these ages; `limit` takes weight(infinity) for weight(n)."""
    count = n + 1 if count is None else min(count, n + 1)
    values = np.zeros(count)
    values[variable.lag :] = _powers(variable.beta, 1 << count.bit_length())[: count - variable.lag]
    if variable.lag <= n < count:
        values[n] *= variable.first
    values *= variable.weight(math.inf if limit else n)
    values.setflags(write=False)
    return values


@lru_cache(maxsize=64)
def _powers(beta: float, count: int) -> Array:
    return beta ** np.arange(count, dtype=float)


@lru_cache(maxsize=4096)
def total(variable: Momentum, n: int | None) -> float:
    """c = sum_k kernel[k], the factor of g_l(theta) in m_l when the history is frozen."""
    if n is None:
        require_fading(variable)
        return float(variable.weight(math.inf)) / (1 - variable.beta)
    return float(tail(variable, n, 0))


def tail(variable: Momentum, n: int | NDArray[np.int64], j: int | NDArray[np.int64]) -> Array:
    """T[j] = sum_{k >= j} kernel[k] at step n, in closed form; j = 0 gives c.

    Args:
        variable: any momentum variable.
        n: steps, >= 0.
        j: ages, >= 0; broadcast with n, 0 where older than the first gradient.
    """
    beta, lag = variable.beta, variable.lag
    j = np.maximum(j, lag)
    count = np.maximum(n + 1.0 - j, 0.0)
    # beta^(j - lag) + ... + beta^(n - lag), in the form that a bias correction cancels to the last digit
    sums = count if beta == 1 else beta ** (j - lag) * (1 - beta**count) / (1 - beta)
    sums = sums + (variable.first - 1) * beta ** np.maximum(n - lag, 0.0)
    return np.where(count > 0, variable.weight(n) * sums, 0.0)


@lru_cache(maxsize=4096)
def age_moment(variable: Momentum, n: int | None) -> float:
    """sum_k k kernel[k], which is c times the mean age."""
    beta, lag = variable.beta, variable.lag
    if n is None:
        require_fading(variable)
        return float(variable.weight(math.inf)) * (beta / (1 - beta) ** 2 + lag / (1 - beta))
    last = n - lag
    if last < 0:
        return 0.0
    # sum_i i beta^i over i = 0..last; the closed form would cancel where last (1 - beta) is small.
    if last * (1 - beta) < 1:
        i = np.arange(last + 1.0)
        inner = float(i @ beta**i)
    else:
        inner = beta * (1 - beta**last * (1 + last * (1 - beta))) / (1 - beta) ** 2
    plain = lag * float(tail(replace(variable, weight=one, first=1.0), n, 0)) + inner
    return float(variable.weight(n)) * (plain + n * (variable.first - 1) * beta**last)


def window(variables: tuple[Momentum, ...], n: int) -> int:
    """How many ages matter to double precision at step n, over all the variables; at most n + 1."""
    betas = [v.beta for v in variables if v.beta > 0]
    if not betas:
        return min(n + 1, 2)  # a lag of 1 at most
    if max(betas) == 1:
        return n + 1
    return min(n + 1, 2 + math.ceil(math.log(1e-18 * (1 - max(betas))) / math.log(max(betas))))


def tails(values: Array) -> Array:
    """T[j] = sum_{k >= j} values[k], the same shape."""
    return np.cumsum(values[::-1])[::-1]


def node_count(variable: Momentum) -> int:
    """Quadrature nodes over the ages: exact for a polynomial g_l, else sixteen."""
    return 16 if variable.degree is None else variable.degree // 2 + 1


@lru_cache(maxsize=4096)
def gauss(variable: Momentum, n: int | None) -> tuple[Array, Array]:
    """Gauss quadrature over the ages: nodes x_j and weights w_j with sum_k kernel[k] p(k) = sum_j w_j p(x_j).

    Exact for polynomials p of degree below twice the number of nodes, so two nodes are exact where g_l is at most cubic.

    Args:
        variable: its `degree` sets the number of nodes.
        n: step, or None for the steady state, where the orthogonal polynomials are Meixner's (https://dlmf.nist.gov/18.22).

    Returns:
        Nodes (ages) and weights.
    """
    count = node_count(variable)
    if count == 1:
        c = total(variable, n)
        return (np.array([age_moment(variable, n) / c]), np.array([c])) if c else (np.zeros(0), np.zeros(0))
    if n is not None:
        # High powers of the age, which many nodes integrate, reach further back.
        return gauss_of(kernel(variable, n, (4 if count > 2 else 1) * window((variable,), n)), count)
    require_fading(variable)
    beta = variable.beta
    i = np.arange(count if beta > 0 else 1)
    diagonal = (i + (i + 1) * beta) / (1 - beta)
    nodes, vectors = eigh_tridiagonal(diagonal, i[1:] * math.sqrt(beta) / (1 - beta))
    return nodes + variable.lag, total(variable, None) * vectors[0] ** 2


def gauss_of(values: Array, count: int) -> tuple[Array, Array]:
    """Gauss quadrature for weights of one sign, values[k] at k = 0..n.

    Args:
        values: shape (n + 1,).
        count: number of nodes; fewer come back where the support has fewer points.

    Returns:
        Nodes and weights, both of length at most `count`.
    """
    return gauss_at(np.arange(len(values)), values, count)


def gauss_at(ages: NDArray[np.int64], values: Array, count: int) -> tuple[Array, Array]:
    """The same for weights at some ages only, by the Lanczos process on diag(ages).

    Args:
        ages: increasing.
        values: the weight of each.
        count: number of nodes.
    """
    support = np.flatnonzero(values)
    if len(support) == 0:
        return np.zeros(0), np.zeros(0)
    at, values = ages[support].astype(float), values[support]
    if len(support) <= count:
        return at, values
    sign = np.sign(values[0])
    mass = sign * values
    basis = [np.sqrt(mass / mass.sum())]
    diagonal, off = [], []
    for _ in range(count):
        q = at * basis[-1]
        diagonal.append(q @ basis[-1])
        for _ in range(2):  # full reorthogonalization, twice is enough (Giraud et al. 2005)
            q = q - np.array(basis).T @ (np.array(basis) @ q)
        norm = float(np.linalg.norm(q))
        if norm < 1e-12 * at[-1]:
            break
        off.append(norm)
        basis.append(q / norm)
    nodes, vectors = eigh_tridiagonal(diagonal, off[: len(diagonal) - 1])
    return nodes, sign * mass.sum() * vectors[0] ** 2


def compress(c: Array, degree: int = 40, exact_below: int = 32) -> tuple[NDArray[np.int64], Array]:
    """Few steps that stand for all in sums of a smooth function of the frozen weights, sum_s weights[s] f(c[s]).

    F[s](theta) depends on s only through c[s], a smooth curve. Where it moves in one or two components, f is interpolated in
    Chebyshev polynomials of log c on steps picked by pivoted QR.

    Args:
        c: shape (variables, steps), the frozen weight of each variable at each step.
        degree: of the polynomials, as many as there are nodes less one; a quarter of it where two components move.
        exact_below: keep every step when there are at most so many.

    Returns:
        Indices j of steps, shape (nodes,), and the matrix from weights of all steps to theirs, shape (nodes, steps).

    Example:
        >>> c = 1 - 0.9 ** np.arange(1.0, 101.0)
        >>> index, fold = compress(c[None])
        >>> len(index), bool(abs(fold.sum(axis=1) @ c[index] ** 2 - (c**2).sum()) < 1e-11)
        (28, True)
    """
    count = c.shape[1]
    curve = c[np.ptp(c, axis=1) > 1e-15 * np.abs(c).max(axis=1, initial=0)]
    if len(curve) == 0:
        return np.array([count - 1]), np.ones((1, count))
    positive = (curve > 0).all(axis=0)
    if count <= exact_below or len(curve) > 2 or positive.sum() <= exact_below:
        return np.arange(count), np.eye(count)
    apart, steps = np.flatnonzero(~positive), np.flatnonzero(positive)  # before a lagging variable has seen a gradient
    x = np.log(curve[:, positive])
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    x = (2 * x - low - high) / (high - low)
    degree = degree if len(x) == 1 else degree // 4
    basis = np.polynomial.chebyshev.chebvander(x[0], degree)
    if len(x) == 2:
        other = np.polynomial.chebyshev.chebvander(x[1], degree)
        basis = np.stack([basis[:, i] * other[:, j] for i in range(degree + 1) for j in range(degree + 1 - i)], axis=1)
    r, pivots = cast(tuple[Array, NDArray[np.int64]], qr(basis.T, mode="r", pivoting=True))
    rank = int((np.abs(np.diag(r)) > 1e-13 * abs(r[0, 0])).sum())
    nodes = np.sort(pivots[:rank])
    fold = np.zeros((len(apart) + rank, count))
    fold[np.arange(len(apart)), apart] = 1
    # The weights that give every basis polynomial its exact sum.
    fold[len(apart) :, steps] = np.linalg.lstsq(basis[nodes].T, basis.T, rcond=None)[0]
    return np.concatenate([apart, steps[nodes]]), fold
