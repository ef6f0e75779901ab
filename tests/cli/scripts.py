"""Scripts of a user's own, right and wrong."""

SETUP = """
import torch
from torch import nn

def data():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(20, 3, generator=generator), torch.randn(20, 1, generator=generator)) for _ in range(2)]

def criterion(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])

def setup():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, criterion, data(), torch.optim.Adam(model.parameters(), lr=0.01)
"""

VARIANTS = """
from base import *

def raising():
    raise KeyError("weights")

def three():
    return setup()[:3]

def no_scalar():
    model, _, batches, optimizer = setup()
    return model, lambda model, batch: model(batch[0]), batches, optimizer

def no_gradient():
    model, _, batches, optimizer = setup()
    return model, lambda model, batch: torch.zeros(()), batches, optimizer

def criterion_raises():
    model, _, batches, optimizer = setup()
    return model, lambda model, batch: model(batch[1]), batches, optimizer

def empty():
    model, criterion, _, optimizer = setup()
    return model, criterion, [], optimizer

def one_shot():
    model, criterion, batches, optimizer = setup()
    return model, criterion, iter(batches), optimizer

def three_once():
    model, criterion, batches, optimizer = setup()
    return model, criterion, (batch for batch in [*batches, batches[0]]), optimizer

def nan_loss():
    model, criterion, batches, optimizer = setup()
    batches[1][1][3] = float("nan")
    return model, criterion, batches, optimizer

def nan_parameter():
    model, criterion, batches, optimizer = setup()
    model[2].weight.data[0, 2] = float("inf")
    return model, criterion, batches, optimizer

def complex_parameter():
    model, criterion, batches, optimizer = setup()
    model.extra = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return model, criterion, batches, optimizer

def all_frozen():
    model, criterion, batches, optimizer = setup()
    model.requires_grad_(False)
    return model, criterion, batches, optimizer

def dropout():
    model, criterion, batches, _ = setup()
    model.insert(2, nn.Dropout(0.5))
    return model, criterion, batches, torch.optim.Adam(model.parameters())

def other_model():
    model, criterion, batches, _ = setup()
    return model, criterion, batches, torch.optim.Adam(setup()[0].parameters())

def lbfgs():
    model, criterion, batches, _ = setup()
    return model, criterion, batches, torch.optim.LBFGS(model.parameters())

def amsgrad():
    model, criterion, batches, _ = setup()
    return model, criterion, batches, torch.optim.Adam(model.parameters(), amsgrad=True)
"""

OWN = """
import memoryless as ml
import torch

method = ml.Method(0.1, (ml.Momentum(0.9),), lambda f, m, theta: m[0], "mine")

def makes(lr=0.05, beta=0.9):
    return ml.Method(lr, (ml.Momentum(beta),), lambda f, m, theta: m[0], "mine")

def optimizer(parameters, lr=0.02):
    return torch.optim.Adamax(parameters, lr=lr)

def gives_class():
    return torch.optim.Adamax

class Mine(torch.optim.Adamax):
    pass

def fails(parameters):
    raise KeyError("weights")

def nothing():
    return None

def two(one, other):
    return None

number = 3
"""

HOSTILE = """
import sys
from base import *

def exits():
    sys.exit(0)

def exits_later():
    model, criterion, batches, optimizer = setup()
    def leave(*_):
        sys.exit(0)
    model.register_forward_hook(leave)
    return model, criterion, batches, optimizer

class Batches(list):
    def __iter__(self):
        raise RuntimeError("no such image")
    def __getitem__(self, index):
        raise RuntimeError("no such image")

def unreadable():
    model, criterion, batches, optimizer = setup()
    return model, criterion, Batches(batches), optimizer

def wrong_shape():
    model, _, batches, optimizer = setup()
    def criterion(model, batch):
        return nn.functional.cross_entropy(
            model(batch[0]), batch[1].long())
    return model, criterion, batches, optimizer
"""

TALKS = """
import os, subprocess, sys
from base import *

print("imported")

def prints():
    model, criterion, batches, optimizer = setup()
    print("parameters: 21")
    sys.stdout.write("no line end")
    os.write(1, b"by descriptor")
    subprocess.run(["echo", "by a child"], check=True)
    def talkative(model, batch):
        print("evaluating")
        return criterion(model, batch)
    import atexit
    atexit.register(print, "good bye")
    return model, talkative, batches, optimizer
"""
