"""What is kept of a run between stops, for those to come: hyperparameters, drawn steps, sums, the shadows' gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from memoryless.errors import BadType
from memoryless.flat import Layout, flat, local
from memoryless.live.monitoring import draws
from memoryless.live.monitoring.measuring import Present, Upcoming
from memoryless.live.monitoring.past_weights import Live, Past
from memoryless.live.monitoring.replay import Recorder, Step
from memoryless.live.monitoring.sample import Sample
from memoryless.live.monitoring.schedule import Schedule
from memoryless.live.monitoring.subjects import Subjects
from memoryless.live.monitoring.whole import Whole, images
from memoryless.methods.black_box.torch_method import stepsize

FED = 32
"""Gradients that the shadows take at once."""


class Watching:
    """A run as its optimizer steps.

    Args:
        optimizer: of the run.
        layout: of theta.
        sample: coordinates.
        subjects: whose memories are measured.
        schedule: when.
        replays: past steps that are taken again at a stop.
        seed: of the draws.

    Attributes:
        past: hyperparameters of the steps watched so far.
        before: steps that the run had behind it.
        shadow: the memories that do not run.
        recorder: of forward passes, while the run is watched.
        stepped: whether the optimizer has stepped since the last `told`.
        kept: the steps to be replayed.
        present: the run at the step of a stop.
        error: why what the present step was cannot be known; None where it can.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layout: Layout,
        sample: Sample,
        subjects: Subjects,
        schedule: Schedule,
        replays: int,
        seed: int,
    ):
        self._optimizer, self._layout, self._sample, self._subjects = optimizer, layout, sample, subjects
        self._schedule, self._replays, self._seed, self._tensors = schedule, replays, seed, list(layout.parameters.values())
        self.past, self.before, self.recorder = Past(optimizer), 0, None
        self.recorder: Recorder | None
        used = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._held = [id(p) in used for p in self._tensors]
        self.shadow, self._waiting = subjects.shadow(layout, sample), 0
        if self.shadow is not None:
            # Written over again and again: no new memory is asked for as the run goes on.
            self._fed, self._there = (layout.tensors[0].new_empty((FED, len(sample))) for _ in range(2))
        self._variables = subjects.variables(self.shadow)
        self._uses_theta = any(v.uses_theta for v in self._variables)
        self._upcoming: dict[int, Upcoming] = {}
        self._last_use: dict[int, int] = {}
        self.kept: dict[int, Step] = {}
        self._pending: list[Any] = []
        self._planned, self.stepped, self._skips = 0, False, False
        self.present: Present | None = None
        self.error: str | None = None

    @property
    def step(self) -> int:
        """Steps that the run has behind it now."""
        return self.before + self.past.steps

    @property
    def at_stop(self) -> bool:
        """Whether the step that is about to be taken is a stop's."""
        return self.past.steps in self._upcoming

    @property
    def not_held(self) -> list[slice]:
        """Where the tensors lie that the optimizer does not hold: it gets no gradient there, whatever their .grad is."""
        return [part for part, own in zip(self._layout.slices.values(), self._held, strict=True) if not own]

    def plan(self, last: int) -> None:
        """Draw for the stops that the next steps may be asked for by.

        Args:
            last: step of the last stop that is known already.
        """
        now = self.past.steps
        longest = draws.reach(self._variables, 2**62)
        for n in self._schedule.within(max(self._planned, self.before), self.before + now + longest):
            self._planned = n
            local = n - self.before
            if local < now or n <= last:
                continue
            others = () if self.shadow is None else self.shadow.variables
            q = draws.sizes(self._subjects.own, others, local, longest)
            drawn = draws.draw(q, self._replays, np.random.default_rng([self._seed, n]))
            whole = None if self._sample.index is None or not self._subjects.groups else Whole(drawn, local, self.past)
            self._upcoming[local] = Upcoming(local, drawn, whole)
            for s in self._upcoming[local].steps:
                self._last_use[s] = max(self._last_use.get(s, 0), local)
        assert self.recorder is not None
        self.recorder.wanted = now in self._last_use or now in self._upcoming
        self.recorder.buffers_wanted = now in self._upcoming

    def fresh(self) -> None:
        """A forward pass begins: where no gradient is accumulated, what was pending belongs to no step (a skipped one)."""
        if self._pending and all(p.grad is None for p, own in zip(self._tensors, self._held, strict=True) if own):
            self._pending.clear()
            assert self.recorder is not None
            self.recorder.taken()

    def before_step(self) -> None:
        """The optimizer is about to step: what must be kept of that is."""
        # A fused optimizer under a GradScaler is called for every step, and skips by itself what met an infinity.
        infinite = getattr(self._optimizer, "found_inf", None)
        self._skips = infinite is not None and float(infinite) != 0
        if self._skips:
            return
        s = self.past.steps
        self.past.note()
        used, stop = s in self._last_use, s in self._upcoming
        if not (used or stop or self.shadow):
            return
        grads = self._gradients()
        sampled = self._sample.of_tensors(grads)
        there = self._sample.of_tensors([local(p.detach()) for p in self._tensors]) if self._uses_theta else None
        assert self.recorder is not None
        if used or stop:
            self.kept[s] = Step(self.recorder.taken(), gradient=sampled, theta=there)
        if used and self._sample.index is not None and self._subjects.groups:
            theta = self._layout.theta() if self._uses_theta else self._layout.tensors[0].new_zeros(()).expand(self._layout.d)
            seen = images(self._subjects.groups, flat(grads), theta)
            for upcoming in self._upcoming.values():
                if upcoming.whole is not None and s in upcoming.whole:
                    upcoming.whole.add(s, seen)
        if stop:
            self._feed()  # what the shadows hold at a stop is what came before it
            lr = stepsize(self._optimizer, self._layout.used.keys())
            live = Live(self._optimizer, self._layout, self.past) if self._subjects.groups else None
            self.present = Present(s, self._layout.theta(), flat(grads), live, lr, None, self.recorder.buffers or {})
            self.recorder.buffers = None
        if self.shadow is not None:
            if self._waiting == FED:
                self._feed()
            self._fed[self._waiting] = sampled
            if there is not None:
                self._there[self._waiting] = there
            self._waiting += 1

    def _gradients(self) -> Sequence[torch.Tensor]:
        """What the optimizer gets, tensor by tensor."""
        scale = getattr(self._optimizer, "grad_scale", None)
        grads = [
            local(p.grad.detach()) if own and p.grad is not None else torch.zeros_like(local(p))
            for p, own in zip(self._tensors, self._held, strict=True)
        ]
        grads = grads if scale is None else [g / scale for g in grads]
        if any(g.is_sparse for g in grads):
            raise BadType("a gradient is sparse; expected dense, use Embedding(sparse=False)")
        return grads

    def _feed(self) -> None:
        """Give the shadows the gradients that were kept for them."""
        if self.shadow is not None and self._waiting:
            self.shadow.extend(self._fed[: self._waiting], self._there[: self._waiting] if self._uses_theta else self._fed[0])
            self._waiting = 0

    def after_step(self) -> None:
        """The optimizer has stepped."""
        if self._skips:
            return
        self.stepped = True
        if self.present is not None:
            self.present.theta_next = self._layout.theta()

    def told(self, batches: list[Any]) -> Upcoming | None:
        """Micro-batches of the step that was just taken, or of the next one.

        Args:
            batches: as given.

        Returns:
            The stop that the step is, if it is one.
        """
        self._pending += batches
        if not self.stepped:
            return None
        self.stepped = False
        s = self.past.steps - 1
        if s in self.kept:
            self.kept[s].hold(self._pending)
        self._pending = []
        return self._upcoming.get(s)

    def forget(self) -> None:
        """What no later stop asks for."""
        s, self.present, self.error = self.past.steps - 1, None, None
        self._upcoming.pop(s, None)
        for old in [k for k in self.kept if self._last_use.get(k, 0) <= s]:
            del self.kept[old]
            self._last_use.pop(old, None)
