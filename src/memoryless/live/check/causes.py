"""Likely causes of a step that is off, each a way to take it again with that cause put in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memoryless.live.check.record import Held
from memoryless.live.check.reference import Edit, Redone, Reference, buffers

FOREVER = 1e9
"""A count at which every bias correction is 1."""
MOVES = "betas", "momentum", "alpha"


class Try(NamedTuple):
    """A step with a cause put in: its name, what it says, what it would have led to, and whether a factor was fitted for it."""

    name: str
    text: str
    redone: Redone
    fitted: bool = False


@dataclass
class Case:
    """What a cause may look at.

    Attributes:
        reference: takes the step again.
        at: the documented step.
        lrs: learning rates that the run knew before, latest last.
        off: the tensors that are off.
        counts: of steps, that the run had or other tensors have.
        factor: least squares of the displacement on the documented one, over the tensors that are off.
    """

    reference: Reference
    at: Redone
    off: list[int]
    lrs: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    factor: float | None = None

    def redo(self, edit: Edit, times: int = 1) -> Redone:
        """The step with a change put in."""
        return self.reference.redo(edit, times)

    def with_settings(self, change: Callable[[dict[str, Any]], object]) -> Redone:
        """The step with a change in every group."""
        return self.redo(lambda groups, held: [change(group) for group in groups])

    @property
    def held(self) -> list[Held]:
        """The tensors."""
        return self.reference.record.held

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Hyperparameters at the step."""
        return self.reference.record.groups


def nothing_moved(case: Case) -> Iterator[Try]:
    """A parameter skipped."""
    if any(case.held[k].gradient is not None for k in case.off):
        yield Try("parameter skipped", "it has a gradient and was not stepped",
                  Redone([h.theta.double() for h in case.held], [_wide(h.state) for h in case.held]))  # fmt: skip


def without_gradient(case: Case) -> Iterator[Try]:
    """A tensor without a gradient moved: by a gradient of zero, or by decay alone."""
    if not any(case.held[k].gradient is None for k in case.off):
        return

    def zero(groups: list[dict[str, Any]], held: list[Held]) -> None:
        for h in held:
            h.gradient = torch.zeros_like(h.theta) if h.gradient is None else h.gradient

    decayed = [h.theta.double() * (1 - _lr(case, h) * case.groups[h.group].get("weight_decay", 0.0)) for h in case.held]
    frozen = all(not case.held[k].trained for k in case.off)
    alone = Try(
        "frozen layer decays", "no gradient, yet weight decay was applied", Redone(decayed, [_wide(h.state) for h in case.held])
    )
    zeros = Try("gradient None treated as zero", "it has no gradient, and was stepped with a gradient of 0", case.redo(zero))
    yield from (alone, zeros) if frozen else (zeros, alone)


def tied(case: Case) -> Iterator[Try]:
    """Tensors that share their memory, each stepped."""
    places: dict[int, list[int]] = {}
    for k, h in enumerate(case.held):
        places.setdefault(h.place, []).append(k)
    if not any(len(same) > 1 for same in places.values()):
        return
    thetas = [t.clone() for t in case.at.thetas]
    for same in places.values():
        there = case.held[same[0]].theta.double()
        for k in same if len(same) > 1 else ():  # each steps from where the one before it led
            there = case.redo(lambda groups, held, k=k, there=there: setattr(held[k], "theta", there)).thetas[k]
        for k in same if len(same) > 1 else ():
            thetas[k] = there
    yield Try(
        "tied parameters stepped twice", "tensors that share their memory were each stepped", Redone(thetas, case.at.states)
    )


def twice(case: Case) -> Iterator[Try]:
    """The step taken twice."""
    yield Try("step taken twice", "two steps with the same gradient", case.redo(lambda groups, held: None, times=2))


def direction(case: Case) -> Iterator[Try]:
    """The other sign."""
    if any("maximize" in group for group in case.groups):
        yield Try("maximize flipped", "ascends where it should descend, or the reverse",
                  case.with_settings(lambda g: g.update(maximize=not g.get("maximize"))))  # fmt: skip


def decay(case: Case) -> Iterator[Try]:
    """Weight decay coupled or decoupled; or none."""
    if not any(group.get("weight_decay") for group in case.groups):
        return
    decoupled = [_decoupled(case, group) for group in case.groups]

    def other(groups: list[dict[str, Any]], held: list[Held]) -> None:
        for h in held:
            group, apart = groups[h.group], decoupled[h.group]
            if h.gradient is not None and apart:
                h.gradient = h.gradient + group["weight_decay"] * h.theta * (-1 if group.get("maximize") else 1)
            elif h.gradient is not None:
                h.theta = h.theta * (1 - float(group["lr"]) * group["weight_decay"])
        for group in groups:
            group["weight_decay"] = 0.0

    said = ("coupled", "into the gradient") if any(decoupled) else ("decoupled", "apart from it")
    reverse = "decoupled" if any(decoupled) else "coupled into the gradient"
    yield Try(f"weight decay {said[0]}", f"documented {reverse}, taken {said[1]}", case.redo(other))
    none = case.with_settings(lambda g: g.update(weight_decay=0.0))
    yield Try("no weight decay", "the group's weight decay was left out", none)
    if any(decoupled):
        rates = [_lr(case, h) * case.groups[h.group]["weight_decay"] for h in case.held]
        after = [t if h.gradient is None else t * (1 - r) for t, h, r in zip(none.thetas, case.held, rates, strict=True)]
        yield Try("weight decay after the step", "of what the step led to", Redone(after, none.states))

        def at_once(groups: list[dict[str, Any]], held: list[Held]) -> None:
            for h in held:
                h.theta = h.theta * (1 - (0.0 if h.gradient is None else groups[h.group]["weight_decay"]))
            for group in groups:
                group["weight_decay"] = 0.0

        yield Try("weight decay without the lr", "1 - weight_decay in place of 1 - lr weight_decay", case.redo(at_once))
    for own in dict.fromkeys(group["weight_decay"] for group in case.groups if len(case.groups) > 1):
        yield Try("weight decay of another group", f"{own:.3g} in every group",
                  case.with_settings(lambda g, own=own: g.update(weight_decay=own)))  # fmt: skip


def correction(case: Case) -> Iterator[Try]:
    """No bias correction, or by another count."""
    counts = {h.count for h in case.held if h.count is not None and h.gradient is not None}
    if not counts and not any("step" in s for s in case.at.states):
        return

    def at(n: float) -> Redone:
        def change(groups: list[dict[str, Any]], held: list[Held]) -> None:
            for h, s in zip(held, case.at.states, strict=True):
                if "step" in s:
                    start = h.state or {k: torch.zeros_like(v) if isinstance(v, Tensor) else v for k, v in s.items()}
                    h.state = start | {"step": torch.tensor(float(n), dtype=torch.float64)}

        return case.redo(change)

    yield Try("no bias correction", "the averages are used as they are", at(FOREVER))
    known = counts or {0}
    near = {m for n in known for m in (n - 1, n + 1, 0, 2 * n)} | set(case.counts)
    for n in sorted((m for m in near - known if m >= 0), key=lambda m: min(abs(m - k) for k in known)):
        yield Try("bias correction by another count", f"as at step {n + 1} instead of {min(known) + 1}", at(n))


def denominators(case: Case) -> Iterator[Try]:
    """eps in another place, or one average's bias corrected alone, from the averages after the documented step.

    With c = 1 - beta^n, and m and v as they are kept, the update is m/c_1 / (sqrt(v/c_2) + eps), once decoupled decay is off.
    """
    found: dict[str, list[Tensor]] = {}
    texts = {
        "eps inside the root": "sqrt(v + eps) instead of sqrt(v) + eps",
        "eps before the bias correction": "(sqrt(v) + eps)/sqrt(c) instead of sqrt(v/c) + eps, c = 1 - beta_2^n",
        "bias correction of the first average alone": "v is used as it is",
        "bias correction of the second average alone": "m is used as it is",
    }
    for k, (h, s) in enumerate(zip(case.held, case.at.states, strict=True)):
        group = case.groups[h.group]
        if "eps" not in group or h.gradient is None or group.get("amsgrad") or isinstance(group["eps"], tuple):
            continue
        n, lr, eps = float(s.get("step", 0)), _lr(case, h), group["eps"]
        if "exp_avg_sq" in s and "betas" in group and "exp_avg" in s:
            v, (c1, c2) = s["exp_avg_sq"], (1 - float(b) ** n for b in group["betas"])
        elif "square_avg" in s and not group.get("momentum") and not group.get("centered"):
            v, c1, c2 = s["square_avg"], 1.0, 1.0
        else:
            continue
        start = h.theta.double() * (1 - lr * group["weight_decay"] if _decoupled(case, group) else 1)
        root = (v / c2).sqrt() + eps
        factors = (
            root / (v / c2 + eps).sqrt(),
            root / ((v / c2).sqrt() + eps / c2**0.5),
            root / (v.sqrt() + eps),
            torch.full_like(v, c1),
        )
        for name, factor in zip(texts if c2 < 1 else list(texts)[:1], factors, strict=False):
            thetas = found.setdefault(name, [t.clone() for t in case.at.thetas])
            thetas[k] = start + (case.at.thetas[k] - start) * factor
    for name, thetas in found.items():
        yield Try(name, texts[name], Redone(thetas, case.at.states))


def betas_swapped(case: Case) -> Iterator[Try]:
    """(beta_2, beta_1) for (beta_1, beta_2)."""
    if any(isinstance(group.get("betas"), tuple) and len(group["betas"]) == 2 for group in case.groups):
        yield Try("betas swapped", "beta_2 in the place of beta_1 and the reverse",
                  case.with_settings(lambda g: g.update(betas=g["betas"][::-1]) if "betas" in g else None))  # fmt: skip


def betas_per_cent(case: Case) -> Iterator[Try]:
    """Betas over 100."""
    if any(isinstance(group.get("betas"), tuple) for group in case.groups):

        def hundredth(group: dict[str, Any]) -> None:
            if "betas" in group:
                group["betas"] = tuple(beta / 100 for beta in group["betas"])

        yield Try("betas in per cent", "each is a hundredth of what the group says", case.with_settings(hundredth))


def lower(case: Case) -> Iterator[Try]:
    """The gradient rounded to half precision on its way."""
    for dtype in (torch.bfloat16, torch.float16):

        def rounded(groups: list[dict[str, Any]], held: list[Held], dtype: torch.dtype = dtype) -> None:
            for h in held:
                h.gradient = None if h.gradient is None else h.gradient.to(dtype).to(h.gradient.dtype)

        name = str(dtype).removeprefix("torch.")
        yield Try("gradient of lower precision", f"rounded to {name} within the step", case.redo(rounded))


def moved_betas(case: Case) -> Iterator[Try]:
    """Betas or momentum of the optimizer's defaults: a schedule moved them, the step did not follow."""
    defaults = case.reference.record.defaults
    known = [k for k in MOVES if k in defaults]
    if any(group[k] != defaults[k] for group in case.groups for k in known if k in group):
        yield Try("momentum cycled by a schedule", "stepped with the optimizer's initial betas or momentum",
                  case.with_settings(lambda g: g.update({k: defaults[k] for k in known if k in g})))  # fmt: skip


def other_lr(case: Case) -> Iterator[Try]:
    """The lr of another time or group, or a factor on the whole step."""
    held = isinstance(case.reference.record.groups[0].get("lr"), Tensor)
    own = [float(g["lr"]) for g in case.groups if "lr" in g]
    if not own:
        return
    for lr in dict.fromkeys(reversed(case.lrs)):
        if lr not in own:
            name = "stale lr tensor" if held else "lr read before the scheduler"
            yield Try(
                name,
                f"stepped with lr {lr:.3g}, which the group had before",
                case.with_settings(lambda g, lr=lr: g.update(lr=lr)),
            )
    for lr in dict.fromkeys(own):
        if len(set(own)) > 1:
            yield Try("lr of another group", f"stepped with lr {lr:.3g}", case.with_settings(lambda g, lr=lr: g.update(lr=lr)))
    later = [float(g["lr"]) for g in case.reference.record.groups_after if "lr" in g]
    for lr in dict.fromkeys(later):
        if lr not in own:
            yield Try(
                "lr read after the scheduler",
                f"stepped with lr {lr:.3g} of the next step",
                case.with_settings(lambda g, lr=lr: g.update(lr=lr)),
            )


def momentum(case: Case) -> Iterator[Try]:
    """Nesterov or heavy ball; dampening on the first step."""
    groups = case.groups
    if any("nesterov" in group and group.get("momentum") for group in groups):
        heavy = any(group["nesterov"] for group in groups)
        name = "heavy ball for Nesterov" if heavy else "Nesterov for heavy ball"
        yield Try(name, "the other of torch's two momenta", case.with_settings(lambda g: g.update(nesterov=not g["nesterov"])))
    if any(group.get("dampening") for group in groups) and any(h.state.get("momentum_buffer") is None for h in case.held):

        def damped(groups: list[dict[str, Any]], held: list[Held]) -> None:
            for h in held:
                if h.state.get("momentum_buffer") is None:
                    h.state = {"momentum_buffer": torch.zeros_like(h.theta)}

        yield Try("dampening on the first step", "torch's first gradient enters undamped", case.redo(damped))


def memory(case: Case) -> Iterator[Try]:
    """The step of empty memory."""
    if any(buffers(h.state) for h in case.held):

        def empty(groups: list[dict[str, Any]], held: list[Held]) -> None:
            for h in held:
                h.state = {}

        yield Try("memory not used", "the step of an empty state", case.redo(empty))
    if any("max_exp_avg_sq" in h.state for h in case.held):

        def lost(groups: list[dict[str, Any]], held: list[Held]) -> None:
            for h in held:
                if "max_exp_avg_sq" in h.state:
                    h.state = h.state | {"max_exp_avg_sq": torch.zeros_like(h.state["max_exp_avg_sq"])}

        yield Try("amsgrad's maximum not kept", "the maximum of this step alone", case.redo(lost))


def scaled(case: Case) -> Iterator[Try]:
    """A factor on the gradient, found where the step is odd in it; or a factor on the whole step, such as averaged weights."""
    c = case.factor
    if c is None or abs(c) > 1e6:
        return

    def scale(groups: list[dict[str, Any]], held: list[Held]) -> None:
        for h in held:
            if h.gradient is not None:
                h.gradient = c * h.gradient

    yield Try("gradient scaled inside the step", f"by {c:.3g}", case.redo(scale), fitted=True)
    thetas = [h.theta.double() + c * (t - h.theta.double()) for h, t in zip(case.held, case.at.thetas, strict=True)]
    text = f"{c:.3g} times the documented step (averaged weights in place of the trained, or another lr)"
    yield Try("a factor on the step", text, Redone(thetas, case.at.states), fitted=True)


CAUSES = (without_gradient, tied, nothing_moved, twice, direction, decay, momentum, correction, betas_swapped, denominators,
          betas_per_cent, moved_betas, other_lr, memory, lower, scaled)  # fmt: skip
"""In the order in which they are named where several explain a step equally well."""


def _lr(case: Case, h: Held) -> float:
    return float(case.groups[h.group].get("lr", 0.0))


def _wide(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in state.items()}


def _decoupled(case: Case, group: dict[str, Any]) -> bool:
    if "decoupled_weight_decay" in group:
        return bool(group["decoupled_weight_decay"])
    return case.reference.documented in (torch.optim.AdamW, torch.optim.Muon, torch.optim.Adafactor)
