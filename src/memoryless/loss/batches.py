"""Batches: a source of them that can be asked again and again, and tensors in tuples, lists and dictionaries."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from memoryless.errors import BadInput, BadType
from memoryless.isolation import isolated

ADVICE = "pass a list or a DataLoader"
HELD = 2**28
"""Bytes of tensors up to which a stream is read once and held: a loader with workers starts them anew for every pass."""
PATIENCE = 1.0
"""Seconds for counting a stream that does not tell its length."""
COMPARED = 8
"""Batches at the head of a stream that are asked for twice."""


class Batches:
    """What a loss averages over; asking leaves every random number generator as it was.

    Args:
        source: re-iterable; a sequence is indexed, anything else (a DataLoader) is read once where its tensors fit `HELD`, and
            iterated anew for each use where they do not.
        device: where the model computes.
        draws: how often each batch counts, each time with other noise: index i + k * (batches) is draw k of batch i.

    Raises:
        BadType: it is no iterable, or can be iterated only once.
        BadInput: it is empty, or has no length and no end within `PATIENCE`.
    """

    def __init__(self, source: Iterable[Any], device: torch.device, draws: int = 1):
        if not isinstance(source, Iterable) or isinstance(source, Tensor):
            raise BadType(f"batches must be re-iterable, got {type(source).__name__}; {ADVICE}")
        if isinstance(source, Iterator):
            raise BadType(f"batches must be re-iterable, got a one-shot {type(source).__name__}; {ADVICE}")
        self.source, self.device, self._draws = source, device, draws
        holders = source, getattr(source, "sampler", None)
        candidates = (getattr(holder, "generator", None) for holder in holders)
        self._generators = [g for g in candidates if isinstance(g, torch.Generator)]
        self._samples: dict[int, int] = {}
        self._groups: list[tuple[Any, int]] = []
        try:
            self._count = len(source)  # pyright: ignore[reportArgumentType]
        except TypeError:
            self._count = self._counted()
        if self._count == 0:
            raise BadInput(f"batches is empty; expected at least one batch, {ADVICE}")

    def __len__(self) -> int:
        """Number of batches, every draw of each."""
        return self._count * self._draws

    @property
    def different(self) -> int:
        """Number of batches, each counted once."""
        return self._count

    def select(self, batch: int | None) -> Iterator[tuple[int, Any]]:
        """Index and data of one batch, or of all.

        Args:
            batch: its index; None for all.

        Raises:
            BadInput: there is no such index.
        """
        if batch is not None and not 0 <= batch < len(self):
            raise BadInput(f"batch must be in 0..{len(self) - 1}, got {batch}")
        held = self.source if isinstance(self.source, Sequence) else self._held
        if batch is not None:
            i = batch % self._count
            yield batch, self._noted(i, next(itertools.islice(self._stream(), i, None)) if held is None else held[i])
            return
        # A lazy sequence is asked for one batch at a time: none is held longer than it is used.
        for i, data in enumerate(self._stream() if held is None else (held[i] for i in range(self._count))):
            for draw in range(self._draws):
                yield i + draw * self._count, self._noted(i, data)

    def parts(self, batch: int | None) -> Iterator[tuple[int, Any, int]]:
        """What a mean goes over: index of a batch, data, and how many batches that is.

        Args:
            batch: its index; None for all, in groups where there are any.
        """
        if batch is None and self._groups:
            yield from ((0, data, count) for data, count in self._groups)
            return
        for i, data in self.select(batch):
            yield i, data, 1

    def average(self, batch: int | None, term: Callable[[Any, int], Tensor]) -> Tensor:
        """The mean of a vector over batches, or that of one of them.

        Args:
            batch: its index; None for all.
            term: (data, index) -> a vector of its own.
        """
        total, count = None, 0
        for i, data, many in self.parts(batch):
            value = term(data, i)
            if total is None:
                total = value if many == 1 else value.mul_(many)
            else:
                total.add_(value, alpha=many)
            count += many
        assert total is not None
        return total if count == 1 else total.div_(count)

    def group(self, count: int) -> None:
        """Let means over all take neighbouring batches as one; they are held, put together, from now on.

        Args:
            count: of batches in a group; 1 ends it.

        Raises:
            BadInput: they do not fit together.
        """
        self._groups = []
        if count > 1:
            found = [data for _, data in self.select(None)]
            groups = [found[low : low + count] for low in range(0, len(found), count)]
            self._groups = [(together(group), len(group)) for group in groups]

    @property
    def sizes(self) -> list[int] | None:
        """Samples in each batch: the length of its first tensor; None where a batch holds no tensor."""
        for _ in self.select(None):
            pass
        found = [self._samples.get(i % self._count) for i in range(len(self))]
        return None if None in found else [size for size in found if size is not None]

    @property
    def uneven(self) -> tuple[int, int] | None:
        """Least and most samples of the batches used so far, where they differ."""
        least, most = min(self._samples.values(), default=0), max(self._samples.values(), default=0)
        return (least, most) if least < most else None

    def require_replayable(self) -> None:
        """Raise unless a batch asked for again is the same batch.

        Raises:
            BadInput: one came out different; says what to do.
        """
        if (i := self._differs(None, None)) is not None:
            raise BadInput(
                f"batch {i} is another each time it is asked for (a shuffle or augmentation with a generator of its own): it "
                "cannot be replayed; pass a list of batches, or a DataLoader that draws from torch's generators"
            )

    def require_indexed(self) -> None:
        """Raise unless an index names the same batch whatever the random number generators have drawn before.

        Raises:
            BadInput: a shuffle or random augmentation; says what to do.
        """
        self.require_replayable()
        if (i := self._differs(1, 2)) is not None:
            raise BadInput(
                f"batch {i} depends on random numbers (shuffle, augmentation), so its index names other data in every epoch: "
                "keep the batches that the steps take in a list, ml.Loss(model, criterion, seen), and give indices into that"
            )

    def _differs(self, seed: int | None, other: int | None) -> int | None:
        """The first batch that is not the same at two seeds, None being the generators as they are; None if all are."""
        if isinstance(self.source, Sequence):
            compared = [[i] for i in sorted({0, self._count - 1})]
        else:
            compared = [list(range(min(COMPARED, self._count)))]
        differing = (i for indices in compared for i in self._differing(indices, seed, other))
        return next(differing, None)

    def _differing(self, indices: list[int], seed: int | None, other: int | None) -> list[int]:
        pairs = zip(indices, self._read(indices, seed), self._read(indices, other), strict=False)
        return [i for i, one, two in pairs if not all(map(_same, tensors(one), tensors(two)))]

    def _read(self, indices: list[int], seed: int | None) -> list[Any]:
        """Batches from the source itself: any of a sequence, the first of a stream."""
        with self._isolated(seed):
            if seed is not None:
                for generator in self._generators:
                    generator.manual_seed(seed)
            if isinstance(self.source, Sequence):
                return [self.source[i] for i in indices]
            return list(itertools.islice(iter(self.source), len(indices)))

    @cached_property
    def _held(self) -> list[Any] | None:
        """All of a stream, unless it is too long."""
        held, room = [], HELD
        for data in self._stream():
            held.append(data)
            room -= sum(x.nbytes for x in tensors(data))
            if room < 0 or not tensors(data):
                return None
        return held

    def _stream(self) -> Iterator[Any]:
        # A DataLoader draws its seeds from the global generator, at the first batch at the latest.
        with self._isolated():
            iterator = iter(self.source)
        for i in range(self._count):
            with self._isolated():
                try:
                    data = next(iterator)
                except StopIteration:
                    raise BadInput(f"batches ended after {i}, where their length says {self._count}") from None
            yield data

    def _counted(self) -> int:
        count, end = 0, time.monotonic() + PATIENCE
        with self._isolated():
            for _ in self.source:
                count += 1
                if time.monotonic() > end:
                    raise BadInput(
                        f"batches tell no length and go on after {count:,}: say how many, such as "
                        f"list(itertools.islice(batches, {min(count, 100)}))"
                    )
        return count

    def _noted(self, i: int, data: Any) -> Any:
        if i not in self._samples and (first := tensors(data)[:1]) and first[0].ndim:
            self._samples[i] = len(first[0])
        return data

    def _isolated(self, seed: int | None = None) -> Any:
        return isolated(self.device, seed, self._generators)


def _same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.equal(x, y)


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


def _may_point_at_rows(x: Tensor, count: int) -> bool:
    """Whether its integers may be numbers of rows, some of them beyond `count`: an index error on a GPU is the end of it."""
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        return False
    return count <= int(x.max()) < len(x)


def head(data: Any, share: float) -> Any | None:
    """The first samples of a batch; None where they are fewer than eight, or may speak of each other.

    Args:
        data: one batch.
        share: of its samples, in (0, 1].
    """
    found = tensors(data)
    lengths = {len(x) if x.ndim else 0 for x in found}
    if len(lengths) != 1 or min(lengths) < 8:
        return None
    count = max(2, math.ceil(share * min(lengths)))
    if any(_may_point_at_rows(x, count) for x in found):
        return None
    return map_tensors(lambda x: x[:count], data)


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
