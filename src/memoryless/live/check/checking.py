"""`check_step`: put around a step of a training loop."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from memoryless.errors import BadInput, BadType
from memoryless.live.check import gradients
from memoryless.live.check.history import same
from memoryless.live.check.judging import Each, alone, judged
from memoryless.live.check.record import Record, Untouched, after, before, cut, equal, real, skips
from memoryless.live.check.reference import MIXING, Reference, copied_optimizer, torchs
from memoryless.live.check.step_check import Cause, StepCheck
from memoryless.methods.black_box.snapshot import insists_on_closure
from memoryless.methods.wrapped import unwrapped

NONE = "no step was taken in the block, as where a GradScaler skips one"
TOUCHES = "a copy of it writes into what the run holds, which was put back"
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
        gradient: what the loop does to the mean gradient, as one vector over the optimizer's tensors: clips it, say.

    Returns:
        To be put around one step, or one step after the other: `with check: ...`; `check.result` is the last `StepCheck`.

    Raises:
        BadType: no optimizer.
        BadInput: batches without model and criterion, or none in them; a step that evaluates the loss itself.

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
    if insists_on_closure(optimizer):
        name = type(optimizer).__name__
        raise BadInput(f"{name} evaluates the loss within its step, which cannot be taken again from one gradient: not checked")
    return Checking(optimizer, model, criterion, reference, (window, ranks, averaged, scaler), batches, gradient)


class Checking:
    """What `check_step` returns.

    Attributes:
        result: of the last step; None before the first.
        failed: why the step of the block could not be noted; empty where it could.
        names: of tensors by id.
        whole: whether all coordinates are looked at in the next block, though it is one of many.
        template: a copy of an optimizer that is not torch's, before the step.
        close: takes its hook off the optimizer: no more steps are counted.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None,
        criterion: Callable[[nn.Module, Any], Tensor] | None,
        reference: type[Optimizer] | None,
        loop: tuple[int | None, int | None, nn.Module | None, Any],
        batches: Sequence[Any] | None,
        gradient: Callable[[Tensor], Tensor] | None,
    ):
        self._wrapped = isinstance(model, DistributedDataParallel)
        model = model.module if isinstance(model, DistributedDataParallel) else model
        self.optimizer, self.model, self.criterion, self.reference = optimizer, model, criterion, reference
        self.window, self.ranks, self.averaged, self.scaler = loop
        self.batches, self.gradient = _some(batches), gradient
        self.result: StepCheck | None = None
        self._taken: int | Tensor = 0  # steps, those outside of the block too
        self._known, self._depth, self._blocks, self.whole = 0, 0, 0, False
        counted = weakref.WeakMethod(self._counted)

        def count(*_: Any) -> None:
            if (own := counted()) is not None:
                own()

        count.counts = True  # pyright: ignore[reportFunctionMemberAccess]
        self.close = weakref.finalize(self, optimizer.register_step_post_hook(count).remove)
        self.close.atexit = False
        self._previous: Record | None = None
        self._lrs: list[float] = []
        self.names = {} if model is None else {id(p): name for name, p in model.named_parameters()}

    def at(self, batches: Sequence[Any]) -> Self:
        """The same, for a step on these batches."""
        self.batches = _some(batches)
        return self

    def __enter__(self) -> Self:
        self.begin()
        self._handles.append(self.optimizer.register_step_pre_hook(self._seen))
        return self

    def begin(self) -> None:
        """A block begins that may hold a step."""
        self._record, self._first, self._expected, self.template = None, None, None, None
        self.failed, self._passes, self._handles, self._closed = "", [], [], ""
        self._start = self._taken = int(self._taken)
        self._compiled = False
        documented = self.reference or torchs(type(self.optimizer))
        parts = documented is not None and documented.__name__ not in MIXING and self.batches is None and not self.whole
        self._n, self._blocks = self._blocks if parts else 0, self._blocks + 1
        if self._start != self._known:
            self._previous = None  # others were taken since
        try:
            self._prepare()
        except Exception as error:  # a criterion that fails on the batch, say: the run goes on
            self.failed = _line(error)

    def _prepare(self) -> None:
        """Note what has to be known before the block."""
        patched = "step" in vars(self.optimizer)  # by a schedule, which calls the class's own, or by the user
        self._first = before(self.optimizer, self.names, self._previous, self._n) if patched else None
        if self.reference is None and torchs(type(self.optimizer)) is None:
            self.template = copied_optimizer(self.optimizer)
        if self.batches is not None and self.model is not None and self.criterion is not None:
            tensors = self._tensors()
            if self._spread:
                return
            given = self.model, self.criterion, self.batches, tensors, self.averaged
            self._expected = gradients.expect(*given, None if self.scaler is None else float(self.scaler.get_scale()))
            self._expected.previous = None if self._previous is None else [h.gradient for h in self._previous.held]
            self._passes, hook = gradients.listened(self.model, tensors[0].device)
            self._handles.append(hook)

    @property
    def _spread(self) -> str:
        """Why the gradient cannot be told from this process's batches; empty where it can."""
        if any(hasattr(p, "to_local") for p in self._tensors()):
            return "the parameters are sharded, and it is the mean over the processes"
        if self._wrapped and self.ranks is None:
            return "it is the mean over the processes; give ranks= and the batches of all of them"
        return gradients.HOOKED if gradients.hooked(self._tensors()) else ""

    def _tensors(self) -> list[Tensor]:
        return list({id(p): p for group in self.optimizer.param_groups for p in group["params"]}.values())

    def _seen(self, _: Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before a step; where the gradient comes from a closure, after that has been called for the first time."""
        self._depth += 1
        self._compiled = torch.compiler.is_compiling()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self.note()
            return None

        self._closed = "its gradient comes from a closure, without which a copy may not step: "

        def then() -> Any:
            value = closure()
            self.note()
            return value

        return ((*args[:1], *args[2:]), kwargs | {"closure": then})

    def note(self) -> None:
        """The optimizer is about to step, its gradients are in place."""
        if self._record is not None or self.failed:
            return
        try:
            self._record = None if skips(self.optimizer) else before(self.optimizer, self.names, self._previous, self._n)
            if self._record is not None:
                self._record.compiled = self._compiled
        except Exception as error:  # within the user's step
            self.failed = _line(error)

    def _counted(self) -> None:
        """A step was taken, in the block or outside; one that was called within another counts with that."""
        self._depth = max(0, self._depth - 1)
        if not self._depth:
            infinite = getattr(self.optimizer, "found_inf", None)  # `skips`, without waiting for the device
            self._taken = self._taken + (1 if infinite is None else (infinite == 0).long())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(self._answer if kind is None else None)

    def end(self, answer: Callable[[Record | None], StepCheck] | None) -> None:
        """The block is over.

        Args:
            answer: what makes the result of the step before that in the block; None for a block that failed.
        """
        for handle in self._handles:
            handle.remove()
        self._depth, previous, self._previous = 0, self._previous, None
        if answer is not None:
            try:
                with torch.no_grad():
                    self.result = answer(previous)
            except Exception as error:  # whatever a copy of an optimizer may fail at: the run goes on
                self.result = self.unjudged(self._closed + _line(error))
        self._known = self._taken = int(self._taken)

    @property
    def stepped(self) -> bool:
        """Whether there was a step in the block."""
        return int(self._taken) > self._start

    def found(self, previous: Record | None) -> Record | None:
        """The block's step; None where there was none.

        Args:
            previous: the step before.
        """
        record = self._record if self.failed else self._record or self._patched()
        if record is None:
            if not self.stepped:
                self._previous = previous
            return None
        self._taken = max(int(self._taken), self._start + 1)
        return record

    def _answer(self, previous: Record | None) -> StepCheck:
        judge = self.noted(previous)
        return self.unjudged(judge) if isinstance(judge, str) else judge(alone)

    def noted(self, previous: Record | None) -> str | Callable[[Each], StepCheck]:
        """Note what the block's step led to.

        Args:
            previous: the step before.

        Returns:
            What judges it, of sharded parameters with the processes that have the other parts (`judging.Each`); or why that
            cannot be judged.
        """
        record = self.found(previous)
        if record is None:
            return self.failed or NONE
        reference, known = None, None
        try:
            reference = Reference(record, self.reference, self.template)
            known = reference.own
        except Exception as error:  # a copy of an optimizer that fails
            self.failed = self.failed or _line(error)
        after(record, self.optimizer, known)
        self._previous = record
        lrs = self._lrs
        self._lrs = [*lrs, *(float(g["lr"]) for g in record.groups if "lr" in g)][-KEPT:]
        if self.failed or not reference:
            return self.failed
        if reference.documented is not None:
            return lambda each: self._judge(record, previous, reference, lrs, each)
        return lambda _: self._of_copy(record, previous, reference, lrs)

    def _of_copy(self, record: Record, previous: Record | None, reference: Reference, lrs: Sequence[float]) -> StepCheck:
        touched, kept = False, Untouched(self.optimizer)
        try:
            found = self._judge(record, previous, reference, lrs, alone)
        except Exception as error:  # a copy that fails, half way maybe
            found = self.unjudged(self._closed + _line(error))
        finally:
            touched = kept.restore()
        return self.unjudged(TOUCHES) if touched else found

    def _patched(self) -> Record | None:
        """The step of a method patched in, which calls no hooks; None where nothing changed."""
        if (record := self._first) is None:
            return None
        for h, p in zip(record.held, self._tensors(), strict=True):
            h.gradient = None if p.grad is None else cut(real(p.grad), real(p), h.window).clone()
        after(record, self.optimizer)
        return None if all(equal(h.theta, h.after) and same(h.state, h.state_after) for h in record.held) else record

    def unjudged(self, why: str) -> StepCheck:
        """What is said of a step that cannot be judged.

        Args:
            why: in words.
        """
        return StepCheck(self._start, type(self.optimizer).__name__, unchecked=why)

    def _judge(
        self, record: Record, previous: Record | None, reference: Reference, lrs: Sequence[float], each: Each
    ) -> StepCheck:
        causes, notes = [], []
        if self._expected is not None and (why := gradients.unlike(self._expected, self._passes)):
            help_ = "; give scaler=" if why == gradients.HALF else ""
            notes.append(f"the gradient was not checked: {why}{help_}")
        elif self._expected is not None:
            causes = self._of_gradient(record)
        elif self.batches is not None and self._spread:
            notes.append(f"the gradient was not checked: {self._spread}")
        return replace(judged(self._start, reference, previous, lrs, (causes, notes), each), noise=self._noise())

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
        if not gap > doubt * max(ratio, 1.0 if self.gradient else 0.0):  # nor one that is not finite, which is told by itself
            return []
        ends = [None if p.grad is None else real(p.grad).double() for p in self._tensors()]
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


def _some(batches: Sequence[Any] | None) -> Sequence[Any] | None:
    if batches is not None and not len(batches):
        raise BadInput("batches is empty; expected those of the step, such as [batch]")
    return batches


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
