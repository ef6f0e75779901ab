"""What training wraps around a model or a step: the same is measured as without it, and the run stays the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import memoryless as ml
from tests.live.monitoring.monitored import LR, criterion


class Net(nn.Module):
    def __init__(self, again: bool):
        super().__init__()
        self.first, self.last, self.again = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2)), nn.Linear(8, 1), again

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.first, x, use_reentrant=False) if self.again else self.first(x)
        assert isinstance(h, Tensor)
        return self.last(h)


def in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def train(
    wrap: Callable[[nn.Module], nn.Module] = lambda net: net,
    again: bool = False,
    scaled: bool = False,
    watched: bool = True,
    **adam: Any,
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    torch.manual_seed(3)
    net = Net(again)
    model = wrap(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.8, 0.95), **adam)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10, growth_interval=5)
    generator = torch.Generator().manual_seed(1)
    options: dict[str, Any] = {"every": 12, "betas": None, "replays": 6, "data": [(torch.ones(2, 4), torch.ones(2, 1))]}
    watching = ml.Monitor(model, criterion, optimizer, **options).__enter__() if watched else None
    for n in range(25):
        batch = torch.randn(6, 4, generator=generator), torch.randn(6, 1, generator=generator)
        optimizer.zero_grad()
        skipped = n == 3
        loss = criterion(model, batch) * (float("inf") if scaled and skipped else 1.0)
        scaler.scale(loss).backward()
        if skipped and not scaled:
            continue
        scaler.step(optimizer)
        scaler.update()
        if watching:
            watching.step(batch)
    if watching:
        watching.close()
        assert watching.notes == []
        assert [stop["step"] for stop in watching.stops] == [12]
    return watching.stops if watching else [], [p.detach().clone() for p in net.parameters()]


AROUND: dict[str, dict[str, Any]] = {
    "compiled": {"wrap": lambda net: torch.compile(net, backend="eager")},
    "compiled in place": {"wrap": in_place},
    "checkpointed": {"again": True},
    "scaled": {"scaled": True},
    "scaled, fused": {"scaled": True, "fused": True},
}


@pytest.mark.parametrize("name", AROUND)
def test_it_is_measured_as_without(name: str):
    options = AROUND[name]
    stops, thetas = train(**options)
    _, plain = train(**options, watched=False)
    assert all(torch.equal(a, b) for a, b in zip(thetas, plain, strict=True))
    for stop, bare in zip(stops, train()[0], strict=True):
        (effect,), (expected,) = stop["effects"], bare["effects"]
        assert effect["slope"] == pytest.approx(expected["slope"], rel=1e-6)
        assert effect["change"] == pytest.approx(expected["change"], rel=1e-6)
        assert stop["gradient_differs"] < 1e-10
