"""The paper's networks: sizes, shapes, recurrence, causality, one step; and the loading of their data."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from memoryless.experiments.models.convnet import convnet
from memoryless.experiments.models.resnet import resnet
from memoryless.experiments.models.transformer_xl import TransformerXL


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_sizes():
    """ResNet-50 has 25,557,032 parameters on ImageNet: 7 x 7 at the start, 1000 classes. Transformer-XL's by its formula."""
    imagenet = 25_557_032
    assert size(resnet()) == imagenet - 64 * 3 * (7 * 7 - 3 * 3) - 2049 * (1000 - 10)
    with torch.device("meta"):
        model = TransformerXL(33_278, 512, 6, 8, 2048)
    layer = 5 * 512**2 + 2 * 2 * 512 + (512 * 2048 + 2048) + (2048 * 512 + 512)
    assert size(model) == 6 * layer + 2 * 512 + 2 * 33_278 * 512 + 33_278
    assert size(convnet()) == (27 * 32 + 32) + (9 * 32 * 32 + 32) + (32 * 64 * 10 + 10)


def test_stages_of_resnet():
    model, shapes = resnet(width=4), []
    for module in model:
        module.register_forward_hook(lambda *seen: shapes.append(tuple(seen[2].shape[1:])))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert [shapes[1], *(shapes[1 + n] for n in (3, 7, 13, 16))] == [
        (4, 32, 32),
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
    ]


@pytest.mark.parametrize(
    "make", [lambda: resnet((1, 1), width=2), lambda: convnet(size=8, widths=(2, 3))], ids=["resnet", "convnet"]
)
def test_one_step_lowers_the_loss(make: Callable[[], nn.Module]):
    model, x, y = make(), torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[1] < losses[0]


# Transformer-XL


def xl(kept: int = 0) -> TransformerXL:
    torch.manual_seed(0)
    model = TransformerXL(11, width=8, layers=2, heads=2, kept=kept)
    for parameter in model.parameters():  # away from the symmetries of the start
        nn.init.normal_(parameter, std=0.5)
    return model


TOKENS = torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("lengths", [(12,), (6, 6), (5, 4, 3), (1,) * 12])
def test_segments_in_turn_are_the_long_context_in_one_go(lengths: tuple[int, ...]):
    model, memory, parts = xl(kept=12), None, []
    for segment in TOKENS.split(lengths, 1):
        logits, memory = model.remember(segment, memory)
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, 1), model(TOKENS), rtol=0, atol=1e-12)


def test_memory_is_no_longer_than_it_is_kept_and_has_no_gradient():
    _, memory = xl(kept=5).remember(TOKENS, None)
    assert [tuple(m.shape) for m in memory] == [(3, 5, 8)] * 2
    assert not any(m.requires_grad for m in memory)
    _, memory = xl().remember(TOKENS, None)
    assert [tuple(m.shape) for m in memory] == [(3, 0, 8)] * 2


def test_logits_know_nothing_of_later_tokens():
    model, changed = xl(), TOKENS.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    here, there = model(TOKENS), model(changed)
    assert torch.equal(here[:, :7], there[:, :7])
    assert (here[:, 7:] != there[:, 7:]).any(dim=(0, 2)).all()


def test_attention_is_the_formula_of_the_paper():
    """One layer without what follows attention, position by position."""
    model = xl()
    (block, *_), u, v = model.blocks, model.u, model.v
    assert isinstance(block, nn.Module)
    x = torch.randn(1, 5, 8)

    def encoding(distance: int) -> Tensor:
        angles = torch.tensor([distance * 1e4 ** (-2 * k / 8) for k in range(4)])
        return torch.cat([angles.sin(), angles.cos()])

    rows = torch.stack([encoding(4 - p) for p in range(5)])
    block.mlp = nn.Sequential(nn.Linear(8, 8))
    nn.init.zeros_(block.mlp[0].weight), nn.init.zeros_(block.mlp[0].bias)  # type: ignore[index]
    found = block(x, x, rows, u, v)
    q, k, value = (getattr(block, name)(x[0]).view(5, 2, 4) for name in ("q", "k", "value"))
    for i in range(5):
        heads = []
        for head in range(2):
            scores = torch.stack(
                [
                    (q[i, head] + u[head, 0]) @ k[j, head]
                    + (q[i, head] + v[head, 0]) @ block.r(encoding(i - j)).view(2, 4)[head]  # type: ignore[operator]
                    for j in range(i + 1)
                ]
            )
            heads.append((scores / 2).softmax(0) @ value[: i + 1, head])
        y = block.norm1(x[0, i] + block.out(torch.cat(heads)))  # type: ignore[operator]
        assert torch.allclose(found[0, i], block.norm2(y), rtol=0, atol=1e-12)  # type: ignore[operator]
