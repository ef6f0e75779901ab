"""The path followed back from theta against the others from theta alone, everything fixed beforehand, float64, full batch.

    python benchmarks/from_theta.py

The networks, steps and learning rates of `state_map.py`, other seeds and splits of the digits. At each stop of a run along
AdamW the effect of its own memory on its update is told from theta, lr, betas and the step count alone, to first order,
resummed and along the path, and compared with what the run's memory really does there. An audit goes by the path where it
trusts it, by the resummed effect elsewhere ("gone by").

Must hold:
  trusted        where the path is trusted its median cosine is >= .94
  not trusted    elsewhere it is not worse than the resummed by more than .02 in the median
  gone by        and what an audit goes by is not worse than the resummed by more than .02 in the median, over all
Reported besides: every network alone, the sign and the error of the change of the gradient's 1-norm.
"""

import sys
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor

import memoryless as ml
from memoryless.audits.effect import Changes
from memoryless.corrections.expansion import expansion
from memoryless.corrections.history import frozen
from memoryless.corrections.path import follow
from memoryless.flat import norm
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from output import save, show
from state_map import STOPS, network

SEEDS = (21, 22, 23, 24, 25)
KINDS = ("first", "resummed", "path", "gone by")


def stops(name: str, seed: int) -> Iterator[dict[str, Any]]:
    """One run's points; lr and betas alternate with the seed as in `state_map.py`."""
    lr, betas = (1e-3, 3e-4)[seed % 2], ((0.9, 0.999), (0.9, 0.999), (0.9, 0.95))[seed % 3]
    loss, method = network(name, seed).loss, ml.AdamW(lr, betas, weight_decay=0.1 * (seed % 2))
    theta = loss.theta
    state = method.init(theta)
    for n in range(STOPS[name][-1] + 1):
        g = loss.gradient(theta)
        state, u = method.update(state, g, theta)
        if n in STOPS[name]:
            yield {"network": name, "seed": seed, "lr": lr, "betas": betas, "step": n} | told(loss, method, theta, u, n)
        theta = theta - lr * u


def told(loss: ml.Loss, method: ml.Method, theta: Tensor, u: Tensor, n: int) -> dict[str, Any]:
    """What each prediction says at a stop, beside what happens."""
    point = Point(loss, theta)
    F = frozen(method, point.gradient, theta, n)
    expanded, path = expansion(method, point, n), follow(method, point, n, [method])
    effects = {"first": expanded.first().value, "resummed": expanded.resummed().value, "path": path.effect(method)}
    effects["gone by"] = effects["path" if path.trusted else "resummed"]
    happens = Changes(evaluate(["gradient_1_norm"], point), point, method.lr)
    true, change = u - F, happens(F, u - F)[0]
    found: dict[str, Any] = {"growth": path.growth, "trusted": path.trusted, "gradients": path.spent, "change": change}
    for kind, E in effects.items():
        cosine = float(torch.nn.functional.cosine_similarity(E, true, dim=0, eps=1e-300))
        found[kind] = {"cosine": cosine, "error": float(norm(E - true) / norm(true)), "change": happens(F, E)[0]}
    return found


def summary(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every prediction over some points."""
    if not points:
        return {"points": 0}
    found: dict[str, Any] = {"points": len(points)}
    for kind in KINDS:
        off = [abs(p[kind]["change"] - p["change"]) / abs(p["change"]) for p in points]
        found[kind] = {
            "cosine": median(p[kind]["cosine"] for p in points),
            "error": median(p[kind]["error"] for p in points),
            "sign": sum(p[kind]["change"] * p["change"] > 0 for p in points) / len(points),
            "change off": median(off),
        }
    return found


def main() -> None:
    points: list[dict[str, Any]] = []
    for name in STOPS:
        for seed in SEEDS:
            points += stops(name, seed)
            print(name, seed, file=sys.stderr, flush=True)
    some = {"all": points, "trusted": [p for p in points if p["trusted"]]}
    some["not trusted"] = [p for p in points if not p["trusted"]]
    some |= {name: [p for p in points if p["network"] == name] for name in STOPS}
    some |= {f"{name}, trusted": [p for p in points if p["network"] == name and p["trusted"]] for name in STOPS}
    figures = {what: summary(each) for what, each in some.items()}
    gap = {what: f["path"]["cosine"] - f["resummed"]["cosine"] for what, f in figures.items() if f["points"]}
    by = figures["all"]["gone by"]["cosine"] - figures["all"]["resummed"]["cosine"]
    holds = {
        "trusted": bool(figures["trusted"]["points"]) and figures["trusted"]["path"]["cosine"] >= 0.94,
        "not trusted": gap.get("not trusted", 0.0) >= -0.02,
        "gone by": by >= -0.02,
    }
    rows = [
        [what, str(f["points"]), *(f"{f[k]['cosine']:.3g} / {f[k]['sign']:.2f} / {f[k]['change off']:.2g}" for k in KINDS)]
        for what, f in figures.items()
        if f["points"]
    ]
    show("effect at theta, from theta alone: cosine / sign / error of the change", ["", "points", *KINDS], rows)
    print("holds:", holds)
    save("from_theta", figures | {"holds": holds, "each": points})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
