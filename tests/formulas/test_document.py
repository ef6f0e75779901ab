"""What a derivation tells beside its formulas: twins, the Lion-K theorem."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false
# pyright: reportOperatorIssue=false

from typing import Any

import pytest
import torch
from sympy import Eq

import memoryless as ml
from memoryless.formulas.document import document
from memoryless.formulas.net_age import sign_of
from memoryless.formulas.symbols import Field, GradK, H, HessK, Inner, g, h, theta
from tests.formulas.cases import LR, b1, derive, eps, is_zero, lam, r1, r2, single
from tests.problems import FULL_BATCH, THETA, Wave, norm


def test_adamw_with_equal_betas_is_signum():
    adamw = ml.derive("adamw", beta2="beta1", eps_inside_root=True)
    signum = ml.derive("signum", beta="beta_1", smoothing="epsilon")
    assert adamw.M.free_symbols == {h, b1, eps, lam, g, theta}
    assert is_zero(adamw.F - signum.F)
    assert is_zero(adamw.M - signum.M)
    assert "F and M are those of signum" in adamw.text()
    assert "F and M of signum" in ml.derive("adamw", eps_inside_root=True).text()
    assert "F and M are those of" not in derive("adamw").text()


@pytest.mark.parametrize("values", [{}, {"smoothing": 0}, {"weight_decay": 0}])
def test_lion_with_equal_rates_is_signum(values):
    lion, signum = ml.derive("lion", rho1="beta", rho2="beta", **values), ml.derive("signum", **values)
    assert is_zero(lion.F - signum.F)
    assert is_zero(lion.M - signum.M)
    assert is_zero(lion.resummed - signum.resummed)


@pytest.mark.parametrize("values", [{}, {"weight_decay": 0}, {"betas": (0.8, 0.95), "lr": LR}])
def test_lion_k_theorem(values):
    """M = c h Hess K H F with c > 0, so without decay -h <H grad K, M> = -h^2 c <H grad K, Hess K H grad K> <= 0."""
    d = ml.derive("lion_k", **values)
    c = (r1 / (1 - r2)).subs({r1: d.values["betas"][0], r2: d.values["betas"][1]})
    assert is_zero(d.M - d.lr * c * HessK(g, H(d.F)))
    assert sign_of(c) == 1
    theorem = next(section for section in document(d) if section.title == "Lion-K theorem")
    (gradient, defined, change) = (line for line in theorem.lines if isinstance(line, Eq))
    slope = H(GradK(g))
    assert gradient.rhs == slope
    assert is_zero(defined.rhs + h * Inner(slope, Field("M")))
    assert is_zero(change.rhs + h**2 * c * Inner(slope, HessK(g, slope)))
    assert "Memory never raises K(∇L)" in d.text()


@pytest.mark.parametrize("name", ["lion_k", "wave"])
def test_the_theorem_in_numbers(name):
    """The slope of K(grad L) along -h M, by automatic differentiation, is the theorem's change."""
    K, c = norm, 0.8 / (1 - 0.95)
    method = ml.LionK(LR, (0.8, 0.95), K=K)
    wave = Wave.random(6, 7) if name == "wave" else FULL_BATCH
    M = ml.correction(method, ml.Loss.of(wave, THETA)).M
    change = float(torch.func.jvp(lambda theta: K(wave.gradient(theta)), (THETA,), (-LR * M,))[1])
    slope = wave.hessian(THETA) @ torch.func.grad(K)(wave.gradient(THETA))
    curved = torch.func.jvp(torch.func.grad(K), (wave.gradient(THETA),), (slope,))[1]
    assert change == pytest.approx(-(LR**2) * c * float(slope @ curved), rel=1e-10)
    assert change < 0


def odd_root(f: Any, m: Any, theta: Any) -> Any:
    return m[0] + f.grad(lambda c: c.sum())(m[1])


def test_no_theorem_without_lion_k():
    """Neither without a K, nor where F holds more than its gradient and a decay."""
    two = ml.Method(LR, (ml.Momentum(0.9), ml.Momentum(0.8)), odd_root)
    scaled = single(lambda f, m, theta: 2 * f.grad(lambda c: c.sum())(m[0]))
    names = [section.title for d in map(ml.derive, ("heavy_ball", "lion", two, scaled)) for section in document(d)]
    assert "Update" in names
    assert "Lion-K theorem" not in names
