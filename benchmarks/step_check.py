"""Step check: no alarm in clean steps of every optimizer and path, and what a check costs.

    python benchmarks/step_check.py [minutes of CPU for the clean steps, 8]

Clean steps go round by round through all subjects, 10 steps each a round, up to 1,000 each or until the minutes are over.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import memoryless as ml
from memoryless.experiments.atlas import subjects
from memoryless.methods.method_optimizer import MethodOptimizer
from networks import NETWORKS
from output import save, show

STEPS, ROUND = 1000, 10
PATHS: dict[str, dict[str, Any]] = {"foreach": {"foreach": True}, "single": {"foreach": False}, "fused": {"fused": True}}


def loop(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], dtype: torch.dtype) -> Iterator[bool | None]:
    """Verdicts of clean steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
    optimizer = make(list(model.parameters()))
    check = ml.check_step(optimizer)
    generator = torch.Generator().manual_seed(1)
    while True:
        x = torch.randn(16, 6, dtype=dtype, generator=generator)
        optimizer.zero_grad()
        with check:
            (model(x) - x[:, :2].sin()).square().mean().backward()
            optimizer.step()
        assert check.result is not None
        if check.result.ok is not True:
            print(check.result.verdict, [t.times for t in check.result.tensors[:3]], flush=True)
        yield check.result.ok


def made() -> dict[str, Iterator[bool | None]]:
    """Loops by name: the atlas, the catalogue, torch's paths, in both types."""
    found: dict[str, Iterator[bool | None]] = {}
    for dtype in (torch.float32, torch.float64):
        kind = str(dtype).removeprefix("torch.")
        for library in subjects.installed():
            for name in subjects.names(library):
                found[f"{library} {name} {kind}"] = loop(subjects.subject(library, name).make, dtype)
        for method in (ml.HeavyBall(), ml.Nesterov(), ml.RMSprop(), ml.Adam(), ml.AdamW(), ml.NAdam(), ml.Lion(), ml.Signum()):
            found[f"catalogue {method.name} {kind}"] = loop(lambda p, method=method: MethodOptimizer(p, method), dtype)
        for cls in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
            for path, options in PATHS.items():
                found[f"{cls.__name__} {path} {kind}"] = loop(lambda p, cls=cls, o=options: cls(p, lr=1e-2, **o), dtype)
    return found


def clean(minutes: float) -> dict[str, Any]:
    """Steps, alarms, steps that could not be checked, and loops that failed, of all."""
    loops, until = made(), time.process_time() + 60 * minutes
    taken, alarms, unchecked, failed = dict.fromkeys(loops, 0), dict.fromkeys(loops, 0), dict.fromkeys(loops, 0), {}
    for _ in range(STEPS // ROUND):
        for name, verdicts in list(loops.items()):
            if time.process_time() > until:
                break
            try:
                for _ in range(ROUND):
                    ok = next(verdicts)
                    taken[name] += 1
                    alarms[name] += ok is False
                    unchecked[name] += ok is None
            except Exception as error:  # an optimizer that cannot step here, on vectors say, with or without a check
                failed[name] = f"{type(error).__name__}: {error}"[:150]
                del loops[name]
    return {
        "subjects": len(taken), "steps": sum(taken.values()), "fewest": min(taken[name] for name in loops),
        "alarms": {k: v for k, v in alarms.items() if v}, "unchecked": {k: v for k, v in unchecked.items() if v},
        "failed": failed,
    }  # fmt: skip


def cost(name: str, every: int, steps: int = 12) -> float:
    """A checked run over a plain one, CPU time, median of interleaved pairs of steps."""
    problem = NETWORKS[name](32 if name != "GPT" else 4)
    optimizer = torch.optim.AdamW(problem.model.parameters())
    check, times = ml.check_step(optimizer), ([], [])
    (batch,) = problem.batches

    def step() -> None:
        optimizer.zero_grad()
        problem.criterion(problem.model, batch).backward()
        optimizer.step()

    for n in range(2 * steps + 4):
        start = time.process_time()
        if n % 2:
            with check:
                step()
        else:
            step()
        check._previous = None  # the steps between are not checked
        if n >= 4:
            times[n % 2].append(time.process_time() - start)
    plain, checked = (sorted(each)[len(each) // 2] for each in times)
    return 1 + (checked / plain - 1) / every


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ratios = {name: {f"every {every}": cost(name, every) for every in (1, 100)} for name in NETWORKS}
    show("a checked run over a plain one", ["network", *ratios["MLP"]], [[k, *v.values()] for k, v in ratios.items()])
    found = clean(float(sys.argv[1]) if len(sys.argv) > 1 else 8.0)
    print({k: v for k, v in found.items() if k != "failed"}, len(found["failed"]), "cannot step here")
    save("step_check", {"cost": ratios, "clean": found})


if __name__ == "__main__":
    main()
