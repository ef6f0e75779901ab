"""Optimizers side by side on the same loss, each along its own run."""

import pytest
import torch
from torch import nn

import memoryless as ml
from memoryless.audits.compare import compare
from memoryless.experiments.problems import cross_entropy, digits
from memoryless.render.numbers import percent


def network() -> ml.Loss:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 3), nn.GELU(), nn.Linear(3, 10)).double()
    return ml.Loss(model, cross_entropy, [digits(20)])


def test_a_row_is_the_audit_of_a_live_optimizer():
    """The second way: torch's optimizer stepped on the parameters themselves, then ml.audit."""
    loss = network()
    rows = compare({"adamw": ml.AdamW(), "black box": ml.TorchMethod(torch.optim.AdamW, loss.shapes)}, loss, steps=12)
    optimizer = torch.optim.AdamW(loss.layout.tensors)
    for _ in range(12):
        loss.layout.set_gradients(loss.gradient(loss.theta))
        optimizer.step()
    live = ml.audit(optimizer, loss)
    for row in rows:
        assert row.audit is not None
        for e, expected in zip(row.audit.effects, live.effects, strict=True):
            assert e.value == pytest.approx(expected.value, rel=1e-9)
            assert e.measured == pytest.approx(expected.measured, rel=1e-6)
            assert e.first == pytest.approx(expected.first, rel=1e-6)
            assert e.resummed == pytest.approx(expected.resummed, rel=1e-6)


def test_the_loss_is_left_as_it_is():
    loss = network()
    before = loss.theta
    compare({"lion": ml.Lion()}, loss, steps=3)
    assert torch.equal(loss.theta, before)


def test_what_cannot_be_compared_has_its_reason():
    loss = ml.Loss.of(lambda theta: (theta**4).sum(), torch.tensor([3.0, -3.0]))
    rows = compare({"wild": ml.HeavyBall(1.0), "good": ml.Adam()}, loss, steps=20).rows
    assert [row.audit is None for row in rows] == [True, False]
    assert rows[0].reason is not None
    assert rows[0].reason.startswith("diverged: ")


def test_the_answers_name_the_largest_change_first():
    """Audits put together by hand: the words are the audits' own."""
    loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, torch.linspace(0.5, 2.0, 40, dtype=torch.float64))
    optimizers = {"ball": ml.HeavyBall(1e-3), "plain": ml.HeavyBall(1e-3, momentum=0.0), "nesterov": ml.Nesterov(1e-2)}
    found = compare(optimizers | {"adam": ml.Adam(1e-2, betas=(0.0, 0.9))}, loss, steps=10, measures=["gradient_norm_squared"])
    change = {row.name: row.audit.effects[0].measured for row in found if row.audit}
    (answer,) = found.answers
    assert list(answer.changes) == ["regularizes", "anti-regularizes", "neutral"]
    assert answer.changes["regularizes"] == {"nesterov": change["nesterov"], "ball": change["ball"]}
    assert list(answer.changes["regularizes"]) == ["nesterov", "ball"]
    assert found.verdict == (
        f"On the gradient norm squared, per step: memory regularizes most under nesterov ({percent(change['nesterov'])}), "
        f"then ball ({percent(change['ball'])}); anti-regularizes under adam ({percent(change['adam'])}); "
        "is neutral under plain (no more than chance)."
    )
    assert found.as_dict()["answers"][0]["changes"] == answer.changes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare({"adam": ml.Adam()}, network(), steps=0), "steps must be an integer >= 1, got 0"),
        (lambda: compare({}, network()), "at least one optimizer"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
