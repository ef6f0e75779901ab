"""How far back an optimizer remembers: the weight of the gradient of k steps ago in its update.

    kernel[k] = |dF[n]/dg[n-k] . dg| / |dg|,      a lower bound of gamma_k of Assumption 3.1 (arXiv 2502.02132)

in the mean square over random dg, at random g and theta. The expansion of memory's effect needs sum_k k^2 gamma_k to converge.

Momentum form: with J_l = dphi/dm_l (dg_l/dg) dg it is |sum_l kernel_l[k] J_l|, in closed form.

A black box is asked by experiment. A disturbance ds of its memory at rest moves by ds <- A_s ds a step, and A_s has as many
distinct eigenvalues as the memory has betas. So the Krylov space of ds has few dimensions and holds all its future, A_s^k ds =
|ds| Q T^k e_1: ages of millions cost some optimizer steps. Without rest, runs that differ in one gradient are compared.

A derivative is blind to what only a large gradient does, to a running maximum say. So the update is followed after an `IMPULSE`
too. Without rest this is done from two starts: Assumption 3.1 bounds every n at once, so a memory that lengthens with n does
not fade, however it falls from any one n.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from memoryless.black_box import TorchMethod
from memoryless.kernel import NeverForgets, kernel, total
from memoryless.memory import LONGEST, Memory
from memoryless.method import AnyMethod, Index, Momentum, Part, gradient, square
from memoryless.randomness import isolated

Array = NDArray[np.float64]
Progress = Callable[[int], Any]

IMPULSE = 3.0
"""Size of the one gradient that is out of line, over the usual; it points elsewhere, as what is normalized ignores size."""
DRAWS = 3
"""Random g, theta and dg to average over."""
FINITE = 10_000
"""Step at which a momentum form that never forgets is shown."""
AGES = 4_000_000
"""Most ages."""
MOST = 40
"""Most dimensions of a Krylov space."""
CLOSED = 1e-9
"""A Krylov space is closed if a step leaves it by this share."""
FLOOR = 1e-10
"""Share of the largest weight below which a response is rounding."""
NOISE = 0.3
"""Of gradients where a constant one is degenerate (its variance, that centered methods divide by, is 0); to either side."""
DIFFERENCE = 1e-4
"""Relative size of a small change: its square is a central difference's truncation, a double's rounding over it its noise."""
LONGER = 2.0
"""Growth of the half-life from one start to another 16 times as late from which memory is said to lengthen."""
FEW = 5.0
"""Half-lives below so many steps are the present gradient's, and vary with it."""


@dataclass(frozen=True)
class Piece:
    """One piece of memory.

    Attributes:
        name: a momentum variable, or a kind of tensor of the optimizer's state.
        kernel: what it holds of the gradient of each age, relative to its largest; of a large one, if that lasts.
        mean_age: sum k kernel / sum kernel, in steps; infinite if it does not fade.
        half_life: age from which the kernel stays below half its largest value.
    """

    name: str
    kernel: Array
    mean_age: float
    half_life: float


@dataclass(frozen=True)
class MemoryProfile:
    """The weight of past gradients in an optimizer's update.

    Attributes:
        method: what was profiled.
        ages: k in steps, log-spaced from 0.
        kernel: response of the update to the gradient of each age.
        mean_age: sum k kernel / sum kernel; infinite if memory does not decay.
        half_life: age from which the kernel stays below half its largest value.
        pieces: of memory.
        decays: whether sum k^2 kernel converges, also for large gradients and uniformly in the step (Assumption 3.1).
        evidence: why.
        way: how the kernel was found.
        impulse_ages: steps after a gradient `IMPULSE` times as large as usual; empty in closed form.
        impulse: relative change of the update there.
    """

    method: str
    ages: NDArray[np.int64]
    kernel: Array
    mean_age: float
    half_life: float
    pieces: tuple[Piece, ...]
    decays: bool
    evidence: str
    way: str
    impulse_ages: NDArray[np.int64]
    impulse: Array

    def to_json(self) -> str:
        """All of it; what is infinite is null."""

        def plain(x: Any) -> Any:
            if isinstance(x, dict):
                return {key: plain(value) for key, value in x.items()}
            if isinstance(x, (list, tuple, np.ndarray)):
                return [plain(value) for value in x]
            if isinstance(x, np.generic):
                return plain(x.item())
            return None if isinstance(x, float) and not math.isfinite(x) else x

        return json.dumps(plain(asdict(self)), allow_nan=False)


def memory_profile(
    method: AnyMethod | TorchMethod, *, horizon: int = 2048, seed: int = 0, on_step: Progress | None = None
) -> MemoryProfile:
    """How far back an optimizer remembers, and whether it forgets fast enough for the theory to hold.

    Args:
        method: from the catalogue, of your own, or any torch optimizer as a `TorchMethod`, whose schedule is left out.
        horizon: most steps to follow a black box after a disturbance; a memory shorter than a quarter of it is told from one
            that never fades.
        seed: of the random gradients and parameters.
        on_step: told the number of optimizer steps taken.

    Returns:
        Kernel, mean age and half-life, in all and of each piece of memory, and whether it decays, with the evidence.

    Raises:
        TypeError: neither a method nor a black box.
        ValueError: horizon is too short, or the optimizer fails.

    Example:
        >>> from memoryless.methods import HeavyBall
        >>> profile = memory_profile(HeavyBall(momentum=0.9))
        >>> round(profile.mean_age, 6), round(profile.half_life, 6), profile.decays
        (9.0, 6.578813, True)
    """
    if horizon < 128:
        raise ValueError(f"horizon must be at least 128 steps, got {horizon}")
    if isinstance(method, TorchMethod):
        return _experiment(_unscheduled(method).exact, horizon, seed, on_step or (lambda steps: None))
    if not hasattr(method, "parts"):
        raise TypeError(f"expected a method or a TorchMethod, got {type(method).__name__}; see memoryless.method_of")
    return _closed_form(method, seed)


# Sums over the kernel


def log_ages(last: float, dense: int = 64, per_octave: int = 24) -> NDArray[np.int64]:
    """0, 1, 2, ... dense, then evenly spaced in the logarithm up to `last`.

    Args:
        last: largest age, at most `AGES`.
        dense: up to here every age.
        per_octave: ages per factor of two beyond.
    """
    end = max(int(min(last, AGES)), dense + 1)
    spaced = np.geomspace(dense, end, 2 + int(per_octave * math.log2(end / dense)))
    return np.unique(np.concatenate([np.arange(dense), spaced.round()]).astype(np.int64))


def mean_age(ages: NDArray[np.int64], values: Array) -> float:
    """sum k kernel[k] / sum kernel[k] over every age, exponential between those given.

    Args:
        ages: increasing, from 0.
        values: kernel there.
    """
    if not values.any():
        return 0.0
    k = np.arange(ages[-1] + 1)
    logs = np.interp(k, ages, np.log(np.maximum(values / values.max(), 1e-300)))
    weights = np.exp(logs, where=logs > -400, out=np.zeros(len(k)))
    return float(k @ weights / weights.sum())


def half_life(ages: NDArray[np.int64], values: Array) -> float:
    """The age from which the kernel stays below half its largest value, exponential between those given.

    Args:
        ages: increasing, from 0.
        values: kernel there.
    """
    if not values.any():
        return 0.0
    logs = np.log(np.maximum(values / values.max(), 1e-300))
    i = int(np.flatnonzero(logs >= math.log(0.5))[-1])
    if i == len(ages) - 1:
        return math.inf
    if values[i + 1] == 0:
        return float(ages[i])
    return float(ages[i] + (logs[i] + math.log(2)) / (logs[i] - logs[i + 1]) * (ages[i + 1] - ages[i]))


class Tail(NamedTuple):
    """How a response ends.

    Attributes:
        fades: fast enough for sum k^2 gamma_k.
        how: in words.
        span: steps in which it falls by a factor of e, 0 where that has no meaning.
    """

    fades: bool
    how: str
    span: float = 0.0


def tail(ages: NDArray[np.int64], values: Array, noise: float = 0.0) -> Tail:
    """Tell an exponential tail from a power law and a plateau by the largest values in the last three octaves.

    Over successive octaves an exponential falls at the same rate per step, a power law at half the rate.

    Args:
        ages: increasing, up to K.
        values: kernel there.
        noise: relative size of its fluctuations.
    """
    K, largest = int(ages[-1]), float(values.max(initial=0))
    a, b, c = (float(values[(ages > K / (2 * j)) & (ages <= K / j)].max(initial=0)) for j in (4, 2, 1))
    if c <= 1e-8 * largest:
        if not (left := np.flatnonzero(values > 1e-8 * largest)).size:
            return Tail(True, "is 0 at every age")
        return Tail(True, f"is gone after {ages[left[-1]]:,} steps")
    before, last = math.log(a / b) / (K / 8), math.log(b / c) / (K / 4)
    if b > (1 + noise + 1e-6) * c and last >= 0.85 * before:
        return Tail(1 / last < LONGEST, f"falls by a factor of e every {_steps(1 / last)}", 1 / last)
    power = math.log2(b / c)
    if power < max(0.1, noise):
        return Tail(False, f"does not fade: {c / largest:.2g} of its largest is left after {K // 2:,} to {K:,} steps")
    return Tail(power > 3, f"falls only as k^-{power:.2g} up to {K:,} steps")


def _steps(number: float) -> str:
    return f"{number:,.0f} steps" if number >= 100 else f"{number:.3g} steps"


def _piece(name: str, ages: NDArray[np.int64], values: Array, lasting: "_Impulse | None") -> Piece:
    if lasting is not None:
        values = np.interp(ages, lasting.ages, lasting.pieces[name])
        return Piece(name, values / values.max(), math.inf, math.inf)
    values = _above_rounding(values / values.max())
    return Piece(name, values, *_ages(ages, values))


def _ages(ages: NDArray[np.int64], values: Array, noise: float = 0.0) -> tuple[float, float]:
    """Mean age and half-life; what remains beyond the last age is as its tail says."""
    end = tail(ages, values, noise)
    if not end.fades:
        return math.inf, half_life(ages, values)
    if end.span and values[-1] > 0:
        beyond = min(int(30 * end.span), AGES)
        ages = np.append(ages, ages[-1] + beyond)
        values = np.append(values, values[-1] * math.exp(-beyond / end.span))
    return mean_age(ages, values), half_life(ages, values)


# Momentum form


def _closed_form(method: AnyMethod, seed: int) -> MemoryProfile:
    parts = [part for part in method.parts if part.method.variables]
    remembered = [v for part in parts for v in part.method.variables if v.has_memory]
    endless = [v for v in remembered if not _fades(v)]
    fading = [v.beta for v in remembered if v.beta > 0 and v not in endless]
    n = FINITE if endless else None
    ages = log_ages(FINITE if endless else -40 / math.log(max(fading)) if fading else 0)
    weights = {v: _weights(v, n, ages) for part in parts for v in part.method.variables}
    d = max(_extent(part.index) for part in parts)
    squares = np.zeros(len(ages))
    for g, theta, dg in _draws(d, seed):
        for part in parts:
            J = _responses(part, n, g[part.index], theta[part.index], dg[part.index]).numpy()
            response = np.stack([weights[v] for v in part.method.variables], axis=1) @ (part.scale * J)
            squares += (response**2).sum(axis=1) / float(dg @ dg) / DRAWS
    named = [
        (_name(part, l, v, len(parts)), v) for part in parts for l, v in enumerate(part.method.variables, 1) if v.has_memory
    ]
    pieces = tuple(_exact(name, v, ages, weights[v]) for name, v in named)
    values = np.sqrt(squares)
    if endless:
        why = f"{next(name for name, v in named if v in endless)} gives every age k its say for ever"
        age, half = math.inf, half_life(ages, values)
    else:
        slowest = max(fading, default=0.0)
        fall = f"gamma_k falls by the factor {slowest:g} a step" if fading else "no gradient before the last two counts"
        still = "" if values.any() else "; phi is flat, so the update answers no small change at all"
        why = f"{fall}: sum k^2 gamma_k converges{still}"
        age, half = mean_age(ages, values), half_life(ages, values)
    none = np.zeros(0)
    return MemoryProfile(
        str(method), ages, values, age, half, pieces, not endless, why, "closed form", none.astype(np.int64), none
    )


def _fades(v: Momentum) -> bool:
    try:
        total(v, None)
    except NeverForgets:
        return False
    return True


def _weights(v: Momentum, n: int | None, ages: NDArray[np.int64]) -> Array:
    if n is not None:
        return kernel(v, n)[ages]
    return np.where(ages >= v.lag, float(v.weight(math.inf)) * v.beta ** np.maximum(ages - v.lag, 0.0), 0.0)


def _exact(name: str, v: Momentum, ages: NDArray[np.int64], weights: Array) -> Piece:
    shape = np.abs(weights) / (np.abs(weights).max() or 1.0)
    if not _fades(v):
        return Piece(name, shape, math.inf, half_life(ages, shape))
    half = math.log(0.5) / math.log(v.beta) if v.beta > 0 else 0.0
    return Piece(name, shape, v.lag + v.beta / (1 - v.beta), v.lag + half)


def _responses(part: Part, n: int | None, g: Tensor, theta: Tensor, dg: Tensor) -> Tensor:
    """J_l of each variable, shape (variables, coordinates of the part)."""
    method = part.method
    c = [total(v, n) for v in method.variables]
    m, dm = zip(*(torch.func.jvp(lambda x, v=v: v.g(x, theta), (g,), (dg,)) for v in method.variables), strict=True)
    m = tuple(scale * x for scale, x in zip(c, m, strict=True))

    def along(l: int) -> Tensor:
        tangents = tuple(dx if i == l else torch.zeros_like(dx) for i, dx in enumerate(dm))
        return torch.func.jvp(lambda *m: method.readout(m, theta), m, tangents)[1]

    return torch.stack([along(l) for l in range(len(m))])


def _name(part: Part, l: int, v: Momentum, parts: int) -> str:
    what = ", of g" if v.g is gradient else ", of g^2" if v.g is square else ""
    return f"{part.method.name if parts > 1 else ''} m_{l}{what}, beta {v.beta:g}".strip()


def _extent(index: Index) -> int:
    if isinstance(index, Tensor):
        return int(index.max()) + 1
    return 54 if index.stop is None else int(index.stop)


def _draws(d: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """g, theta, dg; no |g_i| is below 1/2, lest one coordinate near an update's kink at 0 outweigh all others."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(DRAWS):
        size, sign, theta, dg = torch.randn(4, d, generator=generator, dtype=torch.float64)
        yield (0.5 + size.abs()) * sign.sign(), theta, dg


# By experiment


class _Impulse(NamedTuple):
    """What follows one gradient `IMPULSE` times as large as usual.

    Attributes:
        ages: steps since.
        update: its relative change.
        pieces: change of each kind of tensor.
        left: change of the whole memory at the last two steps, where it was at rest before.
    """

    ages: NDArray[np.int64]
    update: Array
    pieces: dict[str, Array]
    left: tuple[Tensor, Tensor] | None = None

    def lasting(self, name: str, noise: float) -> "_Impulse | None":
        """Itself, if a kind of tensor never lets go of it."""
        return self if name in self.pieces and not tail(self.ages, self.pieces[name], noise).fades else None


def _experiment(method: TorchMethod, horizon: int, seed: int, on_step: Progress) -> MemoryProfile:
    reason, noise, impulse = "", 0.0, None
    with isolated(torch.device("cpu"), seed):
        try:
            settled = [_settled(method, g, theta) for g, theta, _ in _draws(method.d, seed)]
        except NeverForgets as never:
            reason = str(never)
        except ValueError:  # its counters still move it, or it is not finite at a constant gradient
            noise = NOISE
        else:
            *_, dg = next(_draws(method.d, seed))
            impulse = _large(*settled[0], dg, horizon, on_step)
            try:
                return _at_rest(method, [memory for memory, _ in settled], impulse, seed)
            except ValueError as unsettled:
                reason = str(unsettled)
        reason = reason.removeprefix(f"{method}: ").removesuffix("; give step=n")
        return _without_rest(method, horizon, seed, on_step, noise, impulse, reason)


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


def _large(memory: Memory, F: Tensor, dg: Tensor, horizon: int, on_step: Progress) -> _Impulse:
    """Follow the optimizer from rest until what the impulse comes to is plain, or to the horizon."""
    ages, twin, k = log_ages(horizon), memory.state.twin, 0
    _, now = memory.advance(memory.s, IMPULSE * _as_large(dg, memory.gradient))  # the twin lives on from there
    parts = memory.s.split(memory.sizes)
    update, held, stops = [], [], [horizon // 2, horizon // 4]
    for age in ages:
        while k < age:
            now, k = memory.method.displacement(twin, memory.gradient, memory.theta), k + 1
        leaves = [twin.leaves()[i] for i in memory.moving]
        update.append(float((now - F).norm()))
        held.append(_gaps(leaves, [(name, x) for name, x in zip(memory.names, parts, strict=True)]))
        on_step(k)
        if stops and k >= stops[-1]:
            stops.pop()
            end = tail(ages[: len(update)], np.array(update))
            if end.fades and 4 * end.span < k:
                break
    pieces = {name: np.array([row[name] for row in held]) for name in memory.names}
    left = []
    for _ in range(2):
        leaves = twin.leaves()
        left.append(torch.cat([leaves[i][1].double().reshape(-1) for i in memory.moving] or [memory.s]) - memory.s)
        memory.method.displacement(twin, memory.gradient, memory.theta)
    change = _relative(np.array(update) / (float(F.norm()) or 1.0))
    return _Impulse(ages[: len(update)], change, pieces, (left[0], left[1]))


def _small(memory: Memory, left: tuple[Tensor, Tensor]) -> bool:
    """Whether what an impulse has left moves as the linearization at rest says, and so fades with it."""
    before, after = left
    if float(before.norm()) <= FLOOR * float(memory.s.norm()):
        return True
    expected, _ = memory.push(before)
    return float((after - expected).norm()) <= 0.1 * float((before - expected).norm())


def _at_rest(method: TorchMethod, memories: list[Memory], impulse: _Impulse, seed: int) -> MemoryProfile:
    spaces = [(_Krylov.of(m, dg), float(dg @ dg)) for m, (*_, dg) in zip(memories, _draws(method.d, seed), strict=True)]
    slowest = max(space.radius for space, _ in spaces)
    if slowest > 1 - 1 / LONGEST:
        raise NeverForgets(f"{method}: a small change of its memory keeps a share {slowest:.9f} of itself a step")
    ages = log_ages(-40 / math.log(slowest) if slowest > 0 else 0)
    names = list(dict.fromkeys(memories[0].names))
    update, *rows = np.sqrt(np.mean([space.squares(ages, names) / norm for space, norm in spaces], axis=0))
    update = _above_rounding(update)
    as_small = impulse.left is not None and _small(memories[0], impulse.left)
    pieces = tuple(
        _piece(name, ages, row, None if as_small else impulse.lasting(name, 0.0))
        for name, row in zip(names, rows, strict=True)
        if row.any()
    )
    large = tail(impulse.ages, impulse.update)
    decays = as_small or large.fades
    small = f"keeps {f'at most {slowest:.6g}' if slowest > 0 else 'nothing'} of itself a step"
    followed = f"after a gradient {IMPULSE:g} times as large"
    return MemoryProfile(
        str(method),
        ages,
        update,
        mean_age(ages, update) if decays else math.inf,
        half_life(ages, update),
        pieces,
        decays,
        f"a small change of memory {small}; "
        + (
            f"so does what is left {impulse.ages[-1]:,} steps {followed}"
            if as_small
            else f"{followed} the update's change {large.how}"
        ),
        "experiment at rest",
        impulse.ages,
        impulse.update,
    )


@dataclass(frozen=True)
class _Krylov:
    """A_s^k ds = Q T^k e_1 |ds|, with dF = U_s A_s^(k-1) ds for k >= 1 and U_g dg at once.

    Attributes:
        T: shape (m, m).
        Q: orthonormal columns, shape (size, m).
        U: U_s Q, shape (d, m).
        size: |ds|.
        now: U_g dg.
        names: of the tensors of s.
        sizes: of the tensors of s.
    """

    T: Array
    Q: Array
    U: Array
    size: float
    now: Array
    names: list[str]
    sizes: list[int]

    @classmethod
    def of(cls, memory: Memory, dg: Tensor) -> "_Krylov":
        """By Arnoldi's process (https://doi.org/10.1090/qam/42792), from the memory at rest after a change of one gradient."""
        ds, now = memory.push(torch.zeros_like(memory.s), dg)
        beside = memory.around(torch.zeros_like(memory.s), dg)
        memory._require_smooth(*beside[:2])
        memory._check_count(ds)
        if not memory.missing and _differ(now, (beside[0][1] - beside[1][1]) / (2 * beside[2])):
            memory.missing = "forward mode drops a tangent of the update"
            return cls.of(memory, dg)
        size = float(ds.norm())
        Q, U, T = [ds / (size or 1.0)], [], np.zeros((MOST + 1, MOST))
        for j in range(MOST):
            after, F = memory.push(Q[j])
            U.append(F)
            scale = float(after.norm())
            for _ in range(2):  # twice is enough (Giraud et al. 2005)
                for i, q in enumerate(Q):
                    part = float(q @ after)
                    T[i, j] += part
                    after = after - part * q
            T[j + 1, j] = float(after.norm())
            if T[j + 1, j] <= max(CLOSED, 10 * memory.epsilon / memory.share * bool(memory.missing)) * max(scale, 1e-3):
                m = j + 1
                columns, updates = (torch.stack(x, dim=1).numpy() for x in (Q, U))
                return cls(T[:m, :m], columns, updates, size, now.numpy(), memory.names, memory.sizes)
            Q.append(after / T[j + 1, j])
        raise ValueError(f"{memory.method}: its memory has more than {MOST} time scales")

    @property
    def radius(self) -> float:
        """The largest share that a disturbance keeps per step, in the long run."""
        return float(np.abs(np.linalg.eigvals(self.T)).max()) if self.size else 0.0

    def squares(self, ages: NDArray[np.int64], names: Sequence[str]) -> Array:
        """Squared norm of what the update, and each kind of tensor, still holds, shape (1 + names, ages)."""
        y = np.zeros((len(ages), len(self.T)))
        y[0, 0] = self.size
        for i, gap in enumerate(np.diff(ages)):
            y[i + 1] = np.linalg.matrix_power(self.T, int(gap)) @ y[i]
        # The update of age k reads the memory that a step of age k - 1 left.
        before = np.zeros_like(y)
        for i, k in enumerate(ages[1:], 1):
            near = int(np.searchsorted(ages, k - 1, side="right")) - 1
            before[i] = np.linalg.matrix_power(self.T, int(k - 1 - ages[near])) @ y[near]
        dF = before @ self.U.T
        dF[0] = self.now
        rows = np.split(self.Q, np.cumsum(self.sizes)[:-1])
        kinds = [np.concatenate([row for name, row in zip(self.names, rows, strict=True) if name == kind]) for kind in names]
        return np.stack([(x**2).sum(axis=1) for x in (dF, *(y @ kind.T for kind in kinds))])


def _differ(x: Tensor, y: Tensor) -> bool:
    return float((x - y).norm()) > 1e-4 * max(float(x.norm()), float(y.norm()))


def _without_rest(
    method: TorchMethod, horizon: int, seed: int, on_step: Progress, noise: float, impulse: _Impulse | None, reason: str
) -> MemoryProfile:
    ages, starts = log_ages(horizon), (horizon // 64, horizon // 4)
    (early, _), (late, large) = (
        _follow(method, start, ages, seed, noise, lambda k, i=i: on_step(k + i * 4 * horizon)) for i, start in enumerate(starts)
    )
    large, settled = impulse or large, " from rest" if impulse else ""
    pieces = tuple(
        _piece(name, ages, values, large.lasting(name, noise)) for name, values in late.items() if name and values.max() > FLOOR
    )
    found = []
    if not (end := tail(large.ages, large.update, noise)).fades:
        found.append(f"after a gradient {IMPULSE:g} times as large{settled} the update's change {end.how}")
    if not (small := tail(ages, early[""], noise)).fades and impulse is None:
        found.append(f"the update's response to a small change of one gradient {small.how}")
    if (late[""][1:] > FLOOR * late[""].max()).any():  # it does read what it remembers
        for name in filter(None, late):
            a, b = (half_life(ages, x[name]) for x in (early, late))
            if b > max(LONGER * a, FEW) and math.isfinite(b):
                found.append(
                    f"the half-life of '{name}' grows: {_steps(a)} from step {starts[0]}, {_steps(b)} from step {starts[1]}"
                )
                break
    decays = not found
    if decays:
        found.append(
            f"the update's response to a small change of one gradient {small.how}, to one {IMPULSE:g} times as large {end.how}"
        )
    elif reason:
        found.append(reason)
    update = _above_rounding(late[""])
    age, half = _ages(ages, update, noise)
    return MemoryProfile(
        str(method),
        ages,
        update,
        age if decays else math.inf,
        half,
        pieces,
        decays,
        "; ".join(found),
        f"experiment from step {starts[1]}" + (", fluctuating gradients" if noise else ""),
        large.ages,
        large.update,
    )


def _follow(
    method: TorchMethod, start: int, ages: NDArray[np.int64], seed: int, noise: float, on_step: Progress
) -> tuple[dict[str, Array], _Impulse]:
    """Responses of each kind of tensor, and of the update as "", to a small and a large change of one gradient."""
    g, theta, dg = next(_draws(method.d, seed))
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
        on_step(4 * (start + k))
    responses, changes = ({name: np.array([row[name] for row in rows]) for name in rows[0]} for rows in (small, large))
    scale = 2 * float(e.norm())
    return {name: x / scale for name, x in responses.items()}, _Impulse(ages, _relative(changes.pop("")), changes)


def _gaps(these: Sequence[tuple[str, Any]], those: Sequence[tuple[str, Any]]) -> dict[str, float]:
    """Norm of the difference of each kind of tensor of two states."""
    squares: dict[str, float] = {}
    for (name, x), (_, y) in zip(these, those, strict=True):
        if isinstance(x, Tensor) and x.is_floating_point():
            gap = x.double().reshape(-1) - y.double().reshape(-1)
            squares[name] = squares.get(name, 0.0) + float(gap @ gap)
    return {name: math.sqrt(value) for name, value in squares.items()}


def _above_rounding(values: Array) -> Array:
    return np.where(values > FLOOR * values.max(), values, 0.0)


def _relative(change: Array) -> Array:
    """A change relative to the update, 0 where it is rounding."""
    return np.where(change > FLOOR, change, 0.0)


def _as_large(x: Tensor, as_y: Tensor) -> Tensor:
    return float(as_y.norm() / x.norm()) * x
