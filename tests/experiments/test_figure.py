"""What all figures share: tests of claims, kept runs, failures; and each figure at toy size, against literal twins."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from memoryless.errors import BadInput
from memoryless.experiments import fig5, figure
from memoryless.experiments.atlas.pool import Store
from memoryless.experiments.figure import FILES, SCALES, Cell, Claim, Found, Kept, Reproduction, Verdict, experiment
from memoryless.loss.point import Point
from memoryless.report.claims import lines, picture

TOY = fig5.Setting("mlp", "digits", 40, (0.9, 0.99), 3e-3, 8, 4, (0, 1), width=3)


# Claims


def test_interval_is_that_of_a_t_test():
    values = np.array([0.3, -0.1, 0.4, 0.2, np.nan])
    mean, low, high = Cell("", values).interval
    expected = stats.ttest_1samp(values[:4], 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((0.2, expected.low, expected.high))


def test_answers():
    claim = Claim("c", "s", 0.9, 1.1)
    cases = {
        (1.0, 1.01): "yes",
        (1.2, 1.21): "no",
        (0.5, 0.51): "no",
        (1.09, 1.11): "cannot be told",
        (0.0, 2.0): "cannot be told",
        (1.0,): "cannot be told",
        (1.0, np.nan): "cannot be told",
    }
    assert {values: claim.answer(Cell("", np.array(values))) for values in cases} == cases
    assert Claim("c", "s", high=0.0).answer(Cell("", np.array([-1.0, -1.1]))) == "yes"


def test_words():
    claim, yes, no, open_ = Claim("c", "s", low=0.0), *(Cell("", np.array([x, x + 1e-3])) for x in (1.0, -1.0, 0.0))
    assert [Verdict(claim, cells).word for cells in ([yes], [no, no], [open_], [], [yes, no, open_, open_])] == [
        "yes",
        "no",
        "cannot be told at this size",
        "cannot be told: nothing to judge",
        "in part: yes in 1, no in 1, cannot be told in 2 of 4",
    ]
    assert claim.test == "s: above 0 (95 % t-interval over seeds)"
    assert Claim("c", "s", 0.9, 1.1).test == "s: between 0.9 and 1.1 (95 % t-interval over seeds)"
    assert Claim("c", "s", high=2.0).test == "s: below 2 (95 % t-interval over seeds)"


# Runs


def reproduction(store: Path | None = None, count: int = 3) -> Reproduction:
    settings = [TOY._replace(betas=(0.9, 0.9 + k / 100)) for k in range(count)]
    return Reproduction("fig5", "small", settings, store and Kept(store))


def test_processes_and_restarts_do_not_change_numbers(tmp_path: Path):
    whole = reproduction().run().to_json()
    path, seen = tmp_path / "a.jsonl", []
    reproduction(path, 1).run()
    with path.open("ab") as file:  # of a second row half is there
        file.write(path.read_bytes()[:50])
    assert reproduction(path).run(2, lambda done, total: seen.append((done, total))).to_json() == whole
    assert seen == [(1, 3), (2, 3), (3, 3)]
    kept = path.read_bytes()
    assert reproduction(path).run().to_json() == whole
    assert path.read_bytes() == kept
    assert len(kept.splitlines()) == 3


def test_rows_of_another_version_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.jsonl"
    reproduction(path, 1).run()
    monkeypatch.setattr(figure, "version_of", lambda name: "9.9")
    assert not reproduction(path, 1).rows


def test_a_store_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"library": "torch", "name": "SGD", "versions": {}, "kind": "flat", "problems": {}}\n')
    with pytest.raises(BadInput, match=r"a\.jsonl:1 is no row of a figure; give another file, or take the line out"):
        Kept(path)
    reproduction(path := tmp_path / "b.jsonl", 1).run()
    with pytest.raises(BadInput, match="is no row of an atlas"):
        Store(path)


def test_a_task_that_fails_is_told(tmp_path: Path):
    """Beside another that ends well, and alone."""
    bad = TOY._replace(data="nowhere")
    found = Reproduction("fig5", "small", [TOY, bad], Kept(tmp_path / "a.jsonl")).run()
    assert [setting["data"] for setting, _ in found.failed] == ["nowhere"]
    assert "no such folder" in found.failed[0][1]
    assert "no numbers from {'model'" in list(lines(found))[-1]
    assert len(Kept(tmp_path / "a.jsonl").rows) == 1
    with pytest.raises(BadInput, match=r"no run ended with numbers; the first one: .*no such folder"):
        Reproduction("fig5", "small", [bad]).run(2)


# Recipes


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("scale", SCALES)
def test_settings(name: str, scale: str):
    recipe = experiment(name)
    settings = recipe.settings(scale, None, 2)
    assert recipe.name == name
    assert recipe.about.keys() == set(SCALES)
    assert len({json.dumps(s._asdict()) for s in settings}) == len(settings)
    assert len({seed for s in settings for seed in s.seeds}) == 2
    if scale == "paper":
        assert all(s.data == "here" for s in recipe.settings(scale, "here", 1))  # type: ignore[attr-defined]
    else:
        with pytest.raises(BadInput, match=r"--data here: the .* scale runs on"):
            recipe.settings(scale, "here", None)


# Fig. 5 and 6


def test_sharpness_of_adam_is_that_of_torchs_run():
    """The same run by torch.optim.Adam, with dense eigenvalues of P^-1 H."""
    loss = fig5.loss_of(TOY, 3)
    found, model = fig5.follow(TOY, loss), loss.model
    assert model is not None
    optimizer = torch.optim.Adam(model.parameters(), TOY.lr, TOY.betas, TOY.eps)
    (batch,) = [data for _, data in loss.batches.select(None)]
    for k, t in enumerate(range(TOY.every, TOY.steps + 1, TOY.every)):
        theta = loss.theta
        for _ in range(TOY.every):
            theta = loss.theta.clone()
            optimizer.zero_grad()
            fig5.squared_error(model, batch).backward()
            optimizer.step()
        v = torch.cat([optimizer.state[p]["exp_avg_sq"].flatten() for p in model.parameters()]) / (1 - TOY.betas[1] ** t)
        P = ((1 - TOY.betas[0] ** t) * (v.sqrt() + TOY.eps)).double()
        point = Point(loss, theta)
        H = torch.stack([point.curvature(e) for e in torch.eye(len(theta), dtype=theta.dtype)], 1).double()
        assert found["loss"][k] == pytest.approx(float(loss(theta).detach()), rel=1e-5)
        # A residual of 1 % of the eigenvalue is an error of its square, over the gap to the next one.
        top = float(torch.linalg.eigvals(H / P[:, None]).real.max()) / TOY.threshold
        assert found["preconditioned"][k] == pytest.approx(top, rel=1e-3)
        assert found["plain"][k] == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-3)
    assert found["residual"] < 0.02


def toy_found(preconditioned: float, plain: dict[float, float]) -> list[Found]:
    numbers = {
        b: {"preconditioned": [[9.0, preconditioned]] * 2, "plain": [[9.0, x], [9.0, x * 1.1]]} for b, x in plain.items()
    }
    return [Found(TOY._replace(betas=(0.9, b)), n) for b, n in numbers.items()]


def test_verdicts_of_fig5():
    first, second = experiment("fig5").verdicts(toy_found(1.0, {0.999: 4.0, 0.9: 2.0}))
    assert [first.word, second.word] == ["yes", "yes"]
    assert second.cells[0].values == pytest.approx(np.log(0.5))
    assert [c.where for c in first.cells] == ["β₂ 0.9, lr 0.003", "β₂ 0.999, lr 0.003"]
    first, second = experiment("fig5").verdicts(toy_found(0.5, {0.9: 4.0, 0.999: 2.0}))
    assert [first.word, second.word] == ["no", "no"]


def test_seeds_of_several_tasks_are_one_family():
    parts = [Found(TOY._replace(seeds=(s,)), {"preconditioned": [[0.0, s]], "plain": [[0.0, s]]}) for s in (4, 5)]
    ((panel, _),) = experiment("fig5").panels(parts)
    assert panel.lines[0].y.shape == (2, 2)
    assert experiment("fig5").verdicts(parts)[0].cells[0].values.tolist() == [4, 5]


def test_picture_and_words():
    found: Any = reproduction(count=2).run()
    said = list(lines(found))
    assert said[0].startswith("How sharp Adam lets the loss become, β₁ = 0.9 (small: MLP 64-64-64-10")
    assert said[3].startswith("  test, fixed before the run: mean of λ₁(P⁻¹H) over the second half")
    shown = picture(found)
    assert [len(ax.lines) for ax in shown.axes] == [3, 2]  # two values of beta_2, and the threshold
    assert any("the lower the sharpness" in text.get_text() for text in shown.texts)
