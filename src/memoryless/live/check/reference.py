"""The step that an optimizer documents: its class's single-tensor path in float64, from the recorded state.

Of an optimizer that is not torch's a copy steps, in its own precision and from the same random numbers: it may round, draw and
switch by its type, so that the two agree but for what their storing rounds.

What rounding can explain: a step of k operations in a format of precision eps is the exact step from inputs each off by at most
k eps (every rounding is moved into an operand), so the result is within sum_i |f(x_i (1 + k eps)) - f(x_i)|, the larger of both
signs, which is found by taking the step again; the stored result adds its own rounding. k = 16 covers the longest path through
an elementwise step of torch (average, square, correction, root, eps, quotient, product, sum: 12), 4 the ways theta itself goes.
Where bias corrections are computed in float32 (capturable, fused, compiled, an lr that is a tensor), the betas and the lr are
inputs too.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.flat import flat
from memoryless.isolation import isolated
from memoryless.live.check.record import Held, Record, copied, mapped
from memoryless.methods.black_box.remade import HOOKS

OPERATIONS, OF_THETA = 16, 4
"""Roundings on the way of the gradient and the state, and of theta."""
SPREAD = 8.0
"""Of a step that mixes coordinates the perturbations are random draws: so many times their size over the tensor counts."""
MIXING = {"Muon", "Adafactor", "LBFGS"}
SETTINGS = "betas", "alpha", "momentum", "rho"
PLAINLY = {"foreach": False, "fused": False, "capturable": False, "differentiable": False}
Edit = Callable[[list[dict[str, Any]], list[Held]], object]


class Redone(NamedTuple):
    """A step taken again: parameters and states of each tensor, float64 but for `Reference.own`."""

    thetas: list[Tensor]
    states: list[dict[str, Any]]


class Bound(NamedTuple):
    """What rounding can explain of a difference: of each tensor, and of each tensor's buffers."""

    thetas: list[Tensor]
    states: list[dict[str, Tensor]]


@dataclass
class Reference:
    """Takes a recorded step again.

    Args:
        record: the step.
        documented: the class whose step is documented; None finds it: the nearest class of torch, or the optimizer's own.
        template: a copy of the optimizer before the step, for a class that is not torch's.
    """

    record: Record
    documented: type[Optimizer] | None = None
    template: Optimizer | None = None

    def __post_init__(self) -> None:
        self.documented = self.documented or torchs(self.record.cls)
        if self.record.part and self.mixes:
            raise BadInput(
                f"{self.record.cls.__name__} may mix coordinates, of which each process has a part: not checked under sharding"
            )
        if self.record.complex and self.mixes:
            raise BadInput(f"{self.record.cls.__name__} may not take complex parameters as pairs of numbers: not checked")
        if self.documented is None and self.template is None:
            raise BadInput(f"{self.record.cls.__name__} is none of torch's optimizers, and there is no copy of it: "
                           "give reference=, the class it should be")  # fmt: skip

    @property
    def mixes(self) -> bool:
        """Whether a step may mix coordinates: all but torch's elementwise optimizers."""
        return self.documented is None or self.documented.__name__ in MIXING

    def redo(self, edit: Edit | None = None, times: int = 1) -> Redone:
        """The step in float64, from the recorded state.

        Args:
            edit: changes groups and tensors in place before it.
            times: steps to take.
        """
        return self._redone(torch.clone if self.documented is None else _double, edit, times)

    @cached_property
    def at(self) -> Redone:
        """The documented step in float64."""
        return self.redo()

    @cached_property
    def own(self) -> Redone | None:
        """The documented step in the step's own precision; None in half precision, or where no class documents it.

        A step that is this one bit for bit is the documented one to rounding, which is what this is away from float64.
        """
        tensors = [x for h in self.record.held for x in (h.theta, h.gradient, *buffers(h.state).values()) if x is not None]
        if self.documented is None or any(x.dtype not in (torch.float32, torch.float64) for x in tensors):
            return None
        if any(group.get("fused") for group in self.record.groups):  # rounds otherwise, always
            return None
        return self._redone(torch.clone, None, 1, wide=False)

    def settled(self) -> bool:
        """Whether the step that was taken is `own`, bit for bit: then no difference from float64 need be looked at."""
        return self.own is not None and all(
            h.after is t and bool(t.sum().isfinite()) and all(h.state_after.get(k) is v for k, v in buffers(s).items())
            for h, t, s in zip(self.record.held, *self.own, strict=True)
        )

    def _redone(self, copy_of: Callable[[Tensor], Tensor], edit: Edit | None, times: int, wide: bool = True) -> Redone:
        """The step from copies of what was recorded; a gradient is only read."""
        if edit is None and times == 1 and not self.mixes and any(h.window for h in self.record.held):
            return self._together(wide)
        groups = [self._plain(group) for group in copied(self.record.groups)]
        held = [
            replace(
                h,
                theta=copy_of(h.theta),
                gradient=None if h.gradient is None else copy_of(h.gradient) if wide else h.gradient,
                state={key: mapped(torch.clone if key == "step" else copy_of, value) for key, value in h.state.items()},
            )
            for h in self.record.held
        ]
        if edit is not None:
            edit(groups, held)
        tensors = [torch.nn.Parameter(h.theta if edit is None else h.theta.clone()) for h in held]
        optimizer = self._optimizer(groups, held, tensors)
        # torch's elementwise optimizers draw no random numbers.
        with isolated(tensors[0].device, self.record.noise) if self.mixes else nullcontext():
            for _ in range(times):
                for p, h in zip(tensors, held, strict=True):
                    p.grad = None if h.gradient is None else h.gradient.clone() if times > 1 else h.gradient
                with torch.enable_grad():
                    optimizer.step()
        if not wide:
            return Redone([p.detach() for p in tensors], [dict(optimizer.state.get(p, {})) for p in tensors])
        states = [{k: mapped(_widened, v) for k, v in optimizer.state.get(p, {}).items()} for p in tensors]
        return Redone([p.detach().double() for p in tensors], states)

    def _plain(self, group: dict[str, Any]) -> dict[str, Any]:
        """A group on the single-tensor path; what float64 would change by itself is kept (Adafactor's eps is its dtype's)."""
        if self.documented is None:
            return group
        group |= {key: value for key, value in PLAINLY.items() if key in group}
        for key in ("lr", *SETTINGS):
            if isinstance(group.get(key), Tensor):
                group[key] = float(group[key])
            elif isinstance(group.get(key), tuple):
                group[key] = tuple(float(x) for x in group[key])
        eps = group.get("eps")
        if isinstance(eps, tuple) and eps[0] is None:
            group["eps"] = (torch.finfo(self.record.held[0].theta.dtype).eps, eps[1])
        return group

    def _optimizer(self, groups: list[dict[str, Any]], held: list[Held], tensors: list[Any]) -> Optimizer:
        if self.documented is None:
            assert self.template is not None
            optimizer = copied_optimizer(self.template)
            assert optimizer is not None
            olds = list({id(p): p for group in optimizer.param_groups for p in group["params"]}.values())
            for old, new, h in zip(olds, tensors, held, strict=True):
                old.data, state = new.data, h.state
                if state:
                    optimizer.state[old] = state
            for own, group in zip(optimizer.param_groups, groups, strict=True):
                own.update(group)
            tensors[:] = olds
            return optimizer
        parts = [
            group | {"params": [p for p, h in zip(tensors, held, strict=True) if h.group == k]}
            for k, group in enumerate(groups)
        ]
        where = [part for part in parts if part["params"]]
        documented: Any = self.documented
        accepted = _options(documented)
        lr: dict[str, Any] = {"lr": where[0]["lr"]} if "lr" in accepted and "lr" in where[0] else {}  # some ask for it
        optimizer = documented(where, **lr)
        optimizer.state.clear()
        for p, h in zip(tensors, held, strict=True):
            if h.state:
                optimizer.state[p] = h.state
            elif documented in STATED:
                optimizer.state[p] = documented([p], **lr).state[p]
        return optimizer

    def _together(self, wide: bool) -> Redone:
        """The step of parts of tensors, those of one kind end to end: of an elementwise step it is the same."""
        held = self.record.held
        kinds = _kinds(dict(enumerate(held)))
        record = replace(self.record, held=[_joined([held[k] for k in kind]) for kind in kinds])
        found = Reference(record, self.documented)._redone(_double if wide else torch.clone, None, 1, wide)
        thetas, states = {}, {}
        for kind, theta, state in zip(kinds, *found, strict=True):
            sizes = [held[k].theta.numel() for k in kind]
            split = {key: x.split(sizes) for key, x in state.items() if isinstance(x, Tensor) and x.shape == theta.shape}
            for i, (k, own) in enumerate(zip(kind, theta.split(sizes), strict=True)):
                thetas[k] = own.view_as(held[k].theta)
                states[k] = state | {key: parts[i].view_as(held[k].theta) for key, parts in split.items()}
        return Redone([thetas[k] for k in range(len(held))], [states[k] for k in range(len(held))])

    def at_some(self, masks: list[Tensor]) -> "Reference":
        """The step of some coordinates, tensors of one kind end to end.

        Args:
            masks: which, of each tensor.
        """
        picked = {
            k: h.picked(lambda x, mask=mask: x[mask])
            for k, (h, mask) in enumerate(zip(self.record.held, masks, strict=True)) if bool(mask.any())
        }  # fmt: skip
        joined = [_joined([picked[k] for k in kind]) for kind in _kinds(picked)]
        return Reference(replace(self.record, held=joined), self.documented)

    @cached_property
    def allowed(self) -> Bound:
        """`bound` of the documented step."""
        return self.bound(self.at)

    def bound(self, at: Redone) -> Bound:
        """What rounding can explain of a difference from a reference step.

        Args:
            at: that step.
        """
        record = self.record
        thetas = [torch.zeros_like(t) for t in at.thetas]
        states = [{k: torch.zeros_like(v) for k, v in _buffers(s).items()} for s in at.states]
        keys = {key for h in record.held for key in _buffers(h.state)}
        for what in ["theta", "gradient", *sorted(keys), *(["settings"] if self._in_float32() else [])]:
            most = None
            for sign in (1.0, -1.0):
                moved = self.redo(lambda groups, held, what=what, sign=sign: self._perturb(groups, held, what, sign))
                gaps = [(a - b).abs() for a, b in zip(moved.thetas, at.thetas, strict=True)]
                kept = [{k: (m[k] - v).abs() for k, v in _buffers(s).items() if k in m}
                        for m, s in zip(moved.states, at.states, strict=True)]  # fmt: skip
                if most is None:
                    most = gaps, kept
                else:
                    most = ([torch.maximum(a, b) for a, b in zip(most[0], gaps, strict=True)],
                            [{k: torch.maximum(a[k], b[k]) for k in a}
                             for a, b in zip(most[1], kept, strict=True)])  # fmt: skip
            assert most is not None
            thetas = [a + b for a, b in zip(thetas, most[0], strict=True)]
            states = [{k: a[k] + b.get(k, 0) for k in a} for a, b in zip(states, most[1], strict=True)]
        for k, (h, t) in enumerate(zip(record.held, at.thetas, strict=True)):
            thetas[k] += stored(h.theta.dtype, t)
            if self._in_float32():
                group, theta = record.groups[h.group], h.theta.double()
                decay = float(group.get("lr", 0.0)) * group.get("weight_decay", 0.0) * theta.abs()
                thetas[k] += self._of_corrections(h, at.states[k]) * ((t - theta).abs() + decay)
            for key, value in _buffers(at.states[k]).items():
                own = h.state_after.get(key)
                states[k][key] = states[k][key] + stored(own.dtype if isinstance(own, Tensor) else h.theta.dtype, value)
                if self.mixes and value.numel():
                    states[k][key] = states[k][key].clamp_min(SPREAD * float(states[k][key].square().mean().sqrt()))
            if self.mixes and thetas[k].numel():
                thetas[k] = thetas[k].clamp_min(SPREAD * float(thetas[k].square().mean().sqrt()))
        return Bound(thetas, states)

    def _in_float32(self) -> bool:
        if self.record.compiled:
            return True
        return any(group.get(key) for group in self.record.groups for key in ("capturable", "fused")) or any(
            isinstance(group.get("lr"), Tensor) for group in self.record.groups
        )

    def _of_corrections(self, h: Held, state: dict[str, Any]) -> float:
        """Relative error of an update whose bias corrections 1 - beta^n were computed in float32.

        beta^n off by k eps of it makes 1 - beta^n off by k eps beta^n / (1 - beta^n); the second enters as its root. Moving the
        betas tells nothing of it at the first steps, where 1 - beta in the average moves along and cancels.
        """
        betas, n = self.record.groups[h.group].get("betas"), float(state.get("step", 0))
        if not isinstance(betas, tuple) or not n:
            return 0.0
        decays = [float(beta) ** n for beta in betas]
        return OF_THETA * torch.finfo(torch.float32).eps * sum(b / (1 - b) for b in decays if b < 1)

    def _perturb(self, groups: list[dict[str, Any]], held: list[Held], what: str, sign: float) -> None:
        """Multiply one input by 1 +- k eps; the sign alternates over coordinates at random where they are mixed."""
        if what == "settings":
            shift = 1 + sign * OF_THETA * torch.finfo(torch.float32).eps
            for group in groups:
                for key in SETTINGS:
                    value = group.get(key)
                    if isinstance(value, tuple):
                        group[key] = tuple(min(x * shift, 1 - 1e-12) for x in value)
                    elif isinstance(value, float):
                        group[key] = value * shift
                group["lr"] = float(group["lr"]) * shift
            return
        generator = torch.Generator().manual_seed(0)
        for h, own in zip(held, self.record.held, strict=True):
            lr = self.record.groups[own.group].get("lr")  # a tensor: what is multiplied by it has its precision
            eps = max(torch.finfo(x.dtype).eps for x in (own.theta, lr) if isinstance(x, Tensor) and x.is_floating_point())
            if what == "theta":
                h.theta = h.theta * self._factor(h.theta, sign * OF_THETA * eps, generator)
            elif what == "gradient" and h.gradient is not None:
                h.gradient = h.gradient * self._factor(h.gradient, sign * OPERATIONS * eps, generator)
            elif what in _buffers(own.state):
                eps = max(eps, torch.finfo(own.state[what].dtype).eps)
                h.state[what] = h.state[what] * self._factor(h.state[what], sign * OPERATIONS * eps, generator)

    def _factor(self, x: Tensor, size: float, generator: torch.Generator) -> Tensor | float:
        if not self.mixes:
            return 1 + size
        return 1 + size * (2.0 * torch.randint(0, 2, x.shape, generator=generator).to(x) - 1)


def _kinds(held: Mapping[int, Held]) -> list[list[int]]:
    """Numbers of tensors of the same group, type, device, count and kind of state."""
    found: dict[tuple, list[int]] = {}
    for k, h in held.items():
        rest = [(key, float(x)) for key, x in h.state.items() if not isinstance(x, Tensor) or not x.ndim]
        kind = h.group, h.theta.dtype, h.theta.device, h.gradient is None, tuple(h.state), tuple(h.state_after), tuple(rest)
        found.setdefault(kind, []).append(k)
    return list(found.values())


def _joined(every: list[Held]) -> Held:
    """Tensors of one kind as one."""
    first = every[0]

    def of(key: str) -> Any:
        values = [getattr(h, key) for h in every]
        if isinstance(values[0], dict):
            several = {k for k, x in values[0].items() if isinstance(x, Tensor) and x.shape == first.theta.shape and x.ndim}
            return {k: flat(v[k] for v in values) if k in several else x for k, x in values[0].items()}
        return None if values[0] is None or not sum(x.numel() for x in values) else flat(values)

    made = {key: of(key) for key in ("theta", "gradient", "state", "after", "state_after")}
    return replace(first, window=None, **{k: v for k, v in made.items() if v is not None})


STATED = {torch.optim.Adagrad}
"""Whose state is made with the optimizer, not at its first step."""


def copied_optimizer(optimizer: Optimizer) -> Optimizer | None:
    """A copy with all its attributes, which torch's own way of copying drops, and without hooks; else None.

    Args:
        optimizer: live.
    """
    try:
        with torch.no_grad():  # in which states are made: their views may be written to
            return _with_attributes(optimizer, {})
    except Exception:
        return None


def _with_attributes(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    found = memo[id(optimizer)] = object.__new__(type(optimizer))
    values = {key: value for key, value in vars(optimizer).items() if key != "step"}  # bound to the original, by a schedule
    for value in values.values():  # optimizers that it is made of
        for inner in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(inner, Optimizer) and id(inner) not in memo:
                _with_attributes(inner, memo)
    for key, value in values.items():
        found.__dict__[key] = type(value)() if key in HOOKS else copy.deepcopy(value, memo)
    # What is kept by a tensor's id is kept by that of its copy.
    own = {id(p): id(memo[id(p)]) for group in optimizer.param_groups for p in group["params"] if id(p) in memo}
    for key, value in list(found.__dict__.items()):
        if isinstance(value, dict) and any(isinstance(k, int) and k in own for k in value):
            found.__dict__[key] = type(value)({own.get(k, k): v for k, v in value.items()})  # pyright: ignore[reportCallIssue]
    return found


@lru_cache(64)
def torchs(cls: type[Optimizer]) -> type[Optimizer] | None:
    """The nearest class of torch that an optimizer's class is, or derives from without options of its own; else None.

    Args:
        cls: one with further options documents a step of its own.
    """
    for base in cls.__mro__:
        if base.__module__.startswith("torch.optim") and base is not Optimizer:
            return base if _options(cls) - {"args", "kwargs"} <= _options(base) else None
    return None


@lru_cache(64)
def _options(cls: type[Optimizer]) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters)


def stored(dtype: torch.dtype, x: Tensor) -> Tensor:
    """How far a stored number may be from x: half a unit in the last place, written at most four times; or the least number."""
    info = torch.finfo(dtype)
    return x.abs().mul_(OF_THETA * (info.eps + torch.finfo(torch.float64).eps)).add_(info.tiny)


def _double(x: Tensor) -> Tensor:
    return x.detach().to(torch.float64, copy=True) if x.is_floating_point() else x.clone()


def _widened(x: Tensor) -> Tensor:
    return x.detach().double() if x.is_floating_point() else x


def _buffers(state: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != "step" and isinstance(v, Tensor) and v.is_floating_point()}


buffers = _buffers
