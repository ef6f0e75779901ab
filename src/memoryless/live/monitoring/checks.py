"""Steps of a monitored run judged as `check_step` does, and at a stop, where it is replayed, the gradient too.

In several processes each notes the step as it is taken, and they judge it together when `Monitor.step` is called after it: of
sharded parameters the whole step, of copies each its own, and what is wrong with one is told by all.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.flat import dot, norm
from memoryless.live.check import gradients
from memoryless.live.check.checking import check_step
from memoryless.live.check.history import BETWEEN
from memoryless.live.check.judging import Each, alone
from memoryless.live.check.step_check import Cause, StepCheck
from memoryless.live.monitoring.log import Record
from memoryless.live.monitoring.measuring import Present
from memoryless.live.monitoring.ranks import Here, Ranks
from memoryless.live.monitoring.replay import Replay, Step

EVERY = "every step"
UNSEEN = "it was not seen"
PURE = 0.999
"""What a factor explains where nothing but that factor is between two gradients."""

logger = logging.getLogger("memoryless")


class Checks:
    """Of one run.

    Args:
        optimizer: of the run.
        names: of its tensors by id.
        ranks: the processes.
        when: False for none, True for those at stops, or "every step".
        told: is given each record to be logged.
        note: is told why steps cannot be checked.

    Attributes:
        every: whether all steps are checked.
        steps: that were checked.
        unchecked: how many could not be.
        off: that were not the documented ones.
        last: the check of the latest step; None where that was not checked.
        due: whether the processes have yet to judge the latest step together.

    Raises:
        BadInput: when is something else.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        names: Mapping[int, str],
        ranks: Ranks,
        when: Any,
        told: Callable[[Record], object],
        note: Callable[[str], object],
    ):
        if not isinstance(when, bool) and not (isinstance(when, str) and when == EVERY):
            raise BadInput(f"check must be True (at stops), {EVERY!r} or False, got {when!r}")
        self.every, self._ranks, self._told, self._note = when == EVERY, ranks, told, note
        self.steps = self.off = self.unchecked = 0
        self.last: StepCheck | None = None
        self._checking, self._said, self._inside, self.due = None, set(), False, False
        self._judge: str | Callable[[Each], StepCheck] = UNSEEN
        self._said: set[tuple[str, ...]]
        if when:
            try:
                self._checking = check_step(optimizer)
                self._checking.names = dict(names)
            except BadInput as error:
                note(f"steps are not checked: {error}")

    @property
    def on(self) -> bool:
        """Whether any steps are checked."""
        return self._checking is not None

    def close(self) -> None:
        """No more steps come."""
        if self._checking is not None:
            self._checking.close()

    def before(self, stop: bool) -> None:
        """The optimizer is about to step, its gradients are in place.

        Args:
            stop: whether the step is a stop's.
        """
        self.last, self._judge = None, UNSEEN
        self.due = self.on and self._ranks.count > 1 and (stop or self.every)
        if self._checking is not None and self._inside:  # a step that raised
            self._inside = False
            self._checking.end(None)
        if self._checking is not None and (stop or self.every):
            self._inside, self._checking.whole = True, stop
            self._checking.begin()
            self._checking.note()

    def after(self, step: int) -> None:
        """It has stepped.

        Args:
            step: number of that in the run.
        """
        checking = self._checking
        if checking is None or not self._inside:
            return
        self._inside = False
        if self.due:
            checking.end(self._noted)
            if checking.result is not None and self._judge == UNSEEN:
                self._judge = checking.result.unchecked
            return
        checking.__exit__(None)
        if checking.result is not None and checking.stepped:
            self._take(replace(checking.result, step=step))

    def _noted(self, previous: Any) -> StepCheck:
        assert self._checking is not None
        self._judge = self._checking.noted(previous)
        return self._checking.unjudged(UNSEEN)

    def together(self, step: int) -> None:
        """The processes judge the latest step, where it is `due`.

        Args:
            step: number of that in the run.
        """
        judge, ranks, self.due = self._judge, self._ranks, False
        assert self._checking is not None
        try:
            if ranks.lost:
                raise BadInput("the processes are no longer at the same step")
            ranks.agree(Here(step + 1, True, (), judge if isinstance(judge, str) else None))
            assert not isinstance(judge, str)
            result = judge(ranks.each) if ranks.sharded else self._of_copies(judge)
        except Exception as error:  # the run goes on
            result = self._checking.unjudged(" ".join(str(error).split()) or type(error).__name__)
        self._take(replace(result, step=step))

    def _of_copies(self, judge: Callable[[Each], StepCheck]) -> StepCheck:
        """The own step, where every process finds its own to be right; else the first wrong one, else the first unchecked."""
        own: list[StepCheck] = []

        def wrong() -> StepCheck | None:
            own.append(judge(alone))
            return None if own[0].ok else replace(own[0], _shares=None)

        wrongs = {rank: found for rank, found in enumerate(self._ranks.each(wrong)) if found is not None}
        if not wrongs:
            return own[0]
        first = min(wrongs, key=lambda rank: (wrongs[rank].ok is None, rank))
        where = () if len(wrongs) == self._ranks.count else (f"in process {', '.join(map(str, wrongs))} alone",)
        # Shares are found when they are asked for, by each process of its own step: copies take the same one.
        return replace(wrongs[first], notes=(*wrongs[first].notes, *where), _shares=own[0]._shares)

    def _take(self, check: StepCheck) -> None:
        """Count it, and tell what is to be told of it."""
        self.last = check
        self.steps += check.ok is not None
        if check.ok is None:
            self.unchecked += 1
            self._note(f"step {check.step:,} could not be checked: {check.unchecked}")
        if BETWEEN in check.notes:
            self._note(f"before step {check.step:,} the {BETWEEN}")
        self.tell(check)

    def tell(self, check: StepCheck) -> None:
        """Log a broken step and warn of it, once for the same likeliest cause.

        Args:
            check: of it.
        """
        if check.ok is not False:
            return
        self.off += 1
        what = tuple(c.name for c in check.causes[:1]) or tuple(t.name for t in check.tensors)
        if what in self._said:
            return
        self._said.add(what)
        logger.log(logging.DEBUG if self._ranks.rank else logging.WARNING, check.verdict)
        found = check.as_dict()
        keys = "step", "ok", "verdict", "reference", "causes", "tensors", "notes"
        self._told({"kind": "check"} | {key: found[key] for key in keys})

    def record(self, noise_scale: float | None) -> Record | None:
        """The check of a stop's step, as it is logged there.

        Args:
            noise_scale: in batches.
        """
        if self.last is None:
            return None
        # Of a batch's squared gradient, E |g_b|^2 = |g|^2 + tr Sigma, the noise is tr Sigma.
        noise = self.last.noise if noise_scale is None else noise_scale / (1 + noise_scale)
        found: Record = {"ok": self.last.ok, "reference": self.last.reference, "noise": noise}
        return found | {"shares": None if self.last.unchecked else self.last.shares, "verdict": self.last.verdict}

    def with_gradient(self, causes: list[Cause], untold: str = "") -> None:
        """What a replay says of the gradient of the latest step.

        Args:
            causes: why it is another than that of its batches.
            untold: why that cannot be told.
        """
        if self.last is None:
            return
        if untold:
            self._note(f"the gradient of step {self.last.step:,} was not checked: {untold}")
            self.last = replace(self.last, notes=(*self.last.notes, f"the gradient was not checked: {untold}"))
        elif causes:
            known, notes = self.last.ok is False, self.last.notes
            if self.last.unchecked:
                notes = (*notes, f"the step itself could not be checked: {self.last.unchecked}")
            self.last = replace(self.last, causes=(*causes, *self.last.causes), notes=notes)
            self.off -= known  # told anew, with these
            self.tell(self.last)


def of_gradient(replay: Replay, present: Present, step: Step | None) -> tuple[list[Cause], str]:
    """Why the optimizer got another gradient than that of the step's batches, where it did; or why that cannot be told.

    Args:
        replay: takes the step again.
        present: the run at it.
        step: what is kept of it.

    Raises:
        BadInput: it cannot be taken again.
    """
    n, theta, gradient, buffers = present.n, present.theta, present.gradient, present.buffers
    signs = 2.0 * torch.randint(0, 2, theta.shape, generator=torch.Generator().manual_seed(0)) - 1
    eps = torch.finfo(theta.dtype).eps
    mean, moved = (replay.raw(n, step, x, buffers) for x in (theta, theta * (1 + eps * signs.to(theta))))
    doubt = gradients.PASSES * (float(norm(mean - moved)) + eps * float(norm(mean)))
    want = replay.transformed(mean)
    ratio = float(norm(want)) / max(float(norm(mean)), 1e-300)
    gap = float(norm(gradient - want))
    if gap <= doubt * max(ratio, 1.0 if replay.transforms else 0.0):
        return [], ""
    if why := _untold(replay, step):
        return [], why
    several = replay.ranks.count > 1
    each = [mean] if several else list(replay.each(n, step, theta, buffers))
    expected = gradients.Expected([[g] for g in each], [1] * len(each), [doubt], [None])
    if several and not replay.ranks.sharded:
        expected.own = [replay.own(n, step, theta, buffers)]

    def change(x: gradients.Gradients) -> gradients.Gradients:
        return [None if t is None else replay.transformed(t.to(theta)) for t in x]

    found = gradients.causes([gradient], expected, change, [gradient], None, replay.ranks.count, None)
    text = f"it is not that of the batch, {gap / max(float(norm(want)), 1e-300):.2g} of its norm off"
    unknown = Cause("another gradient", text, ("all",), 0.0)
    causes = list({name: Cause(name, text, ("all",), share) for name, text, share in reversed(found)}.values())[::-1]
    if causes and causes[0].name == "gradient clipped" and causes[0].explains > PURE and not replay.transforms:
        c = float(dot(want, gradient) / dot(want, want))
        return [], f"it is {c:.4g} times that of the batch; where the loop clips it, give gradient=, what it does to that"
    return causes or [unknown], ""


def _untold(replay: Replay, step: Step | None) -> str:
    """Why a replayed gradient may be another than the one of the run; empty where nothing makes it so."""
    if not replay.ranks.sharded and gradients.hooked(replay.parameters):
        return gradients.HOOKED
    if step is not None and any(seen.autocast is torch.float16 for seen in step.passes):
        return gradients.HALF
    return ""
