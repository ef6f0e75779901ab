"""Measured along mini-batch runs: the replay is Eq. 1 with the history frozen, taken literally; the run is not altered."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import memoryless as ml
from memoryless.corrections.expected.estimate import Samples
from memoryless.corrections.sequences import random_order
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from tests.problems import relative_error

LR = 1e-3
BATCHES = 5


def problem(seed: int = 0) -> tuple[nn.Module, ml.Loss]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    data = [(torch.randn(6, 4).double(), torch.randn(6, 1).double()) for _ in range(BATCHES)]
    return model, ml.Loss(model, lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]), data)


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.8, 0.95)),
    "nadam": lambda p: torch.optim.NAdam(p, lr=LR, betas=(0.8, 0.95)),
    "sgd": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, nesterov=True, weight_decay=0.1),
}


def trained(make, order) -> tuple[ml.Loss, torch.optim.Optimizer]:
    model, loss = problem()
    optimizer = make(model.parameters())
    for i in order:
        optimizer.zero_grad()
        loss(torch.cat([p.reshape(-1) for p in model.parameters()]), int(i)).backward()
        optimizer.step()
    return loss, optimizer


def frozen(method, loss: ml.Loss, order) -> Tensor:
    """F[n](theta; the same batches), step by step."""
    theta = loss.theta
    state, F = method.init(theta), theta
    for i in order:
        state, F = method.update(state, loss.gradient(theta, int(i)), theta)
    return F


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_audit_along_batches_is_the_literal_difference(name):
    order = random_order(BATCHES, 31, np.random.default_rng(0))
    loss, optimizer = trained(OPTIMIZERS[name], order[:-1])
    before = loss.theta
    found = ml.audit(optimizer, loss, measures=["gradient_1_norm"], batches=order.tolist())
    assert torch.equal(before, loss.theta)
    after = trained(OPTIMIZERS[name], order)[0].theta
    F = frozen(ml.method_of(optimizer, loss.layout), loss, order)
    assert found.measured is not None
    assert relative_error(found.F, F) < 1e-12
    assert relative_error(found.measured, (before - after) / LR - F) < 1e-7  # (theta - theta_next) / lr loses digits
    assert found.validity.first is not None
    assert found.validity.first.holds
    assert not any("several batches" in note for note in found.validity.notes)


def test_audit_of_a_black_box_along_batches():
    order = random_order(BATCHES, 13, np.random.default_rng(0)).tolist()
    loss, optimizer = trained(lambda p: torch.optim.Adamax(p, lr=LR, betas=(0.8, 0.95)), order[:-1])
    found = ml.audit(optimizer, loss, measures=["gradient_1_norm"], batches=order)
    method = ml.TorchMethod.of(optimizer, loss.layout)
    assert relative_error(found.F, frozen(method, loss, order)) < 1e-9
    assert found.validity.resummed is not None
    assert found.validity.resummed.cosine > 0.9


STOPS = (20, 27, 39)


def run(make=OPTIMIZERS["adamw"], order: Any = None, **options: Any):
    model, loss = problem()
    optimizer = make(model.parameters())
    order = random_order(BATCHES, 40, np.random.default_rng(1)) if order is None else order
    options = {"stops": STOPS, "measures": ["gradient_1_norm"], "compare": (), "betas": None} | options
    return loss, optimizer, order, ml.audit_run(optimizer, loss, order, **options)


def test_replay_measures_what_the_audit_measures():
    *_, order, found = run()
    for stop, change in zip(STOPS, found.live.values, strict=True):
        there, live = trained(OPTIMIZERS["adamw"], order[:stop])
        expected = ml.audit(live, there, measures=["gradient_1_norm"], batches=order[: stop + 1].tolist()).effects[0].measured
        assert change[0] == pytest.approx(expected, rel=1e-9)
    assert found.gradients == BATCHES * len(STOPS)


def test_a_black_box_is_measured_along_the_run():
    def make(p):
        return torch.optim.Adamax(p, lr=LR, betas=(0.8, 0.95))

    *_, order, found = run(make)
    for stop, change in zip(STOPS, found.live.values, strict=True):
        there, live = trained(make, order[:stop])
        batches = order[: stop + 1].tolist()
        expected = ml.audit(live, there, measures=["gradient_1_norm"], batches=batches).effects[0].measured
        assert change[0] == pytest.approx(expected, rel=1e-6)


def test_the_run_is_not_altered():
    loss, optimizer, order, _ = run(compare=[ml.Lion(LR)], betas=((0.5, 0.8), (0.95,)), lags=3)
    plain, other = trained(OPTIMIZERS["adamw"], order)
    assert torch.equal(loss.theta, plain.theta)
    mine, theirs = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert all(torch.equal(mine[p][key], theirs[p][key]) for p in mine for key in mine[p])


@pytest.mark.parametrize("make", [ml.AdamW, ml.NAdam, lambda lr, betas: ml.Lion(lr, betas, smoothing=0.1)])
def test_shadows_and_maps_are_the_literal_difference(make):
    pairs = (0.5, 0.8), (0.9, 0.95)
    others = [make(LR, betas=(b1, b2)) for b1 in pairs[0] for b2 in pairs[1]]
    own = make(LR, betas=(0.8, 0.95))
    *_, order, found = run(compare=[*others, own], betas=pairs)
    # The literal way: the state of each method on the live gradients, then on those at the last stop's theta.
    there, _ = trained(OPTIMIZERS["adamw"], order[: STOPS[-1]])
    path = [trained(OPTIMIZERS["adamw"], order[:s])[0].theta for s in range(STOPS[-1] + 1)]
    (value,) = evaluate(["gradient_1_norm"], Point(there))
    for method in others:
        state, F = method.init(path[0]), path[0]
        for i, theta in zip(order, path, strict=False):
            state, F = method.update(state, there.gradient(theta, int(i)), theta)
        expected = -LR * float(value.gradient @ (F - frozen(method, there, order[: STOPS[-1] + 1]))) / value.value
        assert found.others[method.describe(omit=("lr",))].values[-1, 0] == pytest.approx(expected, rel=1e-8)
    if own.name == "adamw":
        assert found.maps is not None
        for k, method in enumerate(others):
            changes = found.maps.values[:, k // 2, k % 2, 0]
            assert changes == pytest.approx(found.others[method.describe(omit=("lr",))].values[:, 0], rel=1e-8)
        slopes = [[stop.audit.effects[0].slopes.measured] for stop in found.stops]
        assert found.others[own.describe(omit=("lr",))].values == pytest.approx(np.array(slopes), rel=1e-6)
        assert found.stops[-1].others[-1].change[0] == pytest.approx(found.live.values[-1, 0], rel=1e-6)


def test_random_lags_are_the_exact_replay_in_the_mean():
    exact = run(compare=[ml.HeavyBall(LR, 0.9)])[-1]
    name = ml.HeavyBall(LR, 0.9).describe(omit=("lr",))
    drawn = np.stack([run(compare=[ml.HeavyBall(LR, 0.9)], lags=8, seed=s)[-1].others[name].values for s in range(12)])
    error = drawn.std(axis=0, ddof=1) / len(drawn) ** 0.5
    assert (np.abs(drawn.mean(axis=0) - exact.others[name].values) < 4 * error).all()
    assert (error < 0.2 * np.abs(exact.others[name].values)).all()
    every = run(lags=2000)[-1]
    assert every.live.values == pytest.approx(exact.live.values, rel=1e-9)  # lags for all steps


def test_standard_error_of_a_series_counts_blocks():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((200, 1000))
    series = [Samples(np.asarray(np.convolve(row, np.ones(50) / 50, "same"), dtype=float), "series") for row in noise]
    spread = np.std([float(s.mean) for s in series])
    assert np.mean([float(s.standard_error) for s in series]) == pytest.approx(spread, rel=0.25)
    assert np.mean([float(Samples(s.values).standard_error) for s in series]) < spread / 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stops": (40,)}, r"stops must lie in 1\.\.39"),
        ({"stops": ()}, "stops must lie in"),
        ({"lags": 0}, "lags must be at least 1"),
        ({"order": [0, 1, 7]}, r"batches must be indices in 0\.\.4"),
        ({"betas": ((0.9, 0.5), (0.9,))}, "must increase"),
        ({"compare": [ml.TorchMethod(torch.optim.Adagrad, [(4,)])]}, "needs a method in momentum form, got Adagrad"),
        ({"make": lambda p: torch.optim.Adagrad(p), "lags": 3}, "has no random lags"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_an_optimizer_with_a_past_is_refused():
    order = random_order(BATCHES, 10, np.random.default_rng(0))
    loss, optimizer = trained(OPTIMIZERS["adamw"], order)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="has steps behind it"):
        ml.audit_run(optimizer, loss, order, stops=(3,))
    assert str(before) == str(optimizer.state_dict())


class Shuffled:
    """A loader that draws from a generator of NumPy's own."""

    def __init__(self, data):
        self.data, self.rng = data, np.random.default_rng(0)

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        return iter([self.data[i] for i in self.rng.permutation(len(self.data))])


@pytest.mark.parametrize("use", [ml.gradient_noise, lambda loss: ml.expected_correction(ml.Adam(), loss, step=3)])
def test_a_sampler_that_cannot_be_replayed_is_refused(use):
    model, _ = problem()
    data = [(torch.randn(2, 4).double(), torch.randn(2, 1).double()) for _ in range(20)]
    loss = ml.Loss(model, lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]), Shuffled(data))
    with pytest.raises(ValueError, match="cannot be replayed"):
        use(loss)


def test_a_shuffling_loader_of_torch_can_be_replayed():
    model, _ = problem()
    data = torch.utils.data.TensorDataset(torch.randn(24, 4).double(), torch.randn(24, 1).double())
    loader = torch.utils.data.DataLoader(data, 6, shuffle=True)
    loss = ml.Loss(model, lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]), loader)
    assert ml.gradient_noise(loss).batch_size == 6
