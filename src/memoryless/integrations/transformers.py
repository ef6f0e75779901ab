"""A callback for Hugging Face's Trainer: `Trainer(..., callbacks=[MemoryCallback(log="run.jsonl")])`.

A callback sees no batch: those are the arguments of the model's forward passes in training. Their loss is the output's: a mean
over the micro-batch, which the Trainer divides by the number of micro-batches in the step, or a sum over it divided by the
items in the whole step (`num_items_in_batch`), which it leaves as it is.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from memoryless.errors import BadInput
from memoryless.live.monitoring.monitor import Monitor
from memoryless.methods.wrapped import unwrapped

logger = logging.getLogger("memoryless")


def clip_by_norm(most: float | None) -> Any:
    """What torch's `clip_grad_norm_` does to a gradient of shape (d,); None where nothing is clipped.

    Args:
        most: norm that it may have; None or 0 for any.
    """
    if not most:
        return None

    def clipped(gradient: Tensor) -> Tensor:
        return gradient * (most / (gradient.norm() + 1e-6)).clamp(max=1.0)

    return clipped


def criterion(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss of one micro-batch as it counts in the mean over its step.

    Args:
        model: with a loss in its output.
        batch: the arguments of its forward pass, and how often it counts.
    """
    output = model(*batch["args"], **batch["kwargs"])
    loss = output["loss"] if isinstance(output, Mapping) else output[0]
    return loss * batch["times"]


class MemoryCallback(TrainerCallback):
    """Monitors what the optimizer's memory does in a Trainer's run.

    The loss is the model's own; with a `compute_loss` or label smoothing of the Trainer's the replayed gradient is another,
    which the monitor says. Clipping is that of the Trainer's `max_grad_norm`.

    Args:
        **options: of `Monitor`, such as log, every, budget, shadows.

    Attributes:
        monitor: of the run, once it has begun; None where it could not be watched.
    """

    def __init__(self, **options: Any):
        self.options, self.monitor = options, None
        self.monitor: Monitor | None
        self._passes: list[tuple[tuple, dict[str, Any]]] = []
        self._hook: Any = None
        self._watching = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any) -> None:
        """Begin to watch.

        Args:
            args: of the training.
            state: ignored.
            control: ignored.
            model: trained.
            optimizer: its; None where the Trainer does not have one yet.
            **_: ignored.
        """
        self.on_train_end()
        try:
            if not isinstance(optimizer, Optimizer):
                raise BadInput(f"the Trainer gives its callbacks no torch optimizer (got {type(optimizer).__name__})")
            options = {"gradient": clip_by_norm(getattr(args, "max_grad_norm", None))} | self.options
            self.monitor = Monitor(model, criterion, unwrapped(optimizer), **options).__enter__()
        except BadInput as error:
            self.monitor = None
            logger.warning("this run is not monitored: %s", error)
            return
        self._hook = model.register_forward_pre_hook(self._pass, with_kwargs=True)
        self._watching = True

    def _pass(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._watching and module.training and torch.is_grad_enabled():
            self._passes.append((args, dict(kwargs)))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step was taken, of all the passes since the last one.

        Args:
            args: ignored.
            state: ignored.
            control: ignored.
            **_: ignored.
        """
        passes, self._passes = self._passes, []
        if self.monitor is None or not passes:
            return
        batches = [
            {"args": given, "kwargs": named, "times": len(passes) if named.get("num_items_in_batch") is not None else 1}
            for given, named in passes
        ]
        self._watching = False  # what the monitor asks of the model is none of the run's
        try:
            self.monitor.step(*batches)
        finally:
            self._watching = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop watching.

        Args:
            *_: ignored.
            **__: ignored.
        """
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self.monitor is not None:
            self.monitor.close()
        self._passes.clear()
