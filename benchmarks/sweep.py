"""Sweeps whose workers, drivers and nodes are killed, against one that is left alone; what a sweep costs over plain training.

* kills: 24 small runs, SIGKILL to random workers and twice to the driver; then the same on a Ray cluster of several local
  nodes, one of them removed half-way. Every result must be there once, with the bits of the undisturbed sweep.
* writes: 200 processes killed at a random system call while they write a store: it always opens, and has what was acknowledged.
* overhead: steps in a sweep over those of the bare loop, in turns, and what a run's process takes. Below 1.02 wanted together,
  for runs of a minute and more.
* cores: the time of 4 runs with one process over that with two. At least 1.7 wanted on two idle cores.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memoryless.experiments.sweep.results import Results

SMALL = """
problem = "digits_mlp(width=8, count=100)"
batch_size = {sizes}
seed = {seeds}
steps = {steps}
[[grid]]
optimizer = "adamw(lr=1e-3)"
dial = [0, -1]
[[grid]]
optimizer = "nadam(lr=1e-3)"
[[grid]]
optimizer = "lion(lr=1e-4)"
[record]
every = 50
[run]
checkpoint = 0
"""
Bits = dict[str, Any]


def small(folder: Path, runs: int = 24, steps: int = 300) -> Path:
    """A grid of small runs, a multiple of four: full batch and, from 8 on, mini-batches."""
    sizes = '["full", 20]' if runs >= 8 else '"full"'
    path = folder / "grid.toml"
    path.write_text(SMALL.format(sizes=sizes, seeds=list(range(runs // (8 if runs >= 8 else 4))), steps=steps))
    return path


def command(path: Path, store: str, *options: str) -> subprocess.Popen[bytes]:
    given = [sys.executable, "-m", "memoryless.cli.main", "sweep", str(path), "--store", str(path.parent / store), *options]
    return subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(path: Path, store: str, *options: str) -> Bits:
    """Run it to its end; its bits."""
    process = command(path, store, *options)
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    return bits(path.parent / store)


def bits(store: Path) -> Bits:
    """What each run came to, without what it took; every key once."""
    lines = [json.loads(line) for line in (store / "results.jsonl").read_text().splitlines()[1:]]
    assert len({line["key"] for line in lines}) == len(lines)
    assert {line["kind"] for line in lines} == {"done"}, lines
    return {line["key"]: [line[name] for name in ("records", "fingerprint", "diverged", "d")] for line in lines}


def workers(driver: int) -> list[int]:
    """Processes of runs: those that the fork server, a child of the driver, has started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    return [pid for child in parents.get(driver, []) for pid in parents.get(child, [])]


def count(store: Path) -> int:
    path = store / "results.jsonl"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def disturbed(path: Path, store: str, runs: int, kills: int, drivers: int, seed: int = 0) -> dict[str, Any]:
    """Kill random workers along two thirds of the way, and the driver at even parts of it; start it again until all is done.

    A worker dies as soon as so many results are there, not at a moment of the clock: a fast machine is disturbed as often as a
    slow one. Not so often that one run is lost five times in a row without a checkpoint: such a run is told as failed.
    """
    rng, done = random.Random(seed), {"workers killed": 0, "drivers killed": 0, "resumed": 0}
    folder = path.parent / store
    worker_at = [2 * runs * k // (3 * kills) for k in range(kills)]
    driver_at = [runs * (k + 1) // (drivers + 1) for k in range(drivers)]
    while True:
        process = command(path, store)
        while process.poll() is None:
            time.sleep(rng.uniform(0.02, 0.1))
            Results(folder)  # opens at any time
            there = count(folder)
            if worker_at and there >= worker_at[0] and (alive := workers(process.pid)):
                try:
                    os.kill(rng.choice(alive), signal.SIGKILL)
                    done["workers killed"] += 1
                    worker_at.pop(0)
                except ProcessLookupError:
                    pass
            if driver_at and there >= driver_at[0]:
                process.kill()
                done["drivers killed"] += 1
                driver_at.pop(0)
        _, said = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said.decode()
    done["resumed"] = sum(json.loads(line)["resumed"] > 0 for line in (folder / "results.jsonl").read_text().splitlines()[1:])
    return done


class Death:
    """The process kills itself at its n-th call of the system about files; what is written goes out in small pieces."""

    CALLS = "open", "write", "fsync", "ftruncate", "replace", "unlink", "lseek"

    def __init__(self, at: int):
        self.left, self._own = at, {name: getattr(os, name) for name in self.CALLS}
        for name in self.CALLS:
            setattr(os, name, self._counting(name))

    def _counting(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            if name == "write":
                arguments = arguments[0], arguments[1][:40]
            return self._own[name](*arguments, **options)

        return call


def writes(folder: Path, kills: int, seed: int = 0) -> int:
    """Kill so many processes while they write one store; the results in it at the end.

    Raises:
        AssertionError: it does not open, lost what was acknowledged, or has something twice.
    """
    rng, store, told = random.Random(seed), folder / "torn.sweep", folder / "told"
    told.touch()
    for _ in range(kills):
        at = rng.randrange(60)
        pid = os.fork()
        if not pid:
            try:
                with Results(store).sole() as results, told.open("a", buffering=1) as log:
                    Death(at)
                    for k in range(len(results.done), len(results.done) + 100):
                        results.append({"kind": "done", "key": f"{k}", "run": {}, "versions": {}, "records": [k] * 20})
                        print(k, file=log)
            finally:
                os._exit(1)
        os.waitpid(pid, 0)
        kept = [int(key) for key in Results(store).done]
        assert kept == list(range(len(kept))), kept
        assert set(map(int, told.read_text().split())) <= set(kept)
    with Results(store).sole():
        pass
    return len(Results(store).done)


@contextmanager
def cluster(nodes: int) -> Iterator[Any]:
    """Ray's local cluster: a head without cores, and nodes of one core each."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        yield found, [found.add_node(num_cpus=1, **options) for _ in range(nodes)]
    finally:
        found.shutdown()


def nodes_removed(path: Path, store: str, runs: int, nodes: int = 3) -> None:
    """The sweep on a cluster that loses a node half-way."""
    with cluster(nodes) as (found, every):
        os.environ["RAY_ADDRESS"] = found.address
        try:
            process = command(path, store, "--on", "ray")
            while process.poll() is None and count(path.parent / store) < runs // 2:
                time.sleep(0.1)
            found.remove_node(every[-1], allow_graceful=False)
            _, said = process.communicate()
            assert process.returncode == 0, said.decode()
        finally:
            del os.environ["RAY_ADDRESS"]


LONG = """
problem = "digits_mlp(width=256)"
optimizer = "adamw"
seed = {seeds}
steps = {steps}
[record]
every = 100000
what = ["train_loss"]
"""


def overhead(folder: Path, seconds: float = 60.0, segment: int = 100) -> dict[str, float]:
    """What a sweep adds to a run of about so many seconds: at each step, and once for its process.

    Steps: a run of the sweep, its checkpoints included, and the bare loop take turns of `segment` steps in one process, so that
    both meet the same machine. Process: wall time of a sweep of nine runs of one step less that of one, by eight.
    """
    import torch

    from memoryless.experiments.problems import cross_entropy, digits_mlp
    from memoryless.experiments.sweep.grid import read
    from memoryless.experiments.sweep.training import Kept, train
    from memoryless.loss.batches import map_tensors

    torch.set_num_threads(1)
    made = digits_mlp(0, 256, 1797)
    batch = map_tensors(lambda x: x[:1000], made.batches[0])
    optimizer = torch.optim.AdamW(made.model.parameters())

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def bare(steps: int) -> tuple[float, float]:
        begin = now()
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(made.model, batch).backward()
            optimizer.step()
        return time.perf_counter() - begin[0], time.process_time() - begin[1]

    bare(20)
    steps = max(2, round(seconds / (bare(100)[1] / 100) / segment)) * segment
    path = folder / "long.toml"
    path.write_text(LONG.format(seeds=0, steps=steps))
    turns: dict[str, list[tuple[float, float]]] = {"bare": [], "sweep": []}
    left = now()

    def on_step(step: int) -> None:
        nonlocal left
        if step and step % segment == 0:
            came = now()
            turns["sweep"].append((came[0] - left[0], came[1] - left[1]))
            turns["bare"].append(bare(segment))
            left = now()

    train(read(str(path)).runs[0], Kept(folder / "kept"), on_step=on_step)
    (wall, cpu), (own_wall, own_cpu) = (map(sum, zip(*turns[name], strict=True)) for name in ("sweep", "bare"))

    took = {}
    for runs in (1, 9):
        path.write_text(LONG.format(seeds=list(range(runs)), steps=1))
        begin = time.perf_counter()
        finished(path, f"{runs}.sweep", "--jobs", "1")
        took[runs] = time.perf_counter() - begin
    return {
        "steps": steps,
        "bare, s of processor": own_cpu,
        "steps in the sweep / bare, processor": cpu / own_cpu,
        "steps in the sweep / bare, wall": wall / own_wall,
        "a run's process, s": (took[9] - took[1]) / 8,
        "the command itself, s": took[1],
    }


def cores(folder: Path, seconds: float = 20.0) -> dict[str, float]:
    """Wall time of 4 runs with one process and with two."""
    path, found = folder / "cores.toml", {}
    path.write_text(LONG.format(seeds=[0, 1, 2, 3], steps=int(seconds * 100)))
    for jobs in (2, 1):
        begin = time.perf_counter()
        finished(path, f"jobs{jobs}.sweep", "--jobs", str(jobs))
        found[jobs] = time.perf_counter() - begin
    return {"1 process, s": found[1], "2 processes, s": found[2], "times": found[1] / found[2]}


def main() -> None:
    from output import kept, save, show

    wanted, figures = sys.argv[1:] or ["kills", "ray", "writes", "overhead", "cores"], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"kills", "ray"} & set(wanted):
            path = small(folder)
            alone = finished(path, "alone.sweep")
            assert alone == finished(path, "one.sweep", "--jobs", "1")
            if "kills" in wanted:
                figures["kills"] = disturbed(path, "killed.sweep", 24, 20, 2)
                assert bits(folder / "killed.sweep") == alone
            if "ray" in wanted:
                nodes_removed(path, "ray.sweep", 24)
                assert bits(folder / "ray.sweep") == alone
                figures["ray"] = {"runs": len(alone)}
        if "writes" in wanted:
            figures["writes"] = {"kills": 200, "results": writes(folder, 200)}
        if "overhead" in wanted:
            figures["overhead"] = overhead(folder)
        if "cores" in wanted:
            figures["cores"] = cores(folder)
    for title, found in figures.items():
        show(title, list(found), [[f"{value:.4g}" for value in found.values()]])
    save("sweep", kept("sweep") | figures)


if __name__ == "__main__":
    main()
