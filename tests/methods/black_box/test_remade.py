"""A live optimizer made anew: hyperparameters go over, memory does not, and what is lost on the way is noticed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer
from torch.optim.lr_scheduler import ExponentialLR

import memoryless as ml
from memoryless.errors import BadInput
from memoryless.methods.black_box.remade import acting, remade
from memoryless.methods.black_box.torch_method import TorchMethod


class GroupAdam(Optimizer):
    """Adam that counts in its param group, as apex's fused ones, schedule-free ones and Prodigy do."""

    def __init__(self, params, lr=0.01, betas=(0.9, 0.99), decoupled=False, start=0.0):
        self.halved = decoupled
        super().__init__(params, {"lr": lr, "betas": betas, "warm": False, "reached": start + 1.0})

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore
        for group in self.param_groups:
            group["step"] = n = group.get("step", 0) + 1
            group["warm"] = True
            group["reached"] = min(1.01 * group["reached"], 1.05)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, (b1, b2) = self.state[p], group["betas"]
                m = state.setdefault("m", torch.zeros_like(p)).mul_(b1).add_(p.grad, alpha=1 - b1)
                v = state.setdefault("v", torch.zeros_like(p)).mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                size = group["lr"] * (0.5 if self.halved else 1.0) * group["reached"]
                p.sub_(size * m / (1 - b1**n) / ((v / (1 - b2**n)).sqrt() + 1e-8))


class Counting(SGD):
    """Its count is a tensor in the group, in place, shared with the defaults; a list there grows."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, lr=lr)
        self.param_groups[0]["count"] = self.defaults["count"] = torch.tensor(0.0)
        self.param_groups[0]["norms"] = []

    @torch.no_grad()
    def step(self, closure=None):
        group = self.param_groups[0]
        group["count"] += 1
        group["norms"].append(float(sum(p.grad.square().sum() for p in group["params"]) ** 0.5))
        for p in group["params"]:
            p.sub_(p.grad, alpha=group["lr"] / float(group["count"]) / (1 + max(group["norms"])))


def trained(make: Callable[[list[nn.Parameter]], Optimizer], steps: int = 12) -> tuple[Optimizer, ml.Loss]:
    model = nn.Linear(3, 2)
    loss = ml.Loss(model, lambda model, x: model(x).square().mean(), [torch.eye(3)])
    optimizer = make(list(model.parameters()))
    for _ in range(steps):
        loss.layout.set_gradients(loss.gradient(loss.theta))
        optimizer.step()
    return optimizer, loss


def memory(optimizer: Optimizer) -> frozenset[str]:
    tensors = optimizer.param_groups[0]["params"]
    return remade(optimizer, tensors, {id(p) for p in tensors}, torch.device("cpu")).memory


def frozen(method: Any, theta: Tensor, gradient: Tensor, steps: int = 5) -> Tensor:
    state, F = method.init(theta), theta
    for _ in range(steps):
        state, F = method.update(state, gradient, theta)
    return F


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (GroupAdam, {"step", "warm", "reached"}),
        # 'reached' has stopped moving long before: only a new one shows that it is memory.
        (lambda p: GroupAdam(p, lr=0.02, decoupled=True, start=0.0), {"step", "warm", "reached"}),
        (Counting, {"count", "norms"}),
        (lambda p: AdamW(p, lr=0.01, amsgrad=True), set()),
        (lambda p: Adagrad(p, lr=0.01), set()),
    ],
    ids=["counts", "attribute", "in place", "amsgrad", "adagrad"],
)
def test_memory_in_groups(make, keys):
    live, loss = trained(make)
    assert memory(live) == keys
    theta, gradient = loss.theta, loss.gradient(loss.theta)
    expected = frozen(TorchMethod(make, loss.shapes), theta, gradient)
    method = ml.method_of(live, loss.layout)
    assert torch.equal(frozen(method, theta, gradient), expected)


def test_a_scheduled_lr_and_its_note():
    live, loss = trained(lambda p: Adagrad(p, lr=0.01))
    scheduler = ExponentialLR(live, 0.5)
    live.step()
    scheduler.step()
    assert acting(live) is None
    assert ml.method_of(live, loss.layout).lr == 0.005


def halving(optimizer: Any, args: Any, kwargs: Any) -> None:
    for p in optimizer.param_groups[0]["params"]:
        p.grad.mul_(0.5)


def test_a_hook_goes_over():
    def make(params: list[nn.Parameter]) -> Optimizer:
        optimizer = SGD(params, lr=0.01, momentum=0.9)
        optimizer.register_step_pre_hook(halving)
        return optimizer

    live, loss = trained(make)
    method = ml.method_of(live, loss.layout)
    theta, gradient = loss.theta, loss.gradient(loss.theta)
    assert isinstance(method, TorchMethod)
    plain = frozen(ml.HeavyBall(0.01, 0.9), theta, gradient)
    torch.testing.assert_close(frozen(method, theta, gradient), 0.5 * plain)


def clipping(optimizer: Optimizer) -> None:
    own, plain = optimizer.param_groups[0]["params"], optimizer.step

    def step(closure=None):
        nn.utils.clip_grad_norm_(own, 0.1)
        return plain()

    optimizer.step = step  # pyright: ignore


def skipping(optimizer: Optimizer) -> None:
    plain, calls = optimizer.step, []

    def step(closure=None):
        calls.append(1)
        if len(calls) % 2 == 0:
            plain()

    optimizer.step = step  # pyright: ignore


def hooked(optimizer: Optimizer) -> None:
    own, scales = optimizer.param_groups[0]["params"], [1.0]

    def hook(*_: Any) -> None:
        scales.append(0.9 * scales[-1])
        for p in own:
            p.grad = None if p.grad is None else scales[-1] * p.grad

    optimizer.register_step_pre_hook(hook)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (clipping, "steps otherwise: it has a step of its own, patched in"),
        (skipping, "steps otherwise: it has a step of its own, patched in"),
        (hooked, r"step hooks that act on more than they are given \(.*scales"),
    ],
)
def test_what_is_lost_is_noticed(act, message):
    live, loss = trained(lambda p: SGD(p, lr=0.01), steps=0)
    act(live)
    with pytest.raises(BadInput, match=message):
        ml.method_of(live, loss.layout)


class Bent(SGD):
    """A setting that its param groups do not tell, and no plain attribute either."""

    def __init__(self, params, lr=0.01, power=1.0):
        self.bend = lambda g: g.sign() * g.abs() ** power
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad = self.bend(p.grad)
        super().step()


class Needing(SGD):
    def __init__(self, params, total):
        super().__init__(params, lr=1 / total)


def test_refused():
    live, loss = trained(lambda p: Bent(p, power=0.5))
    with pytest.raises(BadInput, match="a setting or a memory is not in its param groups"):
        ml.method_of(live, loss.layout)
    live, loss = trained(lambda p: Needing(p, 10))
    with pytest.raises(BadInput, match=r"no second Needing can be made .* 'total'\), so its memory cannot be emptied"):
        ml.method_of(live, loss.layout)
