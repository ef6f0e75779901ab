"""Batches: a source of them that can be asked again and again, and tensors in tuples, lists and dictionaries."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memoryless.errors import BadInput, BadType
from memoryless.isolation import isolated

ADVICE = "pass a list or a DataLoader"


class Batches:
    """What a loss averages over, streamed; asking leaves every random number generator as it was.

    Args:
        source: re-iterable; a sequence is indexed, anything else (a DataLoader) is iterated anew for each use.
        device: where the model computes.

    Raises:
        BadType: it is no iterable, or can be iterated only once.
        BadInput: it is empty.
    """

    def __init__(self, source: Iterable[Any], device: torch.device):
        if not isinstance(source, Iterable) or isinstance(source, Tensor):
            raise BadType(f"batches must be re-iterable, got {type(source).__name__}; {ADVICE}")
        self.source, self.device = source, device
        holders = source, getattr(source, "sampler", None)
        candidates = (getattr(holder, "generator", None) for holder in holders)
        self._generators = [g for g in candidates if isinstance(g, torch.Generator)]
        with self._isolated():
            if iter(source) is source:
                raise BadType(f"batches must be re-iterable, got a one-shot {type(source).__name__}; {ADVICE}")
            self._count = len(source) if isinstance(source, Sequence) else sum(1 for _ in source)
        if self._count == 0:
            raise BadInput(f"batches is empty; expected at least one batch, {ADVICE}")

    def __len__(self) -> int:
        """Number of batches."""
        return self._count

    def select(self, batch: int | None) -> Iterator[tuple[int, Any]]:
        """Index and data of one batch, or of all.

        Args:
            batch: its index; None for all.

        Raises:
            BadInput: there is no such index.
        """
        if batch is None and isinstance(self.source, (list, tuple)):
            yield from enumerate(self.source)
        elif batch is None:
            # A DataLoader draws its seeds from the global generator, at the first batch at the latest.
            with self._isolated():
                iterator = iter(self.source)
            for i in range(len(self)):
                with self._isolated():
                    data = next(iterator)
                yield i, data
        elif not 0 <= batch < len(self):
            raise BadInput(f"batch must be in 0..{len(self) - 1}, got {batch}")
        elif isinstance(self.source, Sequence):
            yield batch, self.source[batch]
        else:
            with self._isolated():
                data = next(itertools.islice(iter(self.source), batch, None))
            yield batch, data

    @property
    def sizes(self) -> list[int] | None:
        """Samples in each batch: the length of its first tensor; None where a batch holds no tensor."""
        firsts = [tensors(data)[:1] for _, data in self.select(None)]
        return [len(first) for (first,) in firsts] if all(first and first[0].ndim for first in firsts) else None

    def require_replayable(self) -> None:
        """Raise unless a batch asked for again is the same batch.

        Raises:
            BadInput: the first or the last batch came out different; says what to do.
        """
        for i in (0, len(self) - 1):
            (_, one), (_, other) = (next(self.select(i)) for _ in range(2))
            if not all(torch.equal(x, y) for x, y in zip(tensors(one), tensors(other), strict=True)):
                raise BadInput(
                    f"batch {i} is another each time it is asked for: such a sampler cannot be replayed; pass a list of "
                    "batches, or a DataLoader whose sampler draws from torch's generators"
                )

    def _isolated(self) -> Any:
        return isolated(self.device, generators=self._generators)


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
