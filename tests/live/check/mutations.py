"""Thirty broken steps, taken from public failures: how each is broken, and the cause that is to be named."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import memoryless as ml
from memoryless.live.check.step_check import StepCheck

LR = 0.01


class Mutation(NamedTuple):
    name: str
    run: Callable[[], StepCheck]
    cause: str


MUTATIONS: list[Mutation] = []


def mutation(name: str, cause: str) -> Callable[[Callable[[], StepCheck]], Callable[[], StepCheck]]:
    def register(run: Callable[[], StepCheck]) -> Callable[[], StepCheck]:
        MUTATIONS.append(Mutation(name, run, cause))
        return run

    return register


def criterion(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch[:, :2].sin()).square().mean()


class Loop:
    """Steps of a small network, each between the two halves of a check."""

    def __init__(self, make: Callable[[Any], Any], dtype: torch.dtype = torch.float64, tells: bool = False, **options: Any):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
        self.optimizer = make(self.model)
        self.dtype = dtype
        given = {"model": self.model, "criterion": criterion} if tells else {}
        self.check = ml.check_step(self.optimizer, **given, **options)
        self.tells = tells

    def batches(self, k: int = 1, size: int = 8) -> list[Tensor]:
        return [torch.randn(size, 6, dtype=self.dtype) for _ in range(k)]

    def steps(self, n: int, body: Callable[[list[Tensor]], Any] | None = None, k: int = 1) -> StepCheck:
        for _ in range(n):
            self.optimizer.zero_grad()
            self.step(self.batches(k), body)
        assert self.check.result is not None
        return self.check.result

    def step(self, batches: list[Tensor], body: Callable[[list[Tensor]], Any] | None = None) -> StepCheck:
        if self.tells:
            self.check.at(batches)
        with self.check:
            (body or self.plain)(batches)
        assert self.check.result is not None
        return self.check.result

    def backward(self, batches: list[Tensor], by: float | None = None) -> None:
        for batch in batches:
            (criterion(self.model, batch) / (by or len(batches))).backward()

    def plain(self, batches: list[Tensor]) -> None:
        self.backward(batches)
        self.optimizer.step()


def broken(base: type, step: Callable[[Any], Any]) -> type:
    """A class of a user's own whose step is another."""

    class Broken(base):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            step(self)

    return Broken


def adam(
    wd: str = "decoupled", corrected: bool = True, count: int = 0, inside: bool = False, swapped: bool = False
) -> Callable[[Any], None]:
    """Adam as one would write it, with one thing wrong."""

    def step(self: Any) -> None:
        for group in self.param_groups:
            b1, b2 = group["betas"][::-1] if swapped else group["betas"]
            lr, eps, decay = group["lr"], group["eps"], group["weight_decay"]
            for p in group["params"]:
                g, s = p.grad, self.state[p]
                if not s:
                    s.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                s["step"] += 1
                if wd == "coupled":
                    g = g + decay * p
                else:
                    p.mul_(1 - lr * decay)
                s["exp_avg"].lerp_(g, 1 - b1)
                s["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2)
                n = float(s["step"]) + count
                c1, c2 = (1 - b1**n, 1 - b2**n) if corrected else (1.0, 1.0)
                v = s["exp_avg_sq"] / c2
                p.sub_(lr / c1 * s["exp_avg"] / ((v + eps).sqrt() if inside else v.sqrt() + eps))

    return step


def adamw(**wrong: Any) -> Callable[[Any], Any]:
    return lambda model: broken(torch.optim.AdamW, adam(**wrong))(model.parameters(), lr=LR, weight_decay=0.1)


@mutation("weight decay coupled instead of decoupled", "weight decay coupled")
def coupled() -> StepCheck:
    return Loop(adamw(wd="coupled")).steps(3)


@mutation("weight decay decoupled instead of coupled", "weight decay decoupled")
def decoupled() -> StepCheck:
    return Loop(lambda m: broken(torch.optim.Adam, adam())(m.parameters(), lr=LR, weight_decay=0.1)).steps(3)


@mutation("no bias correction", "no bias correction")
def no_correction() -> StepCheck:
    return Loop(adamw(corrected=False)).steps(3)


@mutation("bias correction by another count", "bias correction by another count")
def another_count() -> StepCheck:
    return Loop(adamw(count=1)).steps(3)


@mutation("eps inside the root", "eps inside the root")
def eps_inside() -> StepCheck:
    return Loop(adamw(inside=True)).steps(3)


@mutation("betas swapped", "betas swapped")
def betas_swapped() -> StepCheck:
    return Loop(adamw(swapped=True)).steps(3)


def plainly(optimizer: Any, change: Callable[[], Any]) -> Any:
    """The class's own step with the groups changed for its duration."""
    undo = change()
    type(optimizer).__mro__[1].step(optimizer)
    undo()


def wrapped(base: type, around: Callable[[Any, Callable[[], Any]], Any]) -> type:
    """A class whose step does something around its base's."""

    class Wrapped(base):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            around(self, lambda: base.step.__wrapped__(self))  # without the hooks, which this step has

    return Wrapped


@mutation("lr of another group", "lr of another group")
def lr_of_group() -> StepCheck:
    def around(self: Any, step: Callable[[], Any]) -> None:
        own = self.param_groups[1]["lr"]
        self.param_groups[1]["lr"] = self.param_groups[0]["lr"]
        step()
        self.param_groups[1]["lr"] = own

    def make(model: Any) -> Any:
        groups = [{"params": model[0].parameters(), "lr": LR}, {"params": model[2].parameters(), "lr": LR / 7}]
        return wrapped(torch.optim.AdamW, around)(groups)

    return Loop(make).steps(3)


@mutation("lr read before the scheduler", "lr read before the scheduler")
def stale_lr() -> StepCheck:
    def around(self: Any, step: Callable[[], Any]) -> None:
        own, self.last = self.param_groups[0]["lr"], self.param_groups[0]["lr"]
        self.param_groups[0]["lr"] = getattr(self, "before", own)
        step()
        self.param_groups[0]["lr"], self.before = own, own

    loop = Loop(lambda m: wrapped(torch.optim.AdamW, around)(m.parameters(), lr=LR))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(loop.optimizer, 0.9)
    return loop.steps(3, lambda batches: (loop.plain(batches), scheduler.step()))


@mutation("parameter skipped", "parameter skipped")
def skipped() -> StepCheck:
    def around(self: Any, step: Callable[[], Any]) -> None:
        p = self.param_groups[0]["params"][2]
        p.grad, kept = None, p.grad
        step()
        p.grad = kept

    return Loop(lambda m: wrapped(torch.optim.AdamW, around)(m.parameters())).steps(3)


def without(frozen: bool) -> StepCheck:
    def around(self: Any, step: Callable[[], Any]) -> None:
        missing = [p for p in self.param_groups[0]["params"] if p.grad is None]
        for p in missing:
            p.grad = torch.zeros_like(p)
        step()
        for p in missing:
            p.grad = None

    loop = Loop(lambda m: wrapped(torch.optim.AdamW, around)(m.parameters(), weight_decay=0.1))
    if frozen:
        loop.model[0].requires_grad_(False)
        return loop.steps(2)

    def body(batches: list[Tensor]) -> None:
        loop.backward(batches)
        loop.model[0].weight.grad = None  # pyright: ignore[reportArgumentType]
        loop.optimizer.step()

    loop.steps(2)
    return loop.steps(1, body)


@mutation("grad None treated as zero", "gradient None treated as zero")
def none_as_zero() -> StepCheck:
    return without(frozen=False)


@mutation("a frozen layer that decays", "frozen layer decays")
def frozen_decays() -> StepCheck:
    return without(frozen=True)


def clip(gradient: Tensor, most: float = 0.1) -> Tensor:
    return gradient * min(1.0, most / float(gradient.norm()))


def sgd(model: Any) -> Any:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)


@mutation("gradient clipped after the step read it", "gradient clipped after the step read it")
def clipped_late() -> StepCheck:
    loop = Loop(sgd, tells=True, gradient=clip)

    def body(batches: list[Tensor]) -> None:
        loop.plain(batches)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)

    return loop.steps(2, body)


@mutation("clipped twice", "gradient clipped twice")
def clipped_twice() -> StepCheck:
    loop = Loop(sgd, tells=True, gradient=clip)

    def body(batches: list[Tensor]) -> None:
        loop.backward(batches)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.037)
        loop.optimizer.step()

    return loop.steps(2, body)


@mutation("loss divided by accumulation twice", "loss divided by accumulation twice")
def divided_twice() -> StepCheck:
    loop = Loop(sgd, tells=True)
    return loop.steps(2, lambda batches: (loop.backward(batches, by=9), loop.optimizer.step()), k=3)


@mutation("loss divided by accumulation not at all", "loss not divided by accumulation")
def not_divided() -> StepCheck:
    loop = Loop(sgd, tells=True)
    return loop.steps(2, lambda batches: (loop.backward(batches, by=1), loop.optimizer.step()), k=3)


@mutation("last partial window at full weight", "last partial window at full weight")
def partial_window() -> StepCheck:
    loop = Loop(sgd, tells=True)
    return loop.step([*loop.batches(2), *loop.batches(1, size=3)])


@mutation("step taken twice", "step taken twice")
def twice() -> StepCheck:
    loop = Loop(lambda m: torch.optim.AdamW(m.parameters()))
    return loop.steps(2, lambda batches: (loop.plain(batches), loop.optimizer.step()))


def resumed(change: Callable[[Any], Any]) -> StepCheck:
    loop = Loop(lambda m: torch.optim.AdamW(m.parameters()))
    loop.steps(3)
    change(loop.optimizer)
    return loop.steps(1)


@mutation("state not restored after resume", "state not restored")
def not_restored() -> StepCheck:
    return resumed(lambda optimizer: optimizer.state.clear())


@mutation("state restored to other parameters", "state restored to other parameters")
def to_others() -> StepCheck:
    loop = Loop(lambda m: torch.optim.AdamW([m[0].bias, m[2].weight.data.new_zeros(5).requires_grad_(), m[2].bias]))
    a, b = loop.optimizer.param_groups[0]["params"][:2]
    c = torch.linspace(1, 2, 5, dtype=torch.float64)

    def body(batches: list[Tensor]) -> None:
        loop.backward(batches)
        (c * b.sin()).sum().backward()
        loop.optimizer.step()

    loop.steps(3, body)
    state = loop.optimizer.state
    state[a], state[b] = state[b], state[a]
    return loop.steps(1, body)


@mutation("step count not restored", "step count not restored")
def count_lost() -> StepCheck:
    return resumed(lambda optimizer: [state.update(step=torch.tensor(0.0)) for state in optimizer.state.values()])


@mutation("moments in bfloat16", "buffers of lower precision (bfloat16)")
def low_moments() -> StepCheck:
    def lower(self: Any, step: Callable[[], Any]) -> None:
        for state in self.state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key].float()
        step()
        for state in self.state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key].bfloat16()

    return Loop(lambda m: wrapped(torch.optim.AdamW, lower)(m.parameters()), torch.float32).steps(3)


@mutation("parameters in bfloat16 that swallow the step", "parameters swallow the step")
def swallowed() -> StepCheck:
    return Loop(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-5), torch.bfloat16).steps(3)


@mutation("maximize instead of minimize", "maximize flipped")
def maximized() -> StepCheck:
    def around(self: Any, step: Callable[[], Any]) -> None:
        self.param_groups[0]["maximize"] = True
        step()
        self.param_groups[0]["maximize"] = False

    return Loop(lambda m: wrapped(torch.optim.AdamW, around)(m.parameters())).steps(2)


@mutation("Nesterov for heavy ball", "Nesterov for heavy ball")
def nesterov() -> StepCheck:
    def around(self: Any, step: Callable[[], Any]) -> None:
        self.param_groups[0]["nesterov"] = True
        step()
        self.param_groups[0]["nesterov"] = False

    return Loop(lambda m: wrapped(torch.optim.SGD, around)(m.parameters(), lr=LR, momentum=0.9)).steps(2)


@mutation("dampening on the first step", "dampening on the first step")
def dampened() -> StepCheck:
    def around(self: Any, step: Callable[[], Any]) -> None:
        for p in self.param_groups[0]["params"]:
            if self.state[p].get("momentum_buffer") is None:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        step()

    return Loop(lambda m: wrapped(torch.optim.SGD, around)(m.parameters(), lr=LR, momentum=0.9, dampening=0.5)).steps(1)


@mutation("amsgrad dropped on load", "amsgrad dropped")
def amsgrad() -> StepCheck:
    loop = Loop(lambda m: torch.optim.AdamW(m.parameters(), amsgrad=True))
    loop.steps(3)
    saved = loop.optimizer.state_dict()
    saved["param_groups"][0].pop("amsgrad")
    loop.optimizer.load_state_dict(saved)
    loop.optimizer.param_groups[0].setdefault("amsgrad", False)
    return loop.steps(1)


@mutation("foreach path with a stale lr tensor", "stale lr tensor")
def stale_tensor() -> StepCheck:
    def around(self: Any, step: Callable[[], Any]) -> None:
        own = self.param_groups[0]["lr"]
        self.kept = getattr(self, "kept", own.clone())
        self.param_groups[0]["lr"] = self.kept
        step()
        self.param_groups[0]["lr"] = own

    def make(model: Any) -> Any:
        lr = torch.tensor(LR, dtype=torch.float64)
        return wrapped(torch.optim.AdamW, around)(model.parameters(), lr=lr, foreach=True, capturable=False)

    loop = Loop(
        lambda m: wrapped(torch.optim.SGD, around)(m.parameters(), lr=torch.tensor(LR, dtype=torch.float64), foreach=True)
    )
    return loop.steps(3, lambda batches: (loop.plain(batches), loop.optimizer.param_groups[0]["lr"].mul_(0.8)))


@mutation("momentum cycled by a scheduler, and the step did not follow", "momentum cycled by a schedule")
def cycled() -> StepCheck:
    def around(self: Any, step: Callable[[], Any]) -> None:
        own, self.param_groups[0]["betas"] = self.param_groups[0]["betas"], self.defaults["betas"]
        step()
        self.param_groups[0]["betas"] = own

    loop = Loop(lambda m: wrapped(torch.optim.AdamW, around)(m.parameters()))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(loop.optimizer, 0.01, total_steps=20)
    return loop.steps(4, lambda batches: (loop.plain(batches), scheduler.step()))


@mutation("scaler's scale not removed", "scaler's scale not removed")
def scale_kept() -> StepCheck:
    loop = Loop(lambda m: torch.optim.AdamW(m.parameters()), tells=True)
    return loop.steps(2, lambda batches: (loop.backward(batches, by=1 / 1024), loop.optimizer.step()))


@mutation("gradients of one rank only", "gradient of one rank only")
def one_rank() -> StepCheck:
    loop = Loop(sgd, tells=True, ranks=2)
    return loop.steps(2, lambda batches: (loop.backward(batches[1:]), loop.optimizer.step()), k=2)


@mutation("averaged instead of summed across ranks", "averaged instead of summed across ranks")
def averaged() -> StepCheck:
    loop = Loop(sgd, tells=True, ranks=2)
    return loop.steps(2, lambda batches: (loop.backward(batches, by=4), loop.optimizer.step()), k=2)


@mutation("EMA weights evaluated instead of the trained", "averaged weights evaluated")
def ema() -> StepCheck:
    loop = Loop(sgd, tells=True)
    loop.check.averaged = other = torch.optim.swa_utils.AveragedModel(loop.model)
    loop.steps(2)

    def body(batches: list[Tensor]) -> None:
        found = torch.autograd.grad(criterion(other.module, batches[0]), list(other.module.parameters()))
        for p, g in zip(loop.model.parameters(), found, strict=True):
            p.grad = g
        loop.optimizer.step()

    return loop.steps(1, body)


@mutation("gradient accumulated across zero_grad(set_to_none)", "gradient accumulated across zero_grad")
def accumulated() -> StepCheck:
    loop = Loop(sgd, tells=True)
    loop.step(loop.batches())
    return loop.step(loop.batches())


@mutation("tied parameters stepped twice", "tied parameters stepped twice")
def tied() -> StepCheck:
    def make(model: Any) -> Any:
        twin = nn.Parameter(model[2].bias.data)
        model.register_hook = None
        model[2].bias.register_hook(lambda g: setattr(twin, "grad", g.clone()))
        return torch.optim.AdamW([*model.parameters(), twin])

    return Loop(make).steps(2)
