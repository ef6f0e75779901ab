"""The gradient of a step's own batch at other points: the previous one, and the one to which the batch itself pushes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memoryless.errors import BadInput
from memoryless.flat import Layout, flat, joined
from memoryless.isolation import isolated
from memoryless.live.chunks import Chunk
from memoryless.live.monitoring.ranks import Ranks, inside
from memoryless.live.monitoring.replay import Criterion, Recorder, Replay, Step, Transform, held, require_same
from memoryless.live.monitoring.shards import are_sharded
from memoryless.live.transport import Memory
from memoryless.loss.loss import Loss

MODE = "; noise that is drawn elsewhere is switched off by model.eval(), or fixed by seeding it where the criterion begins"


class Again:
    """Takes the gradients of a step again.

    Args:
        model: trained.
        criterion: (model, batch) -> mean loss.
        gradient: what the loop does to a step's gradient before the optimizer gets it.
        parameters: of the optimizer.

    Attributes:
        others: how many trainable parameters of the model are not among those.

    Raises:
        BadType: a parameter of the model is of a type that is not taken.
        BadInput: the optimizer holds parameters that are not the model's.
    """

    def __init__(self, model: nn.Module, criterion: Criterion, gradient: Transform | None, parameters: Sequence[Tensor]):
        model = inside(model)
        if are_sharded(model):
            raise BadInput("the model's parameters are sharded (fully_shard): a dial along mini-batches takes whole ones")
        Loss(model, criterion, [None])  # refuses what it cannot take, in its own words
        self._layout = Layout({name: p for name, p in model.named_parameters() if p.requires_grad})
        where = self._layout.used
        if missing := [p for p in parameters if id(p) not in where]:
            raise BadInput(
                f"{len(missing)} of the optimizer's {len(parameters)} parameters are no trainable ones of the model (a copy, "
                f"on {missing[0].device}?); build both from one model"
            )
        self.others = len(where.keys() - {id(p) for p in parameters})
        self._model, self._recorder = model, Recorder(model, self._layout.device, self._fresh)
        self._recorder.wanted = True
        self._replay = Replay(model, criterion, self._recorder, gradient, Ranks(), self._layout)
        self.passes, self._number = 0, 0
        self._step, self._buffers = Step(), dict[str, Tensor]()
        self.there: Tensor | None = None

    def take(self, batch: Any, memories: Sequence[Memory], known: Sequence[Memory], number: int) -> Tensor | None:
        """A step is about to be taken: its gradient at the previous point, of the whole model.

        Before the first step nothing has moved yet, and it must be the step's own: whether a gradient can be had again shows.

        Args:
            batch: of the step.
            memories: of the tensors that step.
            known: of all tensors, which know where these were.
            number: of the dial's step.

        Returns:
            Shape (d,), d of the whole model; None before the first step.

        Raises:
            BadInput: it cannot be had again; says why.
        """
        self._number = number
        # What one process cannot give ends the dial in all of them: their copies stay copies.
        batches, seen = self._replay.ranks.together(lambda: held(batch)), self._recorder.taken()
        # Passes of a step that was skipped (by a scaler) may be left over: the last ones are this step's.
        self.passes = self.passes or max(1, len(seen) // len(batches))
        self._step = Step(seen[-self.passes * len(batches) :])
        self._step.hold(batches)
        self._buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        moved = [memory for memory in known if memory.before is not None and memory.at == number - 1]
        if not moved:
            self.there = None
            own = [p for memory in memories for p in memory.tensors if p.grad is not None]
            again = self.at(self._layout.theta())
            require_same(
                joined(again[self._layout.used[id(p)]] for p in own), flat(p.grad for p in own if p.grad is not None), MODE
            )
            return None
        self.there = self._at(moved, [memory.before for memory in moved])
        return self.at(self.there)

    def _fresh(self) -> None:
        """A forward pass begins: where no gradient is accumulated, those before belong to no step."""
        if all(p.grad is None for p in self._layout.tensors):
            self._recorder.taken()

    def close(self) -> None:
        """Stop looking at the model."""
        self._recorder.remove()
        self._recorder.wanted = False
        self._recorder.taken()

    def skip(self) -> None:
        """A step that nothing is carried along."""
        self._recorder.taken()

    def at(self, theta: Tensor) -> Tensor:
        """The step's gradient at some point, as the optimizer would have got it there."""
        with isolated(theta.device), torch.enable_grad():
            return self._replay.transformed(self._replay.raw(self._number, self._step, theta, self._buffers))

    def pushed(self, memories: Sequence[Memory], shifts: Sequence[Tensor | None]) -> Tensor:
        """The step's gradient where the tensors are shifted.

        Args:
            memories: of those.
            shifts: of each; None for none.
        """
        shifted = [
            memory.before if shift is None or memory.before is None else memory.before + shift
            for memory, shift in zip(memories, shifts, strict=True)
        ]
        return self.at(self._at(memories, shifted))

    def of(self, vector: Tensor, chunk: Chunk) -> Tensor:
        """The part of some coordinates.

        Args:
            vector: shape (d,), d of the whole model.
            chunk: the coordinates.
        """
        return chunk.of(lambda p: vector[self._layout.used[id(p)]])

    def _at(self, memories: Sequence[Memory], values: Sequence[Tensor | None]) -> Tensor:
        """theta with other values of some tensors, to be read only."""
        if len(memories) == 1 and values[0] is not None and [*map(id, memories[0].tensors)] == [*map(id, self._layout.tensors)]:
            return values[0]
        theta = self._layout.theta()
        for memory, x in zip(memories, values, strict=True):
            parts = () if x is None else x.split([p.numel() for p in memory.tensors])
            for p, part in zip(memory.tensors, parts, strict=x is not None):
                theta[self._layout.used[id(p)]] = part
        return theta
