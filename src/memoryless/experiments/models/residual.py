"""Small fully connected networks, one of the design of residual networks: branches normalized and added to a stream."""

from itertools import pairwise

from torch import Tensor, nn


class Branch(nn.Module):
    """x + W2 GELU(W1 LN x)."""

    def __init__(self, width: int):
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) to the same."""
        return x + self.branch(x)


def residual_mlp(inputs: int = 64, width: int = 64, branches: int = 3, classes: int = 10) -> nn.Sequential:
    """A linear layer, branches, a LayerNorm and a linear layer: (n, inputs) to (n, classes).

    Args:
        inputs: numbers of a sample.
        width: of the stream.
        branches: their number.
        classes: outputs.
    """
    stream = [Branch(width) for _ in range(branches)]
    return nn.Sequential(nn.Linear(inputs, width), *stream, nn.LayerNorm(width), nn.Linear(width, classes))


def plain_mlp(inputs: int = 64, width: int = 64, hidden: int = 3, classes: int = 10) -> nn.Sequential:
    """Hidden layers with GELU and a linear one: (n, inputs) to (n, classes).

    Args:
        inputs: numbers of a sample.
        width: of each hidden layer.
        hidden: their number.
        classes: outputs.
    """
    widths = [inputs, *[width] * hidden]
    layers = [f for a, b in pairwise(widths) for f in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(width, classes))
