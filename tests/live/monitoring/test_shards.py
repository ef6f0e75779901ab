"""Parameters sharded by `fully_shard`: a monitored run is that of one process on the concatenated batch, and checks go on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import memoryless as ml
from memoryless.errors import BadInput
from memoryless.flat import local
from tests.live.monitoring.monitored import LR, criterion, noisy_model, plain_model
from tests.live.monitoring.processes import spread
from tests.live.monitoring.test_ranks import OPTIONS, clipped, numbers, part
from tests.live.monitoring.test_ranks import global_batches as longer

O = torch.optim


def global_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return longer()[:13]


def shard(net: nn.Module, count: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (count,))
    for module in net:  # type: ignore[attr-defined]
        if isinstance(module, nn.Linear):
            fully_shard(module, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def run(
    rank: int,
    count: int,
    watched: bool = True,
    model: Callable[[], nn.Module] = plain_model,
    clip: float | None = None,
    micro: int = 1,
    evaluates: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """One process of a run."""
    torch.manual_seed(3)
    net = model()
    if count > 1:
        shard(net, count)
    optimizer = O.AdamW(net.parameters(), lr=LR, betas=(0.8, 0.95))
    torch.manual_seed(rank)
    watching = ml.Monitor(net, criterion, optimizer, **OPTIONS | options).__enter__() if watched else None
    for whole in global_batches():
        optimizer.zero_grad()
        batches = [part(part(whole, i, micro), rank, count) for i in range(micro)]
        for batch in batches:
            (criterion(net, batch) / micro).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        if evaluates:
            with torch.no_grad():
                net(batches[0][0])  # leaves the root's parameters gathered
        if watching:
            watching.step(*batches)
    if watching:
        watching.close()
    kept = [*net.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values())]
    found = {"state": [local(x).detach().numpy() for x in kept] + [torch.get_rng_state().numpy()]}
    return found if watching is None else found | {"stops": watching.stops, "notes": watching.notes}


CASES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "plain": {"check": True},
        "clipped, evaluated": {"clip": 0.3, "gradient": clipped, "evaluates": True},
        "accumulated": {"micro": 2},
    },
    4: {"checked": {"check": "every step"}},
}


@pytest.mark.parametrize("count", CASES)
def test_shards_are_one_process_on_the_concatenated_batch(count: int):
    cases = CASES[count]
    alone_of = {name: run(0, 1, **options) for name, options in cases.items()}
    for every in spread(count, lambda rank: {name: run(rank, count, **options) for name, options in cases.items()}):
        for name, found in every.items():
            assert found["notes"] == []
            assert [stop["step"] for stop in found["stops"]] == [12]
            for stop, alone in zip(found["stops"], alone_of[name]["stops"], strict=True):
                assert stop.get("check", {"ok": True})["ok"]
                here, there = numbers(stop), numbers(alone)
                here["layers"], there["layers"] = (np.array(list(s["effects"][0]["layers"].values())) for s in (stop, alone))
                for key in there:
                    # Differences of gradients, over a step of 1e-8, leave that share of the digits.
                    exact = key in ("value", "change", "update", "noise")
                    off = np.abs(here[key] - there[key]).max() / np.abs(there[key]).max()
                    assert off <= (1e-10 if exact else 1e-6), (name, key)


def test_in_float32_and_on_some_coordinates():
    (one,) = spread(1, lambda rank: run(rank, 1), torch.float32)
    (few,) = spread(1, lambda rank: run(rank, 1))
    for found in spread(2, lambda rank: run(rank, 2), torch.float32):
        for stop, alone in zip(found["stops"], one["stops"], strict=True):
            here, there = numbers(stop), numbers(alone)
            assert abs(here["value"] - there["value"]) <= 1e-6 * there["value"]
            assert abs(here["slope"] - there["slope"]) <= 1e-3 * abs(there["slope"])  # differences of gradients again
    for found in spread(2, lambda rank: run(rank, 2, coordinates=20)):
        for stop, alone in zip(found["stops"], few["stops"], strict=True):
            here, there = numbers(stop), numbers(alone)
            assert abs(here["change"] - there["change"]) <= 0.5 * abs(there["change"])  # the bias is taken off the sample alone
            effect, exact = stop["effects"][0], alone["effects"][0]
            assert abs(effect["slope"] - exact["slope"]) <= 4 * effect["error"] + 1e-6


def test_the_run_is_bit_for_bit_the_plain_one():
    plain, watched = (spread(2, lambda rank, w=w: run(rank, 2, w, noisy_model)) for w in (False, True))
    for a, b in zip(plain, watched, strict=True):
        assert len(b["stops"]) == 1
        assert all(np.array_equal(x, y) for x, y in zip(a["state"], b["state"], strict=True))


class Other(O.Optimizer):
    """One of which nothing is known."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=LR)


def checked(rank: int, how: str) -> list[tuple[bool | None, str, list[str], str]]:
    """Checks of clean steps, of one that is broken in the second process, and of one that mixes coordinates."""
    torch.manual_seed(3)
    net = plain_model()
    model = shard(net, 2) if how == "fully_shard" else DistributedDataParallel(net)
    optimizer = O.AdamW(net.parameters(), lr=LR)
    check, found = ml.check_step(optimizer, model, criterion, batches=[part(global_batches()[0], rank, 2)]), []
    for n, whole in enumerate(global_batches()[:4]):
        optimizer.zero_grad()
        with check.at([part(whole, rank, 2)]):
            criterion(model, part(whole, rank, 2)).backward()
            optimizer.step()
            if n == 3 and rank == 1:
                with torch.no_grad():
                    local(next(net.parameters())).mul_(0.9)
        found.append(check.result)
    if how == "fully_shard":
        other = Other(net.parameters(), {"lr": LR})
        with ml.check_step(other) as mixing:
            other.step()
        found.append(mixing.result)
    return [(r.ok, r.verdict, [t.name for t in r.tensors], r.notes[0] if r.notes else "") for r in found]


@pytest.mark.parametrize("how", ["fully_shard", "DistributedDataParallel"])
def test_a_step_is_checked_in_each_process(how: str):
    for rank, found in enumerate(spread(2, lambda rank: checked(rank, how), torch.float32)):
        assert [ok for ok, *_ in found[:4]] == [True, True, True, rank == 0]
        assert all("mean over the processes" in note for *_, note in found[:4])
        assert found[3][2] == ([] if rank == 0 else ["0.weight"])
        if how == "fully_shard":
            assert found[4][0] is None
            assert "Other may mix coordinates" in found[4][1]


def refused(rank: int) -> list[str]:
    torch.manual_seed(3)
    found = []

    def said(net: nn.Module, optimizer: O.Optimizer | None = None, **options: Any) -> None:
        optimizer = optimizer or O.AdamW(net.parameters(), lr=LR)
        try:
            ml.Monitor(net, criterion, optimizer, **OPTIONS | options)
        except BadInput as error:
            found.append(str(error))

    net = plain_model()
    early = O.AdamW(net.parameters(), lr=LR)
    shard(net, 2)
    said(net, optimizer=early)
    half = plain_model()
    fully_shard(half[0], mesh=init_device_mesh("cpu", (2,)))  # type: ignore[index]
    said(half)
    said(shard(plain_model(), 2), measures=["sharpness"])
    said(shard(nn.Sequential(nn.Linear(4, 1, bias=False)), 2))
    try:
        ml.dial(O.AdamW(shard(plain_model(), 2).parameters(), lr=LR), model=shard(plain_model(), 2), criterion=criterion)
    except BadInput as error:
        found.append(str(error))
    return found


def test_what_is_not_taken_is_refused_in_one_line_in_every_process():
    expected = (
        "call fully_shard on the whole model too",
        "not sharpness",
        "holds no part of the parameters",
        "takes whole ones",
    )
    for found in spread(2, refused):
        assert len(found) == len(expected)
        assert all(text in line and "\n" not in line for text, line in zip(expected, found, strict=True))
