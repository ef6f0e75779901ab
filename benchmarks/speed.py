"""Cost of a correction, in gradients of the same batch; against curvlinops; memory; independence of the step.

Everything is timed side by side: each round runs every contestant once, a ratio is the median over the rounds of the
ratio within the round. The unit is the cheapest of three ways to the gradient (autograd on the model, `.backward()`,
`Loss.gradient`). Give a number of threads; the default is 1, since two on a shared machine wait for each other.
"""

import sys
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from curvlinops import HessianLinearOperator  # pyright: ignore[reportMissingImports] - extra `benchmark`
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import memoryless as ml
from measuring import Work, peak, ratio, rounds
from memoryless.corrections.correction import Correction
from memoryless.experiments.problems import Problem
from networks import NETWORKS, cnn, gpt, mlp
from output import save, show

STEP = 1000


class _Tokenwise(nn.Module):
    """Logits (n, classes), the layout that curvlinops expects."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).flatten(0, -2)


def unit_ways(problem: Problem, loss: ml.Loss, theta: Tensor) -> dict[str, Work]:
    model, parameters = problem.model, list(problem.model.parameters())
    batch = problem.batches[0]

    def backward() -> None:
        model.zero_grad()
        problem.criterion(model, batch).backward()

    return {
        "autograd.grad on the model": lambda: torch.autograd.grad(problem.criterion(model, batch), parameters),
        "backward() on the model": backward,
        "Loss.gradient": lambda: loss.gradient(theta),
    }


def curvlinops_product(problem: Problem, v: Tensor) -> Callable[[], Any]:
    x, y = problem.batches[0]
    model = _Tokenwise(problem.model)
    data = [(x, y.flatten())]
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False, num_data=len(x)
    )

    def product() -> Any:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            return operator @ v

    return product


def cost(name: str) -> dict[str, Any]:
    """Times in gradients of one network."""
    problem = NETWORKS[name]()
    loss = problem.loss
    differences = ml.Loss(problem.model, problem.criterion, problem.batches, curvature="difference")
    theta, method = loss.theta, ml.AdamW()
    v = torch.randn_like(theta)
    other = curvlinops_product(problem, v)
    ours = loss.curvature(theta, v)
    disagreement = float((ours - other()).norm() / ours.norm())

    def gradient_and_product() -> None:
        gradient, curvature = loss.linearize(theta)
        curvature(gradient)

    ways = unit_ways(problem, loss, theta)
    contestants = ways | {
        "linearize: gradient + HVP": gradient_and_product,
        "first": lambda: ml.correction(method, loss, theta, step=STEP),
        "resummed": lambda: ml.correction(method, loss, theta, step=STEP, order="resummed"),
        "first, difference": lambda: ml.correction(method, differences, theta, step=STEP),
        "resummed, difference": lambda: ml.correction(method, differences, theta, step=STEP, order="resummed"),
        "HVP": lambda: loss.curvature(theta, v),
        "HVP of curvlinops": other,
    }
    seconds = rounds(contestants)
    unit = min(ways, key=lambda way: median(seconds[way]))
    exact, approximate = (ml.correction(method, which, theta, step=STEP) for which in (loss, differences))
    exact_r, approximate_r = (ml.correction(method, which, theta, step=STEP, order="resummed") for which in (loss, differences))
    return {
        "parameters": theta.numel(),
        "unit": unit,
        "unit milliseconds": 1e3 * median(seconds[unit]),
        "gradients": {way: ratio(seconds[way], seconds[unit]) for way in contestants},
        "HVP of curvlinops / ours": ratio(seconds["HVP of curvlinops"], seconds["HVP"]),
        "HVP of curvlinops, disagreement": disagreement,
        "difference, relative error of the HVP": float((differences.curvature(theta, v) - ours).norm() / ours.norm()),
        "difference, relative error of M first": float((approximate.M - exact.M).norm() / exact.M.norm()),
        "difference, relative error of M resummed": float((approximate_r.M - exact_r.M).norm() / exact_r.M.norm()),
    }


def memory(make: Callable[[int], Problem], batch: int) -> dict[str, float]:
    """Peak memory of corrections in that of the gradient, at a batch where activations dominate."""
    problem = make(batch)
    loss = problem.loss
    theta, method = loss.theta, ml.AdamW()
    gradient = min(peak(way) for way in unit_ways(problem, loss, theta).values())
    first = peak(lambda: ml.correction(method, loss, theta, step=STEP))
    resummed = peak(lambda: ml.correction(method, loss, theta, step=STEP, order="resummed"))
    return {
        "batch": batch,
        "gradient MB": gradient / 1e6,
        "theta MB": theta.numel() * theta.element_size() / 1e6,
        "first / gradient": first / gradient,
        "resummed / gradient": resummed / gradient,
    }


def independence() -> dict[str, dict[str, float]]:
    """Time of a correction at n = 10,000 over that at n = 10, on the MLP, and the Hessian-vector products of each."""
    loss = NETWORKS["MLP"]().loss
    theta = loss.theta
    figures = {}
    for method in (ml.AdamW(), ml.HeavyBall(), ml.Lion(smoothing=1e-6)):
        for order in ("first", "resummed"):

            def at(n: int, method: ml.Method = method, order: Any = order) -> Correction:
                return ml.correction(method, loss, theta, step=n, order=order)

            seconds = rounds({"early": lambda: at(10), "late": lambda: at(10_000)})
            figures[f"{method.name} {order}"] = {
                "time ratio": ratio(seconds["late"], seconds["early"]),
                "products at 10": at(10).products,
                "products at 10,000": at(10_000).products,
            }
    return figures


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", UserWarning)
    costs = {name: cost(name) for name in NETWORKS}
    ways = list(costs["MLP"]["gradients"])
    rows = [[way, *(f"{c['gradients'][way]:.2f}" for c in costs.values())] for way in ways]
    rest = [key for key, value in costs["MLP"].items() if not isinstance(value, dict)]
    rows += [[key, *(c[key] if isinstance(c[key], str) else f"{c[key]:.3g}" for c in costs.values())] for key in rest]
    show(f"in gradients, {threads} threads, float32", ["", *costs], rows)

    peaks = {make.__name__.upper(): memory(make, batch) for make, batch in ((mlp, 8192), (cnn, 64), (gpt, 32))}
    show("peak memory", ["", *peaks["MLP"]], [[name, *p.values()] for name, p in peaks.items()])

    late = independence()
    show("n = 10,000 against n = 10", ["", *late["adamw first"]], [[name, *f.values()] for name, f in late.items()])
    save(f"speed_{threads}_threads", {"cost": costs, "memory": peaks, "step independence": late})


if __name__ == "__main__":
    main()
