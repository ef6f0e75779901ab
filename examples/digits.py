"""A script that `memoryless audit examples/digits.py:setup` can audit: mini-batches of digits, averaged to a full batch."""

import torch
from sklearn.datasets import load_digits
from torch import nn


def setup():
    images, classes = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(classes)
    batches = list(zip(inputs.split(599), targets.split(599), strict=True))
    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))

    def criterion(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return model, criterion, batches, torch.optim.AdamW(model.parameters(), lr=3e-3)
