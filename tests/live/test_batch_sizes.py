"""At my batch size, which betas? Maps are those of the parts they are made of; nothing of the user's is changed."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import memoryless as ml
from memoryless.audits.grid import Grid
from memoryless.audits.order_map import order_maps
from memoryless.corrections.expected.estimate import Samples
from memoryless.corrections.sequences import random_order
from memoryless.live.advice import advice, answer, with_error
from memoryless.live.batch_sizes import STOPS, AtSize, BatchSizes, audit_batch_sizes
from memoryless.live.run import audit_run
from memoryless.loss.batches import cut, map_tensors, together
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from memoryless.report.betas import as_dict, picture

LR = 1e-3
AXES = (0.5, 0.8), (0.9,)
AXES_OWN = (0.5, 0.8), (0.9, 0.95)


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    batch = {"x": torch.randn(24, 4).double(), "y": torch.randn(24, 1).double()}
    batches = cut(batch, 8)

    def criterion(model, batch):
        return nn.functional.mse_loss(model(batch["x"]), batch["y"])

    return torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.8, 0.95)), ml.Loss(model, criterion, batches)


@pytest.fixture(scope="module")
def found() -> BatchSizes:
    return audit_batch_sizes(*problem(), sizes=(4, None), steps=40, betas=AXES)


def test_own_pair_is_on_the_grid(found):
    assert (found.betas_1, found.betas_2) == ((0.5, 0.8), (0.9, 0.95))
    assert (found.betas_1[found.own[0]], found.betas_2[found.own[1]]) == (0.8, 0.95)


def test_nothing_of_the_users_is_changed():
    optimizer, loss = problem()
    before = loss.theta
    audit_batch_sizes(optimizer, loss, sizes=(4,), steps=12, betas=AXES)
    assert torch.equal(loss.theta, before)
    assert not optimizer.state


def test_maps_are_those_of_an_audited_run(found):
    """Measured as `audit_run` has it, predicted along its batches at every second stop."""
    optimizer, whole = problem()
    pieces = cut(together([batch for _, batch in whole.batches.select(None)]), 4)
    loss = whole.on(whole.model, pieces)
    order = random_order(len(loss), 40, np.random.default_rng((0, 4)))
    stops = sorted({int(s) for s in np.linspace(30, 39, STOPS)})
    grid = Grid(ml.AdamW(LR, (0.8, 0.95)), found.betas_1, found.betas_2)
    predicted: dict[str, list[np.ndarray]] = {"first": [], "resummed": []}
    for taken, i in enumerate(order):
        if taken in stops[::-2]:
            point = Point(loss)
            for each in order_maps(grid, point, evaluate(["gradient_1_norm"], point), order[: taken + 1]):
                predicted[each.order].append(each.change)
        loss.backward(int(i))
        optimizer.step()
    for kind, maps in predicted.items():
        assert np.allclose(getattr(found.sizes[0], kind).values[..., 0], maps, rtol=1e-9, atol=1e-15)
    optimizer, whole = problem()
    run = audit_run(
        optimizer, whole.on(whole.model, pieces), order, stops=stops, measures=["gradient_1_norm"], compare=(), betas=AXES_OWN
    )
    assert run.maps is not None
    # There the mean over all takes batches one by one, here six as one.
    assert np.allclose(found.sizes[0].measured.values, run.maps.values, rtol=1e-9, atol=1e-16)


def test_measured_and_predicted_agree_at_a_small_lr():
    """Where first order holds all three tell the same of the same stops, from nothing in common but the batches."""
    optimizer, loss = problem()
    optimizer.param_groups[0]["lr"] = 1e-5
    found = audit_batch_sizes(optimizer, loss, sizes=(4, None), steps=200, betas=AXES)
    for size in found.sizes:
        measured = size.measured.values[::-2][::-1]
        for predicted in (size.first.values, size.resummed.values):
            assert np.abs(predicted - measured).max() < 0.02 * np.abs(measured).max()


def made_up(measured, predicted, error=0.001) -> BatchSizes:
    """Changes in per cent at betas_1 (0.8, 0.9, 0.95), the own pair in the middle."""
    draws = np.array([-1.0, 1.0]) * error
    series = [Samples((np.reshape(x, (1, 3, 1, 1)) + draws.reshape(2, 1, 1, 1)) / 100) for x in (measured, predicted)]
    size = AtSize(32, 10, (1.0,), None, series[0].at((1, 0)), series[0], series[1], series[1], ())
    return BatchSizes((0.8, 0.9, 0.95), (0.99,), (1, 0), ("gradient_1_norm",), LR, 100, (size,), 0)


def test_advice():
    found = made_up((0.1, 0.2, 0.5), (0.1, 0.2, 0.1))
    effect, beta1, beta2 = advice(found, found.sizes[0], 0)
    assert effect == "At betas (0.9, 0.99) memory anti-regularizes the gradient 1-norm: +0.200 ± 0.001 % per step."
    assert beta1.startswith("Raising beta1 to 0.95 moves it up (+0.3 % per step), against the prediction (-0.1 %)")
    assert "lowering beta1 to 0.8 moves it down" in beta1
    assert beta2 == "Beta2 has no neighbour on the grid."
    assert answer(found, found.sizes[0], 0) == (
        "At batch size 32, for a lower gradient 1-norm take betas (0.8, 0.99), +0.100 ± 0.001 % per step; "
        "for a higher one (0.95, 0.99), +0.500 ± 0.001 % per step; yours make (0.9, 0.99), +0.200 ± 0.001 % per step."
    )
    quiet = made_up((0.2, 0.0005, 0.2), (0.2, 0.0, 0.2))
    assert "no effect on the gradient 1-norm beyond the uncertainty" in advice(quiet, quiet.sizes[0], 0)[0]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 1.2], "+110 ± 10 %"),
        ([0.0123, 0.0125], "+1.24 ± 0.01 %"),
        ([-1e-8, -3e-8], "-2.0e-06 ± 1e-06 %"),
        ([2.0], "+200 %"),
    ],
)
def test_numbers_with_errors(values, text):
    assert with_error(Samples(np.array(values), "exact" if len(values) == 1 else "independent")) == text


def test_plain_numbers_and_picture(found):
    plain = json.loads(json.dumps(as_dict(found), allow_nan=False))
    assert [size["size"] for size in plain["sizes"]] == [4, "full"]
    size = plain["sizes"][0]
    assert np.shape(size["maps"]["measured"]["gradient_1_norm"]["slope"]) == (2, 2)
    assert size["checks"][0]["changes"].keys() == {"gradient_1_norm"}
    assert len(size["advice"]["gradient_1_norm"]) == 3
    assert size["noise_scale_interval"] is not None
    figure = picture([found, found])
    titles = [ax.get_title() for row in figure.subfigs for ax in row.axes]
    assert titles.count("measured, batch size 4") == titles.count("first order, full batch") == 1
    assert titles.count("resummed, batch size 4") == 1


def test_structures():
    batches = [(torch.ones(2, 1), {"a": [torch.zeros(2)]}, "text"), (torch.ones(3, 1), {"a": [torch.ones(3)]}, "text")]
    whole = together(batches)
    assert (whole[0].shape, whole[1]["a"][0].tolist(), whole[2]) == ((5, 1), [0, 0, 1, 1, 1], "text")
    assert [piece[1]["a"][0].tolist() for piece in cut(whole, 2)] == [[0, 0], [1, 1]]
    for other, message in (([(1, 2)], "batches of tensors"), ([torch.ones(2, 3), torch.ones(2, 4)], "do not fit together")):
        with pytest.raises(ValueError, match=message):
            together(other)
    for one, two in (({"a": 1}, {"b": 1}), ([1], [1, 2]), ([1], (1,))):
        with pytest.raises(ValueError, match="differ in structure"):
            map_tensors(torch.add, one, two)
    assert math.isinf(float(Samples(np.ones(1)).standard_error))
