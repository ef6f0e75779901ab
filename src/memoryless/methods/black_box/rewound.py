"""A live optimizer that acts and is put back: the same objects, the same bits.

What its step may reach is found by following references from it: state, param groups, attributes, hooks, what functions close
over, and from there on. Kept of each is what can change in place: the bytes of a storage (once, whatever tensors view it), the
storage that a tensor views, the entries of a container, the contents of a closure's cell.
"""

import collections
import functools
import itertools
import random
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, UntypedStorage
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from memoryless.errors import BadInput
from memoryless.isolation import isolated

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, range, slice)
LIBRARY = sys.stdlib_module_names | {"torch", "numpy"}


class Kept(NamedTuple):
    """One thing that a step may change.

    Attributes:
        name: the last key of the way to it.
        changed: whether it is another than it was.
        restore: puts it back.
    """

    name: str
    changed: Callable[[], bool]
    restore: Callable[[], object]


@contextmanager
def rewound(optimizer: Optimizer, tensors: Iterable[Tensor], device: torch.device) -> Iterator[Callable[[], set[str]]]:
    """Run a block in which a live optimizer may step; afterwards all is as before, whatever the block raises.

    Args:
        optimizer: live.
        tensors: put back too, such as the parameters of a loss.
        device: its random numbers are put back too.

    Yields:
        Puts everything back within the block, to step again, and names what it had to put back.

    Raises:
        BadInput: something cannot be put back; all that can is.
    """
    kept = reached([("optimizer", optimizer), *(("parameter", p) for p in tensors)])

    def rewind() -> set[str]:
        moved = [thing for thing in kept if thing.changed()]
        for thing in moved:
            thing.restore()
        # Looked at once more as a whole: one thing may have been put back over another.
        if left := sorted({thing.name for thing in kept if thing.changed()}):
            raise BadInput(
                f"{type(optimizer).__name__}.step() moves what cannot be put back: {', '.join(left)}; all else is as before"
            )
        return {thing.name for thing in moved}

    with torch.no_grad(), isolated(device):
        try:
            yield rewind
        finally:
            rewind()


def reached(roots: Iterable[tuple[str, Any]]) -> list[Kept]:
    """All that can change in place and is reached from some objects; modules, data sets and the standard library are left out.

    Args:
        roots: name and object.
    """
    queue, seen, kept = deque(roots), {}, []
    while queue:
        name, value = queue.popleft()
        if isinstance(value, PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value  # alive, so that no other object takes its id
        keep = next((keep for kind, keep in _KINDS if isinstance(value, kind)), _keep_object)
        for found in keep(name, value):
            if isinstance(found, Kept):
                kept.append(found)
            else:
                queue.append(found)
    return kept


Found = Iterator[Kept | tuple[str, Any]]
"""What is to keep of an object, and what it leads to."""


def _keep_tensor(name: str, tensor: Tensor) -> Found:
    if tensor.layout == torch.strided:
        alias, needs = tensor.detach(), tensor.requires_grad
        yield name, alias.untyped_storage()

        def moved() -> bool:
            return tensor.dtype != alias.dtype or not tensor.is_set_to(alias) or tensor.requires_grad != needs

        def put_back() -> None:
            if tensor.dtype != alias.dtype or not tensor.is_set_to(alias):
                tensor.data = alias
            if tensor.requires_grad != needs:
                tensor.requires_grad_(needs)

        yield Kept(name, moved, put_back)
    if tensor.is_leaf:
        grad = tensor.grad

        def give_back() -> None:
            tensor.grad = grad

        yield Kept(name, lambda: tensor.grad is not grad, give_back)
        yield name, grad
    yield name, vars(tensor)


def _keep_storage(name: str, storage: UntypedStorage) -> Found:
    if storage.device.type == "meta":
        return
    saved = storage.clone()

    def changed() -> bool:
        return storage.nbytes() != saved.nbytes() or not torch.equal(_bytes(storage), _bytes(saved))

    def restore() -> None:
        if storage.nbytes() != saved.nbytes():
            storage.resize_(saved.nbytes())
        storage.copy_(saved)

    yield Kept(name, changed, restore)


def _bytes(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _keep_dict(name: str, entries: dict[Any, Any]) -> Found:
    saved = list(entries.items())

    def changed() -> bool:
        return not _same(itertools.chain(*entries.items()), itertools.chain(*saved))

    def restore() -> None:
        entries.clear()
        entries.update(saved)

    yield Kept(name, changed, restore)
    for key, value in saved:
        yield name, key
        yield (key if isinstance(key, str) else name), value


def _keep_sequence(name: str, items: Any) -> Found:
    saved = list(items)

    def restore() -> None:
        items.clear()
        items.extend(saved)

    yield Kept(name, lambda: not _same(items, saved), restore)
    yield from ((name, item) for item in saved)


def _keep_set(name: str, items: set[Any]) -> Found:
    saved = set(items)

    def restore() -> None:
        items.clear()
        items.update(saved)

    yield Kept(name, lambda: items != saved, restore)
    yield from ((name, item) for item in saved)


def _keep_array(name: str, array: np.ndarray) -> Found:
    saved = array.copy()
    yield Kept(name, lambda: array.tobytes() != saved.tobytes(), lambda: np.copyto(array, saved))


def _keep_tuple(name: str, items: Iterable[Any]) -> Found:
    yield from ((name, item) for item in items)


def _keep_function(name: str, function: types.FunctionType) -> Found:
    yield from zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    yield from ((name, part) for part in (function.__defaults__, function.__kwdefaults__, vars(function)))
    if (function.__module__ or "").split(".")[0] not in LIBRARY:
        space = function.__globals__
        for key in sorted(set(function.__code__.co_names) & set(space)):
            yield from _keep_slot(key, lambda key=key: space.get(key), functools.partial(space.__setitem__, key))


def _keep_cell(name: str, cell: types.CellType) -> Found:
    def read() -> Any:
        try:
            return cell.cell_contents
        except ValueError:  # empty
            return None

    yield from _keep_slot(name, read, functools.partial(setattr, cell, "cell_contents"))


def _keep_slot(name: str, read: Callable[[], Any], write: Callable[[Any], None]) -> Found:
    saved = read()
    yield Kept(name, lambda: read() is not saved, lambda: write(saved))
    yield name, saved


def _keep_state(get: Callable[[Any], Any], put: Callable[[Any, Any], Any]) -> Callable[[str, Any], Found]:
    """For what has one state that can be read and set, such as a generator of random numbers."""

    def keep(name: str, value: Any) -> Found:
        saved = get(value)
        yield Kept(name, lambda: not equal(get(value), saved), lambda: put(value, saved))

    return keep


def _keep_coroutine(name: str, value: types.GeneratorType) -> Found:
    def place() -> int:
        return -2 if value.gi_frame is None else value.gi_frame.f_lasti

    saved = place()
    yield Kept(name, lambda: place() != saved, lambda: None)


def _keep_object(name: str, value: Any) -> Found:
    """Attributes and slots, and what the class of the user's own keeps for all its objects."""
    if isinstance(value, itertools.count):
        saved = repr(value)
        yield Kept(name, lambda: repr(value) != saved, lambda: None)
    mro = [cls for cls in type(value).__mro__ if cls.__module__.split(".")[0] not in LIBRARY]
    if not mro and type(value).__module__.split(".")[0] not in ("torch", "types"):
        return
    if hasattr(value, "__dict__"):
        yield name, vars(value)
    for cls in mro:
        for key, shared in list(vars(cls).items()):
            if isinstance(shared, types.MemberDescriptorType) and hasattr(value, key):
                read = functools.partial(getattr, value, key)
                yield from _keep_slot(key, read, functools.partial(object.__setattr__, value, key))
            elif not key.startswith("__") and isinstance(shared, (int, float, Tensor, dict, list, deque, set)):
                yield from _keep_slot(key, lambda cls=cls, key=key: vars(cls).get(key), functools.partial(setattr, cls, key))


def equal(one: Any, other: Any) -> bool:
    """Whether two values are of the same kind and bit for bit the same; objects only if they are one."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return type(one) is type(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and np.array_equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple, deque)) and type(one) is type(other):
        return len(one) == len(other) and all(map(equal, one, other))
    return one is other or (isinstance(one, (*PLAIN, set, frozenset)) and one == other)


_KINDS: list[tuple[Any, Callable[[str, Any], Found]]] = [
    ((type, types.ModuleType, types.BuiltinFunctionType, Dataset, DataLoader), lambda name, value: iter(())),
    (Tensor, _keep_tensor),
    (UntypedStorage, _keep_storage),
    (dict, _keep_dict),
    ((list, deque, bytearray), _keep_sequence),
    (set, _keep_set),
    ((tuple, frozenset), _keep_tuple),
    (collections.UserDict, lambda name, value: iter([(name, value.data)])),
    (np.ndarray, _keep_array),
    (types.FunctionType, _keep_function),
    (types.MethodType, lambda name, value: iter([(name, value.__self__), (name, value.__func__)])),
    (functools.partial, lambda name, value: iter([(name, value.func), (name, value.args), (name, value.keywords)])),
    (types.CellType, _keep_cell),
    (weakref.ref, lambda name, value: iter([(name, value())])),
    (types.GeneratorType, _keep_coroutine),
    (torch.Generator, _keep_state(torch.Generator.get_state, torch.Generator.set_state)),
    (random.Random, _keep_state(random.Random.getstate, random.Random.setstate)),
    (np.random.RandomState, _keep_state(np.random.RandomState.get_state, np.random.RandomState.set_state)),
    (np.random.Generator, _keep_state(lambda g: g.bit_generator.state, lambda g, s: setattr(g.bit_generator, "state", s))),
]


def _same(these: Iterable[Any], those: Iterable[Any]) -> bool:
    """The very same objects, in the same order."""
    end = object()
    return all(x is y for x, y in itertools.zip_longest(these, those, fillvalue=end))
