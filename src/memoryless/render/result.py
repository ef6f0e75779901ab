"""One face for every result: plain data, JSON, a page.

    class Found(Result):                      # a frozen dataclass, usually; name and first line of the docstring head its page
        def as_dict(self) -> dict[str, Any]:
            return plain({"loss": self.loss, "step": self.step, "M": self.M, "effects": self.effects})

gives `to_json` and `to_html`. A class with a better page overrides `to_html`.
"""

import inspect
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


class Result(ABC):
    """What a public function finds."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text, as JSON has them: what is not finite is None."""

    def to_json(self, indent: int | None = None) -> str:
        """`as_dict` as JSON text.

        Args:
            indent: spaces by which inner values are set in; one line by default.
        """
        return json.dumps(self.as_dict(), indent=indent, allow_nan=False)

    def to_html(self) -> str:
        """`as_dict` as one self-contained page of tables."""
        from memoryless.render.page import tables  # which needs jinja2

        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(self).__name__).capitalize()
        about = (inspect.getdoc(self) or "").partition("\n")[0]
        return tables(name, about, self.as_dict())


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
    if isinstance(value, Result):
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
