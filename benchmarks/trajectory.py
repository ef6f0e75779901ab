"""What a step of each memoryless iteration costs, in steps of the optimizer itself, and whether that grows with n.

    python benchmarks/trajectory.py

At a fixed theta. Each round takes a few steps of every kind, from step n on and then from where the round before left off, so
that every step meets an n it has not seen, as on a trajectory. The unit is the optimizer's own step: gradient and update. A
ratio is the median over the rounds of the ratio within the round.
"""

import itertools
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

import memoryless as ml
from measuring import ratio, rounds
from memoryless.corrections import history
from memoryless.experiments import problems
from output import save, show

STEPS = (100, 1_000, 10_000)
BLOCK = 5
"""Steps in a row that are timed together."""
KINDS: dict[str, Any] = {"frozen": 1, "first": "first", "resummed": "resummed"}
ROUNDS = 9
GRADIENTS = 2e7
"""Order 2 takes a gradient for every step that the memory reaches back; it is timed up to so many numbers in all."""

METHODS = {
    "heavy_ball": ml.HeavyBall(),
    "nesterov": ml.Nesterov(),
    "rmsprop": ml.RMSprop(),
    "adamw": ml.AdamW(),
    "nadam": ml.NAdam(),
    "nadam with decay": ml.NAdam(weight_decay=0.01),
    "lion": ml.Lion(smoothing=1e-6),
    "signum": ml.Signum(smoothing=1e-6),
}
NETWORKS = {
    "digits 64-64-10, 1000 images": problems.digits_mlp,
    "digits 64-4-10, 20 images": partial(problems.digits_mlp, width=4, count=20),
}


def memory(method: ml.Method, loss: ml.Loss, n: int) -> Callable[[], None]:
    """Takes the next BLOCK steps of the optimizer each time it is called."""
    theta = loss.theta
    state = method.init(theta)._replace(n=n)

    def steps() -> None:
        nonlocal state
        for _ in range(BLOCK):
            state, _ = method.update(state, loss.gradient(theta), theta)

    return steps


def memoryless(method: ml.Method, loss: ml.Loss, order: Any, n: int, block: int = BLOCK) -> Callable[[], None]:
    """Takes the next steps of a memoryless iteration each time it is called."""
    theta, following = loss.theta, itertools.count(n)

    def steps() -> None:
        for s in itertools.islice(following, block):
            ml.correction(method, loss, theta, step=s, order=order)

    return steps


def cost(method: ml.Method, loss: ml.Loss) -> dict[str, dict[str, float]]:
    """Of each kind: steps of the optimizer per step around each n, and the last n over the first."""
    contestants = {"memory": memory(method, loss, STEPS[0])}
    contestants |= {f"{kind} {n}": memoryless(method, loss, order, n) for kind, order in KINDS.items() for n in STEPS}
    seconds = rounds(contestants, ROUNDS, time.thread_time)  # one thread's own time, whatever else the machine does
    unit = seconds["memory"]
    found = {
        kind: {f"n = {n:,}": ratio(seconds[f"{kind} {n}"], unit) for n in STEPS}
        | {"last / first": ratio(seconds[f"{kind} {STEPS[-1]}"], seconds[f"{kind} {STEPS[0]}"])}
        for kind in KINDS
    }
    within = {f"n = {n:,}": n for n in STEPS if history.reach(method.variables, n) * loss.theta.numel() <= GRADIENTS}
    seconds = rounds({name: memoryless(method, loss, 2, n, block=1) for name, n in within.items()}, 1, time.thread_time)
    found["order 2"] = {name: BLOCK * seconds[name][0] / median(unit) for name in within}
    return {"plain step": {"ms": 1e3 * median(unit) / BLOCK}} | found


def main() -> None:
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for about, make in NETWORKS.items():
        loss = make().loss
        figures[about] = {name: cost(method, loss) for name, method in METHODS.items()}
        columns = [*(f"n = {n:,}" for n in STEPS), "last / first"]
        rows = [
            (f"{name} {kind}", *(by_step.get(column, "") for column in columns))
            for name, kinds in figures[about].items()
            for kind, by_step in kinds.items()
            if kind != "plain step"
        ]
        show(f"{about}: plain steps per step", ("", *columns), rows)
    save("trajectory", figures)


if __name__ == "__main__":
    main()
