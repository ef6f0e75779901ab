"""Batches: tensors in tuples, lists and dictionaries."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from memoryless.errors import BadInput


def map_tensors(f: Callable[..., Any], *trees: Any) -> Any:
    """A structure with f of its tensors in their place.

    Args:
        f: takes one tensor of each structure.
        *trees: of the same structure; what is neither tensor nor structure is taken from the first.

    Raises:
        BadInput: the structures differ.

    Example:
        >>> map_tensors(lambda x, y: float(x + y), {"a": torch.ones(1), "b": "text"}, {"a": torch.ones(1), "b": "text"})
        {'a': 2.0, 'b': 'text'}
    """
    first = trees[0]
    if any(type(tree) is not type(first) for tree in trees):
        raise BadInput(f"batches differ in structure: {', '.join(sorted({type(tree).__name__ for tree in trees}))}")
    if isinstance(first, Tensor):
        return f(*trees)
    if isinstance(first, Mapping):
        if any(tree.keys() != first.keys() for tree in trees):
            raise BadInput("batches differ in structure: their keys are not the same")
        return {key: map_tensors(f, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, (list, tuple)):
        if any(len(tree) != len(first) for tree in trees):
            raise BadInput("batches differ in structure: their lengths are not the same")
        mapped = [map_tensors(f, *parts) for parts in zip(*trees, strict=True)]
        return type(first)(*mapped) if hasattr(first, "_fields") else type(first)(mapped)
    return first


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a structure, in order.

    Args:
        tree: a batch.
    """
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    return found


def cut(data: Any, size: int) -> list[Any]:
    """Batches of a size, samples being along the first dimension of the tensors; a remainder is left out.

    Args:
        data: one batch of all samples.
        size: samples in each.

    Raises:
        BadInput: the size does not leave two batches.
    """
    count = len(tensors(data)[0])
    if not 0 < size <= count // 2:
        raise BadInput(f"a batch size must lie in 1..{count // 2}, half of the {count} samples, got {size}")
    return [map_tensors(lambda x, low=low: x[low : low + size], data) for low in range(0, count - size + 1, size)]


def together(batches: list[Any]) -> Any:
    """All batches as one.

    Args:
        batches: with samples along the first dimension of their tensors.

    Raises:
        BadInput: they hold no tensors, or do not fit together.
    """
    if not batches or not tensors(batches[0]) or not all(x.ndim for x in tensors(batches[0])):
        got = type(batches[0]).__name__ if batches else "nothing"
        raise BadInput(f"expected batches of tensors with samples along their first dimension, got {got}")
    try:
        return map_tensors(lambda *parts: torch.cat(parts), *batches)
    except RuntimeError as error:
        raise BadInput(f"batches do not fit together along their first dimension: {str(error).splitlines()[0]}") from None
