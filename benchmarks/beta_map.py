"""A beta map of 400 pairs against a single correction, on the digits network; and its memory against the number of pairs.

    python benchmarks/beta_map.py

Both do one gradient and one product for the history; to say what the effect does to a measure, both need a second product. The
rounds interleave the contestants, a ratio is the median over the rounds of the ratio within the round.
"""

import statistics
import time
from collections.abc import Callable

import torch
from output import save, show

import memoryless as ml
from memoryless import history, measures, problems
from memoryless.beta_map import BETAS_1, BETAS_2
from memoryless.correction import first_order, resummed

ROUNDS = 60


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak_bytes(action: Callable[[], object]) -> int:
    """Largest total of torch's allocations during the action, above what there was before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    kineto = profile.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    changes = sorted((e.start_ns(), e.nbytes()) for e in kineto.events() if e.name() == "[memory]")  # pyright: ignore[reportAttributeAccessIssue]
    total = peak = 0
    for _, change in changes:
        total += change
        peak = max(peak, total)
    return peak


def times() -> dict[str, float]:
    loss, method = problems.digits_mlp().loss, ml.AdamW()
    pairs = len(BETAS_1) * len(BETAS_2)
    assert pairs == 400

    def corrected(respond: Callable) -> None:
        theta = loss.theta
        linearization = loss.linearize(theta)
        respond(method, history.full_batch(method, linearization, theta, None), theta)
        measures.evaluate(["gradient_1_norm"], loss, theta, *linearization)

    contestants: dict[str, Callable[[], object]] = {
        "correction, resummed": lambda: ml.correction(method, loss, order="resummed"),
        "correction, resummed, and its effect on a measure": lambda: corrected(resummed),
        "correction, first, and its effect on a measure": lambda: corrected(first_order),
        "map of 400 pairs, first": lambda: ml.beta_map(method, loss, kind="first"),
        "map of 400 pairs, resummed": lambda: ml.beta_map(method, loss, kind="resummed"),
    }
    rounds = []
    for _ in range(ROUNDS + 3):
        rounds.append({name: seconds(action) for name, action in contestants.items()})
    rounds = rounds[3:]

    def ratio(a: str, b: str) -> float:
        return statistics.median(r[a] / r[b] for r in rounds)

    found = {f"milliseconds: {name}": 1e3 * statistics.median(r[name] for r in rounds) for name in contestants}
    for kind in ("first", "resummed"):
        name, unit = f"map of 400 pairs, {kind}", f"correction, {kind}, and its effect on a measure"
        found[f"{name} / {unit}"] = ratio(name, unit)
        found[f"{name} / correction, resummed"] = ratio(name, "correction, resummed")
    return found


def memory() -> dict[str, float]:
    loss, method = problems.digits_mlp(width=4000, count=20).loss, ml.AdamW()
    d = loss.theta.numel()
    found = {}
    for k in (5, 10, 20):
        peak = peak_bytes(lambda k=k: ml.beta_map(method, loss, BETAS_1[:k], BETAS_2[:k]))
        found[f"{k * k} pairs: peak in vectors of d = {d}"] = peak / (8 * d)
    return found


figures = times() | memory()
show("Beta map", ("quantity", "value"), list(figures.items()))
save("beta_map", figures)
