"""The weights of the ages, and the two ways of summing over them with few terms, against the plain sums."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import memoryless as ml
from memoryless.corrections import history
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import Momentum
from tests.problems import METHODS, variables

# Torch's NAdam schedule is what takes so long to settle.
LATE = 200_000
ANY = {f"{name}-{i}": v for name, make in METHODS.items() for i, v in enumerate(variables(make(0.01)))}
anyone = pytest.mark.parametrize("v", ANY.values(), ids=ANY)


def plain(v: Momentum, n: int) -> np.ndarray:
    """weight(n) beta^(k - lag) (first if k = n) by age k = 0..n."""
    ages = range(n + 1)
    return np.array([v.weight(n) * v.beta ** (k - v.lag) * (v.first if k == n else 1) if k >= v.lag else 0.0 for k in ages])


@anyone
@pytest.mark.parametrize("n", [0, 1, 5, 100])
def test_sums_over_the_ages(v, n):
    weights, ages = plain(v, n), np.arange(n + 1)
    np.testing.assert_allclose(kernel.kernel(v, n), weights, rtol=1e-14)
    assert kernel.total(v, n) == pytest.approx(weights.sum(), rel=1e-13)
    assert kernel.tail(v, np.array([0, n]), 0)[1] == pytest.approx(weights.sum(), rel=1e-13)
    assert kernel.age_moment(v, n) == pytest.approx(weights @ ages, rel=1e-13)
    for tails in (kernel.tails(weights), kernel.tail(v, n, ages)):
        np.testing.assert_allclose(tails, [weights[j:].sum() for j in ages], rtol=1e-13)


@anyone
def test_steady_state_sums_are_the_limits(v):
    assert kernel.total(v, None) == pytest.approx(kernel.total(v, LATE), rel=1e-12)
    assert kernel.age_moment(v, None) == pytest.approx(kernel.age_moment(v, LATE), rel=1e-12)


@anyone
@pytest.mark.parametrize("n", [0, 1, 3, 100, None])
def test_gauss_integrates_polynomials_over_the_ages(v, n):
    nodes, weights = kernel.gauss(v, n)
    values = kernel.kernel(v, LATE if n is None else n)
    ages = np.arange(len(values))
    assert len(nodes) <= kernel.node_count(v)
    for power in range(2 * kernel.node_count(v)):
        # Sixteen nodes integrate up to k^31, whose rounding grows with the power.
        assert weights @ nodes**power == pytest.approx(values @ ages.astype(float) ** power, rel=1e-9, abs=1e-300)


@given(st.lists(st.floats(0, 1) | st.just(0.0), min_size=1, max_size=60), st.integers(1, 6), st.sampled_from([1.0, -1.0]))
def test_gauss_of_any_weights_of_one_sign(values, count, sign):
    weights = sign * np.array(values)
    ages = np.arange(len(weights)) / len(weights)
    nodes, found = kernel.gauss_of(weights, count)
    assert len(nodes) <= count
    for power in range(2 * count):
        expected = weights @ ages**power
        assert found @ (nodes / len(weights)) ** power == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n", [10, 100, 10_000])
@pytest.mark.parametrize("name", METHODS)
def test_compress_keeps_sums_of_smooth_functions(name, n):
    memory = variables(METHODS[name](0.01))
    steps = np.arange(n + 1)
    c = np.stack([kernel.tail(v, steps, 0) for v in memory])
    weights = np.stack([kernel.tail(v, n, n - steps) for v in memory])
    index, fold = kernel.compress(c)

    def smooth(c: np.ndarray) -> np.ndarray:
        return c[0] / np.sqrt(1e-3 + (c[1:] ** 2).sum(axis=0))

    np.testing.assert_allclose(weights @ fold.T @ smooth(c[:, index]), weights @ smooth(c), rtol=1e-10)


def test_compress_spends_few_steps():
    memory = variables(ml.NAdam(betas=(0.9, 0.999)))
    index, _ = kernel.compress(np.stack([kernel.tail(v, np.arange(10_000), 0) for v in memory]))
    assert len(index) < 100


def test_window_leaves_out_nothing_that_counts():
    v = Momentum(0.99)
    assert kernel.window((v,), 10) == 11
    assert kernel.window((v, Momentum(1.0)), 10_000) == 10_001
    assert 0.99 ** kernel.window((v,), 10**6) / 0.01 < 1e-17


@pytest.mark.parametrize("v", [Momentum(1.0), Momentum(0.5, weight=lambda n: n + 1.0)], ids=["beta", "weight"])
@pytest.mark.parametrize("function", [kernel.total, kernel.age_moment, kernel.gauss])
def test_a_memory_that_never_fades_has_no_steady_state(function, v):
    with pytest.raises(ml.errors.NeverForgets, match="never fades"):
        function(v, None)
    assert np.isfinite(function(v, 5)).all()


@pytest.mark.parametrize("name", METHODS)
def test_elementwise_is_found(name: str):
    for part in METHODS[name](0.1).parts:
        assert part.method.elementwise == (name != "lion_k")


@pytest.mark.parametrize(
    "phi",
    [
        lambda f, m, theta: m[0] / (m[0].norm() + 1),  # a norm over all coordinates
        lambda f, m, theta: m[0] / len(m[0]),  # a mean
        lambda f, m, theta: m[0] * torch.arange(7.0),  # only for d = 7
        lambda f, m, theta: m[0].flip(0),
    ],
)
def test_not_elementwise_is_found(phi):
    assert not ml.Method(0.1, (ml.Momentum(0.9),), phi).elementwise


def test_memory_of_the_interpolation_grows_no_faster_than_the_window():
    """At n = 40,000 one square array over the steps would be 13 GB."""
    method = ml.NAdam(betas=(0.9, 0.999), momentum_decay=4e-3)
    tracemalloc.start()
    loss = ml.Loss.of(lambda theta: theta.square().sum() / 2, torch.ones(1))
    history.full_batch(method, Point(loss), 40_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6
