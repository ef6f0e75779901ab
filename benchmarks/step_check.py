"""Step check: no alarm in clean steps of every optimizer and path, and what a check costs.

    python benchmarks/step_check.py [share of the minutes, 1]

Clean steps, up to 1,000 each, round by round, 10 steps each a round, until the minutes of CPU of each part are over: torch's
optimizers on each of its paths and the catalogue's (12), those that are compiled (one after the other), other libraries' (16);
float32 and float64. Gradients are those of a bowl with noise, whose size goes up and down over six decades: no time is spent on
networks.
"""

import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

import memoryless as ml
from measuring import ratio, rounds
from memoryless.experiments.atlas import subjects
from memoryless.methods.method_optimizer import MethodOptimizer
from networks import NETWORKS
from output import save, show

O = torch.optim
STEPS, ROUND = 1000, 10
TORCH: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (O.SGD, {"lr": 1e-2}),
    "heavy ball": (O.SGD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}),
    "Nesterov": (O.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "Adam": (O.Adam, {"weight_decay": 0.1}),
    "amsgrad": (O.Adam, {"amsgrad": True}),
    "AdamW": (O.AdamW, {}),
    "NAdam": (O.NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    "RAdam": (O.RAdam, {}),
    "Adamax": (O.Adamax, {}),
    "RMSprop": (O.RMSprop, {}),
    "centered RMSprop": (O.RMSprop, {"centered": True, "momentum": 0.9}),
    "Adagrad": (O.Adagrad, {}),
    "Adadelta": (O.Adadelta, {}),
    "Adafactor": (O.Adafactor, {}),
    "Rprop": (O.Rprop, {}),
    "ASGD": (O.ASGD, {}),
}
PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "lr tensor": {"foreach": False, "lr": torch.tensor(1e-3)},
}
COMPILED = "heavy ball", "AdamW", "RMSprop"
"""On the path that torch.compile traces (backend eager: the same operations, without a compiler's minute each), with and
without capturable, which on a CPU works nowhere else."""
Loop = Iterator[bool | None]


def loop(make: Callable[[list[nn.Parameter]], Any], dtype: torch.dtype, compiled: bool = False) -> Loop:
    """Verdicts of clean steps."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, dtype=dtype, generator=generator)  # noqa: E731
    parameters = [nn.Parameter(draw(3, 4)), nn.Parameter(draw(3))]
    optimizer = make(parameters)
    step = torch.compile(lambda: optimizer.step(), backend="eager") if compiled else optimizer.step
    check = ml.check_step(optimizer)
    if compiled:
        torch.compiler.reset()  # what was compiled for the loop before would count against a limit
    n = 0
    while True:
        size = 10 ** (3 * torch.tensor(n / 40.0).sin().item())
        for p in parameters:
            p.grad = min(size, 1.0) * p.detach() + size * draw(*p.shape)
        with check:
            step()
        n += 1
        assert check.result is not None
        if check.result.ok is False:
            print(check.result.verdict, [t.times for t in check.result.tensors[:3]], flush=True)
        yield check.result.ok


def own(compiled: bool) -> dict[str, Loop]:
    """Torch's optimizers on its paths and the catalogue's, in both types; or those of torch's that are compiled."""
    found: dict[str, Loop] = {}
    for dtype in (torch.float32, torch.float64):
        kind = str(dtype).removeprefix("torch.")
        for name, (cls, options) in TORCH.items():
            accepted = inspect.signature(cls).parameters
            for path, more in PATHS.items():
                if more.keys() <= set(accepted):
                    made = options | {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in more.items()}
                    found[f"{name}, {path}, {kind}"] = loop(lambda p, cls=cls, made=made: cls(p, **made), dtype)
            for more in ({}, {"capturable": True}) if name in COMPILED else ():
                if more.keys() <= set(accepted):
                    path = ", ".join(["compiled", *more])
                    made = options | more
                    found[f"{name}, {path}, {kind}"] = loop(lambda p, cls=cls, o=made: cls(p, **o), dtype, compiled=True)
        found[f"Muon, {kind}"] = loop(lambda p: O.Muon(p[:1], lr=1e-3), dtype)
        for method in (ml.HeavyBall(), ml.Nesterov(), ml.RMSprop(), ml.Adam(), ml.AdamW(), ml.NAdam(), ml.Lion(), ml.Signum()):
            found[f"catalogue {method.name}, {kind}"] = loop(lambda p, method=method: MethodOptimizer(p, method), dtype)
    return {name: each for name, each in found.items() if (", compiled" in name) is compiled}


def others() -> dict[str, Loop]:
    """The atlas's other libraries, in both types."""
    return {
        f"{library} {name}, {str(dtype).removeprefix('torch.')}": loop(subjects.subject(library, name).make, dtype)
        for dtype in (torch.float32, torch.float64)
        for library in subjects.installed() if library != "torch" for name in subjects.names(library)
    }  # fmt: skip


def clean(loops: dict[str, Loop], minutes: float, each: int = STEPS) -> dict[str, Any]:
    """Steps, alarms, steps that could not be checked, and loops that failed, of all."""
    until = time.process_time() + 60 * minutes
    taken, alarms, unchecked, failed = dict.fromkeys(loops, 0), dict.fromkeys(loops, 0), dict.fromkeys(loops, 0), {}
    for _ in range(STEPS // each):
        for name, verdicts in list(loops.items()):
            if time.process_time() > until:
                break
            try:
                for _ in range(each):
                    ok = next(verdicts)
                    taken[name] += 1
                    alarms[name] += ok is False
                    unchecked[name] += ok is None
            except Exception as error:  # an optimizer that cannot step here, on vectors say, with or without a check
                failed[name] = f"{type(error).__name__}: {error}"[:150]
                del loops[name]
    return {
        "subjects": len(loops), "steps": sum(taken[name] for name in loops), "fewest": min(taken[name] for name in loops),
        "alarms": {k: v for k, v in alarms.items() if v}, "unchecked": {k: v for k, v in unchecked.items() if v},
        "failed": failed, "minutes": (time.process_time() - until) / 60 + minutes,
    }  # fmt: skip


def cost(name: str, **options: Any) -> dict[str, float]:
    """A run that is checked at every step over a plain one, CPU time, median of interleaved rounds of 64 steps."""
    works: dict[str, Callable[[], Any]] = {}
    for kind in ("plain", "checked"):
        problem = NETWORKS[name](32 if name != "GPT" else 4)
        (batch,) = problem.batches
        optimizer = O.AdamW(problem.model.parameters(), **options)
        check = ml.check_step(optimizer) if kind == "checked" else nullcontext()

        def steps(problem: Any = problem, optimizer: Any = optimizer, check: Any = check, batch: Any = batch) -> None:
            for _ in range(64):
                optimizer.zero_grad()
                with check:
                    problem.criterion(problem.model, batch).backward()
                    optimizer.step()

        works[kind] = steps
    seconds = rounds(works, 3, time.process_time)
    return {"every step": ratio(seconds["checked"], seconds["plain"])}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ratios = {name: cost(name) for name in NETWORKS} | {"MLP, fused": cost("MLP", fused=True)}
    show("a checked run over a plain one", ["network", "every step"], [[k, *v.values()] for k, v in ratios.items()])
    part = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    found = {
        "torch and catalogue": clean(own(compiled=False), 12 * part, ROUND),
        "compiled": clean(own(compiled=True), 60.0, round(STEPS * part)),
        "other libraries": clean(others(), 16 * part, ROUND),
    }
    for who, told in found.items():
        print(who, {k: v for k, v in told.items() if k != "failed"}, len(told["failed"]), "cannot step here")
    save("step_check", {"cost": ratios, "clean": found})


if __name__ == "__main__":
    main()
