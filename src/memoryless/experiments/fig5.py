"""Fig. 5 and 6 of https://arxiv.org/abs/2502.02132: how sharp does full-batch Adam let the loss become?

    lambda_1(P^-1 H),    P = (1 - beta_1^t) (sqrt(v) + eps),    against (2 + 2 beta_1) / ((1 - beta_1) lr)

Adam with its preconditioner frozen is heavy ball on P^-1 H, which is stable below that threshold (Cohen et al. 2022,
https://arxiv.org/abs/2207.14484). Fig. 5, beta_1 = 0.9: the preconditioned sharpness rises to the threshold, 38/lr, and hovers
there. Fig. 6, beta_1 = 0.99: it stays below the threshold, 398/lr. And the sharpness lambda_1(H) itself is the lower the
smaller beta_2 is.

The tests, fixed before the run, are `CLAIMS`; they judge means over the second half of training. The settings of the small
scale were chosen by looking at seeds below 200; the seeds here, from 200 on, had not been looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from memoryless.errors import BadInput
from memoryless.experiments.cifar import cifar10
from memoryless.experiments.figure import Cell, Claim, Experiment, Found, Level, Line, Numbers, Panel, Verdict
from memoryless.experiments.models.convnet import convnet
from memoryless.experiments.problems import digits
from memoryless.isolation import isolated
from memoryless.loss.batches import cut
from memoryless.loss.loss import Loss
from memoryless.loss.point import Point
from memoryless.loss.top_eigenvalue import TopEigenvalue
from memoryless.methods.catalogue import Adam

PRECONDITIONED, PLAIN = "preconditioned", "plain"


class Setting(NamedTuple):
    """A run of Adam for each seed, with the sharpness every so many steps."""

    model: str
    data: str
    images: int
    betas: tuple[float, float]
    lr: float
    steps: int
    every: int
    seeds: tuple[int, ...]
    eps: float = 1e-6
    width: int = 64
    """Of the MLP's two hidden layers."""
    batch: int | None = None
    """Images of a physical batch, over which full-batch gradients are accumulated; None for all at once."""

    @property
    def threshold(self) -> float:
        """(2 + 2 beta_1) / ((1 - beta_1) lr)."""
        return (2 + 2 * self.betas[0]) / ((1 - self.betas[0]) * self.lr)


ABOUT = {
    "small": "MLP 64-64-64-10 with tanh on 1,000 digits images, squared error, full batch",
    "medium": "CNN 8-8 with tanh on 1,792 digits images, squared error, full batch",
    "paper": "CNN 32-32 with tanh on CIFAR-10, squared error, full batch",
}
SECOND = 0.9, 0.99, 0.999
"""Values of beta_2."""
FROM = 200
"""The first seed."""

FIRST = "mean of λ₁(P⁻¹H) over the second half, over the threshold"
CLAIMS = {
    0.9: Claim("At β₁ = 0.9 the preconditioned sharpness hovers at its threshold", FIRST, 0.9, 1.1),
    0.99: Claim("At β₁ = 0.99 the preconditioned sharpness stays below its threshold", FIRST, high=0.9),
}
SECONDS = Claim(
    "The smaller β₂ is, the lower the sharpness λ₁(H)",
    "ln of its mean over the second half at the smallest β₂ over that at the largest, paired by seed",
    high=0.0,
)


def settings(beta_1: float, scale: str, data: str | None, seeds: int | None) -> list[Setting]:
    """The tasks of Fig. 5 or 6.

    Args:
        beta_1: 0.9 or 0.99.
        scale: small, medium or paper.
        data: "cifar10" or a folder, at scale paper; None for the scale's own.
        seeds: how many; default 5, 5 and 3.
    """
    if scale == "paper":
        one, lrs, own = Setting("cnn", data or "cifar10", 50_000, (beta_1, 0.0), 1e-3, 20_000, 250, (), batch=2_500), (1e-3,), 3
    elif data is not None:
        raise BadInput(f"--data {data}: the {scale} scale runs on the digits images; leave it out, or take --scale paper")
    elif scale == "medium":
        one, lrs, own = Setting("cnn", "digits", 1792, (beta_1, 0.0), 3e-3, 2000, 40, ()), (1e-3, 3e-3), 5
    else:
        one, lrs, own = Setting("mlp", "digits", 1000, (beta_1, 0.0), 3e-3, 1000, 40, ()), (3e-3, 1e-2), 5
    every = range(FROM, FROM + (seeds or own))
    return [one._replace(betas=(beta_1, b), lr=lr, seeds=(seed,)) for lr in lrs for b in SECOND for seed in every]


def loss_of(setting: Setting, seed: int) -> Loss:
    """Half the squared distance to the one-hot classes, mean over the images, in float32.

    Args:
        setting: says of which network on which images.
        seed: of the initial parameters.
    """
    device = torch.device("cuda" if setting.data != "digits" and torch.cuda.is_available() else "cpu")
    if setting.data == "digits":
        pixels, classes = digits(setting.images, torch.float32)
        pixels, size, channels, widths = pixels.unflatten(1, (1, 8, 8)), 8, 1, (8, 8)
    else:
        pixels, classes = cifar10(setting.data, train=True)
        pixels, classes, size, channels, widths = pixels[: setting.images], classes[: setting.images], 32, 3, (32, 32)
    with isolated(torch.device("cpu"), seed):
        if setting.model == "mlp":
            linear, n = partial(nn.Linear, dtype=torch.float32), setting.width
            model = nn.Sequential(nn.Flatten(), linear(64, n), nn.Tanh(), linear(n, n), nn.Tanh(), linear(n, 10))
        else:
            model = convnet(channels, size, widths).float()
    whole = pixels.to(device), nn.functional.one_hot(classes, 10).to(device, torch.float32)
    return Loss(model.to(device), squared_error, cut(whole, setting.batch) if setting.batch else [whole])


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Half the sum over outputs, mean over samples, of (inputs, targets)."""
    return (model(batch[0]) - batch[1]).square().sum(1).mean() / 2


def run(setting: Setting) -> dict[str, Any]:
    """Train and look: for each seed the recorded steps' losses and eigenvalues.

    Args:
        setting: what to run.

    Returns:
        By name, one list a seed: "loss", "preconditioned" (over the threshold), "plain", both NaN where their search did not
        converge, and "residual", the largest one of all searches over the eigenvalue.
    """
    rows = [follow(setting, loss_of(setting, seed)) for seed in setting.seeds]
    return {name: [row[name] for row in rows] for name in rows[0]}


def follow(setting: Setting, loss: Loss) -> dict[str, Any]:
    """One seed of `run`.

    Args:
        setting: what to run.
        loss: its loss, from the seed's own start.
    """
    method = Adam(setting.lr, setting.betas, setting.eps)
    theta, state, second = loss.theta, method.init(loss.theta), method.variables[1]
    search = {name: TopEigenvalue(relative=1e-2) for name in (PRECONDITIONED, PLAIN)}
    found: dict[str, Any] = {"loss": [], PRECONDITIONED: [], PLAIN: [], "residual": 0.0}
    for t in range(1, setting.steps + 1):
        state, F = method.update(state, loss.gradient(theta), theta)
        if t % setting.every == 0:
            point, v = Point(loss, theta), second.weight(t - 1) * state.sums[1]
            P = (1 - setting.betas[0] ** t) * (v.sqrt() + setting.eps)
            top = {PRECONDITIONED: search[PRECONDITIONED].at(point, P), PLAIN: search[PLAIN].at(point)}
            found["loss"].append(point.value)
            found[PRECONDITIONED].append(top[PRECONDITIONED].known / setting.threshold)
            found[PLAIN].append(top[PLAIN].known)
            found["residual"] = max(found["residual"], *(x.relative for x in top.values()))
        theta = theta - setting.lr * F
    return found


def second_half(found: Found, name: str) -> Numbers:
    """The mean over the second half of training, by seed; NaN where not all of it is known."""
    rows = np.array(found.numbers[name], dtype=float)
    return rows[:, rows.shape[1] // 2 :].mean(axis=1)


def _by_lr(every: Sequence[Found]) -> Iterator[tuple[float, dict[float, Found]]]:
    """For each lr what was found by beta_2, ascending, seeds of several tasks joined."""
    for lr in dict.fromkeys(found.setting.lr for found in every):
        groups: dict[float, list[Found]] = {}
        for found in every:
            if found.setting.lr == lr:
                groups.setdefault(found.setting.betas[1], []).append(found)
        yield lr, {beta_2: _joined(groups[beta_2]) for beta_2 in sorted(groups)}


def _joined(parts: Sequence[Found]) -> Found:
    seeds = tuple(seed for part in parts for seed in part.setting.seeds)
    numbers: Mapping[str, Any] = {name: [x for part in parts for x in part.numbers[name]] for name in parts[0].numbers}
    return Found(parts[0].setting._replace(seeds=seeds), numbers)


def panels(every: Sequence[Found]) -> list[list[Panel]]:
    """A row for each lr: the preconditioned sharpness against its threshold, and the sharpness."""
    rows = []
    for lr, by in _by_lr(every):
        one = next(iter(by.values())).setting
        steps = [*range(one.every, one.steps + 1, one.every)]
        of: dict[str, list[Line]] = {
            name: [
                Line(f"β₂ = {beta_2:g}", steps, np.array(found.numbers[name], dtype=float) * scale, k / max(1, len(by) - 1))
                for k, (beta_2, found) in enumerate(by.items())
            ]
            for name, scale in ((PRECONDITIONED, one.threshold), (PLAIN, 1.0))
        }
        title = f"β₁ = {one.betas[0]:g}, lr {lr:g}"
        level = Level(f"{one.threshold * lr:.0f}/lr", one.threshold)
        rows.append(
            [
                Panel(title, "step", "preconditioned sharpness λ₁(P⁻¹H)", of[PRECONDITIONED], [level], top=1.6 * one.threshold),
                Panel(title, "step", "sharpness λ₁(H)", of[PLAIN]),
            ]
        )
    return rows


def verdicts(every: Sequence[Found]) -> list[Verdict]:
    """On the claim about the threshold in each cell, and on the one about the sharpness at each lr."""
    groups = [*_by_lr(every)]
    beta_1 = every[0].setting.betas[0]
    cells = [Cell(f"β₂ {b:g}, lr {lr:g}", second_half(found, PRECONDITIONED)) for lr, by in groups for b, found in by.items()]
    ratios = []
    for lr, by in groups:
        small, *_, large = SECOND
        pairs = []
        if set(SECOND) <= by.keys():
            low, high = by[small], by[large]
            pairs = [[second_half(f, PLAIN)[f.setting.seeds.index(s)] for f in (low, high)] for s in _common(low, high)]
        ratios.append(Cell(f"β₂ {small:g} over {large:g}, lr {lr:g}", np.array([np.log(a / b) for a, b in pairs])))
    return [Verdict(CLAIMS[beta_1], cells), Verdict(replace(SECONDS, text=f"{SECONDS.text} (β₁ = {beta_1:g})"), ratios)]


def _common(a: Found, b: Found) -> list[int]:
    return [seed for seed in a.setting.seeds if seed in b.setting.seeds]


FIGURES = {
    name: Experiment(
        name,
        f"How sharp Adam lets the loss become, β₁ = {beta_1:g}",
        ABOUT,
        partial(settings, beta_1),
        run,
        panels,
        verdicts,
    )
    for name, beta_1 in (("fig5", 0.9), ("fig6", 0.99))
}
