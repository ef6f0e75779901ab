"""Transformer-XL (Dai et al. 2019, https://arxiv.org/abs/1901.02860): attention by relative position, over segments remembered.

    A_ij = (q_i + u) . k_j + (q_i + v) . W_r r_(i-j),    j <= i

with sinusoidal r and u, v shared by all layers. A segment attends to itself and to each layer's inputs at the segments before,
which are kept without their gradients; since positions are relative, two segments in turn give what the two in one go give.
"""

import torch
from torch import Tensor, nn

Memory = list[Tensor]
"""The inputs of each layer at the last positions before the present segment, (n, kept, width)."""


class TransformerXL(nn.Module):
    """A language model. The paper's for WikiText-2 has 6 layers, width 512, 8 heads of 64, inner width 2048.

    Args:
        vocabulary: of tokens.
        width: of the stream.
        layers: of attention and network.
        heads: each of width / heads.
        inner: of the network between; default 4 width.
        dropout: on embeddings, branches and outputs.
        kept: positions that `forward` remembers; 0 for none.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 512,
        layers: int = 6,
        heads: int = 8,
        inner: int | None = None,
        dropout: float = 0.0,
        kept: int = 0,
    ):
        super().__init__()
        self.width, self.kept = width, kept
        self.embedding = nn.Embedding(vocabulary, width)
        self.u, self.v = (nn.Parameter(torch.zeros(heads, 1, width // heads)) for _ in range(2))
        self.blocks = nn.ModuleList(Block(width, heads, inner or 4 * width, dropout) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocabulary)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to logits (n, length, vocabulary), nothing before them."""
        return self.remember(tokens, None)[0]

    def remember(self, tokens: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """A segment after others.

        Args:
            tokens: (n, length).
            memory: from the segment before; None for the first.

        Returns:
            Logits (n, length, vocabulary), and the memory for the segment after.
        """
        x = self.dropout(self.embedding(tokens) * self.width**0.5)
        past = [x[:, :0]] * len(self.blocks) if memory is None else memory
        r = self.dropout(_sinusoids(past[0].shape[1] + x.shape[1], self.width, x))
        after = []
        for block, before in zip(self.blocks, past, strict=True):
            seen = torch.cat([before, x], 1)
            after.append(seen[:, max(0, seen.shape[1] - self.kept) :].detach())
            x = block(x, seen, r, self.u, self.v)
        return self.head(self.dropout(x)), after


class Block(nn.Module):
    """Relative attention and a two-layer network, each added to its input and normalized."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.value, self.r, self.out = (nn.Linear(width, width, bias=False) for _ in range(5))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, seen: Tensor, r: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """(n, length, width), what it may attend to (n, total, width), positions (total, width), biases."""
        q, k, value = (self._split(f(y)) for f, y in ((self.q, x), (self.k, seen), (self.value, seen)))
        length, total = x.shape[1], seen.shape[1]
        content = (q + u) @ k.transpose(-1, -2)
        position = _shift((q + v) @ self._split(self.r(r)[None]).transpose(-1, -2))
        hidden = torch.ones(length, total, dtype=torch.bool, device=x.device).triu(total - length + 1)
        scores = (content + position).mul(q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf)
        attended = scores.softmax(-1) @ value
        x = self.norm1(x + self.dropout(self.out(attended.transpose(1, 2).flatten(2))))
        return self.norm2(x + self.mlp(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _sinusoids(total: int, width: int, like: Tensor) -> Tensor:
    """Row p is the encoding of the distance total - 1 - p, (total, width)."""
    distance = torch.arange(total - 1, -1, -1, device=like.device, dtype=like.dtype)
    angles = distance[:, None] * 1e4 ** -(torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
    return torch.cat([angles.sin(), angles.cos()], 1)


def _shift(scores: Tensor) -> Tensor:
    """From columns that stand for the distances total - 1, ..., 0 to columns that stand for positions 0, ..., total - 1.

    Row i of `length` stands at position total - length + i, so that position j lies at distance total - length + i - j and its
    score in column j + length - 1 - i: each row moves left by its number from the end. Padded by a column in front and read in
    rows of the old length, each row has moved by one more than the row below; what comes in from the right lies after i.
    """
    *batch, length, total = scores.shape
    padded = nn.functional.pad(scores, (1, 0)).reshape(*batch, total + 1, length)
    return padded[..., 1:, :].reshape(*batch, length, total)
