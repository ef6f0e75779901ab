"""F, M, the resummed correction and the flow are docs/theory.md's, and the numbers of `correction`."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false
# pyright: reportOperatorIssue=false

import pytest
import sympy
import torch
from sympy import Rational, S, sqrt
from torch import Tensor

import memoryless as ml
from memoryless.errors import NotDerivable
from memoryless.formulas.printing import plain
from memoryless.formulas.symbols import GradK, H, HessK, L, Total, g, h, theta, w
from memoryless.methods import kernel
from memoryless.methods.catalogue import CATALOGUE
from tests.formulas.cases import (
    LR,
    ONE_METHOD,
    TABLE,
    adam_loss,
    b1,
    b2,
    beta,
    close,
    decay,
    derive,
    eps,
    g_,
    is_zero,
    lam,
    r,
    r1,
    r2,
    s,
    single,
    t,
    t1,
    t2,
    tensors,
)
from tests.problems import FULL_BATCH, METHODS, THETA, reference_loss


@pytest.mark.parametrize("name", TABLE)
def test_closed_forms_of_the_steady_state(name):
    method, values, F, factor = TABLE[name]
    d = ml.derive(method, **values)
    assert is_zero(d.F - F)
    assert is_zero(d.M - h * factor * H(d.F))
    assert is_zero(d.drifts[w] - h * H(d.F))


def test_closed_form_of_lion_k():
    d = derive("lion_k")
    assert is_zero(d.F - GradK(g) - decay)
    assert is_zero(d.M - h * r1 / (1 - r2) * HessK(g, H(GradK(g) + decay)))


def test_decay_coupled_into_the_gradient():
    d = ml.derive("heavy_ball", weight_decay="lambda")
    assert is_zero(d.F - (g + decay) / (1 - beta))
    assert is_zero(d.M - h * beta / (1 - beta) ** 2 * (H(d.F) + lam * d.F))


q2 = b2 * (1 + b2) / (1 - b2) ** 2
lag = r1 / (1 - r2)
RESUMMED = {
    "heavy_ball": beta / (1 - beta) ** 2 * w,
    "nesterov": beta**2 / (1 - beta) ** 2 * w,
    "rmsprop": g / (sqrt(g**2 + 2 * t2 * g * w + q2 * w**2) + eps) - g / r,
    "adam": (g + t1 * w) / (sqrt(g**2 + 2 * t2 * g * w + q2 * w**2) + eps) - g / r,
    "adamw": (g + t1 * w) / (sqrt(g**2 + 2 * t2 * g * w + q2 * w**2) + eps) - g / r,
    "nadam": (g + b1 * t1 * w) / (sqrt(g**2 + 2 * t2 * g * w + q2 * w**2) + eps) - g / r,
    "lion": (g + lag * w) / sqrt((g + lag * w) ** 2 + eps) - g / s,
    "lion_k": GradK(g + lag * w) - GradK(g),
    "signum": (g + t * w) / sqrt((g + t * w) ** 2 + eps) - g / s,
}


@pytest.mark.parametrize("name", RESUMMED)
def test_resummed(name):
    """Section 7, with the age moments a = beta / (1 - beta) and q = beta (1 + beta) / (1 - beta)^2."""
    assert is_zero(derive(name).resummed - RESUMMED[name])


def test_unsmoothed_lion_resums():
    d = ml.derive("lion", smoothing=0)
    assert is_zero(d.resummed - sympy.sign(g + r1 / (1 - r2) * w) + sympy.sign(g))


def test_flow_of_heavy_ball():
    d = derive("heavy_ball")
    potential = L + h * (1 + beta) / (4 * (1 - beta) ** 2) * Total(g**2)
    assert is_zero(d.flow + 1 / (1 - beta) * (g + 2 * h * (1 + beta) / (4 * (1 - beta) ** 2) * H(g)))
    assert is_zero(d.net_age.flow_loss - potential)
    assert f"L̃ = {plain(d.net_age.flow_loss)}" in d.text()


@pytest.mark.parametrize("name", CATALOGUE)
def test_flow_of_the_catalogue(name):
    """-(F + M + (h/2) (dF/dtheta) F), the last term by the chain rule through g."""
    d = derive(name)
    along = HessK(g, H(d.F)) if name == "lion_k" else d.F.diff(g).replace(sympy.DiracDelta, lambda *_: S.Zero) * H(d.F)
    assert is_zero(d.flow + d.F + d.M + h / 2 * (along + d.F.diff(theta) * d.F))


def test_flow_belongs_to_the_steady_state():
    with pytest.raises(NotDerivable, match="derive without a step"):
        _ = ml.derive("heavy_ball", step=3).flow


@pytest.mark.parametrize("name", ONE_METHOD)
def test_flow_is_the_correction_and_half_the_updates_own_change(name):
    method = METHODS[name](LR)
    assert isinstance(method, ml.Method)
    c = ml.correction(method, reference_loss())

    def frozen(point: Tensor) -> Tensor:
        m = [kernel.total(v, None) * v.g(FULL_BATCH.gradient(point), point) for v in method.variables]
        return method.readout(m, point)

    F, own = torch.func.jvp(frozen, (THETA,), (c.F,))
    assert close(tensors(ml.derive(method).flow, method), -(F + c.M + LR / 2 * own), c.F)
    assert own.norm() > 0.01 * F.norm()


@pytest.mark.parametrize("step", [None, 0, 2])
def test_two_memories_that_cancel(step):
    """F = 0 at rest, where M cannot be a multiple of F."""
    variables = tuple(ml.Momentum(b, weight=lambda n, b=b: 1 - b) for b in (0.9, 0.5))
    method = ml.Method(LR, variables, lambda f, m, theta: m[0] - m[1])
    d, c = ml.derive(method, step=step), ml.correction(method, reference_loss(), step=step)
    assert close(tensors(d.F, method), c.F, g_)
    assert close(tensors(d.M, method), c.M, g_)
    assert d.text()


def test_a_constant_in_the_update():
    """H of a vector of ones."""
    method = single(lambda f, m, theta: m[0] + 1)
    c = ml.correction(method, reference_loss())
    assert close(tensors(ml.derive(method).M, method), c.M, c.F)


def test_decay_alone():
    d = ml.derive(single(lambda f, m, theta: 0.1 * theta))
    assert is_zero(d.F - theta / 10)
    assert d.M == 0
    assert is_zero(d.flow + theta / 10 + Rational("0.01") / 2 * theta / 100)


def test_limits_are_derivations():
    d = derive("adamw")
    limits = {str(condition): limit for condition, limit in d.limits}
    assert set(limits) == {"Eq(epsilon, 0)", "Eq(lamda, 0)", "Eq(beta_2, beta_1)"}
    assert is_zero(limits["Eq(epsilon, 0)"].modified_loss - adam_loss(t1))
    assert is_zero(limits["Eq(lamda, 0)"].M - derive("adam").M)
    assert is_zero(limits["Eq(beta_2, beta_1)"].M - ml.derive("adamw", beta2="beta1").M)
    assert ml.derive("adamw", step=3).limits == []


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw", "nadam", "lion", "signum"])
def test_without_eps_is_the_limit(name):
    """Deriving at eps = 0 and letting eps -> 0 in the formulas of eps > 0 agree, away from g = 0."""
    d = derive(name)
    limit = next(limit for condition, limit in d.limits if condition.lhs == eps)
    x, curved = sympy.Symbol("x", positive=True), sympy.Symbol("u", real=True)
    for sign in (1, -1):
        for formula, at_0 in ((d.F, limit.F), (d.M, limit.M)):
            # H of a vector is a vector, the same for eps small and 0
            here, there = (f.replace(H, lambda v: curved).subs(g, sign * x) for f in (formula, at_0))
            assert is_zero(sympy.limit(here, eps, 0, "+") - there)
