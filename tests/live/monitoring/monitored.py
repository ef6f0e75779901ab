"""A training loop that is monitored or not, and the literal twin of a stop: every past gradient at the present theta."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import memoryless as ml
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point

LR = 1e-3
Batch = tuple[Tensor, Tensor]


def criterion(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def plain_model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def noisy_model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


@dataclass
class Training:
    """One run. `hyper` and `gradients` say what the literal twin needs to know of it."""

    make: Callable[[Any], Optimizer]
    model: Callable[[], nn.Module] = plain_model
    steps: int = 25
    micro: int = 1
    clip: float | None = None
    scale: float = 1.0
    schedule: Callable[[Optimizer], Any] | None = None
    autocast: bool = False
    clears_all: bool = False
    hyper: list[list[dict[str, Any]]] = field(default_factory=list)
    seen: list[tuple[list[Batch], list[Tensor]]] = field(default_factory=list)
    thetas: list[Tensor] = field(default_factory=list)

    def __post_init__(self):
        torch.manual_seed(3)
        self.net = self.model()
        self.optimizer = self.make(self.net.parameters())
        self.scheduler = self.schedule(self.optimizer) if self.schedule else None
        generator = torch.Generator().manual_seed(1)

        def draw():
            return (torch.randn(6, 4, generator=generator), torch.randn(6, 1, generator=generator))

        self.batches = [[draw() for _ in range(self.micro)] for _ in range(self.steps)]

    def loss(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return criterion(self.net, batch)

    def clipped(self, g: Tensor) -> Tensor:
        return g if self.clip is None else g * min(1.0, self.clip / float(g.norm()))

    def run(self, tell: Callable[[list[Batch]], Any] = lambda batches: None) -> "Training":
        parameters = list(self.net.parameters())
        for batches in self.batches:
            self.thetas.append(torch.cat([p.detach().reshape(-1) for p in parameters]))
            (self.net if self.clears_all else self.optimizer).zero_grad()
            states = []
            for batch in batches:
                states.append(torch.get_rng_state())
                (self.scale * self.loss(batch) / len(batches)).backward()
            for p in parameters:
                assert p.grad is not None
                p.grad /= self.scale
            if self.clip is not None:
                flat = torch.cat([p.grad.reshape(-1) for p in parameters])  # type: ignore[union-attr]
                factor = min(1.0, self.clip / float(flat.norm()))
                for p in parameters:
                    p.grad *= factor  # type: ignore[operator]
            self.hyper.append([{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups])
            self.seen.append((batches, states))
            self.optimizer.step()
            tell(batches)
            if self.scheduler is not None:
                self.scheduler.step()
        self.thetas.append(torch.cat([p.detach().reshape(-1) for p in parameters]))
        return self

    def literal(self, n: int, probe: Sequence[Batch]) -> dict[str, float]:
        """Slope and change of the gradient's 1-norm at step n, by stepping a new optimizer n + 1 times at the same theta."""
        theta, lr = self.thetas[n], next(float(g["lr"]) for g in self.hyper[n] if g["lr"])
        net = copy.deepcopy(self.net)
        parameters = list(net.parameters())
        sizes = [p.numel() for p in parameters]

        def put(values: Tensor, where: Sequence[Tensor]) -> None:
            for p, part in zip(where, values.split(sizes), strict=True):
                p.data = part.view_as(p).clone()

        twin = self.make(parameters)
        for s in range(n + 1):
            put(theta, parameters)
            net.zero_grad()
            batches, states = self.seen[s]
            for batch, state in zip(batches, states, strict=True):
                torch.set_rng_state(state)
                with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                    value = criterion(net, batch)
                (value / len(batches)).backward()
            flat = self.clipped(torch.cat([p.grad.reshape(-1) for p in parameters]))  # type: ignore[union-attr]
            for p, part in zip(parameters, flat.split(sizes), strict=True):
                p.grad = part.view_as(p).clone()
            for group, hyper in zip(twin.param_groups, self.hyper[s], strict=True):
                group.update(hyper)
            twin.step()
        F = (theta - torch.cat([p.detach().reshape(-1) for p in parameters])) / lr
        delta = (theta - self.thetas[n + 1]) / lr - F
        put(theta, parameters)
        loss = ml.Loss(net, criterion, probe, curvature="difference", noise="fixed")
        (value,) = evaluate(["gradient_1_norm"], Point(loss))
        after, without = (value.at(Point(loss, theta - lr * x)) for x in (F + delta, F))
        return {"slope": value.slope(delta, lr), "change": (after - without) / value.value}


def monitor(training: Training, **options: Any) -> ml.Monitor:
    defaults: dict[str, Any] = {"every": 12, "replays": 1000, "betas": None, "data": training.batches[0]}
    return ml.Monitor(training.net, criterion, training.optimizer, **defaults | options)
