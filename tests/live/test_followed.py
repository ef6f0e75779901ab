"""A scheduler stepped along the run, and gradients that the loop changes: the plain run, against the literal history."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adamax, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

import memoryless as ml
from memoryless.errors import BadInput, BadType
from memoryless.live.run import Run
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from tests.problems import relative_error

STEPS, STOPS = 16, [3, 9, 14]
Make = Callable[[Any], Any]
Through = Callable[[Tensor], Tensor] | None


def problem() -> tuple[nn.Module, ml.Loss, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    data = [(torch.randn(6, 4).double(), torch.randn(6, 1).double()) for _ in range(4)]
    return model, ml.Loss(model, lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]), data), data


def clipped(g: Tensor) -> Tensor:
    return g * (0.02 / g.norm()).clamp(max=1.0)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adamw": lambda p: AdamW(p, lr=1e-2, betas=(0.8, 0.95)),
    "sgd": lambda p: SGD(p, lr=1e-2, momentum=0.8),
    "adamax": lambda p: Adamax(p, lr=1e-2),
}
SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "one_cycle": lambda o: OneCycleLR(o, max_lr=1e-2, total_steps=60),
    "warm_up_from_0": lambda o: LambdaLR(o, lambda s: s / 10),
    "sequential": lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=5), ExponentialLR(o, 0.9)], [5]),
}
ORDER = [(7 * n + n * n) % 4 for n in range(STEPS)]


class Literal:
    """The loop as a user writes it, and at any of its steps the same optimizer over a frozen history."""

    def __init__(self, name: str, schedule: str | None, through: Through, order: list[int] | None):
        self.make, self.schedule, self.through, self.order = OPTIMIZERS[name], schedule, through, order
        self.model, self.loss, _ = problem()
        self.optimizer, self.scheduler = self._pair(list(self.model.parameters()))
        self.seen: dict[int, tuple[Tensor, Tensor, Tensor, float]] = {}
        for n in range(STEPS + (order is None)):
            if n in STOPS:
                lr = self.optimizer.param_groups[0]["lr"]
                self.seen[n] = (self.loss.theta, self._next(n), self._frozen(n, lr), lr)
            if n < STEPS:
                self._take(self.model, self.optimizer, n)
                if self.scheduler:
                    self.scheduler.step()

    def _pair(self, parameters: list[nn.Parameter]) -> tuple[Optimizer, Any]:
        optimizer = self.make(parameters)
        return optimizer, SCHEDULES[self.schedule](optimizer) if self.schedule else None

    def _gradient(self, theta: Tensor, n: int) -> Tensor:
        g = self.loss.gradient(theta, None if self.order is None else self.order[n])
        return self.through(g) if self.through else g

    def _take(self, model: nn.Module, optimizer: Optimizer, n: int) -> None:
        theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        torch.nn.utils.vector_to_parameters(
            self._gradient(theta, n), gradients := [torch.empty_like(p) for p in model.parameters()]
        )
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = g
        optimizer.step()

    def _next(self, n: int) -> Tensor:
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        self._take(model, optimizer, n)
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def _frozen(self, n: int, lr: float) -> Tensor:
        """F[n](theta): theta put back before each step."""
        theta = self.loss.theta
        p = nn.Parameter(theta.clone())
        optimizer, scheduler = self._pair([p])
        for s in range(n + 1):
            p.data = theta.clone()
            p.grad = self._gradient(theta, s)
            optimizer.step()
            if scheduler:
                scheduler.step()
        return (theta - p.detach()) / lr


def audited(name: str, schedule: str | None, through: Through, order: list[int] | None, **options: Any) -> tuple[Run, ml.Loss]:
    model, loss, _ = problem()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = SCHEDULES[schedule](optimizer) if schedule else None
    run = ml.audit_run(
        optimizer,
        loss,
        STEPS if order is None else order,
        stops=STOPS,
        scheduler=scheduler,
        gradient=through,
        measures=["gradient_1_norm"],
        **{"compare": (), "betas": None} | options,
    )
    return run, loss


CASES = [
    ("adamw", "one_cycle", None, None),
    ("adamw", "warm_up_from_0", clipped, ORDER),
    ("adamw", "one_cycle", None, ORDER),
    ("adamw", None, clipped, None),
    ("sgd", "sequential", clipped, None),
    ("sgd", "one_cycle", clipped, ORDER),
    ("sgd", None, torch.sign, ORDER),
    ("adamax", "warm_up_from_0", None, None),
    ("adamax", "sequential", clipped, ORDER),
]


@pytest.mark.parametrize(("name", "schedule", "through", "order"), CASES)
def test_it_is_the_users_run_and_measured_against_the_literal_history(
    name: str, schedule: str | None, through: Any, order: Any
):
    literal = Literal(name, schedule, through, order)
    run, loss = audited(name, schedule, through, order)
    assert torch.equal(loss.theta, literal.loss.theta)
    assert [stop.audit.step for stop in run.stops] == STOPS
    for stop in run.stops:
        assert stop.audit.measured is not None
        theta, after, F, lr = literal.seen[stop.audit.step or 0]
        assert stop.audit.lr == lr
        assert relative_error(stop.audit.F, F) < 1e-9
        delta = (theta - after) / lr - F
        assert relative_error(stop.audit.measured, delta) < 1e-5  # (theta - theta_next) / lr loses digits
        there, base, S = (float(loss.gradient(x).abs().sum()) for x in (after, theta - lr * F, theta))
        assert stop.audit.effects[0].measured == pytest.approx((there - base) / S, rel=1e-4, abs=1e-9)


def test_predictions_lie_back_by_each_steps_own_lr():
    run, _ = audited("adamw", "one_cycle", None, None)
    model, loss, _ = problem()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = SCHEDULES["one_cycle"](optimizer)
    for _ in range(STOPS[0]):
        loss.backward()
        optimizer.step()
        scheduler.step()
    found = ml.audit(optimizer, loss, scheduler=scheduler, measures=["gradient_1_norm"])
    for kind in ("first", "resummed"):
        assert relative_error(getattr(run.stops[0].audit, kind), getattr(found, kind)) < 1e-9


@pytest.mark.parametrize("order", [None, ORDER])
def test_others_and_maps_go_at_the_schedules_lr(order: list[int] | None):
    lion = ml.Lion(2e-2)
    options: Any = {"compare": [lion], "betas": ((0.5, 0.8), (0.9, 0.95))}
    run, loss = audited("adamw", "warm_up_from_0", clipped, order, **options)
    literal = Literal("adamw", "warm_up_from_0", clipped, order)
    for stop in run.stops:
        n = stop.audit.step or 0
        theta, _, _, lr = literal.seen[n]
        own = {i.method: i for i in stop.others}
        (map_,) = stop.maps
        cell = map_.changes["gradient_1_norm"][1, 1]  # the optimizer's own pair
        (value,) = evaluate(["gradient_1_norm"], Point(loss, theta))
        assert cell == pytest.approx(value.slope(stop.audit.measured, lr), rel=1e-6)  # type: ignore[arg-type]
        other = own[str(lion)]
        assert (other.first, other.resummed, other.outside) == (None, None, None)
    shares = [stop.audit.lr for stop in run.stops]
    assert shares == pytest.approx([0.003, 0.009, 0.014])


def test_a_schedule_goes_on_from_a_checkpoint():
    whole, loss = audited("adamw", "one_cycle", None, None)
    model, second, _ = problem()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = SCHEDULES["one_cycle"](optimizer)
    ml.audit_run(optimizer, second, 5, stops=[1], scheduler=scheduler, measures=["gradient_1_norm"], compare=(), betas=None)
    rest = ml.audit_run(
        optimizer, second, STEPS - 5, stops=[4], scheduler=scheduler, measures=["gradient_1_norm"], compare=(), betas=None
    )
    assert torch.equal(loss.theta, second.theta)
    first, expected = rest.stops[0].audit.first, whole.stops[1].audit.first
    assert first is not None
    assert expected is not None
    assert relative_error(first, expected) < 1e-6
    assert relative_error(rest.stops[0].audit.F, whole.stops[1].audit.F) < 1e-12


def test_a_planned_schedule_is_put_there():
    model, loss, _ = problem()
    plan = [{"lr": 1e-2 * 0.9**n, "betas": (0.8 - 0.01 * n, 0.95)} for n in range(STEPS + 1)]
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    options: Any = {"stops": STOPS, "measures": ["gradient_1_norm"], "compare": (), "betas": None}
    run = ml.audit_run(optimizer, loss, STEPS, scheduler=plan, **options)
    assert optimizer.param_groups[0]["lr"] == plan[-1]["lr"]
    assert [stop.audit.lr for stop in run.stops] == [plan[n]["lr"] for n in STOPS]
    model, second, _ = problem()
    again = ml.audit_run(OPTIMIZERS["adamw"](model.parameters()), second, STEPS, scheduler=plan.__getitem__, **options)
    assert torch.equal(loss.theta, second.theta)
    assert again.stops[-1].audit.effects == run.stops[-1].audit.effects


def test_stops_at_lr_0_are_left_out():
    model, loss, _ = problem()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    run = ml.audit_run(optimizer, loss, 8, scheduler=CosineAnnealingLR(optimizer, 8), measures=[], compare=(), betas=None)
    assert [stop.audit.step for stop in run.stops][-1] == 6
    model, loss, _ = problem()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = CosineAnnealingLR(optimizer, 8)
    with pytest.raises(BadInput, match=r"lr is 0 at every stop, \[8\]"):
        ml.audit_run(optimizer, loss, 8, stops=[8], scheduler=scheduler, measures=[])


def test_a_scheduler_that_nobody_steps_is_noted():
    model, loss, _ = problem()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    ExponentialLR(optimizer, 0.9)
    for steps in (3, [0, 1, 2, 3]):
        run = ml.audit_run(optimizer, loss, steps, stops=[2], measures=[], compare=(), betas=None)
        assert any("this run does not step it; give scheduler=" in note for note in run.stops[0].audit.validity.notes)
        optimizer.state.clear()


def other_optimizer(o: Optimizer) -> Any:
    return ExponentialLR(SGD([nn.Parameter(torch.ones(2))], lr=0.1), 0.9)


@pytest.mark.parametrize(
    ("scheduler", "options", "error", "message"),
    [
        (lambda o: ReduceLROnPlateau(o), {}, BadInput, "ReduceLROnPlateau follows what it is told"),
        (other_optimizer, {}, BadInput, "the scheduler moves another optimizer"),
        (lambda o: 0.1, {}, BadType, "must be a torch scheduler, a function .* got float"),
        (lambda o: [{"lr": 0.1}] * 3, {}, BadInput, r"steps 0\.\.16, the next one's included: 17, got 3"),
        (lambda o: lambda n: {"momentum": 0.1}, {}, BadInput, "moves 'momentum', which AdamW does not have"),
        (lambda o: CyclicLR(o, 1e-3, 1e-2), {"steps": ORDER, "lags": 3}, BadInput, "replayed: leave out lags"),
        (lambda o: None, {"gradient": lambda g: g[:3]}, BadType, r"returns its shape \(19,\), got shape \(3,\)"),
        (lambda o: None, {"gradient": lambda g: 3}, BadType, "got int"),
    ],
)
def test_bad_input(scheduler: Any, options: dict[str, Any], error: type[Exception], message: str):
    model, loss, _ = problem()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    options = {"steps": STEPS, "compare": (), "betas": None, "measures": []} | options
    with pytest.raises(error, match=message):
        ml.audit_run(optimizer, loss, options.pop("steps"), stops=[5], scheduler=scheduler(optimizer), **options)
