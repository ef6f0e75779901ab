"""A recorded step judged: taken again as documented, and where it is off, with each likely cause put in."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memoryless.errors import BadInput
from memoryless.live.check import history
from memoryless.live.check.causes import CAUSES, Case, Try
from memoryless.live.check.record import Held, Record
from memoryless.live.check.reference import Bound, Redone, Reference, buffers, stored
from memoryless.live.check.shares import shares
from memoryless.live.check.step_check import Cause, OffTensor, StepCheck

HARDLY = 0.5
"""A cause is named if it explains at least so much."""


def judged(
    step: int,
    reference: Reference,
    previous: Record | None = None,
    lrs: Sequence[float] = (),
    of_gradient: tuple[Sequence[Cause], Sequence[str]] = ((), ()),
) -> StepCheck:
    """The answer for a step that was recorded.

    Args:
        step: its number.
        reference: takes it again.
        previous: the one before, if it was seen.
        lrs: learning rates that the run knew before, latest last.
        of_gradient: why it got another gradient than it should have, and what could not be checked of that.

    Raises:
        BadInput: nothing can be told of it.
    """
    record, documented = reference.record, reference.documented
    name = record.cls.__name__ if documented is None else documented.__name__
    if documented is None and not any(h.gradient is not None for h in record.held):
        raise BadInput("no tensor has a gradient, so it updates elsewhere than in its step")
    bound, off, where = deviations(reference)
    if (
        documented is None
        and off
        and all(torch.equal(t, h.theta) for t, h in zip(reference.at.thetas, record.held, strict=True))
    ):
        raise BadInput("a copy of it does not step, as where its step acts on what the original holds")
    dtypes = {h.theta.dtype for h in record.held} if reference.settled() else {torch.float64}
    precision = str(max(dtypes, key=lambda x: torch.finfo(x).eps)).removeprefix("torch.")
    judged_of = sum(h.theta.numel() for h in record.held) / max(1, sum(h.size for h in record.held))
    said = f"{name}, {'a copy of it' if documented is None else f'single-tensor path in {precision}'}"
    causes = [*of_history(record, previous, reference), *of_gradient[0]]
    if bound is not None and off:
        known = [*lrs, *(float(g["initial_lr"]) for g in record.groups if "initial_lr" in g)]
        counts = [int(h.state_after["step"]) for h in previous.held if "step" in h.state_after] if previous else []
        counts += [h.count for h in record.held if h.count is not None]
        causes += explained(Case(reference, reference.at, where, known, counts), bound)
    notes = [*([history.BETWEEN] if history.moved(record, previous) else []), *of_gradient[1]]
    if documented is None:
        notes.append(
            f"{name} is not torch's: only what a copy of it does again can be told; reference= names what it should be"
        )

    def parts() -> dict[str, dict[str, float]] | None:
        with torch.no_grad():
            found = shares(reference, reference.at)
        return None if found is None else dict(zip([*(h.name for h in record.held), "whole"], found, strict=True))

    return StepCheck(step, said, tuple(off), tuple(causes), None, tuple(notes), judged=judged_of, _shares=parts)


def deviations(reference: Reference) -> tuple[Bound | None, list[OffTensor], list[int]]:
    """What rounding can explain of the difference from the documented step, and what is off by more.

    Args:
        reference: takes the step again.

    Returns:
        Also the tensors' numbers; no bound where a step in the own precision, or the storing alone, explains all.
    """
    if reference.settled():
        return None, [], []
    at, held = reference.at, reference.record.held
    masks = [_beyond(h, t, s) for h, t, s in zip(held, at.thetas, at.states, strict=True)]
    if not any(bool(mask.any()) for mask in masks):
        return None, [], []
    if not reference.mixes and all(buffers(s).keys() <= h.state_after.keys() for h, s in zip(held, at.states, strict=True)):
        # Most of what was computed is as it would have been stored: what rounding can explain is asked for the rest alone.
        some = reference.at_some(masks)
        if not _off(some, allowed := some.bound(some.at)):
            return allowed, [], []
    bound, off, where = reference.bound(at), [], []
    for k, found in _off(reference, bound):
        off += found
        where.append(k)
    return bound, off, where


def _beyond(h: Held, theta: Tensor, state: dict[str, Any]) -> Tensor:
    """Where a tensor, or a buffer of its shape, is off by more than storing it explains."""
    found = ~((h.after.double() - theta).abs_() <= stored(h.theta.dtype, theta))
    for key, value in buffers(state).items():
        if (own := h.state_after.get(key)) is not None:
            there = ~((own.double() - value).abs_() <= stored(own.dtype, value))
            found |= there if there.shape == found.shape else there.any()
    return found


def _off(reference: Reference, bound: Bound) -> list[tuple[int, list[OffTensor]]]:
    """The tensors that are off by more than rounding can explain, by number."""
    every: list[tuple[int, list[OffTensor]]] = []
    at = reference.at
    for k, (h, t, s) in enumerate(zip(reference.record.held, at.thetas, at.states, strict=True)):
        off = []
        step = t - h.theta.double()
        size = float(step.square().sum())
        c = float(((h.after.double() - h.theta.double()) * step).sum()) / size if size else None
        if (times := _over(h.after, t, bound.thetas[k])) > 1:
            off.append(OffTensor(h.name, "parameters", times, c))
        for key, value in buffers(s).items():
            if key not in h.state_after:
                off.append(OffTensor(h.name, f"{key} missing", float("inf"), None))
            elif (times := _over(h.state_after[key], value, bound.states[k][key])) > 1:
                off.append(OffTensor(h.name, key, times, None))
        if off:
            every.append((k, off))
    return every


def _over(found: Tensor, documented: Tensor, allowed: Tensor) -> float:
    """The largest deviation over what is allowed."""
    if not documented.numel():
        return 0.0
    gap = (found.double() - documented).abs()
    same = torch.eq(found.double(), documented) | (found.isnan() & documented.isnan())
    return float(torch.where(same, 0.0, gap / allowed).nan_to_num(nan=float("inf")).max())


def explained(case: Case, bound: Bound) -> list[Cause]:
    """Causes of a step that is off, the best first.

    Args:
        case: the step.
        bound: what rounding can explain.
    """
    found: list[tuple[bool, bool, float, int, Try]] = []
    tries: list[Try] = []
    for cause in CAUSES:
        try:
            tries += cause(case)
        except (RuntimeError, ValueError, KeyError, TypeError, ZeroDivisionError):  # a cause that this optimizer cannot have
            continue
    base = _gap(case, case.at)
    for order, each in enumerate(tries):
        fits, states = _fits(case, each.redone, bound)
        share = 1 - _gap(case, each.redone) / base if base else float(states)
        if share != share:  # where the step is not finite, what explains it does so to the bit or not at all
            share = float(fits)
        if fits or share > HARDLY:
            found.append((fits, states, share, order, each))
    # What has a factor fitted to the step comes after what explains it as well without.
    found.sort(key=lambda f: (-(f[0] and f[1]), -f[0], -round(f[2], 3), f[4].fitted, f[3]))
    names = tuple(case.held[k].name for k in case.off)
    best = [f for f in found if f[:2] == found[0][:2] and abs(f[2] - found[0][2]) < 1e-3 and f[4].fitted == found[0][4].fitted]
    seen: dict[str, Cause] = {}
    for f in found:
        seen.setdefault(f[4].name, Cause(f[4].name, f[4].text, names, f[2], f in best and len({b[4].name for b in best}) > 1))
    return list(seen.values())


def _gap(case: Case, redone: Redone) -> float:
    """Norm of what a step leaves unexplained of the tensors that are off, each relative to its documented displacement."""
    total = 0.0
    for k in case.off:
        h = case.held[k]
        size = float((case.at.thetas[k] - h.theta.double()).norm()) or 1.0
        total += (float((h.after.double() - redone.thetas[k]).norm()) / size) ** 2
    return total**0.5


def _fits(case: Case, redone: Redone, bound: Bound) -> tuple[bool, bool]:
    """Whether a step explains the tensors that are off to rounding: parameters, buffers."""
    thetas, states = True, True
    for k in case.off:
        h, t = case.held[k], redone.thetas[k]
        # The bound of the step with a cause put in is that of the documented one in proportion to the two displacements.
        theta = h.theta.double()
        ratio = 2 * max(1.0, float((t - theta).norm()) / (float((case.at.thetas[k] - theta).norm()) or 1.0))
        thetas &= _over(h.after, t, ratio * bound.thetas[k] + stored(h.theta.dtype, t)) <= 1
        own = buffers(redone.states[k]) if isinstance(redone.states[k], dict) else {}
        for key, value in own.items():
            kept = h.state_after.get(key)
            if isinstance(kept, Tensor) and kept.shape == value.shape:
                allowed = 4 * bound.states[k].get(key, torch.zeros_like(value)) + 4 * stored(kept.dtype, value)
                states &= _over(kept, value, allowed) <= 1
        states &= set(own) <= set(h.state_after)
    return thetas, states


def of_history(now: Record, previous: Record | None, reference: Reference) -> list[Cause]:
    """Causes that a step's state and precision tell.

    Args:
        now: this step.
        previous: the one before.
        reference: takes it again.
    """
    found: Sequence[history.Found] = [
        *history.of_state(now, previous), *history.swallowed(now, reference), *history.eps_lost(now)]  # fmt: skip
    return [Cause(f.name, f.text, tuple(now.held[k].name for k in f.tensors), f.explains) for f in found]
