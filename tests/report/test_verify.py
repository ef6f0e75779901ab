"""The picture of a verification."""

import pytest

from memoryless.paths.accuracy import Accuracy
from memoryless.report.verify import GAP, _apart, picture
from tests.experiments.test_theorem import exactly, of


def test_picture_of_errors_that_are_zero():
    picture(of(Accuracy("first", (2.0, 1.0), (0.0, 0.0), 1e-9), exactly(3, 3)))
    picture(of(Accuracy("first", (2.0, 1.0), (0.0, 0.0), 1e-9)))


def test_labels_keep_apart_and_in_order():
    moved = _apart([0.5, 0.5, 0.51, 0.9])
    assert moved == pytest.approx([0.5033 - GAP, 0.5033, 0.5033 + GAP, 0.9], abs=1e-3)
    assert _apart([0.1, 0.4]) == [0.1, 0.4]
