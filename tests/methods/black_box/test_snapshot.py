"""The memory of a live optimizer as a value: steps are pure, any state can be stepped again, nothing else is touched."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch.optim import (
    SGD,
)

from memoryless.methods.black_box.torch_method import TorchMethod
from tests.methods.black_box.subjects import LR, OTHERS, SHAPES, black_box, catalogue, close, steady, streamed, unrolled
from tests.problems import BATCHES, THETA, reference_loss


@pytest.mark.parametrize("name", ["adamw", "rmsprop_centered"])
@pytest.mark.parametrize("foreach", [False, True])
def test_update_is_pure_and_the_catalogue(name, foreach):
    method, twin = black_box(name, foreach=foreach), catalogue(name)
    theta, rng = THETA.clone(), torch.get_rng_state()
    state, expected = method.init(theta), twin.init(theta)
    for wave in itertools.islice(itertools.cycle(BATCHES), 10):
        g = wave.gradient(theta)
        given = g.clone(), theta.clone(), [copy.deepcopy(v) for _, v in state.leaves()]
        after, F = method.update(state, g, theta)
        assert torch.equal(g, given[0])
        assert torch.equal(theta, given[1])
        assert all(a == b if isinstance(a, float) else torch.equal(torch.as_tensor(a), torch.as_tensor(b))
                   for (_, a), b in zip(state.leaves(), given[2], strict=True))  # fmt: skip
        assert torch.equal(method.update(state, g, theta)[1], F)
        expected, same = twin.update(expected, g, theta)
        close(F, same, 1e-11)
        state, theta = after, theta - method.lr * F
    assert state.n == 10
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("name", OTHERS)
def test_any_state_can_be_stepped_again(name):
    method = TorchMethod(OTHERS[name], SHAPES)
    states, updates = [method.init(THETA)], []
    gradients = [wave.gradient(THETA) for wave in [*BATCHES, *BATCHES]]
    for g in gradients:
        state, F = method.update(states[-1], g, THETA)
        states.append(state)
        updates.append(F)
    close(torch.stack(updates), streamed(OTHERS[name], gradients, [THETA] * 8, method.lr), 1e-12)
    for n in (5, 0, 3):
        assert torch.equal(method.update(states[n], gradients[n], THETA)[1], updates[n])


class Drawing(SGD):
    """Draws, and makes nothing of it."""

    def step(self, closure=None):
        torch.rand(1)
        np.random.rand()
        super().step()


@pytest.mark.parametrize(
    "use",
    [
        lambda method: method.update(method.init(THETA), THETA, THETA),
        lambda method: unrolled(method, reference_loss(), THETA, 3),
        lambda method: steady(method, reference_loss(), THETA),
        lambda method: method.at_lr(0.1),
    ],
    ids=["update", "unrolled", "steady", "at_lr"],
)
def test_randomness_is_left_alone(use):
    method = TorchMethod(lambda params: Drawing(params, lr=LR, momentum=0.9), SHAPES)
    before = torch.get_rng_state(), np.random.get_state(legacy=False)
    use(method)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])
