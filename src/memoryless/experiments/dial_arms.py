"""What the study of the dial runs: networks and data, the arms, and training to the loss at which they are compared.

Full batch F is known exactly. Along mini-batches the dial is the one that users have (`live.transport`, twin="fresh"): the
memories are carried to the present point by one gradient more a step. What is dialled is then how old the gradients are that
are remembered; the first moment's averaging of noise over batches stays. The second moment of F is averaged over as many steps
as its gain allows, at least 5, in place of 1,000: that is turned, too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memoryless.corrections.history import frozen
from memoryless.errors import BadInput
from memoryless.experiments import fig2a, fig2b
from memoryless.experiments.along_batches import shuffled_for_each, train_along
from memoryless.experiments.problems import cross_entropy, digits_cnn
from memoryless.experiments.text import documentation
from memoryless.experiments.training import Batch, Networks, Rule, train_to
from memoryless.flat import Layout
from memoryless.live.monitoring.frozen import nonnegative
from memoryless.live.transport import FLOOR, SEEN, gain, roots_of
from memoryless.loss.loss import Loss
from memoryless.loss.point import Point
from memoryless.loss.top_eigenvalue import TopEigenvalue
from memoryless.methods import kernel
from memoryless.methods.catalogue import AdamW
from memoryless.methods.method import Method, State

MEASURES = {
    "gradient_1_norm": "gradient 1-norm",
    "sharpness": "sharpness",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}
NOISE = 0.2
"""Share of the CNN's training labels that are wrong."""
WINDOWS, VOCABULARY = (16, 128, 256), 256
"""Of the GPT's text: words of a window, windows for training and for validation; words that are told apart."""


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
    batch: int | None = None
    """Samples of a step's batch; None for all."""
    every: int = 1
    """Along mini-batches, steps from one look at the whole training loss to the next."""


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
        return state, u + self.strength * permuted(u - F, self.coordinates)


class Carried:
    """The same along mini-batches, F from memories carried to the present point: those of `live.transport`, row by row.

    Args:
        method: elementwise, in momentum form, its variables read after the present gradient, the first one weighted as the
            others are.
        strength: s; 0 is the method as it is, and carries nothing.
        coordinates: of the term, by which it is permuted; None leaves it in its place.

    Raises:
        BadInput: a variable is of another form.
    """

    def __init__(self, method: Method, strength: float, coordinates: Tensor | None = None):
        if any(v.lag or v.first != 1 for v in method.variables):
            raise BadInput(f"{method.name} reads a memory before the present gradient, or weights the first one otherwise")
        self.method, self.strength, self.coordinates, self.lr = method, strength, coordinates, method.lr
        self._roots = roots_of(method)

    def init(self, theta: Tensor) -> State:
        """Of the method; of what is carried, of each its E |d| and E |g_l - M|, shape (n, 2); and the previous theta.

        Args:
            theta: shape (n, d).
        """
        sums = self.method.init(theta).sums
        if not self.strength:
            return State(0, sums)
        return State(0, (*sums, *(torch.zeros_like(s) for s in sums), *(theta.new_zeros(len(theta), 2) for _ in sums), theta))

    def update(self, state: State, gradient: Tensor, theta: Tensor, again: Callable[[Tensor], Tensor]) -> tuple[State, Tensor]:
        """The next state, and u + s (u - F); a first update has no memory.

        Args:
            state: of all networks.
            gradient: shape (n, d).
            theta: shape (n, d).
            again: gradients of the same batches at other points.
        """
        variables, n = self.method.variables, state.n
        count = len(variables)
        own, u = self.method.update(State(n, state.sums[:count]), gradient, theta)
        if not self.strength:
            return own, u
        carried, walks, there = state.sums[count : 2 * count], state.sums[2 * count : -1], state.sums[-1]
        now = [v.g(gradient, theta) for v in variables]
        if not n:
            return State(1, (*own.sums, *now, *walks, theta)), u
        previous, M, walked = again(there), list[Tensor](), list[Tensor]()
        for v, x, g, walk in zip(variables, carried, now, walks, strict=True):
            d = g - v.g(previous, there)
            off, K = g - x - d, 1 / _mass(v.beta, n + 1)
            adapted = gain(walk.T[..., None], 1 - v.beta).clamp_min(K) if nonnegative(v) else K
            M.append(x + d + adapted * off)
            seen = torch.stack([each.abs().sum(1) for each in (d, off)], 1)
            walked.append(walk.lerp(seen, max(SEEN, 1 / _mass(v.beta, n))))
        c = [kernel.total(v, n) for v in variables]
        for l, v in enumerate(variables):
            if v.has_memory and nonnegative(v):
                M[l] = torch.maximum(M[l], own.sums[l] * (FLOOR * v.weight(n) / c[l]))
                if (root := self._roots[l]) is not None:
                    M[l] = torch.maximum(M[l], M[root].square() / 2)
        m = [weight * x for weight, x in zip(c, M, strict=True)]
        term = permuted(u - self.method.readout(m, theta), self.coordinates)
        return State(own.n, (*own.sums, *M, *walked, theta)), torch.add(u, term, alpha=self.strength)


def _mass(beta: float, n: int) -> float:
    """S, the sum of beta^k over n steps."""
    return (1 - beta**n) / (1 - beta)


def permuted(term: Tensor, coordinates: Tensor | None) -> Tensor:
    """The term, shape (n, d), with its coordinates in another order; None leaves it."""
    return term if coordinates is None else term[..., coordinates]


def permutation(layout: Layout, seed: int = 0) -> Tensor:
    """Coordinates permuted within each tensor, as `live.dial` does: one permutation for all steps.

    Args:
        layout: of theta.
        seed: of the permutations.
    """
    parts = []
    for number, part in enumerate(layout.slices.values()):
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        parts.append(part.start + torch.randperm(part.stop - part.start, generator=generator))
    return torch.cat(parts)


class Work(NamedTuple):
    """The networks of a setting from their seeds' starts, and the data."""

    models: list[nn.Module]
    train: list[Batch]
    test: list[Batch]


def work_of(setting: Setting) -> Work:
    """Networks and data."""
    if setting.kind == "gpt":
        text = fig2b.Setting("gpt", "documentation", "adamw", setting.betas, setting.lr, 0.0, setting.seeds, context=WINDOWS[0])
        corpus = documentation(*WINDOWS, VOCABULARY)
        models = [fig2b.model_of(text, VOCABULARY, seed) for seed in setting.seeds]
        return Work(models, [corpus.train], [corpus.validation])
    images = fig2a.Setting("plain", "digits", "adamw", setting.betas, setting.lr, 0.0, setting.seeds)
    train, test, _ = fig2a.data_of(images)
    if setting.kind == "cnn":
        ((pixels, classes),) = train
        return Work(
            [digits_cnn(seed, 1, torch.float32).model for seed in setting.seeds], [(pixels, mislabelled(classes))], test
        )
    return Work([fig2a.model_of(setting.kind, seed) for seed in setting.seeds], train, test)


def mislabelled(classes: Tensor, share: float = NOISE, count: int = 10) -> Tensor:
    """Labels of which a share, the same ones always, are of another class, each other one as likely.

    Args:
        classes: shape (n,).
        share: of wrong ones.
        count: how many classes there are.
    """
    random, n = torch.Generator().manual_seed(0), len(classes)
    wrong = torch.randperm(n, generator=random)[: round(share * n)]
    found = classes.clone()
    found[wrong] = (classes[wrong] + torch.randint(1, count, (len(wrong),), generator=random)) % count
    return found


def run(setting: Setting) -> dict[str, Any]:
    """Train to the target, and look at what is there.

    Args:
        setting: what to run.

    Returns:
        By name, one number a seed, NaN where the target was not reached: `MEASURES`, the sharpness NaN where its search did not
        converge, too, the accuracy NaN of text, "training_loss", "residual", that of the search over the eigenvalue, and
        "steps", -1 where the target was not reached.
    """
    models, train, test = work_of(setting)
    networks = Networks(models[0], cross_entropy, train, together=setting.kind != "gpt")  # attention has no batching rule
    starts = torch.stack([Networks(model, cross_entropy, train).layout.theta() for model in models])
    method = AdamW(setting.lr, setting.betas, setting.eps, 0.0)
    strength = 0.0 if setting.arm == "lr" else setting.strength
    placebo = permutation(networks.layout) if setting.arm == "placebo" else None
    if setting.batch is None:
        rule: Rule = method if setting.arm == "lr" else Dialled(method, strength, placebo)
        reached = train_to(networks, rule, starts, setting.target, setting.limit)
    else:
        samples = shuffled_for_each(len(train[0][0]), setting.batch, setting.seeds, setting.limit)
        reached = train_along(networks, Carried(method, strength, placebo), starts, samples, setting.target, setting.every)
    loss = Loss(networks.model, cross_entropy, train)
    found: dict[str, list[float]] = {name: [] for name in (*MEASURES, "training_loss", "residual")}
    for theta, step in zip(reached.thetas, reached.steps.tolist(), strict=True):
        here = dict.fromkeys(found, float("nan"))
        if step >= 0:
            point = Point(loss, theta)
            here["gradient_1_norm"], here["training_loss"] = float(point.gradient.abs().sum()), point.value
            if setting.kind == "gpt":
                here["test_loss"] = float(networks.losses(theta[None], test)[0])
            else:
                here["test_accuracy"], here["test_loss"] = fig2a.tested(networks, theta, test)
            top = TopEigenvalue(relative=1e-2).at(point)
            here |= {"sharpness": top.known, "residual": top.relative}
        for name, values in found.items():
            values.append(here[name])
    return found | {"steps": reached.steps.tolist()}
