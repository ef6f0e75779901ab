"""One audited step of a run: the live optimizer, the other methods, the beta maps."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from memoryless.audits.audit import Audit
from memoryless.audits.beta_map import BetaMap
from memoryless.audits.deviation import settles
from memoryless.live.branches import Branch
from memoryless.render.numbers import plain
from memoryless.render.result import Result


@dataclass(frozen=True)
class Other:
    """Another method's memory at a stop of the live run; per step relative to S, in the order of the measures.

    Attributes:
        method: as text, its lr left out where it is the live one.
        same_update: whether its F is the live one, so that the live path is its own to first order in lr.
        change: what its memory, measured by its shadow, does in one step (`Effect.measured`); None for a measure that takes
            Hessian-vector products, too many of which it would be.
        measured: slope of the same.
        first: slope of the prediction; None along mini-batches.
        resummed: slope of the prediction; None along mini-batches.
        outside: share of the coordinates outside the radius; None along mini-batches.
        deviation: by how much its own last updates leave the live path (`audits.deviation`); None where that is not known.
        state: slope of what the live optimizer's buffers tell of it (`audits.state_map`), the prediction to go by; None along
            mini-batches, and where they do not know.
        error: of the effect that they tell, relative; None where they cannot be read.
        usual: of each measure the size of the usual change among the run's methods; None where that is not known.
    """

    method: str
    same_update: bool
    change: tuple[float | None, ...]
    measured: tuple[float, ...]
    first: tuple[float, ...] | None
    resummed: tuple[float, ...] | None
    outside: float | None
    deviation: float | None = None
    state: tuple[float, ...] | None = None
    error: float | None = None
    usual: tuple[float, ...] | None = None

    @property
    def happens(self) -> tuple[float, ...]:
        """By measure the change; its slope where no change was measured."""
        return tuple(slope if change is None else change for change, slope in zip(self.change, self.measured, strict=True))

    @property
    def settled(self) -> tuple[bool, ...] | None:
        """By measure whether the live run speaks for it (`audits.deviation`); None where that is not known."""
        if self.deviation is None or self.usual is None:
            return None
        return tuple(settles(np.array(self.deviation), np.array(self.happens), np.array(self.usual)).tolist())


@dataclass(frozen=True)
class Stop(Result):
    """One audited step: the live optimizer, the others, beta maps (none for a method without a pair of betas), branches."""

    audit: Audit
    others: tuple[Other, ...] = ()
    maps: tuple[BetaMap, ...] = ()
    branches: tuple[Branch, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        names = [effect.measure for effect in self.audit.effects]

        def changes(other: Other) -> dict[str, Any]:
            slopes = {kind: getattr(other, kind) for kind in ("measured", "state", "first", "resummed")}
            return {
                name: {
                    "measured": other.change[k],
                    "settled": other.settled and other.settled[k],
                    "slopes": {kind: each and each[k] for kind, each in slopes.items()},
                }
                for k, name in enumerate(names)
            }

        others = [
            {name: getattr(o, name) for name in ("method", "same_update", "outside", "error", "deviation")}
            | {"changes": changes(o)}
            for o in self.others
        ]
        maps = [
            {
                "kind": m.order,
                "measure": name,
                "change": change.tolist(),
                "misleads": m.misleads(name).tolist(),
                "settled": None if (settled := m.settled_for(name)) is None else settled.tolist(),
                "deviation": None if m.deviation is None else m.deviation.tolist(),
                "anchor": None if m.anchor is None else m.anchor.tolist(),
                "checks": [
                    {"betas": c.betas, "slope": c.slopes[name], "change": c.changes[name]}
                    for c in m.checks
                    if name in c.changes
                ],
            }
            for m in self.maps
            for name, change in m.changes.items()
        ]
        branches = [plain(branch) | {"agrees": branch.agrees} for branch in self.branches]
        return self.audit.as_dict() | plain({"others": others, "maps": maps, "branches": branches})
