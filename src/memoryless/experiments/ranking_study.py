"""Does one run's map of memory's effect rank other betas as their own finished runs do?

A run with torch's default betas goes 5 % of its way. There `ml.audit_batch_sizes` (the command `betas`) tells what the memory
of every other pair would do to the gradient's 1-norm, by shadow memories on that run's own gradients: the mean over the last
quarter of these steps. https://arxiv.org/abs/2502.02132 holds that less of this norm means better generalization. So the pairs
are ranked by it, the least effect first, and every pair trains by itself from the same start along the same batches. Does the
ranking agree with theirs, by test accuracy and test loss at equal training loss? By the training loss after all steps, where
memory's effect on the training loss itself ranks? And, since this is what the map speaks of, by the gradient's 1-norm at equal
training loss?

    tau = (pairs of pairs in the same order - pairs of pairs in the opposite one) / all, corrected for ties (Kendall's tau-b)

of each seed. Rivals are rules that need no map: beta_1 = beta_2 (https://arxiv.org/abs/2505.21829), by |beta_1 - beta_2|; a
half-life of beta_2 fixed in samples (https://arxiv.org/abs/2507.07101), that of .999 at batch 32, by |ln| of the ratio to it;
torch's default, by the distance from it in ln(1 - beta). The fourth is the theory to first order, at the same points of the
same run. Where no rule could rank, nothing is to be learnt of one: "the other seeds" rank by the mean outcome of all seeds
but one.

Two networks of `fig2a`, full batch, 32 and 8. Pairs with beta_2 < beta_1, which oscillate (`fig2a.SECOND`), are left out.
Learning rates, steps and betas were chosen by runs on the seeds 5,000 and 5,001, so that pairs meet the target within the
steps: beta_1 = .99 does not on the plain network, nor do small betas along its mini-batches at smaller learning rates. Test
accuracies of some pairs and three maps of these seeds were seen on the way; no rule and no test comes from them. All tests were
fixed before the run on the seeds from 6,000 on, which had not been looked at.

Equal training loss is the first look, every step full batch and every fifth along mini-batches, at which the loss of all images
is at or below the target. Pairs that did not come there in every seed are left out of that comparison; the cell says how many
stayed. A seed's own tests are noisy, so tau stays below 1 whatever the rule: compare with what the other seeds tell.

What the intervals do not hold: the order of a map and that of the runs are much the same in all seeds, so an order that knows
nothing may have a tau that all seeds repeat. The share of arbitrary orders that do as well as the map stands beside (added
after the run, as was this paragraph; it changes no verdict). The taus of "the other seeds" share their runs, so their interval
is about 1.5 times too narrow. The first look below the target favours lucky pairs: `EQUAL` asks by how much their losses
differ there. It was asked after the first run, which had not recorded that loss; the second run is of the same seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from memoryless.errors import BadInput
from memoryless.experiments import fig2a
from memoryless.experiments.figure import Cell, Claim, Experiment, Found, Line, Numbers, Panel, Verdict
from memoryless.experiments.ranking_runs import CELLS, IMAGES, LIVE, ORDERS, PAIRS, SIZES, Setting, run

FROM, MANY = 6000, 8
"""The first seed, and how many."""
HALF_LIFE = 32 * np.log(0.5) / np.log(0.999)
"""In samples, of the rule that fixes it."""
ABOUT = {
    "small": f"{len(PAIRS)} pairs of betas of AdamW without decay, networks of width 64 on {IMAGES} digits images for training "
    "and 1,497 for testing, full batch, 32 and 8; one run with (0.9, 0.999) measured over 5 % of its steps",
}


class Outcome(NamedTuple):
    """What finished runs are ranked by.

    Attributes:
        label: in words.
        sign: 1 where more is better, else -1.
        measure: whose map ranks.
        last: whether after all steps, else at equal training loss.
    """

    label: str
    sign: int
    measure: str
    last: bool = False


OUTCOMES = {
    "test_accuracy": Outcome("test accuracy", 1, "gradient_1_norm"),
    "test_loss": Outcome("test loss", -1, "gradient_1_norm"),
    "final_loss": Outcome("final training loss", -1, "training_loss", last=True),
    "gradient_1_norm": Outcome("gradient 1-norm", -1, "gradient_1_norm"),
}
RULES = {"tied": "β₁ = β₂", "half_life": "half-life in samples", "default": "torch's default"}
RIVALS = RULES | {"first": "the theory to first order"}
SEEDS = "other_seeds"


def _at(outcome: Outcome) -> str:
    return outcome.label + (", after all steps" if outcome.last else ", at equal training loss")


RANKS = {
    name: Claim(f"The map at 5 % of training ranks pairs of betas by {_at(outcome)}", "Kendall's tau, by seed", low=0.0)
    for name, outcome in OUTCOMES.items()
}
POSSIBLE = {
    name: Claim(
        f"There is a ranking by {_at(outcome)} to find: the other seeds' runs tell it", "Kendall's tau, by seed", low=0.0
    )
    for name, outcome in OUTCOMES.items()
}
BETTER = {
    (name, rival): Claim(
        f"The map ranks better than {rule} does, by {_at(OUTCOMES[name])}",
        "Kendall's tau of the map less that of the rule, same seed",
        low=0.0,
    )
    for name in ("test_accuracy", "test_loss", "final_loss")
    for rival, rule in RIVALS.items()
}
EQUAL = Claim(
    "Pairs of betas are compared at one training loss",
    "ln of the largest training loss over the least at the first look below the target, pairs of one seed",
    high=0.02,
)
"""Asked after the first run, which had not recorded it."""


def settings(scale: str, data: str | None, seeds: int | None) -> list[Setting]:
    """The tasks.

    Args:
        scale: "small", the only one.
        data: None.
        seeds: how many; default 8.
    """
    if scale != "small" or data is not None:
        raise BadInput("the study of rankings has one scale, small, on the digits images; leave out --scale and --data")
    every = tuple(range(FROM, FROM + (seeds or MANY)))
    found = []
    for (kind, batch), (lr, steps) in CELLS.items():
        found.append(Setting(kind, batch, "map", LIVE, lr, steps, every))
        found += [Setting(kind, batch, "run", pair, lr, steps, every) for pair in PAIRS]
    return found


@dataclass(frozen=True)
class Ranked:
    """What was found on one network at one batch size.

    Attributes:
        kind: of network.
        batch: samples; None is the full batch.
        outcomes: by name, and "training_loss", shape (seeds, pairs); NaN where a run did not come so far.
        maps: by kind and measure, shape (seeds, pairs).
    """

    kind: str
    batch: int | None
    outcomes: dict[str, Numbers]
    maps: dict[str, Numbers]
    _known: dict[tuple[str, str], Numbers] = field(default_factory=dict, repr=False)

    def kept(self, name: str) -> NDArray[np.bool_]:
        """The pairs that came to an outcome in every seed.

        Args:
            name: in `OUTCOMES`, or "training_loss".
        """
        values = self.outcomes[name]
        return np.asarray(np.isfinite(values).all(0) & (len(values) > 0))

    def where(self, name: str) -> str:
        """The cell in words."""
        size = "full batch" if self.batch is None else f"batch {self.batch}"
        return f"{fig2a.KINDS[self.kind]}, {size} ({int(self.kept(name).sum())} of {len(PAIRS)} pairs)"

    def scores(self, name: str, rule: str) -> Numbers:
        """How good a rule says the pairs are, shape (seeds, pairs).

        Args:
            name: of the outcome.
            rule: in `ORDERS`, `RULES`, or `SEEDS`.
        """
        outcome, values = OUTCOMES[name], self.outcomes[name]
        if rule == SEEDS:
            return outcome.sign * (values.sum(0) - values)  # of all others
        if rule in ORDERS:
            return -self.maps[f"{rule} {outcome.measure}"]
        return np.tile(preference(rule, self.batch), (len(values), 1))

    def taus(self, name: str, rule: str) -> Numbers:
        """Of each seed the agreement of a rule with an outcome; NaN where all pairs are tied or fewer than three are left.

        Args:
            name: of the outcome.
            rule: as in `scores`.
        """
        if (name, rule) not in self._known:
            kept, goods = self.kept(name), OUTCOMES[name].sign * self.outcomes[name]
            none = (rule in ORDERS and not self.maps) or not len(goods)
            scores = np.zeros((0, len(PAIRS))) if none else self.scores(name, rule)
            self._known[name, rule] = np.array([tau(a[kept], b[kept]) for a, b in zip(scores, goods, strict=len(scores) > 0)])
        return self._known[name, rule]

    def by_chance(self, name: str, rule: str, orders: int = 999) -> float:
        """The share of arbitrary orders of the pairs, the same in all seeds, whose mean tau is at least that of a rule.

        Seeds repeat what an order happens to have right, so that their interval does not tell it from luck.

        Args:
            name: of the outcome.
            rule: as in `scores`.
            orders: tried, besides the rule's own.
        """
        kept = self.kept(name)
        if kept.sum() < 3 or (rule in ORDERS and not self.maps):
            return float("nan")
        scores, goods = self.scores(name, rule)[:, kept], (OUTCOMES[name].sign * self.outcomes[name])[:, kept]
        # Tau-b is a sum over pairs of pairs, over what no order changes.
        agrees, wanted = (np.sign(x[:, :, None] - x[:, None, :]) for x in (scores, goods))
        size = np.sqrt((agrees**2).sum((1, 2)) * (wanted**2).sum((1, 2)))[:, None, None]
        if not size.all():
            return float("nan")
        weight, random = wanted / size, np.random.default_rng(0)
        drawn = [np.arange(kept.sum()), *(random.permutation(int(kept.sum())) for _ in range(orders))]
        means = np.array([(agrees[:, order][:, :, order] * weight).sum() for order in drawn])
        return float((means >= means[0] - 1e-12).mean())


def tau(scores: Numbers, goods: Numbers) -> float:
    """Kendall's tau-b of two rankings; NaN where it has no value.

    Args:
        scores: of one.
        goods: of the other.
    """
    if len(goods) < 3 or not np.ptp(scores) or not np.ptp(goods):
        return float("nan")
    found: Any = stats.kendalltau(scores, goods)
    return float(found.statistic)


def preference(rule: str, batch: int | None) -> Numbers:
    """What a rule that needs no run thinks of `PAIRS`, the best largest.

    Args:
        rule: in `RULES`.
        batch: samples; None is the full batch.
    """
    one, two = np.array(PAIRS).T
    if rule == "tied":
        return -np.round(np.abs(one - two), 12)
    if rule == "half_life":
        return -np.abs(np.log((batch or IMAGES) * np.log(0.5) / np.log(two) / HALF_LIFE))
    ages = np.log((1 - np.array(PAIRS)) / (1 - np.array(LIVE)))
    return -np.round(np.hypot(*ages.T), 12)


def ranked(every: Sequence[Found]) -> list[Ranked]:
    """By network and batch size; without numbers where not all pairs came.

    Args:
        every: what was found.
    """
    told = []
    for kind, batch in CELLS:
        mine = [f for f in every if (f.setting.kind, f.setting.batch) == (kind, batch)]
        runs = {tuple(f.setting.betas): f.numbers for f in mine if f.setting.part == "run"}
        if not mine:
            continue
        outcomes = dict.fromkeys((*OUTCOMES, "training_loss"), np.zeros((0, len(PAIRS))))
        if set(PAIRS) <= runs.keys():
            outcomes = {name: np.stack([_numbers(runs[pair][name]) for pair in PAIRS], 1) for name in outcomes}
        maps = {name: _numbers(x) for f in mine if f.setting.part == "map" for name, x in f.numbers.items()}
        told.append(Ranked(kind, batch, outcomes, maps))
    return told


def _numbers(found: Any) -> Numbers:
    return np.array(found, dtype=float)  # None is NaN


def panels(every: Sequence[Found]) -> list[list[Panel]]:
    """A row for each network, a column for each outcome: tau against the batch size, by rule."""
    cells = {(each.kind, each.batch): each for each in ranked(every)}
    rules = ORDERS | RULES | {SEEDS: "the other seeds"}
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in cells):
        mine = {k: cells[kind, size] for k, size in enumerate(SIZES) if (kind, size) in cells}
        row = []
        for name, outcome in OUTCOMES.items():
            lines = []
            for k, (rule, label) in enumerate(rules.items()):
                taus = {at: each.taus(name, rule) for at, each in mine.items()}
                known = {at: values for at, values in taus.items() if len(values)}
                if known:
                    lines.append(Line(label, [*known], np.stack([*known.values()], 1), k / (len(rules) - 1)))
            title = fig2a.KINDS[kind] if not row else ""
            ticks = [str(size or "full") for size in SIZES]
            row.append(Panel(title, "batch size", f"tau, {outcome.label}", lines, ticks=ticks))
        rows.append(row)
    return rows


def verdicts(every: Sequence[Found]) -> list[Verdict]:
    """On the map, on whether there is anything to rank, and on the rivals."""
    cells = ranked(every)

    def judged(claim: Claim, name: str, rule: str, rival: str | None = None) -> Verdict:
        found = []
        for each in cells:
            own = each.taus(name, rule)
            other = each.taus(name, rival) if rival and len(own) else 0.0
            luck = "" if rival or rule == SEEDS else f"; {each.by_chance(name, rule):.1%} of arbitrary orders do as well"
            found.append(Cell(each.where(name) + luck, own - other))
        return Verdict(claim, found)

    told = []
    for name in OUTCOMES:
        told += [judged(RANKS[name], name, "measured"), judged(POSSIBLE[name], name, SEEDS)]
    told += [judged(claim, name, "measured", rival) for (name, rival), claim in BETTER.items()]
    apart = [np.log(each.outcomes["training_loss"][:, each.kept("training_loss")]) for each in cells]
    return [
        *told,
        Verdict(EQUAL, [Cell(each.where("training_loss"), _spread(x)) for each, x in zip(cells, apart, strict=True)]),
    ]


def _spread(values: Numbers) -> Numbers:
    """From the least to the largest of each row."""
    return np.ptp(values, axis=1) if values.shape[1] else np.zeros(0)


FIGURES = {
    "ranking": Experiment(
        "ranking", "Does one run's map rank other betas?", ABOUT, settings, run, panels, verdicts, "standard error over seeds"
    )
}
