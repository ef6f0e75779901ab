"""Optimizers side by side on the same loss, each along its own run."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import memoryless as ml
from memoryless.audits.compare import compare, parse
from memoryless.cli.main import main
from memoryless.experiments.problems import cross_entropy, digits


def network() -> ml.Loss:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 3), nn.GELU(), nn.Linear(3, 10)).double()
    return ml.Loss(model, cross_entropy, [digits(20)])


def test_a_row_is_the_audit_of_a_live_optimizer():
    """The second way: torch's optimizer stepped on the parameters themselves, then ml.audit."""
    loss = network()
    rows = compare({"adamw": ml.AdamW(), "black box": parse("torch.optim.AdamW", loss, None)}, loss, steps=12)
    optimizer = torch.optim.AdamW(loss.parameters)
    for _ in range(12):
        gradient = loss.gradient(loss.theta)
        for p, part in zip(loss.parameters, loss.slices.values(), strict=True):
            p.grad = gradient[part].view_as(p)
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
    rows = compare({"wild": ml.HeavyBall(1.0), "none": ValueError("no such"), "good": ml.Adam()}, loss, steps=20)
    assert [row.audit is None for row in rows] == [True, True, False]
    assert rows[0].reason is not None
    assert rows[0].reason.startswith("diverged: ")
    assert rows[1].reason == "no such"


def test_matrices_go_to_an_optimizer_that_takes_nothing_else():
    rows = compare({"muon": parse("torch.optim.Muon(lr=1e-3)", network(), None)}, network(), steps=2)
    assert rows[0].audit is not None
    assert rows[0].audit.F[64 * 3 : 65 * 3].abs().max() == 0  # a bias


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare({"adam": ml.Adam()}, network(), steps=0), "steps must be an integer >= 1, got 0"),
        (lambda: compare({}, network()), "at least one optimizer"),
        (lambda: parse("torch.optim.Nope", network(), None), "torch.optim.Nope"),
        (lambda: parse("torch.optim.lr_scheduler.StepLR", network(), None), "is no class of torch optimizers"),
        (lambda: parse("lions", network(), None), "unknown optimizer 'lions'"),
        (lambda: parse("torch.optim.Adam(0.1)", network(), None), "expected a name or name"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    main(["compare", "adamw", "torch.optim.RAdam", "torch.optim.LBFGS", "--steps", "3", "--png", "c.png"])
    shown = capsys.readouterr().out
    for text in ("gradient 1-norm", "sharpness", "adamw", "RAdam", "torch.optim.LBFGS: LBFGS.step() evaluates the loss again"):
        assert text in shown
    assert b"Software\x00memoryless" in (tmp_path / "c.png").read_bytes()
    main(["compare", "lion", "--steps", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["rows"][0]["audit"]["step"] == 2
    (tmp_path / "mine.png").write_bytes(b"mine")
    for bad in (["foo"], ["adamw", "--png", "mine.png"], ["adamw", "--lr", "-1"], ["adamw", "--png", "c.txt"]):
        with pytest.raises(SystemExit) as caught:
            main(["compare", *bad])
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith("memoryless: ")
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
