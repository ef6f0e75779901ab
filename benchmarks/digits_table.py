"""First order and resummed against torch.optim.Adam's measured memory effect: the digits MLP, float64, full batch."""

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

import memoryless as ml
from memoryless.corrections.history import frozen
from memoryless.experiments import problems
from memoryless.methods.live_optimizer import next_update
from output import save, show

SETTINGS = [
    ((0.9, 0.999), 1e-5, (100,)),
    ((0.9, 0.99), 1e-4, (30,)),
    ((0.9, 0.999), 1e-3, (100, 300, 1000)),
    ((0.9, 0.95), 1e-3, (300,)),
]
SEEDS = range(5)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def compare(betas: tuple[float, float], lr: float, steps: tuple[int, ...], seed: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Train, and at each of the steps hold both corrections against the measurement."""
    problem = problems.digits_mlp(seed)
    loss = problem.loss
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=lr, betas=betas)
    method = ml.method_of(optimizer, loss.layout)
    for n in range(max(steps) + 1):
        theta = loss.theta
        gradient = loss.gradient(theta)
        if n in steps:
            measured = next_update(optimizer, loss.layout, gradient) - frozen(method, gradient, theta, n)
            first = ml.correction(method, loss, theta, step=n)
            resummed = ml.correction(method, loss, theta, step=n, order="resummed")
            per_step = -lr * loss.curvature(theta, gradient.sign()) / gradient.abs().sum()
            yield (
                n,
                {
                    "cos first": cosine(measured, first.M),
                    "cos resummed": cosine(measured, resummed.M),
                    "error first": float((first.M - measured).norm() / measured.norm()),
                    "error resummed": float((resummed.M - measured).norm() / measured.norm()),
                    "change measured": float(per_step @ measured),
                    "change first": float(per_step @ first.M),
                    "change resummed": float(per_step @ resummed.M),
                    "outside": first.outside,
                },
            )
        loss.layout.set_gradients(gradient)
        optimizer.step()


def main() -> None:
    found: dict[tuple, list[dict[str, float]]] = {}
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
