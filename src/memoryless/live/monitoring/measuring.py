"""What is measured at a stop: the live pair's effect, a map over betas, other methods, each with its standard error.

    Delta = (what the optimizer did) - F[n](theta; the same batches),       slope of S: T = -lr <grad S, Delta> / S
    change of S: (S(theta - lr (F + Delta)) - S(theta - lr F)) / S(theta)

T is a sum of terms that nearly cancel: sum_i |lr Delta_i grad S_i / S| stands beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memoryless.audits.effect import Changes
from memoryless.audits.grid import Grid
from memoryless.audits.shadow import Shadow
from memoryless.errors import BadInput
from memoryless.flat import dot, norm, total
from memoryless.live.monitoring.draws import Draws
from memoryless.live.monitoring.frozen import Estimated, Part, Reading, Terms, estimate
from memoryless.live.monitoring.past_weights import Live
from memoryless.live.monitoring.replay import Replay, Step, require_same
from memoryless.live.monitoring.sample import Sample
from memoryless.live.monitoring.whole import Whole, images
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, Value, evaluate
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer, Momentum

UNSEEN = 0.05
"""Share of a memory older than what was watched beyond which nothing is measured."""
SURE = 1.96
"""Standard errors to either side in a 95 % interval."""


@dataclass
class Present:
    """The run at the step of a stop.

    Attributes:
        n: the step, as watched.
        theta: before it, shape (d,).
        gradient: that the optimizer got, shape (d,).
        live: its memory before the step; None for a black box.
        lr: of the step.
        theta_next: after it.
        buffers: of the model before the step's forward pass.
    """

    n: int
    theta: Tensor
    gradient: Tensor
    live: Live | None
    lr: float
    theta_next: Tensor | None = None
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Upcoming:
    """A stop to come: its draws, and the sums that are kept for it (none where all coordinates are sampled)."""

    n: int
    draws: Draws
    whole: Whole | None

    @property
    def steps(self) -> list[int]:
        """The past steps that are replayed."""
        return sorted({self.n - age for age in self.draws.ages.tolist() if age})


@dataclass
class Noise:
    """Sums over replayed gradients for the noise scale, tr(Sigma)/|g|^2 in batches: |sum g|^2 and sum |g|^2 tell both."""

    count: int = 0
    squares: float = 0.0
    whole: Tensor | None = None

    def add(self, gradient: Tensor) -> None:
        """One batch's gradient, shape (d,)."""
        self.count += 1
        self.squares += float(dot(gradient, gradient))
        self.whole = gradient.clone() if self.whole is None else self.whole.add_(gradient)

    @property
    def scale(self) -> float | None:
        """In batches; None where the noise hides the gradient, or one batch tells nothing."""
        if self.count < 2 or self.whole is None:
            return None
        cross = (float(dot(self.whole, self.whole)) - self.squares) / (self.count * (self.count - 1))
        return (self.squares / self.count - cross) / cross if cross > 0 else None


@dataclass
class Measuring:
    """What a stop is measured with.

    Args:
        sample: coordinates.
        replay: of past steps.
        probe: the loss whose measures are told.
        measures: of it.
        shadow: memories on the sample that do not run; None for none.
        shadows: methods among them that are told one by one.
        betas: axes of the map; None for none.
        seed: of displacements.
    """

    sample: Sample
    replay: Replay
    probe: Loss
    measures: Sequence[str | Differentiable]
    shadow: Shadow | None
    shadows: Sequence[AnyOptimizer]
    betas: tuple[Sequence[float], Sequence[float]] | None
    seed: int

    def stop(self, upcoming: Upcoming, present: Present, kept: Mapping[int, Step]) -> dict[str, Any]:
        """Measure.

        Args:
            upcoming: the stop.
            present: the run there.
            kept: past steps, and this one.

        Raises:
            BadInput: it cannot be measured; says why.
        """
        self._require_seen(present)
        alike = self._require_alike(present, kept.get(present.n))
        noise = Noise()
        terms = self._replayed(upcoming, present, kept, noise)
        with self.probe.before(present.buffers):
            point = Point(self.probe, present.theta)
            values = evaluate(self.measures, point)
            slopes = torch.stack([self.sample.of(value.gradient) for value in values]).double()
            methods = self._methods(upcoming, present, terms)
            weighted = slopes * self.sample.weights
            found = dict(zip(methods, estimate(list(methods.values()), terms, weighted, self.seed), strict=True))
            told = _Told(self.sample, present.lr, values, slopes)
            record: dict[str, Any] = {"effects": [], "lr": present.lr, "noise_scale": noise.scale, "replayed": noise.count}
            record["gradient_differs"] = alike
            regressor: _Regressor | None = None
            if present.live is not None:
                record["effects"], regressor = self._live(upcoming, present, found["live"], told, point)
                record["method"] = str(present.live.method)
                record["unseen"] = present.live.unseen
        record["shadows"] = [
            {"method": name.removeprefix("shadow ")} | {"effects": told.slopes(each, regressor)}
            for name, each in found.items()
            if name.startswith("shadow ")
        ]
        record["map"] = self._map(found, told, regressor)
        return record

    def _require_seen(self, present: Present) -> None:
        if present.live is not None and present.live.unseen > UNSEEN:
            raise BadInput(
                f"{present.live.unseen:.0%} of the optimizer's memory is older than what was watched (at most "
                f"{UNSEEN:.0%}): it is measured once the run has gone on for longer"
            )

    def _require_alike(self, present: Present, step: Step | None) -> float:
        """How far the step's own gradient, replayed, is from the one that the optimizer got, relative."""
        again = self.replay.transformed(self.replay.raw(present.n, step, present.theta, present.buffers))
        return require_same(again, present.gradient, " (else call monitor.begin() where the criterion begins)")

    def _replayed(self, upcoming: Upcoming, present: Present, kept: Mapping[int, Step], noise: Noise) -> Terms:
        """The gradients of the drawn steps at the present theta, on the sample, and whole where that is asked for."""
        now = {present.n: self.sample.of(present.gradient)}
        theta = self.sample.of(present.theta)
        groups = _groups(present)
        for s in upcoming.steps:
            raw = self.replay.raw(s, kept.get(s), present.theta, present.buffers)
            noise.add(raw)
            gradient = self.replay.transformed(raw)
            now[s] = self.sample.of(gradient).clone()
            if upcoming.whole is not None and present.live is not None:
                upcoming.whole.add_now(s, present.live, present.n, images(groups, gradient, present.theta))
        steps = (present.n - upcoming.draws.ages).tolist()
        then = [now[present.n] if s == present.n else kept[s].gradient for s in steps]
        there = None
        if any(step.theta is not None for step in kept.values()):
            there = torch.stack([theta if s == present.n else kept[s].theta for s in steps])  # type: ignore[misc]
        return Terms(upcoming.draws, torch.stack([now[s] for s in steps]), torch.stack(then), theta, there)  # type: ignore[arg-type]

    def _methods(self, upcoming: Upcoming, present: Present, terms: Terms) -> dict[str, list[Part]]:
        """What is estimated: the live method, the shadows by name, the cells of the map by their numbers."""
        ages, found = upcoming.draws.ages, dict[str, list[Part]]()
        d = present.theta.numel()
        live = present.live
        if live is not None:
            parts = []
            for p, part in enumerate(live.method.parts):
                readings = []
                for l, v in enumerate(part.method.variables):
                    memory = torch.zeros_like(present.theta)
                    own = v.g(present.gradient[part.index], present.theta[part.index])
                    memory[part.index] = live.memory(p, l, own)
                    readings.append(Reading(v, live.kernel(p, l, ages), self.sample.of(memory)))
                parts.append(Part(part.method, self.sample.positions(part.index, d), part.scale, tuple(readings)))
            found["live"] = parts
        if self.shadow is None:
            return found
        known: dict[Momentum, Reading] = {}

        def of(method: AnyOptimizer) -> list[Part]:
            for v in (v for part in method.parts for v in part.method.variables if v not in known):
                assert self.shadow is not None
                n = self.shadow.n
                weights = np.where(ages <= n, kernel.kernel(v, n, int(ages.max()) + 1)[np.minimum(ages, n)], 0.0)
                known[v] = Reading(v, weights, self.shadow.memory(v, terms.now[0], terms.theta))
            return [
                Part(
                    part.method,
                    self.sample.positions(part.index, d),
                    part.scale,
                    tuple(known[v] for v in part.method.variables),
                )
                for part in method.parts
            ]

        for method in self.shadows:
            found[f"shadow {method.describe(omit=('lr',))}"] = of(method.at_lr(present.lr))
        if self.betas is not None and live is not None:
            grid = Grid(live.method, *self.betas)
            for i, j in np.ndindex(grid.shape):
                found[f"cell {i} {j}"] = of(grid.cell(i, j))
        return found

    def _live(
        self, upcoming: Upcoming, present: Present, found: Estimated, told: "_Told", point: Point
    ) -> tuple[list[dict[str, Any]], "_Regressor"]:
        """The live pair's effect on each measure, and what other methods are compared with where coordinates are sampled."""
        live, theta = present.live, present.theta
        assert live is not None
        assert present.theta_next is not None
        if upcoming.whole is None:
            update, plain, F = (x.to(theta.dtype) for x in (found.update, found.plain, found.frozen))
        else:
            update, plain = _whole(upcoming.whole, present)
            F = plain
        self._require_own_step(present, update)
        delta = update - F
        changes = Changes(told.values, point, present.lr)
        happened, without, rounding = changes(F, delta), changes.update(F), changes.rounding(delta)
        records = []
        wholes = [value.slope(update - plain, present.lr) for value in told.values]
        regressor = _Regressor(found.update - found.plain, wholes)
        for k, value in enumerate(told.values):
            slope, error = told.slope(k, found, regressor)
            product = value.gradient * delta * (-present.lr / (value.value or 1))
            layers = {name: float(total(product[part])) for name, part in self.probe.slices.items()}
            records.append({
                "measure": value.name,
                "value": value.value,
                "change": happened[k],
                "slope": slope,
                "error": error,
                "absolute": float(total(product.abs())),
                "update": without[k],
                "layers": layers,
            } | ({"rounding": rounding[k]} if rounding[k] else {}))  # fmt: skip
        return records, regressor

    def _require_own_step(self, present: Present, update: Tensor) -> None:
        """The step must be the one of the method: patched steps, and schedules of which nothing is known, are others."""
        assert present.theta_next is not None
        theta = present.theta.double()
        real = (theta - present.theta_next.double()) / present.lr
        rounding = torch.finfo(present.theta.dtype).eps * (norm(theta) / present.lr + 30 * norm(real))
        if (differs := float(norm(real - update.double()))) > 1e-3 * float(length := norm(real)) + float(rounding):
            assert present.live is not None
            raise BadInput(
                f"the optimizer's step is not that of {present.live.method} (it differs by "
                f"{differs / (float(length) or 1.0):.0%}): its state or step are changed by something else"
            )

    def _map(self, found: Mapping[str, Estimated], told: "_Told", regressor: "_Regressor | None") -> dict[str, Any] | None:
        if self.betas is None or not any(name.startswith("cell") for name in found):
            return None
        shape = tuple(len(axis) for axis in self.betas)
        cells = [told.slopes(found[f"cell {i} {j}"], regressor) for i, j in np.ndindex(shape)]
        measures = {
            value.name: {key: np.array([cell[k][key] for cell in cells]).reshape(shape).tolist() for key in ("slope", "error")}
            for k, value in enumerate(told.values)
        }
        return {"betas_1": list(self.betas[0]), "betas_2": list(self.betas[1]), "measures": measures}


def _groups(present: Present) -> list[tuple[int, tuple]]:
    live = present.live
    if live is None:
        return []
    return [(group, (part.method, part.index)) for group, part in zip(live.groups, live.method.parts, strict=True)]


def _whole(whole: Whole, present: Present) -> tuple[Tensor, Tensor]:
    """Phi(m) and Phi(m_F) of all coordinates."""
    live, theta = present.live, present.theta
    assert live is not None
    update, plain = torch.zeros_like(theta), torch.zeros_like(theta)
    for p, part in enumerate(live.method.parts):
        m, frozen_m = [], []
        for l, v in enumerate(part.method.variables):
            own = v.g(present.gradient[part.index], theta[part.index])
            m.append(live.memory(p, l, own))
            frozen_m.append(whole.frozen(live, p, l, m[-1], own) if v.has_memory else m[-1])
        update[part.index] = part.scale * part.method.readout(m, theta[part.index])
        plain[part.index] = part.scale * part.method.readout(frozen_m, theta[part.index])
    return update, plain


@dataclass(frozen=True)
class _Regressor:
    """The live effect without the correction of its bias: on the sample, and what it does in all for each measure."""

    effect: Tensor
    slopes: Sequence[float]


@dataclass(frozen=True)
class _Told:
    """From an effect on the sample to a slope with its standard error.

    Attributes:
        sample: coordinates.
        lr: step size.
        values: the measures.
        gradients: theirs on the sample, shape (measures, coordinates).
    """

    sample: Sample
    lr: float
    values: Sequence[Value]
    gradients: Tensor

    def slope(self, k: int, found: Estimated, regressor: _Regressor | None) -> tuple[float, float]:
        """The slope of measure k along an effect, and its standard error by draws and coordinates."""
        scale = -self.lr / (self.values[k].value or 1)
        y = scale * self.gradients[k] * (found.update - found.frozen)
        slope = self.sample.total(y)
        if regressor is not None and self.sample.index is not None:
            x = scale * self.gradients[k] * regressor.effect
            b = self.sample.slope(y, x)
            slope += b * (regressor.slopes[k] - self.sample.total(x))
            y = y - b * x
        return slope, float(np.sqrt(scale**2 * found.variance[k] + self.sample.variance(y)))

    def slopes(self, found: Estimated, regressor: _Regressor | None) -> list[dict[str, float | str]]:
        """For every measure."""
        each = (self.slope(k, found, regressor) for k in range(len(self.values)))
        return [
            {"measure": value.name, "slope": slope, "error": error}
            for value, (slope, error) in zip(self.values, each, strict=True)
        ]
