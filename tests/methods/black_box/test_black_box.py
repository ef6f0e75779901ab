"""Any torch optimizer as it is: equal to the catalogue where that knows it, to Eq. 9 taken literally where not."""

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    SparseAdam,
)
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import memoryless as ml
from memoryless.corrections.correction import Correction
from memoryless.errors import BadInput, BadType, NeverForgets, Reevaluates, StepFailed
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.method import Groups
from tests.problems import BATCHES, FULL_BATCH, THETA, Wave, quartic, reference_loss, relative_error

LR = 0.01
SHAPES = [(2, 3)]


def unrolled(
    method: TorchMethod, loss: ml.Loss, theta: Tensor, step: int, order: Any = "first", batches: Any = None
) -> Correction:
    return ml.correction(method, loss, theta, step=step, order=order, batches=batches)


def steady(method: TorchMethod, loss: ml.Loss, theta: Tensor, order: Any = "first") -> Correction:
    return ml.correction(method, loss, theta, order=order)


STEPS = [0, 1, 2, 7, 30]

# Betas and eps keep every memory and every second derivative moderate, so that all digits of a comparison count.
TORCH: dict[str, Callable[..., Optimizer]] = {
    "heavy_ball": lambda p, **k: SGD(p, lr=LR, momentum=0.9, **k),
    "heavy_ball_dampened": lambda p, **k: SGD(p, lr=LR, momentum=0.9, dampening=0.4, weight_decay=0.1, **k),
    "nesterov": lambda p, **k: SGD(p, lr=LR, momentum=0.8, nesterov=True, weight_decay=0.1, **k),
    "sgd": lambda p, **k: SGD(p, lr=LR, **k),
    "adam": lambda p, **k: Adam(p, lr=LR, betas=(0.9, 0.95), eps=0.01, weight_decay=0.1, **k),
    "adamw": lambda p, **k: AdamW(p, lr=LR, betas=(0.9, 0.95), eps=0.01, weight_decay=0.1, **k),
    "nadam": lambda p, **k: NAdam(p, lr=LR, betas=(0.9, 0.95), eps=0.01, momentum_decay=0.1, **k),
    "rmsprop": lambda p, **k: RMSprop(p, lr=LR, alpha=0.95, eps=0.01, **k),
    "rmsprop_centered": lambda p, **k: RMSprop(p, lr=LR, alpha=0.95, eps=0.1, centered=True, **k),
}


class LionK(Optimizer):
    """c = rho1 m + (1 - rho1) g, theta -= lr slope(c), m = rho2 m + (1 - rho2) g, with slope = grad K."""

    def __init__(self, params, lr, slope, betas=(0.9, 0.9)):
        super().__init__(params, {"lr": lr, "slope": slope, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        for group in self.param_groups:
            rho1, rho2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.sub_(group["lr"] * group["slope"](rho1 * m + (1 - rho1) * p.grad))
                m.mul_(rho2).add_(p.grad, alpha=1 - rho2)


def orthogonal(c: Tensor) -> Tensor:
    """The slope of the nuclear norm."""
    u, _, v = torch.linalg.svd(c, full_matrices=False)
    return u @ v


# With its own betas Muon is no Lion-K; its Newton-Schulz iteration is near, but not at, the orthogonal factor.
SLOPES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "heavy_ball": (lambda c: c, (0.9, 0.9)),
    "signum": (lambda c: c / (c * c + 0.1).sqrt(), (0.9, 0.9)),
    "lion": (lambda c: c / (c * c + 0.1).sqrt(), (0.8, 0.95)),
    "normalized_momentum": (lambda c: c / c.norm(), (0.9, 0.9)),
    "muon": (orthogonal, (0.95, 0.9)),
}


class Amnesiac(SGD):
    """Heavy ball that goes through detached tensors: forward mode sees nothing of its memory."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.mul_(group["momentum"]).add_(p.grad.detach())
                p.sub_(group["lr"] * m)


class Elsewhere(SGD):
    """Heavy ball in NumPy, which no tangent enters."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.copy_(torch.from_numpy(group["momentum"] * m.numpy() + p.grad.numpy()))
                p.sub_(group["lr"] * m)


class Clipped(Adam):
    """Writes into the gradient, keeps a count as an attribute, wraps another optimizer that shares its groups."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.inner = SGD(self.param_groups, lr=options["lr"], momentum=0.5)
        self.taken = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.taken += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(1 + 1 / self.taken)
        self.inner.step()
        super().step()


def onecycle(params: list[nn.Parameter]) -> tuple[Optimizer, Any]:
    """Moves both lr and momentum."""
    optimizer = SGD(params, lr=LR, momentum=0.9)
    return optimizer, OneCycleLR(optimizer, max_lr=2 * LR, total_steps=40)


def warmup(params: list[nn.Parameter]) -> tuple[Optimizer, Any]:
    optimizer = AdamW(params, lr=LR, betas=(0.8, 0.9), eps=0.01)
    return optimizer, LambdaLR(optimizer, lambda n: n / 10)


OTHERS: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "adafactor": lambda p: Adafactor(p, lr=LR, beta2_decay=-0.5),
    "rmsprop_momentum": lambda p: RMSprop(p, lr=LR, alpha=0.9, eps=0.01, momentum=0.9),
    "radam": lambda p: RAdam(p, lr=LR, betas=(0.8, 0.9)),
    "adamax": lambda p: Adamax(p, lr=LR, betas=(0.9, 0.95)),
    "adagrad": lambda p: Adagrad(p, lr=LR, lr_decay=0.1, eps=0.01),
    "adadelta": lambda p: Adadelta(p, lr=LR, eps=0.01),
    "amsgrad": lambda p: Adam(p, lr=LR, betas=(0.9, 0.95), eps=0.01, amsgrad=True),
    "amnesiac": lambda p: Amnesiac(p, lr=LR, momentum=0.9),
    "elsewhere": lambda p: Elsewhere(p, lr=LR, momentum=0.9),
    "clipped": lambda p: Clipped(p, lr=LR, betas=(0.8, 0.9), eps=0.01),
    "onecycle": onecycle,
    "warmup": warmup,
} | {
    name: functools.partial(lambda p, slope, betas: LionK(p, LR, slope, betas), slope=s, betas=b)
    for name, (s, b) in SLOPES.items()
}


def black_box(name: str, **options: Any) -> TorchMethod:
    return TorchMethod(lambda params: TORCH[name](params, **options), SHAPES)


def catalogue(name: str) -> Any:
    return ml.method_of(TORCH[name]([nn.Parameter(torch.zeros(2, 3))]))


def order_of(n: int, batches: bool) -> list[int] | None:
    return [[2, 0, 0, 3, 1, 3, 2][s % 7] for s in range(n + 1)] if batches else None


def waves(n: int, sequence: list[int] | None) -> list[Wave]:
    return [FULL_BATCH] * (n + 1) if sequence is None else [BATCHES[i] for i in sequence]


def streamed(
    factory: Callable[[list[nn.Parameter]], Any], gradients: Sequence[Tensor], thetas: Tensor | Sequence[Tensor], lr: float = LR
) -> Tensor:
    """F[0], ..., F[n], shape (n + 1, d), of a torch optimizer run as everyone does."""
    p = nn.Parameter(thetas[0].clone().view(*SHAPES))
    made = factory([p])
    optimizer, scheduler = made if isinstance(made, tuple) else (made, None)
    updates = []
    for g, theta in zip(gradients, thetas, strict=True):
        with torch.no_grad():
            p.copy_(theta.view(*SHAPES))
        p.grad = g.clone().view(*SHAPES)
        optimizer.step()
        if scheduler:
            scheduler.step()
        updates.append((theta - p.detach().flatten()) / lr)
    return torch.stack(updates)


def literal(factory: Callable[[list[nn.Parameter]], Any], seen: list[Wave], lr: float = LR) -> tuple[Tensor, Tensor, Tensor]:
    """F[n]; M[n] = d/de F[n] along theta[j] = THETA + e lr D[j], by brute force; and the resummed M[n]."""
    history = THETA.expand(len(seen), -1)
    F = streamed(factory, [wave.gradient(THETA) for wave in seen], history, lr)
    D = torch.stack([F[j:-1].sum(0) for j in range(len(seen))])

    def along(e: float) -> Tensor:
        moved = history + e * lr * D
        return streamed(factory, [wave.gradient(theta) for wave, theta in zip(seen, moved, strict=True)], moved, lr)[-1]

    coarse, fine = ((along(e) - along(-e)) / (2 * e) for e in (1e-3, 5e-4))
    lagging = [wave.gradient(THETA) + lr * wave.hessian(THETA) @ back for wave, back in zip(seen, D, strict=True)]
    return F[-1], (4 * fine - coarse) / 3, streamed(factory, lagging, history + lr * D, lr)[-1] - F[-1]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative, with a floor for an M that cancels to nothing."""
    assert actual.isfinite().all()
    assert float((actual - expected).norm()) <= tolerance * (float(expected.norm()) + 1e-3)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("batches", [False, True], ids=["full", "mini"])
@pytest.mark.parametrize("name", TORCH)
def test_first_order_is_the_catalogue(name, batches, foreach):
    for n in STEPS if not foreach else (2, 7):
        sequence = order_of(n, batches)
        expected = ml.correction(catalogue(name), reference_loss(), step=n, batches=sequence)
        found = unrolled(black_box(name, foreach=foreach), reference_loss(), THETA, n, batches=sequence)
        close(found.F, expected.F, 1e-12)
        close(found.M, expected.M, 1e-9)


@pytest.mark.parametrize("batches", [False, True], ids=["full", "mini"])
@pytest.mark.parametrize("name", TORCH)
def test_resummed_is_the_drifting_history(name, batches):
    for n in STEPS:
        sequence = order_of(n, batches)
        F, _, M = literal(TORCH[name], waves(n, sequence))
        found = unrolled(black_box(name), reference_loss(), THETA, n, "resummed", sequence)
        close(found.F, F, 1e-12)
        close(found.M, M, 1e-9)
        # The catalogue averages D[k] over each memory: the same where F[s] does not depend on s, or where F is linear.
        if name in ("heavy_ball", "nesterov") or (name in ("adam", "adamw") and not batches):
            expected = ml.correction(catalogue(name), reference_loss(), step=n, batches=sequence, order="resummed")
            close(found.M, expected.M, 1e-9)


@pytest.mark.parametrize("order", ["first", "resummed"])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", [name for name in TORCH if name != "rmsprop_centered"])
def test_steady_state_is_the_catalogue(name, foreach, order):
    expected = ml.correction(catalogue(name), reference_loss(), order=order)
    found = steady(black_box(name, foreach=foreach), reference_loss(), THETA, order)
    close(found.F, expected.F, 1e-12)
    close(found.M, expected.M, 1e-10)
    assert found.products <= 1


def test_steady_adam_costs_few_steps_and_one_product():
    method = TorchMethod(lambda params: Adam(params, betas=(0.9, 0.999)), SHAPES)
    found = steady(method, reference_loss(), THETA)
    close(found.M, ml.correction(ml.Adam(betas=(0.9, 0.999)), reference_loss()).M, 1e-9)
    assert found.way == "forward mode"
    assert found.products == 1
    assert found.steps <= 40


@pytest.mark.parametrize("batches", [False, True], ids=["full", "mini"])
@pytest.mark.parametrize("name", OTHERS)
def test_others_are_equation_9(name, batches):
    method = TorchMethod(OTHERS[name], SHAPES)
    for n in (0, 1, 2, 12):
        sequence = order_of(n, batches)
        F, first, summed = literal(OTHERS[name], waves(n, sequence), method.lr)
        found = unrolled(method, reference_loss(), THETA, n, batches=sequence)
        close(found.F, F, 1e-12)
        # The brute force carries its own rounding: 1e-16 of theta over lr and its step.
        close(found.M, first, 1e-7)
        close(unrolled(method, reference_loss(), THETA, n, "resummed", sequence).M, summed, 1e-9)


# What the others settle to, and the steps after which they have.
SETTLING = (
    {"rmsprop_momentum": 300, "radam": 250, "adamax": 400, "amnesiac": 250, "elsewhere": 250}
    | dict.fromkeys(SLOPES, 250)
    | {"lion": 450}
)


@pytest.mark.parametrize("order", ["first", "resummed"])
@pytest.mark.parametrize("name", SETTLING)
def test_steady_state_of_others_is_the_limit(name, order):
    method = TorchMethod(OTHERS[name], SHAPES)
    late = unrolled(method, reference_loss(), THETA, SETTLING[name], order)
    found = steady(method, reference_loss(), THETA, order)
    close(found.F, late.F, 1e-9)
    close(found.M, late.M, 1e-7)


@pytest.mark.parametrize("step", [7, None])
@pytest.mark.parametrize("name", [name for name in TORCH if name != "rmsprop_centered"])
def test_both_derivatives_agree(name, step, monkeypatch):
    def M() -> Correction:
        method = black_box(name)
        if step is None:
            return steady(method, reference_loss(), THETA)
        return unrolled(method, reference_loss(), THETA, step)

    usual = M()

    def missing(*args: Any) -> Any:
        raise NotImplementedError("switched off")

    monkeypatch.setattr(forward_ad, "make_dual", missing)
    other = M()
    assert other.way == ("none" if (name, step) == ("sgd", None) else "difference")
    assert "none" in other.way or "switched off" in other.reason
    close(other.M, usual.M, 1e-7)


def test_a_dropped_tangent_is_caught():
    # Torch's first momentum buffer is a detached copy of the gradient.
    found = unrolled(black_box("heavy_ball"), reference_loss(), THETA, 1)
    assert found.way == "difference"
    assert "drops a tangent" in found.reason
    assert unrolled(black_box("adamw"), reference_loss(), THETA, 1).way == "forward mode"


def test_a_kernel_without_tangents_is_caught():
    method = black_box("adam", fused=True)
    for found in (steady(method, reference_loss(), THETA), unrolled(method, reference_loss(), THETA, 7)):
        assert found.way == "difference"
        assert "drops a tangent" in found.reason
        # Not first believed, so that Newton's method would creep to rest at the optimizer's own pace.
        assert found.steps < 100
        close(found.M, ml.correction(catalogue("adam"), reference_loss(), step=found.step).M, 1e-7)


def test_a_dropped_tangent_is_caught_at_rest():
    found = steady(TorchMethod(OTHERS["amnesiac"], SHAPES), reference_loss(), THETA)
    assert found.way == "difference"
    assert "'m'" in found.reason
    close(found.M, ml.correction(ml.HeavyBall(LR, 0.9), reference_loss()).M, 1e-7)


@pytest.mark.parametrize("step", [7, None])
def test_muon_in_bfloat16(step, monkeypatch):
    def corrections() -> list[Correction]:
        method = TorchMethod(lambda params: Muon(params, lr=LR, momentum=0.9), SHAPES)
        orders: list[Any] = ["first", "resummed"]
        if step is None:
            return [steady(method, reference_loss(), THETA, order) for order in orders]
        return [unrolled(method, reference_loss(), THETA, step, order) for order in orders]

    rounded = corrections()
    assert all("float64 in place of torch.bfloat16" in c.reason for c in rounded)
    assert rounded[0].way == "forward mode"
    # Five Newton-Schulz iterations in three digits leave F one; of a derivative through them nothing.
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self.clone())
    for actual, expected in zip(rounded, corrections(), strict=True):
        assert 1e-4 < relative_error(actual.F, expected.F) < 0.1
        close(actual.M, expected.M, 1e-9)
    _, *found = literal(lambda params: Muon(params, lr=LR, momentum=0.9), [FULL_BATCH] * ((step or 250) + 1))
    for actual, expected in zip(rounded, found, strict=True):
        close(actual.M, expected, 1e-7)


def test_unsmoothed_sign_has_no_first_order():
    method = TorchMethod(lambda params: LionK(params, LR, torch.sign, (0.9, 0.99)), SHAPES)
    for first, summed in [
        [unrolled(method, reference_loss(), THETA, 30, order) for order in ("first", "resummed")],
        [steady(method, reference_loss(), THETA, order) for order in ("first", "resummed")],
    ]:
        assert not first.M.any()
        assert summed.M.isfinite().all()
    lion = ml.correction(ml.Lion(LR, (0.9, 0.99)), reference_loss(), order="resummed")
    close(steady(method, reference_loss(), THETA, "resummed").M, lion.M, 1e-12)


@pytest.mark.parametrize("step", [1, 7, None])
def test_a_dead_coordinate_does_not_move(step):
    loss = ml.Loss.of(lambda theta: quartic(theta[1:]), torch.tensor([1.0, -1.0, 2.0]))
    method = TorchMethod(lambda params: Adam(params, lr=LR), [(3,)])
    found = steady(method, loss, loss.theta) if step is None else unrolled(method, loss, loss.theta, step)
    assert found.M[0] == 0
    close(found.M, ml.correction(ml.Adam(LR), loss, step=step).M, 1e-9)


def test_a_root_of_zero_inside_the_memory():
    loss = ml.Loss.of(lambda theta: quartic(theta[1:]), torch.tensor([1.0, -1.0, 2.0]))
    found = steady(TorchMethod(lambda params: RMSprop(params, lr=LR, momentum=0.5), [(3,)]), loss, loss.theta)
    assert found.way == "forward mode"
    assert found.M[0] == 0
    assert found.M.isfinite().all()


def test_differences_do_not_cross_the_corner_of_a_maximum():
    # In the last coordinate the gradient drifts by far more than itself in a step, and so does Adamax's maximum.
    g = torch.tensor([1.0, -1.0, 2.0, 0.5, -0.3, 1e-7])
    wave = Wave(FULL_BATCH.A, g - FULL_BATCH.A @ THETA, torch.zeros(6))
    method = TorchMethod(lambda params: Adamax(params, lr=LR, betas=(0.9, 0.95)), SHAPES)
    found = steady(method, ml.Loss.of(wave, THETA), THETA)
    assert found.way == "difference"
    # The maximum is that of the present gradient, so that only the momentum lags: M = lr beta/(1 - beta) H F / (|g| + eps).
    close(found.M, LR * 9 * (wave.A @ found.F) / (g.abs() + 1e-8), 1e-5)


@pytest.mark.parametrize("step", [0, 7, None])
def test_nothing_moves_without_a_gradient(step):
    loss = ml.Loss.of(quartic, torch.zeros(6))
    for name in ("heavy_ball", "adam"):
        method = black_box(name)
        found = steady(method, loss, loss.theta) if step is None else unrolled(method, loss, loss.theta, step)
        assert not found.F.any()
        assert not found.M.any()
        assert found.outside == 0


# Betas and slopes of any Lion-K, on any smooth loss: memory cannot raise K(grad L).
@pytest.mark.parametrize("name", SLOPES)
@settings(max_examples=10)
@given(st.integers(0, 10**6), st.floats(0.1, 0.95), st.floats(0.1, 0.95))
def test_lion_k_theorem(name, seed, rho1, rho2):
    slope, _ = SLOPES[name]
    wave = Wave.random(6, seed)
    theta = Wave.random(6, seed + 1).b
    g, H = wave.gradient(theta), wave.hessian(theta)
    found = steady(TorchMethod(lambda p: LionK(p, LR, slope, (rho1, rho2)), SHAPES), ml.Loss.of(wave, theta), theta)
    push = H @ found.F  # F = grad K(g)
    curved = torch.func.jvp(slope, (g.view(2, 3),), (push.view(2, 3),))[1].flatten()
    assert relative_error(found.F, slope(g.view(2, 3)).flatten()) < 1e-9
    assert relative_error(found.M, LR * rho1 / (1 - rho2) * curved) < 1e-6
    assert float(push @ found.M) >= -1e-9 * float(push.norm() * found.M.norm())


NEVER = {
    "adagrad": (lambda p: Adagrad(p), r"'sum' never comes to rest, it moves by .* of itself a step"),
    "adadelta": (lambda p: Adadelta(p), "'acc_delta' never comes to rest"),
    "amsgrad": (lambda p: Adam(p, amsgrad=True), "'max_exp_avg_sq' answers a rise and a fall .* running maximum"),
    "adafactor": (lambda p: Adafactor(p), "still depends on the step count after 5544000 steps"),
    "lbfgs": (lambda p: LBFGS(p, max_iter=1), "gains entries step by step"),
}


@pytest.mark.parametrize(("factory", "message"), NEVER.values(), ids=NEVER)
def test_never_forgets(factory, message):
    with pytest.raises(NeverForgets, match=message + ".*give step=n$"):
        steady(TorchMethod(factory, SHAPES), reference_loss(), THETA)


@pytest.mark.parametrize("name", ["adamw", "rmsprop_centered"])
@pytest.mark.parametrize("foreach", [False, True])
def test_update_is_pure_and_the_catalogue(name, foreach):
    method, twin = black_box(name, foreach=foreach), catalogue(name)
    theta, rng = THETA.clone(), torch.get_rng_state()
    state, expected = method.init(theta), twin.init(theta)
    for wave in itertools.islice(itertools.cycle(BATCHES), 10):
        g = wave.gradient(theta)
        given = g.clone(), theta.clone(), [copy.deepcopy(v) for _, v in state.leaves()]
        after, F = method.update(state, g, theta)
        assert torch.equal(g, given[0])
        assert torch.equal(theta, given[1])
        assert all(a == b if isinstance(a, float) else torch.equal(torch.as_tensor(a), torch.as_tensor(b))
                   for (_, a), b in zip(state.leaves(), given[2], strict=True))  # fmt: skip
        assert torch.equal(method.update(state, g, theta)[1], F)
        expected, same = twin.update(expected, g, theta)
        close(F, same, 1e-11)
        state, theta = after, theta - method.lr * F
    assert state.n == 10
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("name", OTHERS)
def test_any_state_can_be_stepped_again(name):
    method = TorchMethod(OTHERS[name], SHAPES)
    states, updates = [method.init(THETA)], []
    gradients = [wave.gradient(THETA) for wave in [*BATCHES, *BATCHES]]
    for g in gradients:
        state, F = method.update(states[-1], g, THETA)
        states.append(state)
        updates.append(F)
    close(torch.stack(updates), streamed(OTHERS[name], gradients, [THETA] * 8, method.lr), 1e-12)
    for n in (5, 0, 3):
        assert torch.equal(method.update(states[n], gradients[n], THETA)[1], updates[n])


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
    "noise": (of(Noisy), BadInput, r"Noisy.step\(\) draws random numbers: two seeds give updates that differ by [\d.]+%"),
    "lbfgs": (of(LBFGS), Reevaluates, r"LBFGS.step\(\) evaluates the loss again at other parameters"),
    "sparse": (of(SparseAdam), StepFailed, r"SparseAdam.step\(\) raised RuntimeError on dense gradients: .*dense gradients"),
    "identity": (of(Replacing), BadInput, "Replacing holds 1 of 1 parameters that it was not given"),
    "nan": (of(Poisoned), BadInput, r"Poisoned\(lr=0.001, momentum=0\): 'scale' of the optimizer's state is nan"),
    "identity_later": (late(ReplacingLater), BadInput, "ReplacingLater holds 1 of 1 parameters that it was not given"),
    "nan_later": (late(PoisonedLater), BadInput, "PoisonedLater.*: 'scale' of the optimizer's state is nan after step 7"),
    "value": (of(Polyak), Reevaluates, r"Polyak.step\(\) uses the value of the loss"),
    "muon_vector": (of(Muon, [(3,)]), BadInput, "the factory raised ValueError: Muon only supports 2D parameters"),
    "lr_zero": (of(lambda p: SGD(p, lr=0.0)), BadInput, "SGD: lr must be positive and finite, got 0.0"),
    "shapes_number": (of(SGD, 3), BadType, r"a model or a list of shapes such as \[\(4, 3\), \(3,\)\], got 3"),
    "shapes_empty": (of(SGD, []), BadInput, "no parameters"),
    "shape_zero": (of(SGD, [(0, 2)]), BadInput, r"at least one element, got \(0, 2\)"),
    "theta": (lambda: black_box("adam").init(THETA[:2]), BadInput, r"theta must have shape \(6,\), got \(2,\)"),
    "infinite": (infinite, BadInput, "the update is nan at coordinate 0 of step 0"),
    "schedule": (at_rest(warmup), BadInput, "a schedule moves the learning rate, so there is no steady state; give step=n"),
    "asgd": (at_rest(ASGD), BadInput, "still changes at rest, so there is no steady state"),
    "period": (at_rest(Lookahead), NeverForgets, "the update still depends on the step count"),
    "cycle": (at_rest(Resetting), BadInput, "'count' counts the steps in cycles"),
    "variance": (at_rest(TORCH["rmsprop_centered"]), BadInput, "not finite where its memory comes to rest"),
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


class Drawing(SGD):
    """Draws, and makes nothing of it."""

    def step(self, closure=None):
        torch.rand(1)
        np.random.rand()
        super().step()


@pytest.mark.parametrize(
    "use",
    [
        lambda method: method.update(method.init(THETA), THETA, THETA),
        lambda method: unrolled(method, reference_loss(), THETA, 3),
        lambda method: steady(method, reference_loss(), THETA),
        lambda method: method.at_lr(0.1),
    ],
    ids=["update", "unrolled", "steady", "at_lr"],
)
def test_randomness_is_left_alone(use):
    method = TorchMethod(lambda params: Drawing(params, lr=LR, momentum=0.9), SHAPES)
    before = torch.get_rng_state(), np.random.get_state(legacy=False)
    use(method)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])
