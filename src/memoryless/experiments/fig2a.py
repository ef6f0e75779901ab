"""Fig. 2a and 3 of https://arxiv.org/abs/2502.02132: does test accuracy at equal training loss fall as beta_2 -> 1?

Memory in Adam's denominator anti-regularizes, the more the larger beta_2 is; Lion's memory does not. So, says the paper, a
network trained by full-batch AdamW to a given training loss generalizes the worse the larger beta_2 is, and a smaller beta_2
can close the gap to Lion. It shows ResNet-50 on CIFAR-10, beta_1 = 0.99.

Small, the sign depends on the network and on beta_1, so that three kinds are run: a residual network with normalized branches,
where the claim was seen at beta_1 = 0.9; the same at the paper's beta_1 = 0.99 and a plain network, where it was seen reversed.
They were looked at with seeds below 2,000; the seeds here, from 2,000 on, had not been looked at. The tests, fixed before the
run, are `CLAIMS`: differences between the largest and the smallest beta_2 of the same seed (the same start: seeds differ among
themselves by several times the effect). The gradient's 1-norm at equal loss, what the theory speaks of, is the strong readout;
accuracy is the paper's.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from memoryless.errors import BadInput
from memoryless.experiments.beta_2 import FROM, against, compared, lr_beside, method_of, on_the_gap, started
from memoryless.experiments.cifar import cifar10
from memoryless.experiments.figure import Cell, Claim, Experiment, Found, Numbers, Panel, Verdict
from memoryless.experiments.models.residual import plain_mlp, residual_mlp
from memoryless.experiments.models.resnet import resnet
from memoryless.experiments.problems import cross_entropy, digits
from memoryless.experiments.training import Batch, Networks, train_to
from memoryless.loss.batches import cut
from memoryless.methods.method import Method


class Setting(NamedTuple):
    """One optimizer, on one kind of network, for all seeds of the task."""

    kind: str
    data: str
    optimizer: str
    betas: tuple[float, float]
    lr: float
    decay: float
    seeds: tuple[int, ...]
    target: float = 0.05
    """The training loss at which networks are compared."""
    limit: int = 4000
    """Steps at most."""
    eps: float = 1e-6
    batch: int | None = None
    """Images of a physical batch, over which full-batch gradients are accumulated; None for all at once."""

    @property
    def method(self) -> Method:
        """The optimizer."""
        return method_of(self.optimizer, self.lr, self.betas, self.eps, self.decay)


KINDS = {
    "residual": "residual MLP",
    "plain": "plain MLP",
    "small resnet": "small ResNet",
    "resnet": "ResNet-50",
}
DIGITS = "300 digits images for training and 1,497 for testing, full batch, until training loss 0.05"
ABOUT = {
    "small": f"networks of width 64 on {DIGITS}",
    "medium": f"ResNet of two stages, width 8, on {DIGITS}",
    "paper": "ResNet-50 on CIFAR-10, full batch, until training loss 0.05",
}
SECOND = {0.9: (0.9, 0.95, 0.99, 0.999), 0.99: (0.99, 0.995, 0.999)}
"""Values of beta_2 by beta_1: none below it, where the loss oscillates and is met on a spike."""
MANY = 16
"""Seeds."""

MEASURES = {
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
    "gradient_1_norm": "gradient 1-norm",
}
CHANGE = "at the largest β₂ less that at the smallest, same seed"
CLAIMS = {
    "test_accuracy": Claim("Test accuracy at equal training loss falls as β₂ → 1", f"accuracy {CHANGE}", high=0.0),
    "test_loss": Claim("Test loss at equal training loss rises as β₂ → 1", f"test loss {CHANGE}", low=0.0),
    "gradient_1_norm": Claim(
        "The gradient's 1-norm at equal training loss rises as β₂ → 1", f"ln of the 1-norm {CHANGE}", low=0.0
    ),
}
GAP = Claim("Lion generalizes better than AdamW at the largest β₂", "Lion's test accuracy less AdamW's, same seed", low=0.0)
CLOSED = Claim(
    "Where Lion is better, the smallest β₂ closes the gap by half or more",
    "Lion's accuracy less AdamW's at the smallest β₂, less half of that at the largest, same seed",
    high=0.0,
)


def settings(figure: str, scale: str, data: str | None, seeds: int | None) -> list[Setting]:
    """The tasks of Fig. 2a, or of Fig. 3, which has other learning rates.

    Args:
        figure: "fig2a" or "fig3".
        scale: small, medium or paper.
        data: "cifar10" or a folder, at scale paper; None for the scale's own.
        seeds: how many; default 16, 8 and 3.
    """
    first = figure == "fig2a"
    if scale == "paper":
        lrs = (10**-3.5,) if first else (1e-4, 5e-5)
        cells = [("resnet", 0.99, lr, 0.005 if first else 5 * 10**-6.5 / lr) for lr in lrs]
        common, own, groups = {"data": data or "cifar10", "limit": 20_000, "batch": 500}, 3, 1
    elif data is not None:
        raise BadInput(f"--data {data}: the {scale} scale runs on the digits images; leave it out, or take --scale paper")
    elif scale == "medium":
        cells = [("small resnet", beta_1, lr, 0.0) for beta_1 in (0.9, 0.99) for lr in ((3e-4,) if first else (1e-4, 1e-3))]
        common, own, groups = {"data": "digits"}, 8, 1
    else:
        kinds = (("residual", 0.9), ("residual", 0.99), ("plain", 0.9))
        cells = [(*kind, 1e-4, 0.0) for kind in kinds] if first else [("residual", 0.9, lr, 0.0) for lr in (5e-5, 2e-4)]
        common, own, groups = {"data": "digits"}, MANY, MANY
    every = list(range(FROM, FROM + (seeds or own)))
    parts = [tuple(every[k : k + groups]) for k in range(0, len(every), groups)]
    found = []
    for kind, beta_1, lr, decay in cells:
        made = compared(Setting(kind, "", "", (0.0, 0.0), lr, decay, ()), [(beta_1, b) for b in SECOND[beta_1]])
        found += [one._replace(seeds=part, **common) for one in made for part in parts]
    return list(dict.fromkeys(found))  # Lion's runs are those of every beta_1


def model_of(kind: str, seed: int) -> nn.Module:
    """A network from its seed's start, float32.

    Args:
        kind: in `KINDS`.
        seed: of the initial parameters.
    """
    make: Mapping[str, Any] = {
        "residual": residual_mlp,
        "plain": plain_mlp,
        "small resnet": partial(resnet, (1, 1), 8),
        "resnet": resnet,
    }
    return started(make[kind], seed)


def data_of(setting: Setting) -> tuple[list[Batch], list[Batch], torch.device]:
    """Training and test batches, and where they are."""
    device = torch.device("cuda" if setting.data != "digits" and torch.cuda.is_available() else "cpu")
    if setting.data == "digits":
        pixels, classes = digits(1797, torch.float32)
        if setting.kind == "small resnet":
            pixels = pixels.unflatten(1, (1, 8, 8)).expand(-1, 3, -1, -1)
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
        train, test = ((pixels[part], classes[part]) for part in (order[:300], order[300:]))
        return [train], [test], device
    train, test = (tuple(x.to(device) for x in cifar10(setting.data, train=which)) for which in (True, False))
    return cut(train, setting.batch or len(train[1])), cut(test, 1000), device


def run(setting: Setting) -> dict[str, Any]:
    """Train to the target, and look at what is there.

    Args:
        setting: what to run.

    Returns:
        By name, one number a seed, NaN where the target was not reached: "test_accuracy", "test_loss", "gradient_1_norm",
        "training_loss", and "steps", -1 there.
    """
    train, test, device = data_of(setting)
    models = [model_of(setting.kind, seed).to(device) for seed in setting.seeds]
    simple = not any(isinstance(m, nn.BatchNorm2d) for m in models[0].modules())
    networks = Networks(models[0], cross_entropy, train, together=simple)
    starts = torch.stack([Networks(model, cross_entropy, train).layout.theta() for model in models])
    reached = train_to(networks, setting.method, starts, setting.target, setting.limit)
    found: dict[str, list[float]] = {name: [] for name in (*MEASURES, "training_loss")}
    for theta, step in zip(reached.thetas, reached.steps.tolist(), strict=True):
        here = dict.fromkeys(found, float("nan"))
        if step >= 0:
            value, gradient = networks.at(theta[None])
            accuracy, loss = tested(networks, theta, test)
            here = {"test_accuracy": accuracy, "test_loss": loss, "gradient_1_norm": float(gradient.abs().sum())}
            here["training_loss"] = float(value)
        for name, values in found.items():
            values.append(here[name])
    return found | {"steps": reached.steps.tolist()}


def tested(networks: Networks, theta: Tensor, test: Sequence[Batch]) -> tuple[float, float]:
    """Accuracy and mean loss on other images; batch norms use the statistics of one pass over the training images.

    Args:
        networks: on the training images.
        theta: shape (d,).
        test: batches.
    """
    networks.put(theta)
    model = networks.model
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    right, loss, count = 0, 0.0, 0
    with torch.no_grad():
        for inputs, _ in networks.batches if norms else ():
            model(inputs)
        model.eval()
        for inputs, classes in test:
            logits = model(inputs)
            right += int((logits.argmax(1) == classes).sum())
            loss += float(nn.functional.cross_entropy(logits, classes, reduction="sum"))
            count += len(classes)
        model.train()
    return right / count, loss / count


class Group(NamedTuple):
    """What belongs together in one panel: AdamW by beta_2, ascending, and Lion, of the seeds that reached the target in all."""

    name: str
    adam: dict[float, dict[str, Numbers]]
    lion: dict[str, Numbers]
    beta_1: float

    def ends(self, name: str) -> tuple[Numbers, Numbers]:
        """A measure at the smallest and at the largest beta_2; empty unless all came.

        Args:
            name: in `MEASURES`.
        """
        if not set(SECOND[self.beta_1]) <= self.adam.keys():
            return np.zeros(0), np.zeros(0)
        return self.adam[min(self.adam)][name], self.adam[max(self.adam)][name]


def groups_of(every: Sequence[Found]) -> list[Group]:
    """By kind, beta_1 and lr; seeds of several tasks joined.

    Args:
        every: what was found.
    """
    cells: dict[tuple[str, float], dict[Any, dict[int, dict[str, float]]]] = {}
    firsts: dict[tuple[str, float], list[float]] = {}
    for setting, numbers in every:
        key = setting.kind, lr_beside(setting.optimizer, setting.lr)
        # Lion's betas are its own: it stands beside every beta_1 of its kind.
        place = setting.betas if setting.optimizer == "adamw" else "lion"
        if place != "lion" and setting.betas[0] not in firsts.setdefault(key, []):
            firsts[key].append(setting.betas[0])
        rows = cells.setdefault(key, {}).setdefault(place, {})
        for k, seed in enumerate(setting.seeds):
            rows[seed] = {name: float("nan") if values[k] is None else values[k] for name, values in numbers.items()}
    return [_group(*key, beta_1, cells[key]) for key, every_first in firsts.items() for beta_1 in every_first]


def _group(kind: str, lr: float, beta_1: float, cells: Mapping[Any, Mapping[int, Mapping[str, float]]]) -> Group:
    mine = {place: rows for place, rows in cells.items() if place == "lion" or place[0] == beta_1}
    seeds = sorted(set.intersection(*(set(rows) for rows in mine.values())))
    met = [seed for seed in seeds if all(rows[seed]["steps"] >= 0 for rows in mine.values())]

    def of(place: Any) -> dict[str, Numbers]:
        return {name: np.array([mine[place][seed][name] for seed in met], dtype=float) for name in MEASURES}

    pairs = sorted(place for place in mine if not isinstance(place, str))
    adam = {pair[1]: of(pair) for pair in pairs}
    name = f"{KINDS[kind]}, β₁ = {beta_1:g}, lr {lr:.2g} ({len(met)} of {len(seeds)} reached)"
    lion = of("lion") if "lion" in mine else {name: np.full(len(met), np.nan) for name in MEASURES}
    return Group(name, adam, lion, beta_1)


def panels(every: Sequence[Found]) -> list[list[Panel]]:
    """A row for each group, a column for each measure."""
    rows = []
    for group in groups_of(every):
        titles = [group.name.partition(" (")[0], *[""] * (len(MEASURES) - 1)]
        row = zip(titles, MEASURES.items(), strict=True)
        rows.append(
            [
                against(title, label, {b: n[name] for b, n in group.adam.items()}, group.lion[name])
                for title, (name, label) in row
            ]
        )
    return rows


def verdicts(every: Sequence[Found]) -> list[Verdict]:
    """On what changes with beta_2, and on the gap to Lion, in each group; whether a gap is closed only where there is one."""
    groups = groups_of(every)

    def change(group: Group, name: str) -> Numbers:
        low, high = group.ends(name)
        return np.log(high / low) if name == "gradient_1_norm" else high - low

    found = [Verdict(claim, [Cell(g.name, change(g, name)) for g in groups]) for name, claim in CLAIMS.items()]
    gaps = []
    for group in groups:
        low, high = group.ends("test_accuracy")
        lion = group.lion["test_accuracy"][: len(low)]
        gaps.append((group.name, lion - low, lion - high))
    return [*found, *on_the_gap(GAP, CLOSED, gaps)]


FIGURES = {
    name: Experiment(name, title, ABOUT, partial(settings, name), run, panels, verdicts, "s.e. of differences within seeds")
    for name, title in (
        ("fig2a", "Generalization at equal training loss against β₂"),
        ("fig3", "Generalization at equal training loss against β₂, other learning rates"),
    )
}
