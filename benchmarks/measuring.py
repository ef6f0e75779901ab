"""Time as ratios within rounds of interleaved runs, memory from torch's allocator."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from torch.profiler import ProfilerActivity, profile

ROUNDS = 25
Work = Callable[[], Any]


def rounds(
    contestants: dict[str, Work], count: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(count + 1):
        for name, work in contestants.items():
            start = clock()
            work()
            if i:
                seconds[name].append(clock() - start)
    return seconds


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return median(x / y for x, y in zip(a, b, strict=True))


def peak(work: Work) -> int:
    """Most bytes that torch's allocator has handed out at once beyond those at the start (from the profiler)."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    events: list[Any] = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
