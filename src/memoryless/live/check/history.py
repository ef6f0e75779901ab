"""What a step's state says about the steps before: restored or not, counted or not, of which precision, of which settings."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memoryless.live.check.record import Held, Record, equal, mapped
from memoryless.live.check.reference import Reference, buffers
from memoryless.render.numbers import share


class Found(NamedTuple):
    """A cause, what it says, the tensors, and how much of what it is about it explains (of 1)."""

    name: str
    text: str
    tensors: list[int]
    explains: float


def of_state(now: Record, previous: Record | None) -> Iterator[Found]:
    """What contradicts the previous step, or itself.

    Args:
        now: this step.
        previous: the one before, if it was seen.
    """
    infinite = [k for k, h in enumerate(now.held) if h.gradient is not None and not bool(h.gradient.isfinite().all())]
    if infinite:
        yield Found("gradient not finite", "the optimizer was given a NaN or an infinity", infinite, 1.0)
    shared = [k for k, h in enumerate(now.held) if any(
        h.buffers_at & other.buffers_at for other in now.held if other is not h and other.place != h.place)]  # fmt: skip
    if shared:
        yield Found("buffer shared by tensors", "what one writes into its memory the other reads", shared, 1.0)
    if previous is not None and len(previous.held) == len(now.held):
        seen = [_overlap(h, b) for h, b in zip(now.held, previous.held, strict=True)]
        yield from _restored([h for h, _ in seen], [b for _, b in seen])
    else:
        empty = [k for k, h in enumerate(now.held) if h.count == 0 and any(bool(b.any()) for b in buffers(h.state).values())]
        if empty:
            yield Found("step count not restored", "the count is 0 and the averages are not", empty, 1.0)
    low = [k for k, h in enumerate(now.held) if any(_eps(b) > torch.finfo(h.theta.dtype).eps for b in _large(h.state_after, h))]
    if low:
        kinds = sorted({str(b.dtype) for k in low for b in _large(now.held[k].state_after, now.held[k])})
        yield Found(f"buffers of lower precision ({kinds[0].removeprefix('torch.')})", "than the parameters'", low, 1.0)
    # One group without it is a choice of the one who built it so.
    none = now.defaults.get("amsgrad") and not any(group.get("amsgrad", True) for group in now.groups)
    lost = [k for k, h in enumerate(now.held) if not now.groups[h.group].get("amsgrad", True)
            and ("max_exp_avg_sq" in h.state or none)]  # fmt: skip
    if lost:
        yield Found("amsgrad dropped", "built or saved with amsgrad, stepped without", lost, 1.0)


def _overlap(h: Held, b: Held) -> tuple[Held, Held]:
    """A tensor at a step and at the step before, what was looked at both times of it."""
    if h.window == b.window:
        return h, b
    first = max((w[0] for w in (h.window, b.window) if w is not None), default=0)
    last = max(first, min((w[1] for w in (h.window, b.window) if w is not None), default=0))

    def of(x: Held, tree: Any) -> Any:
        start, shape = 0 if x.window is None else x.window[0], x.theta.shape
        part = slice(max(0, first - start), max(0, last - start))
        return mapped(lambda t: t.reshape(-1)[part] if t.shape == shape else t, tree)

    return (
        replace(h, theta=of(h, h.theta), state=of(h, h.state)),
        replace(b, after=of(b, b.after), state_after=of(b, b.state_after)),
    )


def _restored(now: list[Held], before: list[Held]) -> Iterator[Found]:
    """State before this step against that after the last."""
    differs = [k for k, (h, b) in enumerate(zip(now, before, strict=True)) if not same(h.state, b.state_after)]
    if not differs:
        return
    none = [k for k in differs if before[k].state_after and not any(bool(x.any()) for x in buffers(now[k].state).values())]
    if none:
        yield Found("state not restored", "empty, and it was not after the last step", none, 1.0)
    others = [k for k in differs if k not in none and any(
        j != k and buffers(b.state_after) and _same_buffers(now[k].state, b.state_after)
        for j, b in enumerate(before))]  # fmt: skip
    if others:
        yield Found("state restored to other parameters", "it is another tensor's of the last step", others, 1.0)
    counts = [k for k in differs if k not in none + others and _same_buffers(now[k].state, before[k].state_after)]
    if counts:
        text = f"{now[counts[0]].count}, and {before[counts[0]].state_after.get('step')} after the last step"
        yield Found("step count not restored", text, counts, 1.0)
    rest = [k for k in differs if k not in none + others + counts]
    if rest:
        yield Found("state changed between steps", "it is not what the last step left", rest, 1.0)


BETWEEN = "parameters changed between steps: they are not what the last step left (clamped, or averaged weights swapped in)"


def moved(now: Record, previous: Record | None) -> bool:
    """Whether the parameters are other ones than those that the previous step left: no fault of this step.

    Args:
        now: this step.
        previous: the one before, if it was seen.
    """
    if previous is None or len(previous.held) != len(now.held):
        return False
    pairs = (_overlap(h, b) for h, b in zip(now.held, previous.held, strict=True))
    return not all(equal(h.theta, b.after) for h, b in pairs)


def swallowed(now: Record, reference: Reference) -> Iterator[Found]:
    """Parameters or averages of half precision that swallow what is added: more than half of the step is lost.

    In float32 that is what a run that has converged looks like.

    Args:
        now: this step.
        reference: takes it again.
    """
    if all(_eps(x) <= torch.finfo(torch.float32).eps for h in now.held for x in (h.theta, *buffers(h.state).values())):
        return
    at = reference.at
    for what, pairs in (
        ("parameters swallow the step", [[(h.theta, h.after, t)] for h, t in zip(now.held, at.thetas, strict=True)]),
        ("averages swallow what is added", [
            [(h.state[k], h.state_after[k], s[k]) for k in buffers(h.state)
             if k in s and k in h.state_after and h.state[k].numel() > 1]
            for h, s in zip(now.held, at.states, strict=True)]),
    ):  # fmt: skip
        where, shares = [], []
        for k, triples in enumerate(pairs):
            for old, new, ours in triples:
                if _eps(old) <= torch.finfo(torch.float32).eps:
                    continue
                step = ours - old.double()
                lost = float((new.double() - ours).norm()) / max(float(step.norm()), torch.finfo(torch.float64).tiny)
                # Half a unit in the last place of the old value: what may be lost at all.
                if (
                    lost > 0.5
                    and float((new.double() - ours).norm()) <= 2 * _eps(old) * float(ours.norm())
                    and bool(step.any())
                ):
                    where.append(k)
                    shares.append(min(lost, 1.0))
        if where and max(float(now.held[k].theta.abs().max()) for k in where) > 0:
            dtype = str(now.held[where[0]].after.dtype).removeprefix("torch.")
            yield Found(what, f"{share(max(shares))} of it is lost to rounding in {dtype}", sorted(set(where)), max(shares))


def eps_lost(now: Record) -> Iterator[Found]:
    """An eps that is 0 in the parameters' type, where the step left the finite numbers.

    Args:
        now: this step.
    """
    where = []
    for k, h in enumerate(now.held):
        eps = now.groups[h.group].get("eps")
        zero = isinstance(eps, float) and 0 < eps < torch.finfo(h.theta.dtype).smallest_normal * _eps(h.theta) / 2
        if not zero or h.gradient is None or bool(h.after.isfinite().all()):
            continue
        if bool(h.gradient.isfinite().all()) and bool(h.theta.isfinite().all()):
            where.append(k)
    if where:
        dtype = str(now.held[where[0]].theta.dtype).removeprefix("torch.")
        yield Found(f"eps lost in {dtype}", "it is 0 in that type, and something was divided by it", where, 1.0)


def _eps(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps


def _large(state: dict[str, Any], h: Held) -> list[Tensor]:
    return [b for b in buffers(state).values() if b.shape == h.theta.shape and b.numel() > 1]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two states of a tensor hold the same count and buffers."""
    counts = (a.get("step"), b.get("step"))
    counted = (counts[0] is None) == (counts[1] is None) and (
        counts[0] is None or float(counts[0] or 0) == float(counts[1] or 0)
    )
    return counted and _same_buffers(a, b)


def _same_buffers(a: dict[str, Any], b: dict[str, Any]) -> bool:
    x, y = buffers(a), buffers(b)
    return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
