"""What a monitor costs: a step between stops against a plain step, a stop in gradients, and what a run pays in all.

Copies of a network train side by side, all but one of them monitored, in interleaved chunks of 32 steps, after which shadows
are fed (processor time). A stop at `every` tells its cost; with a budget of 2 % stops lie so far apart that a run pays the
step's excess and at most that. What `check=True` adds to a stop is the difference of two monitors with a stop in each chunk.
"""

import copy
import time
from statistics import median
from typing import Any

import torch

import memoryless as ml
from measuring import Work, ratio, rounds
from memoryless.experiments.problems import Problem
from networks import cnn, gpt, mlp
from output import save, show

CHUNK, COUNT = 32, 12
NETWORKS = {"MLP": lambda: mlp(batch=32), "CNN": lambda: cnn(batch=32), "GPT": lambda: gpt(batch=4)}


class Training:
    """Steps of AdamW on one batch, told to a monitor where there is one."""

    def __init__(self, problem: Problem, **options: Any):
        self.model, self.criterion, self.batch = copy.deepcopy(problem.model), problem.criterion, problem.batches[0]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self.monitor = ml.Monitor(self.model, self.criterion, self.optimizer, **options) if options else None
        if self.monitor is not None:
            self.monitor.__enter__()

    def steps(self, count: int = CHUNK) -> None:
        """So many."""
        for _ in range(count):
            self.optimizer.zero_grad()
            self.criterion(self.model, self.batch).backward()
            self.optimizer.step()
            if self.monitor is not None:
                self.monitor.step(self.batch)


def main() -> None:
    figures, rows = {}, []
    for name, make in NETWORKS.items():
        problem = make()
        plain, watched, live = Training(problem), Training(problem, budget=0.02), Training(problem, budget=0.02, betas=None)
        wide = Training(problem, budget=0.02, coordinates=2**18)
        works: dict[str, Work] = {"plain": plain.steps, "monitor": watched.steps, "live": live.steps, "wide": wide.steps}
        seconds = rounds(works, COUNT, time.process_time)
        stopping = Training(problem, every=[100])
        stopping.steps(101)
        assert stopping.monitor is not None
        assert watched.monitor is not None
        looking: dict[str, Any] = {"every": CHUNK, "betas": None, "replays": 4, "measures": ["gradient_1_norm"]}
        pair = {check: Training(problem, check=check == "checked", **looking) for check in ("checked", "unchecked")}
        looks = rounds({name: each.steps for name, each in pair.items()}, COUNT, time.process_time)
        (stop,) = stopping.monitor.stops
        step = median(seconds["plain"]) / CHUNK
        figure = {
            "parameters": sum(p.numel() for p in problem.model.parameters()),
            "step_seconds": step,
            "step_ratio": ratio(seconds["monitor"], seconds["plain"]),
            "step_ratio_without_map": ratio(seconds["live"], seconds["plain"]),
            "step_ratio_2^18_coordinates": ratio(seconds["wide"], seconds["plain"]),
            "stop_seconds": stop["seconds"],
            "stop_in_steps": stop["seconds"] / step,
            "check_in_steps": (median(looks["checked"]) - median(looks["unchecked"])) / step,
            "first_stop": watched.monitor._schedule.period,
        }
        figures[name] = figure
        rows.append([name, *(f"{value:.4g}" for value in figure.values())])
    show("a monitored run against a plain one", ["network", *figures["MLP"]], rows)
    save("monitor", figures)


if __name__ == "__main__":
    torch.set_num_threads(1)
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s")
