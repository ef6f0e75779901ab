"""Optimizers as people write them: an audit leaves everything as it is, and tells what happens, or refuses."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

import memoryless as ml
from memoryless.errors import BadInput

LR = 0.02


class Written(Optimizer):
    """Momentum and, by choice, decay, signs and an lr that falls; its count and its buffers lie where it is told.

    Args:
        params: or groups.
        lr: step size.
        beta: decays, in a list, a tensor or as it is.
        count: where the count lies: "group", "tensor" (in the group), "attribute", "state".
        buffers: where the buffers lie: "state", "attribute" or "group" (a list).
        decay: weight decay, an attribute.
        sign: whether it steps by signs of the average, beside it.
        falling: whether lr falls with the count.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        beta: Any,
        count: str,
        buffers: str,
        decay: float,
        sign: bool = False,
        falling: bool = False,
    ):
        self.count, self.buffers, self.falling, self.soft = count, buffers, falling, not sign
        super().__init__(params, {"lr": lr, "beta": beta, "decay": decay})
        self.taken, self.kept = 0, {}

    def counted(self, group: dict[str, Any], p: Tensor) -> float:
        if self.count == "attribute":
            return self.taken
        if self.count == "state":
            self.state[p]["n"] = self.state[p].get("n", 0) + 1
            return self.state[p]["n"]
        return float(group["n"])

    def buffer(self, group: dict[str, Any], place: int, p: Tensor) -> Tensor:
        if self.buffers == "state":
            return self.state[p].setdefault("m", torch.zeros_like(p))
        if self.buffers == "attribute":
            return self.kept.setdefault(id(group["params"][place]), torch.zeros_like(p))
        kept = group.setdefault("m", [])
        while len(kept) <= place:
            kept.append(torch.zeros_like(group["params"][len(kept)]))
        return kept[place]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore
        self.taken += 1
        for group in self.param_groups:
            if self.count == "group":
                group["n"] = group.get("n", 0) + 1
            elif self.count == "tensor":
                group.setdefault("n", torch.zeros(())).add_(1)
            beta = float(group["beta"][0] if isinstance(group["beta"], list) else group["beta"])
            for place, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                m = self.buffer(group, place, p).mul_(beta).add_(p.grad, alpha=1 - beta)
                n = self.counted(group, p)
                update = m / (1 - beta**n) + group["decay"] * p
                lr = group["lr"] / (1 + 0.1 * n if self.falling else 1)
                p.sub_(update if self.soft else update + 0.1 * (m / 0.1).tanh(), alpha=lr)


def halving(optimizer: Any, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None if p.grad is None else 0.5 * p.grad


def act(optimizer: Optimizer, how: str, notes: list[float]) -> None:
    """Hook or patch the step, as `how` says."""
    own, plain = [p for group in optimizer.param_groups for p in group["params"]], optimizer.step

    def clip(*_: Any) -> None:
        notes.append(float(nn.utils.clip_grad_norm_(own, 0.3)))

    def step(closure: Any = None) -> None:
        clip()
        plain()

    if how == "hook":
        optimizer.register_step_pre_hook(halving)
    elif how == "clipping hook":
        optimizer.register_step_pre_hook(clip)
    elif how == "patch":
        optimizer.step = step  # pyright: ignore


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.idle = nn.Parameter(torch.tensor([3.0]))
        self.second = nn.Parameter(torch.tensor([[0.3, -0.7]]))


def value(model: Any, _: Any) -> Tensor:
    return (model.first**4).sum() / 4 + (model.second.square().sum() + 1).log() + model.first[0] * model.second.sum()


def bits(x: Any) -> Any:
    """All that can be seen of a value, exactly."""
    if isinstance(x, Tensor):
        return id(x), x.dtype, x.tolist(), bits(x.grad) if x.is_leaf else None
    if isinstance(x, dict):
        return [(bits(key), bits(item)) for key, item in x.items()]
    return [bits(item) for item in x] if isinstance(x, (list, tuple)) else repr(x)


made = st.fixed_dictionaries({
    "beta": st.sampled_from([0.5, [0.8, 0.9], torch.tensor(0.7)]),
    "count": st.sampled_from(["group", "tensor", "attribute", "state"]),
    "buffers": st.sampled_from(["state", "state", "attribute", "group"]),
    "decay": st.sampled_from([0.0, 0.1]),
    "sign": st.booleans(),
    "falling": st.booleans(),
})  # fmt: skip


@settings(max_examples=20)
@given(
    hyper=made,
    groups=st.sampled_from(["one", "two", "frozen first"]),
    how=st.sampled_from(["plain", "plain", "hook", "clipping hook", "patch"]),
    steps=st.integers(1, 6),
)
def test_an_audit_leaves_no_trace_and_tells_what_happens(hyper, groups, how, steps):
    def make(model: Model, notes: list[float]) -> Optimizer:
        own = [
            {"params": [model.first, model.idle], "lr": {"one": LR, "two": 3 * LR, "frozen first": 0.0}[groups]},
            {"params": [model.second]},
        ]
        fresh: dict[str, Any] = {key: x.clone() if isinstance(x, Tensor) else x for key, x in hyper.items()}
        optimizer = Written(own if groups != "one" else list(model.parameters()), LR, **fresh)
        act(optimizer, how, notes)
        return optimizer

    def step(optimizer: Optimizer, model: Model, gradient_at: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        gradient_at().backward()
        optimizer.step()

    model, notes = Model(), []
    live, loss = make(model, notes), ml.Loss(model, value, [None])
    for _ in range(steps):
        step(live, model, lambda: value(model, None))

    def everything() -> Any:
        seen = [dict(vars(live)), list(model.parameters()), notes]
        return bits(seen), random.getstate(), repr(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()

    before = everything()
    try:
        audit = ml.audit(live, loss, step=steps, measures=["gradient_norm_squared"])
    except BadInput:
        audit = None
    assert everything() == before
    if audit is None:
        assert how in ("clipping hook", "patch") or hyper["buffers"] == "attribute"
        return
    theta = loss.theta
    # The optimizer's own history again, frozen at theta, on a fresh one.
    frozen = Model()
    frozen.load_state_dict(model.state_dict())
    fresh = make(frozen, [])
    for _ in range(steps + 1):
        frozen.load_state_dict(model.state_dict())
        step(fresh, frozen, lambda: value(frozen, None))
    F = (theta - torch.cat([p.detach().reshape(-1) for p in frozen.parameters()])) / audit.lr
    step(live, model, lambda: value(model, None))
    update = (theta - loss.theta) / audit.lr
    torch.testing.assert_close(audit.F, F, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(audit.measured, update - F, rtol=1e-8, atol=1e-10)
    assert audit.F[loss.slices["idle"]] == 0
