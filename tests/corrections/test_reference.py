"""The numbers of reference.json: Eq. 9 evaluated by brute force, by code that shares nothing with the package."""

from typing import Any

import pytest

import memoryless as ml
from memoryless.corrections.correction import Correction
from tests.problems import REFERENCE, reference_loss, relative_error, tensor

METHODS = {
    "heavy_ball": lambda lr, beta1: ml.HeavyBall(lr, momentum=beta1),
    "nesterov": lambda lr, beta1: ml.Nesterov(lr, momentum=beta1),
    "adamw_eps_inside": lambda lr, beta1, beta2, eps, weight_decay: ml.AdamW(
        lr, (beta1, beta2), eps, weight_decay, eps_inside_root=True
    ),
    "adamw_eps_outside": lambda lr, beta1, beta2, eps, weight_decay: ml.AdamW(lr, (beta1, beta2), eps, weight_decay),
    "nadam_eps_inside": lambda lr, beta1, beta2, eps, weight_decay: ml.NAdam(
        lr, (beta1, beta2), eps, weight_decay, eps_inside_root=True
    ),
    "rmsprop_eps_outside": lambda lr, beta2, eps: ml.RMSprop(lr, alpha=beta2, eps=eps),
    "lion_soft": lambda lr, beta1, beta2, eps, weight_decay: ml.Lion(lr, (beta1, beta2), weight_decay, smoothing=eps),
}


def rows(kind: str) -> list[Any]:
    return [
        pytest.param(case, key, id="-".join([case["method"], *map(str, case["hyper"].values()), key]))
        for case in REFERENCE["cases"]
        for key in case[kind]
    ]


def agree(c: Correction, expected: dict[str, list[float]]) -> bool:
    return all(relative_error(getattr(c, key), tensor(expected[key])) < 1e-9 for key in ("F", "M"))


@pytest.mark.parametrize(("case", "key"), rows("full_batch"))
def test_full_batch(case, key):
    method = METHODS[case["method"]](REFERENCE["h"], **case["hyper"])
    step = None if key == "steady" else int(key)
    assert agree(ml.correction(method, reference_loss(), step=step), case["full_batch"][key])


@pytest.mark.parametrize(("case", "key"), rows("mini_batch"))
def test_mini_batch(case, key):
    method = METHODS[case["method"]](REFERENCE["h"], **case["hyper"])
    expected = case["mini_batch"][key]
    assert agree(ml.correction(method, reference_loss(), step=int(key), batches=expected["order"]), expected)
