"""The theorem on the problems that come with it: what is chosen, what is measured, the verdict."""

import json
import math
from dataclasses import replace

import pytest

import memoryless as ml
from memoryless.errors import Diverged
from memoryless.experiments.theorem import (
    KINDS,
    PROBLEMS,
    Verification,
    holds,
    power,
    tolerance,
    verify,
    visible,
)
from memoryless.methods.catalogue import CATALOGUE
from memoryless.paths.accuracy import Accuracy, order_of_accuracy, own_path

LRS = (1e-3, 5e-4)
QUADRATIC = PROBLEMS["quadratic"].loss(0)


def exactly(power: float, kind, scale: float = 1.0, floor: float = 1e-13) -> Accuracy:
    """Errors scale * lr^power."""
    lrs = (4e-3, 2e-3, 1e-3)
    return Accuracy(kind, lrs, tuple(scale * lr**power for lr in lrs), floor)


def of(*accuracies: Accuracy, dtype: str = "float64") -> Verification:
    return Verification("heavy_ball(momentum=0.5)", "a loss", 8, dtype, 0.1, (4e-3, 2e-3, 1e-3), accuracies)


@pytest.mark.parametrize("name", CATALOGUE)
def test_hyperparameters_are_chosen_for_every_method(name):
    method, chosen = visible(name, QUADRATIC)
    assert isinstance(method, ml.Method)
    assert chosen
    assert {key: method.hyper[key] for key in chosen} == chosen


@pytest.mark.parametrize(("name", "problem"), [("adamw", "digits"), ("lion", "smooth"), ("nesterov", "quadratic")])
def test_what_is_chosen_shows_the_powers(name, problem):
    loss = PROBLEMS[problem].loss(0)
    found = verify(visible(name, loss)[0], loss, (5e-4, 2.5e-4), 0.05, ["frozen", "first"])
    assert found.holds, found.verdict


def test_its_numbers_are_those_of_order_of_accuracy():
    method, loss = ml.HeavyBall(lr=0.02, momentum=0.5), PROBLEMS["quadratic"].loss(0)
    found = verify(method, loss, horizon=0.1, kinds=["first", 1])
    assert found.lrs == (0.02, 0.01, 0.005, 0.0025)
    assert found.accuracies == tuple(order_of_accuracy(method, loss, 0.1, found.lrs, kind) for kind in ("first", 1))


def test_what_the_user_gave_is_kept():
    method, chosen = visible("adamw(betas=(0.9, 0.99), eps=1e-8, lr=0.1)", QUADRATIC)
    assert isinstance(method, ml.Method)
    assert (chosen, method.lr, method.hyper["betas"], method.hyper["eps"]) == ({}, 0.1, (0.9, 0.99), 1e-8)
    method, chosen = visible("lion(betas=(0.9, 0.99))", QUADRATIC)  # the default, but the user's word
    assert isinstance(method, ml.Method)
    assert chosen == {"lr": 2e-3, "smoothing": 0.1}
    assert method.hyper["betas"] == (0.9, 0.99)


def test_a_black_box_is_given_fewer_steps():
    method, _ = visible("torch.optim.SGD", QUADRATIC)
    assert isinstance(method, ml.TorchMethod)
    found = verify(method, QUADRATIC, kinds=["frozen"])
    assert found.lrs == (8e-3, 4e-3, 2e-3)
    assert found.horizon == pytest.approx(16 * 8e-3)


def test_verdict_is_judged_by_the_power_of_each_kind():
    assert [power(kind) for kind in (*KINDS, 1)] == [1, 2, 2, 3, 4, 1]
    assert [tolerance(kind) for kind in KINDS] == [0.15, 0.15, 0.15, 0.2, 0.2]
    for kind in KINDS:
        p, width = power(kind), tolerance(kind)
        for shift, answer in (
            (0, True),
            (0.99 * width, True),
            (1.01 * width, False),
            (-0.99 * width, True),
            (-1.01 * width, False),
        ):
            assert holds(exactly(p + shift, kind)) is answer
    good = of(exactly(1, "frozen"), exactly(2, "first"), exactly(3, 3))
    assert good.holds
    assert good.verdict == "As the theorem says: frozen 1.00, first 2.00, order 3 3.00."
    bad = of(exactly(1.3, "frozen"), exactly(2, "first"))
    assert not bad.holds
    assert "first 2.00. Not reached: frozen reads 1.30, the theorem says 1; take smaller lrs" in bad.verdict
    assert not of().holds
    assert math.isnan(of().floor)


def test_verdict_knows_the_floor():
    # 4^k, spoiled by rounding at the finest: judged where it was still above.
    spoiled = Accuracy(4, (4e-3, 2e-3, 1e-3), (2.56e-10, 1.6e-11, 9e-12), 1e-11)
    assert holds(spoiled) is True
    assert holds(replace(spoiled, floor=1e-12)) is False
    assert holds(replace(spoiled, floor=1e-9)) is None
    hidden = of(exactly(2, "first"), exactly(3, 3, floor=1.0), dtype="float32")
    assert not hidden.holds
    assert "Not judged: order 3: the errors are no larger than rounding" in hidden.verdict
    assert "float64 in place of float32" in hidden.verdict
    memoryless = verify(ml.HeavyBall(momentum=0.0), PROBLEMS["quadratic"].loss(0), LRS, 0.01, ["frozen"])
    assert holds(memoryless.accuracies[0]) is None


def test_divergence_keeps_the_kinds_that_were_finished(monkeypatch: pytest.MonkeyPatch):
    finished = exactly(1, "frozen")

    def second_fails(method, loss, horizon, lrs, kind, own, on_step):
        if kind == "first":
            on_step(7, 15)  # 5 steps at the first lr
            raise Diverged("kind 'first' diverged at step 2: why", 2)
        return finished

    monkeypatch.setattr("memoryless.experiments.theorem.accuracy_of", second_fails)
    with pytest.raises(Diverged, match=r"at lr 0\.01, comparing first: kind 'first' diverged at step 2: why") as caught:
        verify(ml.HeavyBall(), PROBLEMS["quadratic"].loss(0), (0.02, 0.01), 0.1, ["frozen", "first"])
    assert caught.value.step == 2
    assert caught.value.so_far.accuracies == (finished,)


def test_the_optimizers_own_path_is_run_once_where_it_can_be_kept(monkeypatch: pytest.MonkeyPatch):
    run: list[float] = []

    def counted(method, loss, horizon, lr):
        run.append(lr)
        return own_path(method, loss, horizon, lr)

    monkeypatch.setattr("memoryless.experiments.theorem.own_path", counted)
    found = []
    for kept in (2**25, 8 * 7):  # eight numbers a step, 5 and 10 steps
        monkeypatch.setattr("memoryless.experiments.theorem.KEPT", kept)
        found.append(verify(ml.HeavyBall(), QUADRATIC, (0.02, 0.01), 0.1, ["frozen", "first"]))
    assert run == [0.02, 0.01, 0.02, 0.01, 0.01]
    assert found[0] == found[1]


def test_what_is_chosen_for_an_optimizer_of_torch():
    method, chosen = visible("torch.optim.Adamax(eps=0.2)", QUADRATIC)
    assert chosen == {"lr": 2e-3, "betas": (0.5, 0.7)}
    assert str(method) == "Adamax(lr=0.002, betas=(0.5, 0.7), eps=0.2)"


def test_progress_counts_the_steps_of_all_kinds():
    told: list[tuple[int, int]] = []
    kinds = ["frozen", "first"]
    verify(ml.HeavyBall(), QUADRATIC, (0.02, 0.01), 0.1, kinds, on_step=lambda done, total: told.append((done, total)))
    assert told == [(n + 1, 30) for n in range(30)]  # 5 steps and 10, twice


def test_a_result_has_plain_data_and_a_page():
    found = of(Accuracy("first", (2.0, 1.0), (0.0, 0.0), 1e-9))
    assert json.loads(found.to_json())["kinds"][0]["slopes"] == [None]
    assert "heavy_ball(momentum=0.5)" in found.to_html()
