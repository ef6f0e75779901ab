"""At my batch size, which betas? The answer in words, with its uncertainty.

What memory does at the own betas is what happens; differences between betas are of slopes.
"""

import math

import numpy as np

from memoryless.audits.effect import STRAIGHT
from memoryless.corrections.expected.estimate import Samples
from memoryless.live.batch_sizes import AtSize, BatchSizes, beside
from memoryless.render.numbers import label


def advice(found: BatchSizes, size: AtSize, k: int) -> list[str]:
    """What memory does at a batch size, and which way to move which beta.

    Args:
        found: all batch sizes.
        size: one of them.
        k: which measure.
    """
    own = size.change.at((k,))
    name, word = label(found.measures[k]), said(own)
    at = f"betas ({found.betas_1[found.own[0]]:g}, {found.betas_2[found.own[1]]:g})"
    effect = f"no effect on the {name} beyond the uncertainty" if word == "neutral" else f"memory {word} the {name}"
    slope = size.measured.at((*found.own, k))
    told = f"At {at} {effect}: {with_error(own)} per step."
    if "neutral" not in (word, said(slope)) and not STRAIGHT[0] <= float(slope.mean / own.mean) ** -1 <= STRAIGHT[1]:
        told += f" One step is too long here for slopes, which say {with_error(slope)}."
    return [told, *(_moves(found, size, k, axis) for axis in (0, 1))]


def answer(found: BatchSizes, size: AtSize, k: int) -> str:
    """Which betas at a batch size, in one sentence: the pairs of the grid that make a measure smallest and largest.

    Args:
        found: all batch sizes.
        size: one of them.
        k: which measure.
    """
    map_ = size.measured.at((slice(None), slice(None), k))
    misleads = size.misleads(found, k)

    def told(pair: tuple[int, int]) -> str:
        here = map_.at(pair)
        doubt = ", within its uncertainty" if said(here) == "neutral" else ""
        doubt += ", though what happens near it has the other sign" if misleads[pair] else ""
        return f"({found.betas_1[pair[0]]:g}, {found.betas_2[pair[1]]:g}), {with_error(here)} per step{doubt}"

    low, high = (np.unravel_index(pick(map_.mean), map_.mean.shape) for pick in (np.argmin, np.argmax))
    name = label(found.measures[k])
    at = "full batch" if size.size is None else f"batch size {size.size}"
    return (
        f"At {at}, for a lower {name} take betas {told((int(low[0]), int(low[1])))}; "
        f"for a higher one {told((int(high[0]), int(high[1])))}; yours make {told(found.own)}."
    )


def _moves(found: BatchSizes, size: AtSize, k: int, axis: int) -> str:
    """What moving one beta to its neighbours on the grid does."""
    betas = (found.betas_1, found.betas_2)[axis]
    parts = []
    for pair in beside(found.own, (len(found.betas_1), len(found.betas_2))):
        if pair[axis] != found.own[axis]:
            verb = "raising" if pair[axis] > found.own[axis] else "lowering"
            parts.append(f"{verb} beta{axis + 1} to {betas[pair[axis]]:g} {_difference(found, size, k, pair)}")
    return f"{'; '.join(parts) or f'beta{axis + 1} has no neighbour on the grid'}.".capitalize()


def _difference(found: BatchSizes, size: AtSize, k: int, pair: tuple[int, int]) -> str:
    measured = size.measured.at((*pair, k)).less(size.measured.at((*found.own, k)))
    expected = size.resummed.at((*pair, k)).less(size.resummed.at((*found.own, k)))
    word = said(measured)
    if word == "neutral":
        return f"makes no difference ({with_error(measured)} per step)"
    says = f"moves it {'down' if word == 'regularizes' else 'up'} ({with_error(measured)} per step)"
    return says + (f", against the prediction ({with_error(expected)})" if said(expected) not in (word, "neutral") else "")


def said(change: Samples) -> str:
    """Regularizes, anti-regularizes, or neutral within two standard errors.

    Args:
        change: of a measure, one number a sample.
    """
    if abs(float(change.mean)) <= 2 * float(change.standard_error):
        return "neutral"
    return "regularizes" if change.mean < 0 else "anti-regularizes"


def with_error(change: Samples) -> str:
    """In per cent, with its standard error if it has one.

    Args:
        change: of a measure, one number a sample.
    """
    mean, error = 100 * float(change.mean), 100 * float(change.standard_error)
    if not 0 < error < math.inf:
        return f"{mean:+.2g} %" if abs(mean) < 100 else f"{mean:+,.0f} %"
    # The error to one digit, the mean to the same.
    digits = max(0, -math.floor(math.log10(error)))
    return f"{mean:+,.{digits}f} ± {error:,.{digits}f} %" if digits < 6 else f"{mean:+.1e} ± {error:.0e} %"
