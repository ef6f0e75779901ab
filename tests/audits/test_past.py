"""The history is the history's: schedules of lr and betas, gradients that the loop changes, states that contradict it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

import memoryless as ml
from memoryless.errors import BadInput, BadType
from tests.problems import relative_error

D = 6
H = torch.diag(torch.linspace(0.3, 2.0, D, dtype=torch.float64)) + 0.05
START = torch.linspace(-1.5, 2.0, D, dtype=torch.float64)
Through = Callable[[Tensor], Tensor]


def value(theta: Tensor) -> Tensor:
    return theta @ H @ theta / 2 + 0.3 * torch.cos(theta).sum()


def slope(theta: Tensor) -> Tensor:
    return H @ theta - 0.3 * torch.sin(theta)


def run(make: Callable[[Any], Any], n: int, through: Through = lambda g: g) -> tuple[Any, Any, ml.Loss, list[Any]]:
    """n steps of the loop as a user writes it, and the hyperparameters of steps 0..n."""
    theta = nn.Parameter(START.clone())
    optimizer, scheduler = make([theta])
    past = []

    def note() -> None:
        past.append({key: copy.copy(x) for key, x in optimizer.param_groups[0].items() if key in ("lr", "betas", "momentum")})

    for _ in range(n):
        note()
        theta.grad = through(slope(theta.detach()))
        optimizer.step()
        scheduler.step()
    note()
    return optimizer, scheduler, ml.Loss.of(value, theta), past


def history(make: Callable[[Any], Any], thetas: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """Displacement of each step of a fresh optimizer with its own scheduler, over a prescribed history."""
    p = nn.Parameter(thetas[0].clone())
    optimizer, scheduler = make([p])
    moved = []
    for theta, g in zip(thetas, gradients, strict=True):
        with torch.no_grad():
            p.copy_(theta)
        p.grad = g.clone()
        optimizer.step()
        scheduler.step()
        moved.append(theta - p.detach())
    return moved


def brute_force(make: Callable[[Any], Any], found: ml.Loss, n: int, lr: float, through: Through) -> tuple[Tensor, ...]:
    """F[n], M[n] by Eq. 9's definition (a central difference of the lagging history) and the resummed M."""
    theta = found.theta
    g, curvature = slope(theta), lambda v: H @ v - 0.3 * torch.cos(theta) * v
    frozen = history(make, [theta] * (n + 1), [through(g)] * (n + 1))
    back = [sum(frozen[j:n], torch.zeros(D)) for j in range(n + 1)]  # sum_s lr_s F[s], s = j..n-1
    lagging = lambda e: history(  # noqa: E731
        make, [theta + e * b for b in back], [through(g + e * curvature(b)) for b in back]
    )[-1]
    F = frozen[-1] / lr
    return F, (lagging(1e-5) - lagging(-1e-5)) / 2e-5 / lr, lagging(1.0) / lr - F


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "one_cycle": lambda o: OneCycleLR(o, max_lr=1e-2, total_steps=60),
    "warm_up": lambda o: LambdaLR(o, lambda s: (s + 1) / 15),
    "cosine": lambda o: CosineAnnealingLR(o, 20),
    "warm_restarts": lambda o: CosineAnnealingWarmRestarts(o, 3, 2),
    "steps": lambda o: StepLR(o, 4, 0.3),
    "exponential": lambda o: ExponentialLR(o, 0.9),
}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adamw": lambda p: AdamW(p, lr=1e-2, betas=(0.9, 0.99), eps=1e-3),
    "sgd": lambda p: SGD(p, lr=1e-2, momentum=0.8),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_followed(schedule: str, optimizer: str):
    make: Any = lambda p: (o := OPTIMIZERS[optimizer](p), SCHEDULES[schedule](o))  # noqa: E731
    n = 12
    live, scheduler, loss, past = run(make, n)
    lr = live.param_groups[0]["lr"]
    F, M, resummed = brute_force(make, loss, n, lr, lambda g: g)
    twin = nn.Parameter(loss.theta)
    then = type(live)([twin], lr=lr)
    then.load_state_dict(copy.deepcopy(live.state_dict()))
    twin.grad = slope(twin.detach())
    then.step()
    delta = (loss.theta - twin.detach()) / lr - F
    for given in (scheduler, past, past.__getitem__):
        found = ml.audit(live, loss, step=n, scheduler=given)
        assert found.measured is not None
        assert found.first is not None
        assert found.resummed is not None
        assert relative_error(found.F, F) < 1e-10
        assert relative_error(found.measured, delta) < 1e-6
        assert relative_error(found.first, M) < 1e-5
        assert relative_error(found.resummed, resummed) < 1e-8


def clipped(g: Tensor) -> Tensor:
    return g * (0.05 / g.norm()).clamp(max=1.0)


@pytest.mark.parametrize("through", [clipped, lambda g: 4 * g, torch.sign], ids=["clipped", "summed", "signs"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_the_loop_does_to_gradients(optimizer: str, through: Through):
    make: Any = lambda p: (o := OPTIMIZERS[optimizer](p), LambdaLR(o, lambda s: 1.0))  # noqa: E731
    n = 12
    live, scheduler, loss, _ = run(make, n, through)
    F, M, resummed = brute_force(make, loss, n, 1e-2, through)
    for given in (None, scheduler):
        found = ml.audit(live, loss, step=n, gradient=through, scheduler=given)
        assert found.first is not None
        assert found.resummed is not None
        assert relative_error(found.F, F) < 1e-10
        assert (found.first - M).norm() < 1e-5 * M.norm() + 1e-9
        assert (found.resummed - resummed).norm() < 1e-8 * resummed.norm() + 1e-12


def test_a_clipped_run_is_not_taken_for_another():
    make: Any = lambda p: (o := OPTIMIZERS["adamw"](p), LambdaLR(o, lambda s: 1.0))  # noqa: E731
    live, _, loss, _ = run(make, 12, clipped)
    with pytest.raises(BadInput, match=r"second moments come from gradients of norm 0\.05, .* give gradient=.*lambda g: g$"):
        ml.audit(live, loss)
    live.register_step_pre_hook(lambda *_: None)
    with pytest.raises(BadInput, match=r"lambda g: g \(what a pre-step hook of the optimizer does is counted already\)$"):
        ml.audit(live, loss)
    ml.audit(live, loss, gradient=lambda g: g)


@pytest.mark.parametrize("share", [2.0, 8.0, 0.6, 1.0])
def test_buffers_of_gradients_of_another_size_are_noted(share: float):
    """Sums of micro-batches, or norms clipped to less than the present one."""
    make: Any = lambda p: (o := OPTIMIZERS["adamw"](p), LambdaLR(o, lambda s: 1.0))  # noqa: E731
    live, _, loss, _ = run(make, 6, lambda g: g * share)
    notes = ml.audit(live, loss).validity.notes
    assert any("those in the optimizer's buffers are of norm" in note for note in notes) == (share != 1)


@pytest.mark.parametrize(("make", "told"), [(lambda groups: SGD(groups, lr=1e-2, momentum=0.9), True), (Adam, False)])
def test_groups_without_a_count_of_their_own_are_told(make: Any, told: bool):
    model = nn.Linear(3, 1).double()
    loss = ml.Loss(model, lambda model, x: model(x).square().mean(), [torch.eye(3, dtype=torch.float64)])
    optimizer = make([{"params": [p]} for p in model.parameters()])
    for _ in range(3):
        loss.layout.set_gradients(loss.gradient(loss.theta))
        optimizer.step()
    notes = ml.audit(optimizer, loss, step=3, measures=["gradient_1_norm"]).validity.notes
    assert any("SGD counts no steps: all 2 param groups" in note for note in notes) == told


@pytest.mark.parametrize("maximize", [False, True])
def test_decay_in_the_gradients_is_no_clipping(maximize: bool):
    """L = b theta + theta^2/20 with Adam's own decay 2 is balanced at -b/2.1: nearby the buffers are of a small sum."""
    b = torch.linspace(1.0, 2.0, D, dtype=torch.float64)
    theta = nn.Parameter(-1.01 * b / 2.1)
    sign = -1 if maximize else 1
    loss = ml.Loss.of(lambda theta: sign * (theta @ b + theta @ theta / 20), theta)
    optimizer = Adam([theta], lr=1e-5, weight_decay=2.0, maximize=maximize)
    for _ in range(3):
        theta.grad = loss.gradient(loss.theta)
        optimizer.step()
    assert ml.audit(optimizer, loss, measures=["gradient_1_norm"]).validity.notes == ()


class KeepsOther(Adam):
    """A class of a user's own, which takes torch's arguments and keeps its averages under other names."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p]
                kept["step"] = kept.get("step", 0) + 1
                m = kept.setdefault("m", torch.zeros_like(p)).lerp_(p.grad, 1 - group["betas"][0])
                p.sub_(m, alpha=group["lr"])


def test_a_class_that_inherits_from_adam_keeps_what_it_likes():
    make: Any = lambda p: (o := KeepsOther(p, lr=1e-2), LambdaLR(o, lambda s: 1.0))  # noqa: E731
    live, _, loss, _ = run(make, 6)
    found = ml.audit(live, loss)
    assert relative_error(found.F, (1 - 0.9**7) * slope(loss.theta)) < 1e-12
    assert any("past gradients are taken as they are" in note for note in found.validity.notes)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_cycled_betas_are_refused_without_their_schedule(optimizer: str):
    for cycle in (SCHEDULES["one_cycle"], lambda o: CyclicLR(o, 1e-3, 1e-2, step_size_up=5)):
        live, _, loss, _ = run(lambda p, cycle=cycle: (o := OPTIMIZERS[optimizer](p), cycle(o)), 5)
        with pytest.raises(BadInput, match=r"a scheduler moves .* give scheduler="):
            ml.audit(live, loss, step=5)


def test_a_moved_lr_is_noted():
    make: Any = lambda p: (o := OPTIMIZERS["adamw"](p), SCHEDULES["cosine"](o))  # noqa: E731
    live, scheduler, loss, _ = run(make, 5)
    assert any("a scheduler moves lr" in note for note in ml.audit(live, loss).validity.notes)
    assert not any("a scheduler" in note for note in ml.audit(live, loss, scheduler=scheduler).validity.notes)


def test_buffers_that_betas_cannot_give():
    """m of betas (0.5, .) read with beta_1 = 0.99: after 3 steps m/(1 - 0.99^3) is about 30 times too large."""
    make: Any = lambda p: (o := Adam(p, lr=1e-3, betas=(0.5, 0.99)), LambdaLR(o, lambda s: 1.0))  # noqa: E731
    live, _, loss, _ = run(make, 3)
    ml.audit(live, loss)
    live.param_groups[0]["betas"] = (0.99, 0.99)
    with pytest.raises(BadInput, match=r"buffers cannot come from 3 steps with betas=\(0\.99, 0\.99\)"):
        ml.audit(live, loss)


def test_a_part_held_by_another_optimizer_is_noted():
    model = nn.Linear(3, 2).double()
    loss = ml.Loss(model, lambda m, x: m(x).square().mean(), [torch.ones(4, 3)])
    optimizer = SGD([model.bias], lr=0.1, momentum=0.9)
    loss.layout.set_gradients(loss.gradient(loss.theta))
    optimizer.step()
    assert any(
        "does not hold 1 of the loss's 2 parameters (weight" in x for x in ml.audit(optimizer, loss, step=1).validity.notes
    )


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another_step": ({"step": 7}, BadInput, r"step=7, but AdamW has counted 5 steps; leave step out"),
    "too_few": ({"scheduler": [{"lr": 1e-2}] * 5}, BadInput, r"steps 0\.\.5, the next one's included: 6, got 5"),
    "another_lr": (
        {"scheduler": lambda s: {"lr": 0.5}},
        BadInput,
        r"the schedule says lr=0\.5 at step 5, but the optimizer has",
    ),
    "unknown_key": (
        {"scheduler": lambda s: {"momentum": 0.5}},
        BadInput,
        "moves 'momentum', which group 0 of AdamW does not have",
    ),
    "no_dict": ({"scheduler": lambda s: [0.1]}, BadInput, r"a dict, or one for each of 1 param groups, got \[0\.1\]"),
    "no_schedule": ({"scheduler": 3}, BadType, "scheduler must be a torch scheduler"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_histories(name: str):
    arguments, error, message = BAD[name]
    make: Any = lambda p: (o := OPTIMIZERS["adamw"](p), SCHEDULES["warm_up"](o))  # noqa: E731
    live, _, loss, _ = run(make, 5)
    with pytest.raises(error, match=message):
        ml.audit(live, loss, **arguments)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: SequentialLR(o, [LambdaLR(o, lambda s: 0.5), ExponentialLR(o, 0.9)], [3]),
        lambda o: ChainedScheduler([ConstantLR(o, 0.5, 3), ExponentialLR(o, 0.9)]),
    ],
)
def test_a_scheduler_that_cannot_be_replayed_is_refused(schedule: Callable[[Optimizer], Any]):
    live, scheduler, loss, past = run(lambda p: (o := OPTIMIZERS["adamw"](p), schedule(o)), 5)
    with pytest.raises(BadInput, match=r"cannot be taken from its start again.*; give scheduler= a function n"):
        ml.audit(live, loss, scheduler=scheduler)
    ml.audit(live, loss, scheduler=past)


def test_a_fresh_optimizer_has_no_steps_behind_it():
    theta = nn.Parameter(START.clone())
    loss = ml.Loss.of(value, theta)
    with pytest.raises(BadInput, match="step=5, but Adam has counted 0 steps"):
        ml.audit(Adam([theta], lr=0.1), loss, step=5)
    assert not ml.audit(SGD([theta], lr=0.1), loss, step=5).measured.any()  # pyright: ignore[reportOptionalMemberAccess]


class AcceleratedOptimizer(Optimizer):
    """As accelerate wraps one."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.optimizer.param_groups


AcceleratedOptimizer.__module__ = "accelerate.optimizer"


class Trainer:
    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer


def test_a_framework_s_optimizer_is_unwrapped():
    make: Any = lambda p: (o := OPTIMIZERS["adamw"](p), LambdaLR(o, lambda s: 1.0))  # noqa: E731
    live, _, loss, _ = run(make, 5)
    plain, found = ml.audit(live, loss), ml.audit(AcceleratedOptimizer(live), loss)
    assert found.method == plain.method
    assert found.measured is not None
    assert plain.measured is not None
    assert torch.equal(found.measured, plain.measured)
    with pytest.raises(BadType, match=r"got Trainer; give its \.optimizer"):
        ml.audit(Trainer(live), loss)  # pyright: ignore[reportArgumentType]


def test_a_method_has_no_past():
    loss = ml.Loss.of(value, START.clone())
    with pytest.raises(BadInput, match="the past of a live optimizer"):
        ml.audit(ml.Adam(), loss, gradient=lambda g: g)
    theta = nn.Parameter(START.clone())
    live = SGD([theta], lr=0.1, momentum=0.9)
    theta.grad = torch.ones(D)
    live.step()
    with pytest.raises(BadInput, match="give step=n"):
        ml.audit(live, ml.Loss.of(value, theta), gradient=lambda g: g)
