"""What a step's state says about the steps before: restored or not, counted or not, of which precision, of which settings."""

from collections.abc import Iterator, Mapping, Sequence
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


class Lost(NamedTuple):
    """Of a number's step: squares of what was lost of it, of the step itself, and of what it should have led to."""

    lost: float
    step: float
    led_to: float
    eps: float
    largest: float


LOW = "parameters swallow the step", "averages swallow what is added"


def losses(now: Record, reference: Reference) -> dict[tuple[str, int, str], Lost]:
    """What rounding took of each parameter and average of half precision, by what that is, tensor and buffer.

    Args:
        now: this step.
        reference: takes it again.
    """
    if all(_eps(x) <= torch.finfo(torch.float32).eps for h in now.held for x in (h.theta, *buffers(h.state).values())):
        return {}
    found = {}
    for k, (h, theta, state) in enumerate(zip(now.held, *reference.at, strict=True)):
        triples = {(LOW[0], k, ""): (h.theta, h.after, theta)}
        for key, old in buffers(h.state).items():
            if key in state and key in h.state_after and old.numel() > 1:
                triples[LOW[1], k, key] = old, h.state_after[key], state[key]
        largest = float(h.theta.abs().max()) if h.theta.numel() else 0.0
        for where, (old, new, ours) in triples.items():
            if _eps(old) > torch.finfo(torch.float32).eps:
                lost, step, led_to = (float(x.square().sum()) for x in (new.double() - ours, ours - old.double(), ours))
                found[where] = Lost(lost, step, led_to, _eps(old), largest)
    return found


def together(parts: Sequence[Mapping[tuple[str, int, str], Lost]]) -> dict[tuple[str, int, str], Lost]:
    """The same of whole tensors.

    Args:
        parts: of each process.
    """
    found: dict[tuple[str, int, str], Lost] = {}
    for where, x in (item for part in parts for item in part.items()):
        if (y := found.get(where)) is not None:
            largest = max(x.largest, y.largest)
            found[where] = Lost(x.lost + y.lost, x.step + y.step, x.led_to + y.led_to, x.eps, largest)
        else:
            found[where] = x
    return found


def swallowed(now: Record, lost: Mapping[tuple[str, int, str], Lost]) -> Iterator[Found]:
    """Parameters or averages of half precision that swallow what is added: more than half of the step is lost.

    In float32 that is what a run that has converged looks like.

    Args:
        now: this step.
        lost: of it, from `losses`.
    """
    for what in LOW:
        shares: dict[int, float] = {}
        for (own, k, _), x in sorted(lost.items()):
            part = x.lost**0.5 / max(x.step**0.5, torch.finfo(torch.float64).tiny)
            # Half a unit in the last place of the old value: what may be lost at all.
            if own == what and part > 0.5 and x.step and x.lost**0.5 <= 2 * x.eps * x.led_to**0.5:
                shares[k] = max(shares.get(k, 0.0), min(part, 1.0))
        own = [x for (name, k, _), x in lost.items() if name == what and k in shares]
        if shares and max(x.largest for x in own) > 0:
            dtype = str(now.held[min(shares)].after.dtype).removeprefix("torch.")
            most = max(shares.values())
            yield Found(what, f"{share(most)} of it is lost to rounding in {dtype}", sorted(shares), most)


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
