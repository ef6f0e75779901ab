"""`check_step`: put around a step of a training loop."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.errors import BadInput, BadType
from memoryless.live.check import gradients
from memoryless.live.check.causes import Case
from memoryless.live.check.judging import deviations, explained, of_history
from memoryless.live.check.record import Record, after, before
from memoryless.live.check.reference import Reference, copied_optimizer, torchs
from memoryless.live.check.shares import shares
from memoryless.live.check.step_check import Cause, StepCheck
from memoryless.methods.wrapped import unwrapped

KEPT = 16
"""Learning rates of the past that are remembered."""


def check_step(
    optimizer: Optimizer,
    model: nn.Module | None = None,
    criterion: Callable[[nn.Module, Any], Tensor] | None = None,
    reference: type[Optimizer] | None = None,
    window: int | None = None,
    ranks: int | None = None,
    averaged: nn.Module | None = None,
    scaler: Any = None,
    *,
    batches: Sequence[Any] | None = None,
    scheduler: Any = None,
    gradient: Callable[[Tensor], Tensor] | None = None,
) -> "Checking":
    """Is the step that is taken the one that the optimizer documents for this gradient and this state?

    The step is taken again by the class's single-tensor path from what was there before it, in the step's own precision and,
    where that does not give the same bits, in float64, and compared with what came: what is off by more than
    rounding can explain is told, with the likely causes, each tried by taking the step again with that cause put in. The run
    is bit for bit the one without.

    Args:
        optimizer: any of torch's, one derived from those, or another (then only what a copy of it can tell).
        model: gives the gradient, with `criterion` and `batches`; without them it is taken as the optimizer sees it.
        criterion: `criterion(model, batch)` returns the mean loss of a batch.
        reference: the class whose step is documented, for an optimizer of one's own; default the nearest of torch's.
        window: micro-batches that the loop divides by.
        ranks: processes whose gradients are averaged; `batches` are then one of each.
        averaged: a copy of the model with averaged weights.
        scaler: the GradScaler.
        batches: of the step; those of a further step are given by `at`.
        scheduler: that changes the groups; without it only the lr may change.
        gradient: what the loop does to the mean gradient, as one vector over the optimizer's tensors: clips it, say.

    Returns:
        To be put around one step, or one step after the other: `with check: ...`; `check.result` is the last `StepCheck`.

    Raises:
        BadType: no optimizer.
        BadInput: batches without model and criterion.

    Example:
        >>> import memoryless as ml
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with ml.check_step(optimizer) as check:
        ...     model(torch.randn(8, 3)).square().mean().backward()
        ...     optimizer.step()
        >>> check.result.ok
        True
    """
    if not isinstance(optimizer := unwrapped(optimizer), Optimizer):
        raise BadType(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    if batches is not None and (model is None or criterion is None):
        raise BadInput("batches= tell the gradient only with model and criterion; give these, or leave batches out")
    if reference is not None and not (isinstance(reference, type) and issubclass(reference, Optimizer)):
        raise BadType(f"reference must be a class of optimizer such as torch.optim.AdamW, got {reference!r}")
    return Checking(optimizer, model, criterion, reference, (window, ranks, averaged, scaler), batches, scheduler, gradient)


class Checking:
    """What `check_step` returns.

    Attributes:
        result: of the last step; None before the first.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None,
        criterion: Callable[[nn.Module, Any], Tensor] | None,
        reference: type[Optimizer] | None,
        loop: tuple[int | None, int | None, nn.Module | None, Any],
        batches: Sequence[Any] | None,
        scheduler: Any,
        gradient: Callable[[Tensor], Tensor] | None,
    ):
        self.optimizer, self.model, self.criterion, self.reference = optimizer, model, criterion, reference
        self.window, self.ranks, self.averaged, self.scaler = loop
        self.batches, self.scheduler, self.gradient = batches, scheduler, gradient
        self.result: StepCheck | None = None
        self.steps = 0
        self._previous: Record | None = None
        self._lrs: list[float] = []
        self._names = {} if model is None else {id(p): name for name, p in model.named_parameters()}

    def at(self, batches: Sequence[Any]) -> Self:
        """The same, for a step on these batches."""
        self.batches = batches
        return self

    def __enter__(self) -> Self:
        self._record, self._expected, self._template = None, None, None
        patched = "step" in vars(self.optimizer)  # by a schedule, which calls the class's own, or by the user
        self._first = before(self.optimizer, self._names, self._previous) if patched else None
        if self.reference is None and torchs(type(self.optimizer)) is None:
            self._template = copied_optimizer(self.optimizer)
        if self.batches is not None and self.model is not None and self.criterion is not None:
            self._expected = gradients.expect(self.model, self.criterion, self.batches, self._tensors(), self.averaged)
            self._expected.previous = None if self._previous is None else [h.gradient for h in self._previous.held]
        self._hook = self.optimizer.register_step_pre_hook(self._seen)
        return self

    def _tensors(self) -> list[Tensor]:
        return list({id(p): p for group in self.optimizer.param_groups for p in group["params"]}.values())

    def _seen(self, *_: Any) -> None:
        if self._record is None:
            self._record = before(self.optimizer, self._names, self._previous)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._hook.remove()
        if kind is not None:
            return
        record = self._record
        if record is None and self._first is not None:
            record = self._first  # a step patched in, which calls no hooks
            for h, p in zip(record.held, self._tensors(), strict=True):
                h.gradient = None if p.grad is None else p.grad.detach().clone()
        if record is None:
            self.result = self._not("no step was taken in the block, as where a GradScaler skips one")
            return
        try:
            with torch.no_grad():
                self.result = self._judge(record)
        except Exception as error:  # whatever a copy of an optimizer may fail at: the run goes on
            self.result = self._not(" ".join(str(error).split()) or type(error).__name__)
        self._previous = record
        self._lrs = [*self._lrs, *(float(g["lr"]) for g in record.groups if "lr" in g)][-KEPT:]
        self.steps += 1

    def _not(self, why: str) -> StepCheck:
        return StepCheck(self.steps, type(self.optimizer).__name__, unchecked=why)

    def _judge(self, record: Record) -> StepCheck:
        reference = Reference(record, self.reference, self._template)
        after(record, self.optimizer, reference.own)
        name = record.cls.__name__ if reference.documented is None else reference.documented.__name__
        bound, off, where = deviations(reference)
        dtypes = {h.theta.dtype for h in record.held} if reference.settled() else {torch.float64}
        precision = str(max(dtypes, key=lambda x: torch.finfo(x).eps)).removeprefix("torch.")
        said = f"{name}, {'a copy of it' if reference.documented is None else f'single-tensor path in {precision}'}"
        causes, notes = of_history(record, self._previous, reference, self.scheduler), []
        if self._expected is not None:
            causes += self._of_gradient(record)
        if bound is not None and off:
            lrs = [*self._lrs, *(float(g["initial_lr"]) for g in record.groups if "initial_lr" in g)]
            counts = (
                [int(h.state_after["step"]) for h in self._previous.held if "step" in h.state_after] if self._previous else []
            )
            counts += [h.count for h in record.held if h.count is not None]
            causes += explained(Case(reference, reference.at, where, lrs, counts), bound)
        if reference.documented is None:
            notes.append(
                f"{name} is not torch's: only what a copy of it does again can be told; reference= names what it should be"
            )

        def parts() -> dict[str, dict[str, float]] | None:
            with torch.no_grad():
                found = shares(reference, reference.at)
            return None if found is None else dict(zip([*(h.name for h in record.held), "whole"], found, strict=True))

        return StepCheck(self.steps, said, tuple(off), tuple(causes), self._noise(), tuple(notes), _shares=parts)

    def _of_gradient(self, record: Record) -> list[Cause]:
        """Why the gradient is another than that of the batches, where it is."""
        expected = self._expected
        assert expected is not None
        seen = [h.gradient for h in record.held]
        change = self._change(record)
        want = change(expected.mean())
        ratio = gradients.norm(want) / max(gradients.norm(expected.mean()), 1e-300)
        gap = gradients.distance(seen, want)
        doubt = sum(d * d for d in expected.doubt) ** 0.5
        if gap <= doubt * max(ratio, 1.0 if self.gradient else 0.0):
            return []
        ends = [None if p.grad is None else p.grad.detach().double() for p in self._tensors()]
        scale = None if self.scaler is None else float(self.scaler.get_scale())
        found = gradients.causes(seen, expected, change, ends, self.window, self.ranks, scale)
        names = tuple(h.name for h in record.held)
        text = f"{gap / max(gradients.norm(want), 1e-300):.2g} of its norm off"
        unknown = Cause("another gradient", f"it is not that of the batches, {text}", names, 0.0)
        return [Cause(n, t, names, s) for n, t, s in dict((f[0], f) for f in reversed(found)).values()][::-1] or [unknown]

    def _change(self, record: Record) -> Callable[[gradients.Gradients], gradients.Gradients]:
        transform = self.gradient
        if transform is None:
            return lambda x: x

        def changed(x: gradients.Gradients) -> gradients.Gradients:
            flat = torch.cat([(torch.zeros_like(h.theta).double() if t is None else t.double()).reshape(-1)
                              for h, t in zip(record.held, x, strict=True)])  # fmt: skip
            parts = transform(flat).split([h.theta.numel() for h in record.held])
            return [None if t is None else part.view_as(t) for part, t in zip(parts, x, strict=True)]

        return changed

    def _noise(self) -> float | None:
        """|mean|^2 less the part of it that the batches' scatter makes in expectation, tr(Sigma) / k."""
        if self._expected is None or (k := len(self._expected.each)) < 2:
            return None
        mean = self._expected.mean(even=True)
        scatter = sum(gradients.distance(g, mean) ** 2 for g in self._expected.each) / (k * (k - 1))
        return min(1.0, scatter / max(gradients.norm(mean) ** 2, 1e-300))
