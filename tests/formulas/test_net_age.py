"""The net age and what follows from it: modified losses, potentials, signs."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false
# pyright: reportOperatorIssue=false

import pytest
import sympy
import torch
from sympy import Abs, S
from torch import Tensor

import memoryless as ml
from memoryless.errors import NotDerivable
from memoryless.formulas.compiled import compiled
from memoryless.formulas.net_age import sign_of
from memoryless.formulas.symbols import L, Total, g, h, name_of
from tests.formulas.cases import (
    LR,
    TABLE,
    WEIGHTS,
    adam_loss,
    b1,
    beta,
    close,
    derive,
    eps,
    g_,
    is_zero,
    r2,
    s,
    single,
    t,
    t1,
    t2,
    tensors,
)
from tests.problems import Wave, reference_loss

LOSSES = {
    "heavy_ball": ("heavy_ball", {}, L + h * beta / (2 * (1 - beta) ** 2) * Total(g**2)),
    "nesterov": ("nesterov", {}, L + h * beta**2 / (2 * (1 - beta) ** 2) * Total(g**2)),
    "adamw": ("adamw", {"eps": 0}, adam_loss(t1)),
    "nadam": ("nadam", {"eps": 0}, adam_loss(b1 * t1)),
    "rmsprop": ("rmsprop", {"eps": 0}, L - h * t2 * Total(Abs(g))),
    "lion": ("lion", {"smoothing": 0}, L),
}


@pytest.mark.parametrize("name", LOSSES)
def test_modified_losses(name):
    method, values, expected = LOSSES[name]
    d = ml.derive(method, **values)
    assert d.net_age.constant
    assert is_zero(d.modified_loss - expected)


@pytest.mark.parametrize(
    "name", ["rmsprop", "rmsprop_eps_inside", "adam", "adamw", "adamw_eps_inside", "nadam", "lion", "signum"]
)
def test_no_modified_loss_where_the_net_age_differs(name):
    method, values, *_ = TABLE[name]
    d = ml.derive(method, **values)
    assert d.modified_loss is None
    assert not d.net_age.constant


def test_no_modified_loss_where_coordinates_mix():
    assert derive("lion_k").modified_loss is None
    with pytest.raises(NotDerivable, match="does not act on each coordinate"):
        _ = derive("lion_k").net_age


DESCENDS = {
    "heavy_ball": lambda: ml.derive("heavy_ball", lr=LR, momentum=0.9),
    "heavy_ball_coupled_decay": lambda: ml.derive("heavy_ball", lr=LR, momentum=0.8, weight_decay=0.3, dampening=0.5),
    "heavy_ball_ascends": lambda: ml.derive("heavy_ball", lr=LR, momentum=0.8, maximize=True),
    "nesterov": lambda: ml.derive("nesterov", lr=LR, momentum=0.8),
    "nesterov_coupled_decay": lambda: ml.derive("nesterov", lr=LR, momentum=0.8, weight_decay=0.3),
    "adamw": lambda: ml.derive("adamw", lr=LR, betas=(0.8, 0.95), eps=0, weight_decay=0.3),
    "nadam": lambda: ml.derive("nadam", lr=LR, betas=(0.8, 0.95), eps=0, weight_decay=0.3),
    "adam_coupled_decay": lambda: ml.derive(ml.Adam(LR, (0.8, 0.95), 0.0, 0.3)),
    "lion_k_quadratic": lambda: ml.derive("lion_k", lr=LR, betas=(0.8, 0.95), weight_decay=0.3, K=None),
    "heavy_ball_at_a_step": lambda: ml.derive("heavy_ball", lr=LR, momentum=0.8, step=3),
    "heavy_ball_coupled_decay_at_a_step": lambda: ml.derive("heavy_ball", lr=LR, momentum=0.8, weight_decay=0.3, step=2),
    "nesterov_at_a_step": lambda: ml.derive("nesterov", lr=LR, momentum=0.8, step=2),
    "adamw_at_a_step": lambda: ml.derive("adamw", lr=LR, betas=(0.8, 0.95), eps=0, weight_decay=0.3, step=2),
    "nadam_at_a_step": lambda: ml.derive("nadam", lr=LR, betas=(0.8, 0.95), eps=0, weight_decay=0, step=3),
    "square_root": lambda: ml.derive(single(lambda f, m, theta: f.sign(m[0]) * f.sqrt(f.abs(m[0])) + 0.3 * theta)),
    "even": lambda: ml.derive(single(lambda f, m, theta: m[0] ** 2 + 0.3 * theta, 0.5)),
}


@pytest.mark.parametrize("name", DESCENDS)
def test_memoryless_iteration_descends_the_modified_loss(name):
    """F + M = decay theta + P grad L~, with grad L~ by automatic differentiation of L~ along theta."""
    d = DESCENDS[name]()
    wave, start = Wave.random(5, seed=3), Wave.random(5, seed=4).b
    modified = compiled(d.modified_loss)

    def loss(point: Tensor) -> Tensor:
        return modified(wave.gradient(point), point, loss=wave(point)).sum()

    point = start.clone().requires_grad_()
    slope = torch.autograd.grad(loss(point), point)[0]
    gradient, hessian = wave.gradient(start), wave.hessian(start)
    whole = gradient + float(d.coupling) * start
    P = compiled(d.net_age.P)(whole, start)
    left = compiled(d.F + d.M)(gradient, start, lambda v: hessian @ v)
    right = float(d.net_age.decay) * start + P * slope
    assert (left - right).norm() < 1e-12 * left.norm()
    plain = float(d.net_age.decay) * start + P * whole
    assert (left - plain).norm() > 1e-3 * left.norm()


@pytest.mark.parametrize(
    ("expression", "sign"),
    [(t, 1), (t1 - t2, None), (-(b1**2) * t1, -1), (b1 - 1, -1), (S.Zero, 0), (t1 - b1 * t1 - b1, 0), (t1 - b1 * t1, 1)],
)
def test_sign_of(expression, sign):
    assert sign_of(expression) == sign


AGES = {
    "heavy_ball": {1: t},
    "nesterov": {2: t},
    "rmsprop": {2: t2},
    "adam": {1: t1, 2: t2},
    "adamw": {1: t1, 2: t2},
    "nadam": {1: t1, 3: t2},
    "lion": {1: 1 / (1 - r2)},  # read before this step's gradient enters, one step older
    "lion_k": {1: 1 / (1 - r2)},
    "signum": {1: t},
}


@pytest.mark.parametrize("name", AGES)
def test_mean_ages(name):
    ages = derive(name).ages
    assert {str(tau) for tau, _ in ages.values()} == {f"tau_{l}" for l in AGES[name]}
    assert all(is_zero(ages[sympy.Symbol(f"m_{l}", real=True)][1] - age) for l, age in AGES[name].items())


def test_equal_ages_share_a_symbol():
    d = ml.derive("adamw", beta2="beta1", eps_inside_root=True)
    assert len({tau for tau, _ in d.ages.values()}) == 1
    assert is_zero(d.net_age.kappa - b1 / (1 - b1) * eps / s**2)


def test_net_age_of_adam_changes_sign():
    low, high = derive("adam").net_age.ends
    crossing = derive("adam").net_age.crossing
    assert crossing is not None
    quantity, value = crossing
    tau1, tau2 = (sympy.Symbol(f"tau_{i}", positive=True) for i in (1, 2))
    assert (low, high) == (tau1, tau1 - tau2)
    assert quantity == Abs(g)
    assert is_zero(value - eps * tau1 / (tau2 - tau1))
    assert is_zero(derive("adam").net_age.kappa.subs(Abs(g), value.subs({tau1: t1, tau2: t2})))


FAIR = "potential of Fair (1974): quadratic for small |g|, the 1-norm for large"
POTENTIALS = {
    "heavy_ball": ("squared norm", g**2 / (2 * (1 - beta))),
    "rmsprop": (FAIR, Abs(g) - eps * sympy.log(1 + Abs(g) / eps)),
    "signum": ("perturbed 1-norm", s),
}


@pytest.mark.parametrize("name", POTENTIALS)
def test_potentials_have_names(name):
    words, R = POTENTIALS[name]
    found = derive(name).net_age.R
    assert is_zero(found - R)
    assert name_of(found) == words
    assert words in derive(name).text()


def test_power_of_a_norm():
    d = ml.derive(single(lambda f, m, theta: f.sign(m[0]) * f.sqrt(f.abs(m[0]))))
    assert name_of(d.net_age.R) == "power of a p-norm"
    assert "‖∇L‖_{3/2}^{3/2}" in d.text()


def test_a_preconditioner_of_either_sign_is_not_read_as_positive():
    """P = sin(g) / g: memory raises the potential where P < 0 though the net age is positive."""
    text = ml.derive(single(lambda f, m, theta: f.sin(m[0]))).text()
    assert "Memory lowers Σ[cos(10 |g|)] through coordinates where κ (-10 P) is positive" in text
    assert "Limit" not in text
    assert "Per step, coordinates" not in text
    ascends = ml.derive("heavy_ball", maximize=True)
    assert ascends.net_age.sign_of_P(S.One) == -1
    assert "Memory regularizes: step by step it lowers ‖∇L‖²" in ascends.text()


def test_both_signs_of_the_gradient_count():
    """On positive gradients kappa is constant, and F[s] = F[n]; on negative ones neither is."""
    cubed = single(lambda f, m, theta: f.where(m[0] > 0, m[0], m[0] ** 3), weight=lambda n: 0.1)
    assert not ml.derive(cubed).net_age.constant
    assert ml.derive(cubed).modified_loss is None
    uncorrected = ml.Method(
        LR,
        (ml.Momentum(0.9, weight=WEIGHTS[2](0.9)), ml.Momentum(0.9, weight=WEIGHTS[1](0.9))),
        lambda f, m, theta: f.where(m[0] > 0, m[0], m[1]),
    )
    d, c = ml.derive(uncorrected, step=2), ml.correction(uncorrected, reference_loss(), step=2)
    assert not d.settled
    assert g_.min() < 0 < g_.max()
    assert close(tensors(d.M, uncorrected), c.M, c.F)
