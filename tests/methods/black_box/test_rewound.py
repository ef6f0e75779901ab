"""A live optimizer steps and is put back: same objects, same bits, whatever its step reaches."""

import collections
import random
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from memoryless.errors import BadInput
from memoryless.methods.black_box.rewound import rewound


def act(optimizer: SGD) -> None:
    with rewound(optimizer, [], torch.device("cpu")):
        optimizer.step()


class Reaching(SGD):
    """Its step is what it is made with."""

    def __init__(self, moves: Any):
        self.p = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.p.grad = torch.ones(2)
        super().__init__([self.p], lr=0.1, momentum=0.9)
        self.moves = moves

    def step(self, closure=None):
        super().step()
        self.moves(self)


class Slotted:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


def test_parameters_gradients_and_state_keep_objects_and_bits():
    optimizer = Reaching(lambda own: own.p.grad.zero_())
    optimizer.step()
    buffer, grad = optimizer.state[optimizer.p]["momentum_buffer"], optimizer.p.grad
    assert grad is not None
    alias, before = optimizer.p.detach(), [x.clone() for x in (optimizer.p, buffer, grad)]
    act(optimizer)
    assert optimizer.state[optimizer.p]["momentum_buffer"] is buffer
    assert optimizer.p.grad is grad
    assert optimizer.p.data_ptr() == alias.data_ptr()
    assert all(torch.equal(x, y) for x, y in zip((optimizer.p, buffer, grad), before, strict=True))


def test_new_entries_go():
    optimizer = Reaching(lambda own: own.param_groups[0].update(step=1) or setattr(own, "taken", 1))
    act(optimizer)
    assert not optimizer.state
    assert "step" not in optimizer.param_groups[0]
    assert not hasattr(optimizer, "taken")


def test_a_parameter_whose_storage_is_replaced():
    optimizer = Reaching(lambda own: setattr(own.p, "data", own.p.data.clone().float()))
    place = optimizer.p.data_ptr()
    act(optimizer)
    assert optimizer.p.data_ptr() == place
    assert optimizer.p.tolist() == [1.0, 2.0]


def test_containers_arrays_generators_slots_and_cells():
    queue, entries, names, array, slotted = collections.deque([1], maxlen=2), [1], {"a"}, np.zeros(2), Slotted()
    own, legacy, fresh, space = (
        torch.Generator(),
        np.random.RandomState(0),
        np.random.default_rng(0),
        types.SimpleNamespace(n=0),
    )
    python, count = random.Random(0), 0

    def moves(_: Any) -> None:
        nonlocal count
        count += 1
        queue.append(2)
        entries.extend([2, 3])
        names.add("b")
        array[0] += 1
        slotted.count += 1
        space.n += 1
        torch.rand(1, generator=own)
        legacy.rand()
        fresh.random()
        python.random()
        random.random()
        torch.rand(1)

    optimizer = Reaching(moves)

    def state() -> str:
        draws = [own.get_state().tolist(), legacy.get_state()[1].tolist(), fresh.bit_generator.state, python.getstate()]  # pyright: ignore
        shared = [random.getstate(), torch.get_rng_state().tolist()]
        return repr([count, queue, entries, names, array.tolist(), slotted.count, space.n, draws, shared])

    before = state()
    act(optimizer)
    assert state() == before
    moves(None)
    assert state() != before


shared_count = 0


def test_module_globals_and_class_attributes():
    def moves(own: Any) -> None:
        global shared_count
        shared_count += 1
        type(own).taken += 1

    cls: Any = type("Counting", (Reaching,), {"taken": 0})
    optimizer = cls(moves)
    act(optimizer)
    assert (shared_count, cls.taken) == (0, 0)


def test_what_a_failing_step_did_is_put_back():
    def moves(own: Any) -> None:
        raise RuntimeError("half way")

    optimizer = Reaching(moves)
    with pytest.raises(RuntimeError, match="half way"):
        act(optimizer)
    assert optimizer.p.tolist() == [1.0, 2.0]
    assert not optimizer.state


def test_a_running_generator_cannot_be_put_back():
    scales = iter(x for x in (1.0, 2.0, 3.0))
    optimizer = Reaching(lambda own: next(scales))
    with pytest.raises(BadInput, match="cannot be put back: scales; all else is as before"):
        act(optimizer)
    assert optimizer.p.tolist() == [1.0, 2.0]


def test_views_of_one_storage_and_nan():
    whole = torch.tensor([torch.nan, 1.0, 2.0])
    views = [whole[:2], whole[1:], whole[0].expand(3)]

    def moves(_: Any) -> None:
        whole.add_(1)

    optimizer: Any = Reaching(moves)
    optimizer.views = views
    act(optimizer)
    assert torch.equal(whole.nan_to_num(7.0), torch.tensor([7.0, 1.0, 2.0]))
