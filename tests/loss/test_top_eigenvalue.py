"""The largest eigenvalue along a run, of H and of P^-1 H, against dense eigendecompositions."""

import numpy as np
import pytest
import torch
from torch import nn

import memoryless as ml
from memoryless.experiments.problems import digits
from memoryless.loss.point import Point
from memoryless.loss.top_eigenvalue import TopEigenvalue


def network() -> ml.Loss:
    model = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))
    pixels, classes = digits(60)
    targets = nn.functional.one_hot(classes, 10).double()
    return ml.Loss(model, lambda m, b: (m(b[0]) - b[1]).square().sum(1).mean() / 2, [(pixels, targets)])


@pytest.mark.parametrize("preconditioned", [False, True])
def test_along_a_run_it_is_that_of_the_dense_matrix(preconditioned: bool):
    loss, top, products = network(), TopEigenvalue(relative=1e-4), []
    method = ml.Adam(lr=1e-2, betas=(0.9, 0.99), eps=1e-6)
    theta, state = loss.theta, method.init(loss.theta)
    for n in range(1, 31):
        state, F = method.update(state, loss.gradient(theta), theta)
        theta = theta - method.lr * F
        if n % 10 == 0:
            H = torch.func.hessian(lambda t: loss(t))(theta)
            P = (1 - 0.9**n) * ((state.sums[1] * 0.01 / (1 - 0.99**n)).sqrt() + 1e-6)
            # Not the symmetric form that the search uses: the matrix P^-1 H as it is written.
            matrix = H / P[:, None] if preconditioned else H
            expected = np.linalg.eigvals(matrix.numpy()).real.max()
            found = top.at(Point(loss, theta), P if preconditioned else None)
            products.append(found.products)
            assert found.converged
            assert found.residual <= found.tolerance == pytest.approx(1e-4 * expected, rel=1e-3)
            assert found.value == pytest.approx(expected, rel=1e-6)
    assert max(products) <= 60


def quadratic(eigenvalues: list[float]) -> Point:
    a = torch.tensor(eigenvalues)
    return Point(ml.Loss.of(lambda t: (a * t * t).sum() / 2, torch.ones(len(a))))


def test_one_that_overtakes_is_seen():
    """Begun at the exact eigenvector of what is no longer the largest."""
    top, spectrum = TopEigenvalue(relative=1e-6), [5.0, 1.0, 2.0, 0.5, 0.3, -7.0, 0.0, 0.1]
    assert top.at(quadratic(spectrum)).value == pytest.approx(5)
    spectrum[2] = 6.0
    assert top.at(quadratic(spectrum)).value == pytest.approx(6)


@pytest.mark.parametrize("d", [200, 2000, 20_000])
def test_one_that_overtakes_among_many_is_seen_at_a_rough_tolerance(d: int):
    """A random start has a share of 1/sqrt(d) of it, and the one that it overtakes is an eigenvector still."""
    top, rest = TopEigenvalue(relative=1e-2), torch.linspace(0, 1, d - 2).tolist()
    for rising in (5.0, 8.0, 9.5, 10.5, 12.0, 14.0, 20.0):
        found = top.at(quadratic([10.0, rising, *rest]))
        assert found.value == pytest.approx(max(10.0, rising), rel=1e-2 if rising != 10.5 else 5e-2)
        assert found.converged


@pytest.mark.parametrize("d", [1, 2, 4, 5, 6])
def test_few_dimensions(d: int):
    found = TopEigenvalue().at(quadratic([float(i) for i in range(d)]))
    assert found.value == pytest.approx(d - 1, abs=1e-2)
    assert found.residual <= max(found.tolerance, 1e-12)


def test_a_search_that_is_cut_short_says_so():
    found = TopEigenvalue(relative=1e-9, products=5).at(quadratic(torch.linspace(0, 1, 300).tolist()))
    assert not found.converged
    assert found.residual > found.tolerance
    assert found.products < 60


def test_a_start_without_merit():
    """Of one large eigenvalue a random vector has a small residual, and what comes near its own vector a large one."""
    spectrum = torch.cat([torch.tensor([1e4]), torch.linspace(0, 1, 300)])
    found = TopEigenvalue(relative=1e-2).at(quadratic(spectrum.tolist()))
    assert found.value == pytest.approx(1e4, rel=1e-3)
    assert found.products < 60


@pytest.mark.parametrize("P", [torch.ones(2), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, float("inf"), 1.0])])
def test_a_preconditioner_that_is_none(P: torch.Tensor):
    with pytest.raises(ml.errors.BadInput, match="must be 3 positive finite numbers, one for each parameter"):
        TopEigenvalue().at(quadratic([1.0, 2.0, 3.0]), P)
