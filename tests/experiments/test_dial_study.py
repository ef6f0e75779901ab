"""The study of the dial: its arms against `ml.dial` itself, and its tests on numbers made for them."""

import numpy as np
import pytest
import torch

import memoryless as ml
from memoryless.errors import BadInput
from memoryless.experiments import dial_study as study
from memoryless.experiments.figure import Figure, Found, experiment
from memoryless.experiments.problems import cross_entropy, digits_mlp
from memoryless.experiments.training import Networks, iterates
from memoryless.loss.top_eigenvalue import Eigenvalue
from memoryless.report.claims import picture


@pytest.mark.parametrize("placebo", [None, "permuted"])
@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.5, 1.0])
def test_many_networks_at_once_take_the_steps_of_the_dial(strength: float, placebo: str | None):
    problems = [digits_mlp(seed, width=4, count=30) for seed in (0, 1)]
    networks = Networks(problems[0].model, cross_entropy, problems[0].batches)
    method = ml.AdamW(1e-3, (0.9, 0.99), 1e-6, 0.0)
    dialled = study.Dialled(method, strength, study.permutation(networks.layout) if placebo else None)
    path = iterates(networks, dialled, torch.stack([p.loss.theta for p in problems]))
    thetas = [next(path)[0] for _ in range(21)][-1]
    for theta, problem in zip(thetas, (digits_mlp(seed, width=4, count=30) for seed in (0, 1)), strict=True):
        own = torch.optim.AdamW(problem.model.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
        optimizer, loss = ml.dial(own, strength, placebo=placebo), problem.loss
        for _ in range(20):
            loss.layout.set_gradients(loss.gradient(loss.theta))
            optimizer.step()
        torch.testing.assert_close(theta, loss.theta, rtol=1e-10, atol=1e-12)


def made(effect: float, rival: float, lost: bool = False) -> list[Found]:
    """Numbers of four seeds, whose 1-norm grows by `effect` from s = -1 to s = 1, in the other arms by `rival`.

    Of the last seed s = -0.5 and 0.5 are exchanged: ranks that were all alike would have no spread.
    """
    own, found = np.array([1.0, 2.0, 3.0, 4.0]), []
    for setting in study.settings("small", None, 4):
        rate = effect if setting.arm == "dial" else rival
        strength = np.array([1, 1, 1, -1 if abs(setting.strength) == 0.5 else 1]) * setting.strength
        norms = own * np.exp(rate * (1 + 0.01 * own) * strength / 2)
        rest = {name: (own + 0.1 * setting.strength * (1 + 0.1 * own)).tolist() for name in study.MEASURES}
        missing = [None if lost and setting.strength == 1.0 and k == 2 else x for k, x in enumerate(norms.tolist())]
        found.append(Found(setting, rest | {"gradient_1_norm": missing, "steps": [1, 1, 1, 1]}))
    return found


def test_verdicts_are_those_of_numbers_made_for_them():
    words = {v.claim: v.word for v in study.verdicts(made(0.4, 0.0))}
    assert words[study.CLAIMS["gradient_1_norm"]] == words[study.DOSE] == words[study.RIVALS["lr"]] == "yes"
    assert words[study.CLAIMS["test_accuracy"]] == words[study.AS_IT_IS["test_accuracy"]] == "no"
    assert words[study.AS_IT_IS["gradient_1_norm"]] == "yes"
    words = {v.claim: v.word for v in study.verdicts(made(-0.4, 0.3))}
    assert words[study.CLAIMS["gradient_1_norm"]] == words[study.DOSE] == words[study.RIVALS["placebo"]] == "no"


def test_only_seeds_that_reached_the_target_in_every_arm_are_compared():
    for one in study.studies(made(0.4, 0.0, lost=True)):
        assert "(3 of 4 seeds reached)" in one.name
        change = 0.4 * (1 + 0.01 * np.array([1.0, 2.0, 4.0]))
        assert one.between("dial", "gradient_1_norm") == pytest.approx(change)
        assert one.between("dial", "gradient_1_norm", 0.0) == pytest.approx(change / 2)


def test_a_sharpness_that_was_not_found_is_no_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study.TopEigenvalue, "at", lambda self, point: Eigenvalue(2.0, 0.5, 0.02, 1))
    found = study.run(study.Setting("plain", "dial", 0.0, 1e-3, (0,), target=2.5))
    assert found["residual"] == [0.25]
    assert np.isnan(found["sharpness"]).tolist() == [True]
    assert np.isfinite(found["gradient_1_norm"]).all()


@pytest.mark.parametrize("arm", [("dial", 0.0), ("dial", 0.5), ("dial", -1.0), ("placebo", 1.0), ("lr", -1.0)])
def test_an_arm_that_failed_leaves_its_cells_empty(arm: tuple[str, float]):
    every = [f for f in made(0.4, 0.0) if f.setting.kind == "plain" or (f.setting.arm, f.setting.strength) != arm]
    needs = {
        study.AS_IT_IS["test_loss"]: {("dial", -1.0), ("dial", 0.0)},
        study.CLAIMS["test_loss"]: {("dial", -1.0), ("dial", 1.0)},
        study.DOSE: {("dial", s) for s in study.STRENGTHS},
        study.RIVALS["placebo"]: {("placebo", -1.0), ("placebo", 1.0), ("dial", -1.0), ("dial", 1.0)},
        study.RIVALS["lr"]: {("lr", -1.0), ("lr", 1.0), ("dial", -1.0), ("dial", 1.0)},
    }
    sizes = {v.claim: [len(cell.values) for cell in v.cells] for v in study.verdicts(every)}
    assert {claim: sizes[claim] for claim in needs} == {claim: [0 if arm in own else 4, 4] for claim, own in needs.items()}
    figure = Figure(experiment("dial"), "small", every)
    assert [[len(p.lines) for p in row] for row in figure.panels] == [[0 if arm == ("dial", 0.0) else 3] * 4, [3] * 4]
    picture(figure)


def test_it_has_one_scale():
    with pytest.raises(BadInput, match="one scale"):
        study.settings("paper", None, None)
