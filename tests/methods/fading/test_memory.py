"""How far back optimizers remember: closed forms, experiments on torch's own, and what forgets too slowly or never."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.optim import (
    ASGD,
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
    Rprop,
)
from torch.optim.lr_scheduler import LambdaLR

import memoryless as ml
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.fading.memory import memory_kernel
from memoryless.methods.fading.tails import MemoryKernel, half_life, log_ages, mean_age, tail
from memoryless.methods.method import Momentum
from memoryless.report.kernel import picture, print_kernel
from tests.problems import METHODS

SHAPES = [(3, 2), (2,)]
HORIZON = 256


def followed(make: Callable[..., Any], shapes: list[tuple[int, ...]] = SHAPES, **options: Any) -> MemoryKernel:
    return memory_kernel(TorchMethod(make, shapes), horizon=HORIZON, **options)


# The horizon of the tests asks for memories shorter than torch's defaults.
RECOGNISED: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "heavy_ball": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "dampened": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, betas=(0.8, 0.95)),
    "adamw": lambda p: AdamW(p, betas=(0.9, 0.999)),
    "nadam": lambda p: NAdam(p, betas=(0.9, 0.97)),
    "rmsprop": lambda p: RMSprop(p, alpha=0.97),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_experiment_is_the_closed_form(name: str):
    """The same draws of 54 coordinates; rounding grows over the ages that a weight of a share 1e-10 is followed to."""
    made = RECOGNISED[name]
    found = followed(made, [(8, 6), (6,)])
    expected = memory_kernel(ml.method_of(made([torch.nn.Parameter(torch.zeros(54))])))
    ages = np.intersect1d(found.ages, expected.ages)
    values, wanted = (x.kernel[np.isin(x.ages, ages)] for x in (found, expected))
    np.testing.assert_allclose(values, wanted, atol=1e-7 * wanted.max())
    assert found.mean_age == pytest.approx(expected.mean_age, rel=1e-5)
    assert found.half_life == pytest.approx(expected.half_life, rel=1e-5)
    assert found.decays
    assert expected.decays
    remembered = [piece for piece in found.pieces if piece.mean_age > 0]
    assert len(remembered) == len(expected.pieces)
    for piece, other in zip(remembered, expected.pieces, strict=True):
        assert piece.mean_age == pytest.approx(other.mean_age, rel=1e-6)
        assert piece.half_life == pytest.approx(other.half_life, rel=1e-6)


def test_ages_of_adam_by_hand():
    found = {piece.name: piece for piece in followed(lambda p: Adam(p, betas=(0.9, 0.999))).pieces}
    for name, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999)):
        assert found[name].mean_age == pytest.approx(beta / (1 - beta), rel=1e-6)
        assert found[name].half_life == pytest.approx(math.log(2) / -math.log(beta), rel=1e-6)


DECAYS: dict[str, tuple[Callable[..., Any], bool | None, str]] = {
    "adadelta": (lambda p: Adadelta(p), None, "'acc_delta' loses "),
    "adadelta_with_large_eps": (lambda p: Adadelta(p, eps=0.1), True, "of itself a step"),
    "adafactor": (lambda p: Adafactor(p), False, "grows: "),
    "adagrad": (lambda p: Adagrad(p), False, "falls only as k^-"),
    "adagrad_with_lr_decay": (lambda p: Adagrad(p, lr_decay=0.1), False, "falls only as k^-"),
    "amsgrad": (lambda p: Adam(p, betas=(0.8, 0.95), amsgrad=True), False, "does not fade"),
    "adamw_amsgrad": (lambda p: AdamW(p, betas=(0.8, 0.95), amsgrad=True), False, "does not fade"),
    "adamax": (lambda p: Adamax(p, betas=(0.8, 0.95)), True, "0.8 of itself"),
    "asgd": (lambda p: ASGD(p), True, "gone after 0 steps"),
    "muon": (lambda p: Muon(p, momentum=0.8), True, "0.8 of itself"),
    "radam": (lambda p: RAdam(p, betas=(0.8, 0.95)), True, "0.95 of itself"),
    "rmsprop_momentum": (lambda p: RMSprop(p, alpha=0.95, momentum=0.9), True, "0.95 of itself"),
    "rmsprop_centered": (lambda p: RMSprop(p, alpha=0.9, centered=True), True, "falls by a factor of e every"),
    "rprop": (lambda p: Rprop(p), True, "keeps nothing of itself a step"),
    "a_schedule": (lambda p: (o := Adam(p, betas=(0.8, 0.95)), LambdaLR(o, lambda n: n / 10)), True, "0.95 of itself"),
}


@pytest.mark.parametrize("name", DECAYS)
def test_decays_by_evidence(name: str):
    make, decays, evidence = DECAYS[name]
    found = followed(make, SHAPES[:1] if name == "muon" else SHAPES)
    assert found.decays is decays, found.evidence
    assert evidence in found.evidence
    assert math.isfinite(found.mean_age) == bool(decays)


def test_a_maximum_never_forgets_though_its_average_does():
    ages = {p.name: p.mean_age for p in followed(lambda p: Adam(p, betas=(0.8, 0.95), amsgrad=True)).pieces}
    assert math.isinf(ages["max_exp_avg_sq"])
    assert ages["exp_avg_sq"] == pytest.approx(19, rel=1e-3)  # followed for 256 steps, the rest as its tail says


def test_a_memory_of_a_memory_is_convolved():
    """RMSprop's buffer b <- mu b + g / sqrt(v): what v holds of g enters it at rate alpha, so it has mu^k and alpha^k."""
    alpha, mu = 0.97, 0.8
    found = followed(lambda p: RMSprop(p, alpha=alpha, momentum=mu))
    k = found.ages.astype(float)
    # d(g / sqrt v) at age j is dg / |g| (1 - (1 - alpha)) at 0 and -(1 - alpha) alpha^j beyond.
    convolved = mu**k - (1 - alpha) * (mu ** (k + 1) - alpha ** (k + 1)) / (mu - alpha)
    wanted = np.abs(convolved) / np.abs(convolved).max()
    np.testing.assert_allclose(found.kernel / found.kernel.max(), wanted, atol=1e-6)


def test_horizon_does_not_bound_the_ages_at_rest():
    found = followed(lambda p: Adam(p, betas=(0.9, 0.9999)))
    assert found.decays
    assert found.pieces[1].mean_age == pytest.approx(9999, rel=1e-5)
    assert found.ages[-1] > 100 * HORIZON


# NAdam's schedule is far from its limit for 10^5 steps.
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"nadam_schedule"}))
def test_closed_form_of_every_method(name: str, monkeypatch: pytest.MonkeyPatch):
    """Against the difference of two updates after a long history that differ in one gradient."""
    for module in ("tails", "memory"):
        monkeypatch.setattr(f"memoryless.methods.fading.{module}.DRAWS", 1)
    method: Any = METHODS[name](0.1)
    found = memory_kernel(method)
    assert found.decays
    size, sign, theta, dg = torch.randn(4, 6 if name == "groups" else 54, generator=torch.Generator().manual_seed(0))
    g = (0.5 + size.abs()) * sign.sign()

    def after(e: float, age: int) -> torch.Tensor:
        state, F = method.init(theta), theta
        for k in range(400, -1, -1):
            state, F = method.update(state, g + e * dg * (k == age), theta)
        return F

    ages = [0, 1, 5, 40]
    wanted = [float((after(1e-4, k) - after(-1e-4, k)).norm()) / 2e-4 / float(dg.norm()) for k in ages]
    assert found.kernel[ages] == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_groups_name_their_methods():
    names = [piece.name for piece in memory_kernel(METHODS["groups"](0.1)).pieces]
    assert names == ["adamw m_1, of g, beta 0.8", "adamw m_2, of g^2, beta 0.9", "nesterov m_2, beta 0.7"]


def test_beta_one_never_forgets():
    method = ml.Method(0.1, (Momentum(1.0, weight=lambda n: 1 / (n + 1)),), lambda f, m, theta: m[0])
    found = memory_kernel(method)
    assert not found.decays
    assert math.isinf(found.mean_age)
    assert "m_1, of g, beta 1" in found.evidence


def test_lion_reads_its_memory_a_step_late():
    (piece,) = memory_kernel(ml.Lion(betas=(0.9, 0.99))).pieces
    assert piece.mean_age == pytest.approx(1 + 99)
    assert "phi is flat" in memory_kernel(ml.Lion()).evidence


@pytest.mark.parametrize(
    ("fall", "fades"),
    [
        (lambda k: 0.99**k, True),
        (lambda k: (1 + k) ** -4.0, True),
        (lambda k: (1 + k) ** -2.0, None),
        (lambda k: 0.5 + 0.9**k, False),
        (lambda k: (1 - 1e-8) ** k, None),
        (lambda k: 1.0 * (k < 3), True),
    ],
)
def test_tails(fall: Callable[[Any], Any], fades: bool | None):
    ages = log_ages(4096)
    assert tail(ages, fall(ages.astype(float))).fades == fades


def test_sums_over_log_spaced_ages():
    ages = log_ages(40_000)
    assert len(ages) < 400
    values = np.power(0.999, ages, dtype=np.float64)
    assert mean_age(ages, values) == pytest.approx(999, rel=1e-9)
    assert half_life(ages, values) == pytest.approx(math.log(0.5) / math.log(0.999), rel=1e-9)


def test_bad_arguments():
    with pytest.raises(TypeError, match="expected a method or a TorchMethod, got str"):
        memory_kernel("adam")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least 128"):
        memory_kernel(ml.Adam(), horizon=10)


def test_pictures_of_what_ends_and_what_does_not(tmp_path: Path):
    for make in (lambda p: Adagrad(p), lambda p: SGD(p, lr=0.1)):
        found = followed(make)
        picture(found).savefig(tmp_path / "x.png")
        console = Console(width=140, record=True, quiet=True)
        print_kernel(found, console)
