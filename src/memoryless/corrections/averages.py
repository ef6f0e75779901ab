"""The averages of past updates that a method's variables see, Fbar_l = sum_{s<n} w_l[s] F[s](theta), w_l[s] = T_l[n-s] / e_l.

F[s](theta) depends on s through the frozen weights c[s] alone (`methods.kernel`), a curve that is the same at every step n
and every theta, and that settles exponentially. So what can be known of it is found once, at gradients of all sizes:

  * F[s](theta) = a[s] F[n](theta) for a number a[s] (momentum, NAdam without decay): every Fbar_l is a multiple of F, and one
    Hessian-vector product serves all;
  * otherwise a few steps s between which F[s] is interpolated, with the matrix that takes weights of all steps to theirs.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer, Method, Momentum, Part, variables_of


class Course(NamedTuple):
    """The steps over which the frozen weights of some variables, and with them F[s](theta), still move.

    Attributes:
        first: where the range of steps that was looked at begins.
        stop: where it ends.
        steps: those at which a frozen weight differs from its last, ascending; then stop - 1, which stands for all others.
    """

    first: int
    stop: int
    steps: np.ndarray


def _course(variables: tuple[Momentum, ...], n: int) -> Course:
    """Of a range that covers all that step n remembers, the same for many n."""
    reached = kernel.window(variables, n)
    block = 2 ** max(5, (reached - 1).bit_length())
    first = (n + 1 - reached) // block * block
    return _course_over(variables, first, first + (1 if n < first + block else 2) * block)


@lru_cache(maxsize=256)
def _course_over(variables: tuple[Momentum, ...], first: int, stop: int) -> Course:
    c = _frozen_weights(variables, np.arange(first, stop))
    moving = np.any(np.abs(c - c[:, -1:]) > 1e-15 * np.abs(c[:, -1:]), axis=0)
    moving[-1] = True
    return Course(first, stop, first + np.flatnonzero(moving))


def _frozen_weights(variables: Sequence[Momentum], steps: np.ndarray) -> np.ndarray:
    return np.stack([kernel.tail(v, steps, 0) for v in variables])


@lru_cache(maxsize=64)
def _weights(variables: tuple[Momentum, ...], n: int) -> tuple[np.ndarray, list[int]]:
    """Weights w over the course's steps, with Fbar_l = sum_s w[l, s] F[s](theta), and which rows are the same (-1: no past)."""
    steps = _course(variables, n).steps
    w = np.zeros((len(variables), len(steps)))
    past = np.flatnonzero(steps[:-1] < n)
    for each, v in zip(w, variables, strict=True):
        if n > 0 and v.has_memory and (moment := kernel.age_moment(v, n)):
            each[past] = kernel.tail(v, n, n - steps[past]) / moment
            each[-1] = 1 - each[past].sum()
    return w, _distinct(w)


def settled(variables: tuple[Momentum, ...], n: int) -> bool:
    """Whether F[s](theta) = F[n](theta) for every past step s that the variables remember.

    Args:
        variables: of a method.
        n: step.
    """
    return not (np.abs(_weights(variables, n)[0][:, :-1]) > 1e-17).any()


@lru_cache(maxsize=64)
def _tried(method: Method, first: int, stop: int) -> Tensor | None:
    """F[s] at gradients of many sizes, one row per step of the range; None if phi takes no others than the loss's."""
    c = _frozen_weights(method.variables, np.arange(first, stop))
    part, theta = Part(method, slice(None), 1.0), torch.linspace(-1, 2, 61, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(31)[:61]
    if method.elementwise:
        return _over(part, torch.logspace(-24, 6, 61, dtype=torch.float64) * signs, theta, c)
    try:
        return torch.cat([_over(part, size * signs[:5], theta[:5], c) for size in (0.01, 0.1, 1.0, 10.0)], dim=1)
    except (RuntimeError, ValueError, IndexError):
        return None


def _multiples(method: AnyOptimizer, n: int) -> list[float] | None:
    """The factor a_l of each variable with Fbar_l = a_l F[n](theta) whatever theta; None if there are no such.

    If F[s] = a[s] F[n] then Fbar_l = sum_s w_l[s] F[s] = (sum_s w_l[s] a[s]) F[n]. The a[s] of a part come from trying
    gradients of all sizes (`_scale_over`), relative to the last step of the course; over a[n] they are relative to step n.
    """
    course = _course(variables_of(method), n)
    found = [a for part in method.parts if (a := _scale_over(part.method, course.first, course.stop)) is not None]
    if len(found) < len(method.parts) or not all(np.allclose(a, found[0], 1e-13, 0) for a in found[1:]):
        return None
    a = found[0]
    if a[n - course.first] == 0:
        return None
    w, _ = _weights(variables_of(method), n)
    return (w @ a[course.steps - course.first] / a[n - course.first]).tolist()


@lru_cache(maxsize=64)
def _scale_over(method: Method, first: int, stop: int) -> np.ndarray | None:
    """a with F[s](theta) = a[s - first] F[stop - 1](theta)."""
    F = _tried(method, first, stop)
    if F is None or not method.elementwise:
        return None
    a = F / F[-1]
    return a[:, 0].numpy() if torch.allclose(a, a[:, :1], rtol=1e-13, atol=0) else None


class Nodes(NamedTuple):
    """Few steps that stand for all steps of a course.

    Attributes:
        c: the frozen weights there, shape (variables, nodes).
        fold: shape (nodes, steps), from weights of all steps to theirs.
    """

    c: np.ndarray
    fold: np.ndarray


@lru_cache(maxsize=8)  # over long ranges the matrix is large
def _nodes(methods: tuple[Method, ...], first: int, stop: int) -> Nodes:
    """As few as interpolate what all methods do at the gradients tried; every step if F[s] is no smooth function of c."""
    variables = tuple(v for method in methods for v in method.variables)
    steps = _course_over(variables, first, stop).steps
    c = _frozen_weights(variables, steps)
    tried = [F[steps - first].numpy() for method in methods if (F := _tried(method, first, stop)) is not None]
    F = np.concatenate(tried, axis=1) if len(tried) == len(methods) else np.full((len(steps), 1), np.nan)
    largest = np.abs(F).max(axis=0)
    for degree, tolerance in (*((degree, 1e-13) for degree in range(4, 40, 4)), (40, 1e-10)):
        index, fold = kernel.compress(c, degree)
        if len(index) == len(steps):
            break
        if (np.abs(fold.T @ F[index] - F) <= tolerance * largest).all():
            return Nodes(c[:, index], fold)
    return Nodes(c, np.eye(len(steps)))


def products(method: AnyOptimizer, step: int | None) -> int:
    """How many Hessian-vector products `full_batch` takes.

    Args:
        method: in momentum form.
        step: n, or None for the steady state.
    """
    variables = variables_of(method)
    if step is None:
        return int(any(v.has_memory for v in variables))
    count = max(_weights(variables, step)[1], default=-1) + 1
    return 1 if count > 1 and _multiples(method, step) is not None else count


def averages(
    method: AnyOptimizer, gradient: Tensor, theta: Tensor, step: int | None, F: Tensor
) -> tuple[list[Tensor], list[int], list[float]]:
    """The distinct Fbar, each at most once up to a factor.

    Args:
        method: in momentum form.
        gradient: grad L(theta), shape (d,).
        theta: shape (d,).
        step: n, or None for the steady state.
        F: F[n](theta), shape (d,).

    Returns:
        They, each of shape (d,); which of them belongs to each variable (-1: none); the factor that it takes there.
    """
    variables = variables_of(method)
    ones = [1.0] * len(variables)
    if step is None:
        owner = [0 if v.has_memory else -1 for v in variables]
        return [F] * (0 in owner), owner, ones
    w, owner = _weights(variables, step)
    if settled(variables, step):
        return [F] * (0 in owner), owner, ones
    if (factors := _multiples(method, step)) is not None:
        return [F], [min(i, 0) for i in owner], factors
    w = w[[owner.index(i) for i in range(max(owner) + 1)]]
    return combined(method, gradient, theta, step, w), owner, ones


def row(variables: tuple[Momentum, ...], n: int, weight: Callable[[np.ndarray], np.ndarray], total: float) -> np.ndarray:
    """Weights of past steps as `combined` takes them.

    Args:
        variables: of a method.
        n: step.
        weight: of each of the steps s that it is given, 0 where s >= n.
        total: sum of the weights over all s.

    Returns:
        One weight for each step at which F[s] moves, and the rest of the total for all others.
    """
    steps = _course(variables, n).steps
    moving = np.asarray(weight(steps[:-1]), dtype=float)
    return np.append(moving, total - moving.sum())


def combined(method: AnyOptimizer, gradient: Tensor, theta: Tensor, n: int, rows: np.ndarray) -> list[Tensor]:
    """sum_s w[s] F[s](theta) for each row of weights.

    Args:
        method: in momentum form.
        gradient: grad L(theta), shape (d,).
        theta: shape (d,).
        n: step.
        rows: from `row`, shape (rows, steps of the course).

    Returns:
        One vector of shape (d,) for each row.
    """
    course = _course(variables_of(method), n)
    nodes = _nodes(tuple(part.method for part in method.parts), course.first, course.stop)
    return _sums(method, gradient, theta, nodes.c, rows @ nodes.fold.T)


def _sums(method: AnyOptimizer, gradient: Tensor, theta: Tensor, c: np.ndarray, weights: np.ndarray) -> list[Tensor]:
    """sum_s weights[row, s] F[s](theta) for each row, the frozen weights of step s being c[:, s]."""
    used = weights.any(axis=0)
    c, weights = c[:, used], weights[:, used]
    matrix = torch.from_numpy(weights).to(theta)
    sums = theta.new_zeros(len(weights), theta.numel())
    start = 0
    for part in method.parts:
        end = start + len(part.method.variables)
        for piece in part.pieces(theta, c.shape[1]):
            sums[:, piece.index] = matrix @ _over(piece, gradient[piece.index], theta[piece.index], c[start:end])
        start = end
    return list(sums)


def _over(part: Part, g: Tensor, theta: Tensor, c: np.ndarray) -> Tensor:
    """F of one part for each column of frozen weights, shape (columns, d)."""
    weights = torch.from_numpy(c).to(theta)
    of_g = [v.g(g, theta) for v in part.method.variables]
    if not part.method.elementwise:
        rows = [part.method.readout([a * x for a, x in zip(column, of_g, strict=True)], theta) for column in weights.T]
        return part.scale * torch.stack(rows)
    # One readout of all rows end to end.
    m = [torch.outer(row, x).flatten() for row, x in zip(weights, of_g, strict=True)]
    F = part.method.readout(m, theta.repeat(c.shape[1])).view(c.shape[1], -1)
    return F if part.scale == 1 else part.scale * F


def _distinct(rows: np.ndarray) -> list[int]:
    """Number the distinct rows in order of appearance; zero rows are -1."""
    seen: list[np.ndarray] = []
    numbers = []
    for row in rows:
        if not row.any():
            numbers.append(-1)
            continue
        match = next((i for i, other in enumerate(seen) if np.allclose(row, other, rtol=0, atol=1e-13)), None)
        if match is None:
            match = len(seen)
            seen.append(row)
        numbers.append(match)
    return numbers
