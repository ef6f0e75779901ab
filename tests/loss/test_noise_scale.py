"""`gradient_noise` against a Gaussian model whose tr(Sigma) and |g|^2 are known, and against the formula of two batch sizes."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import memoryless as ml
from memoryless.loss.noise_scale import GradientNoise, gradient_noise
from tests.problems import tensor

DEVIATIONS = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
TRACE = float(DEVIATIONS.square().sum())
EQUAL, UNEQUAL = (4,) * 12, (1, 2, 4, 8) * 3
REPEATS = 300


def gaussian(seed: int, sizes: Sequence[int], signal: float) -> ml.Loss:
    """L_i(theta) = g_i . theta, with g_i the mean gradient of sizes[i] samples, each normal around `signal`."""
    generator = torch.Generator().manual_seed(seed)
    means = [signal + (torch.randn(b, len(DEVIATIONS), generator=generator) * DEVIATIONS).mean(0) for b in sizes]
    return ml.Loss.of([lambda theta, g=g: g @ theta for g in means], torch.zeros_like(DEVIATIONS))


@functools.cache
def repeats(sizes: Sequence[int], signal: float, count: int = REPEATS) -> list[GradientNoise]:
    return [gradient_noise(gaussian(seed, sizes, signal), sizes=sizes) for seed in range(count)]


MODELS = pytest.mark.parametrize(("sizes", "signal"), [(EQUAL, 1.0), (UNEQUAL, 0.5)], ids=["equal", "unequal"])


@MODELS
def test_unbiased(sizes, signal):
    found = repeats(sizes, signal)
    for values, truth in (
        ([noise.trace for noise in found], TRACE),
        ([noise.gradient_norm_squared for noise in found], signal**2 * len(DEVIATIONS)),
    ):
        error = float(np.std(values, ddof=1)) / len(values) ** 0.5
        assert abs(np.mean(values) - truth) < 3 * error
        assert error < 0.02 * truth


@MODELS
def test_intervals_are_calibrated(sizes, signal):
    truth = TRACE / (signal**2 * len(DEVIATIONS))
    intervals = [noise.interval for noise in repeats(sizes, signal)]
    inside = [interval is not None and interval[0] <= truth <= interval[1] for interval in intervals]
    assert 0.92 <= np.mean(inside) <= 0.98


def test_a_gradient_lost_in_noise_has_no_upper_end():
    found = repeats(EQUAL, 0.0, 40)
    assert all(noise.interval is not None and noise.interval[1] == math.inf for noise in found)
    assert min(noise.gradient_norm_squared for noise in found) < 0
    assert all(noise.scale == math.inf for noise in found if noise.gradient_norm_squared <= 0)
    (clear,) = repeats(EQUAL, 10.0, 1)
    assert clear.interval is not None
    assert 0 < clear.interval[0] < clear.scale < clear.interval[1] < 2 * clear.scale


def test_two_batch_sizes_are_the_batches_and_all_together():
    loss, size = gaussian(0, EQUAL, 1.0), EQUAL[0]
    gradients = torch.stack([loss.gradient(loss.theta, i) for i in range(len(loss))])
    small, big = gradients.square().sum(1).tolist(), float(gradients.mean(0).square().sum())
    one, other = gradient_noise(loss, sizes=size), GradientNoise.of_two_sizes(small, size, big, size * len(loss))
    assert other.trace == pytest.approx(one.trace, rel=1e-12)
    assert other.gradient_norm_squared == pytest.approx(one.gradient_norm_squared, rel=1e-12)
    assert (one.batches, one.batch_size) == (len(loss), size)


def test_two_batch_sizes_have_an_interval_from_pairs():
    """Many pairs of independent norms: the interval closes on the truth."""
    generator = torch.Generator().manual_seed(0)
    draws = [1 + torch.randn(4000, b, len(DEVIATIONS), generator=generator) * DEVIATIONS for b in (2, 16)]
    small, big = (x.mean(1).square().sum(1).numpy() for x in draws)
    found = GradientNoise.of_two_sizes(small[:1000], 2, big[:1000], 16)
    assert found.interval is not None
    assert found.interval[0] <= TRACE / len(DEVIATIONS) <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.3 * found.scale
    assert GradientNoise.of_two_sizes(small, 2, big[0], 16).interval is None


def test_unequal_sizes_are_the_formula_written_out():
    """tr(Sigma) = sum_i b_i |g_i - g_B|^2 / (batches - 1), |g|^2 = |g_B|^2 - tr(Sigma) / B, g_B weighted by size."""
    loss, b = gaussian(1, UNEQUAL, 1.0), tensor(UNEQUAL)
    g = torch.stack([loss.gradient(loss.theta, i) for i in range(len(loss))])
    mean = (b[:, None] * g).sum(0) / b.sum()
    trace = float((b * (g - mean).square().sum(1)).sum()) / (len(b) - 1)
    found = gradient_noise(loss, sizes=UNEQUAL)
    assert found.trace == pytest.approx(trace, rel=1e-12)
    assert found.gradient_norm_squared == pytest.approx(float(mean.square().sum() - trace / b.sum()), rel=1e-12)


def test_sizes_are_those_of_the_data():
    model = torch.nn.Linear(3, 1, bias=False)
    data = [torch.randn(b, 3) for b in (2, 5, 3)]
    loss = ml.Loss(model, lambda model, batch: model(batch).square().mean(), data)
    seen: list[tuple[int, int]] = []
    found, given = gradient_noise(loss, on_step=lambda *told: seen.append(told)), gradient_noise(loss, sizes=[2, 5, 3])
    assert found == given
    assert found.batch_size == pytest.approx(10 / 3)
    assert seen == [(k, 6) for k in range(1, 7)]


LOSS = gaussian(0, [1, 1, 1], 1.0)
BAD = {
    "one_batch": (lambda: gradient_noise(gaussian(0, [4], 1.0), sizes=4), "at least two batches, got 1"),
    "unknown": (lambda: gradient_noise(LOSS), "do not tell how many samples they hold; give sizes"),
    "count": (lambda: gradient_noise(LOSS, sizes=[1, 2]), r"one for each of the 3 batches, got \[1, 2\]"),
    "zero": (lambda: gradient_noise(LOSS, sizes=0), r"sizes must be positive, .* got \[0, 0, 0\]"),
    "same_size": (lambda: GradientNoise.of_two_sizes(1.0, 4, 2.0, 4), "smaller first, got 4 and 4"),
    "order": (lambda: GradientNoise.of_two_sizes(1.0, 8, 2.0, 4), "smaller first, got 8 and 4"),
    "empty": (lambda: GradientNoise.of_two_sizes([], 4, 2.0, 8), "at least one of each batch size"),
    "nan": (lambda: GradientNoise.of_two_sizes([1.0, math.nan], 4, 2.0, 8), "expected finite squared norms"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
