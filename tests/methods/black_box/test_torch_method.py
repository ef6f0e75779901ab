"""Any torch optimizer as a method: shapes, groups, lr, text, and what is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adamax,
    AdamW,
    Muon,
    Optimizer,
    SparseAdam,
)

import memoryless as ml
from memoryless.errors import BadInput, BadType, DrawsNumbers, NoSteadyState, Reevaluates, StepFailed
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.method import Groups
from tests.methods.black_box.subjects import (
    LR,
    OTHERS,
    SHAPES,
    TORCH,
    black_box,
    catalogue,
    close,
    steady,
    unrolled,
    warmup,
)
from tests.problems import FULL_BATCH, THETA, reference_loss, relative_error


def test_a_model_gives_shapes_and_stays():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    method = TorchMethod(lambda params: Adamax(params, lr=0.1), model)
    assert method.names == ["0.weight", "2.weight", "2.bias"]
    assert method.shapes == [(4, 3), (2, 4), (2,)]
    method.update(method.init(torch.ones(22)), torch.ones(22), torch.ones(22))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_float32_loss_gets_float32_back():
    theta = THETA.float()
    loss = ml.Loss.of(lambda t: (t**2).sum(), theta)
    method = black_box("adamw")
    for found in (unrolled(method, loss, theta, 7), steady(method, loss, theta)):
        assert found.F.dtype == found.M.dtype == torch.float32
        expected = ml.correction(catalogue("adamw"), loss, step=found.step)
        assert relative_error(found.M, expected.M) < 1e-4  # of float32
    assert method.update(method.init(theta), theta, theta)[1].dtype == torch.float32


def test_groups_and_of():
    def factory(params: list[nn.Parameter]) -> Optimizer:
        return AdamW([{"params": params[:1]}, {"params": params[1:], "lr": 0.03, "betas": (0.7, 0.9)}], lr=LR, eps=0.01)

    method = TorchMethod(factory, [(2, 2), (2,)])
    live = factory([nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))])
    assert method.lr == LR
    for twin in (method, TorchMethod.of(live)):
        expected = ml.method_of(live)
        assert isinstance(expected, Groups)
        for n in (2, 7):
            close(unrolled(twin, reference_loss(), THETA, n).M, ml.correction(expected, reference_loss(), step=n).M, 1e-9)
        close(steady(twin, reference_loss(), THETA).M, ml.correction(expected, reference_loss()).M, 1e-9)


def test_of_a_live_optimizer_orders_as_the_loss():
    model = nn.Linear(2, 3)
    loss = ml.Loss(model, lambda model, batch: model(batch).square().mean(), [torch.ones(2, 2)])
    optimizer = Adamax([{"params": [model.bias], "lr": 0.1}, {"params": [model.weight]}], lr=0.2)
    method = TorchMethod.of(optimizer, loss.layout)
    _, F = method.update(method.init(loss.theta), loss.gradient(loss.theta), loss.theta)
    loss(loss.theta)
    model(torch.ones(2, 2)).square().mean().backward()
    before = loss.theta
    optimizer.step()
    close(0.1 * F, before - loss.theta, 1e-12)


def test_at_lr_scales_groups_and_schedule():
    for name in ("onecycle", "warmup", "adafactor"):
        method = TorchMethod(OTHERS[name], SHAPES).at_lr(0.02)
        assert method.lr == pytest.approx(0.02)
        state, gradient = method.init(THETA), FULL_BATCH.gradient(THETA)
        for _ in range(3):
            state, F = method.update(state, gradient, THETA)
            assert F.isfinite().all()
    slow, fast = black_box("adam"), black_box("adam").at_lr(0.05)
    gradient = FULL_BATCH.gradient(THETA)
    close(slow.update(slow.init(THETA), gradient, THETA)[1], fast.update(fast.init(THETA), gradient, THETA)[1], 1e-11)


def test_text():
    assert str(TorchMethod(lambda p: Adamax(p, lr=0.1, eps=1e-6), SHAPES)) == "Adamax(lr=0.1, betas=(0.9, 0.999), eps=1e-06)"


class Noisy(SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad.add_(torch.randn_like(p))
        super().step()


class Outside(SGD):
    taken = 0

    def step(self, closure=None):
        Outside.taken += 1
        for p in self.param_groups[0]["params"]:
            p.grad.mul_(Outside.taken)
        super().step()


class Replacing(SGD):
    def step(self, closure=None):
        super().step()
        group = self.param_groups[0]
        group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]


class ReplacingLater(SGD):
    def step(self, closure=None):
        self.taken = getattr(self, "taken", 0) + 1
        super().step()
        if self.taken > 5:
            group = self.param_groups[0]
            group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]


class PoisonedLater(SGD):
    def step(self, closure=None):
        super().step()
        for p in self.param_groups[0]["params"]:
            count = self.state[p]["count"] = self.state[p].get("count", 0) + 1
            self.state[p]["scale"] = torch.full_like(p, torch.nan if count > 5 else 1.0)


class Insisting(SGD):
    """Its signature does not say that it needs a closure."""

    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("give a closure")
        self.found = closure()
        super().step()


class Polyak(Insisting):
    """The loss sets its learning rate."""

    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.data.sub_(self.found * p.grad)


class Poisoned(SGD):
    def step(self, closure=None):
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["scale"] = torch.full_like(p, torch.nan)


class Lookahead(SGD):
    """Goes back half the way every fifth step."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["count"] = state.get("count", 0) + 1
            state.setdefault("m", p.grad.clone()).mul_(0.5).add_(p.grad)
            if state["count"] % 5 == 0:
                p.add_(state["m"], alpha=0.1)


class Resetting(SGD):
    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["count"] = state.get("count", 0) + 1
            state.setdefault("m", p.grad.clone()).mul_(0.5).add_(p.grad)
            if state["count"] >= 6:
                state["count"] = 0
                p.add_(state["m"], alpha=0.1)


def failing(params: list[nn.Parameter]) -> Optimizer:
    raise RuntimeError("no such group")


def of(factory: Any, shapes: Any = SHAPES) -> Callable[[], Any]:
    return lambda: TorchMethod(factory, shapes)


def late(factory: Any) -> Callable[[], Any]:
    return lambda: unrolled(TorchMethod(factory, SHAPES), reference_loss(), THETA, 7)


def at_rest(factory: Any) -> Callable[[], Any]:
    return lambda: steady(TorchMethod(factory, SHAPES), reference_loss(), THETA)


def infinite() -> Any:
    method = black_box("adam")
    return method.update(method.init(THETA), THETA * torch.inf, THETA)


BAD = {
    "factory_raises": (of(failing), BadInput, "the factory raised RuntimeError: no such group"),
    "no_optimizer": (of(lambda p: 3), BadType, r"must return a torch.optim.Optimizer or an .* pair, got int"),
    "no_scheduler": (of(lambda p: (SGD(p), 3)), BadType, r"scheduler must have a step\(\), got int"),
    "foreign": (of(lambda p: SGD([nn.Parameter(THETA.clone())])), BadInput, "SGD holds 1 of 1 parameters .* not given"),
    "outside": (of(Outside), BadInput, "Outside keeps memory outside itself: two runs from the same state differ"),
    "noise": (of(Noisy), DrawsNumbers, r"Noisy.step\(\) draws random numbers: two seeds give updates that differ by [\d.]+%"),
    "lbfgs": (of(LBFGS), Reevaluates, r"LBFGS.step\(\) evaluates the loss again at other parameters"),
    "sparse": (of(SparseAdam), StepFailed, r"SparseAdam.step\(\) raised RuntimeError on dense gradients: .*dense gradients"),
    "identity": (of(Replacing), BadInput, "Replacing holds 1 of 1 parameters that it was not given"),
    "nan": (of(Poisoned), BadInput, r"Poisoned\(lr=0.001, momentum=0\): 'scale' of the optimizer's state is nan"),
    "identity_later": (late(ReplacingLater), BadInput, "ReplacingLater holds 1 of 1 parameters that it was not given"),
    "nan_later": (late(PoisonedLater), BadInput, "PoisonedLater.*: 'scale' of the optimizer's state is nan after step 7"),
    "value": (of(Polyak), Reevaluates, r"Polyak.step\(\) uses the value of the loss"),
    "muon_vector": (of(Muon, [(3,)]), BadInput, "the factory raised ValueError: Muon only supports 2D parameters"),
    "lr_zero": (of(lambda p: SGD(p, lr=0.0)), BadInput, "SGD: lr must be positive, got 0 for all parameters of the loss"),
    "shapes_number": (of(SGD, 3), BadType, r"a model or a list of shapes such as \[\(4, 3\), \(3,\)\], got 3"),
    "shapes_empty": (of(SGD, []), BadInput, "no parameters"),
    "shape_zero": (of(SGD, [(0, 2)]), BadInput, r"at least one element, got \(0, 2\)"),
    "theta": (lambda: black_box("adam").init(THETA[:2]), BadInput, r"theta must have shape \(6,\), got \(2,\)"),
    "infinite": (infinite, BadInput, "the update is nan at coordinate 0 of step 0"),
    "schedule": (at_rest(warmup), NoSteadyState, "a schedule moves the learning rate, .* no steady state; give step=n"),
    "asgd": (at_rest(ASGD), NoSteadyState, "still changes at rest, so there is no steady state"),
    "period": (at_rest(Lookahead), NoSteadyState, "the update still depends on the step count"),
    "cycle": (at_rest(Resetting), NoSteadyState, "'count' counts the steps in cycles"),
    "variance": (at_rest(TORCH["rmsprop_centered"]), NoSteadyState, "update at rest is not finite, though its gradient is"),
    "of_another": (
        lambda: TorchMethod.of(SGD([nn.Parameter(THETA.clone())]), reference_loss().layout),
        BadInput,
        "none of the loss's parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "exception", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, exception, message):
    with pytest.raises(exception, match=message) as raised:
        call()
    assert raised.type is exception
    assert "\n" not in str(raised.value)


def test_a_closure_that_the_signature_does_not_ask_for():
    found = unrolled(TorchMethod(lambda p: Insisting(p, lr=LR, momentum=0.9), SHAPES), reference_loss(), THETA, 7)
    close(found.M, unrolled(black_box("heavy_ball"), reference_loss(), THETA, 7).M, 1e-12)
