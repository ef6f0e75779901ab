"""Does memory's effect turn over at small batches? The claim of arXiv 2602.01642, tested: results/noise_claim.json.

For Adam at large batches a larger beta_2 anti-regularizes more and a larger beta_1 regularizes more; the claim is that at small
batches both turn over, at a batch size that scales with the critical one. Asked of three problems at several stages of
training: the change of memory's effect on the gradient 1-norm as one beta grows, the other fixed, measured along the next 400
steps at each batch size (`audit_run`, the last quarter of them) and predicted to first order where they end.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import memoryless as ml
from memoryless.corrections.expected.estimate import Samples
from memoryless.corrections.sequences import random_order
from memoryless.experiments.problems import Problem, digits_cnn, digits_mlp, text_gpt
from memoryless.live.batch_sizes import train
from memoryless.loss.batches import cut
from output import save, show

MOVES = {"beta_2 0.9 -> 0.99": ((0.9, 0.9), (0.9, 0.99)), "beta_1 0.9 -> 0.95": ((0.9, 0.99), (0.95, 0.99))}
STAGES = (50, 200, 800)
STEPS, SAMPLES = 400, 100


def problems() -> Iterator[tuple[str, Problem, float, tuple[int | None, ...]]]:
    """Name, problem in one batch, lr, batch sizes."""
    yield "MLP, digits", digits_mlp(0, width=32, count=512), 3e-4, (8, 32, 128, None)
    yield "CNN, digits", digits_cnn(0, count=512), 3e-4, (8, 32, 128, None)
    yield "GPT, text", text_gpt(0, layers=1, context=16, count=128), 1e-3, (4, 16, 64, None)


def row(model: Any, criterion: Any, data: Any, lr: float, size: int | None) -> dict[str, Any]:
    """At one batch size: what a larger beta does, in % per step with its standard error."""
    mine = copy.deepcopy(model)
    loss = ml.Loss(mine, criterion, [data] if size is None else cut(data, size))
    optimizer = torch.optim.Adam(mine.parameters(), lr=lr, betas=(0.9, 0.99))
    order = random_order(len(loss), STEPS, np.random.default_rng(0))
    stops = range(3 * STEPS // 4, STEPS, 5)
    methods = {pair: ml.Adam(lr, pair) for move in MOVES.values() for pair in move}
    measured = ml.audit_run(
        optimizer, loss, order, stops=stops, measures=["gradient_1_norm"], compare=list(methods.values()), betas=None
    ).others
    noise = None if size is None else ml.gradient_noise(loss)
    found: dict[str, Any] = {"batch_size": size or "full", "noise_scale": None, "interval": None}
    if noise is not None:
        found |= {"noise_scale": finite(noise.scale), "interval": [finite(x) for x in noise.interval or ()]}
    predicted = {pair: first_order(method, loss) for pair, method in methods.items()}
    for move, (low, high) in MOVES.items():
        differences = {
            "measured": measured[name(methods[high])].less(measured[name(methods[low])]).at((0,)),
            "first order": predicted[high].less(predicted[low]),
        }
        found[move] = {kind: [100 * float(d.mean), 100 * float(d.standard_error)] for kind, d in differences.items()}
    return found


def first_order(method: ml.Method, loss: ml.Loss) -> Samples:
    """The change of the gradient 1-norm per step; pairs share their draws."""
    step = 7 * STEPS // 8
    if len(loss) > 1:
        found = ml.expected_correction(method, loss, step=step, samples=SAMPLES, measures=["gradient_1_norm"])
        return found.effects[0].changes
    effect = ml.audit(method, loss, step=step, measures=["gradient_1_norm"]).effects[0]
    return Samples(np.array([effect.first]), "exact")


def name(method: ml.Method) -> str:
    """As a run at the same lr calls it."""
    return method.describe(omit=("lr",))


def finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def main() -> None:
    torch.set_num_threads(1)
    results = []
    for scale in (1.0, 0.1):
        for problem, (model, criterion, batches), lr, sizes in problems():
            training = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
            taken = 0
            for j, stage in enumerate(STAGES):
                train(training, ml.Loss(model, criterion, cut(batches[0], 32)), stage - taken, seed=j)
                taken = stage
                rows = [row(model, criterion, batches[0], scale * lr, size) for size in sizes]
                results.append({"problem": problem, "lr": scale * lr, "training_steps": taken, "sizes": rows})
                save("noise_claim", results)
                cells = [[f"{a:+.2g} ± {b:.1g}" for move in MOVES for a, b in r[move].values()] for r in rows]
                heads = [f"{move}, {kind}" for move in MOVES for kind in ("measured", "first order")]
                table = [
                    [str(r["batch_size"]), f"{r['noise_scale'] or math.nan:.0f}", *c] for r, c in zip(rows, cells, strict=True)
                ]
                show(f"{problem}, lr {scale * lr:g}, after {taken} steps", ["batch", "noise scale", *heads], table)


if __name__ == "__main__":
    main()
