"""Are a monitor's numbers those of the exact replay of every past batch, and do its error bars hold them?

Fixed before its one run. Digits MLP (64-32-10, stop at step 600), small CNN (400), small GPT (300); lr 3e-4 and 1e-3; at each
the cases below. One training run is watched by 100 monitors that differ in the seed of their draws alone, 64 replayed gradients
each, and by one that replays all steps: exact. The measure is the gradient 1-norm of fixed data. Wanted:

* slope of the live pair: rmse over its size at most .10 (lr 3e-4) and .25 (1e-3), over the sum of its parts' sizes at most .06;
* 95 % intervals that hold the exact slope: 92 to 97 %; sure of the wrong sign: at most .5 %;
* finite change of the live pair: median error at most 10 %;
* map of 7 x 8 betas: at least 85 % of the cells sure and right, at most .3 % sure and wrong, median error at most 10 %, on all
  coordinates and (GPT) on 2^14 of them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import memoryless as ml
from memoryless.experiments.problems import cross_entropy, digits, digits_cnn, digits_mlp, text_gpt
from memoryless.live.monitoring.replay import Replay
from output import save, show

REPEATS, REPLAYS, SURE = 100, 64, 1.96
STEPS = {"MLP": 600, "CNN": 400, "GPT": 300}
LRS = 3e-4, 1e-3


class Case(NamedTuple):
    """An optimizer and what the loop does.

    Attributes:
        make: (parameters, lr) -> optimizer.
        size: of a batch.
        fresh: no batch comes twice; else epochs.
        moves: beta_1 goes from .85 to .95 along the run, and gradients are clipped to norm 1.
        coordinates: of theta that maps are on.
    """

    make: Callable[[Any, float], torch.optim.Optimizer]
    size: int
    fresh: bool
    moves: bool = False
    coordinates: int = 2**20


def lion(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """The catalogue's."""
    from memoryless.methods.named import resolve

    return resolve("lion").given(lr=lr).live(list(parameters))


CASES = {
    "Adam, 32, epochs": Case(lambda p, lr: torch.optim.Adam(p, lr), 32, fresh=False),
    "Adam, 8, fresh": Case(lambda p, lr: torch.optim.Adam(p, lr), 8, fresh=True),
    "AdamW, betas move, clipped, 8, fresh": Case(lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.1), 8, True, moves=True),
    "Lion, 32, epochs": Case(lion, 32, fresh=False),
    "Adam, 32, epochs, 2^14": Case(lambda p, lr: torch.optim.Adam(p, lr), 32, fresh=False, coordinates=2**14),
}


def data(name: str, case: Case, steps: int) -> tuple[nn.Module, tuple[Tensor, Tensor], list[tuple[Tensor, Tensor]]]:
    """Model, the data of the measure, and the batch of each step."""
    if name == "GPT":
        made = text_gpt(count=64 if not case.fresh else 64 + steps * case.size, dtype=torch.float32)
    else:
        made = digits_mlp(0, 32, 1797) if name == "MLP" else digits_cnn(0, 480, torch.float32)
    inputs, targets = made.batches[0]
    probe = inputs[:64], targets[:64]
    if case.fresh and name != "GPT":
        inputs, targets = digits(1797, inputs.dtype)
    rng, count = np.random.default_rng(0), len(inputs)
    each = count // case.size
    orders = [rng.permutation(count)[: each * case.size].reshape(each, case.size) for _ in range(-(-steps // each) + 1)]
    batches = [(inputs[rows], targets[rows]) for rows in map(torch.from_numpy, np.concatenate(orders)[: steps + 1])]
    if case.fresh and name != "GPT":  # other images each time
        generator = torch.Generator().manual_seed(0)
        batches = [(x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype), y) for x, y in batches]
    return made.model, probe, batches


def once(raw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Replay each step once for all monitors, which meet at the same theta."""
    known: dict[int, Tensor] = {}

    def found(self: Replay, s: int, step: Any, theta: Tensor, buffers: Any) -> Tensor:
        if s not in known:
            known[s] = raw(self, s, step, theta, buffers)
        return known[s].clone()

    return found


def clipped(gradient: Tensor) -> Tensor:
    """To norm 1, as torch does it."""
    return gradient * torch.clamp(1.0 / (gradient.norm() + 1e-6), max=1.0)


def watched(name: str, case: Case, lr: float) -> Iterator[dict[str, Any]]:
    """The exact stop and those of the repeats, at the same step of one run."""
    steps = STEPS[name]
    model, probe, batches = data(name, case, steps)
    optimizer = case.make(model.parameters(), lr)
    options: dict[str, Any] = {"every": [steps], "data": [probe], "coordinates": case.coordinates} | (
        {"gradient": clipped} if case.moves else {}
    )
    everything: dict[str, Any] = options | {"replays": 10**6, "coordinates": 2**20}
    own, Replay.raw = Replay.raw, once(Replay.raw)  # type: ignore[method-assign]
    try:
        with ExitStack() as stack:
            exact = ml.Monitor(model, cross_entropy, optimizer, **everything)
            others = [ml.Monitor(model, cross_entropy, optimizer, replays=REPLAYS, seed=k, **options) for k in range(REPEATS)]
            for monitor in (exact, *others):
                stack.enter_context(monitor)
            for n, batch in enumerate(batches):
                if case.moves:
                    optimizer.param_groups[0]["betas"] = (0.85 + 0.1 * n / steps, 0.999)
                optimizer.zero_grad()
                cross_entropy(model, batch).backward()
                if case.moves:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                for monitor in (exact, *others):
                    monitor.step(batch)
        for monitor in (exact, *others):
            assert len(monitor.stops) == 1, monitor.notes
            yield monitor.stops[0]
    finally:
        Replay.raw = own  # type: ignore[method-assign]


def judged(name: str, case: Case, lr: float) -> dict[str, float]:
    """What came of one case."""
    exact, *stops = watched(name, case, lr)
    true, found = exact["effects"][0], [stop["effects"][0] for stop in stops]
    slopes, errors, changes = (np.array([each[key] for each in found]) for key in ("slope", "error", "change"))
    off = slopes - true["slope"]
    rmse = float(np.sqrt(np.mean(off**2)))
    figures = {
        "effect": true["slope"],
        "rmse/effect": rmse / abs(true["slope"]),
        "rmse/sizes": rmse / true["absolute"],
        "covered": float(np.mean(np.abs(off) <= SURE * errors)),
        "wrong sign": float(np.mean((np.abs(slopes) > SURE * errors) & (slopes * true["slope"] < 0))),
        "change": true["change"],
        "change off": float(np.median(np.abs(changes / true["change"] - 1))),
    }
    if exact["map"] is not None:
        right = np.array(exact["map"]["measures"]["gradient_1_norm"]["slope"])
        cells = [stop["map"]["measures"]["gradient_1_norm"] for stop in stops]
        values, errors = (np.array([each[key] for each in cells]) for key in ("slope", "error"))
        sure, remembers = np.abs(values) > SURE * errors, np.abs(right) > 0
        agree = values * right > 0
        figures |= {
            "cells right": float((sure & agree)[:, remembers].mean()),
            "cells wrong": float((sure & ~agree)[:, remembers].mean()),
            "cells off": float(np.median(np.abs(values / np.where(remembers, right, 1) - 1)[:, remembers])),
            "cells covered": float((np.abs(values - right) <= SURE * errors)[:, remembers].mean()),
        }
    return figures


def main() -> None:
    torch.set_num_threads(1)
    wanted, figures, columns = sys.argv[1:] or list(STEPS), [], []
    for name in wanted:
        for lr in LRS:
            for title, case in CASES.items():
                if case.coordinates < 2**20 and name != "GPT":
                    continue
                figures.append({"network": name, "lr": lr, "case": title} | judged(name, case, lr))
                columns = max(columns, list(figures[-1])[2:], key=len)
                print(figures[-1], flush=True)
                save("monitor_accuracy", figures)
    rows = [[f"{each['network']}, {each['lr']:g}", *(each.get(key, "") for key in columns)] for each in figures]
    show("64 replays against all", ["", *columns], rows)


if __name__ == "__main__":
    main()
