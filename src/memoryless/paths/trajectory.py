"""The path of an optimizer, and of the memoryless iterations that stand for it, side by side.

    memory      theta[n+1] = theta[n] - lr F[n](theta[n], ..., theta[0])      the optimizer itself
    frozen      t[n+1] = t[n] - lr F[n](t[n])                                 off by O(lr)
    first       t[n+1] = t[n] - lr (F[n](t[n]) + M[n](t[n]))                  off by O(lr^2) (Theorem 3.2), as is
    resummed    the same with the resummed M
    R           the same to O(lr^R), from gradients alone (`corrections.relaxation`)
    flow        t(n lr) of the modified flow (`paths.flow`)               off by O(lr): it knows no transients

up to a time n lr, from the same start, https://arxiv.org/abs/2502.02132. Each step but the flow's has the exact transients of
its n.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.correction import batch_sequence, correction, is_order
from memoryless.errors import BadInput, Diverged, NotFinite
from memoryless.loss.loss import Loss
from memoryless.methods.method import AnyOptimizer
from memoryless.paths.flow import modified_flow
from memoryless.progress import OnStep, silent

Kind = str | int
Update = Callable[[int, Tensor], Tensor]
"""(n, theta[n]) -> what step n subtracts, in units of lr."""


def _memory(method: AnyOptimizer, loss: Loss, theta: Tensor, batches: Sequence[int] | None) -> Update:
    state: Any = method.init(theta)

    def update(n: int, theta: Tensor) -> Tensor:
        nonlocal state
        state, F = method.update(state, loss.gradient(theta, None if batches is None else batches[n]), theta)
        return F

    return update


def _memoryless(order: Any) -> Callable[..., Update]:
    def start(method: AnyOptimizer, loss: Loss, theta: Tensor, batches: Sequence[int] | None) -> Update:
        def update(n: int, theta: Tensor) -> Tensor:
            c = correction(method, loss, theta, step=n, order=order, batches=None if batches is None else batches[: n + 1])
            return c.F + c.M

        return update

    return start


def _flow(method: AnyOptimizer, loss: Loss, theta: Tensor, batches: Sequence[int] | None) -> Update:
    if batches is not None:
        raise BadInput("the modified flow is full batch; leave out batches")
    if not method.parts:
        raise BadInput("the modified flow needs a method in momentum form, got a black box")
    flow, times = modified_flow(method, loss), torch.tensor([0.0, method.lr], dtype=theta.dtype)
    return lambda n, theta: (theta - flow.path(theta, times)[-1]) / method.lr


KINDS: dict[str, Callable[[AnyOptimizer, Loss, Tensor, Sequence[int] | None], Update]] = {
    "memory": _memory,
    "frozen": _memoryless(1),
    "first": _memoryless("first"),
    "resummed": _memoryless("resummed"),
    "flow": _flow,
}
"""What a kind of path subtracts at each step, given method, loss, start and batches; an integer R is `_memoryless(R)`."""


def iterates(
    method: AnyOptimizer,
    loss: Loss,
    steps: int,
    kind: Kind = "memory",
    theta: Tensor | None = None,
    batches: Iterable[int] | None = None,
) -> Iterator[Tensor]:
    """The path one point at a time, theta[0] to theta[steps].

    Args:
        method: from the catalogue, from `method_of`, or your own.
        loss: L; each step takes the gradient of the full batch, or of its own batch.
        steps: how many to take.
        kind: "memory", "frozen", "first", "resummed", "flow", or an integer order R, as listed at the head of this file.
        theta: the start, shape (d,); default `loss.theta`.
        batches: index of the batch used at each step 0..steps - 1; None is full batch.

    Returns:
        An iterator over tensors of shape (d,); arguments are checked at once, the rest happens as it is advanced.

    Raises:
        BadInput: unknown kind, bad steps or batches; says what was expected.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise BadInput(f"steps must be an integer >= 1, got {steps!r}")
    if not (kind in KINDS if isinstance(kind, str) else is_order(kind)):
        raise BadInput(f"kind must be one of {', '.join(KINDS)}, or an integer order >= 1, got {kind!r}")
    start = KINDS[kind] if isinstance(kind, str) else _memoryless(kind)
    sequence = None if batches is None else batch_sequence(batches, steps - 1, len(loss))
    theta = loss.theta if theta is None else theta.detach().clone()
    return _iterates(kind, start(method, loss, theta, sequence), method.lr, theta, steps)


def _iterates(kind: Kind, update: Update, lr: float, theta: Tensor, steps: int) -> Iterator[Tensor]:
    yield theta
    for n in range(steps):
        try:
            following = theta - lr * update(n, theta)
        except NotFinite as error:
            raise Diverged(f"kind {kind!r} diverged at step {n}: {error}", n) from error
        if not torch.isfinite(following).all():
            raise Diverged(f"kind {kind!r} diverged at step {n}: its update is not finite; lower the learning rate", n)
        theta = following
        yield theta


@overload
def trajectory(
    method: AnyOptimizer,
    loss: Loss,
    steps: int,
    kind: Kind = ...,
    theta: Tensor | None = ...,
    *,
    batches: Iterable[int] | None = ...,
    record: Iterable[int] | None = ...,
    on_step: OnStep = ...,
) -> Tensor: ...
@overload
def trajectory(
    method: AnyOptimizer,
    loss: Loss,
    steps: int,
    kind: Kind = ...,
    theta: Tensor | None = ...,
    *,
    batches: Iterable[int] | None = ...,
    record: Callable[[int, Tensor], Any],
    on_step: OnStep = ...,
) -> list[Any]: ...
@valid_arguments
def trajectory(
    method: AnyOptimizer,
    loss: Loss,
    steps: int,
    kind: Kind = "memory",
    theta: Tensor | None = None,
    *,
    batches: Iterable[int] | None = None,
    record: Iterable[int] | Callable[[int, Tensor], Any] | None = None,
    on_step: OnStep = silent,
) -> Tensor | list[Any]:
    """The path theta[0], ..., theta[steps] of an optimizer, with its memory or without.

    Args:
        method: from the catalogue, from `method_of`, or your own.
        loss: L; each step takes the gradient of the full batch, or of its own batch.
        steps: how many to take.
        kind: "memory", "frozen", "first", "resummed", "flow", or an integer order R, as listed at the head of this file.
        theta: the start, shape (d,); default `loss.theta`.
        batches: index of the batch used at each step 0..steps - 1; None is full batch.
        record: which points to keep: None all; steps in 0..steps; or a function (step, theta) -> anything, for a path too
            long to keep.
        on_step: told the steps taken, 0..steps, and their number.

    Returns:
        Shape (steps + 1, d). Where `record` lists steps, the rows of those, in the order given; where it is a function, the
        list of what it returned at 0..steps.

    Raises:
        Diverged: a point is infinite or NaN; says where and carries what was recorded.
        BadInput: unknown kind, bad steps, batches or record; says what was expected.

    Example:
        >>> loss = Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([1.0]))
        >>> from memoryless.methods.catalogue import HeavyBall
        >>> trajectory(HeavyBall(lr=0.1, momentum=0.5), loss, steps=2).flatten()
        tensor([1.0000, 0.9000, 0.7600])
    """
    path = iterates(method, loss, steps, kind, theta, batches)
    wanted = range(steps + 1) if record is None or callable(record) else list(record)
    if bad := [s for s in wanted if isinstance(s, bool) or not isinstance(s, int) or not 0 <= s <= steps]:
        raise BadInput(f"record must list steps in 0..{steps}, got {bad[0]!r}")
    if not wanted:
        raise BadInput(f"record must list at least one step in 0..{steps}, got none")
    kept: dict[int, Any] = {}

    def recorded() -> Tensor | list[Any]:
        found = [kept[s] for s in wanted if s in kept]
        return found if callable(record) or not found else torch.stack(found)

    members = set(wanted)
    try:
        for n, point in enumerate(path):
            if n in members:
                kept[n] = record(n, point) if callable(record) else point
            on_step(n, steps)
    except Diverged as diverged:
        diverged.so_far = recorded()
        raise
    return recorded()
