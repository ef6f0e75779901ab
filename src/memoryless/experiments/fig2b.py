"""Fig. 2b and 4 of https://arxiv.org/abs/2502.02132: does the minimal validation perplexity rise as beta_2 -> 1?

As Fig. 2a for language: full-batch AdamW, beta_1 = 0.9, against beta_2, with Lion beside it. The paper shows Transformer-XL on
WikiText-2 at lr 1e-4, in Fig. 4 at 5e-5 and 2.5e-5. Small, two networks of the same size are run on words of Python's own
documentation: a Transformer-XL, and a GPT (normalization before the branches), in which the claim was seen. They were looked at
with seeds below 2,000; the seeds here, from 2,000 on, had not been looked at. The tests, fixed before the run, are `CLAIM`,
`GAP` and `CLOSED`, on logarithms of perplexities of the same seed: 0.01 is 1 %.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from memoryless.errors import BadInput
from memoryless.experiments.beta_2 import FROM, against, compared, lr_beside, method_of, on_the_gap, started
from memoryless.experiments.figure import Cell, Claim, Experiment, Found, Numbers, Panel, Verdict
from memoryless.experiments.models.transformer_xl import TransformerXL
from memoryless.experiments.problems import GPT, cross_entropy
from memoryless.experiments.text import Corpus, documentation, wikitext
from memoryless.experiments.training import Networks, best_loss
from memoryless.loss.batches import cut
from memoryless.methods.method import Method


class Setting(NamedTuple):
    """One optimizer on one network from one start."""

    kind: str
    data: str
    optimizer: str
    betas: tuple[float, float]
    lr: float
    decay: float
    seeds: tuple[int, ...]
    width: int = 32
    layers: int = 2
    heads: int = 2
    context: int = 32
    windows: int = 256
    """For training, of the documentation; half as many for validation."""
    limit: int = 400
    """Steps at most."""
    patience: int = 20
    """Steps without a better validation loss that end a run."""
    eps: float = 1e-6
    batch: int | None = None
    """Windows of a physical batch, over which full-batch gradients are accumulated; None for all at once."""

    @property
    def method(self) -> Method:
        """The optimizer."""
        return method_of(self.optimizer, self.lr, self.betas, self.eps, self.decay)


KINDS = {"transformer-xl": "Transformer-XL", "gpt": "GPT"}
ABOUT = {
    "small": "2 layers of width 32, context 32, on 8,192 words of Python's documentation, full batch",
    "medium": "2 layers of width 64, context 32, on 32,768 words of Python's documentation, full batch",
    "paper": "Transformer-XL, 6 layers of width 512, context 128, on WikiText-2, full batch",
}
SECOND = 0.9, 0.99, 0.999
"""Values of beta_2."""

CLAIM = Claim(
    "The minimal validation perplexity rises as β₂ → 1",
    "ln of the perplexity at the largest β₂ over that at the smallest, same seed",
    low=0.0,
)
GAP = Claim("Lion's perplexity is below AdamW's at the largest β₂", "ln of AdamW's over Lion's, same seed", low=0.0)
CLOSED = Claim(
    "Where Lion is better, the smallest β₂ closes the gap by half or more",
    "ln of AdamW's over Lion's at the smallest β₂, less half of that at the largest, same seed",
    high=0.0,
)


def settings(figure: str, scale: str, data: str | None, seeds: int | None) -> list[Setting]:
    """The tasks of Fig. 2b, or of Fig. 4, which has other learning rates.

    Args:
        figure: "fig2b" or "fig4".
        scale: small, medium or paper.
        data: "wikitext-2" or a folder, at scale paper; None for the scale's own.
        seeds: how many; default 8, 8 and 3.
    """
    first = figure == "fig2b"
    one = Setting("transformer-xl", "documentation", "adamw", (0.9, 0.0), 0.0, 0.0, ())
    if scale == "paper":
        one = one._replace(data=data or "wikitext-2", width=512, layers=6, heads=8, context=128, limit=20_000, batch=80)
        cells = [("transformer-xl", lr, 1e-8 / lr) for lr in ((1e-4,) if first else (5e-5, 2.5e-5))]
    elif data is not None:
        raise BadInput(f"--data {data}: the {scale} scale runs on Python's documentation; leave it out, or take --scale paper")
    else:
        if scale == "medium":
            one = one._replace(width=64, heads=4, windows=1024, batch=256)
        lrs = (3e-3,) if first else (2e-3, 6e-3)  # Lion is at its least before the limit at both
        cells = [(kind, lr, 0.0) for kind in (KINDS if first else ("gpt",)) for lr in lrs]
    every = range(FROM, FROM + (seeds or (3 if scale == "paper" else 8)))
    found = []
    for kind, lr, decay in cells:
        made = compared(one._replace(kind=kind, lr=lr, decay=decay), [(0.9, b) for b in SECOND])
        found += [each._replace(seeds=(seed,)) for each in made for seed in every]
    return found


def corpus_of(setting: Setting) -> Corpus:
    """The text, in windows."""
    if setting.data == "documentation":
        return documentation(setting.context, setting.windows, setting.windows // 2)
    return wikitext(setting.data, setting.context)


def model_of(setting: Setting, vocabulary: int, seed: int) -> nn.Module:
    """The network from its seed's start, float32.

    Args:
        setting: its sizes.
        vocabulary: of the text.
        seed: of the initial parameters.
    """
    sizes = vocabulary, setting.width, setting.layers, setting.heads
    return started(lambda: GPT(*sizes, setting.context) if setting.kind == "gpt" else TransformerXL(*sizes), seed)


def run(setting: Setting) -> dict[str, Any]:
    """Train until validation gets no better.

    Args:
        setting: what to run.

    Returns:
        By name, one number a seed: "perplexity", the least one on the validation windows, and "step", where it was; -1 if it
        was still falling at the limit.
    """
    corpus = corpus_of(setting)
    device = torch.device("cuda" if setting.data != "documentation" and torch.cuda.is_available() else "cpu")
    train, validation = ((x.to(device), y.to(device)) for x, y in (corpus.train, corpus.validation))
    found: dict[str, list[float]] = {"perplexity": [], "step": []}
    for seed in setting.seeds:
        model = model_of(setting, corpus.vocabulary, seed).to(device)
        batches, held = ([part] if setting.batch is None else cut(part, setting.batch) for part in (train, validation))
        networks = Networks(model, cross_entropy, batches, together=False)
        best, step = best_loss(networks, setting.method, networks.layout.theta(), held, setting.limit, setting.patience)
        found["perplexity"].append(float(np.exp(best)))
        found["step"].append(step)
    return found


class Group(NamedTuple):
    """What belongs together in one panel: perplexities of AdamW by beta_2, ascending, and of Lion.

    Of the seeds that were at their least before the limit in all.
    """

    name: str
    adam: dict[float, Numbers]
    lion: Numbers

    @property
    def logs(self) -> tuple[Numbers, Numbers, Numbers]:
        """Of the perplexity at the smallest and at the largest beta_2, and of Lion's; empty unless all beta_2 came."""
        if not set(SECOND) <= self.adam.keys():
            return np.zeros(0), np.zeros(0), np.zeros(0)
        return np.log(self.adam[SECOND[0]]), np.log(self.adam[SECOND[-1]]), np.log(self.lion)


def groups_of(every: Sequence[Found]) -> list[Group]:
    """By kind and lr.

    Args:
        every: what was found.
    """
    cells: dict[tuple[str, float], dict[Any, dict[int, tuple[float, int]]]] = {}
    for setting, numbers in every:
        place = "lion" if setting.optimizer == "lion" else setting.betas[1]
        rows = cells.setdefault((setting.kind, lr_beside(setting.optimizer, setting.lr)), {}).setdefault(place, {})
        rows |= dict(zip(setting.seeds, zip(numbers["perplexity"], numbers["step"], strict=True), strict=True))
    found = []
    for (kind, lr), places in cells.items():
        seeds = sorted(set.intersection(*(set(rows) for rows in places.values())))
        # What still fell at the limit is no minimum.
        met = [seed for seed in seeds if all(rows[seed][1] >= 0 for rows in places.values())]
        of = {place: np.array([rows[seed][0] for seed in met], dtype=float) for place, rows in places.items()}
        adam = {b: of[b] for b in sorted(b for b in of if b != "lion")}
        name = f"{KINDS[kind]}, β₁ = 0.9, lr {lr:g} ({len(met)} of {len(seeds)} seeds at their least before the limit)"
        found.append(Group(name, adam, of.get("lion", np.full(len(met), np.nan))))
    return found


def panels(every: Sequence[Found]) -> list[list[Panel]]:
    """One row, a panel for each kind and lr."""
    return [[against(g.name.partition(" (")[0], "minimal validation perplexity", g.adam, g.lion) for g in groups_of(every)]]


def verdicts(every: Sequence[Found]) -> list[Verdict]:
    """On what changes with beta_2, and on the gap to Lion; whether it is closed only where there is one."""
    change, gaps = [], []
    for group in groups_of(every):
        low, high, lion = group.logs
        change.append(Cell(group.name, high - low))
        gaps.append((group.name, low - lion, high - lion))
    return [Verdict(CLAIM, change), *on_the_gap(GAP, CLOSED, gaps)]


FIGURES = {
    name: Experiment(name, title, ABOUT, partial(settings, name), run, panels, verdicts, "s.e. of differences within seeds")
    for name, title in (
        ("fig2b", "Minimal validation perplexity against β₂"),
        ("fig4", "Minimal validation perplexity against β₂, other learning rates"),
    )
}
