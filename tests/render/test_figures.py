import json

import pytest

from memoryless.render.figures import TEMPLATE, charts
from tests.render.test_page import RUNS, audited_run, many_tensors, method_alone, no_measure, nulls


@pytest.mark.parametrize("make", RUNS)
def test_charts_are_json(make):
    json.dumps([charts(make()), TEMPLATE], allow_nan=False)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (audited_run, {"radius", "agreement", "effect", "map measured", "map resummed", "map first", "others", "tensors"}),
        (method_alone, {"effect", "tensors"}),
        (no_measure, set()),
    ],
)
def test_which_charts(make, names):
    assert charts(make()).keys() == names


def test_variants():
    found = charts(audited_run())
    assert found["radius"].keys() == {""}
    assert found["effect"].keys() == {"0", "1"}
    assert found["tensors"].keys() == {f"{k}/{s}" for k in range(2) for s in range(3)}


def test_bars_add_up_to_the_change():
    run = many_tensors()
    for k, effect in enumerate(run["stops"][0]["effects"]):
        (bars,) = charts(run)["tensors"][f"{k}/0"]["data"]
        assert len(bars["text"]) == 21
        assert sum(bars["x"]) == pytest.approx(100 * sum(effect["slopes"]["layers"].values()))


def test_what_is_not_finite_is_left_out():
    found = charts(nulls())
    assert found["tensors"]["0/2"]["data"][0]["x"] == []
    band = found["effect"]["0"]["data"][0]
    assert band["x"] == []
