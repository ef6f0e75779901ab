"""The log of a run in two processes, number by number: that of one process with the whole parameters and the whole batch."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import memoryless as ml
from memoryless.errors import BadInput
from memoryless.flat import local
from memoryless.live.check import checking
from memoryless.live.monitoring.log import read
from tests.live.monitoring.monitored import LR, criterion, plain_model
from tests.live.monitoring.processes import spread
from tests.live.monitoring.test_checks import Coupled
from tests.live.monitoring.test_ranks import clipped, global_batches, part
from tests.live.monitoring.test_shards import shard

O = torch.optim
STEPS, STOP = 4, 2
EVERY = "every step"
OURS = "overhead", "seconds"
"""What a process tells of itself, and not of the run."""


def second(x: Any) -> Tensor:
    """The half of a tensor that the second process has; in the first one nothing."""
    if not hasattr(x, "to_local"):
        return x[len(x) // 2 :]
    return local(x) if torch.distributed.get_rank() else local(x)[:0]


class Half(O.AdamW):
    """The half that the second process has is decayed once more."""

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().step()
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                second(p).mul_(0.9)


def lost(optimizer: O.Optimizer, n: int) -> None:
    """Half of an average is lost, after some steps."""
    if n == 3:
        second(optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"]).zero_()


def bent(optimizer: O.Optimizer, n: int) -> None:
    """One half of the gradient is longer."""
    for p in optimizer.param_groups[0]["params"]:
        second(p.grad).mul_(3.0)


def thrice(loss: Tensor) -> Tensor:
    return 3.0 * loss


def run(
    rank: int,
    count: int,
    log: Path | None,
    make: type[O.Optimizer] = O.AdamW,
    loss: Callable[[Tensor], Tensor] = lambda x: x,
    clip: bool = False,
    between: Callable[[O.Optimizer, int], object] = lambda optimizer, n: None,
    wrap: Callable[[nn.Module], nn.Module] = lambda net: shard(net, 2),
    width: int = 2,
    **options: Any,
) -> dict[str, Any]:
    """One process of a run, checked; of a run of one where count is 1."""
    logging.getLogger("memoryless").setLevel(logging.ERROR)
    torch.manual_seed(3)
    net = nn.Sequential(*plain_model()[:2], nn.Linear(8, width))  # type: ignore[index]
    model = wrap(net) if count > 1 else net
    optimizer = make(net.parameters(), lr=LR, betas=(0.8, 0.95), weight_decay=0.1)  # type: ignore[call-arg]
    batches = [part((x, y.expand(-1, width)), rank, count) for x, y in global_batches()[:STEPS]]
    few: dict[str, Any] = {"every": [STOP], "betas": None, "replays": 2, "data": batches[:1], "check": EVERY}
    with ml.Monitor(model, criterion, optimizer, log=log, **few | options) as watching:
        for n, batch in enumerate(batches):
            optimizer.zero_grad()
            loss(criterion(model, batch)).backward()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), 0.3)
            between(optimizer, n)
            optimizer.step()
            watching.step(batch)
    return {"stops": watching.stops, "notes": watching.notes, "counts": vars(watching._checks)}


def same(here: Any, there: Any, where: str = "") -> None:
    """Whether two records say the same, numbers to 1e-6: differences of gradients leave that share of the digits."""
    if isinstance(there, dict):
        assert here.keys() == there.keys(), where
        for key in there.keys() - set(OURS):
            same(here[key], there[key], f"{where} {key}")
    elif isinstance(there, list):
        assert len(here) == len(there), where
        for i, (a, b) in enumerate(zip(here, there, strict=True)):
            same(a, b, f"{where} {i}")
    elif where.endswith("times"):  # what rounding can explain is itself known to a tenth
        assert here == pytest.approx(there, rel=0.5), where
    elif isinstance(there, float):
        assert here == pytest.approx(there, rel=1e-6, abs=1e-10), where
    else:
        assert here == there, where


CASES: dict[str, dict[str, Any]] = {
    "clean": {},
    "clipped": {"clip": True, "gradient": clipped},
    "broken": {"make": Coupled},
    "broken in one part": {"make": Half},
    "broken, a part empty": {"make": Coupled, "width": 1, "check": True},
    "state lost in one part": {"between": lost},
    "another gradient": {"loss": thrice, "check": True},
    "another gradient, transformed": {"loss": thrice, "gradient": clipped, "check": True},
    "a part of another gradient": {"between": bent, "check": True},
    "clipped unsaid": {"clip": True, "check": True},
}
CLEAN = "clean", "clipped", "clipped unsaid"


@pytest.mark.parametrize("names", [[*CASES][:4], [*CASES][4:]], ids=["steps", "others"])
def test_the_log_is_that_of_one_process(names: list[str], tmp_path: Path):
    for name in names:
        run(0, 1, tmp_path / f"{name} 1.jsonl", **CASES[name])
    spread(2, lambda rank: [bool(run(rank, 2, tmp_path / f"{name} 2.jsonl", **CASES[name])) for name in names])
    for name in names:
        one, two = (read(tmp_path / f"{name} {count}.jsonl") for count in (1, 2))
        assert [record["kind"] for record in one].count("check") == (name not in CLEAN), name
        assert [record["kind"] for record in one] == [record["kind"] for record in two], name
        for alone, together in zip(one, two, strict=True):
            same(together, alone, name)


def unseen(rank: int) -> None:
    """The second process cannot judge its steps."""

    def fails(*_: Any) -> None:
        raise RuntimeError("no copy")

    if rank:
        setattr(checking, "Reference", fails)  # noqa: B010  # this process ends with the test


def lost_here(optimizer: O.Optimizer, n: int) -> None:
    if n == 3 and torch.distributed.get_rank():
        optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"].zero_()


def unlike(rank: int, folder: Path) -> dict[str, Any]:
    """What two processes say where the second is another than the first."""
    found: dict[str, Any] = {"copies": run(rank, 2, folder / "copies.jsonl", between=lost_here, wrap=DistributedDataParallel)}
    options: dict[str, dict[str, Any]] = {
        "arguments": {"check": EVERY if rank else False},
        "long": {"every": [*range(1, 40), 50 + rank]},
    }
    for name, option in options.items():
        try:
            run(rank, 2, None, **option)
        except BadInput as error:
            found[name] = str(error)
    run(rank, 2, folder / "broken copies.jsonl", make=Coupled, check=True, wrap=DistributedDataParallel)
    unseen(rank)
    for name, wrap in (("unseen copy", DistributedDataParallel), ("unseen part", lambda net: shard(net, 2))):
        found[name] = run(rank, 2, folder / f"{name}.jsonl", wrap=wrap)
    return {name: each if isinstance(each, str) else each["notes"] for name, each in found.items()}


def test_what_is_wrong_in_one_process_is_told_by_all(tmp_path: Path):
    for found in spread(2, lambda rank: unlike(rank, tmp_path)):
        assert found["arguments"] == "check= must be the same in each process, got False, 'every step'"
        assert found["long"].startswith("every= must be the same in each process, got [1, 2, 3")
        assert found["copies"] == []
        for name in ("unseen copy", "unseen part"):
            assert found[name] == ["step 0 could not be checked: process 1: no copy"]
    run(0, 1, tmp_path / "broken.jsonl", make=Coupled, check=True)
    alone, copies = (
        [r["check"]["shares"] for r in read(tmp_path / name) if r["kind"] == "stop"]
        for name in ("broken.jsonl", "broken copies.jsonl")
    )
    assert len(alone) == 1
    assert alone[0]
    same(copies, alone)
    (check,) = [record for record in read(tmp_path / "copies.jsonl") if record["kind"] == "check"]
    assert (check["step"], check["causes"][0]["name"]) == (3, "state changed between steps")
    assert check["notes"] == ["in process 1 alone"]
    for name, (checked, off, unchecked) in {"copies": (4, 1, 0), "unseen copy": (0, 0, 4), "unseen part": (0, 0, 4)}.items():
        end = read(tmp_path / f"{name}.jsonl")[-1]
        assert (end["checked"], end["off"], end["unchecked"]) == (checked, off, unchecked), name
