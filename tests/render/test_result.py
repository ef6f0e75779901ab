import json
import math
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import memoryless as ml
from memoryless.experiments.fig1 import Fig1, Run, Setting
from memoryless.loss.noise_scale import GradientNoise
from memoryless.paths.accuracy import Accuracy
from memoryless.render.numbers import plain
from memoryless.render.result import Result
from tests.render.test_page import HOSTILE, Parsed, needs_chromium, visit


@dataclass(frozen=True)
class PartFound(Result):
    """A part: one number, at <one> place.

    Not in the page.
    """

    value: float

    def as_dict(self) -> dict[str, Any]:
        return plain({"value": self.value, "twice": 2 * self.value})


@dataclass(frozen=True)
class Inner:
    vector: torch.Tensor


NESTED = {
    "inner": Inner(torch.tensor([1.0, math.nan], requires_grad=True)),
    "results": [PartFound(1.5), PartFound(math.inf)],
    "matrix": np.array([[1, 2], [3, 4]]),
    "scalars": (np.float32(0.5), np.int64(3), np.bool_(True), torch.tensor(2), -math.inf),
    2: {"text": HOSTILE, "none": None},
    "empty": [[], {}],
    "deep": [[[1, 2], [3]], [{}, 4]],
    "long": np.arange(100),
    "wide": np.zeros((2, 100)),
}


class Whole(Result):
    def as_dict(self) -> dict[str, Any]:
        return plain(NESTED)


def noise() -> Result:
    return GradientNoise.of_two_sizes([5.0, 7.0], 4, [3.0, 4.0], 16)


def accuracy() -> Result:
    return Accuracy(3, (0.2, 0.1), (0.0, 1e-9), 1e-12)


def fig1() -> Result:
    setting = Setting("Lion", (0.9, 0.99), 1e-3, 0, steps=2)
    return Fig1(
        "noise", [Run(setting, {"frozen": [1 / 3, 1.0], "first": [0.1, math.inf], "resummed": [0.0, 0.0]}, {"first": 1})]
    )


RESULTS = (lambda: PartFound(0.25), Whole, noise, accuracy, fig1)


def test_plain():
    assert Whole().as_dict() == {
        "inner": {"vector": [1.0, None]},
        "results": [{"value": 1.5, "twice": 3.0}, {"value": None, "twice": None}],
        "matrix": [[1, 2], [3, 4]],
        "scalars": [0.5, 3, True, 2, None],
        "2": {"text": HOSTILE, "none": None},
        "empty": [[], {}],
        "deep": [[[1, 2], [3]], [{}, 4]],
        "long": list(range(100)),
        "wide": [[0.0] * 100] * 2,
    }


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, np.array([1j]), ml.Adam])
def test_neither_number_nor_text(value):
    with pytest.raises(TypeError, match="expected numbers and text, got"):
        plain({"a": [value]})


@pytest.mark.parametrize("make", RESULTS)
def test_json_is_the_dictionary(make):
    found = make()
    text = found.to_json()
    assert "\n" not in text
    assert json.loads(text, parse_constant=pytest.fail) == json.loads(found.to_json(indent=2)) == found.as_dict()


def test_named_results():
    assert noise().as_dict() == {
        "trace": pytest.approx(40 / 3),
        "gradient_norm_squared": pytest.approx(8 / 3),
        "scale": pytest.approx(5.0),
        "interval": [0.0, None],
        "batches": 2,
        "batch_size": 4,
    }
    assert accuracy().as_dict() == {
        "kind": 3,
        "lrs": [0.2, 0.1],
        "errors": [0.0, 1e-9],
        "slopes": [None],
        "order": None,
        "floor": 1e-12,
    }
    assert fig1().as_dict()["comparisons"][0]["distances"]["first"] == [[0.1, None]]


@pytest.mark.parametrize("make", RESULTS)
def test_page_is_self_contained_and_escaped(make):
    parsed = Parsed(make().to_html())
    assert parsed.loads == ["data:,"]
    assert not parsed.links
    assert not parsed.scripts
    assert not {"script", "img", "iframe"} & set(parsed.tags)
    assert parsed.meta["generator"] == f"memoryless {ml.__version__}"
    assert parsed.meta["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not {"nan", "inf", "null", "undefined"} & set(parsed.text.lower().split())


def test_page_says_everything():
    text = Parsed(Whole().to_html()).text
    assert HOSTILE in text
    assert "100: 0 … 99" in text
    text = " ".join(Parsed(PartFound(0.25).to_html()).text.split())
    assert "Part found A part: one number, at <one> place. value0.25 twice0.5 " in text
    assert "Not in the page" not in text


@needs_chromium
def test_in_a_browser(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(Whole().to_html())
    seen = visit(file, tmp_path)
    assert (seen.errors, seen.requests) == ([], [])


def test_a_result_costs_no_library():
    """Only a page needs jinja2, only a chart plotly."""
    heavy = "{'jinja2', 'plotly', 'matplotlib', 'torch'}"
    code = f"import sys, memoryless.render.result, memoryless.render.style; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    code = "import sys; from memoryless.render.page import tables; tables('a', 'b', {}); print({'plotly'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
