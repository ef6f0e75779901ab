"""SIGKILL in the middle of monitored runs: what of the log and of the run is left, and how both go on from a checkpoint.

A run forks off this process, which has torch imported, trains with dropout, keeps a checkpoint now and then, and is killed at a
random moment; the next one goes on from the last checkpoint, until one comes to the end. After every kill the log must parse;
at the end it must have every stop once, and the parameters must be those of a run that nobody killed.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import memoryless as ml
from memoryless.live.monitoring.log import read, stops

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


def train(folder: Path | None) -> torch.Tensor:
    """A run from the last checkpoint in a folder on, monitored; from the start and unmonitored without one."""
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
        if watching is not None:
            watching.step(data[n])
        if checkpoint is not None and (n + 1) % EVERY == FIRST:
            kept = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "generator": torch.get_rng_state()}
            torch.save(kept | {"step": n + 1}, partial := checkpoint.with_suffix(".part"))
            partial.replace(checkpoint)
    if watching is not None:
        watching.close()
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def alive(folder: Path, delay: float | None) -> bool:
    """One process of a run, killed after so many seconds; whether it came to its end."""
    pid = os.fork()
    if not pid:
        try:
            torch.save(train(folder), folder / "theta.pt")
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
        os._exit(1)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a run failed: see above")
    return os.WIFEXITED(status)


def runs(kills: int, seed: int = 0) -> dict[str, int]:
    """Kill so often, run after run.

    Raises:
        AssertionError: a log does not parse, lost what it had, or ends with a gap or a duplicate; or the run is another.
    """
    rng, expected = random.Random(seed), train(None)
    done = {"kills": 0, "runs": 0, "kills after the first stop": 0}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        alive(Path(folder), None)
    whole = time.perf_counter() - start
    while done["kills"] < kills:
        with tempfile.TemporaryDirectory() as name:
            folder, log, known = Path(name), Path(name) / "run.jsonl", []
            while not alive(folder, rng.uniform(0, whole) if done["kills"] < kills else None):
                done["kills"] += 1
                if not log.exists() or not log.read_bytes().count(b"\n"):
                    assert not known
                    continue
                now = [stop["step"] for stop in stops(read(log))]
                assert now[: len(known)] == known, (known, now)
                known = now
                done["kills after the first stop"] += bool(known)
            records = read(log)
            assert [stop["step"] for stop in stops(records)] == list(range(EVERY, STEPS, EVERY)), records
            assert [r["kind"] for r in records].count("run") == 1
            assert torch.equal(torch.load(folder / "theta.pt", weights_only=True), expected)
            done["runs"] += 1
    return done


def main() -> None:
    from output import save, show

    found = runs(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
    show("killed, gone on with, and right", list(found), [[str(value) for value in found.values()]])
    save("kills", found)


if __name__ == "__main__":
    main()
