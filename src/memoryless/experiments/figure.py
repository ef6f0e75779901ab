"""What every reproduced figure is made of: settings as data, runs that are kept, claims with tests written down before the run.

A file of a figure holds `FIGURES`, each an `Experiment`: the settings of its scales, what one of them finds, and what the paper
claims of it. A claim says of a statistic, one number a seed, that its mean lies between two bounds; it is judged by the 95 %
t-interval of the mean over seeds, which are independent networks: yes where the interval lies between the bounds, no where it
lies outside, and cannot be told otherwise, nor where all seeds have one value: a standard error of 0 is no estimate of one.
Intervals are of each cell by itself, not of all together.
"""

import importlib
import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from memoryless.errors import BadInput
from memoryless.experiments.atlas.pool import Key, Store, Tasks, run
from memoryless.experiments.atlas.subjects import version_of
from memoryless.experiments.atlas.ways import reason_of
from memoryless.experiments.sweep.versions import code
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import plain
from memoryless.render.result import Result

Numbers = NDArray[np.float64]
FILES = {
    "fig2a": "fig2a",
    "fig2b": "fig2b",
    "fig3": "fig2a",
    "fig4": "fig2b",
    "fig5": "fig5",
    "fig6": "fig5",
    "batch_sharpness": "batch_sharpness",
    "dial": "dial_study",
    "ranking": "ranking_study",
}
"""Which file of this room makes a figure, or a study."""
SCALES = "small", "medium", "paper"
LIBRARIES = "torch", "numpy", "scipy", "scikit-learn"
"""Whose code numbers come from, too; the prose is Python's own."""
LIMIT = 1e7
"""Seconds of processor time for one task: no limit in practice."""
CONFIDENCE = 0.95
ROUNDING = 1e-12
"""Relative: values that differ by less are one."""


class Setting(Protocol):
    """What one task is made of: a NamedTuple of plain numbers, texts and tuples of them."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the initial networks that it runs."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


class Found(NamedTuple):
    """A setting and what its task found: for each name one list a seed."""

    setting: Any
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One statistic at one place of a figure.

    Attributes:
        where: in words.
        values: one for each seed; those that are not finite are left out.
    """

    where: str
    values: Numbers

    @property
    def known(self) -> Numbers:
        """The values that are finite."""
        return self.values[np.isfinite(self.values)]

    @property
    def interval(self) -> tuple[float, float, float]:
        """Mean over seeds, and the ends of its 95 % t-interval; without ends for fewer than two seeds."""
        values = self.known
        if len(values) < 2:
            return float(values.mean()) if len(values) else math.nan, -math.inf, math.inf
        half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
        return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


@dataclass(frozen=True)
class Claim:
    """What is claimed, and the test, fixed before the run.

    Attributes:
        text: the claim, in words.
        statistic: what is computed of each seed.
        low: the claim says that its mean is above,
        high: and below.
    """

    text: str
    statistic: str
    low: float = -math.inf
    high: float = math.inf

    @property
    def test(self) -> str:
        """The test in words."""
        bounds = f"above {self.low:g}" if self.high == math.inf else f"below {self.high:g}"
        bounds = bounds if math.inf in (-self.low, self.high) else f"between {self.low:g} and {self.high:g}"
        return f"{self.statistic}: {bounds} (95 % t-interval over seeds)"

    def answer(self, cell: Cell) -> str:
        """Yes, no, or cannot be told.

        Args:
            cell: of the statistic.
        """
        _, low, high = cell.interval
        if len(cell.known) < 2 or np.ptp(cell.known) <= ROUNDING * np.abs(cell.known).max():
            return "cannot be told"
        if self.low < low and high < self.high:
            return "yes"
        return "no" if high < self.low or low > self.high else "cannot be told"


@dataclass(frozen=True)
class Verdict:
    """A claim with the cells that it was judged by."""

    claim: Claim
    cells: Sequence[Cell]

    @cached_property
    def answers(self) -> list[str]:
        """Of each cell."""
        return [self.claim.answer(cell) for cell in self.cells]

    @property
    def word(self) -> str:
        """Of all cells together."""
        count = {answer: self.answers.count(answer) for answer in ("yes", "no", "cannot be told") if answer in self.answers}
        whole = {"yes": "yes", "no": "no", "cannot be told": "cannot be told at this size"}
        if len(count) == 1:
            return whole[next(iter(count))]
        if not count:
            return "cannot be told: nothing to judge"
        return "in part: " + ", ".join(f"{answer} in {n}" for answer, n in count.items()) + f" of {len(self.cells)}"


@dataclass(frozen=True)
class Line:
    """One curve of a panel.

    Attributes:
        label: in the legend.
        x: places, shape (n,).
        y: by seed, shape (seeds, n).
        shade: 0 to 1, where it lies in its family, for its colour.
    """

    label: str
    x: Sequence[float]
    y: Numbers
    shade: float


@dataclass(frozen=True)
class Level:
    """A horizontal line of a panel: a threshold, or another optimizer with its standard error.

    Attributes:
        label: beside it.
        y: where.
        error: of it; 0 for a threshold.
    """

    label: str
    y: float
    error: float = 0.0


@dataclass(frozen=True)
class Panel:
    """One part of a picture.

    Attributes:
        title: above it.
        x: name of the horizontal axis.
        y: name of the vertical one.
        lines: curves; along training with bands, over `ticks` with error bars.
        levels: horizontal lines.
        ticks: names of the places 0, 1, ..., where x has categories.
        top: the upper end of the vertical axis, where outliers would squeeze the rest; None for all.
        log: whether the vertical axis is logarithmic.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    ticks: Sequence[str] = ()
    top: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Experiment:
    """A figure as a recipe.

    Attributes:
        name: such as "fig5".
        title: of the picture.
        about: what was run, in words, by scale.
        settings: (scale, data, seeds) -> the tasks; data or seeds None for the scale's own.
        run: a setting -> its numbers by name, one list a seed.
        panels: of what was found, by rows.
        verdicts: on the claims.
        bars: what error bars and bands are.
    """

    name: str
    title: str
    about: Mapping[str, str]
    settings: Callable[[str, str | None, int | None], Sequence[Setting]]
    run: Callable[[Any], Mapping[str, Any]]
    panels: Callable[[Sequence[Found]], list[list[Panel]]]
    verdicts: Callable[[Sequence[Found]], list[Verdict]]
    bars: str = "standard error"


def experiment(name: str) -> Experiment:
    """The recipe of a figure.

    Args:
        name: in `FILES`.
    """
    return importlib.import_module(_module(name)).FIGURES[name]


def _module(name: str) -> str:
    return f"memoryless.experiments.{FILES[name]}"


@dataclass(frozen=True)
class Figure(Result):
    """A figure that was run.

    Attributes:
        experiment: its recipe.
        scale: small, medium or paper.
        found: by setting.
        failed: (setting, reason) of tasks that ended without numbers.
    """

    experiment: Experiment
    scale: str
    found: Sequence[Found]
    failed: Sequence[tuple[Mapping[str, Any], str]] = ()

    @cached_property
    def panels(self) -> list[list[Panel]]:
        """Rows of panels."""
        return self.experiment.panels(self.found)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """On each claim."""
        return self.experiment.verdicts(self.found)

    def as_dict(self) -> dict[str, Any]:
        """Settings, numbers, claims with their tests and verdicts; None for what is not finite."""

        def cell(claim: Claim, cell: Cell) -> dict[str, Any]:
            mean, low, high = cell.interval
            return {"where": cell.where, "mean": mean, "interval": [low, high], "answer": claim.answer(cell)}

        return plain(
            {
                "figure": self.experiment.name,
                "scale": self.scale,
                "about": self.experiment.about[self.scale],
                "claims": [
                    {
                        "claim": v.claim.text,
                        "test": v.claim.test,
                        "verdict": v.word,
                        "cells": [cell(v.claim, c) for c in v.cells],
                    }
                    for v in self.verdicts
                ],
                "failed": [{"setting": dict(setting), "reason": reason} for setting, reason in self.failed],
                "runs": [{"setting": f.setting._asdict(), "found": dict(f.numbers)} for f in self.found],
            }
        )


class Kept(Store):
    """What tasks found, as lines of JSON: the store of an atlas for other rows."""

    WHAT = "a figure"
    FIELDS = ("module", "setting", "versions", "found")

    def present(self, key: Key) -> dict[str, str]:
        """Of the code and the libraries that a figure's numbers come from.

        Args:
            key: module and setting.
        """
        return _versions()


def _versions() -> dict[str, str]:
    return {"memoryless": code(), "python": platform.python_version()} | {name: version_of(name) for name in LIBRARIES}


def _work(name: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """The one version of a task's row."""
    yield _row(_key(name, setting), found=plain(dict(experiment(name).run(setting))))


def _key(name: str, setting: Setting) -> Key:
    return _module(name), json.dumps(setting._asdict())


def _row(key: Key, **found: Any) -> dict[str, Any]:
    return {"module": key[0], "setting": key[1], "versions": _versions()} | found


def _refused(key: Key, end: str, limit: float) -> dict[str, Any]:
    return _row(key, reason=end)


def _in_turn(tasks: Tasks) -> Iterator[dict[str, Any]]:
    for key, task in tasks.items():
        try:
            yield from task()
        except Exception as error:  # as in a process of its own: told with the others' numbers
            yield _refused(key, reason_of(error), LIMIT)


@dataclass
class Reproduction:
    """The tasks of one figure, of which a store may hold some.

    Attributes:
        name: of the figure.
        scale: small, medium or paper.
        settings: of all tasks.
        store: keeps what tasks find; None for none.
    """

    name: str
    scale: str
    settings: Sequence[Setting]
    store: Kept | None = None
    rows: dict[Key, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.store is not None:
            self.rows |= {key: self.store.rows[key] for key in self._keys if self.store.has(key)}

    @cached_property
    def _keys(self) -> dict[Key, Setting]:
        return {_key(self.name, setting): setting for setting in self.settings}

    def run(self, jobs: int = 1, on_step: OnStep = silent) -> Figure:
        """Run what the store does not hold.

        Args:
            jobs: processes, each with one thread; 1 runs here.
            on_step: told the tasks that are done and all.

        Returns:
            The figure.
        """
        total = len(self._keys)
        wanted = {key: partial(_work, self.name, setting) for key, setting in self._keys.items() if key not in self.rows}
        on_step(len(self.rows), total)
        for row in run(wanted, jobs, LIMIT, _refused, ()) if jobs > 1 else _in_turn(wanted):
            key = row["module"], row["setting"]
            self.rows[key] = row
            if self.store is not None and "found" in row:
                self.store.append(row)
            on_step(len(self.rows), total)
        kept = [(setting, self.rows[key]) for key, setting in self._keys.items()]
        failed = [(setting._asdict(), row["reason"]) for setting, row in kept if "found" not in row]
        found = [Found(setting, row["found"]) for setting, row in kept if "found" in row]
        if not found:
            raise BadInput(f"{self.name}: no run ended with numbers; the first one: {failed[0][1]}")
        return Figure(experiment(self.name), self.scale, found, failed)
