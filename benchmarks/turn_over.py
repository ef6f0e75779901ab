"""At which measure, batch size and order of theory do the betas turn over? results/turn_over.json, docs/turn_over.md.

arXiv 2602.01642 says of Adam: at large batches a larger beta_2 anti-regularizes more and a larger beta_1 less; at small batches
both turn over. Noise terms of the theory speak of the batches' own gradients, not of the full one, hence the measures here.

Fixed before the first run. Digits MLP 64-32-10, 896 images, float64, Adam (0.9, 0.99); 100 or 400 steps at batch size 32 and
lr 3e-4, then 400 steps from empty memory at batch sizes 8, 32, 128 and full, at the lr named; the slopes of memory's effect at
20 of the last 100 steps, predicted at every second of these. A move is known where its difference is beyond two standard
errors (batch means over the stops). One seed: signs at a setting are what this tells, not how often they occur.

Hypotheses, each by the share of its cases (settings x measures x moves, where known):
  claim      measured: at full batch beta_2 0.9 -> 0.99 raises and beta_1 0.9 -> 0.95 lowers the effect, at batch 8 the other
             way round. Holds: at full batch 90 %, at batch 8 90 %.
  first      to first order nothing turns over: the sign at batch 8 is that at full batch. Holds: 90 %.
  batches    the largest batch size at which a move has the reversed sign, measured, is larger on batch measures than on the
             full gradient's 1-norm. Holds: in more settings and moves than not.
  resummed   has the measured sign at sizes 8, 32, 128. Holds: 90 %; first order's share stands beside.
"""

from typing import Any

import torch

import memoryless as ml
from memoryless.corrections.expected.estimate import Samples
from memoryless.experiments.problems import digits_mlp
from memoryless.live.batch_sizes import BatchSizes, audit_batch_sizes, train
from memoryless.loss.batches import cut
from output import save, show

MEASURES = (
    "gradient_1_norm",
    "batch_gradient_1_norm",
    "batch_gradient_norm_squared",
    "batch_gradient_variance",
    "batch_sharpness",
)
MOVES = {"beta_2 0.9 -> 0.99": ((0.9, 0.9), (0.9, 0.99), 1), "beta_1 0.9 -> 0.95": ((0.9, 0.99), (0.95, 0.99), -1)}
"""From, to, and the sign at large batches."""
KINDS = ("measured", "resummed", "first")
SETTINGS = ((100, 1e-4), (100, 3e-4), (400, 3e-4))
SIZES = (8, 32, 128, None)


def moved(found: BatchSizes, maps: Samples, move: str, k: int) -> tuple[float, float]:
    """The change of an effect as a beta grows, in % per step, and its standard error."""
    (low, high, _) = MOVES[move]
    at = [(found.betas_1.index(b1), found.betas_2.index(b2), k) for b1, b2 in (low, high)]
    difference = maps.at(at[1]).less(maps.at(at[0]))
    return 100 * float(difference.mean), 100 * float(difference.standard_error)


def cells(steps: int, lr: float) -> list[dict[str, Any]]:
    """Every move at every batch size and measure, by every order."""
    model, criterion, batches = digits_mlp(0, 32, 896)
    loss = ml.Loss(model, criterion, cut(batches[0], 32))
    train(torch.optim.Adam(model.parameters(), lr=3e-4, betas=(0.9, 0.99)), loss, steps)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
    found = audit_batch_sizes(optimizer, loss, SIZES, measures=MEASURES, betas=((0.9, 0.95), (0.9, 0.99)), steps=400)
    return [
        {"after": steps, "lr": lr, "size": at.size or "full", "measure": name, "move": move, "value": at.values[k]}
        | {"noise_scale": at.noise and at.noise.as_dict()["scale"]}
        | {kind: moved(found, getattr(at, kind), move, k) for kind in KINDS}
        for at in found.sizes
        for k, name in enumerate(MEASURES)
        for move in MOVES
        if (at.size, name) != (None, "batch_gradient_variance")  # of one batch it is 0
    ]


def sign(cell: dict[str, Any], kind: str) -> int:
    """1 as at large batches by the claim, -1 turned over, 0 not known."""
    mean, error = cell[kind]
    return 0 if abs(mean) <= 2 * error else (1 if mean > 0 else -1) * MOVES[cell["move"]][2]


def share(truths: list[bool]) -> str:
    return f"{sum(truths)} of {len(truths)}"


def verdicts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What became of each hypothesis."""

    def known(kind: str, *sizes: int | str) -> list[dict[str, Any]]:
        return [r for r in rows if r["size"] in sizes and sign(r, kind)]

    full = {(r["after"], r["lr"], r["measure"], r["move"]): r for r in rows if r["size"] == "full"}
    kept = []
    for r in known("first", 8):
        other = full.get((r["after"], r["lr"], r["measure"], r["move"]))
        if other and sign(other, "first"):
            kept.append(sign(r, "first") == sign(other, "first"))
    larger, smaller = 0, 0
    for setting in SETTINGS:
        for move in MOVES:
            mine = [r for r in rows if (r["after"], r["lr"]) == setting and r["move"] == move and r["size"] != "full"]
            reach = {
                m: max((r["size"] for r in mine if r["measure"] == m and sign(r, "measured") < 0), default=0) for m in MEASURES
            }
            larger += sum(reach[m] > reach["gradient_1_norm"] for m in MEASURES[1:])
            smaller += sum(reach[m] < reach["gradient_1_norm"] for m in MEASURES[1:])
    told = {
        "claim, full batch": share([sign(r, "measured") > 0 for r in known("measured", "full")]),
        "claim, batch 8 turned over": share([sign(r, "measured") < 0 for r in known("measured", 8)]),
        "first keeps the full-batch sign at 8": share(kept),
        "batches": f"turned over up to a larger size on {larger} batch measures, a smaller on {smaller}",
    }
    for kind in ("resummed", "first"):
        told[f"{kind} has the measured sign"] = share(
            [(r[kind][0] > 0) == (r["measured"][0] > 0) for r in known("measured", 8, 32, 128)]
        )
    return told


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for steps, lr in SETTINGS:
        rows += cells(steps, lr)
        save("turn_over", {"cells": rows, "verdicts": verdicts(rows)})
        heads = ["measure", "move", "batch", *KINDS]
        mine = [r for r in rows if (r["after"], r["lr"]) == (steps, lr)]
        show(
            f"after {steps} steps, lr {lr:g}: % per step",
            heads,
            [
                [r["measure"], r["move"], str(r["size"])]
                + [f"{r[kind][0]:+.2g} ± {r[kind][1]:.1g}{' !' if sign(r, kind) < 0 else ''}" for kind in KINDS]
                for r in sorted(mine, key=lambda r: (MEASURES.index(r["measure"]), r["move"]))
            ],
        )
    for name, told in verdicts(rows).items():
        print(f"{name}: {told}")


if __name__ == "__main__":
    main()
