"""The dial in two processes of DistributedDataParallel is that of one process on the concatenated batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW, Optimizer

import memoryless as ml
from memoryless.errors import BadInput
from memoryless.flat import flat
from tests.live.monitoring.monitored import criterion, plain_model
from tests.live.monitoring.processes import spread
from tests.live.monitoring.test_ranks import clipped, global_batches, part

STEPS = 6
LR = 1e-2


def run(
    rank: int,
    count: int,
    make: Callable[[Any], Optimizer],
    clip: float | None = None,
    micro: int = 1,
    batch_of: Callable[[int, int, Any], Any] = lambda rank, n, batches: batches,
    **options: Any,
) -> dict[str, Any]:
    """One process of a dialled run; of a run of one where count is 1."""
    torch.manual_seed(3)
    net = plain_model()
    model = DistributedDataParallel(net) if count > 1 else net
    optimizer = ml.dial(make(net.parameters()), **{"model": model, "criterion": criterion} | options)
    for n, whole in enumerate(global_batches()[:STEPS]):
        optimizer.zero_grad()
        batches = [part(part(whole, i, micro), rank, count) for i in range(micro)]
        for batch in batches:
            (criterion(model, batch) / micro).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step(batch=batch_of(rank, n, batches if micro > 1 else batches[0]))
    return {"theta": flat(net.parameters()).detach().numpy(), "notes": optimizer.notes, "off": optimizer.off}


CASES: dict[str, dict[str, Any]] = {
    "Adam": {"make": lambda p: Adam(p, LR, (0.8, 0.9)), "strength": -1.0},
    "the same batches": {"make": lambda p: AdamW(p, LR, (0.8, 0.9)), "strength": 0.5, "twin": "same"},
    "clipped": {"make": lambda p: SGD(p, LR, 0.8), "clip": 0.3, "gradient": clipped},
    "accumulated": {"make": lambda p: SGD(p, LR, 0.8), "micro": 2, "placebo": "permuted"},
}


def test_two_processes_are_one_on_the_concatenated_batch():
    def every(rank: int, count: int) -> dict[str, dict[str, Any]]:
        return {name: run(rank, count, **options) for name, options in CASES.items()}

    one = every(0, 1)
    off: dict[str, Any] = {"strength": 0.0}
    undialled = {name: run(0, 1, **options | off) for name, options in CASES.items()}
    for found in spread(2, lambda rank: every(rank, 2)):
        for name, alone in one.items():
            assert found[name]["off"] is None, name
            assert found[name]["notes"] == alone["notes"], name
            gap, effect = (abs(alone["theta"] - x["theta"]).max() for x in (found[name], undialled[name]))
            assert gap <= 1e-12, name
            assert effect >= 1e-4, name


def bad(rank: int, n: int, batch: Any) -> Any:
    """A batch that the second process alone cannot give, at a step."""
    return iter(batch) if rank and n == 3 else batch


def others(rank: int) -> list[Any]:
    found: list[Any] = [run(rank, 2, **CASES["Adam"], batch_of=bad)]
    sharded: Any = plain_model()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    for options in ({"model": sharded, "criterion": criterion}, {}):
        try:
            ml.dial(Adam(sharded.parameters(), LR), **options)
        except BadInput as error:
            found.append(str(error))
    return found


def test_what_one_process_cannot_ends_the_dial_in_both_and_shards_are_refused():
    two = spread(2, others)
    for stopped, *refused in two:
        assert stopped["off"].startswith("process 1: a batch must be there to be taken again")
        assert len(refused) == 2
        assert all("sharded (fully_shard)" in line and "\n" not in line for line in refused)
    (a, *_), (b, *_) = two
    assert (a["theta"] == b["theta"]).all()  # copies go on as copies
