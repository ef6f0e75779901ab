"""The past of a live optimizer: hyperparameters that a schedule moved, and a state that contradicts what is assumed of it.

F[n] asks for the whole history of lr and betas; an optimizer holds the present ones. A schedule says those of every past step,

    F[n](theta)   n + 1 frozen steps of the optimizer itself, each with the hyperparameters of its time
    D[k]          the displacement sum_s lr_s F[s](theta), each step with its own lr

which is what a black box with a scheduler is (`black_box.torch_method`).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, NAdam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from memoryless.errors import BadInput, BadType
from memoryless.flat import Layout, norm
from memoryless.methods.black_box.torch_method import TorchMethod

Hyper = Mapping[str, Any]
Through = Callable[[Tensor], Tensor]
"""What the loop does to a gradient, as one vector of shape (d,), before the optimizer sees it."""
Schedule = LRScheduler | Callable[[int], Hyper | Sequence[Hyper]] | Sequence[Hyper | Sequence[Hyper]]
"""Hyperparameters of each step 0..n: the run's own torch scheduler, a function of the step, or a list; each a dict for all
groups, or one for each."""

GROWN = 3.0
"""The present gradient over the root mean square of those in the buffers from which they are not believed to be of one kind."""

APART = 1.5
"""From this ratio of their sizes on, either way, a reader is told."""

ADAMS = {"step", "exp_avg", "exp_avg_sq"}
"""What torch's Adam keeps; a class of the user's own may inherit from it and keep something else."""


def changed(gradient: Tensor, through: Through | None) -> Tensor:
    """A gradient as the optimizer sees it, shape (d,).

    Args:
        gradient: of the loss, shape (d,).
        through: what the loop does to it; None is nothing.

    Raises:
        BadType: it makes no vector of this shape.
    """
    if through is None:
        return gradient
    seen = through(gradient)
    if not isinstance(seen, Tensor) or seen.shape != gradient.shape:
        got = f"shape {tuple(seen.shape)}" if isinstance(seen, Tensor) else type(seen).__name__
        raise BadType(f"gradient= must be a function of the gradient that returns its shape {tuple(gradient.shape)}, got {got}")
    return seen.detach()


class _Replay:
    """A scheduler for a black box: before step s each group has the hyperparameters of step s."""

    def __init__(self, optimizer: Optimizer, steps: Sequence[Sequence[Hyper]]):
        self.optimizer, self.steps, self.s = optimizer, steps, -1
        self.step()

    def step(self) -> None:
        self.s = min(self.s + 1, len(self.steps) - 1)
        for group, hyper in zip(self.optimizer.param_groups, self.steps[self.s], strict=True):
            group.update(hyper)


def scheduled(optimizer: Optimizer, layout: Layout, schedule: Schedule, step: int, lr: float) -> TorchMethod:
    """A live optimizer as a method whose hyperparameters were, at each past step, what the schedule says.

    Args:
        optimizer: live; left alone.
        layout: of theta.
        schedule: of its hyperparameters.
        step: n.
        lr: that effects are in units of.

    Raises:
        BadType: the schedule is none of its kinds.
        BadInput: it does not reach step n, or has there other hyperparameters than the optimizer.
    """
    steps = steps_of(schedule, optimizer, step)
    for i, (group, hyper) in enumerate(zip(optimizer.param_groups, steps[-1], strict=True)):
        for key, value in hyper.items():
            if key not in group:
                raise BadInput(f"the schedule moves '{key}', which group {i} of {type(optimizer).__name__} does not have")
            if not _close(group[key], value):
                raise BadInput(
                    f"the schedule says {key}={value} at step {step}, but the optimizer has {key}={group[key]}: they belong to "
                    "different steps or runs; give scheduler= a function n -> {'lr': ..., 'betas': ...}, or a list of those"
                )
    plain = TorchMethod.of(optimizer, layout)

    def factory(parameters: list[nn.Parameter]) -> tuple[Optimizer, _Replay]:
        made = plain.factory(parameters)
        for group in made.param_groups:
            group["initial_lr"] = lr  # what `TorchMethod.lr` is
        return made, _Replay(made, steps)

    method = TorchMethod(factory, plain.shapes)
    method.names = plain.names
    return method


def require_consistent(optimizer: Optimizer, step: int | None, counted: int | None, schedule: Schedule | None) -> None:
    """Raise where a live optimizer's own state contradicts the history that is assumed of it.

    Args:
        optimizer: live.
        step: n as given, or None.
        counted: n as the optimizer counts it, or None.
        schedule: of its hyperparameters, if that is known.

    Raises:
        BadInput: says which.
    """
    name = type(optimizer).__name__
    # SGD without momentum keeps nothing, at any step.
    keeps = counted or any("betas" in group for group in optimizer.param_groups)
    if step is not None and counted is not None and step != counted and keeps:
        raise BadInput(f"step={step}, but {name} has counted {counted} steps; leave step out")
    for group in optimizer.param_groups:
        moved = "betas" if "betas" in group else "momentum"
        if schedule is None and {"max_momentum", "base_momentum"} & set(group):
            raise BadInput(
                f"a scheduler moves {name}'s {moved} (OneCycleLR and CyclicLR do by default), and F[n] depends on those of "
                "every past step; give scheduler=, the scheduler itself or a function n -> {'lr': ..., 'betas': ...}"
            )
        if schedule is None and isinstance(optimizer, Adam) and not isinstance(optimizer, NAdam):
            _require_reachable(optimizer, group)


def keeps_adams(optimizer: Optimizer) -> bool:
    """Whether it is an Adam of torch's and has kept what that keeps.

    Args:
        optimizer: live.
    """
    return isinstance(optimizer, Adam) and any(state.keys() >= ADAMS for state in optimizer.state.values())


def notes_on_gradients(optimizer: Optimizer, gradient: Tensor, layout: Layout) -> list[str]:
    """What Adam's buffers say against past gradients that were taken as the present one.

    v/(1 - beta_2^n) is a mean of past squares, and its sum one of past squared norms: clipped to norm c it is at most c^2.
    m/(1 - beta_1^n) is a mean of past gradients, and k times the present one where the loop sums k micro-batches.

    Args:
        optimizer: live.
        gradient: the present one, shape (d,).
        layout: of theta.

    Raises:
        BadInput: the squares come from gradients that are all far smaller than the present one.
    """
    squares = mean = now = 0.0
    where = {id(p): part for p, part in zip(layout.tensors, layout.slices.values(), strict=True)}
    for group in optimizer.param_groups:
        # Adam adds decay of this kind to the gradient, before its averages.
        decay = 0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])
        sign = -1.0 if group.get("maximize") else 1.0
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if id(p) not in where or not state.keys() >= ADAMS or not (n := float(state["step"])):
                continue
            first, second = (-math.expm1(n * math.log(float(b))) if b else 1.0 for b in group["betas"])
            squares += float(state["exp_avg_sq"].double().sum()) / second
            mean += float(norm(state["exp_avg"].double())) ** 2 / first**2
            now += float(norm(sign * gradient[where[id(p)]].double() + decay * p.detach().double().reshape(-1))) ** 2
    if squares > 0 and now > GROWN**2 * squares:
        raise BadInput(
            f"the optimizer's second moments come from gradients of norm {squares**0.5:.3g}, and the present one has norm "
            f"{now**0.5:.3g}: if the loop clips or scales them give gradient=, what it does to the gradient as one vector, "
            "such as lambda g: g * min(1.0, 1.0 / float(g.norm())); if it does not, lambda g: g"
            + (
                " (what a pre-step hook of the optimizer does is counted already)"
                if optimizer._optimizer_step_pre_hooks
                else ""
            )
        )
    size = mean**0.5 if mean > APART**2 * now else squares**0.5 if now > APART**2 * squares else None
    if size is None:
        return []
    return [
        f"past gradients are taken as they are, but those in the optimizer's buffers are of norm {size:.3g}, the present one "
        f"of norm {now**0.5:.3g}: if the loop sums, clips or scales them give gradient="
    ]


def notes_on(optimizer: Optimizer, layout: Layout, schedule: Schedule | None, counted: int | None) -> list[str]:
    """What a reader must know of the past that a live optimizer does not tell.

    Args:
        optimizer: live.
        layout: of theta.
        schedule: of its hyperparameters, if that is known.
        counted: the steps that it counted, if it does.
    """
    notes = []
    if counted is None and (groups := len(optimizer.param_groups)) > 1:
        notes.append(
            f"{type(optimizer).__name__} counts no steps: all {groups} param groups are taken to have the same number of "
            "steps behind them, even one added later"
        )
    moved = [g for g in optimizer.param_groups if "initial_lr" in g and not _close(g["initial_lr"], g["lr"])]
    if moved and schedule is None:
        first, now = float(moved[0]["initial_lr"]), float(moved[0]["lr"])
        notes.append(
            f"a scheduler moves lr ({first:g} of the schedule, now {now:g}): predictions take the present one for all of "
            "the past; give scheduler="
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if others := [name for name, p in zip(layout.slices, layout.tensors, strict=True) if id(p) not in held]:
        notes.append(
            f"the optimizer does not hold {len(others)} of the loss's {len(layout.tensors)} parameters ({others[0]}, ...): the "
            "past of those is taken to stand still in the predictions"
        )
    return notes


def _require_reachable(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """|m_hat|^2 <= sum_k (w1[k]^2 / w2[k]) v_hat, by Cauchy and Schwarz, for any gradients at all and weights that sum to 1."""
    for p in group["params"]:
        state = optimizer.state.get(p, {})
        n = int(state["step"]) if state.keys() >= ADAMS else 0
        if not n or not all(0 < float(beta) < 1 for beta in group["betas"]):
            continue
        b1, b2 = (float(beta) for beta in group["betas"])
        k = torch.arange(min(n, 100_000), dtype=torch.float64)
        w1, w2 = ((1 - b) * b**k / (1 - b**n) for b in (b1, b2))
        bound = float((w1 * (w1 / w2)).nan_to_num(0.0).sum())
        m, v = (state[key].double() / (1 - b**n) for key, b in (("exp_avg", b1), ("exp_avg_sq", b2)))
        # Rounding of the buffers' own type in n steps; what is below the smallest square that it holds has lost v.
        tolerance = 1 + 100 * n**0.5 * torch.finfo(state["exp_avg"].dtype).eps
        tiny = torch.finfo(state["exp_avg"].dtype).tiny / torch.finfo(state["exp_avg"].dtype).eps
        if (beyond := (m**2 > tolerance * bound * v + tiny)).any():
            raise BadInput(
                f"{type(optimizer).__name__}'s buffers cannot come from {n} steps with betas=({b1:g}, {b2:g}): at "
                f"{int(beyond.sum())} coordinates the mean of gradients is larger than that of their squares allows; were "
                "betas moved, or buffers loaded from another run? Give scheduler=, the hyperparameters of each past step"
            )


def steps_of(schedule: Schedule, optimizer: Optimizer, n: int) -> list[list[Hyper]]:
    """The hyperparameters of each group at each step 0..n.

    Args:
        schedule: of them.
        optimizer: whose groups they are.
        n: the last step.

    Raises:
        BadType: the schedule is none of its kinds.
        BadInput: it does not give these steps.
    """
    groups = len(optimizer.param_groups)
    if isinstance(schedule, LRScheduler):
        return _replayed(schedule, n)
    if callable(schedule):
        found: Sequence[Any] = [schedule(s) for s in range(n + 1)]
    elif isinstance(schedule, Sequence) and not isinstance(schedule, str):
        found = schedule
    else:
        raise BadType(
            f"scheduler must be a torch scheduler, a function n -> {{'lr': ...}} or a list of them, got "
            f"{type(schedule).__name__}"
        )
    if len(found) != n + 1:
        raise BadInput(
            f"scheduler must give the hyperparameters of steps 0..{n}, the next one's included: {n + 1}, got {len(found)}"
        )
    steps = [[hyper] * groups if isinstance(hyper, Mapping) else list(hyper) for hyper in found]
    if bad := next((hyper for hyper in steps if len(hyper) != groups or not all(isinstance(x, Mapping) for x in hyper)), None):
        raise BadInput(f"scheduler must give a dict, or one for each of {groups} param groups, got {bad!r}")
    return steps


def _replayed(scheduler: LRScheduler, n: int) -> list[list[Hyper]]:
    """What a torch scheduler sets, taken from its start again: a copy of it moves the groups of a stand-in.

    A copy that does not arrive where the original is (it holds other schedulers, or counts cycles) did not start anew.
    """
    name, advice = (
        type(scheduler).__name__,
        "give scheduler= a function n -> {'lr': ..., 'betas': ...}, or a list of those used",
    )
    if isinstance(scheduler, ReduceLROnPlateau):
        raise BadInput(f"{name} follows what it was told along the run; {advice}")
    if (taken := getattr(scheduler, "last_epoch", None)) != n:
        counted = "does not count its steps" if taken is None else f"is at step {taken}, the optimizer at step {n}"
        raise BadInput(f"{name} cannot be taken from its start again: it {counted}; {advice}")

    def step() -> None: ...

    step._wrapped_by_lr_sched = True  # pyright: ignore[reportFunctionMemberAccess]  # lest it warns that no step was taken
    own = scheduler.optimizer
    groups = [{key: value for key, value in group.items() if key != "params"} for group in own.param_groups]
    stand_in = SimpleNamespace(param_groups=copy.deepcopy(groups), defaults=own.defaults, step=step, _opt_called=True)
    twin = copy.deepcopy(scheduler, {id(own): stand_in})
    for group in stand_in.param_groups:
        group["lr"] = group["initial_lr"]
    twin.last_epoch, twin._step_count = -1, 0
    twin._initial_step()
    steps = []
    for s in range(n + 1):
        if s:
            twin.step()
        moved = [{key: group[key] for key in ("lr", "betas", "momentum") if key in group} for group in stand_in.param_groups]
        steps.append(copy.deepcopy(moved))
    if not _close(twin.state_dict(), scheduler.state_dict()):
        raise BadInput(f"{name} cannot be taken from its start again; {advice}")
    return steps


def _close(x: Any, y: Any) -> bool:
    if isinstance(x, (tuple, list)):
        return isinstance(y, (tuple, list)) and len(x) == len(y) and all(map(_close, x, y))
    if isinstance(x, dict):
        return isinstance(y, dict) and x.keys() == y.keys() and all(_close(x[key], y[key]) for key in x)
    return math.isclose(float(x), float(y), rel_tol=1e-9) if isinstance(x, (int, float, Tensor)) else type(x) is type(y)
