"""Several processes: what is measured is that of one process on the concatenated batch, and nobody waits for ever."""

import copy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import memoryless as ml
from memoryless.flat import local, sharded
from memoryless.live.monitoring import ranks
from memoryless.live.monitoring.log import read
from tests.live.monitoring.monitored import LR, criterion, plain_model
from tests.live.monitoring.processes import spread

STEPS = 25
BETAS = (0.5, 0.8), (0.9, 0.95)
OPTIONS: dict[str, Any] = {"every": 12, "betas": BETAS, "shadows": [ml.Lion(LR, smoothing=0.1)], "replays": 6}
Batch = tuple[Tensor, Tensor]


def global_batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(STEPS)]


def part(batch: Batch, rank: int, count: int) -> Batch:
    return tuple(x.chunk(count)[rank] for x in batch)  # type: ignore[return-value]


def run(
    rank: int,
    count: int,
    watched: bool = True,
    model: Callable[[], nn.Module] = plain_model,
    clip: float | None = None,
    micro: int = 1,
    own: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """One process of a run; of a run of one where count is 1."""
    torch.manual_seed(3)
    net = model()
    ddp = DistributedDataParallel(net) if count > 1 else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, betas=(0.8, 0.95))
    if own:
        held_out = part(global_batches()[-1], rank, count)
        options["measures"] = [ml.Loss(copy.deepcopy(net), criterion, [held_out])]
    torch.manual_seed(rank)
    watching = ml.Monitor(ddp, criterion, optimizer, **OPTIONS | options).__enter__() if watched else None
    for whole in global_batches():
        optimizer.zero_grad()
        batches = [part(part(whole, i, micro), rank, count) for i in range(micro)]
        for batch in batches:
            (criterion(ddp, batch) / micro).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        if watching:
            watching.step(*batches)
    if watching:
        watching.close()
    kept = [*net.state_dict().values(), torch.get_rng_state()]
    kept += [v for state in optimizer.state.values() for v in state.values()]
    found = {"state": [x.numpy() for x in kept]}
    return found if watching is None else found | {"stops": watching.stops, "notes": watching.notes}


def numbers(stop: dict[str, Any]) -> dict[str, np.ndarray]:
    """What a stop says; errors apart, which only tell how sure that is."""
    (effect,), (shadow,), (map_,) = stop["effects"], stop["shadows"], stop["map"]["measures"].values()
    found = {key: effect[key] for key in ("value", "change", "slope", "update")}
    found |= {"shadow": shadow["effects"][0]["slope"], "map": map_["slope"], "noise": stop["noise_scale"]}
    return {key: np.asarray(value) for key, value in found.items() if value is not None}


def clipped(gradient: Tensor) -> Tensor:
    return gradient * min(1.0, 0.3 / (float(gradient.norm()) + 1e-6))


CASES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "plain": {},
        "clipped": {"clip": 0.3, "gradient": clipped},
        "accumulated": {"micro": 2},
        "own measure": {"own": True},  # without differences of gradients, whose rounding hides the tenth digit
    },
    4: {"some coordinates": {"coordinates": 20}},
}


@pytest.mark.parametrize("count", CASES)
def test_processes_are_one_on_the_concatenated_batch(count: int):
    cases = CASES[count]
    alone_of = {name: run(0, 1, **options) for name, options in cases.items()}
    for every in spread(count, lambda rank: {name: run(rank, count, **options) for name, options in cases.items()}):
        for name, found in every.items():
            one = alone_of[name]
            assert found["notes"] == one["notes"] == []
            assert [stop["step"] for stop in found["stops"]] == [12, 24]
            for stop, alone in zip(found["stops"], one["stops"], strict=True):
                here, there = numbers(stop), numbers(alone)
                for key in there:
                    # Differences of gradients, over a step of 1e-8, leave that share of the digits.
                    exact = key in ("value", "change", "update", "noise") or name == "own measure"
                    off = np.abs(here[key] - there[key]).max() / np.abs(there[key]).max()
                    assert off <= (1e-10 if exact else 1e-6), (name, key)


def test_in_float32_too():
    (one,) = spread(1, lambda rank: run(rank, 1), torch.float32)
    for found in spread(2, lambda rank: run(rank, 2), torch.float32):
        for stop, alone in zip(found["stops"], one["stops"], strict=True):
            here, there = numbers(stop), numbers(alone)
            assert abs(here["value"] - there["value"]) <= 1e-6 * there["value"]
            assert abs(here["slope"] - there["slope"]) <= 1e-3 * abs(there["slope"])  # differences of gradients again


def test_the_run_is_bit_for_bit_the_plain_one():
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))

    plain, watched = (spread(2, lambda rank, w=w: run(rank, 2, w, model)) for w in (False, True))
    for a, b in zip(plain, watched, strict=True):
        assert len(b["stops"]) == 2
        assert all(np.array_equal(x, y) for x, y in zip(a["state"], b["state"], strict=True))


def failing(rank: int, what: str, folder: Path) -> dict[str, Any]:
    """A run in two processes, the second of which does something of its own."""
    ranks.PATIENCE = timedelta(seconds=2)
    torch.manual_seed(3)
    net = plain_model()
    ddp = net if what == "no wrapper" else DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, betas=(0.8, 0.95))
    taken = 0

    def told(model: nn.Module, batch: Batch) -> Tensor:
        if what == "criterion" and rank and taken >= 12:
            raise OSError("the data went away")
        return criterion(model, batch)

    log = str(folder / "none" / "run.jsonl") if what == "log" else str(folder / "run.jsonl")
    data = [part(global_batches()[0], rank, 2)] * (1 + rank if what == "data" else 1)
    try:
        watching = ml.Monitor(ddp, told, optimizer, log=log, data=data, **OPTIONS).__enter__()
    except ml.errors.BadInput as error:
        return {"refused": str(error)}
    for whole in global_batches():
        batch = part(whole, rank, 2)
        optimizer.zero_grad()
        criterion(ddp, batch).backward()
        optimizer.step()
        if what == "steps" and rank and taken == 5:
            optimizer.step()
        watching.step(iter(batch) if what == "batch" and rank and taken == 12 else batch)
        if what == "written" and rank and taken == 8:
            batch[0].add_(1.0)
        taken += 1
    watching.close()
    return {"notes": watching.notes, "stops": [stop["step"] for stop in watching.stops], "taken": taken}


SAID = {
    "criterion": ("process 1: OSError: the data went away", []),
    "written": ("process 1: a batch was written to after its step", [24]),
    "batch": ("process 1: a batch must be there to be taken again, got a one-shot tuple_iterator", [24]),
    "data": ("data= must have as many batches in each process, got [1, 2]", []),
    "steps": ("waited for the others in vain: one has ended, or not every one calls monitor.step", []),
    "no wrapper": ("the gradient is not the same in every process: expected the mean of DistributedDataParallel", []),
}


def test_what_one_process_cannot_is_said_by_all_and_none_waits(tmp_path: Path):
    folders = {what: tmp_path / what for what in [*SAID, "log"]}
    for folder in folders.values():
        folder.mkdir()
    every = spread(2, lambda rank: {what: failing(rank, what, folder) for what, folder in folders.items()})
    for what, (text, stops) in SAID.items():
        for found in (each[what] for each in every):
            assert found["taken"] == STEPS
            assert text in found["notes"][0]
            assert "\n" not in found["notes"][0]
            assert found["stops"] == stops, what
        kinds = [record["kind"] for record in read(folders[what] / "run.jsonl")]
        assert (kinds[0], kinds[-1]) == ("run", "end")
        assert kinds.count("run") == kinds.count("end") == 1  # one log, of the first process
    for each in every:
        assert "process 0: log" in each["log"]["refused"]
        assert "cannot be written: No such file or directory" in each["log"]["refused"]


def unlike(rank: int) -> list[str]:
    """What a monitor says to a NaN that the second process alone holds: in sharded parameters, and in whole ones."""
    ranks.PATIENCE = timedelta(seconds=2)
    said = []
    for parts in (True, False):
        torch.manual_seed(3)
        net: Any = plain_model()
        if parts:
            fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR)
        if rank:
            with torch.no_grad():
                local(net[0].weight).view(-1)[0] = torch.nan
        try:
            ml.Monitor(net, criterion, optimizer, **OPTIONS)
        except ml.errors.BadInput as error:
            said.append(str(error))
    return said


def test_what_one_process_cannot_start_with_is_said_by_all_and_none_waits():
    for said in spread(2, unlike):
        assert len(said) == 2
        assert all(line.startswith("process 1: ") and "\n" not in line for line in said)
        assert said[0].endswith(": a parameter is not finite")


def empty(rank: int) -> str:
    """What is said of no batches in the second process alone, where sums over theta cross the processes."""
    ranks.PATIENCE = timedelta(seconds=2)
    net = plain_model()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    every = ranks.Ranks()
    every.sharded = True
    with sharded(every.summed), pytest.raises(ml.errors.BadInput) as error:
        ranks.SharedLoss.of_all(every, net, criterion, [] if rank else [part(global_batches()[0], rank, 2)])
    return str(error.value)


def test_a_loss_that_one_process_cannot_make_is_refused_by_all():
    for said in spread(2, empty):
        assert said.startswith("process 1: batches is empty")
