from collections.abc import Callable

import pytest
import torch

import memoryless as ml
from memoryless.audits.effect import Changes
from memoryless.experiments import problems
from memoryless.loss.measures import MEASURES, evaluate
from memoryless.loss.point import Point
from tests.problems import BATCHES, FULL_BATCH, THETA, reference_loss, relative_error


def per_batch(of) -> Callable[[torch.Tensor], torch.Tensor]:
    """The mean over the batches of a function of (g_i, H_i), by autograd on the functions that the loss is made of."""

    def mean(t: torch.Tensor) -> torch.Tensor:
        return torch.stack([of(batch.gradient(t), batch.hessian(t)) for batch in BATCHES]).mean()

    return mean


LITERAL = {
    "gradient_1_norm": lambda t: FULL_BATCH.gradient(t).abs().sum(),
    "gradient_norm_squared": lambda t: FULL_BATCH.gradient(t).square().sum(),
    "sharpness": lambda t: torch.linalg.eigvalsh(FULL_BATCH.hessian(t))[-1],
    "batch_gradient_1_norm": per_batch(lambda g, H: g.abs().sum()),
    "batch_gradient_norm_squared": per_batch(lambda g, H: g @ g),
    "batch_gradient_variance": lambda t: torch.stack([b.gradient(t) for b in BATCHES]).var(0, correction=0).sum(),
    "batch_sharpness": per_batch(lambda g, H: g @ H @ g / (g @ g)),
}


@pytest.mark.parametrize("name", MEASURES)
def test_value_and_gradient(name: str):
    """Against autograd on the definition."""
    (found,) = evaluate([name], Point(reference_loss(), THETA))
    assert found.value == pytest.approx(float(LITERAL[name](THETA)), rel=1e-9)
    # What third derivatives are in comes from central differences.
    assert relative_error(found.gradient, torch.func.grad(LITERAL[name])(THETA)) < (1e-7 if found.products else 1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_value_elsewhere(name: str):
    loss, there = reference_loss(), THETA + 0.1
    (found,) = evaluate([name], Point(loss, THETA))
    assert found.at(Point(loss, there)) == pytest.approx(float(LITERAL[name](there)), rel=1e-6)


def test_every_measure_is_tested():
    assert LITERAL.keys() == MEASURES.keys()


@pytest.mark.parametrize("d", [1, 2])
def test_sharpness_in_few_dimensions(d: int):
    loss = ml.Loss.of(lambda t: (t**4).sum() / 12 + t.sum(), torch.arange(1.0, d + 1))
    (found,) = evaluate(["sharpness"], Point(loss))
    assert found.value == pytest.approx(d**2)
    assert found.gradient[-1] == pytest.approx(2.0 * d)


def test_sharpness_of_a_network_is_the_largest_eigenvalue():
    loss = problems.digits_mlp(width=3, count=50).loss
    (found,) = evaluate(["sharpness"], Point(loss))
    hessian = torch.stack([loss.curvature(loss.theta, e) for e in torch.eye(len(loss.theta))])
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)


@pytest.mark.parametrize("name", ["gradient_1_norm", "gradient_norm_squared"])
def test_of_one_batch_the_mean_is_the_full_batch(name: str):
    loss = ml.Loss.of(FULL_BATCH, THETA)
    whole, mean = evaluate([name, f"batch_{name}"], Point(loss))
    assert mean.value == pytest.approx(whole.value, rel=1e-12)
    assert relative_error(mean.gradient, whole.gradient) < 1e-12


def test_one_batch_does_not_vary():
    (variance,) = evaluate(["batch_gradient_variance"], Point(ml.Loss.of(FULL_BATCH, THETA)))
    assert variance.value == variance.at(Point(ml.Loss.of(FULL_BATCH, THETA + 1))) == 0
    assert variance.gradient.count_nonzero() == 0


def test_means_over_batches_by_differences():
    """Curvature by differences of each batch's own gradient agrees to its digits."""
    model, criterion, batches = problem = problems.digits_batches(size=300, width=3)
    by_differences = ml.Loss(model, criterion, batches, curvature="difference")
    names = [name for name in MEASURES if name.startswith("batch_gradient")]
    for found, expected in zip(evaluate(names, Point(by_differences)), evaluate(names, Point(problem.loss)), strict=True):
        assert found.value == pytest.approx(expected.value, rel=1e-12)
        assert 1e-12 < relative_error(found.gradient, expected.gradient) < 1e-5


def test_batch_sharpness_needs_a_direction():
    loss = ml.Loss.of([lambda t: t @ t, lambda t: 0 * t.sum()], torch.ones(2, dtype=torch.float64))
    with pytest.raises(ml.errors.BadInput, match="gradient of a batch is zero"):
        evaluate(["batch_sharpness"], Point(loss))


def test_names_must_differ():
    loss = reference_loss()
    with pytest.raises(ValueError, match="two measures are called 'sharpness'"):
        evaluate(["sharpness", "sharpness"], Point(loss, THETA))


def test_own_measure():
    loss = reference_loss()

    def distance(theta: torch.Tensor) -> torch.Tensor:
        return (theta - 1).square().sum()

    (found,) = evaluate([distance], Point(loss, THETA))
    assert found.name == "distance"
    assert torch.equal(found.gradient, 2 * (THETA - 1))


def test_a_rise_is_a_rise_where_the_measure_is_negative():
    def negative(theta: torch.Tensor) -> torch.Tensor:
        return -theta.square().sum()

    (found,) = evaluate([negative], Point(reference_loss(), THETA))
    rise = -found.gradient
    assert found.value < 0 < found.slope(rise, 1e-3)
    point = Point(reference_loss(), THETA)
    (happens,) = Changes([found], point, 1e-3)(torch.zeros_like(THETA), rise)
    assert happens == pytest.approx(found.slope(rise, 1e-3), rel=0.01)
