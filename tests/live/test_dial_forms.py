"""The same run in other words is the same dialled run: maximize, decay within the loss, tensors that pause, empty groups."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

import memoryless as ml
from memoryless.flat import flat
from tests.live.monitoring.monitored import criterion, plain_model

DECAY = 0.5


def path(
    make: Callable[..., Any],
    loss: Callable[[nn.Module, Any], Tensor],
    twin: str = "same",
    one_batch: bool = False,
    mini: bool = True,
    paused: int = 99,
    **options: Any,
) -> Tensor:
    torch.manual_seed(0)
    net = plain_model().double()
    given: dict[str, Any] = {"model": net, "criterion": loss, "twin": twin, "second": (0.999, 0.0)} if mini else {}
    dial = ml.dial(make(net.parameters(), **options), -1.0, **given)
    generator = torch.Generator().manual_seed(1)
    batches = [tuple(torch.randn(6, k, generator=generator).double() for k in (4, 1)) for _ in range(1 if one_batch else 15)]
    for n in range(15):
        batch = batches[n % len(batches)]
        dial.zero_grad()
        loss(net, batch).backward()
        if n >= paused:
            next(net.parameters()).grad = None
        step: dict[str, Any] = {"batch": batch} if mini else {}
        dial.step(**step)
    assert dial.off is None
    return flat(net.parameters()).detach()


def negative(net: nn.Module, batch: Any) -> Tensor:
    return -criterion(net, batch)


def decayed(net: nn.Module, batch: Any) -> Tensor:
    return criterion(net, batch) + DECAY / 2 * torch.stack([p.square().sum() for p in net.parameters()]).sum()


def sgd(p: Any, **options: Any) -> SGD:
    return SGD(p, 1e-2, 0.9, **options)


def adam(p: Any, **options: Any) -> Adam:
    return Adam(p, 1e-2, eps=1e-3, **options)


@pytest.mark.parametrize("twin", ["fresh", "same"])
@pytest.mark.parametrize("make", [sgd, adam])
def test_maximize_and_coupled_decay_are_the_loss_that_they_stand_for(make: Callable[..., Any], twin: str):
    plain = path(make, criterion, twin)
    torch.testing.assert_close(path(make, negative, twin, maximize=True), plain, rtol=0, atol=1e-12)
    inside = path(make, decayed, twin)
    torch.testing.assert_close(path(make, criterion, twin, weight_decay=DECAY), inside, rtol=0, atol=1e-12)
    assert float((inside - plain).norm()) > 1e-3


def test_the_previous_point_of_tensors_that_pause_is_known():
    """With one batch each mini-batch is the full batch."""
    found = path(sgd, criterion, "fresh", one_batch=True, paused=7)
    torch.testing.assert_close(found, path(sgd, criterion, one_batch=True, mini=False, paused=7), rtol=0, atol=1e-13)


def test_a_group_of_empty_tensors_is_nothing():
    a = nn.Parameter(torch.ones(2))
    dial = ml.dial(Adam([{"params": [a]}, {"params": [nn.Parameter(torch.zeros(0))]}]), -1.0)
    for _ in range(3):
        for group in dial.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        dial.step()
    assert dial.off is None


@pytest.mark.parametrize("twin", ["fresh", "same"])
def test_a_momentum_that_is_0_for_a_while_leaves_nothing_behind(twin: str):
    torch.manual_seed(0)
    net = plain_model().double()
    dial = ml.dial(SGD(net.parameters(), 1e-2, 0.0), -1.0, model=net, criterion=criterion, twin=twin)
    batch = (torch.ones(6, 4).double(), torch.ones(6, 1).double())
    for momentum in (0.0, 0.0, 0.9, 0.9, 0.0, 0.9):
        dial.param_groups[0]["momentum"] = momentum
        dial.zero_grad()
        criterion(net, batch).backward()
        dial.step(batch=batch)
        assert dial.off is None
        assert bool(dial._memories.all[0].S[0]) is (momentum > 0)


def test_a_dial_can_be_pickled():
    p = nn.Parameter(torch.ones(3))
    dial = ml.dial(Adam([p], 0.1), -1.0, placebo="scrambled")
    for _ in range(2):
        p.grad = torch.ones(3)
        dial.step()
    again = pickle.loads(pickle.dumps(dial))
    assert again.steps == 2
    assert not again._orders


def test_parameters_of_another_optimizer_are_told_of():
    net = plain_model()
    dial = ml.dial(Adam(list(net.parameters())[:2]), -1.0, model=net, criterion=criterion)
    assert any("2 of the model's trainable parameters are not this optimizer's" in note for note in dial.notes)
