"""A black box at step n: the catalogue where that knows it, Eq. 9 taken literally where not."""

import pytest

import memoryless as ml
from memoryless.methods.black_box.torch_method import TorchMethod
from tests.methods.black_box.subjects import (
    OTHERS,
    SHAPES,
    TORCH,
    black_box,
    catalogue,
    close,
    literal,
    order_of,
    unrolled,
    waves,
)
from tests.problems import THETA, reference_loss

STEPS = [0, 1, 2, 7, 30]


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
