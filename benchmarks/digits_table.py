"""First order and resummed against torch.optim.Adam's measured memory effect: the digits MLP, float64, full batch."""

import statistics
from collections.abc import Iterator
from typing import Any

import torch

import memoryless as ml
from memoryless.experiments import problems
from output import save, show

SETTINGS = [
    ((0.9, 0.999), 1e-5, (100,)),
    ((0.9, 0.99), 1e-4, (30,)),
    ((0.9, 0.999), 1e-3, (100, 300, 1000)),
    ((0.9, 0.95), 1e-3, (300,)),
]
SEEDS = range(5)


def compare(betas: tuple[float, float], lr: float, steps: tuple[int, ...], seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Train, and at each of the steps hold both corrections against the measurement."""
    problem = problems.digits_mlp(seed)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=lr, betas=betas)
    for stop in ml.audit_run(
        optimizer, problem.loss, max(steps), stops=steps, measures=["gradient_1_norm"], compare=(), betas=None
    ).stops:
        (effect,), validity = stop.audit.effects, stop.audit.validity
        found = {"change measured": effect.measured, "slope measured": effect.slopes.measured}
        for kind in ("first", "resummed"):
            agreed = getattr(validity, kind)
            found |= {f"cos {kind}": agreed.cosine, f"error {kind}": agreed.error, f"change {kind}": getattr(effect, kind)}
        yield stop.audit.step or 0, found | {"outside": validity.outside}


def main() -> None:
    found: dict[tuple, list[dict[str, Any]]] = {}
    for betas, lr, steps in SETTINGS:
        for seed in SEEDS:
            for n, figures in compare(betas, lr, steps, seed):
                found.setdefault((*betas, lr, n), []).append(figures)
    names = list(next(iter(found.values()))[0])
    figures = [
        {
            "betas": key[:2],
            "lr": key[2],
            "step": key[3],
            **{name: {"mean": statistics.fmean(v), "min": min(v), "max": max(v)} for name, v in columns.items()},
        }
        for key, runs in found.items()
        for columns in [{name: [run[name] for run in runs] for name in names}]
    ]
    rows = [
        [f"{f['betas']} {f['lr']:g} {f['step']}"]
        + [f"{f[n]['mean']:.2g}\n[{f[n]['min']:.2g}, {f[n]['max']:.2g}]" for n in names]
        for f in figures
    ]
    show(f"torch.optim.Adam on the digits MLP: mean [range] over {len(SEEDS)} seeds", ["betas, lr, step", *names], rows)
    save("digits_table", figures)


if __name__ == "__main__":
    main()
