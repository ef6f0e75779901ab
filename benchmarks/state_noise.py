"""What the buffers of a mini-batch run tell about other betas: results/state_noise.json.

m and v hold the batches' noise. Along a run of Adam (0.9, 0.999) on the digits MLP (after 100 steps at batch size 32; 400 more
at the lr and batch size named), at 10 of the last 100 steps, maps over 7 x 8 betas from the two buffers alone, held to the
shadows' measured map. Between ages a lag is interpolated as fractional Brownian motion with H = 0.85 that is 0 at age 0 and
pinned at the buffer,

    lag(w') = lag(w) (w' K w) / (w K w),        K(j, k) = (j^1.7 + k^1.7 - |j - k|^1.7) / 2.

  naive      lags m - g, v - g^2 of the full gradient g, as in a full-batch run: the noise counts as lag
  variance   v - mean_i g_i^2 over the batches at theta, which takes the noise's share out of v; the noise in m cannot be told
             from its lag, so m is left without one; the update without memory is that of a random order
  replayed   the order of the past batches is known: m and v less the same sums of g_i at theta, in which the noise cancels

Signs are counted over the cells whose measured effect is beyond two standard errors, and over those of them with beta_1 = 0,
where only v remembers. 0.9 of them is the mark for being of use.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import memoryless as ml
from memoryless.audits.grid import Grid, inner_products
from memoryless.audits.shadow import Shadow
from memoryless.corrections.expected.estimate import Samples
from memoryless.corrections.sequences import random_order
from memoryless.experiments.problems import digits_mlp
from memoryless.live import loop
from memoryless.live.batch_sizes import BETAS_1, BETAS_2, train
from memoryless.live.lags import Replay, exact
from memoryless.live.loop import Sight
from memoryless.loss.batches import cut
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import Index, Momentum
from output import save, show

Lookup = Callable[[Momentum, Index], Tensor]
STEPS, WAYS = 400, ("naive", "variance", "replayed")


def share(v: Momentum, of: Momentum, n: int) -> float:
    """lag(w') over lag(w), both with weights that sum to 1."""
    k = np.arange(n + 1.0)
    K = (k[:, None] ** 1.7 + k**1.7 - np.abs(k[:, None] - k) ** 1.7) / 2
    w, pinned = (kernel.kernel(x, n) / kernel.total(x, n) for x in (v, of))
    return float(w @ K @ pinned / (pinned @ K @ pinned))


def maps(lr: float, size: int) -> dict[str, Samples]:
    """Slopes at the stops, measured and by every way."""
    model, criterion, batches = digits_mlp(0, 32, 896)
    train(torch.optim.Adam(model.parameters(), lr=3e-4), ml.Loss(model, criterion, cut(batches[0], 32)), 100)
    loss, live = ml.Loss(model, criterion, cut(batches[0], size)), ml.Adam(lr)
    grid, rng = Grid(live, BETAS_1, BETAS_2), np.random.default_rng(1)
    shadow = Shadow([live, *grid.spanning()], loss.theta)
    order = random_order(len(loss), STEPS, np.random.default_rng(0))
    stops = {int(s) for s in np.linspace(0.75 * STEPS, STEPS - 1, 10)}
    found: dict[str, list[np.ndarray]] = {way: [] for way in ("measured", *WAYS)}

    def look(sight: Sight) -> None:
        if sight.taken in stops:
            for way, inner in at(sight).items():
                found[way].append(inner)
        shadow.update(sight.gradient, sight.theta)

    def at(sight: Sight) -> dict[str, np.ndarray]:
        theta, point, n = sight.theta, Point(loss, sight.theta), sight.taken
        (value,) = evaluate(["gradient_1_norm"], point)
        past, drawn = order[: n + 1], random_order(len(loss), n + 1, rng)
        drawn[-1] = past[-1]
        own = {v.g: v for v in live.variables}
        shares = {v: share(v, own[v.g], n) for v in shadow.variables}

        def actual(v: Momentum, index: Index = slice(None)) -> Tensor:
            return shadow.memory(v, sight.gradient, theta, index)

        def still(of: Callable[[Momentum], Tensor]) -> Lookup:
            """A memory that holds `of` at every age."""
            return lambda v, index=slice(None): kernel.total(v, n) * of(v)[index]

        def lagging(rest: Lookup, base: Lookup, which: tuple[str, ...]) -> Lookup:
            """The memory `rest`, with the lag of the live buffers behind `base` of the kinds named."""

            def memory(v: Momentum, index: Index = slice(None)) -> Tensor:
                if not v.has_memory or v.g.__name__ not in which:
                    return rest(v, index)
                lag = (actual(own[v.g]) - base(own[v.g], slice(None))) / kernel.total(own[v.g], n)
                there = rest(v, index) + kernel.total(v, n) * shares[v] * lag[index]
                return there if v.g.__name__ == "gradient" else there.maximum(0.02 * rest(v, index))

            return memory

        def gap(memory: Lookup, rest: Lookup) -> np.ndarray:
            slopes = value.gradient[None]
            inner = inner_products(grid, slopes, theta, memory) - inner_products(grid, slopes, theta, rest)
            return -lr * inner[..., 0] / value.value

        gradients = point.gradients_of()
        full = still(lambda v: v.g(point.gradient, theta))
        mean = still(lambda v: v.g(gradients, theta).mean(0))
        replay, other = exact(Replay(point, past, None)), exact(Replay(point, drawn, None))
        both = ("gradient", "square")
        return {
            "measured": gap(actual, replay),
            "naive": gap(lagging(full, full, both), full),
            "variance": gap(lagging(other, mean, ("square",)), other),
            "replayed": gap(lagging(replay, replay, both), replay),
        }

    method = torch.optim.Adam(model.parameters(), lr=lr)
    loop.run(method, loss, STEPS, look, order)
    return {way: Samples(np.array(values), "series") for way, values in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for size in (8, 32):
        for lr in (1e-4, 3e-4):
            found = maps(lr, size)
            measured = found["measured"]
            known = np.abs(measured.mean) > 2 * measured.standard_error
            row: dict[str, Any] = {"batch_size": size, "lr": lr, "known": int(known.sum())}
            for way in WAYS:
                gap = np.abs(found[way].mean - measured.mean)
                same = known & (np.sign(found[way].mean) == np.sign(measured.mean))
                row[way] = {
                    "signs": int(same.sum()),
                    "signs at beta_1 = 0": [int(same[0].sum()), int(known[0].sum())],
                    "relative_error": float(gap.sum() / np.abs(measured.mean).sum()),
                }
            rows.append(row)
            save("state_noise", rows)
    cells = [
        [str(r["batch_size"]), f"{r['lr']:g}"]
        + [
            f"{r[way]['signs']} of {r['known']}, error {r[way]['relative_error']:.2f}; "
            f"at beta_1 = 0 {r[way]['signs at beta_1 = 0']}"
            for way in WAYS
        ]
        for r in rows
    ]
    show("signs as measured, and summed error over summed size", ["batch", "lr", *WAYS], cells)


if __name__ == "__main__":
    main()
