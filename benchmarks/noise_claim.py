"""Does memory's effect turn over at small batches? The claim of arXiv 2602.01642, measured: results/noise_claim.json.

For Adam at large batches a larger beta_2 anti-regularizes more and a larger beta_1 regularizes more; the claim is that at small
batches both turn over, at a batch size that scales with the critical one. Asked of three problems at several stages of
training: the change of memory's effect on the gradient 1-norm from the smaller to the larger beta, the other one fixed,
measured along the run (`memoryless.replay`) and predicted, resummed and to first order.
"""

import torch

from memoryless.batch_sizes import BatchSizes, batch_sizes, train
from memoryless.problems import digits_cnn, digits_mlp, text_gpt
from memoryless.structure import cut
from output import save

BETA_1, BETA_2 = (0.9, 0.95), (0.9, 0.99)
STAGES = (50, 200, 800)
STEPS = 400


def problems():
    """Name, (model, criterion, data), lr, batch sizes."""
    model, criterion, batches = digits_mlp(0, width=32, count=512)
    yield "MLP, digits", (model, criterion, cut(batches[0], 32)), 3e-4, (8, 32, 128, None)
    model, criterion, batches = digits_cnn(0, count=512)
    yield "CNN, digits", (model, criterion, cut(batches[0], 32)), 3e-4, (8, 32, 128, None)
    model, criterion, batches = text_gpt(0, layers=1, context=16, count=128)
    yield "GPT, text", (model, criterion, cut(batches[0], 16)), 1e-3, (4, 16, 64, None)


def turned(found: BatchSizes) -> list[dict]:
    """At each batch size: what a larger beta does, in % per step with its standard error.

    At the own pair (0.9, 0.99): beta_2 up from 0.9, beta_1 up to 0.95.
    """
    i, j = found.own
    moves = {"beta_2 0.9 -> 0.99": ((i, j - 1), (i, j)), "beta_1 0.9 -> 0.95": ((i, j), (i + 1, j))}
    rows = []
    for size in found.sizes:
        noise = size.noise
        row: dict = {
            "batch_size": size.size or "full",
            "noise_scale": noise and noise.scale,
            "interval": noise and noise.interval,
        }
        for move, (low, high) in moves.items():
            differences = {
                "measured": size.measured.at((*high, 0)).less(size.measured.at((*low, 0))),
                "resummed": size.resummed[high].at((0,)).less(size.resummed[low].at((0,))),
                "first order": size.predicted.at((*high, 0)).less(size.predicted.at((*low, 0))),
            }
            row[move] = {kind: [100 * float(d.mean), 100 * float(d.standard_error)] for kind, d in differences.items()}
        rows.append(row)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    results = []
    for scale in (1.0, 0.1):
        for name, (model, criterion, batches), lr, sizes in problems():
            training = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
            taken = 0
            for j, stage in enumerate(STAGES):
                train(model, criterion, batches, training, stage - taken, seed=j)
                taken = stage
                measuring = torch.optim.Adam(model.parameters(), lr=scale * lr, betas=(0.9, 0.99))
                grid = {"betas_1": BETA_1, "betas_2": BETA_2}
                found = batch_sizes(model, criterion, batches, measuring, sizes, steps=STEPS, samples=32, taken=taken, **grid)
                results.append({"problem": name, "lr": scale * lr, "training_steps": taken, "sizes": turned(found)})
                print(results[-1], flush=True)
                save("noise_claim", results)


if __name__ == "__main__":
    main()
