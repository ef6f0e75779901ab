"""The symbols."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false
# pyright: reportOperatorIssue=false

import sympy

from memoryless.formulas.symbols import Beta


def test_beta_vanishes_in_the_limit():
    x = Beta("x", positive=True)
    assert x**sympy.oo == 0
    assert x**2 != 0
