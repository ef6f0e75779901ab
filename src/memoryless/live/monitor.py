"""The monitor: memory's effect in a training run as it happens, fed by hooks of the optimizer's step.

The gradient is the one that the optimizer really gets (clipped, unscaled, averaged), the update the one that it really makes.
Of past steps a few, drawn in advance, keep their batch by reference and where the generators stood, and are taken again at a
stop (`live.draws`, `live.replay`); from these follows what the same batches would have left at the present theta
(`live.frozen`). The run stays bit for bit what it is without the monitor, and goes on where that cannot measure.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from memoryless.audits.grid import Grid
from memoryless.audits.shadow import Shadow
from memoryless.errors import BadInput, BadType, NotRecognised
from memoryless.flat import Layout, flat
from memoryless.isolation import isolated
from memoryless.live import draws
from memoryless.live.buffers import Live, Past
from memoryless.live.log import Record, Sinks
from memoryless.live.measuring import Measuring, Present, Upcoming
from memoryless.live.replay import Criterion, Recorder, Replay, Step, Transform, held
from memoryless.live.sample import Sample
from memoryless.live.schedule import Schedule
from memoryless.live.whole import Whole, images
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable
from memoryless.methods.black_box.torch_method import stepsize
from memoryless.methods.live_optimizer import by_group, step_of
from memoryless.methods.method import AnyOptimizer, Groups, Momentum, Part
from memoryless.methods.wrapped import unwrapped

BETAS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99), (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
"""Axes of the map."""
PROBED = 4
"""Batches at the head of a run that the measures are of, where no others are given."""
FED = 32
"""Gradients that the shadows take at once."""

SETTLED = 200
"""Steps after which it is looked at what watching takes."""
READ = 1e-8
"""Seconds that reading out one replayed step takes per coordinate and method: a guess before the first stop."""

logger = logging.getLogger("memoryless")


@dataclass(eq=False)
class Monitor:
    """Measure along a training run what the optimizer's memory does to the loss.

        with ml.Monitor(model, criterion, optimizer, log="run.jsonl") as monitor:
            for batch in loader:
                ...
                optimizer.step()
                monitor.step(batch)

    Args:
        model: trained, float32 or float64; the one inside a wrapper (`model.module` of DistributedDataParallel).
        criterion: `criterion(model, batch)` returns the mean loss of a batch, the one that is trained.
        optimizer: over the model's parameters. Adam, AdamW, NAdam, SGD and RMSprop are measured; of others only `shadows`.
        every: so many steps, or a list of steps, at which to measure; None goes by `budget`.
        budget: share of the wall time that the stops may take, in (0, 1); what is kept between them is said if it takes more.
        shadows: other methods, measured by their memories of the run's gradients at the run's lr.
        log: where records go: a path for lines of JSON, what has `log(dict, step=)`, `log_metrics` or `add_scalar`, or a list.
        coordinates: of theta on which maps and shadows are kept; all where there are no more.
        gradient: what the loop does to a step's gradient, as one vector of shape (d,), before the optimizer gets it: clips its
            norm, say. The gradient is the whole model's, also where the optimizer holds a part of it.
        betas: axes (betas_1, betas_2) of the map, for an optimizer with a pair of betas; None for none.
        replays: past steps that are taken again at a stop, a gradient each.
        data: re-iterable batches that the measures are of; by default the first few that are watched (others after a resume).
        measures: names, or differentiable functions theta -> scalar.
        start: steps that the run has behind it where watching begins; default what the optimizer has counted there.
        seed: of the draws.

    Attributes:
        stops: the records of this process's stops, as they are logged.
        notes: what could not be measured, and why.

    Raises:
        BadType: something is of another type than expected.
        BadInput: the optimizer holds none of the model's parameters, a number is out of range, or the log cannot be written.

    Example:
        >>> import memoryless as ml
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> def criterion(model, batch):
        ...     return nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> with ml.Monitor(model, criterion, optimizer, every=20, betas=None) as monitor:
        ...     for _ in range(41):
        ...         batch = torch.randn(8, 3), torch.randn(8, 1)
        ...         optimizer.zero_grad()
        ...         criterion(model, batch).backward()
        ...         optimizer.step()
        ...         _ = monitor.step(batch)
        >>> [stop["step"] for stop in monitor.stops]
        [20, 40]
        >>> sorted(monitor.stops[0]["effects"][0])[:4]
        ['absolute', 'change', 'error', 'layers']
    """

    model: nn.Module
    criterion: Criterion
    optimizer: Optimizer
    every: int | Sequence[int] | None = None
    budget: float = 0.02
    shadows: Sequence[AnyOptimizer] | None = None
    log: Any = None
    coordinates: int = 2**16
    gradient: Transform | None = None
    betas: tuple[Sequence[float], Sequence[float]] | None = BETAS
    replays: int = 64
    data: Iterable[Any] | None = None
    measures: Sequence[str | Differentiable] = ("gradient_1_norm",)
    start: int | None = None
    seed: int = 0
    stops: list[Record] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._require_arguments()
        self._optimizer = unwrapped(self.optimizer)
        if not getattr(type(self._optimizer).step, "hooked", False):  # torch's mark, set by Optimizer.__init__
            name = type(self._optimizer).__name__
            raise BadInput(
                f"{name}'s step calls no hooks, so it cannot be watched; expected an optimizer whose __init__ calls that of "
                "torch.optim.Optimizer"
            )
        layout = Layout({name: p for name, p in self.model.named_parameters() if p.requires_grad})
        Loss(self.model, self.criterion, [None])  # refuses what it cannot take, in its own words
        self._layout, self._tensors = layout, layout.tensors
        self._past = Past(self._optimizer)
        self._before, self._entered = 0, False
        self._sample = Sample(layout.sizes, self.coordinates, self.seed, layout.device)
        self._recorder: Recorder | None = None
        self._hooks: list[Any] = []
        self._probe: list[Any] | Iterable[Any] = [] if self.data is None else self.data
        self._pending: list[Any] = []
        self._upcoming: dict[int, Upcoming] = {}
        self._last_use: dict[int, int] = {}
        self._kept: dict[int, Step] = {}
        self._planned, self._stepped = 0, False
        self._present: Present | None = None
        self._spent, self._cost, self._stopping, self._began = 0.0, 0.0, 0.0, time.perf_counter()
        self._said: set[str] = set()
        self._describe()
        gradients = self.replays + 1 + 4 * len(self.measures) * PROBED
        self._schedule = Schedule(self.every, self.budget, gradients)
        self._sinks = Sinks(self.log, self._head(), self._say)

    def _require_arguments(self) -> None:
        if not isinstance(self.model, nn.Module) or not callable(self.criterion) or not isinstance(self.optimizer, Optimizer):
            got = ", ".join(type(x).__name__ for x in (self.model, self.criterion, self.optimizer))
            raise BadType(f"Monitor takes model, criterion(model, batch), optimizer, in this order, got {got}")
        start = 0 if self.start is None else self.start
        for name, value, least in (
            ("coordinates", self.coordinates, 1),
            ("replays", self.replays, 2),
            ("start", start, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadInput(f"{name} must be a whole number, at least {least}, got {value!r}")
        if isinstance(self.measures, str) or not len(self.measures):
            raise BadType(f"measures must be a sequence such as ['gradient_1_norm'], got {self.measures!r}")
        if self.betas is not None and not _two_axes(self.betas):
            raise BadType(
                f"betas must be the two axes of the map, such as ([0.8, 0.9], [0.99, 0.999]), or None for none, "
                f"got {self.betas!r}"
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = torch.distributed.get_world_size()
            if ranks > 1:
                raise BadInput(
                    f"the run has {ranks} processes; a monitor sees the batches of one, expected a single process for now"
                )

    def _describe(self) -> None:
        """Recognise the optimizer, and build the shadows' memories."""
        used = {id(p) for group in self._optimizer.param_groups for p in group["params"]} & set(self._layout.used)
        self._held = [id(p) in used for p in self._tensors]
        if not used:
            raise BadInput("the optimizer holds none of the model's trainable parameters; build both from the same model")
        try:
            self._groups = by_group(self._optimizer, self._layout)
        except NotRecognised as error:
            self._groups = []
            self._say(f"{error}: its own memory is not measured, only shadows")
        base = _method(self._groups)
        own = all("betas" in method.hyper for _, (method, _) in self._groups) and bool(self._groups)
        if not own:
            self.betas = None
        self._own = [v for _, (method, _) in self._groups for v in method.variables if v.has_memory]
        others = list(self.shadows or ())
        shadowed = [*others, *(Grid(base, *self.betas).spanning() if self.betas is not None and base is not None else ())]
        for method in others:
            if any(not part.method.elementwise for part in method.parts):
                raise BadInput(f"a shadow on sampled coordinates needs a method that acts on each by itself, got {method}")
        self._shadow, self._waiting = None, 0
        if shadowed:
            sampled = self._sample.of(self._layout.theta())
            self._shadow = Shadow(shadowed, sampled)
            # Written over again and again: no new memory is asked for as the run goes on.
            self._fed, self._there = (sampled.new_empty((FED, len(sampled))) for _ in range(2))
        cells = 0 if self.betas is None else len(self.betas[0]) * len(self.betas[1])
        self._read = READ * len(self._sample) * (cells + len(others))
        self._others: Sequence[Momentum] = () if self._shadow is None else self._shadow.variables
        self._uses_theta = any(v.uses_theta for v in (*self._own, *self._others))

    def _head(self) -> Record:
        methods = " and ".join(str(method) for _, (method, _) in self._groups)
        return {
            "kind": "run",
            "format": 1,
            "optimizer": type(self._optimizer).__name__,
            "method": methods or type(self._optimizer).__name__,
            "d": self._layout.d,
            "measures": [m if isinstance(m, str) else getattr(m, "__name__", type(m).__name__) for m in self.measures],
            "coordinates": len(self._sample),
            "replays": self.replays,
            "every": self.every,
            "budget": self.budget,
            "betas": list(self._groups[0][1][0].hyper["betas"]) if self.betas is not None else None,
        }

    def _count(self) -> None:
        """What is behind the optimizer; the log must be of the run that goes on here."""
        self._past.begin()
        if self._sinks.last >= 0 and not self._past.before:
            raise BadInput(
                f"the log has stops up to step {self._sinks.last:,}, and the optimizer has no steps behind it: another run; "
                "give another file, or load the optimizer's state before the with statement"
            )
        counted = step_of(self._optimizer)
        self._before = (counted or 0) if self.start is None else self.start
        if counted is None and self.start is None:
            self._say(f"{type(self._optimizer).__name__} does not count its steps: they are counted from here; give start=")

    def __enter__(self) -> "Monitor":
        """Begin to watch; the steps that the optimizer has taken until now are those behind it.

        Raises:
            BadInput: it has been entered before, or the log is of another run.
        """
        if self._entered:
            raise BadInput(
                "this monitor has watched its run, and watches no other: make a new ml.Monitor (the log may be the same)"
            )
        self._entered = True
        try:
            self._count()
        except BadInput:
            self._sinks.close()
            raise
        self._recorder = Recorder(self.model, self._layout.device, self._fresh)
        self._replay = Replay(self.model, self.criterion, self._recorder, self.gradient, self._others_parts())
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._hook),
            self._optimizer.register_step_post_hook(lambda *_: self._guarded(self._after_step)),
        ]
        self._began = time.perf_counter()
        self._guarded(self._plan)
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching, and say what was found."""
        self.close()

    def close(self) -> None:
        """Stop watching; the model and the optimizer are as if there had been no monitor."""
        if self._recorder is None:
            return
        for hook in self._hooks:
            hook.remove()
        self._recorder.remove()
        self._recorder = None
        steps = self._past.steps
        if not self.stops and not any("nothing was measured" in note for note in self.notes):
            first = f"a budget of {self.budget:.0%} pays for a first at step {self._schedule.period:,}; "
            why = first if self.every is None else ""
            self._say(f"no stop within {steps:,} steps: {why}give every=, the steps from one to the next")
        self._sinks.write({"kind": "end", "step": self._before + steps, "overhead": self._overhead()})
        self._sinks.close()

    def step(self, batch: Any, *more: Any) -> Record | None:
        """After `optimizer.step()`: say what batch it was of. Measures where it is time to.

        Args:
            batch: as the criterion takes it; a list of such for a step of several micro-batches. A batch given without a step
                since the last call is a micro-batch of the next step.
            *more: further micro-batches.

        Returns:
            What was measured, as it is logged; None at most steps.
        """
        if self._recorder is None:
            raise BadInput("the monitor is not watching; use it in a with statement: with ml.Monitor(...) as monitor")
        return self._guarded(lambda: self._told([*held(batch), *more]))

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """Training never ends because the monitor cannot measure; what it takes is on its account."""
        start = time.perf_counter()
        try:
            with torch.no_grad():
                return action()
        except Exception as error:
            said = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
            self._present, self._stepped = None, False
            self._say(f"nothing was measured at step {self._before + self._past.steps:,}: {said}", once=said)
            return None
        finally:
            self._spent += time.perf_counter() - start

    def _say(self, text: str, once: str | None = None) -> None:
        """Once, whatever its numbers, on the log of Python and the run's."""
        reason = re.sub(r"[\d.,]+", "#", once or text)
        if reason in self._said:
            return
        self._said.add(reason)
        self.notes.append(text)
        logger.warning(text)
        if hasattr(self, "_sinks"):
            self._sinks.note(text, self._before + self._past.steps)

    def _overhead(self) -> float:
        """Seconds spent over those of the run without."""
        wall = time.perf_counter() - self._began
        return self._spent / max(wall - self._spent, 1e-9)

    @property
    def stepped(self) -> bool:
        """Whether the optimizer has stepped since `step` was last called."""
        return self._stepped

    def begin(self) -> None:
        """At the start of a criterion that draws random numbers before the model's forward pass (a diffusion's noise, say).

        In training it notes where the generators stand, in a replay it puts them there; otherwise the model's forward pass is
        where that is done. It may be called at any time, and does nothing then.
        """
        if self._recorder is not None:
            self._recorder.begin()

    def _hook(self, _: Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before a step; where the gradients come from a closure, after that has been called for the first time."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._guarded(self._before_step)
            return None
        told = False

        def then() -> Any:
            nonlocal told
            value = closure()
            if not told:
                told = True
                self._guarded(self._before_step)
            return value

        return ((*args[:1], *args[2:]), kwargs | {"closure": then})

    def _require_light(self) -> None:
        """Say if what is kept at every step takes more than the budget, which the stops alone go by."""
        wall = time.perf_counter() - self._began - self._stopping
        share = (self._spent - self._stopping) / max(wall, 1e-9)
        if self.every is None and share > self.budget:
            self._say(
                f"watching takes {share:.0%} of these steps, stops not counted, and the budget is {self.budget:.0%}: give "
                f"fewer coordinates= than {len(self._sample):,}, or betas=None for no map"
            )

    def _plan(self) -> None:
        """Draw for the stops that the next steps may be asked for by."""
        now = self._past.steps
        longest = draws.reach((*self._own, *self._others), 2**62)
        for n in self._schedule.within(max(self._planned, self._before), self._before + now + longest):
            self._planned = n
            local = n - self._before
            if local < now or n <= self._sinks.last:
                continue
            q = draws.sizes(self._own, self._others, local, longest)
            drawn = draws.draw(q, self.replays, np.random.default_rng([self.seed, n]))
            whole = None if self._sample.index is None or not self._groups else Whole(drawn, local, self._past)
            self._upcoming[local] = Upcoming(local, drawn, whole)
            for s in self._upcoming[local].steps:
                self._last_use[s] = max(self._last_use.get(s, 0), local)
        assert self._recorder is not None
        self._recorder.wanted = now in self._last_use or now in self._upcoming
        self._recorder.buffers_wanted = now in self._upcoming

    def _others_parts(self) -> list[slice]:
        """Where the tensors lie that the optimizer does not hold: it gets no gradient there, whatever their .grad is."""
        return [part for part, own in zip(self._layout.slices.values(), self._held, strict=True) if not own]

    def _fresh(self) -> None:
        """A forward pass begins: where no gradient is accumulated, what was pending belongs to no step (a skipped one)."""
        if self._pending and all(p.grad is None for p, own in zip(self._tensors, self._held, strict=True) if own):
            self._pending.clear()
            assert self._recorder is not None
            self._recorder.taken()

    def _before_step(self) -> None:
        s = self._past.steps
        self._past.note()
        used, stop = s in self._last_use, s in self._upcoming
        if not (used or stop or self._shadow):
            return
        scale = getattr(self._optimizer, "grad_scale", None)
        grads = [
            p.grad.detach() if own and p.grad is not None else torch.zeros_like(p)
            for p, own in zip(self._tensors, self._held, strict=True)
        ]
        grads = grads if scale is None else [g / scale for g in grads]
        if any(g.is_sparse for g in grads):
            raise BadType("a gradient is sparse; expected dense, use Embedding(sparse=False)")
        sampled = self._sample.of_tensors(grads)
        there = self._sample.of_tensors([p.detach() for p in self._tensors]) if self._uses_theta else None
        assert self._recorder is not None
        if used or stop:
            self._kept[s] = Step(self._recorder.taken(), gradient=sampled, theta=there)
        if used and self._sample.index is not None and self._groups:
            theta = self._layout.theta() if self._uses_theta else self._tensors[0].new_zeros(()).expand(self._layout.d)
            seen = images(self._groups, flat(grads), theta)
            for upcoming in self._upcoming.values():
                if upcoming.whole is not None and s in upcoming.whole:
                    upcoming.whole.add(s, seen)
        if stop:
            self._feed()  # what the shadows hold at a stop is what came before it
            lr = stepsize(self._optimizer, self._layout.used.keys())
            live = Live(self._optimizer, self._layout, self._past) if self._groups else None
            self._present = Present(s, self._layout.theta(), flat(grads), live, lr, None, self._recorder.buffers or {})
            self._recorder.buffers = None
        if self._shadow is not None:
            if self._waiting == FED:
                self._feed()
            self._fed[self._waiting] = sampled
            if there is not None:
                self._there[self._waiting] = there
            self._waiting += 1

    def _feed(self) -> None:
        """Give the shadows the gradients that were kept for them."""
        if self._shadow is not None and self._waiting:
            self._shadow.extend(self._fed[: self._waiting], self._there[: self._waiting] if self._uses_theta else self._fed[0])
            self._waiting = 0

    def _after_step(self) -> None:
        self._stepped = True
        if self._present is not None:
            self._present.theta_next = self._layout.theta()

    def _told(self, batches: list[Any]) -> Record | None:
        if self._past.steps == SETTLED and self._stepped:
            self._require_light()
        self._pending += batches
        if isinstance(self._probe, list) and self.data is None and len(self._probe) < PROBED:
            self._probe += batches[: PROBED - len(self._probe)]
        if not self._stepped:
            return None
        s, record = self._past.steps - 1, None
        self._stepped = False
        if s in self._kept:
            self._kept[s].hold(self._pending)
        self._pending = []
        try:
            if (present := self._present) is not None:
                record = self._measure(self._upcoming[s], present)
        finally:
            self._present = None
            self._upcoming.pop(s, None)
            for old in [k for k in self._kept if self._last_use.get(k, 0) <= s]:
                del self._kept[old]
                self._last_use.pop(old, None)
            self._plan()
        return record

    def _measure(self, upcoming: Upcoming, present: Present) -> Record | None:
        wall, start = time.perf_counter() - self._began, time.perf_counter()
        step_time = (wall - self._spent) / max(1, self._past.steps)
        gradients = len(upcoming.steps) + 1 + 4 * len(self.measures) * PROBED
        cost = self._cost or step_time * gradients + self._read * len(upcoming.steps)
        if not self._schedule.affords(cost, self._stopping, wall):
            return None
        assert self._recorder is not None
        self._recorder.wanted = False  # the passes of a measurement are none of the run's
        with isolated(self._layout.device):
            probe = Loss(self.model, self.criterion, self._probe, curvature="difference", noise="fixed")
            measuring = Measuring(
                self._sample,
                self._replay,
                probe,
                self.measures,
                self._shadow,
                list(self.shadows or ()),
                self.betas,
                self.seed,
            )
            found = measuring.stop(upcoming, present, self._kept)
        self._cost = time.perf_counter() - start
        self._stopping += self._cost
        self._spent += self._cost  # on the account at once; `_guarded` takes it for the record that it makes
        try:
            record = {"kind": "stop", "step": self._before + upcoming.n, "overhead": self._overhead(), "seconds": self._cost}
            record |= found
            self.stops.append(record)
            self._sinks.write(record)
        finally:
            self._spent -= self._cost
        return record


def _two_axes(betas: Any) -> bool:
    """Whether it is two sequences of numbers."""
    pair = isinstance(betas, (tuple, list, np.ndarray)) and len(betas) == 2
    return pair and all(not isinstance(b, str) and np.ndim(b) == 1 and np.asarray(b).dtype.kind in "fiu" for b in betas)


def _method(groups: list[tuple[int, tuple]]) -> AnyOptimizer | None:
    if not groups:
        return None
    parts = tuple(Part(method, index, 1.0) for _, (method, index) in groups)
    return Groups(parts, parts[0].method.lr)
