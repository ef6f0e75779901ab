"""Finite steps, symbolic and not."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false
# pyright: reportOperatorIssue=false

import pytest
from sympy import Abs, Rational

import memoryless as ml
from memoryless.errors import NeverForgets
from memoryless.formulas.symbols import H, g, h, n, w
from tests.formulas.cases import LR, b1, b2, beta, close, derive, eps, is_zero, lam, single, tensors
from tests.problems import METHODS, norm, reference_loss

SYMBOLIC = {
    "adam": ({b1: 0.9, b2: 0.95, eps: 0.01}, lambda: ml.Adam(LR, (0.9, 0.95), 0.01)),
    "heavy_ball": ({beta: 0.9}, lambda: ml.HeavyBall(LR, 0.9)),
    "signum": ({beta: 0.9, lam: 0.1, eps: 0.1}, lambda: ml.Signum(LR, 0.9, 0.1, 0.1)),
}


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_step(name, step):
    numbers, make = SYMBOLIC[name]
    d, method = derive(name, step="n"), make()
    assert n in d.M.free_symbols
    values = {n: step, h: Rational("0.01")} | {symbol: Rational(str(value)) for symbol, value in numbers.items()}
    first, resummed = (ml.correction(method, reference_loss(), step=step, order=order) for order in ("first", "resummed"))
    drift = tensors(d.drifts[w].subs(values), method) if d.aligned else None
    assert close(tensors(d.F.subs(values), method), first.F, first.F)
    assert close(tensors(d.M.subs(values), method), first.M, first.F)
    assert close(tensors(d.resummed.subs(values), method, drift), resummed.M, first.F)


STEPPED = {
    "nesterov": lambda: ml.Nesterov(LR, 0.8),
    "rmsprop": lambda: ml.RMSprop(LR, 0.95, 0.01),
    "adamw": lambda: ml.AdamW(LR, (0.9, 0.95), 0.01, 0.1),
    "lion": lambda: ml.Lion(LR, (0.9, 0.95), 0.1, 0.1),
    "lion_k": lambda: ml.LionK(LR, (0.8, 0.95), 0.1, norm),
}


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("name", STEPPED)
def test_symbolic_step_of_numbers(name, step):
    """The other catalogue methods, with n the only symbol."""
    method = STEPPED[name]()
    d, c = ml.derive(method, step="n"), ml.correction(method, reference_loss(), step=step)
    assert n in d.M.free_symbols
    assert close(tensors(d.F.subs(n, step), method), c.F, c.F)
    assert close(tensors(d.M.subs(n, step), method), c.M, c.F)


def test_symbolic_step_of_nadam():
    d, method = ml.derive("nadam", step="n", lr=LR, betas=(0.9, 0.95), eps=0.01, weight_decay=0.1), METHODS["nadam"](LR)
    c = ml.correction(method, reference_loss(), step=4)
    assert close(tensors(d.F.subs(n, 4), method), c.F, c.F)
    assert close(tensors(d.M.subs(n, 4), method), c.M, c.F)


def test_at_a_step_a_memory_may_last_forever():
    method = single(lambda f, m, theta: m[0], 1.0)
    with pytest.raises(NeverForgets, match=r"never fades \(beta = 1\).*give step=n"):
        ml.derive(method)
    c = ml.correction(method, reference_loss(), step=3)
    assert close(tensors(ml.derive(method, step=3).M, method), c.M, c.F)


@pytest.mark.parametrize("step", [1, 4])
def test_bias_correction_is_exact(step):
    """A frozen gradient is the bias-corrected average of itself, so F is the same at every step: one drift is enough."""
    d = ml.derive("adam", step=step, lr=0.01, betas=(0.9, 0.95), eps=0.01)
    assert is_zero(d.F - g / (Abs(g) + Rational(1, 100)))
    assert d.settled
    assert len(d.M.atoms(H)) == 1
