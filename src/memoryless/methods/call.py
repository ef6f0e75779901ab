"""The form "path" or "path(option=value, ...)", in which optimizers and problems are said; no torch."""

import ast
from typing import Any

from memoryless.errors import BadInput


def called(text: str) -> tuple[str, dict[str, Any]]:
    """Path and options of "path" or "path(option=literal, ...)"; nothing is imported.

    Args:
        text: as a user writes it.

    Raises:
        BadInput: it is not of that form.
    """
    path = text.partition("(")[0].strip()
    try:
        node = ast.parse("f" + text.strip()[len(path) :], mode="eval").body
        keywords = node.keywords if isinstance(node, ast.Call) and not node.args else []
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords if keyword.arg}
    except (SyntaxError, ValueError, TypeError):  # the last of {[]: 1}
        node, keywords, options = None, [], {}
    plain = isinstance(node, ast.Name) or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args)
    if not path or not plain or len(options) != len(keywords):
        raise BadInput(f"expected a name or name(option=value, ...), got {text!r}")
    return path, options
