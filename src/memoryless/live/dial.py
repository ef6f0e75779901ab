"""The dial: memory's effect scaled, all else equal. A torch optimizer around a torch optimizer.

    update_s = u + s (u - F)          u the optimizer's own update, F its memoryless one (Eq. 4 of https://arxiv.org/abs/2502.02132)

s = 0 is the optimizer, -1 its memoryless twin, +1 the optimizer with twice the effect. u is what its own step did to the
parameters, so that hooks and schedules count. Full batch F follows from the present gradient: m_l = c_l g_l with the weight c_l
of all ages, finite n and moved betas included (`Memory.weights`). Along mini-batches a gradient is one batch's and the memory
that of many: it is carried along to the present point, one gradient more a step (`live.transport`).
"""

import logging
import math
import numbers
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import NAdam, Optimizer

from memoryless.errors import BadInput, BadType, NotRecognised
from memoryless.flat import dot, flat, norm
from memoryless.live.again import Again
from memoryless.live.chunks import Chunk
from memoryless.live.memories import Memories
from memoryless.live.monitoring.replay import Criterion, Transform
from memoryless.live.own_effect import own_effect
from memoryless.live.repeated import Repeated
from memoryless.live.transport import Memory, Now, Past
from memoryless.methods.black_box.snapshot import insists_on_closure
from memoryless.methods.live_optimizer import step_of
from memoryless.methods.wrapped import undialled, unwrapped

Strength = float | Callable[[int], float]
LONG = 0.1
"""Share of the steps with a term longer than the update, or of second moments at their floor, from which it is said."""

OWN = {"heavy_ball", "adam", "adamw"}
"""Methods whose batches' effect on themselves is known: what a batch pushes in k steps is 1 - beta_1^k of the whole."""

MOST = 0.25
"""Of the optimizer's own update, above which a bias of F is not taken off: it is a first term."""

PLACEBOS = "scrambled", "permuted"

logger = logging.getLogger("memoryless")


def dial(
    optimizer: Optimizer,
    strength: Strength = -1.0,
    *,
    model: nn.Module | None = None,
    criterion: Criterion | None = None,
    gradient: Transform | None = None,
    twin: str = "fresh",
    second: tuple[float, float] | None = None,
    placebo: str | None = None,
    seed: int = 0,
) -> "Dial":
    """An optimizer with its memory's effect turned: update_s = u + s (u - F).

    Args:
        optimizer: live, one that moves each coordinate by itself: torch's SGD, Adam, AdamW, NAdam, RMSprop, a method of the
            catalogue as a `MethodOptimizer`; full batch any other too, whose F[n] takes n + 1 of its own steps.
        strength: s, or a function of the dial's step 0, 1, ...: -1 cancels memory's effect, 0 leaves it, 1 doubles it.
        model: with criterion, for mini-batches: `step(batch=batch)`. Without, every gradient is taken for the full batch's.
        criterion: `criterion(model, batch)` returns the mean loss of a batch, the one that is trained.
        gradient: what the loop does to a step's gradient, as one vector of shape (d,), before the optimizer gets it: clips its
            norm, say. As for `Monitor`.
        twin: along mini-batches "fresh", F of the mean loss, one gradient more a step; "same", F of the same batches, with each
            batch's effect on itself too, a gradient more for each variable that remembers (heavy ball, Adam, AdamW).
        second: (b', floor) along mini-batches: the beta by which a second moment is carried, and the share of the optimizer's
            own below which it is not trusted. By default b' follows from the noise of what is carried, and the share is .02.
        placebo: "scrambled" permutes the extra term within each tensor and gives each coordinate a sign, once for all steps: a
            term of that size and persistence with no direction. "permuted" leaves the signs, and with them the tensor's mean,
            which moves the loss by up to .4 of memory's effect (benchmarks/README.md).
        seed: of the permutations.

    Raises:
        BadType: something is of another type than expected.
        BadInput: the optimizer cannot be dialled, or an argument is out of range; says why.

    Example:
        >>> import memoryless as ml
        >>> theta = nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = ml.dial(torch.optim.SGD([theta], lr=0.1, momentum=0.5), -1.0)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     (theta**2).sum().div(2).backward()
        ...     optimizer.step()
        >>> theta.data / torch.tensor([1.0, -2.0])         # (1 - .1)(1 - .15): F[1] = (1 + .5) g
        tensor([0.7650, 0.7650])
    """
    optimizer = unwrapped(optimizer)
    if not isinstance(optimizer, Optimizer):
        raise BadType(f"dial takes a torch optimizer, got {type(optimizer).__name__}")
    if undialled(optimizer) is not optimizer:
        raise BadInput("this optimizer is dialled already; set its strength")
    if (model is None) != (criterion is None):
        raise BadInput("mini-batches need both model= and criterion=, full batch neither")
    if twin not in ("fresh", "same"):
        raise BadInput(f"twin must be 'fresh' or 'same', got {twin!r}")
    if placebo not in (None, *PLACEBOS):
        raise BadInput(f"placebo must be None, {' or '.join(map(repr, PLACEBOS))}, got {placebo!r}")
    pair = isinstance(second, (tuple, list)) and len(second) == 2
    if second is not None and not (pair and all(isinstance(x, numbers.Real) and 0 <= x < 1 for x in second)):
        raise BadInput(f"second must be (b', floor), both in [0, 1), got {second!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise BadInput(f"seed must be a whole number, got {seed!r}")
    if model is None and (gradient is not None or twin == "same" or second is not None):
        raise BadInput("gradient=, twin='same' and second= are of mini-batches: give model= and criterion=")
    made = Dial.__new__(Dial)
    made.__setstate__({"dialled": optimizer, "defaults": dict(optimizer.defaults)})
    made._begin(strength, placebo, seed, second)
    if model is not None and criterion is not None:
        made._carry(model, criterion, gradient, twin == "same")
    return made


class Dial(Optimizer):
    """What `dial` makes; `param_groups` and `state` are the dialled optimizer's own.

    Attributes:
        dialled: the optimizer.
        steps: taken by the dial.
        off: why memory is not dialled any more and the steps are the optimizer's own; None where it is.
        notes: what was said, each once.
    """

    dialled: Optimizer

    def _begin(self, strength: Strength, placebo: str | None, seed: int, second: tuple[float, float] | None) -> None:
        self.steps, self.off, self.notes = 0, None, list[str]()
        self._placebo, self._seed = placebo, seed
        self._again: Again | None = None
        self._repeated: Repeated | None = None
        self._own = False
        self._orders: dict[int, tuple[Tensor, Tensor]] = {}
        self._tally: dict[str, Any] = dict.fromkeys(("floored", "carried", "longer", "skipped"), 0)
        self.strength = strength
        optimizer, name = self.dialled, type(self.dialled).__name__
        self._memories = Memories(optimizer, second)
        self._betas = [str(group.get("betas")) for group in optimizer.param_groups]
        if insists_on_closure(optimizer):
            raise BadInput(
                f"{name} evaluates the loss within its step, which cannot be had twice: its memory cannot be dialled"
            )
        if any(p.is_complex() for p in self._memories.parameters()):
            raise BadType("a parameter is complex; hold it as torch.view_as_real(w), which the dial takes")
        if any(hasattr(p, "to_local") for p in self._memories.parameters()):
            raise BadInput("the parameters are sharded (fully_shard), and the dial takes whole ones")
        try:
            methods = [self._memories.method(group) for group in optimizer.param_groups]
        except NotRecognised:
            if step_of(optimizer) != 0:
                raise BadInput(
                    f"{name} has steps behind it, and without a formula F[n] needs them all: dial it before its first step"
                ) from None
            self._memories.formula, self._repeated = False, Repeated(optimizer)
            self._say(f"{name} has no formula here: its memoryless update takes n + 1 of its own steps at step n")
            return
        for group in optimizer.param_groups:  # refuses steps behind it that it does not count
            for p in group["params"]:
                self._memories.counted(p, group)
        if bad := next((method for method in methods if not method.elementwise), None):
            raise BadInput(f"{bad} moves a coordinate by the gradients of others, so its memory cannot be dialled")

    def _carry(self, model: nn.Module, criterion: Criterion, gradient: Transform | None, own: bool) -> None:
        """Along mini-batches."""
        if self._repeated is not None:
            name = type(self.dialled).__name__
            raise BadInput(f"along mini-batches the dial needs an optimizer in momentum form, and {name} has no formula here")
        for method in map(self._memories.method, self.param_groups):
            if method.hyper.get("centered"):
                raise BadInput("centered RMSprop divides by a difference of two memories, which noise makes negative")
            if own and method.name not in OWN:
                raise BadInput(f"twin='same' is known for {', '.join(sorted(OWN))}, got {method.name}; take twin='fresh'")
        self._again, self._own = Again(model, criterion, gradient, self._memories.parameters()), own
        if others := self._again.others:
            self._say(
                f"{others} of the model's trainable parameters are not this optimizer's: where another one moves them, the "
                "batches are carried to other points than those of the run"
            )

    # What a torch optimizer is.

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dialled optimizer's own."""
        return self.dialled.param_groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dialled optimizer's own."""
        return self.dialled.state

    def __getstate__(self) -> dict[str, Any]:
        # A schedule patches `step` with a function bound to this very object.
        return {key: value for key, value in vars(self).items() if key != "step"} | {"_orders": {}}  # by id

    def __repr__(self) -> str:
        return f"Dial(strength={self._strength!r}) of {self.dialled!r}"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the new parameters have no past."""
        self.dialled.add_param_group(param_group)
        self._betas = [str(group.get("betas")) for group in self.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's."""
        self.dialled.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The dialled optimizer's, and the dial's own part under "dial"; what `dial` was given is not in it."""
        own = {
            "steps": self.steps,
            "off": self.off,
            "passes": 0 if self._again is None else self._again.passes,
            "tally": {key: int(value) for key, value in self._tally.items()},
            "memories": self._memories.saved(),
            "past": [] if self._repeated is None else self._repeated.past,
        }
        return self.dialled.state_dict() | {"dial": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on bit for bit where a dial with the same arguments was; from the optimizer's own state dict, begin there.

        Args:
            state_dict: of a dial, or of the dialled optimizer.
        """
        own = state_dict.get("dial", {"steps": 0, "off": None, "passes": 0, "tally": {}, "memories": [], "past": []})
        if "dial" not in state_dict and self._repeated is not None and state_dict["state"]:
            raise BadInput('without a formula F[n] needs all steps: load the dial\'s own state dict, with its part "dial"')
        self.dialled.load_state_dict({key: value for key, value in state_dict.items() if key != "dial"})
        self.steps, self.off, self._tally = own["steps"], own["off"], self._tally | own["tally"]
        self._memories.load(own["memories"])
        if self._again is not None:
            self._again.passes = own["passes"]
        if self._repeated is not None:
            self._repeated.past = own["past"]
        if self.off is not None and self._again is not None:
            self._again.close()

    @property
    def strength(self) -> Strength:
        """s, or a function of the step."""
        return self._strength

    @strength.setter
    def strength(self, strength: Strength) -> None:
        if not callable(strength) and not _finite(strength):
            raise BadInput(f"strength must be a finite number, or a function of the step that gives one, got {strength!r}")
        self._strength = strength

    @property
    def along_batches(self) -> bool:
        """Whether a step wants its batch."""
        return self._again is not None

    @property
    def counts(self) -> dict[str, int]:
        """What could not be held, over all steps.

        `floored` of the `carried` second moments lay at their floor (coordinates), in `longer` of the `steps` the term was
        longer than the optimizer's update, `skipped` steps had no finite strength.
        """
        return {"steps": self.steps} | {key: int(value) for key, value in self._tally.items()}

    # A step.

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, batch: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The optimizer's step, and s times memory's effect on it once more.

        Args:
            closure: evaluates the loss and its gradients, once.
            batch: along mini-batches that of this step; a list of them where their gradients were accumulated.

        Returns:
            What the closure returns.

        Raises:
            BadInput: no batch where one is needed, or one where every gradient is the full batch's.
        """
        if (batch is None) != (self._again is None):
            wanted = "step(batch=batch), the batch of this step" if batch is None else "model= and criterion= for mini-batches"
            raise BadInput(f"the dial expected {wanted}")
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        s = self._now()
        memories = self._ready() if self.off is None else []
        carrying = self._again is not None and (callable(self._strength) or s != 0)
        previous = self._taken(batch, memories) if carrying and memories else None
        if self.off is not None:
            memories = []
        for memory in memories:  # what was not carried on at every step is of another point
            if not carrying or memory.at != self.steps - 1:
                memory.drop()
        if self._again is not None and not carrying and self.off is None:
            self._again.skip()
        # Some optimizers write into the gradient.
        copies = [memory.gradient.clone() for memory in memories] if self._repeated is not None else []
        for memory in memories:
            memory.before, memory.at = flat(p.detach() for p in memory.tensors), self.steps
        self.dialled.step()
        if memories:
            try:
                squares = self._repeat(s, memories, copies) if copies else self._turn(s, memories, previous, carrying)
                self._tally["longer"] = self._tally["longer"] + (squares[0] > squares[1])
            except Exception as error:
                self._stop(_said(error))
        self.steps += 1
        if self.steps & (self.steps - 1) == 0:  # at powers of two: to look is to wait for the device
            self._tell()
        return value

    def _now(self) -> float:
        """s of this step."""
        s = self._strength(self.steps) if callable(self._strength) else self._strength
        if _finite(s):
            return float(s)
        self._tally["skipped"] += 1
        self._say(f"the strength of step {self.steps} is {s!r}, no finite number: such steps are the optimizer's own")
        return 0.0

    def _ready(self) -> list[Memory]:
        try:
            return self._memories.ready()
        except Exception as error:
            self._stop(_said(error))
            return []

    def _taken(self, batch: Any, memories: Sequence[Memory]) -> Tensor | None:
        assert self._again is not None
        try:
            return self._again.take(batch, memories, self._memories.all, self.steps)
        except Exception as error:  # whatever it is, the training goes on
            self._stop(_said(error))
            return None

    def _turn(self, s: float, memories: Sequence[Memory], previous: Tensor | None, carrying: bool) -> Tensor:
        """Turn the step that was taken; |s (u - F)|^2 and |u|^2."""
        if isinstance(self.dialled, NAdam) and self._betas != [str(group.get("betas")) for group in self.param_groups]:
            raise BadInput("NAdam's betas moved, and its kernel with moving ones is not known")
        nows = {group: self._memories.now(group) for group in {memory.group for memory in memories}}
        turned = [(memory, nows[memory.group], memory.weights(nows[memory.group])) for memory in memories]
        for memory, now, c in turned:
            if memory.n == 1:
                seen = [memory.present(chunk) for chunk in memory.chunks()]
                first = torch.cat([now.step(now.still(c, *each), each[0]) for each in seen])
                self._require_first(memory, first, str(now.method))
        if carrying:
            for memory, now, _ in turned:
                memory.carry(now, self._own)
        owns = self._own_effect(turned, previous) if carrying and self._own else [None] * len(turned)
        squares = torch.zeros(2, dtype=torch.float64, device=memories[0].tensors[0].device)
        for (memory, now, c), own in zip(turned, owns, strict=True):
            squares += self._apply(memory, now, c, s if memory.n > 1 else 0.0, carrying, previous, own).to(squares)
        return squares

    def _own_effect(self, turned: Sequence[tuple[Memory, Now, list[float]]], previous: Tensor | None) -> list["Own"]:
        """Of each memory."""
        assert self._again is not None
        pushes, biases = list[list[Tensor]](), list[Tensor]()
        for memory, now, c in turned:
            past = [found for chunk in memory.chunks() if (found := self._past(previous, chunk)) is not None]
            for chunk, there in zip(memory.chunks(), past, strict=bool(past)):
                memory.moved(now, there, chunk)
            push, bias = own_effect(memory, now, self.state, c, past)
            pushes.append(push)
            biases.append(bias)
        # Each variable in its turn, of all tensors at once.
        gradients = [self._again.pushed([memory for memory, *_ in turned], own) for own in zip_longest(*pushes)]
        return [Own(gradients, push, bias) for push, bias in zip(pushes, biases, strict=True)]

    def _pushed(self, own: "Own | None", chunk: Chunk, theta: Tensor) -> list[Past]:
        again = self._again
        if own is None or again is None:
            return []
        return [(again.of(g, chunk), theta + shift[chunk.part]) for g, shift in zip(own.gradients, own.pushes, strict=False)]

    def _past(self, previous: Tensor | None, chunk: Chunk) -> Past | None:
        again = self._again
        if again is None or previous is None or again.there is None:
            return None
        return again.of(previous, chunk), again.of(again.there, chunk)

    def _apply(
        self,
        memory: Memory,
        now: Now,
        c: list[float],
        s: float,
        carrying: bool,
        previous: Tensor | None,
        own: "Own | None",
    ) -> Tensor:
        squares = torch.zeros(2, dtype=torch.float64, device=memory.tensors[0].device)
        K, after = memory.gains(now) if carrying else ([], [])
        assert memory.before is not None
        for chunk in memory.chunks(cut=self._placebo is None):
            theta, g = memory.present(chunk)
            if carrying:
                # With their own effect they have been moved already, to find it.
                past = None if self._own else self._past(previous, chunk)
                pushed = self._pushed(own, chunk, theta)
                fed = memory.fed(now, self.state, c, K, chunk, past, pushed)
                self._tally["floored"] = self._tally["floored"] + fed.floored
                self._tally["carried"] += fed.carried
                m = [mean if weight == 1 else weight * mean for mean, weight in zip(fed.means, c, strict=True)]
            else:
                m = now.still(c, theta, g)
            if s:  # the first update has no memory, and its rounding is none
                u = theta - chunk.of(torch.Tensor.detach)
                F = now.step(m, theta)
                if own is not None and len(own.bias):
                    F = F - (now.lr * own.bias[chunk.part]).clamp(-MOST * u.abs(), MOST * u.abs())
                squares += self._put(chunk, (u - F).mul_(s), u)
        if carrying:
            memory.learn(after)
        return squares

    def _put(self, chunk: Chunk, e: Tensor, u: Tensor) -> Tensor:
        """theta <- theta - e; |e|^2 and |u|^2."""
        if self._placebo is None:
            chunk.subtract(e)
        else:
            parts = zip(chunk.pieces, e.split([p.numel() for p, _ in chunk.pieces]), strict=True)
            chunk.subtract(torch.cat([self._elsewhere(p, x) for (p, _), x in parts]))
        return torch.stack([dot(e, e), dot(u, u)]).double()

    def _elsewhere(self, p: Tensor, x: Tensor) -> Tensor:
        """A placebo of one tensor's term."""
        if id(p) not in self._orders:
            number = next(i for i, each in enumerate(self._memories.parameters()) if each is p)
            generator = torch.Generator().manual_seed(1_000_003 * self._seed + number)
            order = torch.randperm(p.numel(), generator=generator)
            signs = 2 * torch.randint(0, 2, (p.numel(),), generator=generator) - 1
            self._orders[id(p)] = order.to(p.device), signs.to(p)
        order, signs = self._orders[id(p)]
        return x[order] * signs if self._placebo == "scrambled" else x[order]

    def _repeat(self, s: float, memories: Sequence[Memory], gradients: Sequence[Tensor]) -> Tensor:
        """The same by the optimizer's own steps."""
        assert self._repeated is not None
        squares = torch.zeros(2, dtype=torch.float64)
        n = memories[0].n
        self._repeated.note(n)
        displaced = self._repeated.displacements(memories, gradients) if s or not n else [None] * len(memories)
        for memory, F in zip(memories, displaced, strict=True):
            memory.n += 1
            if F is None:
                continue
            assert memory.before is not None
            if memory.n == 1:
                self._require_first(memory, F, type(self.dialled).__name__)
            elif s:
                u = memory.before - flat(memory.tensors)
                whole = Chunk(slice(0, len(u)), [(p, slice(0, p.numel())) for p in memory.tensors])
                squares += self._put(whole, s * (u - F), u).to(squares)
        return squares

    def _require_first(self, memory: Memory, F: Tensor, method: str) -> None:
        """A first update has no memory: u = F, or the step is not that of the method."""
        assert memory.before is not None
        u = memory.before - flat(memory.tensors)
        rounding = torch.finfo(u.dtype).eps * (float(norm(memory.before)) + 30 * float(norm(u)))
        if (differs := float(norm(u - F))) > 1e-3 * float(norm(u)) + rounding:
            share = differs / (float(norm(u)) or 1.0)
            raise BadInput(
                f"the optimizer's step is not that of {method} (it differs by {share:.0%}): its state or step are changed by "
                "something else"
            )

    # What is said.

    def _stop(self, why: str) -> None:
        self.off = why
        self._memories.all.clear()
        if self._again is not None:
            self._again.close()
        self._say(f"memory is not dialled from here on, the steps are the optimizer's own: {why}")

    def _say(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            logger.warning("dial: %s", text)

    def _tell(self) -> None:
        counts = self.counts
        if counts["floored"] > LONG * counts["carried"] > 0:
            self._say(
                f"more than {LONG:.0%} of the carried second moments lie at their floor: memory's effect is not known there; a "
                "lower lr, or second=, holds more"
            )
        if counts["longer"] > LONG * self.steps and self.steps > 8:
            self._say(
                f"in more than {LONG:.0%} of the steps the dialled term is longer than the update: the path may be chaotic, "
                "which no estimate follows; a smaller strength or lr is to be trusted further"
            )


class Own(NamedTuple):
    """A batch's effect on itself.

    Attributes:
        gradients: where each variable that remembers pushes, of the whole model.
        pushes: of one memory's tensors, by each of its variables that remember.
        bias: of their F; empty where none is known.
    """

    gradients: list[Tensor]
    pushes: list[Tensor]
    bias: Tensor


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, (BadInput, BadType)) else f"{type(error).__name__}: {error}"


def _finite(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool) and math.isfinite(x)
