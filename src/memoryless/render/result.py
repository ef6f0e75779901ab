"""One face for every result: plain data, JSON, a page.

    class Found(Result):                      # a frozen dataclass, usually; name and first line of the docstring head its page
        def as_dict(self) -> dict[str, Any]:
            return plain({"loss": self.loss, "step": self.step, "M": self.M, "effects": self.effects})

gives `to_json` and `to_html`. A class with a better page overrides `to_html`.
"""

import inspect
import json
import re
from abc import ABC, abstractmethod
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
