"""Shadow memory: what other methods' memories would do on the gradients of the run at hand.

A memory is fed by gradients; feed the states of methods that are not running with the live run's own stream, which costs
elementwise work only, and compare at the live theta

    Delta' = update'(shadow state) - F'[n](theta)

The path is the live optimizer's: exact to first order in lr where both share F, indicative elsewhere (a method that would
leave the path, or oscillate on its own, cannot show it here).
"""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from memoryless.corrections import history
from memoryless.corrections.history import Memory
from memoryless.errors import BadInput
from memoryless.flat import block
from memoryless.methods.method import AnyOptimizer, Index, Momentum


class Shadow:
    """Memories of many methods on one gradient stream; variables that methods share are kept once.

    Args:
        methods: in momentum form.
        theta: shape (d,), where the stream begins.

    Attributes:
        n: gradients fed so far.
        variables: all that remember, each once.

    Raises:
        BadInput: a method is run as it is, and its memory has no variables to feed.

    Example:
        >>> import memoryless as ml
        >>> adam = ml.Adam(betas=(0.9, 0.95))
        >>> import torch
        >>> theta = torch.tensor([1.0])
        >>> shadow = Shadow([adam], theta)
        >>> for g in (4.0, 3.0):
        ...     shadow.update(torch.tensor([g]), theta)
        >>> shadow.effect(adam, torch.tensor([2.0]), theta)  # lags behind a falling gradient, more so in the denominator
        tensor([-0.0475])
    """

    def __init__(self, methods: Iterable[AnyOptimizer], theta: Tensor):
        methods = list(methods)
        if as_it_is := next((method for method in methods if not method.parts), None):
            raise BadInput(f"a shadow memory needs a method in momentum form, got {as_it_is}; compare it along its own run")
        self.n = 0
        self._steady = False
        betas: dict[tuple, list[float]] = {}
        every = (v for m in methods for part in m.parts for v in part.method.variables if v.has_memory)
        self.variables = tuple(dict.fromkeys(every))
        for v in self.variables:
            row = betas.setdefault((v.g, v.first), [])
            if v.beta not in row:
                row.append(v.beta)
        self._rows = {(g, first, beta): i for (g, first), row in betas.items() for i, beta in enumerate(row)}
        self._betas = {key: theta.new_tensor(row)[:, None] for key, row in betas.items()}
        self._sums = {key: theta.new_zeros((len(row), theta.numel())) for key, row in betas.items()}

    def copy(self) -> "Shadow":
        """The same memories, which go on by themselves."""
        other = copy.copy(self)
        other._sums = {key: sums.clone() for key, sums in self._sums.items()}
        return other

    @property
    def step(self) -> int | None:
        """n, or None for the steady state."""
        return None if self._steady else self.n

    @property
    def age(self) -> float:
        """n as weights take it: infinite in the steady state."""
        return math.inf if self._steady else self.n

    def start(self, step: int | None, memory: Memory, gradient: Tensor, theta: Tensor) -> None:
        """Start from memories that are known otherwise, in place of empty ones.

        Args:
            step: n, the steps that led to theta, or None for the steady state.
            memory: (variable, coordinates) -> m_l after a step at theta with this gradient, which is not fed yet.
            gradient: at theta, shape (d,).
            theta: shape (d,).
        """
        self.n, self._steady = step or 0, step is None
        for v in self.variables:
            m = memory(v, slice(None))
            weight = v.weight(self.age)
            if self.age == 0 or not weight:
                continue
            past = m / weight
            if not v.lag:
                # m / weight = beta past + g_l(gradient)
                past = (past - v.g(gradient, theta)) / v.beta
                if all(bool((v.g(each, theta) >= 0).all()) for each in (gradient, -gradient)):
                    past.clamp_min_(0)  # of a sum of nonnegative terms rounding and interpolation may leave less
            self._sums[v.g, v.first][self._rows[v.g, v.first, v.beta]] = past

    def update(self, gradient: Tensor, theta: Tensor) -> None:
        """Feed one step of the stream.

        Args:
            gradient: the live run's gradient, shape (d,).
            theta: where it was taken, shape (d,).
        """
        for (g, first), sums in self._sums.items():
            sums.mul_(self._betas[g, first]).add_(g(gradient, theta), alpha=first if self.age == 0 else 1.0)
        self.n += 1

    def extend(self, gradients: Tensor, thetas: Tensor) -> None:
        """Feed many steps at once, by matrix products: sums <- beta^k sums + sum_j beta^(k-1-j) g_j.

        Args:
            gradients: shape (k, d), oldest first.
            thetas: where they were taken, shape (k, d), or (d,) for all.
        """
        k = len(gradients)
        powers = torch.arange(k - 1, -1, -1, device=gradients.device, dtype=gradients.dtype)
        size = max(1, block(gradients.device) // k)
        for (g, first), sums in self._sums.items():
            betas = self._betas[g, first]
            weights = betas**powers
            if self.n == 0:
                weights[:, 0] *= first
            for start in range(0, gradients.shape[1], size):
                part = slice(start, start + size)
                images = g(gradients[:, part], thetas[..., part])
                sums[:, part] = torch.addmm(sums[:, part] * betas**k, weights, images)
        self.n += k

    def memory(self, variable: Momentum, gradient: Tensor, theta: Tensor, index: Index = slice(None)) -> Tensor:
        """m_l after a step with this gradient, which is not fed.

        Args:
            variable: of one of the methods.
            gradient: at theta, shape (d,).
            theta: shape (d,).
            index: coordinates wanted.

        Returns:
            Shape (d,), or of the coordinates.

        Raises:
            KeyError: the variable is of none of the methods.
        """
        gradient, theta, weight = gradient[index], theta[index], variable.weight(self.age)
        if not variable.has_memory:
            return weight * variable.g(gradient, theta)
        key = (variable.g, variable.first)
        if (*key, variable.beta) not in self._rows:
            raise KeyError(f"no memory with beta={variable.beta} is in the shadow's methods")
        past = self._sums[key][self._rows[*key, variable.beta]][index]
        if variable.lag:
            return weight * past
        present = variable.g(gradient, theta) * (variable.first if self.age == 0 else 1.0)
        return weight * (variable.beta * past + present)

    def effect(self, method: AnyOptimizer, gradient: Tensor, theta: Tensor) -> Tensor:
        """Delta' = update' - F'[n](theta) of one method at the live theta.

        Args:
            method: one of the methods.
            gradient: full-batch gradient at theta, shape (d,); not fed yet.
            theta: shape (d,).

        Returns:
            Shape (d,), in the units of an update.
        """
        effect = -history.frozen(method, gradient, theta, self.step)
        for part in method.parts:
            m = [self.memory(v, gradient, theta, part.index) for v in part.method.variables]
            effect[part.index] += part.scale * part.method.readout(m, theta[part.index])
        return effect
