"""Does memory cause it? Optimizer, betas, learning rate, data and starts held, memory's effect alone turned by the dial.

    theta[n+1] = theta[n] - lr (u[n] + s (u[n] - F[n](theta[n]))),       s = -1 without memory, 0 as it is, 1 doubled

u[n] is the optimizer's own update and F[n] the one it would have made had the iterate never moved; full batch, so that both are
known exactly (`live.dial`). https://arxiv.org/abs/2502.02132 says that the memory of AdamW (0.9, 0.999) anti-regularizes: at
equal training loss the gradient's 1-norm should rise with s, and with it the test loss.

Two networks of `fig2a`: the residual one, in which the sign of beta_2 that the paper tells was seen, and the plain one, in
which it was seen reversed. Does the dial reverse there, too? Beside the dial stand a placebo, the same term with its
coordinates permuted within each tensor, and the undialled optimizer at two other learning rates, at which the training loss
falls in as many steps as with s = -1 and s = 1 (found on other seeds, from the numbers of steps alone): what any change of such
a size does.

The tests are differences within a seed. A first run on the seeds from 3,000 on asked of s = 1 against s = -1 alone, and all
that it found lay above s = 0: with half as much memory more the path oscillates, and its gradient is five times as large.
Therefore memory as it is, s = 0, against none is asked, too (`AS_IT_IS`), and all arms were run anew on the seeds from 4,000
on, which had not been looked at; all tests were fixed before that run.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from memoryless.corrections.history import frozen
from memoryless.errors import BadInput
from memoryless.experiments import fig2a
from memoryless.experiments.figure import Cell, Claim, Experiment, Found, Line, Numbers, Panel, Verdict
from memoryless.experiments.problems import cross_entropy
from memoryless.experiments.training import Networks, Rule, train_to
from memoryless.flat import Layout
from memoryless.loss.loss import Loss
from memoryless.loss.point import Point
from memoryless.loss.top_eigenvalue import TopEigenvalue
from memoryless.methods.catalogue import AdamW
from memoryless.methods.method import Method, State


class Setting(NamedTuple):
    """One arm on one network, for all seeds of the task."""

    kind: str
    arm: str
    """"dial", "placebo" or "lr"."""
    strength: float
    lr: float
    seeds: tuple[int, ...]
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    target: float = 0.05
    """The training loss at which networks are compared."""
    limit: int = 6000
    """Steps at most."""


LR = 1e-4
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
FASTER = {"residual": {-1.0: 1.713, 1.0: 0.266}, "plain": {-1.0: 0.909, 1.0: 0.502}}
"""Learning rates over `LR` at which the undialled optimizer takes as many steps as at these strengths, on the seeds 1,000 to
1,007: 267 and 1,567 of the residual network, 1,143 and 2,071 of the plain one, where s = 0 takes 445 and 1,039."""
FROM, MANY = 4000, 16
"""The first seed, and how many."""
ABOUT = {
    "small": f"networks of width 64 on {fig2a.DIGITS}; AdamW (0.9, 0.999), lr 1e-4, no decay",
}
MEASURES = {
    "gradient_1_norm": "gradient 1-norm",
    "sharpness": "sharpness",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}
LOGS = "gradient_1_norm", "sharpness"
"""Compared by ratios."""
WITH = "at s = 0 less that at s = -1, same seed"
AS_IT_IS = {
    "gradient_1_norm": Claim("Memory as it is raises the gradient's 1-norm, against none", f"ln of the 1-norm {WITH}", low=0.0),
    "sharpness": Claim("Memory as it is raises the sharpness, against none", f"ln of the sharpness {WITH}", low=0.0),
    "test_loss": Claim("Memory as it is raises the test loss, against none", f"test loss {WITH}", low=0.0),
    "test_accuracy": Claim("Memory as it is lowers the test accuracy, against none", f"accuracy {WITH}", high=0.0),
}
"""At equal training loss, as all."""
CHANGE = "at s = 1 less that at s = -1, same seed"
CLAIMS = {
    "gradient_1_norm": Claim(
        "Doubled memory raises the gradient's 1-norm, against none", f"ln of the 1-norm {CHANGE}", low=0.0
    ),
    "sharpness": Claim("Doubled memory raises the sharpness, against none", f"ln of the sharpness {CHANGE}", low=0.0),
    "test_loss": Claim("Doubled memory raises the test loss, against none", f"test loss {CHANGE}", low=0.0),
    "test_accuracy": Claim("Doubled memory lowers the test accuracy, against none", f"accuracy {CHANGE}", high=0.0),
}
DOSE = Claim(
    "The more memory, the larger the gradient's 1-norm", "Spearman's correlation with the five strengths, by seed", low=0.0
)
QUARTER = "less a quarter of that between s = 1 and s = -1, same seed"
RIVALS = {
    "placebo": Claim(
        "It is the term that does it, not its size", f"|ln of the 1-norms' ratio| between the two placebos {QUARTER}", high=0.0
    ),
    "lr": Claim(
        "It is the term that does it, not the speed",
        f"|ln of the 1-norms' ratio| between the two learning rates {QUARTER}",
        high=0.0,
    ),
}


class Dialled:
    """A method with memory's effect dialled, for many networks at once; each row of theta is one of them.

    Args:
        method: elementwise, in momentum form.
        strength: s.
        coordinates: of the term, by which it is permuted; None leaves it in its place.
    """

    def __init__(self, method: Method, strength: float, coordinates: Tensor | None = None):
        self.method, self.strength, self.coordinates = method, strength, coordinates
        self.lr, self.init = method.lr, method.init

    def update(self, state: State, gradient: Tensor, theta: Tensor) -> tuple[State, Tensor]:
        """The next state, and u + s (u - F).

        Args:
            state: of all networks.
            gradient: shape (n, d).
            theta: shape (n, d).
        """
        F = frozen(self.method, gradient, theta, state.n)
        state, u = self.method.update(state, gradient, theta)
        term = u - F
        return state, u + self.strength * (term if self.coordinates is None else term[..., self.coordinates])


def permutation(layout: Layout, seed: int = 0) -> Tensor:
    """Coordinates permuted within each tensor, as `live.dial` does: one permutation for all steps.

    Args:
        layout: of theta.
        seed: of the permutations.
    """
    parts = []
    for number, part in enumerate(layout.slices.values()):
        generator = torch.Generator().manual_seed(seed + number)
        parts.append(part.start + torch.randperm(part.stop - part.start, generator=generator))
    return torch.cat(parts)


def settings(scale: str, data: str | None, seeds: int | None) -> list[Setting]:
    """The tasks.

    Args:
        scale: "small", the only one.
        data: None.
        seeds: how many; default 16.
    """
    if scale != "small" or data is not None:
        raise BadInput("the study of the dial has one scale, small, on the digits images; leave out --scale and --data")
    every = tuple(range(FROM, FROM + (seeds or MANY)))
    found = []
    for kind, faster in FASTER.items():
        found += [Setting(kind, "dial", s, LR, every) for s in STRENGTHS]
        found += [Setting(kind, "placebo", s, LR, every) for s in (-1.0, 1.0)]
        found += [Setting(kind, "lr", s, LR * factor, every) for s, factor in faster.items()]
    return found


def run(setting: Setting) -> dict[str, Any]:
    """Train to the target, and look at what is there.

    Args:
        setting: what to run.

    Returns:
        By name, one number a seed, NaN where the target was not reached: `MEASURES`, the sharpness NaN where its search did not
        converge, too, "residual", that of the search over the eigenvalue, and "steps", -1 where the target was not reached.
    """
    train, test, _ = fig2a.data_of(
        fig2a.Setting(setting.kind, "digits", "adamw", setting.betas, setting.lr, 0.0, setting.seeds)
    )
    models = [fig2a.model_of(setting.kind, seed) for seed in setting.seeds]
    networks = Networks(models[0], cross_entropy, train)
    starts = torch.stack([Networks(model, cross_entropy, train).layout.theta() for model in models])
    method: Rule = AdamW(setting.lr, setting.betas, setting.eps, 0.0)
    if setting.arm != "lr":
        placebo = permutation(networks.layout) if setting.arm == "placebo" else None
        method = Dialled(AdamW(setting.lr, setting.betas, setting.eps, 0.0), setting.strength, placebo)
    reached = train_to(networks, method, starts, setting.target, setting.limit)
    loss = Loss(networks.model, cross_entropy, train)
    found: dict[str, list[float]] = {name: [] for name in (*MEASURES, "residual")}
    for theta, step in zip(reached.thetas, reached.steps.tolist(), strict=True):
        here = dict.fromkeys(found, float("nan"))
        if step >= 0:
            point = Point(loss, theta)
            accuracy, value = fig2a.tested(networks, theta, test)
            here = {"gradient_1_norm": float(point.gradient.abs().sum()), "test_loss": value, "test_accuracy": accuracy}
            top = TopEigenvalue(relative=1e-2).at(point)
            here |= {"sharpness": top.known, "residual": top.relative}
        for name, values in found.items():
            values.append(here[name])
    return found | {"steps": reached.steps.tolist()}


class Study(NamedTuple):
    """What was found on one network, of the seeds that reached the target in every arm: by arm and strength, by measure."""

    name: str
    arms: dict[tuple[str, float], dict[str, Numbers]]

    def between(self, arm: str, name: str, upper: float = 1.0) -> Numbers:
        """A measure at the larger strength of an arm less that at the smallest, by seed; of ratios the logarithm.

        Empty where one of the two did not come.

        Args:
            arm: "dial", "placebo" or "lr".
            name: in `MEASURES`.
            upper: the larger strength.
        """
        if not {(arm, -1.0), (arm, upper)} <= self.arms.keys():
            return np.zeros(0)
        low, high = (self.arms[arm, s][name] for s in (-1.0, upper))
        return np.log(high / low) if name in LOGS else high - low


def studies(every: Sequence[Found]) -> list[Study]:
    """By network.

    Args:
        every: what was found.
    """
    kinds: dict[str, dict[tuple[str, float], Any]] = {}
    for setting, numbers in every:
        found = {name: np.array([np.nan if x is None else x for x in numbers[name]], dtype=float) for name in MEASURES}
        kinds.setdefault(setting.kind, {})[setting.arm, setting.strength] = found
    told = []
    for kind, arms in kinds.items():
        met = np.all([np.isfinite(found["gradient_1_norm"]) for found in arms.values()], axis=0)
        name = f"{fig2a.KINDS[kind]} ({int(met.sum())} of {len(met)} seeds reached)"
        told.append(Study(name, {key: {m: x[met] for m, x in found.items()} for key, found in arms.items()}))
    return told


def panels(every: Sequence[Found]) -> list[list[Panel]]:
    """A row for each network, a column for each measure."""
    rows = []
    for study in studies(every):
        row = []
        for name, label in MEASURES.items():
            arms = (("memory dialled", "dial", 0.0), ("placebo", "placebo", 0.5), ("lr as fast", "lr", 1.0))
            lines = [line for arm in arms if (line := _line(study, *arm, name)) is not None]
            title = study.name.partition(" (")[0] if name == "gradient_1_norm" else ""
            ticks = [f"{s:g}" for s in STRENGTHS]
            row.append(Panel(title, "strength of memory, s", label, lines, ticks=ticks, log=name == "gradient_1_norm"))
        rows.append(row)
    return rows


def _line(study: Study, label: str, arm: str, shade: float, name: str) -> Line | None:
    """Each seed's own level, that of the undialled optimizer, is taken out: seeds differ by more than arms."""
    at = [s for s in STRENGTHS if (arm, s) in study.arms]
    if ("dial", 0.0) not in study.arms or not at:
        return None
    own = study.arms["dial", 0.0][name]
    values = np.stack([study.arms[arm, s][name] for s in at], 1) if len(own) else np.zeros((0, len(at)))
    known = own[np.isfinite(own)]
    level = own[:, None] - (known.mean() if len(known) else 0.0)
    return Line(label, [STRENGTHS.index(s) for s in at], values - level, shade)


def verdicts(every: Sequence[Found]) -> list[Verdict]:
    """On what the dial does, on its dose, and on what a placebo and another speed do."""
    found = studies(every)
    told = [Verdict(claim, [Cell(s.name, s.between("dial", name, 0.0)) for s in found]) for name, claim in AS_IT_IS.items()]
    told += [Verdict(claim, [Cell(s.name, s.between("dial", name)) for s in found]) for name, claim in CLAIMS.items()]
    told.append(Verdict(DOSE, [Cell(s.name, _dose(s)) for s in found]))
    for arm, claim in RIVALS.items():
        told.append(Verdict(claim, [Cell(s.name, _gap(s, arm)) for s in found]))
    return told


def _gap(study: Study, arm: str) -> Numbers:
    """What another arm does to the 1-norm, less a quarter of what the dial does."""
    other, dialled = (np.abs(study.between(name, "gradient_1_norm")) for name in (arm, "dial"))
    return other - dialled / 4 if len(other) == len(dialled) else np.zeros(0)


def _dose(study: Study) -> Numbers:
    """Of each seed Spearman's correlation of strength and 1-norm."""
    if not {("dial", s) for s in STRENGTHS} <= study.arms.keys():
        return np.zeros(0)
    rows = np.stack([study.arms["dial", s]["gradient_1_norm"] for s in STRENGTHS], 1)
    return np.array([stats.spearmanr(STRENGTHS, row)[0] for row in rows])


FIGURES = {"dial": Experiment("dial", "Memory's effect dialled, all else held", ABOUT, settings, run, panels, verdicts)}
