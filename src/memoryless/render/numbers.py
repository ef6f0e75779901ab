"""Numbers as text, and the axis for relative changes that span many decades with both signs.

The axis is signed-logarithmic: the position of a change c is asinh(c / scale), linear near zero and logarithmic beyond
`scale`, with ticks at round percentages.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeGuard

import numpy as np

NOTHING, MINUS, SPACE = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"


def finite(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number.

    Args:
        value: of JSON, None where it was not finite.
    """
    return value is not None and math.isfinite(value)


def percent(change: float | None) -> str:
    """A relative change, signed, in per cent with two digits; a dash where there is no finite number.

    Args:
        change: of 1.
    """
    if not finite(change):
        return NOTHING
    return f"{number(100 * change, sign=True)}{SPACE}%"


def share(part: float) -> str:
    """A part of 1 in per cent with two digits.

    Args:
        part: in [0, 1].
    """
    return f"{number(100 * part)}{SPACE}%"


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number with few digits and a proper minus; a dash where there is no finite number.

    Args:
        value: to write.
        digits: significant ones.
        sign: show the plus, too.
    """
    if not finite(value):
        return NOTHING
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    plus = "+" if sign else ""
    if not 1e-4 <= abs(rounded) < 1e5:
        return f"{rounded:{plus}.{digits}g}".replace("-", MINUS)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:{plus}.{decimals}f}".replace("-", MINUS)


def cosine(value: float | None) -> str:
    """Two decimals; a dash where there is no finite number.

    Args:
        value: in [-1, 1].
    """
    return f"{value:.2f}".replace("-", MINUS) if finite(value) else NOTHING


def some(names: Sequence[str], most: int = 4) -> str:
    """Names one by one where they are few, else the first and how many others.

    Args:
        names: at least one.
        most: that are listed whole.

    Example:
        >>> some(["a", "b"]), some(["a", "b", "c", "d", "e"])
        ('a, b', 'a and 4 others')
    """
    return ", ".join(names) if len(names) <= most else f"{names[0]} and {len(names) - 1:,} others"


def label(name: str) -> str:
    """The name of a measure or an attribute as people write it.

    Args:
        name: such as "gradient_1_norm".
    """
    return name.replace("_", " ").replace("1 norm", "1-norm")


def broken(name: str, width: int) -> str:
    """A name in lines, broken at spaces, brackets and commas alone; what is longer between them stays whole.

    Args:
        name: such as an optimizer with its options.
        width: of a line, in characters.

    Example:
        >>> print(broken("adamw(lr=3e-4,betas=(0.9,0.95))", 18))
        adamw(lr=3e-4,
        betas=(0.9,0.95))
    """
    lines = [""]
    for part in re.split(r"(?<=[(, ])", name):
        if lines[-1] and len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def cell(value: float | str | None) -> str:
    """A value of a table whose columns are not known beforehand: four digits, no trailing zeros; yes or no; text as it is.

    Args:
        value: of JSON, no list or dictionary.
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}".replace("-", MINUS) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class SignedLog:
    """A signed-logarithmic axis of relative changes."""

    scale: float
    low: float
    high: float

    @classmethod
    def of(cls, changes: Iterable[float | None]) -> "SignedLog":
        """One on which most of these are beyond the linear part.

        Args:
            changes: to show; those that are not finite are left out.
        """
        known = np.array([c for c in changes if finite(c)] or [0.0])
        sizes = np.abs(known[known != 0])
        if not len(sizes):
            return cls(1e-2, -1e-2, 1e-2)
        decade = math.floor(math.log10(np.quantile(sizes, 0.15)))
        decade = max(decade, math.floor(math.log10(sizes.max())) - 6)
        return cls(10.0**decade, min(0.0, known.min()), max(0.0, known.max()))

    def place(self, changes: Iterable[float | None]) -> list[float | None]:
        """Positions on the axis.

        Args:
            changes: relative changes.
        """
        return [math.asinh(c / self.scale) if finite(c) else None for c in changes]

    @property
    def ends(self) -> list[float]:
        """Of the axis, with some room."""
        low, high = math.asinh(self.low / self.scale), math.asinh(self.high / self.scale)
        room = 0.06 * (high - low) + 0.1
        return [low - room, high + room]

    def axis(self, gap: float) -> dict[str, Any]:
        """Range and ticks, zero and the largest decades first.

        Args:
            gap: least distance of two ticks, as a share of the axis.
        """
        low, high = self.ends
        first = round(math.log10(self.scale))
        last = max(first, math.floor(math.log10(max(-self.low, self.high, self.scale))))
        finer = (1, 2, 5) if last - first < 2 else (1,)
        ticks = [0.0]
        for size in (m * 10.0**k for k in range(last, first - 1, -1) for m in reversed(finer)):
            for tick in (size, -size):
                at = math.asinh(tick / self.scale)
                free = min(abs(at - math.asinh(t / self.scale)) for t in ticks) > gap * (high - low)
                if low <= at <= high and free:
                    ticks.append(tick)
        ticks.sort()
        return {
            "tickvals": self.place(ticks),
            "ticktext": [f"{100 * t:+g} %".replace("-", MINUS).replace("+0 ", "0 ") for t in ticks],
            "range": [low, high],
            "tickangle": 0,
        }


FAR = 1e4
"""How much more than is measured the failure of a prediction may reach in a chart without hiding the rest."""


def near(changes: Sequence[float | None], scale: Iterable[float | None]) -> list[float | None]:
    """The changes that can stand in one chart with what is known; None for one beyond `FAR` times its largest size.

    Args:
        changes: to draw.
        scale: what must be seen.
    """
    limit = FAR * max((abs(s) for s in scale if finite(s)), default=0.0) or math.inf
    return [c if finite(c) and abs(c) <= limit else None for c in changes]


def plain(value: Any) -> Any:
    """A value as JSON has it.

    Args:
        value: of numbers, text, None, NumPy arrays, tensors, results, dataclasses (by field), mappings and sequences of such.

    Returns:
        Dictionaries with text as keys, lists, numbers, text, None; None in place of each number that is not finite.

    Raises:
        TypeError: it holds something else.

    Example:
        >>> import numpy as np
        >>> plain({"lrs": (0.1, float("inf")), 2: np.float32(0.5), "M": np.ones(2)})
        {'lrs': [0.1, None], '2': 0.5, 'M': [1.0, 1.0]}
    """
    if hasattr(value, "as_dict"):  # a result
        return value.as_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers, torch's tensors
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"expected numbers and text, got {type(value).__name__}: {value!r}")
