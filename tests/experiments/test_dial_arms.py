"""The arms of the study of the dial against `ml.dial` itself, training along mini-batches, the networks and their data."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

import memoryless as ml
from memoryless.errors import BadInput
from memoryless.experiments import dial_arms as arms
from memoryless.experiments.along_batches import Passed, shuffled, shuffled_for_each, train_along
from memoryless.experiments.problems import Problem, cross_entropy, digits_mlp
from memoryless.experiments.training import Networks, iterates
from memoryless.loss.top_eigenvalue import Eigenvalue

METHOD = ml.AdamW(1e-3, (0.9, 0.99), 1e-6, 0.0)


def two() -> list[Problem]:
    return [digits_mlp(seed, width=4, count=30) for seed in (0, 1)]


def torch_adamw(problem: Problem) -> torch.optim.Optimizer:
    return torch.optim.AdamW(problem.model.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)


def together(rule: arms.Carried, size: int, steps: int) -> Tensor:
    """Both networks after some steps, each along its own batches."""
    problems = two()
    networks = Networks(problems[0].model, cross_entropy, problems[0].batches)
    samples = shuffled_for_each(30, size, (5, 6), steps + 1)
    starts = torch.stack([problem.loss.theta for problem in problems])
    at_end = []

    class Spy(arms.Carried):
        def update(self, state, gradient, theta, again):  # type: ignore[no-untyped-def]
            at_end[:] = [theta]
            return super().update(state, gradient, theta, again)

    train_along(networks, Spy(rule.method, rule.strength, rule.coordinates), starts, samples, 0.0, steps)
    return at_end[0]


@pytest.mark.parametrize("placebo", [None, "permuted"])
@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.5, 1.0])
def test_many_networks_at_once_take_the_steps_of_the_dial(strength: float, placebo: str | None):
    problems = [digits_mlp(seed, width=4, count=30) for seed in (0, 1)]
    networks = Networks(problems[0].model, cross_entropy, problems[0].batches)
    method = ml.AdamW(1e-3, (0.9, 0.99), 1e-6, 0.0)
    dialled = arms.Dialled(method, strength, arms.permutation(networks.layout) if placebo else None)
    path = iterates(networks, dialled, torch.stack([p.loss.theta for p in problems]))
    thetas = [next(path)[0] for _ in range(21)][-1]
    for theta, problem in zip(thetas, (digits_mlp(seed, width=4, count=30) for seed in (0, 1)), strict=True):
        own = torch.optim.AdamW(problem.model.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
        optimizer, loss = ml.dial(own, strength, placebo=placebo), problem.loss
        for _ in range(20):
            loss.layout.set_gradients(loss.gradient(loss.theta))
            optimizer.step()
        torch.testing.assert_close(theta, loss.theta, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("placebo", [None, "permuted"])
@pytest.mark.parametrize("strength", [-1.0, 0.5, 1.0])
def test_many_networks_at_once_take_the_steps_of_the_dial_along_mini_batches(strength: float, placebo: str | None):
    problems, steps = two(), 20
    coordinates = arms.permutation(problems[0].loss.layout) if placebo else None
    thetas = together(arms.Carried(METHOD, strength, coordinates), 8, steps)
    for theta, problem, seed in zip(thetas, problems, (5, 6), strict=True):
        optimizer = ml.dial(torch_adamw(problem), strength, model=problem.model, criterion=cross_entropy, placebo=placebo)
        ((inputs, targets),) = problem.batches
        for chosen in itertools.islice(shuffled(30, 8, seed), steps):
            batch = inputs[chosen], targets[chosen]
            optimizer.zero_grad()
            cross_entropy(problem.model, batch).backward()
            optimizer.step(batch=batch)
        assert optimizer.off is None
        torch.testing.assert_close(theta, problem.loss.theta, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strength", [-1.0, 0.0, 1.0])
def test_carried_memories_of_the_full_batch_are_the_exact_ones(strength: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arms, "FLOOR", 0.0)  # which holds g^2 above a share of v, here too
    problems = two()
    networks = Networks(problems[0].model, cross_entropy, problems[0].batches)
    path = iterates(networks, arms.Dialled(METHOD, strength), torch.stack([p.loss.theta for p in problems]))
    exact = [next(path)[0] for _ in range(21)][-1]
    torch.testing.assert_close(together(arms.Carried(METHOD, strength), 30, 20), exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", [ml.Lion(1e-3), ml.HeavyBall(1e-3, 0.9)], ids=str)
def test_only_memories_of_one_form_are_carried(method: ml.Method):
    first = method.variables[0]
    if not first.lag:
        method = ml.Method(1e-3, (ml.Momentum(first.beta, first=2.0),), method.phi, name="dampened")
    with pytest.raises(BadInput, match=r"reads a memory before the present gradient, or weights the first one otherwise"):
        arms.Carried(method, -1.0)


def trained(target: float, limit: int, every: int) -> tuple[list[Tensor], list[Problem], Passed]:
    """Each network alone by torch's AdamW: its path, shape (limit + 1, d), and what `train_along` says of both."""
    problems = two()
    networks = Networks(problems[0].model, cross_entropy, problems[0].batches)
    starts = torch.stack([problem.loss.theta for problem in problems])
    reached = train_along(networks, arms.Carried(METHOD, 0.0), starts, shuffled_for_each(30, 8, (5, 6), limit), target, every)
    paths, problems = [], two()  # the first model has been moved
    for problem, seed in zip(problems, (5, 6), strict=True):
        ((inputs, targets),), own, path = problem.batches, torch_adamw(problem), [problem.loss.theta.clone()]
        for chosen in itertools.islice(shuffled(30, 8, seed), limit):
            own.zero_grad()
            cross_entropy(problem.model, (inputs[chosen], targets[chosen])).backward()
            own.step()
            path.append(problem.loss.theta.clone())
        paths.append(torch.stack(path))
    return paths, problems, reached


def test_networks_are_compared_where_the_whole_loss_is_first_seen_at_the_target():
    paths, problems, reached = trained(2.2, 150, 5)
    for path, problem, theta, step in zip(paths, problems, reached.thetas, reached.steps.tolist(), strict=True):
        assert step == 5 * next(i for i, there in enumerate(path[::5]) if float(problem.loss(there)) <= 2.2)
        torch.testing.assert_close(theta, path[step], rtol=1e-10, atol=1e-12)
    assert reached.steps[0] != reached.steps[1]


def test_a_target_that_is_not_reached_is_said():
    _, _, reached = trained(0.0, 3, 2)
    assert reached.steps.tolist() == [-1, -1]
    assert reached.thetas.isnan().all()


def test_an_order_is_new_each_epoch_and_its_seed_s_own():
    first, again, other = (list(itertools.islice(shuffled(10, 4, seed), 4)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    for epoch in (first[:2], first[2:]):
        assert len(torch.cat(epoch).unique()) == 8
    assert not torch.equal(torch.cat(first[:2]), torch.cat(first[2:]))


def test_a_fifth_of_the_labels_is_of_another_class():
    classes = torch.arange(300) % 10
    wrong = arms.mislabelled(classes)
    assert int((wrong != classes).sum()) == 60
    assert wrong.min() >= 0
    assert wrong.max() <= 9
    assert torch.equal(wrong, arms.mislabelled(classes))


@pytest.mark.parametrize(("kind", "batch"), [("cnn", None), ("cnn", 32), ("gpt", 32), ("plain", 32), ("residual", 32)])
def test_every_network_runs(kind: str, batch: int | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arms.TopEigenvalue, "at", lambda self, point: Eigenvalue(2.0, 0.01, 0.02, 1))
    start = 5.7 if kind == "gpt" else 2.29
    found = arms.run(arms.Setting(kind, "dial", -1.0, 1e-3, (0, 1), target=start - 0.02, limit=40, batch=batch, every=1))
    assert all(step > 0 for step in found["steps"])
    assert np.isfinite([found[name] for name in found if name != "test_accuracy"]).all()
    assert np.isfinite(found["test_accuracy"]).tolist() == [kind != "gpt"] * 2
    assert max(found["training_loss"]) <= start - 0.02 + (1e-3 if batch is None else 1e-6)
