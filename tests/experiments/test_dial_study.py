"""The study of the dial: its tests on numbers made for them."""

import numpy as np
import pytest

from memoryless.errors import BadInput
from memoryless.experiments import dial_arms as arms
from memoryless.experiments import dial_study as study
from memoryless.experiments.figure import Figure, Found, experiment
from memoryless.loss.top_eigenvalue import Eigenvalue
from memoryless.report.claims import picture


def made(effect: float, rival: float, lost: bool = False) -> list[Found]:
    """Numbers of four seeds, whose 1-norm grows by `effect` from s = -1 to s = 1, in the other arms by `rival`.

    The test loss rises by 0.1 at s = 1, in the other arms by a fifth of `rival`. Of the last seed s = -0.5 and 0.5 are
    exchanged: ranks that were all alike would have no spread.
    """
    own, found = np.array([1.0, 2.0, 3.0, 4.0]), []
    for setting in study.settings("small", None, 4):
        rate = effect if setting.arm == "dial" else rival
        strength = np.array([1, 1, 1, -1 if abs(setting.strength) == 0.5 else 1]) * setting.strength
        norms = own * np.exp(rate * (1 + 0.01 * own) * strength / 2)
        share = 0.1 if setting.arm == "dial" else 0.2 * rival
        rest = {name: (own + share * setting.strength * (1 + 0.1 * own)).tolist() for name in study.KEPT}
        rest["training_loss"] = (own * np.exp((rival + 0.01) * setting.strength * (1 + 0.01 * own))).tolist()
        missing = [None if lost and setting.strength == 1.0 and k == 2 else x for k, x in enumerate(norms.tolist())]
        found.append(Found(setting, rest | {"gradient_1_norm": missing, "steps": [1, 1, 1, 1]}))
    return found


def test_verdicts_are_those_of_numbers_made_for_them():
    words = {v.claim: v.word for v in study.verdicts(made(0.4, 0.0))}
    assert words[study.CLAIMS["gradient_1_norm"]] == words[study.DOSE] == words[study.RIVALS["lr"]] == "yes"
    assert words[study.CLAIMS["test_accuracy"]] == words[study.AS_IT_IS["test_accuracy"]] == "no"
    assert words[study.AS_IT_IS["gradient_1_norm"]] == "yes"
    assert words[study.MOVED["placebo"]] == words[study.MOVED["lr"]] == words[study.EQUAL] == "yes"
    words = {v.claim: v.word for v in study.verdicts(made(-0.4, 0.3))}
    assert words[study.CLAIMS["gradient_1_norm"]] == words[study.DOSE] == words[study.RIVALS["placebo"]] == "no"
    assert words[study.MOVED["placebo"]] == words[study.MOVED["lr"]] == words[study.EQUAL] == "no"


def test_only_seeds_that_reached_the_target_in_every_arm_are_compared():
    for one in study.studies(made(0.4, 0.0, lost=True)):
        assert "(3 of 4 seeds reached)" in one.name
        change = 0.4 * (1 + 0.01 * np.array([1.0, 2.0, 4.0]))
        assert one.between("dial", "gradient_1_norm") == pytest.approx(change)
        assert one.between("dial", "gradient_1_norm", 0.0) == pytest.approx(change / 2)


def test_a_sharpness_that_was_not_found_is_no_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arms.TopEigenvalue, "at", lambda self, point: Eigenvalue(2.0, 0.5, 0.02, 1))
    found = arms.run(arms.Setting("plain", "dial", 0.0, 1e-3, (0,), target=2.5))
    assert found["residual"] == [0.25]
    assert np.isnan(found["sharpness"]).tolist() == [True]
    assert np.isfinite(found["gradient_1_norm"]).all()


@pytest.mark.parametrize("arm", [("dial", 0.0), ("dial", 0.5), ("dial", -1.0), ("placebo", 1.0), ("lr", -1.0)])
def test_an_arm_that_failed_leaves_its_cells_empty(arm: tuple[str, float]):
    place = "cnn", 32
    every = [
        f for f in made(0.4, 0.0) if (f.setting.kind, f.setting.batch) != place or (f.setting.arm, f.setting.strength) != arm
    ]
    needs = {
        study.AS_IT_IS["test_loss"]: {("dial", -1.0), ("dial", 0.0)},
        study.CLAIMS["test_loss"]: {("dial", -1.0), ("dial", 1.0)},
        study.DOSE: {("dial", s) for s in study.STRENGTHS},
        study.RIVALS["placebo"]: {("placebo", -1.0), ("placebo", 1.0), ("dial", -1.0), ("dial", 1.0)},
        study.RIVALS["lr"]: {("lr", -1.0), ("lr", 1.0), ("dial", -1.0), ("dial", 1.0)},
        study.MOVED["placebo"]: {("placebo", -1.0), ("dial", -1.0), ("dial", 0.0)},
        study.MOVED["lr"]: {("lr", -1.0), ("dial", -1.0), ("dial", 0.0)},
        study.EQUAL: {("dial", -1.0), ("dial", 0.0)},
    }
    for verdict in study.verdicts(every):
        if verdict.claim in needs:
            sizes = {len(cell.values) for cell in verdict.cells if "CNN, 20 % of labels wrong, batch 32" in cell.where}
            assert sizes == {0 if arm in needs[verdict.claim] else 4}
            whole = [len(cell.values) for cell in verdict.cells if "residual MLP, full batch" in cell.where]
            assert whole == ([] if verdict.claim in (*study.MOVED.values(), study.EQUAL) else [4])
    figure = Figure(experiment("dial"), "small", every)
    lines = {row[0].title: {len(panel.lines) for panel in row} for row in figure.panels}
    assert lines.pop("CNN, 20 % of labels wrong, batch 32") == {0 if arm == ("dial", 0.0) else 3}
    assert all(count == {3} for count in lines.values())
    picture(Figure(experiment("dial"), "small", [f for f in every if (f.setting.kind, f.setting.batch) == place]))


def test_each_claim_is_asked_where_it_can_be():
    by = {v.claim: {cell.where.partition(" (")[0] for cell in v.cells} for v in study.verdicts(made(0.4, 0.0))}
    every = {one.title for one in study.studies(made(0.4, 0.0))}
    assert len(every) == len(study.PLACES) == 7
    assert by[study.CLAIMS["test_loss"]] == every
    assert by[study.CLAIMS["test_accuracy"]] == every - {"GPT, batch 32"}
    assert by[study.MOVED["lr"]] == every - {"residual MLP, full batch", "plain MLP, full batch"}
    assert by[study.EQUAL] == {title for title in every if title.endswith("batch 32")}
    assert [len(row) for row in study.panels(made(0.4, 0.0))] == [4] * 6 + [3]


def test_it_has_one_scale():
    with pytest.raises(BadInput, match="one scale"):
        study.settings("paper", None, None)
