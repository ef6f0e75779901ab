"""A recorded step judged: taken again as documented, and where it is off, with each likely cause put in.

Of sharded parameters each process takes its part of the step again. What it finds there is put together wherever something is
told or decided (`Each`): sums and largest deviations of whole tensors, the same in every process.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memoryless.errors import BadInput
from memoryless.live.check import history
from memoryless.live.check.causes import CAUSES, Case, Try
from memoryless.live.check.record import Held, Record
from memoryless.live.check.reference import Bound, Redone, Reference, buffers, stored
from memoryless.live.check.shares import named, shares
from memoryless.live.check.step_check import Cause, OffTensor, StepCheck

HARDLY = 0.5
"""A cause is named if it explains at least so much."""

Each = Callable[[Callable[[], Any]], list[Any]]
"""What every process finds on its part, by rank; raises in all of them where one cannot."""


def alone(action: Callable[[], Any]) -> list[Any]:
    """`Each` of one process."""
    return [action()]


class Part(NamedTuple):
    """What a process finds on its part of a step.

    Attributes:
        settled: whether it is bit for bit the step in the own precision.
        off: how far beyond rounding each of a tensor's numbers is, by the tensor's number and what is off.
        found: what its state says.
        lost: sums that tell what was swallowed.
        eps_lost: what its precision says.
        moved: whether parameters changed since the last step.
        looked: coordinates that were looked at, and all.
        counts: of steps, that the last one left or a tensor has.
    """

    settled: bool
    off: dict[int, dict[str, float]]
    found: list[history.Found]
    lost: dict[tuple[str, int, str], history.Lost]
    eps_lost: list[history.Found]
    moved: bool
    looked: tuple[int, int]
    counts: list[int]


def judged(
    step: int,
    reference: Reference,
    previous: Record | None = None,
    lrs: Sequence[float] = (),
    of_gradient: tuple[Sequence[Cause], Sequence[str]] = ((), ()),
    each: Each = alone,
) -> StepCheck:
    """The answer for a step that was recorded.

    Args:
        step: its number.
        reference: takes it again.
        previous: the one before, if it was seen.
        lrs: learning rates that the run knew before, latest last.
        of_gradient: why it got another gradient than it should have, and what could not be checked of that.
        each: asks the processes that have a part of it.

    Raises:
        BadInput: nothing can be told of it.
    """
    record, documented = reference.record, reference.documented
    name = record.cls.__name__ if documented is None else documented.__name__
    parts: list[Part] = each(lambda: _part(reference, previous))
    off: dict[int, dict[str, float]] = {}
    for k in sorted({k for part in parts for k in part.off}):
        whats = dict.fromkeys(what for part in parts for what in part.off.get(k, {}))
        off[k] = {what: max(part.off.get(k, {}).get(what, 0.0) for part in parts) for what in whats}
    dtypes = {h.theta.dtype for h in record.held} if all(part.settled for part in parts) else {torch.float64}
    precision = str(max(dtypes, key=lambda x: torch.finfo(x).eps)).removeprefix("torch.")
    looked, size = (sum(part.looked[i] for part in parts) for i in (0, 1))
    said = f"{name}, {'a copy of it' if documented is None else f'single-tensor path in {precision}'}"
    causes = [*_of_history(record, parts), *of_gradient[0]]
    tensors: list[OffTensor] = []
    if off:
        known = [*lrs, *(float(g["initial_lr"]) for g in record.groups if "initial_lr" in g)]
        counts = [n for part in parts for n in part.counts]
        along = each(lambda: [_along(reference, k) for k in off])
        sums = [tuple(map(sum, zip(*pairs, strict=True))) for pairs in zip(*along, strict=True)]
        top, bottom = (sum(pair[i] for pair in sums) for i in (0, 1))
        case = Case(reference, reference.at, list(off), known, counts, top / bottom if bottom else None)
        factors = [a / b if b else None for a, b in sums]
        tensors = [
            OffTensor(record.held[k].name, what, times, c if what == "parameters" else None)
            for (k, whats), c in zip(off.items(), factors, strict=True) for what, times in whats.items()
        ]  # fmt: skip
        causes += explained(case, each)
    notes = [*([history.BETWEEN] if any(part.moved for part in parts) else []), *of_gradient[1]]
    if documented is None:
        notes.append(
            f"{name} is not torch's: only what a copy of it does again can be told; reference= names what it should be"
        )

    def of_shares() -> dict[str, dict[str, float]] | None:
        with torch.no_grad():
            found = each(lambda: shares(reference, reference.at))
        if any(part is None for part in found):
            return None
        whole = [[sum(xs) for xs in zip(*lines, strict=True)] for lines in zip(*found, strict=True)]
        return dict(zip([*(h.name for h in record.held), "whole"], map(named, whole), strict=True))

    return StepCheck(
        step, said, tuple(tensors), tuple(causes), None, tuple(notes), judged=looked / max(1, size), _shares=of_shares
    )


def _part(reference: Reference, previous: Record | None) -> Part:
    record, documented = reference.record, reference.documented
    if documented is None and not any(h.gradient is not None for h in record.held):
        raise BadInput("no tensor has a gradient, so it updates elsewhere than in its step")
    off = deviations(reference)
    if (
        documented is None
        and off
        and all(torch.equal(t, h.theta) for t, h in zip(reference.at.thetas, record.held, strict=True))
    ):
        raise BadInput("a copy of it does not step, as where its step acts on what the original holds")
    looked = sum(h.theta.numel() for h in record.held), sum(h.size for h in record.held)
    counts = [int(h.state_after["step"]) for h in previous.held if "step" in h.state_after] if previous else []
    counts += [h.count for h in record.held if h.count is not None]
    found, eps_lost = ([f for x in every if (f := _there(record, x)).tensors]
                       for every in (history.of_state(record, previous), history.eps_lost(record)))  # fmt: skip
    lost, moved = history.losses(record, reference), history.moved(record, previous)
    return Part(reference.settled(), off, found, lost, eps_lost, moved, looked, counts)


def _there(record: Record, found: history.Found) -> history.Found:
    """Without the tensors of which this process has nothing: those who have something know more."""
    return found._replace(tensors=[k for k in found.tensors if record.held[k].theta.numel() or not record.part])


def _of_history(record: Record, parts: Sequence[Part]) -> list[Cause]:
    """Causes that a step's state and precision tell, each once."""
    every: dict[str, history.Found] = {}
    lost = history.swallowed(record, history.together([part.lost for part in parts]))
    eps_lost = (f for part in parts for f in part.eps_lost)
    for found in (*(f for part in parts for f in part.found), *lost, *eps_lost):
        known = every.get(found.name, found)
        every[found.name] = known._replace(
            tensors=sorted({*known.tensors, *found.tensors}), explains=max(known.explains, found.explains)
        )
    return [Cause(f.name, f.text, tuple(record.held[k].name for k in f.tensors), f.explains) for f in every.values()]


def deviations(reference: Reference) -> dict[int, dict[str, float]]:
    """What is off by more than rounding can explain: by tensor and number of it, how many times more.

    Args:
        reference: takes the step again.
    """
    if reference.settled():
        return {}
    at, held = reference.at, reference.record.held
    masks = [_beyond(h, t, s) for h, t, s in zip(held, at.thetas, at.states, strict=True)]
    if not any(bool(mask.any()) for mask in masks):
        return {}
    if not reference.mixes and all(buffers(s).keys() <= h.state_after.keys() for h, s in zip(held, at.states, strict=True)):
        # Most of what was computed is as it would have been stored: what rounding can explain is asked for the rest alone.
        some = reference.at_some(masks)
        if not _off(some, some.bound(some.at)):
            return {}
    return _off(reference, reference.allowed)


def _beyond(h: Held, theta: Tensor, state: dict[str, Any]) -> Tensor:
    """Where a tensor, or a buffer of its shape, is off by more than storing it explains."""
    found = ~((h.after.double() - theta).abs_() <= stored(h.theta.dtype, theta))
    for key, value in buffers(state).items():
        if (own := h.state_after.get(key)) is not None:
            there = ~((own.double() - value).abs_() <= stored(own.dtype, value))
            found |= there if there.shape == found.shape else there.any()
    return found


def _off(reference: Reference, bound: Bound) -> dict[int, dict[str, float]]:
    """The tensors that are off by more than rounding can explain, by number, and how many times more."""
    every: dict[int, dict[str, float]] = {}
    at = reference.at
    for k, (h, t, s) in enumerate(zip(reference.record.held, at.thetas, at.states, strict=True)):
        off = {}
        if (times := _over(h.after, t, bound.thetas[k])) > 1:
            off["parameters"] = times
        for key, value in buffers(s).items():
            if key not in h.state_after:
                off[f"{key} missing"] = float("inf")
            elif (times := _over(h.state_after[key], value, bound.states[k][key])) > 1:
                off[key] = times
        if off:
            every[k] = off
    return every


def _along(reference: Reference, k: int) -> tuple[float, float]:
    """Of a tensor's displacement a and the documented one b: <a, b> and |b|^2."""
    theta = (h := reference.record.held[k]).theta.double()
    step = reference.at.thetas[k] - theta
    return float(((h.after.double() - theta) * step).sum()), float(step.square().sum())


def _over(found: Tensor, documented: Tensor, allowed: Tensor) -> float:
    """The largest deviation over what is allowed."""
    if not documented.numel():
        return 0.0
    gap = (found.double() - documented).abs()
    same = torch.eq(found.double(), documented) | (found.isnan() & documented.isnan())
    return float(torch.where(same, 0.0, gap / allowed).nan_to_num(nan=float("inf")).max())


class Left(NamedTuple):
    """Of each tensor that is off: squares of what a step leaves unexplained, and of how far it moves the tensor."""

    gaps: list[float]
    moves: list[float]


Key = tuple[str, str, bool, int]
"""Name and text of a try, whether a factor was fitted, and its number among those of the same words.

One that a process does not have leaves its part as it is.
"""
DOCUMENTED: Key = "", "", False, 0


def explained(case: Case, each: Each = alone) -> list[Cause]:
    """Causes of a step that is off, the best first.

    Args:
        case: the step.
        each: asks the processes that have a part of it.
    """
    tries: dict[Key, Try] = {}

    def tried() -> dict[Key, Left]:
        alike: Counter[tuple[str, str, bool]] = Counter()
        for cause in CAUSES:
            try:
                for t in cause(case):
                    said = t.name, t.text, t.fitted
                    tries[*said, alike[said]] = t
                    alike[said] += 1
            except (RuntimeError, ValueError, KeyError, TypeError, ZeroDivisionError):  # that this optimizer cannot have
                continue
        return {DOCUMENTED: _left(case, case.at)} | {key: _left(case, t.redone) for key, t in tries.items()}

    parts: list[dict[Key, Left]] = each(tried)
    whole: dict[Key, Left] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        lefts = [part.get(key, part[DOCUMENTED]) for part in parts]
        gaps, moves = ([float(sum(xs)) for xs in zip(*lines, strict=True)] for lines in zip(*lefts, strict=True))
        whole[key] = Left(gaps, moves)
    at = whole.pop(DOCUMENTED)

    def fitting() -> dict[Key, tuple[bool, bool]]:
        found = {}
        for key, t in tries.items():
            # The bound of a step with a cause put in is that of the documented one in proportion to the two displacements.
            ratios = [2 * max(1.0, (m / (a or 1.0)) ** 0.5) for m, a in zip(whole[key].moves, at.moves, strict=True)]
            found[key] = _fits(case, t.redone, ratios)
        return found

    return _ranked([case.held[k].name for k in case.off], at, whole, each(fitting))


def _ranked(
    names: Sequence[str], at: Left, whole: Mapping[Key, Left], fits: Sequence[Mapping[Key, tuple[bool, bool]]]
) -> list[Cause]:
    found: list[tuple[bool, bool, float, int, Key]] = []
    base = _gap(at, at)
    for order, (key, left) in enumerate(whole.items()):
        fit, states = (all(part.get(key, (False, False))[i] for part in fits) for i in (0, 1))
        share = 1 - _gap(left, at) / base if base else float(states)
        if share != share:  # where the step is not finite, what explains it does so to the bit or not at all
            share = float(fit)
        if fit or share > HARDLY:
            found.append((fit, states, share, order, key))
    # What has a factor fitted to the step comes after what explains it as well without.
    found.sort(key=lambda f: (-(f[0] and f[1]), -f[0], -round(f[2], 3), f[4][2], f[3]))
    best = [f for f in found if f[:2] == found[0][:2] and abs(f[2] - found[0][2]) < 1e-3 and f[4][2] == found[0][4][2]]
    tied = len({b[4][0] for b in best}) > 1
    seen: dict[str, Cause] = {}
    for f in found:
        name, text, *_ = f[4]
        seen.setdefault(name, Cause(name, text, tuple(names), f[2], f in best and tied))
    return list(seen.values())


def _left(case: Case, redone: Redone) -> Left:
    gaps, moves = [], []
    for k in case.off:
        h, t = case.held[k], redone.thetas[k]
        gaps.append(float((h.after.double() - t).square().sum()))
        moves.append(float((t - h.theta.double()).square().sum()))
    return Left(gaps, moves)


def _gap(left: Left, at: Left) -> float:
    """Norm of what a step leaves unexplained of the tensors that are off, each relative to its documented displacement."""
    return sum(gap / (moved or 1.0) for gap, moved in zip(left.gaps, at.moves, strict=True)) ** 0.5


def _fits(case: Case, redone: Redone, ratios: Sequence[float]) -> tuple[bool, bool]:
    """Whether a step explains the tensors that are off to rounding: parameters, buffers."""
    thetas, states, bound = True, True, case.reference.allowed
    for k, ratio in zip(case.off, ratios, strict=True):
        h, t = case.held[k], redone.thetas[k]
        thetas &= _over(h.after, t, ratio * bound.thetas[k] + stored(h.theta.dtype, t)) <= 1
        own = buffers(redone.states[k]) if isinstance(redone.states[k], dict) else {}
        for key, value in own.items():
            kept = h.state_after.get(key)
            if isinstance(kept, Tensor) and kept.shape == value.shape:
                allowed = 4 * bound.states[k].get(key, torch.zeros_like(value)) + 4 * stored(kept.dtype, value)
                states &= _over(kept, value, allowed) <= 1
        states &= set(own) <= set(h.state_after)
    return thetas, states
