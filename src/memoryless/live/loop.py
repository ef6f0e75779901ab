"""The step loop, once: a torch optimizer on the loss's own parameters, looked at before each step.

The run is bit for bit the user's own, the one that would have happened without the looks: the gradient of a step comes from
the model's own forward and backward pass, which moves buffers (BatchNorm, spectral norm) and generators (dropout) and leaves
unused parameters without a gradient. A look sees L with the buffers that this pass found.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from memoryless.errors import Diverged, NotFinite
from memoryless.isolation import Standing, standing
from memoryless.live.followed import Followed
from memoryless.loss.loss import Loss
from memoryless.methods.past import Through, changed
from memoryless.methods.wrapped import given
from memoryless.progress import OnStep, silent


class Sight(NamedTuple):
    """What is seen before a step, L being that of the buffers before its forward pass.

    Attributes:
        taken: number of steps taken so far, n.
        theta: where they led, shape (d,).
        gradient: that the step will get, as the loop changes it, shape (d,).
        noise: where the generators stood before its forward pass, for a loss with noise.
    """

    taken: int
    theta: Tensor
    gradient: Tensor
    noise: Standing | None = None


def run(
    optimizer: Optimizer,
    loss: Loss,
    steps: int,
    look: Callable[[Sight], object] = lambda sight: None,
    batches: Sequence[int] | NDArray[np.int64] | None = None,
    on_step: OnStep = silent,
    followed: Followed | None = None,
    through: Through | None = None,
) -> None:
    """Take steps; look before each, and after the last where the batch of a further step is known (full batch).

    Args:
        optimizer: live, over the loss's parameters.
        loss: gives the gradients.
        steps: how many to take.
        look: may ask anything of the loss, and changes nothing.
        batches: index of the batch of each step; None is full batch.
        on_step: told the steps taken and their number.
        followed: a schedule, stepped after each step.
        through: what the loop does to a gradient before the optimizer sees it.

    Raises:
        Diverged: loss or gradient became infinite or NaN; says after how many steps.
    """
    for taken in range(steps + 1 if batches is None else steps):
        theta, batch = loss.theta, None if batches is None else int(batches[taken])
        try:
            if taken == steps:  # only looked at: the model's own pass would move it on
                look(Sight(taken, theta, changed(loss.gradient(theta, batch), through)))
            else:
                buffers, noise = loss.buffers(), None if loss.noise is None else standing(loss.device)
                gradient = loss.backward(batch)
                if through is not None:
                    gradient = changed(gradient, through)
                    _put(loss, gradient)
                with loss.before(buffers):
                    look(Sight(taken, theta, gradient, noise))
                optimizer.step(**given(optimizer, (data for _, data in loss.batches.select(batch))))
                if followed is not None:
                    followed.step()
        except NotFinite as error:
            raise Diverged(f"after {taken} steps {error}", taken) from error
        on_step(min(taken + (batches is not None), steps), steps)


def _put(loss: Loss, gradient: Tensor) -> None:
    """Into the `.grad` of the parameters that have one."""
    for p, part in zip(loss.layout.tensors, loss.layout.slices.values(), strict=True):
        if p.grad is not None:
            p.grad.copy_(gradient[part].view_as(p))
