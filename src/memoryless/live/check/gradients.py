"""The gradient that a step should have got, from model, criterion and batches, and why it got another."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memoryless.flat import across
from memoryless.isolation import Standing, buffers_kept, isolated, moved, standing
from memoryless.live.check.record import real

PASSES = 16
"""Roundings of each weight's way through forward and backward pass, as of a step (`reference`)."""
Gradients = list[Tensor | None]


HALF = "under autocast to float16 it may underflow without the loss scale"
HOOKED = "a hook (register_post_accumulate_grad_hook) may change it as it comes, and none is called where it is taken again"


def hooked(tensors: Iterable[Tensor]) -> bool:
    """Whether something is done to gradients as they are accumulated.

    Args:
        tensors: whose.
    """
    return any(getattr(p, "_post_accumulate_grad_hooks", None) for p in tensors)


class Pass(NamedTuple):
    """A forward pass of the model: where the generators stood at its start, and the type that autocast computed in."""

    standing: Standing
    autocast: torch.dtype | None


def listened(model: nn.Module, device: torch.device) -> tuple[list[Pass], Any]:
    """The forward passes from now on, as they come, and the hook that notes them.

    Args:
        model: whose.
        device: of its parameters.
    """
    passes: list[Pass] = []

    def note(*_: Any) -> None:
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        passes.append(Pass(standing(device), dtype))

    return passes, model.register_forward_pre_hook(note)


@dataclass
class Expected:
    """Gradients at the parameters of the step.

    Attributes:
        each: of every batch.
        sizes: of the batches.
        averaged: mean gradients at averaged weights, if those were given.
        doubt: what rounding makes of the mean, in the norm of each tensor.
        leftover: what was in .grad when the block began.
        previous: gradients that the last step saw.
        passes: forward passes that `each` took.
        drawn: generators that it drew from.
        scaled: whether they were taken of a scaled loss.
        own: this process's, where `each` is the mean of several.
    """

    each: list[Gradients]
    sizes: list[int]
    doubt: list[float]
    leftover: Gradients
    averaged: Gradients | None = None
    previous: Gradients | None = None
    passes: list[Pass] = field(default_factory=list)
    drawn: set[str] = field(default_factory=set)
    own: Gradients | None = None
    scaled: bool = False

    def mean(self, even: bool = False) -> Gradients:
        """Over all samples of the batches; over batches, if even."""
        weights = [1.0] * len(self.each) if even else [float(size) for size in self.sizes]
        return combined(self.each, [w / sum(weights) for w in weights])


def unlike(expected: Expected, passes: Sequence[Pass]) -> str:
    """Why the gradient of the block cannot be told from the batches; empty where it can.

    Args:
        expected: from `expect`.
        passes: forward passes of the block.
    """
    if not all(bool(g.isfinite().all()) for g in expected.mean() if g is not None):
        return "that of the batches is not finite"
    if not expected.scaled and any(there.autocast is torch.float16 for there in expected.passes):
        return HALF
    if passes and expected.passes and passes[0].autocast != expected.passes[0].autocast:
        return "autocast is on in the block alone; put it into the criterion"
    pairs = list(zip(passes, expected.passes, strict=False))
    if len(pairs) < len(expected.passes) or any(expected.drawn & moved(a.standing, b.standing) for a, b in pairs):
        return "criterion or model draws random numbers, and not from where the block began" if expected.drawn else ""
    return ""


def combined(each: Sequence[Gradients], weights: Sequence[float]) -> Gradients:
    """A weighted sum; None where there is none in any."""
    found: Gradients = []
    for tensors in zip(*each, strict=True):
        parts = [w * t.double() for w, t in zip(weights, tensors, strict=True) if t is not None]
        found.append(torch.stack(parts).sum(0) if parts else None)
    return found


def expect(
    model: nn.Module,
    criterion: Callable[[nn.Module, Any], Tensor],
    batches: Sequence[Any],
    tensors: Sequence[Tensor],
    averaged: nn.Module | None,
    scale: float | None = None,
) -> Expected:
    """The gradients of a block that begins: parameters, buffers and generators are left as they are.

    Args:
        model: in its training mode.
        criterion: mean loss of a batch.
        batches: of the step, in their order.
        tensors: of the optimizer.
        averaged: a copy of the model with averaged weights.
        scale: that the loss is multiplied by, and the gradient divided by, as in the run.
    """
    own = {id(p): name for name, p in model.named_parameters()}
    kept = [p.grad for p in tensors]
    leftover = [None if g is None else real(g).double().clone() for g in kept]

    drawn: set[str] = set()
    by = 1.0 if scale is None else scale

    def scaled(model: nn.Module, batch: Any) -> Tensor:
        return by * criterion(model, batch)

    def gradients() -> list[Gradients]:
        device = tensors[0].device
        with buffers_kept(model), isolated(device, start := standing(device)):
            found = [times(_gradient(model, scaled, batch, tensors), 1 / by) for batch in batches]
            drawn.update(moved(start, standing(device)))
        return found

    passes, hook = listened(model, tensors[0].device)
    try:
        each = gradients()
    finally:
        hook.remove()
    sizes = [_size(batch) for batch in batches]
    found = Expected(each, sizes, [], leftover, passes=passes, drawn=drawn, scaled=scale is not None)
    mean = found.mean()
    with _shifted(tensors, lambda k, p: p * (1 + torch.finfo(p.dtype).eps * _signs(p, k))):
        shifted = Expected(gradients(), sizes, [], leftover).mean()
    for k, (a, b) in enumerate(zip(mean, shifted, strict=True)):
        eps = torch.finfo(tensors[k].dtype).eps
        found.doubt.append(0.0 if a is None or b is None else PASSES * float((a - b).norm() + eps * a.norm()))
    if averaged is not None:
        theirs = {name.removeprefix("module."): p for name, p in averaged.named_parameters()}
        values = [theirs.get(own.get(id(p), "")) for p in tensors]
        with _shifted(tensors, lambda k, p: p if (value := values[k]) is None else value.detach()):
            found.averaged = Expected(gradients(), sizes, [], leftover).mean()
    return found


def _gradient(
    model: nn.Module, criterion: Callable[[nn.Module, Any], Tensor], batch: Any, tensors: Sequence[Tensor]
) -> Gradients:
    wanted = [p for p in tensors if p.requires_grad]
    found = iter(torch.autograd.grad(criterion(model, batch), wanted, allow_unused=True))
    return [None if not p.requires_grad or (g := next(found)) is None else real(g) for p in tensors]


@contextlib.contextmanager
def _shifted(tensors: Sequence[Tensor], to: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    before = [p.detach().clone() for p in tensors]
    try:
        for k, p in enumerate(tensors):
            p.data.copy_(to(k, p.detach()))
        yield
    finally:
        for p, value in zip(tensors, before, strict=True):
            p.data.copy_(value)


def _signs(p: Tensor, k: int) -> Tensor:
    generator = torch.Generator().manual_seed(k)
    return (2.0 * torch.randint(0, 2, p.shape, generator=generator) - 1).to(p)


def _size(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return next((_size(part) for part in batch if isinstance(part, Tensor)), 1)
    return 1


def causes(
    seen: Gradients,
    expected: Expected,
    change: Callable[[Gradients], Gradients],
    at_end: Gradients,
    window: int | None,
    ranks: int | None,
    scale: float | None,
) -> list[tuple[str, str, float]]:
    """Why the optimizer saw another gradient: (name, text, share of the gap that is explained), the best first.

    Args:
        seen: at the step.
        expected: from `expect`.
        change: what the loop should do to the mean gradient.
        at_end: .grad when the block ended.
        window: micro-batches that the loop divides by.
        ranks: processes.
        scale: of a GradScaler.
    """
    want = change(expected.mean())
    gap = distance(seen, want)
    k, found = len(expected.each), []

    def test(name: str, text: str, gradient: Gradients) -> None:
        left = distance(seen, gradient)
        doubt = sum(d * d for d in expected.doubt) ** 0.5 * max(1.0, norm(gradient) / max(norm(want), 1e-300))
        found.append((name, text, 1 - left / gap, left <= 4 * doubt))

    raw = expected.mean()
    if distance(raw, want) > 0:
        late = distance(at_end, change(seen)) <= 1e-3 * max(norm(at_end), 1e-300) and distance(at_end, seen) > 0
        name = "gradient clipped after the step read it" if late else "gradient not clipped"
        test(name, "the step saw the gradient as it is before gradient=", raw)
        test("gradient clipped twice", "gradient= was applied twice", change(want))
    if scale not in (None, 1.0):
        test("scaler's scale not removed", f"the gradient is {scale:g} times too large", times(want, scale))
        test(
            "scaler's scale not removed",
            f"clipped while {scale:g} times too large",
            times(change(times(raw, scale)), 1 / scale),
        )
    if window and window != k:
        test("last partial window at full weight", f"{k} micro-batches, divided by {window}", change(times(raw, k / window)))
        test("last partial window at full weight", "a window that is not full counts as one", change(times(raw, window / k)))
    if ranks and ranks > 1:
        test("averaged instead of summed across ranks", f"divided by {ranks} ranks once more", change(times(raw, 1 / ranks)))
        test("summed instead of averaged across ranks", f"{ranks} times the mean", change(times(raw, ranks)))
    if expected.own is not None:
        test("gradient of one rank only", "only that of this process", change(expected.own))
    if k > 1:
        for j, one in enumerate(expected.each):
            what = f"rank {j}" if ranks == k else f"micro-batch {j}"
            name = "gradient of one rank only" if ranks == k else "gradient of one micro-batch only"
            test(name, f"only that of {what}", change(one))
        test(
            "last partial window at full weight", "batches of different sizes count the same", change(expected.mean(even=True))
        )
        test("loss divided by accumulation twice", f"divided by {k} once more", change(times(raw, 1 / k)))
        test("loss not divided by accumulation", f"the sum of {k} micro-batches", change(times(raw, k)))
    for old in (expected.leftover, expected.previous):
        if old is not None and norm(old) > 0:
            test("gradient accumulated across zero_grad", "an earlier gradient was still in .grad", change(added(raw, old)))
    if expected.previous is not None:
        test("gradient of an earlier step", "it is the one that the last step saw", expected.previous)
    if expected.averaged is not None:
        test("averaged weights evaluated", "the gradient is that at the averaged (EMA) weights", change(expected.averaged))
    pairs = [(a, b.double()) for a, b in zip(want, seen, strict=True) if a is not None and b is not None]
    c = _whole(float((a * b).sum()) for a, b in pairs) / max(norm(want) ** 2, 1e-300)
    told = distance(raw, want) > 0
    name = ("gradient clipped twice" if told else "gradient clipped") if 0 < c < 1 else "gradient scaled"
    if c > 1 and float(torch.tensor(c).log2().round().sub(torch.tensor(c).log2()).abs()) < 1e-3 and c > 8:
        name = "scaler's scale not removed"
    test(name, f"by one factor, {c:.4g}, on all tensors", times(want, c))
    # Of those that fit within rounding the order in which they were tried counts; the others by how much they explain.
    ranked = sorted(enumerate(found), key=lambda x: (not x[1][3], 0 if x[1][3] else -x[1][2], x[0]))
    return [(name, text, share) for _, (name, text, share, fits) in ranked if share > 0.5]


def norm(x: Gradients) -> float:
    """Of all tensors together."""
    return _whole(float(t.double().square().sum()) for t in x if t is not None) ** 0.5


def distance(a: Gradients, b: Gradients) -> float:
    """Norm of the difference; None counts as 0."""
    return _whole(
        float(((0 if s is None else s.double()) - (0 if t is None else t.double())).square().sum())  # type: ignore[union-attr]
        for s, t in zip(a, b, strict=True) if s is not None or t is not None
    ) ** 0.5  # fmt: skip


def _whole(sums: Iterable[float]) -> float:
    """The sum over tensors, of sharded ones over their parts too."""
    return float(across(torch.tensor(sum(sums), dtype=torch.float64)))


def times(x: Gradients, c: float) -> Gradients:
    """Each tensor times c."""
    return [None if t is None else c * t for t in x]


def added(a: Gradients, b: Gradients) -> Gradients:
    """Sum; None counts as 0."""
    return [s if t is None else t if s is None else s + t for s, t in zip(a, b, strict=True)]
