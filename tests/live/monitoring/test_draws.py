"""Drawn ages and sampled coordinates stand for all: sums over them are those over all in the mean, with the spread they say."""

import numpy as np
import pytest
import torch

import memoryless as ml
from memoryless.audits.shadow import Shadow
from memoryless.live.monitoring.draws import draw, inclusion, reach, sizes
from memoryless.live.monitoring.frozen import nonnegative, successive
from memoryless.live.monitoring.sample import Sample
from tests.problems import METHODS, variables

AGES = np.arange(1, 301)
Q = 0.97**AGES + 0.3 * 0.8**AGES


@pytest.mark.parametrize("count", [1, 5, 60, 299, 300, 1000])
def test_chances_are_capped_proportional_and_sum_to_the_count(count: int):
    pi = inclusion(Q, count)
    assert pi.sum() == pytest.approx(min(count, 300), rel=1e-12)
    assert (pi > 0).all()
    assert pi.max() <= 1 + 1e-12
    free = pi < 1 - 1e-9
    assert np.ptp(pi[free] / Q[free]) < 1e-12 if free.any() else True


def test_drawn_ages_are_unbiased_and_spread_as_they_say():
    x = np.sin(AGES / 60) + 0.2 * np.cos(AGES / 7)
    exact, found = float(Q @ x), []
    for seed in range(400):
        drawn = draw(Q, 20, np.random.default_rng(seed))
        assert drawn.ages[0] == 0
        k = drawn.ages[1:] - 1
        terms = drawn.weights[1:] * Q[k] * x[k]
        found.append((terms.sum(), successive(terms[~drawn.exact[1:], None])[0]))
    totals, variances = np.array(found).T
    spread = totals.std(ddof=1)
    assert abs(totals.mean() - exact) < 4 * spread / 20
    # Successive differences count half of what lies between two neighbours twice: they are on the safe side.
    assert spread**2 < variances.mean() < 4 * spread**2
    independent = [np.random.default_rng(s).choice(300, 20, p=Q / Q.sum()) for s in range(400)]
    assert spread < 0.6 * np.std([Q.sum() * x[k].mean() for k in independent])


def test_every_memory_is_asked_for_within_its_reach():
    own, others = ml.Adam(betas=(0.9, 0.99)).variables, ml.Adam(betas=(0.5, 0.95)).variables
    q = sizes(own, others, 5000, 10_000)
    assert len(q) == 5000
    assert np.flatnonzero(q).max() < reach((*own, *others), 10_000) < 1000
    drawn = draw(q, 8, np.random.default_rng(0))
    assert len(drawn.ages) == 9
    assert reach(ml.HeavyBall(momentum=0.0).variables, 10) == 1


def test_second_moments_are_known_by_their_sign():
    signs = {name: [nonnegative(v) for v in variables(METHODS[name](0.1))] for name in ("adamw", "custom", "lion")}
    assert signs == {"adamw": [False, True], "custom": [False, True, False], "lion": [False, False]}


def test_a_sample_stands_for_all_coordinates():
    sizes_ = [300, 7, 1000]
    y = torch.randn(1307) + torch.repeat_interleave(torch.tensor([0.0, 5.0, -3.0]), torch.tensor(sizes_))
    totals, variances = [], []
    for seed in range(200):
        sample = Sample(sizes_, 130, seed, torch.device("cpu"))
        assert torch.equal(sample.of(y), sample.of_tensors(y.split(sizes_)))
        totals.append(sample.total(sample.of(y)))
        variances.append(sample.variance(sample.of(y)))
    spread = np.std(totals)
    assert abs(np.mean(totals) - float(y.sum())) < 4 * spread / 200**0.5
    assert np.mean(variances) == pytest.approx(spread**2, rel=0.3)
    sample = Sample(sizes_, 130, 0, torch.device("cpu"))
    whole = Sample(sizes_, 1307, 0, torch.device("cpu"))
    assert whole.total(whole.of(y)) == pytest.approx(float(y.sum()))
    assert whole.variance(y) == 0.0
    assert len(sample) == int(sample.weights.numel())
    among = sample.positions(slice(300, 307), 1307)
    assert isinstance(among, torch.Tensor)
    assert sample.index is not None
    assert sample.index[among].tolist() == [i for i in sample.index.tolist() if 300 <= i < 307]


@pytest.mark.parametrize("name", ["adamw", "heavy_ball_dampened", "adam_coupled_decay", "lion"])
def test_a_shadow_fed_at_once_is_one_fed_step_by_step(name: str):
    method = METHODS[name](0.1)
    gradients, thetas = torch.randn(2, 11, 6)
    one, other = Shadow([method], thetas[0]), Shadow([method], thetas[0])
    for g, theta in zip(gradients, thetas, strict=True):
        one.update(g, theta)
    other.extend(gradients[:4], thetas[:4])
    other.extend(gradients[4:], thetas[4:])
    assert one.n == other.n == 11
    for v in variables(method):
        assert torch.allclose(one.memory(v, gradients[0], thetas[0]), other.memory(v, gradients[0], thetas[0]), rtol=1e-12)
