"""The study of rankings: its runs against torch's own, tau against counted pairs, its tests on numbers made for them."""

import itertools
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import memoryless as ml
from memoryless.cli.main import main
from memoryless.corrections.sequences import random_order
from memoryless.errors import BadInput
from memoryless.experiments import ranking_runs as runs_of
from memoryless.experiments import ranking_study as study
from memoryless.experiments.along_batches import Plain, train_along
from memoryless.experiments.figure import Figure, Found, experiment
from memoryless.experiments.problems import cross_entropy, digits_mlp
from memoryless.experiments.training import Networks
from memoryless.live import batch_sizes, loop
from memoryless.loss.batches import cut
from memoryless.report.claims import picture


@pytest.mark.parametrize("size", [None, 5])
def test_many_networks_along_their_own_batches_are_torchs_runs(size: int | None):
    problems = [digits_mlp(seed, width=4, count=30) for seed in (0, 1)]
    (whole,) = problems[0].batches
    batches = [whole] if size is None else cut(whole, size)
    networks = Networks(digits_mlp(0, width=4).model, cross_entropy, [whole])
    orders = torch.stack([torch.from_numpy(random_order(len(batches), 20, np.random.default_rng(seed))) for seed in (0, 1)])
    starts, target = torch.stack([p.loss.theta for p in problems]), 2.28
    rule, samples = Plain(ml.AdamW(1e-2, (0.5, 0.99), 1e-6, 0.0)), torch.arange(30).view(len(batches), -1)
    passed = train_along(networks, rule, starts, samples[orders].transpose(0, 1), target, 2, to_the_end=True)
    for k, problem in enumerate(problems):
        own, loss = torch.optim.AdamW(problem.model.parameters(), 1e-2, (0.5, 0.99), 1e-6, 0.0), problem.loss
        seen: list[tuple[int, torch.Tensor]] = []

        def look(sight: loop.Sight, loss: ml.Loss = loss, seen: list = seen) -> None:
            if sight.taken % 2 == 0 and loss(sight.theta) <= target:
                seen.append((sight.taken, sight.theta.clone()))

        loop.run(own, loss.on(problem.model, batches, 1), 20, look, orders[k].tolist())
        torch.testing.assert_close(passed.last[k], loss.theta, rtol=1e-10, atol=1e-12)
        step, theta = seen[0]
        assert int(passed.steps[k]) == step > 0
        torch.testing.assert_close(passed.thetas[k], theta, rtol=1e-10, atol=1e-12)


def test_a_target_that_is_not_met_leaves_no_point():
    problem = digits_mlp(0, width=4, count=30)
    networks = Networks(problem.model, cross_entropy, problem.batches)
    samples = torch.arange(30).expand(3, 1, 30)
    passed = train_along(networks, Plain(ml.AdamW()), problem.loss.theta[None], samples, 0.0, 1, to_the_end=True)
    assert passed.steps.tolist() == [-1]
    assert passed.thetas.isnan().all()
    assert passed.last.isfinite().all()


def counted(a: np.ndarray, b: np.ndarray) -> float:
    """tau-b as it is defined, over all pairs of places."""
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(len(a)), 2)]
    agree = sum(x * y for x, y in signs)
    return agree / np.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))


@pytest.mark.parametrize("rule", [*study.RULES])
def test_agreement_is_that_of_counted_pairs(rule: str):
    goods = np.random.default_rng(0).integers(0, 9, len(study.PAIRS)).astype(float)
    for size in study.SIZES:
        scores = study.preference(rule, size)
        assert study.tau(scores, goods) == pytest.approx(counted(scores, goods))
    assert np.isnan(study.tau(goods, np.ones_like(goods)))


def test_rules_prefer_what_they_say():
    def best_of(rule: str, batch: int | None) -> set[tuple[float, float]]:
        x = study.preference(rule, batch)
        return {study.PAIRS[i] for i in np.flatnonzero(x == x.max())}

    assert best_of("tied", 32) == {(0.9, 0.9), (0.95, 0.95)}
    assert best_of("default", 8) == {(0.9, 0.999)}
    assert best_of("half_life", 32) == {(one, 0.999) for one in runs_of.FIRST}
    # A half-life of 32 ln 2 / -ln .999 samples is that of .9907 at 288 samples a step.
    assert best_of("half_life", None) == {(one, 0.99) for one in runs_of.FIRST}


def made(agrees: bool) -> list[Found]:
    """Numbers of four seeds in which the map ranks as the runs do, or the other way round; one pair is lost in one seed."""
    rng, found = np.random.default_rng(1), []
    good = rng.permutation(len(study.PAIRS)).astype(float)
    for setting in study.settings("small", None, 4):
        if setting.part == "map":
            noisy = (1 if agrees else -1) * good + rng.normal(0, 2, (4, len(good)))
            first = rng.normal(0, 1, (4, len(good)))
            maps = {"measured": -noisy, "first": first, "resummed": first}
            found.append(Found(setting, {f"{o} {m}": x.tolist() for o, x in maps.items() for m in runs_of.MEASURES}))
            continue
        k = study.PAIRS.index(setting.betas)
        runs = {name: (outcome.sign * (good[k] + rng.normal(0, 0.5, 4))).tolist() for name, outcome in study.OUTCOMES.items()}
        if k == 3:
            runs["test_loss"][1] = None
        # Losses of pairs lie 1 % apart at most, or 10 %.
        apart = (0.01 if agrees else 0.1) * (k % 2) * np.random.default_rng(k).uniform(0.8, 1, 4)
        found.append(Found(setting, runs | {"steps": [1] * 4, "training_loss": (0.05 * (1 - apart)).tolist()}))
    return found


def test_verdicts_are_those_of_numbers_made_for_them():
    words = {v.claim: v.word for v in study.verdicts(made(True))}
    assert {words[claim] for claim in study.RANKS.values()} == {words[claim] for claim in study.POSSIBLE.values()} == {"yes"}
    assert {words[study.BETTER[name, "first"]] for name in ("test_accuracy", "final_loss")} == {"yes"}
    assert words[study.EQUAL] == "yes"
    words = {v.claim: v.word for v in study.verdicts(made(False))}
    assert {words[claim] for claim in study.RANKS.values()} == {"no"}
    assert words[study.EQUAL] == "no"
    assert {words[claim] for claim in study.POSSIBLE.values()} == {"yes"}


def test_pairs_that_did_not_come_so_far_are_left_out():
    every = made(True)
    assert len(study.ranked(every)) == len(study.CELLS)
    for each in study.ranked(every):
        assert "(14 of 15 pairs)" in each.where("test_loss")
        assert "(15 of 15 pairs)" in each.where("test_accuracy")
        kept = np.arange(len(study.PAIRS)) != 3
        goods, scores = -each.outcomes["test_loss"][:, kept], -each.maps["measured gradient_1_norm"][:, kept]
        assert each.taus("test_loss", "measured") == pytest.approx([counted(a, b) for a, b in zip(scores, goods, strict=True)])
        others = [goods[[i for i in range(4) if i != k]].mean(0) for k in range(4)]
        assert each.taus("test_loss", study.SEEDS) == pytest.approx([counted(a, b) for a, b in zip(others, goods, strict=True)])


def test_tasks_that_failed_leave_their_cells_empty():
    every = [f for f in made(True) if (f.setting.kind, f.setting.batch, f.setting.part) != ("plain", 8, "map")]
    every = [f for f in every if (f.setting.kind, f.setting.batch, f.setting.betas) != ("residual", 32, study.PAIRS[0])]
    sizes = {v.claim: [len(cell.values) for cell in v.cells] for v in study.verdicts(every)}
    assert sizes[study.RANKS["final_loss"]] == sizes[study.BETTER["test_loss", "tied"]] == [4, 0, 4, 4, 4, 0]
    assert sizes[study.POSSIBLE["final_loss"]] == [4, 0, 4, 4, 4, 4]
    picture(Figure(experiment("ranking"), "small", every))


def test_no_numbers_at_all_are_drawn_as_such():
    assert study.verdicts([])[0].cells == []
    picture(Figure(experiment("ranking"), "small", []))


@pytest.mark.parametrize(("agrees", "least", "most"), [(True, 0.001, 0.002), (False, 0.99, 1.0)])
def test_arbitrary_orders_that_do_as_well_are_counted(agrees: bool, least: float, most: float):
    each = study.ranked(made(agrees))[0]
    share, kept = each.by_chance("test_loss", "measured", 99), each.kept("test_loss")
    goods, scores = -each.outcomes["test_loss"][:, kept], -each.maps["measured gradient_1_norm"][:, kept]
    random = np.random.default_rng(0)
    orders = [np.arange(14), *(random.permutation(14) for _ in range(99))]
    means = [np.mean([counted(a[order], b) for a, b in zip(scores, goods, strict=True)]) for order in orders]
    assert share == pytest.approx(np.mean(np.array(means) >= means[0] - 1e-12))
    assert least <= each.by_chance("test_loss", "measured") <= most


@pytest.mark.parametrize("batch", [None, 12])
def test_from_one_end_to_the_other(batch: int | None):
    """A map and the runs of one pair, tiny."""
    one = study.Setting("plain", batch, "map", study.LIVE, 1e-3, 160, (0, 1), images=24, target=2.3)
    maps = study.run(one)
    runs = study.run(one._replace(part="run", steps=60))
    assert {name: np.shape(x) for name, x in maps.items()} == {
        f"{order} {m}": (2, len(study.PAIRS)) for order in study.ORDERS for m in runs_of.MEASURES
    }
    assert runs.keys() == {*study.OUTCOMES, "training_loss", "steps"}
    assert min(runs["steps"]) > 0
    assert np.isfinite(runs["test_accuracy"]).all()
    if batch is None:  # to first order, the older the memory in the denominator, the more it raises the norm
        alone = [k for k, (beta_1, _) in enumerate(study.PAIRS) if beta_1 == 0.5]
        assert (np.diff(np.array(maps["first gradient_1_norm"])[:, alone], axis=1) > 0).all()


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """One cell, too few steps to meet the target: only the loss after all of them ranks."""
    monkeypatch.setattr(study, "CELLS", {("plain", None): (1e-3, 4)})
    files = ["--picture", str(tmp_path / "a.png"), "--store", str(tmp_path / "a.jsonl")]
    main(["study", "ranking", "--seeds", "2", "--jobs", "1", "--json", *files])
    found = json.loads(capsys.readouterr().out)
    cells = {claim["claim"]: claim["cells"] for claim in found["claims"]}
    (lost,), (last,) = cells[study.RANKS["test_loss"].text], cells[study.RANKS["final_loss"].text]
    assert lost["where"].startswith("plain MLP, full batch (0 of 15 pairs); ")
    assert lost["mean"] is None
    assert last["where"].startswith("plain MLP, full batch (15 of 15 pairs); ")
    assert -1 <= last["mean"] <= 1
    assert (tmp_path / "a.png").stat().st_size > 0
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1 + len(study.PAIRS)


@pytest.mark.parametrize("batch", [None, 8])
def test_the_map_is_of_the_batches_that_the_runs_take(batch: int | None, monkeypatch: pytest.MonkeyPatch):
    one, seen = study.Setting("plain", batch, "map", study.LIVE, 1e-3, 160, (6000,)), []

    class Enough(Exception):
        pass

    def run(optimizer, loss, steps, look, order):  # type: ignore[no-untyped-def]
        batches = dict(loss.batches.select(None))
        seen.extend(batches[int(i)] for i in order[:steps])
        raise Enough

    monkeypatch.setattr(batch_sizes.loop, "run", run)
    with pytest.raises(Enough):
        study.run(one)
    (inputs, _), _ = runs_of.data_of(one)
    taken = list(itertools.islice(runs_of.orders(one), len(seen)))
    assert len(seen) == 8
    for (mapped, _), samples in zip(seen, taken, strict=True):
        assert torch.equal(mapped, inputs[samples[0]])


def test_it_has_one_scale(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(BadInput, match="one scale"):
        study.settings("paper", None, None)
    with pytest.raises(SystemExit) as end:
        main(["study", "ranking", "--seeds", "0"])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("--seeds must be at least 1, got 0")
