"""The three networks that are timed, float32, with inputs made of random numbers (time does not depend on them)."""

from collections.abc import Callable

import torch
from torch import nn

from memoryless.experiments.problems import GPT, Problem, cross_entropy


def mlp(batch: int = 512) -> Problem:
    """784-512-512-10 with GELU."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))
    return Problem(model, cross_entropy, [(torch.rand(batch, 784), torch.randint(10, (batch,)))])


def cnn(batch: int = 64) -> Problem:
    """Three convolutions of 32, 64 and 64 channels on 3 x 32 x 32 images, with ReLU."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 8 * 8, 10),
    )
    return Problem(model, cross_entropy, [(torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,)))])


def gpt(batch: int = 8) -> Problem:
    """Four layers, width 128, context 128."""
    torch.manual_seed(0)
    tokens = torch.randint(128, (2, batch, 128))
    return Problem(GPT(128, 128, 4, heads=4, context=128), cross_entropy, [(tokens[0], tokens[1])])


NETWORKS: dict[str, Callable[..., Problem]] = {"MLP": mlp, "CNN": cnn, "GPT": gpt}
