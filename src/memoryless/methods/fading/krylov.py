"""All the future of a small disturbance of a black box's memory at rest.

It moves by ds <- A_s ds a step, and A_s has as many distinct eigenvalues as the memory has betas. So the Krylov space of ds has
few dimensions and holds all its future, A_s^k ds = |ds| Q T^k e_1: ages of millions cost some optimizer steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memoryless.errors import NoSteadyState
from memoryless.methods.black_box.state_map import Memory
from memoryless.methods.fading.tails import Array

MOST = 40
"""Most dimensions of a Krylov space."""
CLOSED = 1e-9
"""A Krylov space is closed if a step leaves it by this share."""


@dataclass(frozen=True)
class Krylov:
    """A_s^k ds = Q T^k e_1 |ds|, with dF = U_s A_s^(k-1) ds for k >= 1 and U_g dg at once.

    Attributes:
        T: shape (m, m).
        Q: orthonormal columns, shape (size, m).
        U: U_s Q, shape (d, m).
        size: |ds|.
        now: U_g dg.
        names: of the tensors of s.
        sizes: of the tensors of s.
    """

    T: Array
    Q: Array
    U: Array
    size: float
    now: Array
    names: list[str]
    sizes: list[int]

    @classmethod
    def of(cls, memory: Memory, dg: Tensor) -> "Krylov":
        """By Arnoldi's process (https://doi.org/10.1090/qam/42792), from the memory at rest after a change of one gradient."""
        ds, now = memory.push(torch.zeros_like(memory.s), dg)
        beside = memory.around(torch.zeros_like(memory.s), dg)
        memory.require_smooth(*beside[:2])
        memory.require_same_at_other_counts(ds)
        if not memory.missing and _differ(now, (beside[0][1] - beside[1][1]) / (2 * beside[2])):
            memory.missing = "forward mode drops a tangent of the update"
            return cls.of(memory, dg)
        size = float(ds.norm())
        Q, U, T = [ds / (size or 1.0)], [], np.zeros((MOST + 1, MOST))
        for j in range(MOST):
            after, F = memory.push(Q[j])
            U.append(F)
            scale = float(after.norm())
            for _ in range(2):  # twice is enough (Giraud et al. 2005)
                for i, q in enumerate(Q):
                    part = float(q @ after)
                    T[i, j] += part
                    after = after - part * q
            T[j + 1, j] = float(after.norm())
            if T[j + 1, j] <= max(CLOSED, 10 * memory.epsilon / memory.share * bool(memory.missing)) * max(scale, 1e-3):
                m = j + 1
                columns, updates = (torch.stack(x, dim=1).numpy() for x in (Q, U))
                return cls(T[:m, :m], columns, updates, size, now.numpy(), memory.names, memory.sizes)
            Q.append(after / T[j + 1, j])
        raise NoSteadyState(f"its memory has more than {MOST} time scales", memory.method)

    @property
    def radius(self) -> float:
        """The largest share that a disturbance keeps per step, in the long run."""
        return float(np.abs(np.linalg.eigvals(self.T)).max()) if self.size else 0.0

    def squares(self, ages: NDArray[np.int64], names: Sequence[str]) -> Array:
        """Squared norm of what the update, and each kind of tensor, still holds, shape (1 + names, ages)."""
        y = np.zeros((len(ages), len(self.T)))
        y[0, 0] = self.size
        for i, gap in enumerate(np.diff(ages)):
            y[i + 1] = np.linalg.matrix_power(self.T, int(gap)) @ y[i]
        # The update of age k reads the memory that a step of age k - 1 left.
        before = np.zeros_like(y)
        for i, k in enumerate(ages[1:], 1):
            near = int(np.searchsorted(ages, k - 1, side="right")) - 1
            before[i] = np.linalg.matrix_power(self.T, int(k - 1 - ages[near])) @ y[near]
        dF = before @ self.U.T
        dF[0] = self.now
        rows = np.split(self.Q, np.cumsum(self.sizes)[:-1])
        kinds = [np.concatenate([row for name, row in zip(self.names, rows, strict=True) if name == kind]) for kind in names]
        return np.stack([(x**2).sum(axis=1) for x in (dF, *(y @ kind.T for kind in kinds))])


def _differ(x: Tensor, y: Tensor) -> bool:
    return float((x - y).norm()) > 1e-4 * max(float(x.norm()), float(y.norm()))
