"""The measured change of one step on real architectures, against an evaluation that shares nothing with the package.

Tiny models from their configurations, float64, evaluation mode; nothing is downloaded.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import memoryless as ml

STEPS, LR, BETAS, EPS = 12, 1e-3, (0.9, 0.99), 1e-8
HEAD: dict[str, Any] = {"num_labels": 3, "pad_token_id": 0}
SMALL: dict[str, Any] = HEAD | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def tokens() -> Tensor:
    return torch.randint(0, 50, (4, 12))


def images() -> Tensor:
    return torch.randn(6, 3, 8, 8)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(50, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0][:, -1])


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 3)), torch.randn(8, 10)


def cnn() -> tuple[nn.Module, Tensor]:
    head = nn.Flatten(), nn.Linear(6 * 8 * 8, 3)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), *head), images()


def gpt2() -> tuple[nn.Module, Tensor]:
    config = transformers.GPT2Config(vocab_size=50, n_positions=12, n_embd=16, n_layer=2, n_head=2, **HEAD)
    return transformers.GPT2ForSequenceClassification(config), tokens()


def bert() -> tuple[nn.Module, Tensor]:
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=12, **SMALL)
    return transformers.BertForSequenceClassification(config), tokens()


def vit() -> tuple[nn.Module, Tensor]:
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **SMALL)), images()


def lstm() -> tuple[nn.Module, Tensor]:
    return Recurrent(), tokens()


def criterion(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    out = model(batch[0])
    return nn.functional.cross_entropy(getattr(out, "logits", out), batch[1])


def gradients(model: nn.Module, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    grads = torch.autograd.grad(criterion(model, batch), list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), grads, strict=True)]


@torch.no_grad()
def moved(model: nn.Module, updates: list[Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    for p, update in zip(model.parameters(), updates, strict=True):
        p -= LR * update
    return model


def one_norm(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    return sum(float(g.abs().sum()) for g in gradients(model, batch))


@pytest.mark.filterwarnings("ignore::memoryless.errors.CurvatureWarning")
@pytest.mark.parametrize("make", [mlp, cnn, gpt2, bert, vit, lstm], ids=lambda make: make.__name__)
def test_the_change_is_what_happens(make: Callable[[], tuple[nn.Module, Tensor]]):
    torch.manual_seed(0)
    model, inputs = make()
    model = model.double().eval()
    batch = inputs.double() if inputs.is_floating_point() else inputs, torch.arange(len(inputs)) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, betas=BETAS, eps=EPS)
    for _ in range(STEPS):
        for p, g in zip(model.parameters(), gradients(model, batch), strict=True):
            p.grad = g
        optimizer.step()
    here = copy.deepcopy(model)
    (effect,) = ml.audit(optimizer, ml.Loss(model, criterion, [batch]), measures=["gradient_1_norm"]).effects

    # Adam with bias correction at a history frozen here: m = g and v = g^2, so F = g / (|g| + eps).
    grads = gradients(here, batch)
    without = moved(here, [g / (g.abs() + EPS) for g in grads])
    for p, g in zip(model.parameters(), grads, strict=True):
        p.grad = g
    optimizer.step()
    expected = (one_norm(model, batch) - one_norm(without, batch)) / one_norm(here, batch)
    assert effect.measured == pytest.approx(expected, rel=1e-6)
