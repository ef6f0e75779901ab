"""A loop with an Accelerator that accumulates and clips: monitored bit for bit the plain one."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.integrations.packages import need
from tests.live.monitoring.monitored import criterion, plain_model

need("accelerate")


def train(every: int | None) -> tuple[list[torch.Tensor], list[dict], list[str]]:
    from accelerate import Accelerator  # pyright: ignore[reportMissingImports]

    from memoryless.integrations.accelerate import monitor
    from memoryless.integrations.transformers import clip_by_norm

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = plain_model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.8, 0.95))
    data = DataLoader(TensorDataset(torch.randn(104, 4), torch.randn(104, 1)), batch_size=4, shuffle=True)
    model, optimizer, loader = accelerator.prepare(net, optimizer, data)
    watching = None
    if every:
        options = {"every": every, "betas": None, "replays": 100, "gradient": clip_by_norm(0.5)}
        watching = monitor(accelerator, model, criterion, optimizer, **options).__enter__()
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(criterion(model, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        if watching:
            watching.step(batch)
    if watching:
        watching.close()
    end = [p.detach().clone() for p in nn.Module.parameters(net)]
    return end, watching.stops if watching else [], watching.notes if watching else []


def test_loop():
    watched, stops, notes = train(6)
    plain, _, _ = train(None)
    assert notes == []
    assert [stop["step"] for stop in stops] == [6, 12]
    assert all(stop["gradient_differs"] < 1e-9 for stop in stops)
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
