"""Losses that draw random numbers: with `noise=` a function of theta, averaged over seeds, and replayed along a run."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import memoryless as ml
from tests.problems import relative_error

functional = nn.functional


class Noise(nn.Module):
    """A layer x -> f(x)."""

    def __init__(self, f: Callable[[Tensor], Tensor]):
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def drop_path(x: Tensor) -> Tensor:
    """Whole samples dropped from a residual branch: https://arxiv.org/abs/1603.09382."""
    return x + x.tanh() * x.new_empty(len(x), 1).bernoulli_(0.8) / 0.8


def reparametrized(x: Tensor) -> Tensor:
    """The sample of a variational autoencoder: https://arxiv.org/abs/1312.6114."""
    mean, log_variance = x.chunk(2, -1)
    return torch.cat([mean + torch.randn_like(mean) * (log_variance / 2).exp(), mean], -1)


def diffused(x: Tensor) -> Tensor:
    """A random time for each sample and as much noise: https://arxiv.org/abs/2006.11239."""
    t = torch.rand(len(x), 1)
    return (1 - t).sqrt() * x + t.sqrt() * torch.randn_like(x)


def numpy_noise(x: Tensor) -> Tensor:
    return x + 0.1 * torch.from_numpy(np.random.standard_normal(x.shape))


def layer_drop(x: Tensor) -> Tensor:
    """A layer left out whole, as wav2vec 2.0 draws it, from NumPy: https://arxiv.org/abs/1909.11556."""
    return x if np.random.random() < 0.5 else x.tanh()


def mixup(x: Tensor) -> Tensor:
    """Mixed with a permutation of itself: https://arxiv.org/abs/1710.09412."""
    share = random.betavariate(1, 1)
    return share * x + (1 - share) * x[torch.randperm(len(x))]


NOISES: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.3),
    "alpha dropout": lambda: nn.AlphaDropout(0.2),
    "feature dropout": lambda: nn.Sequential(nn.Unflatten(1, (4, 2)), nn.Dropout1d(0.3), nn.Flatten()),
    "randomized leaky ReLU": nn.RReLU,
    "attention dropout": lambda: Noise(
        lambda x: functional.scaled_dot_product_attention(*3 * (x.view(-1, 4, 2),), dropout_p=0.3).flatten(1)
    ),
    "Gumbel softmax": lambda: Noise(lambda x: functional.gumbel_softmax(x, tau=1.0)),
    "drop path": lambda: Noise(drop_path),
    "VAE": lambda: Noise(reparametrized),
    "diffusion": lambda: Noise(diffused),
    "NumPy": lambda: Noise(numpy_noise),
    "layer drop": lambda: Noise(layer_drop),
    "mixup": lambda: Noise(mixup),
}
BATCHES = 3


def mse(model: nn.Module, batch: Any) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def problem(noise: nn.Module) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), noise, nn.Tanh(), nn.Linear(8, 2))
    return model, [(torch.randn(6, 4), torch.randn(6, 2)) for _ in range(BATCHES)]


def seeded(model: nn.Module, batch: Any, seed: int) -> Tensor:
    """The value of a batch, its gradient left in the model."""
    for module in (random, np.random):
        module.seed(seed)
    torch.manual_seed(seed)
    value = mse(model, batch)
    value.backward()
    return value.detach()


@pytest.mark.parametrize("seeds", ["fixed", 4])
@pytest.mark.parametrize("name", NOISES)
def test_noise_is_part_of_the_batch(name, seeds):
    model, batches = problem(NOISES[name]())
    loss = ml.Loss(model, mse, batches, noise=seeds)
    assert len(loss) == BATCHES * (1 if seeds == "fixed" else seeds)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    value, gradient, theta = loss(loss.theta).item(), loss.gradient(loss.theta), loss.theta
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(1))
    product, step = loss.curvature(theta, v), 1e-5
    assert loss.uses_differences is False
    by_difference = (loss.gradient(theta + step * v) - loss.gradient(theta - step * v)) / (2 * step)
    assert relative_error(product, by_difference) < 1e-7
    assert (random.getstate(), str(np.random.get_state())) == before[1:]
    assert torch.equal(torch.get_rng_state(), before[0])
    values = [seeded(model, batches[i % BATCHES], i) for i in range(len(loss))]
    assert value == pytest.approx(torch.stack(values).mean().item(), rel=1e-14)
    taken = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]) / len(loss)
    assert relative_error(gradient, taken) < 1e-13


@pytest.mark.parametrize("name", NOISES)
def test_noise_that_nobody_spoke_of_is_refused_with_the_way_out(name):
    model, batches = problem(NOISES[name]())
    loss = ml.Loss(model, mse, batches)
    for _ in range(2):  # what is refused once is refused again
        with pytest.raises(ml.errors.BadInput, match=r"not a function of theta alone.*Loss\(\.\.\., noise='fixed'\).*noise=8"):
            loss.curvature(loss.theta, loss.theta)


def test_a_generator_of_its_own_cannot_be_seeded():
    own = torch.Generator().manual_seed(3)
    model, batches = problem(Noise(lambda x: x + torch.randn(x.shape, generator=own)))
    loss = ml.Loss(model, mse, batches, noise="fixed")
    with pytest.raises(ml.errors.BadInput, match="draws from a generator of its own cannot be seeded"):
        loss.curvature(loss.theta, loss.theta)


@pytest.mark.parametrize("noise", [0, -1, True, "free", 2.0])
def test_bad_noise(noise):
    model, batches = problem(nn.Dropout())
    with pytest.raises(ml.errors.BadInput, match="noise must be None, 'fixed' or a number of seeds"):
        ml.Loss(model, mse, batches, noise=noise)


LR, STEPS, BETAS = 1e-2, 12, (0.8, 0.95)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS)


@pytest.mark.parametrize("lags", [None, 40])
@pytest.mark.parametrize("name", ["dropout", "diffusion", "layer drop"])
def test_a_run_draws_its_own_noise_and_the_replay_draws_it_again(name, lags):
    order = [n % BATCHES for n in range(STEPS)]
    model, batches = problem(NOISES[name]())
    start = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(7)
    np.random.seed(7)
    # The loop as people write it, with what its last step needs to be taken again.
    optimizer, states, thetas = adamw(model), [], []
    for i in order:
        states.append((torch.get_rng_state(), np.random.get_state()))
        thetas.append([p.detach().clone() for p in model.parameters()])
        optimizer.zero_grad()
        mse(model, batches[i]).backward()
        optimizer.step()
    end, drawn = [p.detach().clone() for p in model.parameters()], torch.rand(3)

    def put(values: list[Tensor]) -> None:
        with torch.no_grad():
            for p, x in zip(model.parameters(), values, strict=True):
                p.copy_(x)

    # F: a new optimizer that sees every step's batch and noise at the last theta.
    frozen = adamw(model)
    for i, (state, legacy) in zip(order, states, strict=True):
        torch.set_rng_state(state)
        np.random.set_state(legacy)
        put(thetas[-1])
        frozen.zero_grad()
        mse(model, batches[i]).backward()
        frozen.step()
    replayed = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    put(start)
    torch.manual_seed(7)
    np.random.seed(7)
    loss = ml.Loss(model, mse, batches, noise=2)
    options: dict[str, Any] = {
        "stops": [STEPS - 1],
        "measures": ["gradient_1_norm"],
        "compare": (),
        "betas": None,
        "lags": lags,
    }
    found = ml.audit_run(adamw(model), loss, order, **options).stops[0].audit
    assert all(torch.equal(p, x) for p, x in zip(model.parameters(), end, strict=True))
    assert torch.equal(torch.rand(3), drawn)
    assert found.measured is not None
    expected = (replayed - torch.cat([x.reshape(-1) for x in end])) / LR
    # Exact to the rounding of theta / lr; where there are lags for all steps, too.
    assert relative_error(found.measured, expected) < 1e-9
    assert "L draws random numbers: it is that of 2 seeds for each batch" in found.validity.notes


def test_full_batch_says_that_past_noise_counts_as_memory():
    model, batches = problem(nn.Dropout(0.3))
    run = ml.audit_run(adamw(model), ml.Loss(model, mse, batches, noise="fixed"), 4, stops=[4], compare=(), betas=None)
    assert any("each past step drew its own noise" in note for note in run.stops[0].audit.validity.notes)


def test_a_black_box_cannot_replay_noise():
    model, batches = problem(nn.Dropout(0.3))
    with pytest.raises(ml.errors.BadInput, match="noise of past steps cannot be replayed"):
        ml.audit_run(torch.optim.Adamax(model.parameters()), ml.Loss(model, mse, batches, noise="fixed"), [0, 1, 2])
