"""The weights of every past step in the memory that a live optimizer holds, where hyperparameters move.

torch keeps  buffer[n] = decay[n] buffer[n-1] + unit[n] g_l[n],  with the hyperparameters of each step's own time, and reads

    m_l = weight(n) / unit[n] buffer[n],        kernel[k] = weight(n) / unit[n] * unit[n-k] prod_{j = n-k+1..n} decay[j]

where weight(n) is that of the catalogue (bias correction included), with the hyperparameters of step n.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, NAdam, Optimizer, RMSprop

from memoryless.errors import BadInput
from memoryless.flat import Layout, local
from memoryless.methods import kernel
from memoryless.methods.black_box.torch_method import stepsize
from memoryless.methods.buffers import names_of
from memoryless.methods.live_optimizer import by_group, step_of
from memoryless.methods.method import Groups, Method, Part
from memoryless.methods.method_optimizer import MethodOptimizer

Rates = tuple[float, float]
"""decay and unit of one step."""


class Kept(NamedTuple):
    """A buffer: its name in the optimizer's state, and its rates by the hyperparameters of a group."""

    name: str | int
    rates: Callable[[dict[str, Any]], Rates]


def _average(name: str, key: str, index: int | None = None) -> Kept:
    def rates(group: dict[str, Any]) -> Rates:
        beta = float(group[key] if index is None else group[key][index])
        return beta, 1 - beta

    return Kept(name, rates)


def kept_in(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Kept | None, ...]:
    """The buffer of each of the catalogue's variables; None for those that are the present gradient.

    Args:
        optimizer: recognised; any other has none.
        group: one of its param groups.
    """
    if isinstance(optimizer, MethodOptimizer):
        return tuple(Kept(l, lambda group, v=v: (v.beta, 1.0)) for l, v in enumerate(group["method"].variables))
    if not (names := names_of(optimizer)):
        return ()
    if isinstance(optimizer, SGD):
        momentum = Kept(names[1], lambda group: (float(group["momentum"]), 1 - float(group["dampening"])))
        return (None, momentum) if group["nesterov"] else (momentum,)
    if isinstance(optimizer, RMSprop):
        return None, _average(names[2], "alpha"), _average(names[1], "alpha")
    first, second = _average(names[1], "betas", 0), _average(names[2], "betas", 1)
    return (first, None, second) if isinstance(optimizer, NAdam) else (first, second)


class Past:
    """The rates of every watched step, of each group's variables.

    Args:
        optimizer: any; one that is not recognised has none.

    Attributes:
        steps: watched so far.
        before: whether it had steps behind it when watching began (`begin`).
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self._kept = [kept_in(optimizer, group) for group in optimizer.param_groups]
        self._runs: list[list[tuple[int, tuple[Rates, ...]]]] = [[] for _ in self._kept]
        self.steps, self.before = 0, False

    def begin(self) -> None:
        """Watching begins here."""
        self.before = any(self._optimizer.state.values())

    def note(self) -> None:
        """A step is about to be taken: note the hyperparameters that it has."""
        for runs, kept, group in zip(self._runs, self._kept, self._optimizer.param_groups, strict=True):
            rates = tuple((0.0, 1.0) if each is None else each.rates(group) for each in kept)
            if not runs or runs[-1][1] != rates:
                runs.append((self.steps, rates))
        self.steps += 1

    def name(self, group: int, l: int) -> str | int | None:
        """Of the buffer of a group's variable l; None if it has none."""
        kept = self._kept[group][l]
        return None if kept is None else kept.name

    def constant(self, group: int) -> bool:
        """Whether a group's rates never changed."""
        return len(self._runs[group]) == 1

    def rates(self, group: int, l: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """decay and unit of the last `count` steps, the latest first, each of shape (count,)."""
        runs = self._runs[group]
        ends = np.array([start for start, _ in runs[1:]] + [self.steps])
        lengths = ends - np.array([start for start, _ in runs])
        return tuple(np.repeat([rates[l][i] for _, rates in runs], lengths)[::-1][:count] for i in range(2))  # type: ignore[return-value]

    def survives(self, group: int, l: int, since: int) -> float:
        """prod of the decays of the steps after step `since`, up to the latest."""
        runs, product = self._runs[group], 1.0
        ends = [start for start, _ in runs[1:]] + [self.steps]
        for (start, rates), end in zip(runs, ends, strict=True):
            if (count := end - max(start, since + 1)) > 0:
                product *= rates[l][0] ** count
        return product

    def unit(self, group: int, l: int) -> float:
        """Of the latest step."""
        return self._runs[group][-1][1][l][1]


class Live:
    """The momentum variables of an optimizer at a step that it is about to take.

    Args:
        optimizer: to be recognised.
        layout: of theta.
        past: rates of the steps that were watched, this one the latest.

    Attributes:
        method: it, with its present hyperparameters.
        n: steps that it has behind it.
        groups: the param group of each part.
        unseen: the largest share of a memory that is older than what was watched.

    Raises:
        NotRecognised: a black box, whose memory has no variables.
        BadInput: betas moved where the history of a readout depends on them.
    """

    def __init__(self, optimizer: Optimizer, layout: Layout, past: Past):
        lr = stepsize(optimizer, layout.used.keys())
        moved = [(i, *each) for i, each in by_group(optimizer, layout) if float(optimizer.param_groups[i]["lr"]) != 0]
        self.method: Method | Groups = Groups(tuple(Part(m, index, m.lr / lr) for _, m, index in moved), lr)
        if len(moved) == 1 and moved[0][2] == slice(0, layout.d):
            self.method = moved[0][1]
        self.groups = [i for i, _, _ in moved]
        self.past = past
        n = step_of(optimizer)
        self.n = past.steps - 1 if n is None else n
        if isinstance(optimizer, (NAdam, MethodOptimizer)) and not all(past.constant(group) for group in self.groups):
            raise BadInput(f"{type(optimizer).__name__}'s betas moved, and its kernel with moving ones is not known")
        self.buffers: dict[tuple[int, int], Tensor] = {}
        whole: dict[str | int, Tensor] = {}
        for p, l in self.variables:
            name = past.name(self.groups[p], l)
            assert name is not None
            if name not in whole:
                whole[name] = _whole(optimizer, layout, name)
            self.buffers[p, l] = whole[name][self.method.parts[p].index].clone()
        shares = [past.survives(self.groups[p], l, -1) for p, l in self.variables if past.before]
        self.unseen = max(shares, default=0.0)

    @property
    def variables(self) -> list[tuple[int, int]]:
        """(part, variable) of those that remember."""
        return [(p, l) for p, part in enumerate(self.method.parts) for l, v in enumerate(part.method.variables) if v.has_memory]

    def memory(self, p: int, l: int, image: Tensor) -> Tensor:
        """m_l as this step reads it, shape (coordinates of the part,).

        Args:
            p: part.
            l: variable.
            image: g_l of this step's gradient, likewise.
        """
        v = self.method.parts[p].method.variables[l]
        if not v.has_memory:
            return v.weight(self.n) * image
        buffer, group = self.buffers[p, l], self.groups[p]
        decay, unit = (float(x[0]) for x in self.past.rates(group, l, 1))
        if not v.lag:
            # What is left of the first step's exemption is in the buffer already.
            buffer = decay * buffer + unit * (v.first if self.n == 0 else 1.0) * image
        return v.weight(self.n) / unit * buffer

    def kernel(self, p: int, l: int, ages: np.ndarray) -> np.ndarray:
        """The weight of steps of some ages, shape (ages,).

        Args:
            p: part.
            l: variable.
            ages: 0 is the step about to be taken.
        """
        v, group, count = self.method.parts[p].method.variables[l], self.groups[p], int(ages.max()) + 1
        if not v.has_memory or self.past.constant(group):
            return kernel.kernel(v, self.n, count)[ages]
        decay, unit = self.past.rates(group, l, count)
        values = v.weight(self.n) / unit[0] * unit * np.concatenate([[1.0], np.cumprod(decay[:-1])])
        if count == self.n + 1:
            values[-1] *= v.first
        return values[ages]

    def kernel_at(self, p: int, l: int, age: int) -> float:
        """The weight of one age.

        Args:
            p: part.
            l: variable.
            age: 0 is the step about to be taken.
        """
        return float(self.kernel(p, l, np.array([age]))[0])


def _whole(optimizer: Optimizer, layout: Layout, name: str | int) -> Tensor:
    """A buffer of all parameters, shape (d,); 0 where there is none."""
    found = torch.zeros_like(layout.theta())
    used = layout.used
    for group in optimizer.param_groups:
        tensors = group["params"]
        if isinstance(name, int):
            sums = optimizer.state.get(tensors[0], {}).get("sums")
            parts = sums[name].split([p.numel() for p in tensors]) if sums else [None] * len(tensors)
        else:
            parts = [optimizer.state.get(p, {}).get(name) for p in tensors]
        for p, part in zip(tensors, parts, strict=True):
            if part is not None and id(p) in used:
                found[used[id(p)]] = local(part).reshape(-1)
    return found
