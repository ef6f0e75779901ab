"""SIGKILL in the middle of monitored runs: what of the log and of the run is left, and how both go on from a checkpoint.

A run forks off this process, trains with dropout, keeps a checkpoint now and then, tells through a pipe of each stop that the
monitor has given it, and is killed at a random moment; the next one goes on from the last checkpoint, until one comes to the
end. After every kill the log must parse and have the stops that were told; at the end it must have each stop once, with the
measure that a run has there that nobody killed, and the parameters must be those of that run. It is run here first: what is
imported at its first use takes longer than all of its steps, and kills would fall there.
"""

import logging
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import memoryless as ml
from memoryless.live.monitoring.log import read, stops
from memoryless.progress import OnStep, silent

STEPS, EVERY, FIRST = 46, 15, 3
"""Steps, from stop to stop, and the first checkpoint: the next stop is then 12 steps away, when old memory has faded."""


def model() -> nn.Module:
    """A small one that draws random numbers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)).double()


def criterion(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    options = {"generator": g, "dtype": torch.float64}
    return [(torch.randn(8, 4, **options), torch.randn(8, 1, **options)) for _ in range(STEPS)]


def train(folder: Path | None, told: Callable[[int], object] = int) -> torch.Tensor:
    """A run from the last checkpoint in a folder on, monitored; from the start and unmonitored without one.

    Args:
        folder: of checkpoint and log.
        told: is given the step of each stop.
    """
    torch.set_num_threads(1)
    net, data = model(), batches()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.5, 0.7))
    checkpoint, begin = None if folder is None else folder / "checkpoint.pt", 0
    if checkpoint is not None and checkpoint.exists():
        there = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(there["model"])
        optimizer.load_state_dict(there["optimizer"])
        torch.set_rng_state(there["generator"])
        begin = there["step"]
    watching = None
    if folder is not None:
        options = {"every": EVERY, "betas": None, "replays": 4, "data": data[:1]}
        watching = ml.Monitor(net, criterion, optimizer, log=folder / "run.jsonl", **options).__enter__()
    for n in range(begin, STEPS):
        optimizer.zero_grad()
        criterion(net, data[n]).backward()
        optimizer.step()
        if watching is not None and (stop := watching.step(data[n])) is not None:
            told(stop["step"])
        if checkpoint is not None and (n + 1) % EVERY == FIRST:
            kept = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "generator": torch.get_rng_state()}
            torch.save(kept | {"step": n + 1}, partial := checkpoint.with_suffix(".part"))
            partial.replace(checkpoint)
    if watching is not None:
        watching.close()
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def alive(folder: Path, delay: float | None) -> tuple[bool, list[int]]:
    """One process of a run, killed after so many seconds: whether it came to its end, and the stops that it was told of."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            torch.save(train(folder, lambda step: os.write(writing, bytes([step]))), folder / "theta.pt")
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
        os._exit(1)
    os.close(writing)
    ends = os.pidfd_open(pid)
    if delay is not None and not select.select([ends], [], [], delay)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(ends)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        said = list(pipe.read())
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a run failed: see above")
    return os.WIFEXITED(status), said


def measured(stop: dict[str, Any]) -> tuple[int, list[float], float]:
    """What a stop says that does not hang on which past steps are replayed: those before a checkpoint are not."""
    return stop["step"], [effect["value"] for effect in stop["effects"]], stop["lr"]


def runs(kills: int, seed: int = 0, on_step: OnStep = silent) -> dict[str, int]:
    """Kill so often, run after run.

    Args:
        kills: how often.
        seed: of the moments.
        on_step: called with the kills so far, and their number.

    Raises:
        AssertionError: a log does not parse, lost what it had, or ends with a gap or a duplicate; or the run is another.
    """
    rng, expected = random.Random(seed), train(None)
    done = {"kills": 0, "runs": 0, "kills before the log began": 0, "kills after the first stop": 0}
    with tempfile.TemporaryDirectory() as name:
        assert torch.equal(train(Path(name)), expected)
        whole = [measured(stop) for stop in stops(read(Path(name) / "run.jsonl"))]
    assert [step for step, *_ in whole] == list(range(EVERY, STEPS, EVERY))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        alive(Path(name), None)
    seconds = time.perf_counter() - start
    while done["kills"] < kills:
        with tempfile.TemporaryDirectory() as name:
            folder, log, known, ended = Path(name), Path(name) / "run.jsonl", set[int](), False
            while not ended:
                ended, said = alive(folder, rng.uniform(0, seconds) if done["kills"] < kills else None)
                known.update(said)
                if not ended:
                    done["kills"] += 1
                    on_step(done["kills"], kills)
                if not log.exists() or not log.read_bytes().count(b"\n"):
                    assert not known
                    done["kills before the log began"] += 1
                    continue
                now = {stop["step"] for stop in stops(read(log))}
                assert known <= now, (known, now)
                known = now
                done["kills after the first stop"] += bool(known) and not ended
            records = read(log)
            assert [measured(stop) for stop in stops(records)] == whole, records
            assert [r["kind"] for r in records].count("run") == 1
            assert torch.equal(torch.load(folder / "theta.pt", weights_only=True), expected)
            done["runs"] += 1
    return done


def main() -> None:
    from rich.progress import Progress

    from output import save, show

    logging.getLogger("memoryless").setLevel(logging.ERROR)  # of a run that goes on after its last stop
    with Progress() as progress:
        bar = progress.add_task("kills")
        found = runs(
            int(sys.argv[1]) if len(sys.argv) > 1 else 1000,
            on_step=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    show("killed, gone on with, and right", list(found), [[str(value) for value in found.values()]])
    save("kills", found)


if __name__ == "__main__":
    main()
