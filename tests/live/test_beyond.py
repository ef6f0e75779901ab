"""Where a run does not speak for a pair: branches of some real steps, and further runs beside, against the same by hand."""

import copy

import numpy as np
import pytest
import torch

import memoryless as ml
from memoryless.corrections.history import frozen
from memoryless.experiments.problems import digits_batches, digits_mlp
from memoryless.report.audit import print_run

BETAS = ((0.5, 0.9), (0.9, 0.99))
NORM = ["gradient_1_norm"]


def small():
    problem = digits_mlp(width=4, count=40)
    return problem.loss, torch.optim.Adam(problem.model.parameters(), lr=1e-3, betas=(0.9, 0.99))


def audited(steps: int, stops: list[int], **options):
    loss, optimizer = small()
    others = [ml.Adam(1e-3, (0.5, 0.9)), ml.HeavyBall(1e-3)]
    return ml.audit_run(optimizer, loss, steps, stops=stops, measures=NORM, compare=others, betas=BETAS, **options)


def test_the_run_stays_what_it_was():
    (loss, optimizer), (plain_loss, plain_optimizer) = small(), small()
    before = torch.get_rng_state()
    ml.audit_run(
        optimizer,
        loss,
        25,
        stops=[3, 25],
        measures=NORM,
        compare=[],
        betas=((0.5, 0.9), (0.9,)),
        branch=True,
        anchors=[(0.5, 0.9)],
    )
    assert torch.equal(before, torch.get_rng_state())
    for _ in range(25):
        plain_loss.layout.set_gradients(plain_loss.gradient(plain_loss.theta))
        plain_optimizer.step()
    assert torch.equal(loss.theta, plain_loss.theta)
    for a, b in zip(optimizer.state.values(), plain_optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def change(loss: ml.Loss, method, state, theta: torch.Tensor, n: int) -> float:
    g = loss.gradient(theta)
    F = frozen(method, g, theta, n)
    u = method.update(state, g, theta)[1]
    with_memory, without = (float(loss.gradient(theta - method.lr * each).abs().sum()) for each in (u, F))
    return (with_memory - without) / float(g.abs().sum())


@pytest.mark.parametrize("stop", [5, 28])
def test_a_branch_is_the_methods_own_steps_from_its_shadows_memory(stop: int):
    (found,) = audited(stop, [stop], branch=True).stops
    loss, optimizer = small()
    live = ml.method_of(optimizer, loss.layout)
    methods = [ml.Adam(1e-3, (0.5, 0.9)), ml.HeavyBall(1e-3)]
    methods += [live.with_betas(b1, b2) for b1 in BETAS[0] for b2 in BETAS[1]]
    assert [branch.betas for branch in found.branches] == [None, None, *((b1, b2) for b1 in BETAS[0] for b2 in BETAS[1])]
    for method, branch in zip(methods, found.branches, strict=True):
        theta, own, run = loss.theta, method.init(loss.theta), live.init(loss.theta)
        for n in range(stop):
            g = loss.gradient(theta)
            own, u = method.update(own, g, theta)
            run, v = live.update(run, g, theta)
            theta = theta - method.lr * (v if n < stop - 20 else u)
        assert branch.branch["gradient_1_norm"] == pytest.approx(change(loss, method, own, theta, stop), rel=1e-5, abs=1e-10)
    assert found.branches[0].shadow["gradient_1_norm"] == pytest.approx(found.others[0].change[0], rel=1e-8)
    assert found.branches[-1].agrees == {"gradient_1_norm": True}  # the live pair


def test_branches_of_stops_close_together():
    several = audited(22, [4, 22], branch=True).stops
    for n, stop in zip((4, 22), several, strict=True):
        assert stop.branches == audited(n, [n], branch=True).stops[0].branches
    assert audited(2, [0, 2], branch=True).stops[0].branches == ()


def test_an_anchor_is_a_run_of_its_own():
    (found,) = audited(15, [15], anchors=[(0.5, 0.9)]).stops
    (alone,) = audited(15, [15]).stops
    loss, optimizer = small()
    for group in optimizer.param_groups:
        group["betas"] = (0.5, 0.9)
    (own,) = ml.audit_run(optimizer, loss, 15, stops=[15], measures=NORM, betas=BETAS).stops
    run, live, anchor = (stop.maps[0] for stop in (found, alone, own))
    assert run.anchor is not None
    assert run.deviation is not None
    assert live.deviation is not None
    assert anchor.deviation is not None
    assert run.anchor.tolist() == (anchor.deviation < live.deviation).astype(int).tolist()
    assert {0, 1} == set(run.anchor.flatten())
    assert run.anchor[0, 0] == 1
    assert run.anchor[1, 1] == 0
    np.testing.assert_allclose(run.deviation, np.minimum(anchor.deviation, live.deviation), rtol=1e-6, atol=1e-9)
    expected = np.where(run.anchor == 1, anchor.change, live.change)
    np.testing.assert_allclose(run.change, expected, rtol=1e-6)
    assert all(run.anchor[BETAS[0].index(c.betas[0]), BETAS[1].index(c.betas[1])] == 0 for c in run.checks)
    assert found.as_dict()["maps"][0]["anchor"] == run.anchor.tolist()


def test_shown(capsys):
    from rich.console import Console

    run = audited(22, [22], branch=True, anchors=[(0.5, 0.9)])
    print_run(run, Console(width=200))
    assert "Shadows checked by 20 real steps of their own" in capsys.readouterr().out
    assert "Shadows checked by real steps" in run.to_html()
    assert copy.deepcopy(run.as_dict())["stops"][0]["branches"][0]["agrees"]["gradient_1_norm"] in (True, False)


def batches(**options):
    problem = digits_batches(size=200, width=4)
    return ml.audit_run(torch.optim.Adam(problem.model.parameters()), problem.loss, [0, 1, 0], stops=[2], **options)


def stepped(**options):
    loss, optimizer = small()
    loss.layout.set_gradients(loss.gradient(loss.theta))
    optimizer.step()
    return ml.audit_run(optimizer, loss, 3, **options)


def no_map(**options):
    loss, optimizer = small()
    return ml.audit_run(optimizer, loss, 3, betas=None, **options)


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (batches, {"branch": True}, "full-batch steps of their own"),
        (batches, {"anchors": [(0.9, 0.9)]}, "full-batch steps of their own"),
        (stepped, {"anchors": [(0.9, 0.9)]}, "steps behind it"),
        (lambda **options: audited(3, [3], **options), {"anchors": [0.9]}, "anchors must be pairs"),
        (no_map, {"anchors": [(0.9, 0.9)]}, "give betas"),
    ],
)
def test_bad_input(run, options, message):
    with pytest.raises(ml.errors.BadInput, match=message):
        run(**options)
