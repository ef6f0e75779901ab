"""What has no formula is named by its line."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false
# pyright: reportOperatorIssue=false

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch

import memoryless as ml
from memoryless.errors import NotDerivable
from tests.formulas.cases import (
    LR,
    close,
    single,
    tensors,
)
from tests.problems import reference_loss


def branches(f: Any, m: Any, theta: Any) -> Any:
    if m[0] > 0:
        return m[0]
    return theta


def sums(f: Any, m: Any, theta: Any) -> Any:
    length = m[0].square().sum()
    return m[0] / length


def takes_a_norm(f: Any, m: Any, theta: Any) -> Any:
    return m[0] / torch.linalg.vector_norm(m[0])


def takes_the_mean(f: Any, m: Any, theta: Any) -> Any:
    return m[0] - f.mean(m[0])


def uses_numpy(f: Any, m: Any, theta: Any) -> Any:
    return np.sqrt(m[0])


def uses_math(f: Any, m: Any, theta: Any) -> Any:
    return m[0] * math.exp(theta)


def indexes(f: Any, m: Any, theta: Any) -> Any:
    return m[0] * m[0][0]


def iterates(f: Any, m: Any, theta: Any) -> Any:
    return list(m[0])


def knows_the_dimension(f: Any, m: Any, theta: Any) -> Any:
    return m[0] * torch.ones(6)


def multiplies_matrices(f: Any, m: Any, theta: Any) -> Any:
    return m[0] @ theta


# phi, the line of it that cannot be derived, why
UNDERIVABLE = {
    "branches": (branches, "if m[0] > 0:", "branches on a value; torch.where does not"),
    "sums": (sums, "length = m[0].square().sum()", "calls sum, which is not an elementwise function"),
    "norm": (takes_a_norm, "return m[0] / torch.linalg.vector_norm(m[0])", "vector_norm, which is not an elementwise function"),
    "mean": (takes_the_mean, "return m[0] - f.mean(m[0])", "calls mean, which is not an elementwise function"),
    "numpy": (uses_numpy, "return np.sqrt(m[0])", "raises TypeError when given formulas in place of tensors"),
    "math": (uses_math, "return m[0] * math.exp(theta)", "raises TypeError when given formulas in place of tensors"),
    "index": (indexes, "return m[0] * m[0][0]", "takes single coordinates, but a formula holds for all"),
    "iterates": (iterates, "return list(m[0])", "takes single coordinates"),
    "shape": (knows_the_dimension, "return m[0] * torch.ones(6)", r"tensor of shape \(6,\) of its own"),
    "matrix": (multiplies_matrices, "return m[0] @ theta", "unsupported operand type"),
}


@pytest.mark.parametrize("name", UNDERIVABLE)
def test_the_line_that_cannot_be_derived_is_named(name):
    phi, source, why = UNDERIVABLE[name]
    lines, start = inspect.getsourcelines(phi)
    number = start + [line.strip() for line in lines].index(source)
    with pytest.raises(NotDerivable, match=why) as raised:
        ml.derive(single(phi))
    message = str(raised.value)
    assert message.startswith("phi of custom cannot be derived: it ")
    assert message.endswith(f" (line {number} of test_stand_in.py: {source})")
    assert "\n" not in message


def test_the_variable_that_cannot_be_derived_is_named():
    def clipped(g: Any, theta: Any) -> Any:
        return g / g.norm()

    variables = (ml.Momentum(0.9), ml.Momentum(0.9, clipped))
    with pytest.raises(NotDerivable, match=r"g of variable 2 of custom .* calls norm.*: return g / g.norm\(\)\)"):
        ml.derive(ml.Method(LR, variables, lambda f, m, theta: m[0] + m[1]))


def test_a_weight_without_a_formula():
    method = single(lambda f, m, theta: m[0], weight=lambda n: 1 / np.sqrt(n + 1.0))
    with pytest.raises(NotDerivable, match=r"weight of variable 1 of custom .*test_stand_in.py: .*np.sqrt"):
        _ = ml.derive(method, step="n").F
    c = ml.correction(method, reference_loss(), step=3)
    assert close(tensors(ml.derive(method, step=3).M, method), c.M, c.F)
