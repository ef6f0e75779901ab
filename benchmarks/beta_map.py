"""A beta map of 400 pairs against a single correction, on the digits network; and its memory against the number of pairs.

    python benchmarks/beta_map.py

Both do one gradient and one product for the history; to say what the effect does to a measure, both need a second product. The
rounds interleave the contestants, a ratio is the median over the rounds of the ratio within the round.
"""

from collections.abc import Callable
from statistics import median

import memoryless as ml
from measuring import peak, ratio, rounds
from memoryless.audits.grid import BETAS_1, BETAS_2
from memoryless.corrections.expansion import expansion
from memoryless.experiments import problems
from memoryless.loss import measures
from memoryless.loss.point import Point
from output import save, show


def times() -> dict[str, float]:
    loss, method = problems.digits_mlp().loss, ml.AdamW()
    pairs = len(BETAS_1) * len(BETAS_2)
    assert pairs == 400

    def corrected(order: str) -> None:
        point = Point(loss)
        found = expansion(method, point)
        (found.first if order == "first" else found.resummed)()
        measures.evaluate(["gradient_1_norm"], point)

    contestants: dict[str, Callable[[], object]] = {
        "correction, resummed": lambda: ml.correction(method, loss, order="resummed"),
        "correction, resummed, and its effect on a measure": lambda: corrected("resummed"),
        "correction, first, and its effect on a measure": lambda: corrected("first"),
        "map of 400 pairs, first": lambda: ml.beta_map(method, loss, order="first"),
        "map of 400 pairs, resummed": lambda: ml.beta_map(method, loss, order="resummed"),
    }
    seconds = rounds(contestants, 60)
    found = {f"milliseconds: {name}": 1e3 * median(seconds[name]) for name in contestants}
    for kind in ("first", "resummed"):
        name, unit = f"map of 400 pairs, {kind}", f"correction, {kind}, and its effect on a measure"
        found[f"{name} / {unit}"] = ratio(seconds[name], seconds[unit])
        found[f"{name} / correction, resummed"] = ratio(seconds[name], seconds["correction, resummed"])
    return found


def memory() -> dict[str, float]:
    loss, method = problems.digits_mlp(width=4000, count=20).loss, ml.AdamW()
    d = loss.theta.numel()
    found = {}
    for k in (5, 10, 20):
        most = peak(lambda k=k: ml.beta_map(method, loss, BETAS_1[:k], BETAS_2[:k]))
        found[f"{k * k} pairs: peak in vectors of d = {d}"] = most / (8 * d)
    return found


figures = times() | memory()
show("Beta map", ("quantity", "value"), list(figures.items()))
save("beta_map", figures)
