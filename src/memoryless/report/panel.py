"""A map over betas as a panel of a picture, and its scale of colours."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, SymLogNorm
from matplotlib.figure import FigureBase
from numpy.typing import NDArray

from memoryless.render.numbers import number
from memoryless.render.style import COLOUR, DIVERGING

COLOURS = LinearSegmentedColormap.from_list("effect", DIVERGING)


def shades(reach: float) -> SymLogNorm:
    """Colours from -reach to reach, logarithmic but around 0.

    Args:
        reach: largest relative change shown, positive.
    """
    return SymLogNorm(linthresh=reach / 300, vmin=-reach, vmax=reach, base=10)


def draw(
    panel: Axes,
    change: NDArray[np.float64],
    doubt: NDArray[np.bool_],
    betas: tuple[Sequence[float], Sequence[float]],
    own: tuple[int, int] | None,
    norm: SymLogNorm,
) -> None:
    """Draw the relative changes over (betas_1, betas_2): cells that are not known (NaN) left blank, zero as a line.

    Args:
        panel: to draw in.
        change: shape (betas_1, betas_2).
        doubt: cells to mark with a dot, same shape.
        betas: both axes.
        own: index of the optimizer's own pair, ringed.
        norm: of the colours.
    """
    known = np.ma.masked_invalid(change)
    panel.pcolormesh(known, cmap=COLOURS, norm=norm)
    x, y = np.meshgrid(np.arange(change.shape[1]) + 0.5, np.arange(change.shape[0]) + 0.5)
    if known.count() and known.min() < 0 < known.max() and min(change.shape) > 1:
        panel.contour(x, y, known, levels=[0.0], colors=COLOUR["ink"], linewidths=1.3)
    panel.plot(x[doubt], y[doubt], ".", color=COLOUR["axis"], markersize=3)
    if own is not None:
        ring = {"color": COLOUR["ink"], "markerfacecolor": "none", "markersize": 11, "markeredgewidth": 1.6}
        panel.plot(own[1] + 0.5, own[0] + 0.5, "o", **ring)
    panel.set_xticks(np.arange(len(betas[1])) + 0.5, [f"{b:g}" for b in betas[1]], rotation=60, fontsize=8)
    panel.set_yticks(np.arange(len(betas[0])) + 0.5, [f"{b:g}" for b in betas[0]], fontsize=8)
    panel.set_xlabel("beta 2")
    panel.tick_params(length=2, color=COLOUR["axis"])


def scale(figure: FigureBase, panels: list[Axes], norm: SymLogNorm) -> None:
    """The scale of the colours beside some panels.

    Args:
        figure: that they are in.
        panels: that share it.
        norm: of the colours.
    """
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=panels, shrink=0.9, pad=0.01)
    bar.set_label("regularizes  < 0 <  anti-regularizes", fontsize=8)
    reach = float(norm.vmax or 1)
    decades = 10.0 ** np.arange(math.ceil(math.log10(reach / 100)), math.log10(reach))
    bar.set_ticks([*-decades, 0.0, *decades], labels=[tick(x) for x in (*-decades, 0.0, *decades)])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7.5)


def tick(change: float) -> str:
    """A relative change in per cent with one digit.

    Args:
        change: of 1.
    """
    return f"{number(100 * change, 1, sign=True)} %"
