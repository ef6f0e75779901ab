"""The monitor: memory's effect in a training run as it happens, fed by hooks of the optimizer's step.

The gradient is the one that the optimizer really gets (clipped, unscaled, averaged), the update the one that it really makes.
Of past steps a few, drawn in advance, keep their batch by reference and where the generators stood, and are taken again at a
stop (`draws`, `replay`); from these follows what the same batches would have left at the present theta (`frozen`). The run
stays bit for bit what it is without the monitor, and goes on where that cannot measure.
"""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from memoryless.errors import BadInput, BadType
from memoryless.flat import Layout, norm, sharded
from memoryless.isolation import isolated
from memoryless.live.monitoring.account import Account
from memoryless.live.monitoring.checks import Checks, of_gradient
from memoryless.live.monitoring.log import Record, Sinks
from memoryless.live.monitoring.measuring import Measuring, Upcoming
from memoryless.live.monitoring.ranks import Here, Ranks, SharedLoss, inside
from memoryless.live.monitoring.replay import Criterion, Recorder, Replay, Transform, held
from memoryless.live.monitoring.sample import Sample
from memoryless.live.monitoring.schedule import Schedule
from memoryless.live.monitoring.shards import are_sharded
from memoryless.live.monitoring.subjects import Betas, Subjects
from memoryless.live.monitoring.watching import Watching
from memoryless.loss.measures import Differentiable
from memoryless.methods.live_optimizer import step_of
from memoryless.methods.method import AnyOptimizer
from memoryless.methods.wrapped import unwrapped

BETAS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99), (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
"""Axes of the map."""
PROBED = 4
"""Batches at the head of a run that the measures are of, where no others are given."""
ALIKE = "every", "budget", "coordinates", "betas", "replays", "seed", "check"
"""What the processes of a run must be given alike."""
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
        model: trained, float32 or float64; with DistributedDataParallel or fully_shard every process makes a monitor of its own
            part, effects are of the global batch, and the first process alone writes the log.
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
        check: whether steps are judged as `check_step` does: True those at stops, with their gradients, "every step" all. A
            broken one is logged and warned of, once for the same cause; shares of the steps at stops are logged. In several
            processes all are told of the same.

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
    betas: Betas | None = BETAS
    replays: int = 64
    data: Iterable[Any] | None = None
    measures: Sequence[str | Differentiable] = ("gradient_1_norm",)
    start: int | None = None
    seed: int = 0
    check: bool | Literal["every step"] = False
    stops: list[Record] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._ranks = Ranks()
        # What a process does by itself holds no conversation: one that fails in it would leave the others talking to none.
        self._ranks.together(self._require)
        shadows = [getattr(method, "name", type(method).__name__) for method in self.shadows or ()]
        given = {name: getattr(self, name) for name in ALIKE} | {"measures": self._names, "shadows": shadows}
        self._ranks.require_alike(given)
        parts = self._ranks.told(self._layout.d)
        self._sample = self._ranks.together(lambda: self._sampled(self._layout, parts))
        sampled = self._ranks.told(len(self._sample))
        of = sum if self._ranks.sharded else max
        self._d, self._coordinates = of(parts), of(sampled)
        self._ranks.together(self._set_up)

    def _require(self) -> None:
        self._require_arguments()
        model = self._model = inside(self.model)
        ranks = self._ranks
        ranks.sharded = are_sharded(model)
        optimizer = self._optimizer = unwrapped(self.optimizer)
        if not getattr(type(optimizer).step, "hooked", False):  # torch's mark, set by Optimizer.__init__
            name = type(optimizer).__name__
            raise BadInput(
                f"{name}'s step calls no hooks, so it cannot be watched; expected an optimizer whose __init__ calls that of "
                "torch.optim.Optimizer"
            )
        layout = self._layout = Layout({name: p for name, p in model.named_parameters() if p.requires_grad})
        ranks.loss(model, self.criterion, [None])  # refuses what it cannot take, in its own words
        if not {id(p) for group in optimizer.param_groups for p in group["params"]} & set(layout.used):
            raise BadInput("the optimizer holds none of the model's trainable parameters; build both from the same model")

    def _set_up(self) -> None:
        optimizer, layout, sample = self._optimizer, self._layout, self._sample
        subjects = self._subjects = Subjects(optimizer, layout, list(self.shadows or ()), self.betas)
        gradients = self.replays + 1 + 4 * len(self.measures) * PROBED
        self._schedule = Schedule(self.every, self.budget, gradients)
        self._watching = Watching(optimizer, layout, sample, subjects, self._schedule, self.replays, self.seed)
        self._entered, self._depth, self._hooks, self._account = False, 0, [], Account()
        self._hooks: list[Any]
        self._probe: list[Any] | Iterable[Any] = [] if self.data is None else self.data
        self._said: set[str] = set()
        if subjects.unknown is not None:
            self._say(f"{subjects.unknown}: its own memory is not measured, only shadows")
        names = {id(p): name for name, p in self._model.named_parameters()}
        self._checks = Checks(optimizer, names, self._ranks, self.check, lambda record: self._sinks.write(record), self._say)
        self._sinks = Sinks(None if self._ranks.rank else self.log, self._head(), self._say)  # one log

    def _sampled(self, layout: Layout, parts: Sequence[int]) -> Sample:
        """Of a part of theta its share of the coordinates; all of it if all of theta is."""
        ranks = self._ranks
        if not ranks.sharded:
            return Sample(layout.sizes, self.coordinates, self.seed, layout.device)
        if not all(parts):
            raise BadInput(f"a process holds no part of the parameters ({parts}): fewer processes are needed")
        if any(callable(measure) or measure == "sharpness" for measure in self.measures):
            raise BadInput("of sharded parameters only named measures are known, and not sharpness")
        part = sum(parts) > self.coordinates
        count = -(-self.coordinates // ranks.count) if part else layout.d
        return Sample(layout.sizes, count, self.seed + ranks.rank, layout.device, part)

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

    @property
    def _names(self) -> list[str]:
        return [m if isinstance(m, str) else getattr(m, "__name__", type(m).__name__) for m in self.measures]

    def _head(self) -> Record:
        methods = " and ".join(str(method) for _, (method, _) in self._subjects.groups)
        return {
            "kind": "run",
            "format": 1,
            "optimizer": type(self._optimizer).__name__,
            "method": methods or type(self._optimizer).__name__,
            "d": self._d,
            "measures": self._names,
            "coordinates": self._coordinates,
            "replays": self.replays,
            "every": self.every,
            "budget": self.budget,
            "betas": list(self._subjects.groups[0][1][0].hyper["betas"]) if self._subjects.betas is not None else None,
        }

    def _count(self) -> None:
        """What is behind the optimizer; the log must be of the run that goes on here."""
        if self._entered:
            raise BadInput(
                "this monitor has watched its run, and watches no other: make a new ml.Monitor (the log may be the same)"
            )
        self._entered = True
        self._watching.past.begin()
        if self._sinks.last >= 0 and not self._watching.past.before:
            raise BadInput(
                f"the log has stops up to step {self._sinks.last:,}, and the optimizer has no steps behind it: another run; "
                "give another file, or load the optimizer's state before the with statement"
            )
        counted = step_of(self._optimizer)
        self._watching.before = (counted or 0) if self.start is None else self.start
        if counted is None and self.start is None:
            self._say(f"{type(self._optimizer).__name__} does not count its steps: they are counted from here; give start=")

    def __enter__(self) -> "Monitor":
        """Begin to watch; the steps that the optimizer has taken until now are those behind it.

        Raises:
            BadInput: it has been entered before, or the log is of another run.
        """
        try:
            self._ranks.together(self._count)
            behind = self._ranks.told((self._watching.before, self._sinks.last))
            if len({before for before, _ in behind}) > 1:
                raise BadInput(f"the processes have different numbers of steps behind them: {[before for before, _ in behind]}")
        except BadInput:
            self._sinks.close()
            raise
        self._last = behind[0][1]
        watching = self._watching
        watching.recorder = Recorder(self._model, self._layout.device, watching.fresh)
        how = watching.recorder, self.gradient, self._ranks, self._layout, watching.not_held
        self._replay = Replay(self._model, self.criterion, *how)
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._hook),
            self._optimizer.register_step_post_hook(lambda *_: self._guarded(self._after_step)),
        ]
        self._account = Account()
        self._guarded(lambda: watching.plan(self._last))
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching, and say what was found."""
        self.close()

    def close(self) -> None:
        """Stop watching; the model and the optimizer are as if there had been no monitor."""
        watching = self._watching
        if watching.recorder is None:
            return
        for hook in self._hooks:
            hook.remove()
        self._checks.close()
        watching.recorder.remove()
        watching.recorder = None
        steps = watching.past.steps
        if not self.stops and not any("nothing was measured" in note for note in self.notes):
            first = f"a budget of {self.budget:.0%} pays for a first at step {self._schedule.period:,}; "
            why = first if self.every is None else ""
            self._say(f"no stop within {steps:,} steps: {why}give every=, the steps from one to the next")
        checks = self._checks
        checked = {"checked": checks.steps, "off": checks.off, "unchecked": checks.unchecked} if checks.on else {}
        self._sinks.write({"kind": "end", "step": watching.step, "overhead": self._account.overhead} | checked)
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
        if self._watching.recorder is None:
            raise BadInput("the monitor is not watching; use it in a with statement: with ml.Monitor(...) as monitor")
        return self._guarded(lambda: self._told(batch, more))

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """Training never ends because the monitor cannot measure; what it takes is on its account."""
        watching = self._watching
        with self._account.spending():
            try:
                with torch.no_grad():
                    return action()
            except Exception as error:
                said = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
                watching.present, watching.stepped, watching.error = None, False, said
                self._say(f"nothing was measured at step {watching.step:,}: {said}", once=said)
                return None

    def _say(self, text: str, once: str | None = None) -> None:
        """Once, whatever its numbers, on the log of Python and the run's."""
        reason = re.sub(r"[\d.,]+", "#", once or text)
        if reason in self._said:
            return
        self._said.add(reason)
        self.notes.append(text)
        logger.log(logging.DEBUG if self._ranks.rank else logging.WARNING, text)
        if hasattr(self, "_sinks"):
            self._sinks.note(text, self._watching.step)

    @property
    def stepped(self) -> bool:
        """Whether the optimizer has stepped since `step` was last called."""
        return self._watching.stepped

    def begin(self) -> None:
        """At the start of a criterion that draws random numbers before the model's forward pass (a diffusion's noise, say).

        In training it notes where the generators stand, in a replay it puts them there; otherwise the model's forward pass is
        where that is done. It may be called at any time, and does nothing then.
        """
        if self._watching.recorder is not None:
            self._watching.recorder.begin()

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

    def _before_step(self) -> None:
        self._depth += 1
        if self._depth > 1:  # called by the step of a class derived from it, which has told already
            return
        self._checks.before(self._watching.at_stop)
        self._watching.before_step()

    def _after_step(self) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        self._checks.after(self._watching.step - 1)
        self._watching.after_step()

    def _require_light(self) -> None:
        """Say if what is kept at every step takes more than the budget, which the stops alone go by."""
        share = self._account.watching
        if self.every is None and share > self.budget and not self._checks.every:
            self._say(
                f"watching takes {share:.0%} of these steps, stops not counted, and the budget is {self.budget:.0%}: give "
                f"fewer coordinates= than {self._coordinates:,}, or betas=None for no map"
            )

    def _told(self, batch: Any, more: Sequence[Any]) -> Record | None:
        watching, unread, self._depth = self._watching, None, 0
        if watching.past.steps == SETTLED and watching.stepped:
            self._require_light()
        try:
            batches = [*held(batch), *more]
        except BadInput as error:  # the other processes come to a stop all the same
            batches, unread = [], error
            watching.error = str(error)
        if isinstance(self._probe, list) and self.data is None and len(self._probe) < PROBED:
            self._probe += batches[: PROBED - len(self._probe)]
        stepped, upcoming = watching.stepped, watching.told(batches)
        try:
            if stepped and self._checks.due:
                self._checks.together(watching.step - 1)
            if upcoming is not None and not self._ranks.lost:
                return self._measure(upcoming)
            if unread is not None:
                raise unread
            return None
        finally:
            if stepped:
                watching.forget()
                watching.plan(self._last)

    def _affords(self, upcoming: Upcoming) -> bool:
        """Whether the budget pays for a stop: for what the last took, or what it should take by the steps' own time."""
        account, replayed = self._account, len(upcoming.steps)
        step_time = (account.wall - account.spent) / max(1, self._watching.past.steps)
        gradients = replayed + 1 + 4 * len(self.measures) * PROBED
        read = READ * len(self._sample) * (self._subjects.cells + len(self._subjects.others))
        cost = account.cost or step_time * gradients + read * replayed
        return self._schedule.affords(cost, account.stopping, account.wall)

    def _measure(self, upcoming: Upcoming) -> Record | None:
        watching, account, ranks = self._watching, self._account, self._ranks
        present, error = watching.present, watching.error
        if present is None and error is None:
            error = "the stop's own step was not seen"
        sizes = ()
        if present is not None and not ranks.sharded:  # copies of one another
            sizes = (float(norm(present.gradient)), float(norm(present.theta)))
        if not ranks.agree(Here(watching.step, self._affords(upcoming), sizes, error)):
            return None
        assert present is not None
        assert watching.recorder is not None
        watching.recorder.wanted = False  # the passes of a measurement are none of the run's
        with account.stop(), isolated(self._layout.device), sharded(ranks.summed if ranks.sharded else None):
            if self._checks.on:
                self._checks.with_gradient(*of_gradient(self._replay, present, watching.kept.get(present.n)))
            options: Any = {"curvature": "difference", "noise": "fixed"}
            measuring = Measuring(
                self._sample,
                self._replay,
                SharedLoss.of_all(ranks, self._model, self.criterion, self._probe, **options),
                [measure if isinstance(measure, str) else ranks.measure(measure) for measure in self.measures],
                watching.shadow,
                self._subjects.others,
                self._subjects.betas,
                self.seed,
            )
            found = measuring.stop(upcoming, present, watching.kept)
        record = {
            "kind": "stop",
            "step": self._watching.before + upcoming.n,
            "overhead": account.overhead,
            "seconds": account.cost,
        }
        record |= found
        if self._checks.last is not None:
            record["check"] = self._checks.record(found["noise_scale"])
        self.stops.append(record)
        self._sinks.write(record)
        return record
