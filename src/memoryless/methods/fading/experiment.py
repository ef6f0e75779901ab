"""The memory kernel of a black box, by experiment.

At rest the answer comes from a Krylov space (`methods.fading.krylov`). Without rest, runs that differ in one gradient are
compared.

A derivative is blind to what only a large gradient does, to a running maximum say. So the update is followed after an `IMPULSE`
too. Without rest this is done from two starts: Assumption 3.1 bounds every n at once, so a memory that lengthens with n does
not fade, however it falls from any one n.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from memoryless.errors import BadInput, NeverForgets, NoSteadyState, NotResolved
from memoryless.isolation import isolated
from memoryless.methods.black_box.state_map import Memory
from memoryless.methods.black_box.state_vector import floating
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.fading.krylov import Krylov
from memoryless.methods.fading.tails import (
    FLOOR,
    IMPULSE,
    Array,
    Impulse,
    MemoryKernel,
    above_rounding,
    ages_of,
    draws,
    half_life,
    in_steps,
    log_ages,
    mean_age,
    piece_of,
    tail,
)
from memoryless.methods.forgetting import LONGEST
from memoryless.progress import OnStep

NOISE = 0.3
"""Of gradients where a constant one is degenerate (its variance, that centered methods divide by, is 0); to either side."""
DIFFERENCE = 1e-4
"""Relative size of a small change: its square is a central difference's truncation, a double's rounding over it its noise."""
LONGER = 2.0
"""Growth of the half-life from one start to another four times as late from which memory may lengthen for ever."""
HORIZON, FARTHEST = 2048, 16_384
"""Steps to follow a disturbance: first, and, doubled while that does not tell, at most."""
FEW = 5.0
"""Half-lives below so many steps are the present gradient's, and vary with it."""


def experiment(
    method: TorchMethod, horizon: int | None, seed: int, on_step: OnStep, unsettled: BadInput | None = None
) -> MemoryKernel:
    """The kernel of a black box, its schedule left out.

    Args:
        method: any.
        horizon: steps to follow it after a disturbance; None is as many as it takes, `FARTHEST` at most.
        seed: of the random gradients and parameters.
        on_step: told the optimizer steps taken and the most that may be.
        unsettled: why it does not come to rest, where that is known.
    """
    method, steps = _unscheduled(method).exact, HORIZON if horizon is None else horizon
    with isolated(torch.device("cpu"), seed):
        while True:
            last = horizon is not None or steps >= FARTHEST
            if (found := _looked(method, steps, seed, on_step, unsettled, last)) is not None:
                return found
            steps *= 2


def _looked(
    method: TorchMethod, horizon: int, seed: int, on_step: OnStep, unsettled: BadInput | None, last: bool
) -> MemoryKernel | None:
    """What one horizon tells; None if a longer one may tell more, unless this is the last."""
    why, noise, impulse = unsettled, 0.0, None
    try:
        if why is not None:
            raise why
        settled = [_settled(method, g, theta) for g, theta, _ in draws(method.d, seed)]
    except NoSteadyState as refused:  # its counters still move it, or it grows
        why = refused
        noise = 0.0 if isinstance(refused, (NeverForgets, NotResolved)) else NOISE
    except BadInput:  # it is not finite at a constant gradient
        noise = NOISE
    else:
        memory, F = settled[0]
        try:
            memory.require_fading()
        except (NeverForgets, NotResolved) as refused:
            why = refused
        except NoSteadyState:
            pass
        *_, dg = next(draws(method.d, seed))
        impulse = _large(memory, F, dg, horizon, on_step)
        try:
            found = _at_rest(method, [memory for memory, _ in settled], impulse, seed, horizon, why)
            return found if last or why is not None or found.decays is not None else None
        except NoSteadyState as refused:
            why = why or refused
    return _without_rest(method, horizon, seed, on_step, noise, impulse, why, last or isinstance(why, NotResolved))


def _unscheduled(method: TorchMethod) -> TorchMethod:
    """The optimizer at its initial learning rate: a schedule scales updates, it remembers no gradient."""
    if not method.scheduled:
        return method

    def factory(parameters: list[Parameter]) -> Optimizer:
        optimizer, _ = method.factory(parameters)
        for group in optimizer.param_groups:
            group["lr"] = group.pop("initial_lr", group["lr"])
        return optimizer

    return TorchMethod(factory, method.shapes)


def _settled(method: TorchMethod, g: Tensor, theta: Tensor) -> tuple[Memory, Tensor]:
    memory = Memory(method, g, theta)
    return memory, memory.rest()[1]


def _large(memory: Memory, F: Tensor, dg: Tensor, horizon: int, on_step: OnStep) -> Impulse:
    """Follow the optimizer from rest until what the impulse comes to is plain, or to the horizon."""
    ages, twin, k = log_ages(horizon), memory.state.twin, 0
    _, now = memory.advance(memory.s, IMPULSE * _as_large(dg, memory.gradient))  # the twin lives on from there
    parts = memory.s.split(memory.sizes)
    update, held, stops = [], [], [horizon // 2, horizon // 4]
    for age in ages:
        while k < age:
            now, k = memory.method.displacement(twin, memory.gradient, memory.theta), k + 1
        leaves = twin.leaves()
        update.append(float((now - F).norm()))
        held.append(_gaps([leaves[i] for i in memory.moving], list(zip(memory.names, parts, strict=True))))
        on_step(k, horizon)
        if stops and k >= stops[-1]:
            stops.pop()
            end = tail(ages[: len(update)], np.array(update))
            if end.fades and 4 * end.span < k:
                break
    pieces = {name: np.array([row[name] for row in held]) for name in memory.names}
    left = []
    for _ in range(2):
        leaves = twin.leaves()
        left.append(
            torch.cat([torch.as_tensor(leaves[i][1]).to(memory.s).reshape(-1) for i in memory.moving] or [memory.s]) - memory.s
        )
        memory.method.displacement(twin, memory.gradient, memory.theta)
    change = _relative(np.array(update) / (float(F.norm()) or 1.0))
    return Impulse(ages[: len(update)], change, pieces, (left[0], left[1]))


def _small(memory: Memory, left: tuple[Tensor, Tensor]) -> bool:
    """Whether what an impulse has left moves as the linearization at rest says, and so fades with it."""
    before, after = left
    if float(before.norm()) <= FLOOR * float(memory.s.norm()):
        return True
    expected, _ = memory.push(before)
    return float((after - expected).norm()) <= 0.1 * float((before - expected).norm())


def _at_rest(
    method: TorchMethod, memories: list[Memory], impulse: Impulse, seed: int, horizon: int, why: NoSteadyState | None
) -> MemoryKernel:
    spaces = [(Krylov.of(m, dg), float(dg @ dg)) for m, (*_, dg) in zip(memories, draws(method.d, seed), strict=True)]
    slowest = max(space.radius for space, _ in spaces)
    if slowest > 1 - 1 / LONGEST:
        raise NeverForgets(f"a small change of its memory keeps a share {slowest:.9f} of itself a step", method)
    ages = log_ages(-40 / math.log(slowest) if slowest > 0 else 0)
    names = list(dict.fromkeys(memories[0].names))
    update, *rows = np.sqrt(np.mean([space.squares(ages, names) / norm for space, norm in spaces], axis=0))
    update = above_rounding(update)
    as_small = impulse.left is not None and _small(memories[0], impulse.left)
    pieces = tuple(
        piece_of(name, ages, row, None if as_small else impulse.lasting(name, 0.0))
        for name, row in zip(names, rows, strict=True)
        if row.any()
    )
    large = tail(impulse.ages, impulse.update)
    # What is kept for ever besides has no part in these responses.
    decays = False if isinstance(why, NeverForgets) else _judged(why, [] if as_small else [large.fades])
    small = f"keeps {f'at most {slowest:.6g}' if slowest > 0 else 'nothing'} of itself a step"
    followed = f"after a gradient {IMPULSE:g} times as large"
    return MemoryKernel(
        str(method),
        ages,
        update,
        mean_age(ages, update) if decays else math.inf,
        half_life(ages, update),
        pieces,
        decays,
        _up_to(why, horizon),
        ("" if why is None else f"{why.reason}; ")
        + f"a small change of memory {small}; "
        + (
            f"so does what is left {impulse.ages[-1]:,} steps {followed}"
            if as_small
            else f"{followed} the update's change {large.how}"
        ),
        "experiment at rest",
        impulse.ages,
        impulse.update,
    )


def _without_rest(
    method: TorchMethod,
    horizon: int,
    seed: int,
    on_step: OnStep,
    noise: float,
    impulse: Impulse | None,
    why: BadInput | None,
    last: bool,
) -> MemoryKernel | None:
    ages, starts = log_ages(horizon), (horizon // 4, horizon)
    total = 4 * (sum(starts) + 2 * horizon)
    at_first = 4 * (starts[0] + horizon)
    early, _ = _follow(method, starts[0], ages, seed, noise, lambda done, _: on_step(done, total))
    small = tail(ages, early[""], noise)
    if not last and impulse is None and _judged(why, [small.fades]) is None:
        return None
    late, large = _follow(method, starts[1], ages, seed, noise, lambda done, _: on_step(at_first + done, total))
    large, settled = impulse or large, " from rest" if impulse else ""
    pieces = tuple(
        piece_of(name, ages, values, large.lasting(name, noise))
        for name, values in late.items()
        if name and values.max() > FLOOR
    )
    found, grows = [], False
    if not (end := tail(large.ages, large.update, noise)).fades:
        found.append(f"after a gradient {IMPULSE:g} times as large{settled} the update's change {end.how}")
    if not small.fades and impulse is None:
        found.append(f"the update's response to a small change of one gradient {small.how}")
    if (late[""][1:] > FLOOR * late[""].max()).any():  # it does read what it remembers
        for name in filter(None, late):
            a, b = (half_life(ages, x[name]) for x in (early, late))
            if b > max(LONGER * a, FEW) and math.isfinite(b):
                found.append(
                    f"the half-life of '{name}' grows: {in_steps(a)} from step {starts[0]}, {in_steps(b)} from step {starts[1]}"
                )
                grows = True
                break
    fades = [end.fades, *([small.fades] if impulse is None else []), *([None] if grows else [])]
    if (decays := _judged(why, fades)) is None and not last:
        return None
    if decays:
        found.append(
            f"the update's response to a small change of one gradient {small.how}, to one {IMPULSE:g} times as large {end.how}"
        )
    elif isinstance(why, NoSteadyState):
        found.append(why.reason)
    update = above_rounding(late[""])
    age, half = ages_of(ages, update, noise)
    return MemoryKernel(
        str(method),
        ages,
        update,
        age if decays else math.inf,
        half,
        pieces,
        decays,
        _up_to(why, starts[1] + horizon),
        "; ".join(found),
        f"experiment from step {starts[1]}" + (", fluctuating gradients" if noise else ""),
        large.ages,
        large.update,
    )


def _judged(why: BadInput | None, fades: Sequence[bool | None]) -> bool | None:
    """One judgement from why there is no steady state, and from what each response did.

    A memory that does not come to rest (a sum, a maximum, an ever longer average) never fades if a response outlasts the
    horizon; where what keeps it from rest may be a period or noise, such a response is not resolved.
    """
    if isinstance(why, NotResolved):
        return None
    if False in fades or (isinstance(why, NeverForgets) and None in fades):
        return False
    return None if None in fades else True


def _up_to(why: BadInput | None, looked: int) -> int:
    return why.up_to if isinstance(why, NotResolved) else looked


def _follow(
    method: TorchMethod, start: int, ages: NDArray[np.int64], seed: int, noise: float, on_step: OnStep
) -> tuple[dict[str, Array], Impulse]:
    """Responses of each kind of tensor, and of the update as "", to a small and a large change of one gradient."""
    g, theta, dg = next(draws(method.d, seed))
    odd_one = _as_large(dg, g)
    e = DIFFERENCE * odd_one
    generator = torch.Generator().manual_seed(seed)
    twins = [method.twin(theta) for _ in range(4)]

    def step(odd: bool) -> list[Tensor]:
        now = g * (1 + noise * (2 * torch.rand(method.d, generator=generator, dtype=torch.float64) - 1))
        inputs = [now, now + e, now - e, IMPULSE * odd_one] if odd else [now] * 4
        return [method.displacement(twin, x, theta) for twin, x in zip(twins, inputs, strict=True)]

    for _ in range(start):
        step(odd=False)
    small, large, k, F = [], [], 0, step(odd=True)
    for age in ages:
        while k < age:
            F, k = step(odd=False), k + 1
        usual, up, down, after = (twin.leaves() for twin in twins)
        small.append(_gaps(up, down) | {"": float((F[1] - F[2]).norm())})
        large.append(_gaps(after, usual) | {"": float((F[3] - F[0]).norm() / (F[0].norm() or 1.0))})
        on_step(4 * (start + k), 4 * (start + int(ages[-1])))
    responses, changes = ({name: np.array([row[name] for row in rows]) for name in rows[0]} for rows in (small, large))
    if not all(np.isfinite(x).all() for x in [*responses.values(), *changes.values()]):
        raise BadInput(f"{method}: its memory is not finite {start + int(ages[-1])} steps into a constant gradient")
    scale = 2 * float(e.norm())
    return {name: x / scale for name, x in responses.items()}, Impulse(ages, _relative(changes.pop("")), changes)


@torch.no_grad()
def _gaps(these: Sequence[tuple[str, Any]], those: Sequence[tuple[str, Any]]) -> dict[str, float]:
    """Norm of the difference of each kind of tensor of two states."""
    squares: dict[str, float] = {}
    for (name, x), (_, y) in zip(these, those, strict=True):
        if floating(x):
            gap = torch.as_tensor(x).double().reshape(-1) - torch.as_tensor(y).double().reshape(-1)
            squares[name] = squares.get(name, 0.0) + float(gap @ gap)
    return {name: math.sqrt(value) for name, value in squares.items()}


def _relative(change: Array) -> Array:
    """A change relative to the update, 0 where it is rounding."""
    return np.where(change > FLOOR, change, 0.0)


def _as_large(x: Tensor, as_y: Tensor) -> Tensor:
    return float(as_y.norm() / x.norm()) * x
