"""One run: the numbers against a loop written out, and the same bits wherever it was killed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import memoryless as ml
from memoryless.errors import BadInput
from memoryless.experiments.problems import cross_entropy, digits, digits_mlp
from memoryless.experiments.sweep import training
from memoryless.experiments.sweep.grid import MEASURES, Run
from memoryless.experiments.sweep.problem import parts, size
from memoryless.experiments.sweep.training import Kept, Unwritable, train

RUN = Run(
    problem="digits_mlp(count=60, width=4)",
    optimizer="adamw",
    options=(("lr", 0.01),),
    batch_size="full",
    dial=0.0,
    seed=3,
    steps=9,
    every=4,
    what=MEASURES,
    test=None,
    dtype="float64",
    device="cpu",
    cores=1,
)
SCRIPT = """
import torch
from torch import nn

generator = torch.Generator().manual_seed(0)
DATA = [(torch.randn(6, 3, generator=generator), torch.randn(6, 1, generator=generator)) for _ in range(4)]

def mse(model, batch):
    return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

def setup():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    return model, mse, DATA, torch.optim.RMSprop(model.parameters(), lr=0.01)

def test():
    return DATA[:1]

def shuffles():
    model, criterion, batches, optimizer = setup()
    rows = torch.utils.data.TensorDataset(*(torch.cat(x) for x in zip(*batches)))
    return model, criterion, torch.utils.data.DataLoader(rows, 6, shuffle=True), optimizer

def raises():
    model, _, batches, optimizer = setup()
    def criterion(model, batch):
        raise KeyError("weights")
    return model, criterion, batches, optimizer

def frozen():
    model, criterion, batches, optimizer = setup()
    model.requires_grad_(False)
    return model, criterion, batches, optimizer
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("scripts") / "mine.py"
    path.write_text(SCRIPT)
    return str(path)


def written_out(run: Run) -> list[dict[str, float]]:
    """The loop as anyone writes it; the loss and its gradient by `ml.Loss`."""
    torch.set_default_dtype(torch.float32)
    model = digits_mlp(run.seed, 4, 120).model
    torch.set_default_dtype(torch.float64)
    x, y = digits(120)
    order = np.random.default_rng([run.seed, 0]).permutation(60), np.random.default_rng([run.seed, 1]).permutation(60)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.01)
    full = run.batch_size == "full"
    if run.dial:
        optimizer = ml.dial(optimizer, run.dial, **({} if full else {"model": model, "criterion": cross_entropy}))
    found = []
    for n in range(run.steps + 1):
        if n in run.recorded:
            loss = ml.Loss(model, cross_entropy, [(x[:60], y[:60])])
            gradient = loss.gradient(loss.theta).abs().sum()
            logits = model(x[60:])
            test = nn.functional.cross_entropy(logits, y[60:]), (logits.argmax(1) == y[60:]).double().mean()
            values = [float(value.detach()) for value in (loss(loss.theta), gradient, *test)]
            found.append({"step": n, **dict(zip(MEASURES, values, strict=True))})
        rows = slice(60) if full else torch.from_numpy(np.concatenate(order))[n * 20 : (n + 1) * 20]
        batch = x[:60][rows], y[:60][rows]
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step(**({"batch": batch} if run.dial and not full else {}))
    return found


@pytest.mark.parametrize(("batch_size", "dial"), [("full", 0.0), ("full", -1.0), (20, 0.0), (20, 1.0)])
def test_a_run_is_the_loop_written_out(batch_size, dial):
    run = RUN._replace(batch_size=batch_size, dial=dial, steps=5, every=2)
    for found, expected in zip(train(run)["records"], written_out(run), strict=True):
        assert found == pytest.approx(expected, rel=1e-12)


def test_each_epoch_is_a_new_permutation():
    made = training.work(RUN)
    order = training.Order(made, RUN._replace(batch_size=20))
    epochs = [torch.cat([order[n][0] for n in range(3 * e, 3 * e + 3)]) for e in range(2)]
    rows = [{tuple(row.tolist()) for row in epoch} for epoch in epochs]
    assert rows[0] == rows[1] == {tuple(row.tolist()) for row in made.samples[0]}
    assert not torch.equal(*epochs)
    assert torch.equal(order[1][0], training.Order(made, RUN._replace(batch_size=20))[1][0])


class Stop(BaseException):
    pass


def stopped(run: Run, tmp_path, monkeypatch, at: tuple[int, ...], place=lambda target: target) -> dict:
    """Stopped before these steps, each time gone on from a checkpoint that is written at every step."""
    monkeypatch.setattr(training, "COST", 0)
    kept = tmp_path / "run.pt"

    def stop(step: int, where: int) -> None:
        if step == where:
            raise Stop

    for where in at:
        with pytest.raises(Stop):
            train(run, Kept(kept, 0.0), place, lambda n, where=where: stop(n, where))
    return train(run, Kept(kept, 0.0), place)


SAME = "records", "fingerprint", "d", "diverged"
KINDS = {
    "full": {},
    "mini": {"batch_size": 16},
    "dialled": {"dial": -1.0},
    "dialled mini": {"batch_size": 16, "dial": -1.0},
    "method": {"optimizer": "lion"},
    "nadam": {"optimizer": "nadam"},  # torch turns its product of momenta to the parameters' dtype when a state is loaded
    "black box": {"optimizer": "torch.optim.Adamax", "dial": 1.0},
    "diverges": {"optimizer": "sgd", "options": (("lr", 1e200),), "steps": 6},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_the_same_bits(kind, tmp_path, monkeypatch):
    run = RUN._replace(**KINDS[kind])
    whole = train(run)
    found = stopped(run, tmp_path, monkeypatch, (1,) if kind == "diverges" else (3, 4, 8))
    assert [found[name] for name in SAME] == [whole[name] for name in SAME]
    assert found["resumed"] == (1 if kind == "diverges" else 3)
    assert (whole["diverged"] is not None) == (kind == "diverges")


def test_a_script_goes_on_with_the_same_bits(script, tmp_path, monkeypatch):
    """Dropout and BatchNorm, batches and an optimizer of its own."""
    run = RUN._replace(
        problem=f"{script}:setup", optimizer=None, batch_size=None, what=MEASURES[:3], test=f"{script}:test", dtype=""
    )
    whole = train(run)
    assert whole["records"] != train(run._replace(seed=4))["records"]
    found = stopped(run, tmp_path, monkeypatch, (3, 4, 8))
    assert [found[name] for name in SAME] == [whole[name] for name in SAME]
    assert [list(record) for record in whole["records"]] == [["step", *MEASURES[:3]]] * 4
    cut = train(run._replace(batch_size=5, optimizer="adam", options=()))
    assert cut["records"][-1]["train_loss"] != whole["records"][-1]["train_loss"]


def test_a_run_leaves_the_generators_and_the_dtype_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_default_dtype()  # pyright: ignore
    train(RUN._replace(steps=1))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), torch.get_default_dtype()) == before[1:]  # pyright: ignore


def test_a_checkpoint_that_cannot_be_read_is_none(tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(b"torn")
    assert train(RUN, Kept(path))["resumed"] == 0


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path):
    with pytest.raises(Unwritable, match=r"checkpoint .*run\.pt cannot be written: No such file .* make room"):
        train(RUN, Kept(tmp_path / "gone" / "run.pt", 0.0))


def test_large_data_is_measured_in_parts():
    data = torch.arange(2500.0)[:, None], torch.arange(2500)
    found = parts(data)
    assert [size(part) for part in found] == [833, 834, 833]
    assert torch.equal(torch.cat([x for x, _ in found]), data[0])
    made = training.work(RUN)._replace(samples=data, batches=found, criterion=lambda model, batch: batch[0].mean())
    assert training.measure(made, ["train_loss"])["train_loss"] == pytest.approx(1249.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm'"),
        ({"options": (("momentum", 0.9),)}, "no option 'momentum'"),
        ({"batch_size": 61}, "batch_size 61 is more than the 60 samples"),
        ({"problem": "digits_mlp(count=1797)"}, r"count must lie in 1\.\.1796"),
        ({"problem": "digits_mlp(depth=3)"}, "unexpected keyword argument 'depth'"),
        ({"optimizer": "torch.optim.Muon", "dial": 1.0, "batch_size": 20}, "dial"),
        ({"problem": "{}:setup", "optimizer": None, "options": (("betas", (0.9, 0.9)),)}, "has no option 'betas'"),
        ({"problem": "{}:shuffles", "batch_size": None}, "gives other batches each time"),
        ({"problem": "{}:raises", "batch_size": None}, "KeyError: 'weights'"),
        ({"problem": "{}:frozen", "batch_size": None}, "no parameter to train"),
        ({"problem": "{}:setup", "batch_size": None, "test": "{}:gone"}, "no function 'gone'"),
    ],
)
def test_bad_input(changes, message, script):
    changes = {name: value.format(script) if isinstance(value, str) else value for name, value in changes.items()}
    if ".py" in changes.get("problem", ""):
        changes["what"] = MEASURES[:2]
    with pytest.raises(BadInput, match=message):
        train(RUN._replace(**changes))
