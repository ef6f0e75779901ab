import pytest
import torch

import memoryless as ml
from memoryless.experiments import problems
from memoryless.loss.measures import MEASURES, evaluate
from memoryless.loss.point import Point
from tests.problems import FULL_BATCH, THETA, reference_loss, relative_error


def central_difference(S, theta: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    return torch.stack([(S(theta + step * e) - S(theta - step * e)) / (2 * step) for e in torch.eye(len(theta))])


LITERAL = {
    "gradient_1_norm": lambda t: FULL_BATCH.gradient(t).abs().sum(),
    "gradient_norm_squared": lambda t: FULL_BATCH.gradient(t).square().sum(),
    "sharpness": lambda t: torch.linalg.eigvalsh(FULL_BATCH.hessian(t))[-1],
}


@pytest.mark.parametrize("name", MEASURES)
def test_value_and_gradient(name: str):
    loss = reference_loss()
    (found,) = evaluate([name], Point(loss, THETA))
    assert found.value == pytest.approx(float(LITERAL[name](THETA)), rel=1e-9)
    assert relative_error(found.gradient, central_difference(LITERAL[name], THETA)) < 1e-6


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
