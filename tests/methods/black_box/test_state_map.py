"""A black box at rest: the catalogue, the limit of finite steps, or a refusal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import (
    LBFGS,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    RMSprop,
)

import memoryless as ml
from memoryless.errors import NeverForgets, NoSteadyState
from memoryless.methods.black_box.torch_method import TorchMethod
from tests.methods.black_box.subjects import (
    LR,
    OTHERS,
    SHAPES,
    SLOPES,
    TORCH,
    LionK,
    black_box,
    catalogue,
    close,
    steady,
    unrolled,
)
from tests.problems import FULL_BATCH, THETA, Wave, quartic, reference_loss, relative_error


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
    assert found.steps <= 41


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


def test_a_dropped_tangent_is_caught_at_rest():
    found = steady(TorchMethod(OTHERS["amnesiac"], SHAPES), reference_loss(), THETA)
    assert found.way == "difference"
    assert "'m'" in found.reason
    close(found.M, ml.correction(ml.HeavyBall(LR, 0.9), reference_loss()).M, 1e-7)


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
    "amsgrad": (lambda p: Adam(p, amsgrad=True), "'max_exp_avg_sq' answers a rise and a fall .* running maximum"),
    "adafactor": (lambda p: Adafactor(p), "still depends on the step count after 5544000 steps"),
}


@pytest.mark.parametrize(("factory", "message"), NEVER.values(), ids=NEVER)
def test_never_forgets(factory, message):
    with pytest.raises(NeverForgets, match=message + ".*give step=n$"):
        steady(TorchMethod(factory, SHAPES), reference_loss(), THETA)


def test_a_state_that_gains_entries_is_not_judged():
    with pytest.raises(NoSteadyState, match=r"give step=n$") as raised:
        steady(TorchMethod(lambda p: LBFGS(p, max_iter=1), SHAPES), reference_loss(), THETA)
    assert not isinstance(raised.value, NeverForgets)
