"""Which tensors of an optimizer have the same past, and what that is: of those, memory's effect is known at once."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.live.monitoring.past_weights import kept_in
from memoryless.live.transport import Memory, Now, roots_of
from memoryless.methods.live_optimizer import of_group
from memoryless.methods.method import Method
from memoryless.methods.method_optimizer import MethodOptimizer

VOLATILE = ("params", "param_names", "lr", "initial_lr")
"""Of a param group what its readout does not depend on."""


class Memories:
    """The memories of an optimizer's tensors.

    Args:
        optimizer: live.
        second: (b', floor) of second moments carried along; None for the default.

    Attributes:
        all: of every tensor that has stepped.
        formula: whether the optimizer is recognised.
    """

    def __init__(self, optimizer: Optimizer, second: tuple[float, float] | None):
        self._optimizer, self._second = optimizer, second
        self.all: list[Memory] = []
        self._methods: dict[str, Method] = {}
        self._roots: dict[int, tuple[int | None, ...]] = {}
        self.formula = True

    def __getstate__(self) -> dict[str, Any]:
        # Found anew: formulas cannot be pickled, and a copy's have other ids.
        return vars(self) | {"_methods": {}, "_roots": {}}

    def parameters(self) -> list[Tensor]:
        """Of all groups, in their order."""
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def method(self, group: dict[str, Any]) -> Method:
        """Of a param group; its lr is not the present one.

        Args:
            group: one of the optimizer's.

        Raises:
            NotRecognised: it has no momentum form.
        """
        hyper = {key: float(x) if isinstance(x, Tensor) else x for key, x in group.items() if key not in VOLATILE}
        key = repr(sorted(hyper.items()))
        if key not in self._methods:
            self._methods[key] = of_group(self._optimizer, group)
        return self._methods[key]

    def now(self, i: int) -> Now:
        """Param group i with its present hyperparameters."""
        group = self._optimizer.param_groups[i]
        method = self.method(group)
        if id(method) not in self._roots:  # `_methods` keeps them, so that an id is one method's
            self._roots[id(method)] = roots_of(method)
        kept = kept_in(self._optimizer, group)
        return Now(method, kept, group, float(group["lr"]), self._second, self._roots[id(method)])

    def ready(self) -> list[Memory]:
        """Those of the tensors that step now: made for tensors without, split where only a part steps.

        Raises:
            BadInput: the optimizer does not count steps that it has behind it, or a gradient is sparse.
        """
        if any(p.grad is not None and p.grad.is_sparse for p in self.parameters()):
            raise BadInput("a gradient is sparse; expected dense, use Embedding(sparse=False)")
        ready, known, kept = list[Memory](), set[int](), list[Memory]()
        for memory in self.all:
            known.update(map(id, memory.tensors))
            if all(p.grad is None for p in memory.tensors):
                kept.append(memory)
                continue
            stepping, others = memory.split()
            ready.append(stepping)
            kept += [stepping] if others is None else [stepping, others]
        new: dict[Any, Memory] = {}
        for i, group in enumerate(self._optimizer.param_groups):
            for p in group["params"]:
                if p.grad is not None and id(p) not in known:
                    n = self.counted(p, group)
                    new.setdefault((i, n, p.device, p.dtype), Memory([], i, n)).tensors.append(p)
        for memory in new.values() if self.formula else ():
            memory.begin(self.now(memory.group))
        self.all = [*kept, *new.values()]
        return [*ready, *new.values()]

    def counted(self, p: Tensor, group: dict[str, Any]) -> int:
        """Steps that a tensor has behind it.

        Args:
            p: the tensor.
            group: its param group.

        Raises:
            BadInput: they are not counted.
        """
        state = self._optimizer.state.get(group["params"][0] if isinstance(self._optimizer, MethodOptimizer) else p, {})
        if "step" in state:
            return int(state["step"])
        if any(value is not None for value in state.values()):
            raise BadInput(
                f"{type(self._optimizer).__name__} has steps behind it that it does not count, and F[n] needs n: dial it "
                "before its first step; to go on, load the dial's own state dict"
            )
        return 0

    def saved(self) -> list[dict[str, Any]]:
        """As plain values and tensors."""
        number = {id(p): i for i, p in enumerate(self.parameters())}
        return [memory.saved(lambda p: number[id(p)]) for memory in self.all]

    def load(self, saved: list[dict[str, Any]]) -> None:
        """What `saved` gave."""
        tensors, self.all = self.parameters(), []
        for each in saved:
            own = [tensors[i] for i in each["tensors"]]
            values: dict[str, Any] = {key: _on(value, own[0]) for key, value in each.items()}
            values["tensors"] = own
            memory = Memory(**values)
            if len(memory.walk) < len(memory.M):  # saved as sums, before gains followed from noise
                memory.drop()
            self.all.append(memory)


def _on(value: Any, like: Tensor) -> Any:
    """Copies of tensors on another's device, in lists too."""
    if isinstance(value, Tensor):
        return value.to(like.device, copy=True)
    return [_on(x, like) for x in value] if isinstance(value, list) else value
