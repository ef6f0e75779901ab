"""Seventeen broken steps that the checker was not written for, and the cause that a reader would want named first.

Written after the checker, and tried on it before anything was mended (benchmarks/README.md tells what was found then).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memoryless.live.check.step_check import StepCheck
from tests.live.check.mutations import LR, Loop, Mutation, broken, criterion, sgd, wrapped

HELD_OUT: list[Mutation] = []
ADAMW = torch.optim.AdamW


def held_out(name: str, cause: str) -> Callable[[Callable[[], StepCheck]], Callable[[], StepCheck]]:
    def register(run: Callable[[], StepCheck]) -> Callable[[], StepCheck]:
        HELD_OUT.append(Mutation(name, run, cause))
        return run

    return register


def around(change: Callable[[Any, Callable[[], Any]], Any], base: type = ADAMW, steps: int = 3, **options: Any) -> StepCheck:
    """Steps of a class whose step does something around torch's."""
    options = {"lr": LR} | options
    dtype = options.pop("dtype", torch.float32)
    return Loop(lambda m: wrapped(base, change)(m.parameters(), **options), dtype).steps(steps)


def own_adam(wrong: str) -> Callable[[Any], None]:
    """AdamW as one would write it from memory."""

    def step(self: Any) -> None:
        for group in self.param_groups:
            (b1, b2), lr, eps, decay = group["betas"], group["lr"], group["eps"], group["weight_decay"]
            if wrong == "per cent":
                b1, b2 = b1 / 100, b2 / 100
            for p in group["params"]:
                g, s = p.grad, self.state[p]
                if not s:
                    s.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                s["step"] += 1
                n = float(s["step"])
                if wrong != "decay after":
                    p.mul_(1 - decay * (1 if wrong == "decay without lr" else lr))
                s["exp_avg"].lerp_(g, 1 - b1)
                s["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2)
                c1, c2 = 1 - b1**n, 1 - b2**n
                if wrong == "eps before correction":
                    root = (s["exp_avg_sq"].sqrt() + eps) / c2**0.5
                elif wrong == "first only":
                    root = s["exp_avg_sq"].sqrt() + eps
                else:
                    root = (s["exp_avg_sq"] / c2).sqrt() + eps
                p.sub_(lr / c1 * s["exp_avg"] / root)
                if wrong == "decay after":
                    p.mul_(1 - lr * decay)

    return step


def by_hand(wrong: str, **options: Any) -> StepCheck:
    return Loop(lambda m: broken(ADAMW, own_adam(wrong))(m.parameters(), **{"lr": LR, "weight_decay": 0.1} | options)).steps(3)


@held_out("foreach path that lowers mixed types to the lowest", "gradient of lower precision")
def mixed() -> StepCheck:
    def change(self: Any, step: Callable[[], Any]) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad.copy_(p.grad.bfloat16())
        kept = [p.grad.clone() for p in self.param_groups[0]["params"]]
        step()
        for p, g in zip(self.param_groups[0]["params"], kept, strict=True):
            p.grad = g

    # The checker reads the gradient before the step rounds it.
    return around(change)


@held_out("weight decay applied after the update", "weight decay after the step")
def decay_after() -> StepCheck:
    return by_hand("decay after")


@held_out("betas given as percentages", "betas in per cent")
def per_cent() -> StepCheck:
    return by_hand("per cent")


@held_out("lr multiplied by the number of processes", "a factor on the step")
def world() -> StepCheck:
    def change(self: Any, step: Callable[[], Any]) -> None:
        own, self.param_groups[0]["lr"] = self.param_groups[0]["lr"], self.param_groups[0]["lr"] * 4
        step()
        self.param_groups[0]["lr"] = own

    return around(change, weight_decay=0.0)


@held_out("momentum buffer shared by two groups", "buffer shared by tensors")
def shared() -> StepCheck:
    def change(self: Any, step: Callable[[], Any]) -> None:
        first, second = (self.param_groups[k]["params"][0] for k in (0, 1))
        if first in self.state:
            self.state[second]["momentum_buffer"] = self.state[first]["momentum_buffer"]
        step()

    def make(model: Any) -> Any:
        for _ in range(2):
            model.append(torch.nn.Linear(2, 2, dtype=torch.float32))
        groups = [{"params": [model[3].weight]}, {"params": [model[4].weight]}, {"params": [model[0].weight, model[2].weight]}]
        return wrapped(torch.optim.SGD, change)(groups, lr=LR, momentum=0.9)

    return Loop(make, torch.float32).steps(4)


@held_out("zero_grad of one group forgotten", "gradient accumulated across zero_grad")
def forgotten() -> StepCheck:
    loop = Loop(sgd, tells=True)
    loop.steps(2)
    for p in loop.model[0].parameters():
        p.grad = None
    return loop.step(loop.batches())


@held_out("gradients of two losses summed", "another gradient")
def two_losses() -> StepCheck:
    loop = Loop(sgd, tells=True)

    def body(batches: list[Tensor]) -> None:
        loop.backward(batches)
        (0.3 * loop.model(batches[0]).abs().mean()).backward()
        loop.optimizer.step()

    return loop.steps(2, body)


@held_out("closure of the batch before", "gradient of an earlier step")
def stale_closure() -> StepCheck:
    loop, last = Loop(sgd, tells=True), []

    def body(batches: list[Tensor]) -> None:
        use = last[-1:] or batches
        found = torch.autograd.grad(criterion(loop.model, use[0]), list(loop.model.parameters()))
        seen.append(found)
        old = seen[-2] if len(seen) > 1 else found
        for p, g in zip(loop.model.parameters(), old, strict=True):
            p.grad = g.clone()
        loop.optimizer.step()
        last.append(batches[0])

    seen: list[Any] = []
    return loop.steps(3, body)


@held_out("eps of 1e-8 in float16", "eps lost in float16")
def eps_lost() -> StepCheck:
    loop = Loop(lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-4, eps=1e-8), torch.float16)

    def body(batches: list[Tensor]) -> None:
        for p in loop.model.parameters():
            p.grad = torch.full_like(p, 1e-4)
        loop.optimizer.step()

    return loop.steps(1, body)


@held_out("biases decayed like weights", "weight decay of another group")
def biases() -> StepCheck:
    def change(self: Any, step: Callable[[], Any]) -> None:
        self.param_groups[1]["weight_decay"] = self.param_groups[0]["weight_decay"]
        step()
        self.param_groups[1]["weight_decay"] = 0.0

    def make(model: Any) -> Any:
        weights, others = ([p for p in model.parameters() if (p.ndim > 1) is large] for large in (True, False))
        groups = [{"params": weights, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
        return wrapped(ADAMW, change)(groups, lr=LR)

    return Loop(make, torch.float32).steps(3)


@held_out("lr tensor that a step's schedule halves in place, twice for groups that share it", "lr read after the scheduler")
def lr_in_place() -> StepCheck:
    def change(self: Any, step: Callable[[], Any]) -> None:
        step()

    def make(model: Any) -> Any:
        return wrapped(ADAMW, change)(model.parameters(), lr=torch.tensor(LR), foreach=False)

    loop = Loop(make, torch.float32)

    def body(batches: list[Tensor]) -> None:
        loop.backward(batches)
        # A hook that ran after the checker's own: the step reads what the schedule wrote already.
        handle = loop.optimizer.register_step_pre_hook(lambda o, *_: o.param_groups[0]["lr"].mul_(0.5) and None)
        loop.optimizer.step()
        handle.remove()

    return loop.steps(3, body)


@held_out("amsgrad's maximum emptied before each step", "amsgrad's maximum not kept")
def maximum_lost() -> StepCheck:
    def change(self: Any, step: Callable[[], Any]) -> None:
        for s in self.state.values():
            s["max_exp_avg_sq"].zero_()
        step()

    loop = Loop(lambda m: wrapped(torch.optim.Adam, change)(m.parameters(), lr=LR, betas=(0.9, 0.5), amsgrad=True))
    large = [torch.randn(8, 6, dtype=torch.float64) * 5]
    loop.optimizer.zero_grad()
    loop.step(large)
    return loop.steps(3)


@held_out("a tensor with a NaN in its gradient skipped silently", "gradient not finite")
def nan_skipped() -> StepCheck:
    def change(self: Any, step: Callable[[], Any]) -> None:
        bad = [p for p in self.param_groups[0]["params"] if p.grad.isnan().any()]
        kept = [p.grad for p in bad]
        for p in bad:
            p.grad = None
        step()
        for p, g in zip(bad, kept, strict=True):
            p.grad = g

    loop = Loop(lambda m: wrapped(ADAMW, change)(m.parameters(), lr=LR), torch.float32)
    loop.steps(2)

    def body(batches: list[Tensor]) -> None:
        loop.backward(batches)
        [*loop.model.parameters()][-1].grad[0] = torch.nan  # pyright: ignore[reportOptionalSubscript]
        loop.optimizer.step()

    return loop.steps(1, body)


@held_out("eps added before the bias correction", "eps before the bias correction")
def eps_hat() -> StepCheck:
    return by_hand("eps before correction", eps=1e-3)


@held_out("decoupled decay without the lr", "weight decay without the lr")
def decay_without_lr() -> StepCheck:
    return by_hand("decay without lr")


@held_out("bias correction of the first average alone", "bias correction of the first average alone")
def first_only() -> StepCheck:
    return by_hand("first only")
