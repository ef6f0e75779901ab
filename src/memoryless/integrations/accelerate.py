"""A monitor for a loop with an Accelerator: `watching = monitor(accelerator, model, criterion, optimizer, log="run.jsonl")`.

for batch in loader:
    with accelerator.accumulate(model):
        accelerator.backward(criterion(model, batch))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    watching.step(batch)                            # each micro-batch: the Accelerator knows when a step is one
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.live.monitoring.monitor import Monitor
from memoryless.methods.wrapped import unwrapped


def monitor(
    accelerator: Any,
    model: nn.Module,
    criterion: Callable[[nn.Module, Any], Tensor],
    optimizer: Optimizer,
    **options: Any,
) -> Monitor:
    """A monitor of the model and the optimizer inside an Accelerator's wrappers.

    Args:
        accelerator: the Accelerator that prepared them; its mixed precision is part of the model's forward pass.
        model: prepared.
        criterion: `criterion(model, batch)`, the mean loss of a micro-batch, given to `accelerator.backward`.
        optimizer: prepared.
        **options: of `Monitor`, such as log, every, budget, shadows, and gradient for what clips.
    """
    return Monitor(accelerator.unwrap_model(model), criterion, unwrapped(optimizer), **options)
