"""What runs with other parameters in a model's place, and the loss that its output holds."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Action = Callable[[], Any]


class Scope(nn.Module):
    """Runs an action with other parameters in a model's place, put there and taken back by `functional_call`.

    What else its modules hold (a counter, the weight that a weight norm computes) is put back here.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, action: Action) -> Any:
        """What the action returns.

        Args:
            action: takes nothing.
        """
        before = [(vars(module), dict(vars(module))) for module in self.model.modules()]
        try:
            return action()
        finally:
            for now, then in before:
                for name in [name for name, value in now.items() if name not in then or then[name] is not value]:
                    del now[name]
                now.update({name: value for name, value in then.items() if name not in now})


def loss_in(output: Any) -> Any:
    """The loss that an output holds; the output itself if there is none, or no telling which.

    Args:
        output: what a criterion returned.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output.get("loss", output)
    if isinstance(output, (tuple, list)) and not hasattr(output, "loss"):
        scalars = [x for x in output if isinstance(x, Tensor) and x.numel() == 1]
        return scalars[0] if len(scalars) == 1 else output
    return getattr(output, "loss", output)
