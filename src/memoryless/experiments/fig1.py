"""Fig. 1 of https://arxiv.org/abs/2502.02132: how far do the memoryless iterations t[n] stray from the optimizer?

    |theta[n] - t[n]|_inf,    t frozen (M = 0, the paper's first-order approximation), first (Eq. 9, its second-order one),
                              resummed

AdamW and Lion, both bias-corrected, eps inside the root, weight decay 1e-3 / lr; full batch; a GELU network on images.
The paper's claim: with M the path stays closer to the optimizer's.
"""

import math
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from memoryless.errors import BadInput, Diverged
from memoryless.experiments.images import Images
from memoryless.experiments.problems import cross_entropy
from memoryless.isolation import isolated
from memoryless.loss.loss import Loss
from memoryless.methods.catalogue import AdamW
from memoryless.methods.method import Method, Momentum
from memoryless.paths.trajectory import iterates
from memoryless.render.numbers import plain
from memoryless.render.result import Result

WIDTH = 64
DECAY = 1e-3
"""Weight decay times learning rate."""
KINDS = ("frozen", "first", "resummed")


def Lion(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> Method:
    """Lion with bias correction and a smoothed sign: F = c / sqrt(c^2 + eps) + weight_decay theta.

    Chen et al. (2023), https://arxiv.org/abs/2302.06675. Without bias correction it is `memoryless.Lion`.

    Args:
        lr: step size.
        betas: (rho1, rho2), rho1 in [0, 1), rho2 in (0, 1).
        eps: > 0.
        weight_decay: decoupled.

    Returns:
        The method.

    Raises:
        BadInput: a beta is out of range.
    """
    rho1, rho2 = betas
    if not (0 <= rho1 < 1 and 0 < rho2 < 1):
        raise BadInput(f"lion: betas must lie in [0, 1) and (0, 1), got {betas}")
    # c = rho1 m + (1 - rho1) g gives the age 0 the weight 1 - rho1 and the age k > 0 the weight rho1 (1 - rho2) rho2^(k-1).
    # With s = rho1 / rho2 these are s (1 - rho2) rho2^k at every age, and 1 - s more at age 0: s (1 - rho2) + 1 - s = 1 - rho1.
    # So c is s times an average that includes the present, plus 1 - s times g. Corrected as in Adam, the average's weights sum
    # to 1 over the ages 0..n and those of c to s + 1 - s = 1 at every n: c[0] = g, and F[n](theta) does not depend on n.
    s = rho1 / rho2
    variables = (
        Momentum(rho2, weight=lambda n: s * (1 - rho2) / (1 - rho2 ** (n + 1.0)), degree=1),
        Momentum(0.0, weight=lambda n: 1 - s, degree=1),
    )

    def phi(f: Any, m: Sequence[Any], theta: Any) -> Any:
        c = m[0] + m[1]
        return c / f.sqrt(c * c + eps) + weight_decay * theta

    return Method(lr, variables, phi, "lion", {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})


OPTIMIZERS: dict[str, Callable[[float, tuple[float, float], float, float], Method]] = {
    "AdamW": lambda lr, betas, eps, weight_decay: AdamW(lr, betas, eps, weight_decay, eps_inside_root=True),
    "Lion": Lion,
}


class Setting(NamedTuple):
    """What one run of the figure is made of."""

    optimizer: str
    betas: tuple[float, float]
    lr: float
    seed: int
    eps: float = 1e-6
    steps: int = 1000

    @property
    def method(self) -> Method:
        """The optimizer with its weight decay."""
        return OPTIMIZERS[self.optimizer](self.lr, self.betas, self.eps, DECAY / self.lr)

    @property
    def recorded(self) -> list[int]:
        """About a hundred steps, the last among them."""
        every = max(1, self.steps // 100)
        return [*range(every, self.steps, every), self.steps]


@dataclass(frozen=True)
class Run:
    """The distances of one run.

    Attributes:
        setting: what was run.
        distances: of each kind, at the recorded steps; infinite from where the kind, or the optimizer itself, diverged.
        diverged: the step at which a kind, or "memory", left the finite numbers.
    """

    setting: Setting
    distances: dict[str, list[float]]
    diverged: dict[str, int]


def loss_of(images: Images, seed: int) -> Loss:
    """Cross entropy of a GELU network pixels-64-classes on all images as one batch, in float64.

    Args:
        images: the data.
        seed: of the initial parameters.
    """
    with isolated(torch.device("cpu"), seed):
        # A seed draws other numbers in another dtype; these are those of `experiments.problems`, whatever the default dtype.
        hidden = nn.Linear(images.pixels.shape[1], WIDTH, dtype=torch.float32)
        out = nn.Linear(WIDTH, int(images.classes.max()) + 1, dtype=torch.float32)
    model = nn.Sequential(hidden, nn.GELU(), out).double()
    return Loss(model, cross_entropy, [(torch.tensor(images.pixels), torch.tensor(images.classes))])


def follow(setting: Setting, images: Images, on_steps: Callable[[int], None] = lambda count: None) -> Run:
    """Run the optimizer and the memoryless iterations side by side.

    Args:
        setting: what to run.
        images: the data.
        on_steps: called with the number of further steps taken, for progress.

    Returns:
        The distances; a path that diverges is given up, the others go on.
    """
    method, loss, recorded = setting.method, loss_of(images, setting.seed), set(setting.recorded)
    paths = {kind: iterates(method, loss, setting.steps, kind) for kind in ("memory", *KINDS)}
    distances: dict[str, list[float]] = {kind: [] for kind in KINDS}
    diverged: dict[str, int] = {}
    for n in range(setting.steps + 1):
        points = {}
        for kind in paths.keys() - diverged:
            try:
                points[kind] = next(paths[kind])
            except Diverged as error:
                diverged[kind] = error.step
        if "memory" in diverged:
            on_steps(setting.steps + 1 - max(n, 1))
            break
        if n in recorded:
            for kind, path in distances.items():
                path.append(float((points[kind] - points["memory"]).abs().max()) if kind in points else math.inf)
        if n > 0:
            on_steps(1)
    missing = len(setting.recorded)
    return Run(setting, {k: d + [math.inf] * (missing - len(d)) for k, d in distances.items()}, diverged)


@dataclass(frozen=True)
class Closer:
    """How many times closer to the optimizer than frozen a kind stays: below 1 it strays farther.

    Attributes:
        end: at the last step, by seed.
        average: of the distances averaged over the recorded steps, by seed.
    """

    end: NDArray[np.float64]
    average: NDArray[np.float64]

    @property
    def verdict(self) -> str:
        """Whether the paper's claim holds."""
        ends, averages, seeds = int((self.end > 1).sum()), int((self.average > 1).sum()), len(self.end)
        if np.isnan([*self.end, *self.average]).any():
            return "is undecided"
        if ends == averages == seeds:
            return "holds"
        if ends == averages == 0:
            return "does not hold"
        return f"holds in part (closer at the end with {ends} of {seeds} seeds, on average with {averages})"


@dataclass(frozen=True)
class Comparison:
    """The seeds of one optimizer at one pair of betas and one learning rate."""

    runs: Sequence[Run]

    @property
    def setting(self) -> Setting:
        """Of the first seed."""
        return self.runs[0].setting

    def distances(self, kind: str) -> NDArray[np.float64]:
        """By seed and recorded step.

        Args:
            kind: "frozen", "first" or "resummed".
        """
        return np.array([run.distances[kind] for run in self.runs])

    def closer(self, kind: str) -> Closer:
        """Frozen's distance over the kind's.

        Args:
            kind: "first" or "resummed".
        """
        frozen, other = self.distances("frozen"), self.distances(kind)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Closer(frozen[:, -1] / other[:, -1], frozen.mean(axis=1) / other.mean(axis=1))


@dataclass(frozen=True)
class Fig1(Result):
    """The whole figure: what was run on which data, in the order of optimizers, betas, lrs, seeds."""

    data: str
    runs: Sequence[Run]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Runs that differ in their seed alone."""
        groups: dict[Setting, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(run.setting._replace(seed=0), []).append(run)
        return [Comparison(group) for group in groups.values()]

    def as_dict(self) -> dict[str, Any]:
        """What was run, and distances with four digits; None for one that is not finite."""

        def short(x: Any) -> Any:
            return [short(y) for y in x] if np.ndim(x) else float(f"{x:.4g}")

        def comparison(c: Comparison) -> dict[str, Any]:
            closer = {kind: c.closer(kind) for kind in KINDS[1:]}
            return {
                "optimizer": c.setting.optimizer,
                "betas": list(c.setting.betas),
                "lr": c.setting.lr,
                "weight_decay": DECAY / c.setting.lr,
                "eps": c.setting.eps,
                "seeds": [run.setting.seed for run in c.runs],
                "closer_than_frozen": {
                    kind: {"end": short(x.end), "average": short(x.average), "claim": x.verdict} for kind, x in closer.items()
                },
                "diverged": [run.diverged for run in c.runs],
                "steps": c.setting.recorded,
                "distances": {kind: short(c.distances(kind)) for kind in KINDS},
            }

        return plain({"data": self.data, "comparisons": [comparison(c) for c in self.comparisons]})


def settings(
    betas: Sequence[tuple[float, float]], lrs: Sequence[float], seeds: int, eps: float = 1e-6, steps: int = 1000
) -> list[Setting]:
    """All runs of the figure.

    Args:
        betas: one or more pairs.
        lrs: learning rates.
        seeds: how many.
        eps: inside the root.
        steps: of each run.

    Returns:
        For each optimizer, for each pair of betas, for each lr, one setting per seed; each known to make a method.

    Raises:
        BadInput: a beta or a learning rate is out of range.
    """
    if bad := [lr for lr in lrs if not 0 < lr < math.inf]:
        raise BadInput(f"lr must be positive and finite, got {bad[0]}")
    found = [Setting(o, b, lr, seed, eps, steps) for o in OPTIMIZERS for b in betas for lr in lrs for seed in range(seeds)]
    for setting in found:
        _ = setting.method
    return found


def fig1(
    wanted: Sequence[Setting], images: Images, jobs: int = 1, on_steps: Callable[[int], None] = lambda count: None
) -> Fig1:
    """Run all settings, side by side if there are several jobs.

    Args:
        wanted: from `settings`.
        images: the data.
        jobs: processes, each with one thread; 1 runs in this one.
        on_steps: called with the number of steps taken so far, over all runs, for progress.

    Returns:
        The figure's numbers.
    """
    jobs = min(jobs, len(wanted))
    return Fig1(images.name, _pooled(wanted, images, jobs, on_steps) if jobs > 1 else _in_turn(wanted, images, on_steps))


def _in_turn(wanted: Sequence[Setting], images: Images, on_steps: Callable[[int], None]) -> list[Run]:
    taken = 0

    def count(further: int) -> None:
        nonlocal taken
        taken += further
        on_steps(taken)

    return [follow(setting, images, count) for setting in wanted]


def _pooled(wanted: Sequence[Setting], images: Images, jobs: int, on_steps: Callable[[int], None]) -> list[Run]:
    # Spawned: a fork of a process in which torch has already run threads may hang.
    context = get_context("spawn")
    taken = context.Value("q", 0)
    # By a file: what is larger than a pipe would hold this process up until the other has imported torch.
    with NamedTemporaryFile(suffix=".pickle") as file, ProcessPoolExecutor(jobs, context, _begin, (file.name, taken)) as pool:
        pickle.dump(images, file)
        file.flush()
        try:
            with _deaf():
                runs = [pool.submit(_follow, setting) for setting in wanted]
            waiting = set(runs)
            while waiting:
                _, waiting = wait(waiting, timeout=0.2)
                on_steps(taken.value)
        except BaseException:
            # Ctrl-C: the runs under way are not waited for. The pool has no public word for this before Python 3.14.
            for process in [*pool._processes.values()]:
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [run.result() for run in runs]


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal: those started here do not hear it, and this one hears it when they are."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    heard: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if heard:
            signal.raise_signal(signal.SIGINT)


_worker: tuple[Images, Any]
"""A worker process's data and the count of steps that all workers share."""


def _begin(path: str, taken: Any) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = pickle.loads(Path(path).read_bytes()), taken


def _follow(setting: Setting) -> Run:
    images, taken = _worker

    def count(further: int) -> None:
        with taken.get_lock():
            taken.value += further

    return follow(setting, images, count)
