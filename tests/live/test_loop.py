"""The audited run is the user's own, bit for bit: parameters, buffers, generators and the optimizer's state."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import memoryless as ml
from memoryless.live.run import Run

STEPS = 21
# A layer that detaches what it moves hides how that depends on theta: the guard rightly takes differences of gradients there.
pytestmark = [
    pytest.mark.filterwarnings("ignore::memoryless.errors.CurvatureWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning"),
]


class Unused(nn.Linear):
    """A head that nothing reads: torch's optimizers skip it, weight decay included."""

    def __init__(self, width: int):
        super().__init__(width, width)
        self.pooler = nn.Linear(3, 3)


class Centered(nn.Module):
    """Subtracts a moving average that its forward pass moves, the center of DINO (https://arxiv.org/abs/2104.14294)."""

    center: Tensor

    def __init__(self, width: int, *, anew: bool):
        super().__init__()
        self.anew = anew
        self.register_buffer("center", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            center = 0.9 * self.center + 0.1 * x.detach().mean(0)
            if self.anew:
                self.center = center
            else:
                self.center.copy_(center)
        return x - self.center * torch.arange(1.0, x.shape[1] + 1)


class Annealed(nn.Module):
    """A temperature that falls with every forward pass, counted in an attribute."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / (1 + 1 / self.calls)


class Codebook(nn.Module):
    """Nearest codes, straight through, moved as means of what they attract: VQ-VAE (https://arxiv.org/abs/1711.00937)."""

    codes: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("codes", torch.randn(5, width))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach(), self.codes).argmin(1)
        drawn = self.codes[nearest]
        self.codes.index_add_(0, nearest, 0.05 * (x.detach() - drawn))
        return x + 0.5 * (drawn - x).detach()


WIDTH = 8
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: nn.BatchNorm1d(WIDTH),
    "BatchNorm, cumulative": lambda: nn.BatchNorm1d(WIDTH, momentum=None),
    "InstanceNorm with statistics": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral norm, old": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "weight norm, old": lambda: weight_norm(nn.Linear(WIDTH, WIDTH)),
    "unused": lambda: Unused(WIDTH),
    "moving average": lambda: Centered(WIDTH, anew=False),
    "moving average, a new tensor each time": lambda: Centered(WIDTH, anew=True),
    "counter": Annealed,
    "codebook": lambda: Codebook(WIDTH),
}


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def data(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(10, 6, generator=generator), torch.randint(0, 3, (10,), generator=generator)) for _ in range(count)]


def network(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, WIDTH), layer, nn.Tanh(), nn.Linear(WIDTH, 3))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def plain_run(model: nn.Module, batches: list[Any], order: list[int] | None) -> torch.optim.Optimizer:
    """The loop as people write it; full batch by accumulation."""
    optimizer = adamw(model)
    for n in range(STEPS):
        optimizer.zero_grad()
        used = batches if order is None else [batches[order[n]]]
        for batch in used:
            (cross_entropy(model, batch) / len(used)).backward()
        optimizer.step()
    return optimizer


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """All that a run moves, as plain numbers."""
    tensors = [*model.state_dict().values(), *(v for p in model.parameters() for v in optimizer.state.get(p, {}).values())]
    counters = [getattr(module, "calls", None) for module in model.modules()]
    draws = float(torch.rand(())), float(np.random.rand()), random.random()
    return [[x.tolist() for x in tensors], counters, draws]


@pytest.mark.parametrize("batches", [1, 3], ids=["one batch", "accumulated"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_full_batch_run_is_the_users_own(layer, batches):
    same_run(network(LAYERS[layer]()), data(batches), None)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_mini_batch_run_is_the_users_own(layer):
    same_run(network(LAYERS[layer]()), data(4), [n % 4 for n in range(STEPS)])


def same_run(model: nn.Module, batches: list[Any], order: list[int] | None, **options: Any) -> Run:
    with torch.no_grad():  # weight norm computes its weight anew: no graph to copy
        model(batches[0][0])
    audited, plain = copy.deepcopy(model), model
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = everything(plain, plain_run(plain, batches, order))
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    optimizer = adamw(audited)
    loss = ml.Loss(audited, cross_entropy, batches, **options)
    found = ml.audit_run(optimizer, loss, order or STEPS, stops=[3, STEPS - 1], measures=["gradient_1_norm"], compare=())
    assert everything(audited, optimizer) == expected
    return found


def test_a_stop_sees_the_buffers_that_its_step_found():
    """Spectral norm reads what it moves: the measured loss at a stop is that of the training pass there."""
    model, batches = network(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))), data(1)
    twin, losses = copy.deepcopy(model), []
    optimizer = adamw(twin)
    for _ in range(8):
        optimizer.zero_grad()
        value = cross_entropy(twin, batches[0])
        value.backward()
        losses.append(value.item())
        optimizer.step()
    loss = ml.Loss(model, cross_entropy, batches)
    found = ml.audit_run(adamw(model), loss, 10, stops=[2, 7], measures=["gradient_norm_squared"], compare=(), betas=None)
    assert [stop.audit.loss for stop in found.stops] == [losses[2], losses[7]]
    notes = [" ".join(stop.audit.validity.notes) for stop in found.stops]
    assert all("each step moves buffers (1.parametrizations.weight.0._u, " in note for note in notes)
