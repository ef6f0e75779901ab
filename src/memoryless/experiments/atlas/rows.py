"""The atlas: every optimizer of a library through the same machine, and what its memory does to the loss.

For each, on two problems: F[n] and M[n] (first order and resummed), the steady state, and what they do to each measure in one
step (`audits.effect`); and how its memory fades. No number is believed that one way alone gives (`experiments.atlas.ways`).
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memoryless.audits.effect import Changes, Vectors, effects_of
from memoryless.corrections.correction import correction
from memoryless.errors import BadInput, NeverForgets
from memoryless.experiments.atlas import subjects
from memoryless.experiments.atlas.subjects import Subject
from memoryless.experiments.atlas.ways import AGREE, ROUNDING, STEP, Machine, Run, Ways, draws_numbers, machine, reason_of
from memoryless.isolation import isolated
from memoryless.loss.loss import Loss
from memoryless.loss.measures import USUAL, evaluate
from memoryless.loss.point import Point
from memoryless.methods.fading.experiment import experiment
from memoryless.methods.fading.tails import above_rounding, ages_of, tail
from memoryless.methods.forgetting import judgement
from memoryless.progress import silent

Row = dict[str, Any]

PROBLEMS = ("vector", "network")
HORIZON = 512
"""Steps to follow a black box that never comes to rest: what it does then only confirms that."""
AGES = 257
"""Steps to follow what evaluates the loss itself."""
SEEDS = 8
"""Of an optimizer that draws random numbers."""
LATE = "not finished within the time limit"
KINDS = {
    "agreed": "first order, two ways agree",
    "no memory": "no memory: F[n] does not depend on the past",
    "flat": "derivative 0 almost everywhere: resummed, two ways agree",
    "corner": "no derivative, a corner at the frozen history: resummed, two ways agree",
    "random": "draws random numbers: averaged, with standard error",
    "refused": "refused, for the reason given",
}


def problems() -> dict[str, Loss]:
    """The two problems, in float64: a logistic regression with a vector of 12, and a network 6-5-3 with its matrices."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    X, y = normal(40, 12), normal(40).sign()
    vector = _Vector(normal(12) / 2)
    images, targets = normal(16, 6), normal(16, 3)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(normal(*p.shape) / 2)
    return {
        "vector": Loss(
            vector, lambda model, batch: nn.functional.softplus(-batch[1] * (batch[0] @ model.theta)).mean(), [(X, y)]
        ),
        "network": Loss(network, lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]), [(images, targets)]),
    }


class _Vector(nn.Module):
    def __init__(self, theta: Tensor):
        super().__init__()
        self.theta = nn.Parameter(theta)


def examine(library: str, name: str) -> Iterator[Row]:
    """All that is known of one optimizer, step n before the steady state, whose search may take long.

    Args:
        library: one of `subjects.LIBRARIES`, installed.
        name: of the optimizer, there.

    Yields:
        A row of the atlas, which JSON can hold, and the same again with more in it.
    """
    subject = subjects.subject(library, name)
    found: dict[str, Row] = {}
    rest: dict[str, Iterator[Row]] = {}
    memory: Row = {"reason": LATE}

    def row() -> Row:
        return row_of(library, name, found, time.process_time() - began, subject.given, memory)

    began = time.process_time()
    for problem, loss in problems().items():
        try:
            with isolated(loss.device):
                found[problem], rest[problem] = _examined(subject, loss, remembers=problem == PROBLEMS[-1])
        except Exception as error:  # whatever an optimizer does, it is a row
            found[problem] = {"kind": "refused", "reason": reason_of(error)}
    yield row()
    for problem, more in reversed(rest.items()):
        for news in more:
            memory = news.pop("memory", memory)
            found[problem] |= news
            yield row()


def row_of(library: str, name: str, found: dict[str, Row], seconds: float, given: str = "", memory: Row | None = None) -> Row:
    """A row of the atlas.

    Args:
        library: where the optimizer is from.
        name: there.
        found: of each problem.
        seconds: of processor time.
        given: what the optimizer was given.
        memory: how it fades.
    """
    return {
        "library": library,
        "name": name,
        "versions": versions(library),
        "given": given,
        "kind": _kind([each["kind"] for each in found.values()]),
        "memory": _finite(memory or {"reason": "not examined"}),
        "problems": _finite(found),
        "seconds": round(seconds, 1),
    }


def versions(library: str) -> dict[str, str]:
    """What a row depends on.

    Args:
        library: of the optimizer.
    """
    return {name: subjects.version_of(name) for name in ("memoryless", "torch", library)}


def _kind(kinds: list[str]) -> str:
    """That of the row: the problem with matrices decides, unless it has no answer."""
    return next((kind for kind in reversed(kinds) if kind != "refused"), "refused")


def _examined(subject: Subject, loss: Loss, remembers: bool) -> tuple[Row, Iterator[Row]]:
    """One optimizer on one problem: what is found at step n, and what finds the rest."""
    draws = draws_numbers(subject, loss)
    live = subject.needs != "gradient"
    machines = [machine(subject, loss, seed) for seed in (range(SEEDS) if draws else [0 if live else None])]
    one = machines[0]
    found = {"method": one.text, "lr": one.lr} | _answer([each.ways() for each in machines], loss, one.lr, draws)
    if found["kind"] == "refused" and subject.remark:
        found["reason"] = f"{subject.remark}: {found['reason']}"
    found["steady"] = {"reason": LATE}
    if found["kind"] == "no memory":
        found["steady"] = {"reason": "the update is the same after any past"}
        return found, iter([{"memory": {"reason": "the update is the same after any past"}}])
    if draws or live:
        what = "draws random numbers at every step" if draws else "evaluates the loss itself"
        found["steady"] = {"reason": f"it {what}: the machine finds no steady state of that"}
        return found, _fading(one, loss, NeverForgets("it draws random numbers") if draws else None) if remembers else iter(())
    return found, _at_rest(one, loss, remembers)


def _answer(ways: list[Ways], loss: Loss, lr: float, draws: bool) -> Row:
    """What is told of first order and resummed."""
    kinds = [way.kind for way in ways]
    kind = "refused" if "refused" in kinds else "random" if draws else kinds[0]
    firsts = [way.first for way in ways if way.first is not None]
    worst = max(ways, key=lambda way: way.gap)
    found = {
        "kind": kind,
        "seeds": len(ways),
        "F": _mean_norm([way.F for way in ways]),
        "M": _mean_norm(firsts) if firsts else None,
        "resummed": _mean_norm([way.summed for way in ways]),
        "way": worst.way,
        "why": worst.why,
        "gap": worst.gap,
        "corner": max(way.corner for way in ways),
        "doubt": max(way.doubt for way in ways),
        "resummed_gap": max((gap for way in ways if (gap := way.summed_gap) is not None), default=None),
        "effects": _effects(loss, lr, ways, draws),
    }
    if kind == "corner":
        found["reason"] = f"the slopes of F[n] to the two sides of the frozen history differ by {worst.corner:.0%}"
    elif kind == "refused" and worst.rough > AGREE:
        changed = f"gradients changed by {ROUNDING:g} of them change it by {worst.rough:.1g} of itself"
        found["reason"] = f"rounding decides the update: {changed}"
    elif kind == "refused" and worst.first is None:
        found["reason"] = worst.why
    elif kind == "refused" and worst.gap > AGREE:
        doubts = f"the literal one doubts itself by {worst.doubt:.1g}"
        found["reason"] = f"the two ways to the first order differ by {worst.gap:.1g} ({doubts})"
    elif (found["resummed_gap"] or 0.0) > AGREE:
        found["reason"] = f"the two ways to the resummed effect differ by {found['resummed_gap']:.1g}"
    return found


def _effects(loss: Loss, lr: float, ways: list[Ways], draws: bool) -> list[Row]:
    """The change of each measure in one step, relative to it; of several draws that of their mean, with its standard error."""
    point = Point(loss)
    values = evaluate(USUAL, point)
    F, summed = (torch.stack(list(each)).mean(0) for each in ((way.F for way in ways), (way.summed for way in ways)))
    firsts = [way.first for way in ways if way.first is not None]
    first = torch.stack(firsts).mean(0) if len(firsts) == len(ways) else None
    effects = effects_of(values, lr, Vectors(F, None, first, summed), point)
    changes = Changes(values, point, lr)
    samples = torch.tensor([changes(way.F, way.summed) for way in ways], dtype=torch.float64) if draws else None
    found = []
    for k, effect in enumerate(effects):
        error = None if samples is None else float(samples[:, k].std() / len(ways) ** 0.5)
        word = effect.word if error is None or abs(effect.best) > 2 * error else "neutral"
        told = {name: getattr(effect, name) for name in ("measure", "value", "first", "resummed", "update", "random")}
        slopes = {name: getattr(effect.slopes, name) for name in ("first", "resummed", "update")}
        found.append(told | {"slopes": slopes, "standard_error": error, "word": word})
    return found


def _mean_norm(vectors: list[Tensor]) -> float:
    return float(torch.stack(vectors).mean(0).norm())


def _finite(x: Any) -> Any:
    """The same with None for every number that is not finite, which JSON has not."""
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _fading(machine: Machine, loss: Loss, unsettled: BadInput | None) -> Iterator[Row]:
    """How memory fades: by the kernel of a black box, or of what evaluates the loss itself by a disturbance."""
    with isolated(loss.device):
        if machine.method is None:
            yield {"memory": _followed(machine.run, loss)}
            return
        try:
            horizon = HORIZON if isinstance(unsettled, NeverForgets) else None
            kernel = experiment(machine.method, horizon, 0, silent, unsettled)
        except Exception as error:
            yield {"memory": {"reason": reason_of(error)}}
            return
    found = {"decays": kernel.decays, "judgement": kernel.judgement, "mean_age": kernel.mean_age, "half_life": kernel.half_life}
    pieces = [{"name": piece.name, "mean_age": piece.mean_age, "half_life": piece.half_life} for piece in kernel.pieces]
    yield {"memory": found | {"evidence": kernel.evidence, "pieces": pieces}}


def _followed(run: Run, loss: Loss) -> Row:
    """What a disturbance of theta at the step after `STEP` leaves in later updates."""
    theta, ages = loss.theta, np.arange(AGES)
    signs = torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64).sign()
    elsewhere = theta + 1e-3 * theta.norm() / len(theta) ** 0.5 * signs

    def follow(first: Tensor) -> list[Tensor]:
        points = [theta] * STEP + [first] + [theta] * (AGES - 1)
        return list(run((torch.zeros_like(x), x) for x in points))[STEP:]

    left = np.array([float((F - G).norm()) for F, G in zip(follow(theta), follow(elsewhere), strict=True)])
    end, (age, half) = tail(ages, left), ages_of(ages, above_rounding(left))
    how = f"the update's response to a disturbance of theta {end.how}"
    told = judgement(end.fades, STEP + AGES)
    return {"decays": end.fades, "judgement": told, "mean_age": age, "half_life": half, "evidence": how, "pieces": []}


def _at_rest(machine: Machine, loss: Loss, remembers: bool) -> Iterator[Row]:
    """The steady state, or why there is none; how memory fades; the steady state resummed."""
    method, theta, point = machine.method, loss.theta, Point(loss)
    assert method is not None
    first, unsettled = None, None
    try:
        # A correction of its own for each order, so that the steps told are those of one.
        first = correction(method, loss, theta)
    except BadInput as error:
        unsettled = error
    except Exception as error:
        unsettled = BadInput(reason_of(error))

    changes = Changes(evaluate(USUAL, point), point, method.lr)

    def told(F: Tensor, **effects: Tensor) -> list[Row]:
        found = {key: changes(F, M) for key, M in effects.items()}
        return [{"measure": name} | {key: each[k] for key, each in found.items()} for k, name in enumerate(USUAL)]

    found: Row = {} if unsettled is None else {"reason": reason_of(unsettled)}
    if first is not None:
        found = {"F": float(first.F.norm()), "M": float(first.M.norm()), "way": first.way, "steps": first.steps}
        found |= {"effects": told(first.F, first=first.M), "resummed_reason": LATE}
    yield {"steady": found}
    if remembers:
        yield from _fading(machine, loss, unsettled)
    if first is None:
        return
    try:
        summed = correction(method, loss, theta, order="resummed")
    except Exception as error:
        found["resummed_reason"] = reason_of(error)
    else:
        del found["resummed_reason"]
        found |= {"resummed": float(summed.M.norm()), "effects": told(first.F, first=first.M, resummed=summed.M)}
    yield {"steady": found}
