"""A dialled run along mini-batches under audit: (1 + s) times memory's effect, and the run that it would have been."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

import memoryless as ml
from memoryless.experiments.problems import cross_entropy, digits_batches
from memoryless.flat import flat
from memoryless.live.dial import Dial
from tests.live.monitoring.monitored import criterion, noisy_model

BETAS, EPS = (0.9, 0.999), 1e-8


def order(count: int, steps: int) -> list[int]:
    generator = np.random.default_rng(3)
    return np.concatenate([generator.permutation(count) for _ in range(steps // count + 1)])[:steps].tolist()


def dialled(s: float, lr: float) -> tuple[ml.Loss, Dial]:
    made = digits_batches(3)
    optimizer = Adam(made.model.parameters(), lr, BETAS, EPS)
    return made.loss, ml.dial(optimizer, s, model=made.model, criterion=cross_entropy)


@pytest.mark.parametrize("s", [-1.0, -0.5, 1.0])
def test_audit_run_finds_the_effect_that_the_dial_says(s: float):
    """Batches of 32: to 15 % of the undialled optimizer's effect, which a loop of its own finds at the same states."""
    lr, stops = 3e-4, [80, 120, 160, 199]
    loss, dial = dialled(s, lr)
    batches = order(len(loss), 200)
    run = ml.audit_run(dial, loss, batches, stops=stops, betas=None, compare=[], measures=["gradient_1_norm"])
    end = loss.theta
    F = {stop.audit.step: stop.audit.F for stop in run.stops}

    loss, dial = dialled(s, lr)
    undialled, happened = [], []
    for n, batch in enumerate(batches):
        loss.backward(batch)
        theta = loss.theta
        dial.step(batch=next(data for _, data in loss.batches.select(batch)))
        if n in F:
            m, v = (flat(state[key] for state in dial.state.values()) for key in ("exp_avg", "exp_avg_sq"))
            u = m / (1 - BETAS[0] ** (n + 1)) / ((v / (1 - BETAS[1] ** (n + 1))).sqrt() + EPS)
            norms = [float(loss.gradient(x).abs().sum()) for x in (theta, theta - lr * F[n], theta - lr * u, loss.theta)]
            undialled.append((norms[2] - norms[1]) / norms[0])
            happened.append((norms[3] - norms[1]) / norms[0])
    assert torch.equal(end, loss.theta)
    assert dial.off is None
    measured = np.array([stop.audit.effects[0].measured for stop in run.stops])
    # Differences of float32 norms, each summed in two ways: 1e-7 of a norm is 1e-4 of a change of 1e-3.
    np.testing.assert_allclose(measured, happened, rtol=1e-3, atol=1e-5)
    assert np.linalg.norm(measured - (1 + s) * np.array(undialled)) < 0.15 * np.linalg.norm(undialled)


def test_an_audit_leaves_a_dialled_run_with_noise_as_it_is():
    """Dropout and batch normalization: the audit's own passes are none of the loop's, whose noise the dial draws again."""
    ends = []
    for stops in ([3, 7, 14], [14], None):
        torch.manual_seed(0)
        model = noisy_model()
        x, y = torch.randn(8, 6, 4), torch.randn(8, 6, 1)
        loss = ml.Loss(model, criterion, list(zip(x, y, strict=True)), noise="fixed")
        dial = ml.dial(Adam(model.parameters(), 1e-2), -1.0, model=model, criterion=criterion)
        if stops:
            ml.audit_run(dial, loss, order(8, 15), stops=stops, betas=None, compare=[], measures=["gradient_1_norm"])
        for batch in [] if stops else order(8, 15):
            dial.zero_grad()
            criterion(model, (x[batch], y[batch])).backward()
            dial.step(batch=(x[batch], y[batch]))
        assert dial.off is None
        ends.append(torch.cat([loss.theta, *(b.reshape(-1).float() for b in model.buffers())]))
    assert torch.equal(ends[0], ends[2])
    assert torch.equal(ends[1], ends[2])


def test_a_dial_along_mini_batches_is_refused_a_full_batch_run():
    model: Any = nn.Linear(2, 1)
    dial = ml.dial(SGD(model.parameters(), 0.1, 0.9), model=model, criterion=criterion)
    loss = ml.Loss(model, criterion, [(torch.ones(2, 2), torch.ones(2, 1))])
    with pytest.raises(ml.errors.BadInput, match="along mini-batches: give steps="):
        ml.audit_run(dial, loss, 3)
    with pytest.raises(ml.errors.BadInput, match="this dial's step wants its batch: audit a run"):
        ml.audit(dial, loss)
