"""What runs with other parameters in a model's place, and the loss that its output holds."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

Action = Callable[[], Any]


class Scope(nn.Module):
    """Runs an action with other parameters in a model's place, put there and taken back by `functional_call`.

    What else its modules hold (a counter, the weight that a weight norm computes) is put back here.

    Attributes:
        autocast: the type to which autocast rounds within the model, seen in the first run; None without, and of compiled ones.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.autocast: torch.dtype | None = None
        self._looked = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())

    def forward(self, action: Action) -> Any:
        """What the action returns.

        Args:
            action: takes nothing.
        """
        before = [(vars(module), dict(vars(module))) for module in self.model.modules()]
        try:
            with nullcontext() if self._looked else self._looking():
                return action()
        finally:
            for now, then in before:
                for name in [name for name, value in now.items() if name not in then or then[name] is not value]:
                    del now[name]
                now.update({name: value for name, value in then.items() if name not in now})

    @contextmanager
    def _looking(self) -> Iterator[None]:
        kind = next(self.model.parameters()).device.type

        def look(*_: Any) -> None:
            if torch.is_autocast_enabled(kind):
                self.autocast = torch.get_autocast_dtype(kind)

        hook = register_module_forward_pre_hook(look)
        try:
            yield
        finally:
            hook.remove()
            self._looked = True


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
