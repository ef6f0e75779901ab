"""A monitored run at the size of GPT-2: 124M parameters from a config, float32, AdamW, one thread, processor time.

    python benchmarks/large_monitor.py

Two copies train side by side, one of them monitored with the default budget, whose first stop is far beyond so few steps: the
ratio is that of steps between stops, and `stops` says how many there were. A stop is made by a third one, in a process of its
own, which tells its cost in plain steps and the most memory that the whole took.
"""

import json
import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import memoryless as ml
from measuring import ratio, rounds
from output import save, show

STEPS, CHUNK = 50, 5
SAMPLES, CONTEXT = 1, 64
REPLAYS = 4
"""Of the stop: its cost grows by two gradients for each."""


def criterion(model: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    return model(input_ids=batch["input_ids"], labels=batch["input_ids"])


class Run:
    """Training on fresh random tokens, told to a monitor where options are given."""

    def __init__(self, **options: Any):
        torch.manual_seed(0)
        self.model = GPT2LMHeadModel(GPT2Config(n_positions=128, use_cache=False, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self.generator = torch.Generator().manual_seed(1)
        self.monitor = ml.Monitor(self.model, criterion, self.optimizer, **options).__enter__() if options else None

    def steps(self, count: int = CHUNK) -> None:
        """So many."""
        for _ in range(count):
            batch = {"input_ids": torch.randint(50257, (SAMPLES, CONTEXT), generator=self.generator)}
            self.optimizer.zero_grad()
            criterion(self.model, batch).loss.backward()
            self.optimizer.step()
            if self.monitor is not None:
                self.monitor.step(batch)


def stop() -> dict[str, float]:
    """Eleven steps, a stop before the last of them: its processor time in plain steps, and the process's peak in GiB."""
    run = Run(every=[10], replays=REPLAYS)
    plain = []
    for _ in range(10):
        start = time.process_time()
        run.steps(1)
        plain.append(time.process_time() - start)
    start = time.process_time()
    run.steps(1)
    assert run.monitor is not None
    assert len(run.monitor.stops) == 1, run.monitor.stops
    step = median(plain[1:])
    return {
        "stop_in_steps": (time.process_time() - start - step) / step,
        "peak_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    plain, watched = Run(), Run(budget=0.02)
    seconds = rounds({"plain": plain.steps, "monitored": watched.steps}, STEPS // CHUNK - 1, time.process_time)
    found: dict[str, float] = {
        "parameters": sum(p.numel() for p in plain.model.parameters()),
        "step_seconds": median(seconds["plain"]) / CHUNK,
        "step_ratio": ratio(seconds["monitored"], seconds["plain"]),
        "stops": 0 if watched.monitor is None else len(watched.monitor.stops),
        "step_ratio_in_all": sum(seconds["monitored"]) / sum(seconds["plain"]),
    }
    del plain, watched
    print(found, flush=True)
    found |= json.loads(subprocess.run([sys.executable, __file__, "stop"], check=True, stdout=subprocess.PIPE).stdout)
    show("GPT-2 monitored", ["what", "value"], [[name, f"{value:.4g}"] for name, value in found.items()])
    save("large_monitor", found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["stop"]:
        print(json.dumps(stop()))
    else:
        main()
