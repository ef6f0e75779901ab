"""Small real problems that come with the installation: images of digits and prose, and networks for them.

The images are scikit-learn's copy of the UCI optical digits (1797 images, 8 x 8,
https://archive.ics.uci.edu/dataset/80); the prose is the documentation that every Python carries (`pydoc_data.topics`).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memoryless.isolation import isolated
from memoryless.loss.batches import cut
from memoryless.loss.loss import Loss


class Problem(NamedTuple):
    """What `setup()` of a script returns, but for the optimizer."""

    model: nn.Module
    criterion: Any
    batches: list[tuple[Tensor, Tensor]]

    @property
    def loss(self) -> Loss:
        """The loss of the problem."""
        return Loss(self.model, self.criterion, self.batches)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy, in nats, of (inputs, class indices); logits have their classes last."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def digits(count: int = 1000, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The first images of digits, scaled to [0, 1]: (count, 64), and their classes, (count,)."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return torch.tensor(images[:count] / 16, dtype=dtype), torch.tensor(classes[:count])


def digits_mlp(seed: int = 0, width: int = 64, count: int = 1000, dtype: torch.dtype = torch.float64) -> Problem:
    """A GELU network 64-width-10 on the digits, full batch."""
    with isolated(torch.device("cpu"), seed):
        model = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, 10)).to(dtype)
    return Problem(model, cross_entropy, [digits(count, dtype)])


def digits_batches(seed: int = 0, size: int = 32, width: int = 32, dtype: torch.dtype = torch.float64) -> Problem:
    """A GELU network 64-width-10 on all the digits, cut into batches of one size; a remainder is left out."""
    model, criterion, batches = digits_mlp(seed, width, 1797, dtype)
    return Problem(model, criterion, cut(batches[0], size))


def digits_cnn(seed: int = 0, count: int = 500, dtype: torch.dtype = torch.float64) -> Problem:
    """A convolutional GELU network, two layers of 8 and 16 channels, on the digits, full batch."""
    with isolated(torch.device("cpu"), seed):
        model = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, 10),
        ).to(dtype)
    return Problem(model, cross_entropy, [digits(count, dtype)])


def text_gpt(
    seed: int = 0,
    layers: int = 2,
    width: int = 32,
    context: int = 32,
    count: int = 64,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """A GPT on characters of Python's own documentation: `count` windows of `context` characters, full batch."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics)).encode("ascii", "replace")
    tokens = torch.tensor(list(text[: count * context + 1])).clamp_max(127)
    inputs, targets = tokens[:-1].view(count, context), tokens[1:].view(count, context)
    with isolated(torch.device("cpu"), seed):
        model = GPT(128, width, layers, heads=4, context=context).to(dtype)
    return Problem(model, cross_entropy, [(inputs, targets)])


class GPT(nn.Module):
    """A decoder-only transformer with pre-normalization, learned positions and GELU."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, context: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, context) to logits (n, context, vocabulary)."""
        x = self.embedding(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each added to its input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, context, width) to the same."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))
