"""What memory a monitor takes: the peak of a process that trains plainly, of one that is watched, of one with a stop.

MLP 784-4096-4096-10 of 20M parameters, AdamW, float32, batches of 256, 24 steps; the stop replays 8. Wanted: at most 1.1 times
plain and the sample. Each in a process of its own, since a peak is a process's.
"""

import resource
import subprocess
import sys
from contextlib import nullcontext

import torch
from torch import nn

import memoryless as ml
from memoryless.experiments.problems import cross_entropy
from output import save, show

HOW = "plain", "watched", "with a stop"


def peak(how: str) -> None:
    """Print megabytes of this process's peak and of theta."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 4096), nn.GELU(), nn.Linear(4096, 4096), nn.GELU(), nn.Linear(4096, 10))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    batches = [(torch.randn(256, 784), torch.randint(10, (256,))) for _ in range(24)]
    every = [20] if how == "with a stop" else None
    monitor = None if how == "plain" else ml.Monitor(model, cross_entropy, optimizer, every=every, replays=8)
    with monitor or nullcontext():
        for batch in batches:
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()
            optimizer.step()
            if monitor is not None:
                monitor.step(batch)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, sum(p.numel() for p in model.parameters()) * 4 / 1e6)


def main() -> None:
    if sys.argv[1:]:
        peak(sys.argv[1])
        return
    found = {}
    for how in HOW:
        done = subprocess.run([sys.executable, __file__, how], check=True, capture_output=True, text=True)
        found[how] = [float(x) for x in done.stdout.split()]
    plain, theta = found["plain"]
    figures = {
        how: {"MB": mb, "over plain": mb / plain, "vectors of theta more": (mb - plain) / theta}
        for how, (mb, _) in found.items()
    }
    show("peak memory", ["", *figures["plain"]], [[how, *each.values()] for how, each in figures.items()])
    save("monitor_memory", figures)


if __name__ == "__main__":
    main()
