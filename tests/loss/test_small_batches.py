"""Small batches, which spend their time on calls: several taken as one, several products at once."""

import pytest
import torch

import memoryless as ml
from memoryless.experiments import problems
from memoryless.loss.batches import cut


class Rows(torch.nn.Module):
    """A parameter that gets no gradient beside those that do; attention where asked for."""

    def __init__(self, attends: bool):
        super().__init__()
        self.inside, self.out, self.unused = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2), torch.nn.Linear(2, 2)
        self.attends = attends

    def forward(self, x):
        y = torch.nn.functional.gelu(self.inside(x))
        if self.attends:
            y = torch.nn.functional.scaled_dot_product_attention(y[None], y[None], y[None])[0]
        return self.out(y)


def pieces(model: torch.nn.Module, at_once: int = 1) -> ml.Loss:
    draw = torch.Generator().manual_seed(1)
    data = torch.randn(22, 4, generator=draw), torch.randint(2, (22,), generator=draw)
    return ml.Loss(model, problems.cross_entropy, [data]).on(model, cut(data, 3), at_once)


@pytest.mark.parametrize("at_once", [2, 3, 7, 20])
def test_batches_taken_as_one_are_their_mean(at_once: int):
    model = Rows(attends=False)
    apart, grouped = pieces(model), pieces(model, at_once)
    theta, v = apart.theta, torch.randn(len(apart.theta))
    calls = len(list(grouped.batches.parts(None)))
    assert calls == -(-7 // at_once)
    torch.testing.assert_close(grouped(theta), apart(theta), rtol=1e-13, atol=0)
    torch.testing.assert_close(grouped.gradient(theta), apart.gradient(theta), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(grouped.curvature(theta, v), apart.curvature(theta, v), rtol=1e-12, atol=1e-15)
    assert torch.equal(grouped.gradient(theta, 3), apart.gradient(theta, 3))
    assert len(grouped) == len(apart) == 7


def test_samples_that_speak_of_each_other_stay_in_their_batches():
    normalized = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2))
    assert len(list(pieces(normalized, 7).batches.parts(None))) == 7
    assert len(list(pieces(normalized.eval(), 7).batches.parts(None))) == 1


def test_one_point_where_groups_look_alike_is_not_enough():
    """The square of a batch's mean, whose gradient is 0 at theta = 0 whatever the batches are."""
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    data = [torch.randn(3, 4) for _ in range(6)]
    loss = ml.Loss(model, lambda model, x: model(x).mean().square(), data)
    assert len(list(loss.on(model, data, 3).batches.parts(None))) == 6


def test_batches_that_do_not_fit_together_stay_apart():
    model = torch.nn.Embedding(5, 2)
    data = [torch.randint(5, (2, length)) for length in (3, 4)]
    loss = ml.Loss(model, lambda model, x: model(x).square().mean(), data)
    assert len(list(loss.on(model, data, 2).batches.parts(None))) == 2


@pytest.mark.parametrize("attends", [False, True])
def test_several_products_of_a_batch_are_its_products(attends: bool):
    loss = pieces(Rows(attends))
    theta, vs = loss.theta, torch.randn(5, len(loss.theta))
    for count in (5, 3, 1):
        found = loss.curvatures(theta, vs[:count], 2)
        torch.testing.assert_close(
            found, torch.stack([loss.curvature(theta, v, 2) for v in vs[:count]]), rtol=1e-12, atol=1e-15
        )
