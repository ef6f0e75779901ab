"""The steady-state closed forms of docs/theory.md, section 2: M / lr as a function of g, theta and the map v -> H v."""

import pytest
import torch

import memoryless as ml
from tests.problems import FULL_BATCH, THETA, Wave, norm, reference_loss, relative_error

LR, B1, B2, EPS, LAM = 0.01, 0.9, 0.99, 0.01, 0.1
T1, T2 = B1 / (1 - B1), B2 / (1 - B2)

g = FULL_BATCH.gradient(THETA)
H = FULL_BATCH.hessian(THETA)
s = (g**2 + EPS).sqrt()
r = g.abs() + EPS
DECAY = LAM * THETA

# name: (method, F, M / lr as a factor of H F)
TABLE = {
    "heavy_ball": (ml.HeavyBall(LR, B1), g / (1 - B1), B1 / (1 - B1) ** 2),
    "nesterov": (ml.Nesterov(LR, B1), g / (1 - B1), B1**2 / (1 - B1) ** 2),
    "rmsprop": (ml.RMSprop(LR, B2, EPS), g / r, -T2 * g.abs() / r**2),
    "adamw_eps_inside": (
        ml.AdamW(LR, (B1, B2), EPS, LAM, eps_inside_root=True),
        g / s + DECAY,
        (T1 - T2 * g**2 / s**2) / s,
    ),
    "adamw": (ml.AdamW(LR, (B1, B2), EPS, LAM), g / r + DECAY, (T1 - T2 * g.abs() / r) / r),
    "nadam": (
        ml.NAdam(LR, (B1, B2), EPS, LAM, eps_inside_root=True),
        g / s + DECAY,
        (B1 * T1 - T2 * g**2 / s**2) / s,
    ),
    "lion": (ml.Lion(LR, (B1, B2), LAM, EPS), g / s + DECAY, B1 / (1 - B2) * EPS / s**3),
    "signum": (ml.Signum(LR, B1, LAM, EPS), g / s + DECAY, B1 / (1 - B1) * EPS / s**3),
}


@pytest.mark.parametrize("name", TABLE)
def test_steady_state(name):
    method, F, factor = TABLE[name]
    c = ml.correction(method, reference_loss())
    assert relative_error(c.F, F) < 1e-13
    assert relative_error(c.M, LR * factor * (H @ F)) < 1e-13


def test_lion_k():
    c = ml.correction(ml.LionK(LR, (B1, B2), LAM, norm), reference_loss())
    F = torch.func.grad(norm)(g) + DECAY
    assert relative_error(c.F, F) < 1e-13
    assert relative_error(c.M, LR * B1 / (1 - B2) * torch.func.hessian(norm)(g) @ H @ F) < 1e-13


def test_adamw_with_equal_betas_is_signum():
    adamw = ml.correction(ml.AdamW(LR, (B1, B1), EPS, LAM, eps_inside_root=True), reference_loss())
    signum = ml.correction(ml.Signum(LR, B1, LAM, EPS), reference_loss())
    assert relative_error(adamw.M, signum.M) < 1e-13


def test_unsmoothed_lion_has_no_first_order_memory():
    c = ml.correction(ml.Lion(LR, (B1, B2), LAM), reference_loss())
    assert not c.M.any()


def test_resummed_adam():
    """Mr = (g + a_1 w) / (sqrt(g^2 + 2 a_2 g w + q_2 w^2) + eps) - F with the age moments a, q (section 7)."""
    w = LR * H @ (g / r)
    q2 = B2 * (1 + B2) / (1 - B2) ** 2
    expected = (g + T1 * w) / ((g**2 + 2 * T2 * g * w + q2 * w**2).sqrt() + EPS) - g / r
    c = ml.correction(ml.Adam(LR, (B1, B2), EPS), reference_loss(), order="resummed")
    assert relative_error(c.M, expected) < 1e-13


def test_resummed_lion_needs_no_smoothing():
    wave, theta = Wave.random(6, seed=0), torch.ones(6)  # not convex: the drift turns signs
    g = wave.gradient(theta)
    F = g.sign()
    expected = (g + B1 / (1 - B2) * LR * wave.hessian(theta) @ F).sign() - F
    assert expected.any()
    c = ml.correction(ml.Lion(LR, (B1, B2)), ml.Loss.of(wave, theta), order="resummed")
    assert relative_error(c.M, expected) < 1e-13


def test_share_outside_the_radius():
    """Mean age times drift at least the gradient, counted by coordinate."""
    for lr in (1e-4, 1e-2, 1.0):
        c = ml.correction(ml.Adam(lr, (B1, B2), EPS), reference_loss())
        assert c.outside == float((T2 * (lr * H @ c.F).abs() >= g.abs()).double().mean())
