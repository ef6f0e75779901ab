"""Steps of a run taken again: their batches by reference, with the random numbers and the precision that they were seen with.

What stands between the batch and the optimizer is a function of theta too: the micro-batches of a step are averaged, as the
loop does, and `gradient` does what else it does (clipping by norm, say).
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from memoryless.errors import BadInput
from memoryless.flat import Layout, dot, norm
from memoryless.isolation import Standing, restore, standing
from memoryless.live.monitoring.ranks import Ranks
from memoryless.live.monitoring.shards import whole
from memoryless.loss.batches import tensors
from memoryless.loss.loss import Loss
from memoryless.loss.plainly import is_plain

Transform = Callable[[Tensor], Tensor]
Criterion = Callable[[nn.Module, Any], Any]


SAME = 0.02
"""Relative difference up to which a replayed gradient counts as the one that the optimizer got."""


@dataclass
class Seen:
    """One forward pass: where the generators stood at its start, and the type that autocast computed in."""

    generators: Standing
    autocast: torch.dtype | None


@dataclass
class Step:
    """What a step was made of.

    Attributes:
        passes: forward passes of the model.
        batches: of its micro-batches.
        versions: how often each batch's tensors had been written to.
        gradient: that the optimizer got, on the sampled coordinates.
        theta: likewise; None where nothing asks for it.
    """

    passes: list[Seen] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)
    versions: list[list[int]] = field(default_factory=list)
    gradient: Tensor | None = None
    theta: Tensor | None = None

    def hold(self, batches: Sequence[Any]) -> None:
        """Keep the batches, by reference."""
        self.batches = list(batches)
        self.versions = [[x._version for x in found(batch)] for batch in batches]


def found(batch: Any) -> list[Tensor]:
    """The tensors of a batch; none of one whose structure is not known."""
    return tensors(batch) if isinstance(batch, (Tensor, Mapping, list, tuple)) else []


def held(batch: Any) -> list[Any]:
    """The micro-batches of a step: a list of batches is one of these, a list of tensors is a batch.

    Args:
        batch: as given to `Monitor.step`.

    Raises:
        BadInput: it can be read only once.

    Example:
        >>> x, y = torch.zeros(2), torch.ones(2)
        >>> len(held([x, y])), len(held([(x, y), (x, y), (x, y)]))
        (1, 3)
    """
    if isinstance(batch, Iterator):
        raise BadInput(f"a batch must be there to be taken again, got a one-shot {type(batch).__name__}; give a tuple or list")
    several = type(batch) is list and batch and all(isinstance(each, (tuple, list, Mapping)) for each in batch)
    return batch if several else [batch]


class _Begins:
    """A hook that does not hold its recorder, and is none in a copy of the model or a file."""

    def __init__(self, recorder: "Recorder | None"):
        self._recorder = None if recorder is None else weakref.ref(recorder)

    def __call__(self, *_: Any) -> None:
        recorder = None if self._recorder is None else self._recorder()
        if recorder is not None:
            recorder.begin()

    def __reduce__(self) -> tuple[type, tuple[None]]:
        return _Begins, (None,)


class Recorder:
    """Looks at the model's forward passes as they happen, and puts the generators back when one is taken again.

    Args:
        model: trained.
        device: where it computes.
        fresh: called at each pass.
    """

    def __init__(self, model: nn.Module, device: torch.device, fresh: Callable[[], object]):
        self.device, self.wanted, self._fresh = device, False, fresh
        self.passes: list[Seen] = []
        self.buffers: dict[str, Tensor] | None = None
        self.buffers_wanted = False
        self._again: Iterator[Seen] | None = None
        self._model = model
        self._hook = model.register_forward_pre_hook(_Begins(self))

    def begin(self) -> None:
        """A forward pass begins here."""
        if self._again is not None:
            if (seen := next(self._again, None)) is not None:
                restore(seen.generators, self.device)
            return
        if not torch.is_grad_enabled() or is_plain():
            return
        self._fresh()
        if not self.wanted:
            return
        kind = self.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self.passes.append(Seen(standing(self.device), autocast))
        if self.buffers_wanted and self.buffers is None:
            self.buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}

    def taken(self) -> list[Seen]:
        """The passes since the last call."""
        passes, self.passes = self.passes, []
        return passes

    @contextmanager
    def again(self, passes: Sequence[Seen]) -> Iterator[None]:
        """A context in which the next forward passes draw what these drew."""
        self._again = iter(passes)
        try:
            yield
        finally:
            self._again = None

    def remove(self) -> None:
        """Stop looking."""
        self._hook.remove()


class Replay:
    """Gradients of past steps at another theta.

    Args:
        model: trained; left as it is.
        criterion: (model, batch) -> mean loss.
        recorder: of its forward passes.
        gradient: what the loop does to a step's gradient, shape (d,), before the optimizer gets it.
        ranks: the processes, of whose gradients the step's is the mean.
        layout: of theta.
        others: coordinates that the optimizer does not hold; its gradient is 0 there.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        recorder: Recorder,
        gradient: Transform | None,
        ranks: Ranks,
        layout: Layout,
        others: Sequence[slice] = (),
    ):
        self._model, self._criterion, self._recorder, self._transform = model, criterion, recorder, gradient
        self.ranks, self._layout, self._others = ranks, layout, others

    def loss(self, batches: Sequence[Any], **options: Any) -> Loss:
        """Of batches that are held."""
        return self.ranks.loss(self._model, self._criterion, list(batches), **options)

    def raw(self, s: int, step: Step | None, theta: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """The mean gradient of a step's micro-batches at theta, shape (d,), before what the loop does to it.

        Args:
            s: number of the step, as watched.
            step: what is kept of it, if anything is.
            theta: shape (d,).
            buffers: of the model that it has there.

        Raises:
            BadInput: its batch is not known, or was written to since.
        """
        if not self.ranks.sharded:
            return self.ranks.mean(lambda: self.own(s, step, theta, buffers), theta)
        self.ranks.together(lambda: self._require_there(s, step))
        if len(set(counts := self.ranks.told(0 if step is None else len(step.batches)))) > 1:
            raise BadInput(f"the processes took different numbers of micro-batches at step {s}: {counts}")
        return self.own(s, step, theta, buffers)  # the wrapped module averages

    def own(self, s: int, step: Step | None, theta: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """This process's part of `raw`."""
        total, count = None, 0
        for gradient in self.each(s, step, theta, buffers):
            total, count = gradient if total is None else total.add_(gradient), count + 1
        assert total is not None
        return total.div_(count)

    def each(self, s: int, step: Step | None, theta: Tensor, buffers: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """This process's part of `raw`, micro-batch by micro-batch."""
        self._require_there(s, step)
        assert step is not None
        loss = self.loss(step.batches)
        each = max(1, len(step.passes) // len(step.batches))
        for i in range(len(step.batches)):
            passes = step.passes[i * each : (i + 1) * each]
            dtype = next((seen.autocast for seen in passes if seen.autocast is not None), None)
            kind = theta.device.type
            with loss.before(buffers), self._recorder.again(passes), torch.autocast(kind, dtype, enabled=dtype is not None):
                gradient = loss.gradient(theta, i)
            yield gradient

    @staticmethod
    def _require_there(s: int, step: Step | None) -> None:
        if step is None or not step.batches:
            raise BadInput(f"step {s} was taken without monitor.step(batch) after it, so it cannot be replayed")
        for batch, versions in zip(step.batches, step.versions, strict=True):
            if [x._version for x in found(batch)] != versions:
                raise BadInput(
                    "a batch was written to after its step (a loader that reuses its buffers?), so it cannot be replayed; give "
                    "monitor.step a copy"
                )

    @property
    def parameters(self) -> list[Tensor]:
        """Whose gradients are taken."""
        return list(self._layout.parameters.values())

    @property
    def transforms(self) -> bool:
        """Whether the loop does something to a gradient that depends on its size, for all that is known."""
        return self._transform is not None

    def transformed(self, gradient: Tensor) -> Tensor:
        """What the optimizer gets of a gradient, shape (d,): what the loop makes of it, where the optimizer holds theta."""
        if self._transform is None and not self._others:
            return gradient
        made = gradient.clone()
        if self._transform is not None:
            made = whole(self._layout, made, self._transform) if self.ranks.sharded else self._transform(made)
        if not isinstance(made, Tensor) or made.shape != gradient.shape:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise BadInput(f"gradient= must map a gradient of shape {tuple(gradient.shape)} to one of that shape, got {got}")
        made = made.detach()
        if self._others:
            made = made.clone()
            for part in self._others:
                made[part] = 0
        return made


def require_same(again: Tensor, gradient: Tensor, otherwise: str = "") -> float:
    """How far a step's own gradient, replayed, is from the one that the optimizer got, relative.

    Args:
        again: replayed, shape (d,).
        gradient: that it got, likewise.
        otherwise: what helps where numbers are drawn outside the model's forward pass.

    Raises:
        BadInput: further than `SAME`; says why that may be.
    """
    size = float(norm(gradient))
    differs = float(norm(again - gradient)) / size if size else 0.0
    if differs > SAME:
        a = float(dot(again, gradient)) / (float(dot(again, again)) or 1.0)
        if float(norm(a * again - gradient)) <= SAME * size:
            why = (
                f"it is {a:.3g} times as long: the loop scales or clips it (or sums micro-batches); give gradient=, what "
                "it does to the gradient as one vector"
            )
        else:
            why = (
                "criterion(model, batch) must be the loss that is trained, the batch the one of the step, and random "
                f"numbers be drawn in the model's forward pass{otherwise}"
            )
        raise BadInput(f"the step's gradient cannot be had again (it differs by {differs:.0%}): {why}")
    return differs
