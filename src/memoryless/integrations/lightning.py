"""A callback for Lightning's Trainer: `Trainer(callbacks=[MemoryCallback(log="run.jsonl")])`.

Lightning takes the forward and backward pass, and clips, inside of the optimizer's step, in a closure: the monitor's hooks look
after it. A replay is the module's `training_step` with what it logs left out, and its metrics put back.
"""

import importlib.util
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from memoryless.errors import BadInput
from memoryless.live.monitoring.monitor import Monitor


def _base() -> Any:
    """Lightning's Callback, by either name of the package; object without it, so that this module can be looked at."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        if importlib.util.find_spec(package.partition(".")[0]):
            return importlib.import_module(package).Callback
    return object


Callback = _base()

logger = logging.getLogger("memoryless")


class MemoryCallback(Callback):
    """Monitors what the optimizer's memory does in a Lightning run with automatic optimization.

    Args:
        **options: of `Monitor`, such as log, every, budget, shadows.

    Attributes:
        monitor: of the run, once it has begun; None where it could not be watched.

    Raises:
        BadInput: Lightning is not installed.
    """

    def __init__(self, **options: Any):
        if Callback is object:
            raise BadInput("this callback is for Lightning, which is not installed: pip install pytorch-lightning")
        self.options = options
        self.monitor: Monitor | None = None
        self._window: list[dict[str, Any]] = []
        self._trainer: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch.

        Args:
            trainer: whose optimizer and clipping are taken.
            pl_module: trained.
        """
        self._trainer = trainer
        try:
            if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
                raise BadInput("it has manual optimization or several optimizers; use ml.Monitor in its training_step")
            options = {"gradient": _clipping(trainer)} | self.options
            self.monitor = Monitor(pl_module, self._criterion, trainer.optimizers[0], **options).__enter__()
        except BadInput as error:
            self.monitor = None
            logger.warning("this run is not monitored: %s", error)

    def _criterion(self, module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        assert self.monitor is not None
        self.monitor.begin()
        step: Any = module.training_step
        given = [batch["batch"], batch["index"]][: len(inspect.signature(step).parameters)]
        with _metrics_kept(module), self._trainer.precision_plugin.train_step_context():
            # Taken back with whatever else a module holds when the loss has been evaluated.
            vars(module).update(log=_nothing, log_dict=_nothing)
            output = step(*given)
        loss = output["loss"] if isinstance(output, Mapping) else output
        return loss * batch["times"][0]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A forward pass is about to begin.

        Args:
            trainer: ignored.
            pl_module: ignored.
            batch: on the device.
            batch_idx: its number in the epoch.
        """
        if self.monitor is not None:
            self.monitor.begin()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A micro-batch was taken, and with the last of a window a step.

        Args:
            trainer: says how many micro-batches a window has; a last one with fewer is divided by as many.
            pl_module: ignored.
            outputs: ignored.
            batch: of the step.
            batch_idx: its number in the epoch.
        """
        if self.monitor is None:
            return
        times = self._window[0]["times"] if self._window else [0.0]
        self._window.append({"batch": batch, "index": batch_idx, "times": times})
        times[0] = len(self._window) / trainer.accumulate_grad_batches
        if self.monitor.stepped:
            window, self._window = self._window, []
            self.monitor.step(*window)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop watching.

        Args:
            trainer: ignored.
            pl_module: ignored.
        """
        if self.monitor is not None:
            self.monitor.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop watching a run that ends so.

        Args:
            trainer: ignored.
            pl_module: ignored.
            exception: ignored.
        """
        self.on_train_end(trainer, pl_module)


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def _clipping(trainer: Any) -> Any:
    """What the Trainer does to a gradient of shape (d,)."""
    most = trainer.gradient_clip_val
    if not most:
        return None
    if str(trainer.gradient_clip_algorithm or "norm").endswith("value"):
        return lambda gradient: gradient.clamp(-most, most)
    return lambda gradient: gradient * (most / (gradient.norm() + 1e-6)).clamp(max=1.0)


@contextmanager
def _metrics_kept(module: nn.Module) -> Iterator[None]:
    """A context after which torchmetrics' metrics are what they were: they add to their tensors in place."""
    metrics: list[Any] = [m for m in module.modules() if hasattr(m, "_copy_state_dict")]
    before = [(m._copy_state_dict(), m._update_count, m._computed) for m in metrics]
    try:
        yield
    finally:
        for metric, (state, count, computed) in zip(metrics, before, strict=True):
            for name, value in state.items():
                setattr(metric, name, value)
            metric._update_count, metric._computed = count, computed
