"""What a step is made of: present gradient, memory, decay, per tensor and on the whole."""

from collections.abc import Sequence

import torch

from memoryless.live.check.record import Held, Record
from memoryless.live.check.reference import Redone, Reference

FIRST = "exp_avg", "momentum_buffer", "grad_avg"
"""Buffers whose memory of past gradients enters the step linearly."""


def shares(reference: Reference, at: Redone) -> list[list[float]] | None:
    """Of each tensor's step: <part, step> of gradient, memory and decay, and |step|^2; and last of the whole.

    The step without decay, D_0, and with its first moments emptied too, D_1: decay is D - D_0, memory D_0 - D_1, gradient D_1.

    Args:
        reference: takes the step again.
        at: the step.

    Returns:
        None where the optimizer's memory is not known to be of that form.
    """
    record: Record = reference.record
    if reference.documented is None or not any(set(FIRST) & set(s) for s in at.states):
        return None

    def bare(groups: list[dict], held: list[Held]) -> None:
        for group in groups:
            if "weight_decay" in group:
                group["weight_decay"] = 0.0

    def alone(groups: list[dict], held: list[Held]) -> None:
        bare(groups, held)
        for h in held:
            for key in FIRST:
                if isinstance(h.state.get(key), torch.Tensor):
                    h.state[key] = torch.zeros_like(h.state[key])

    D0, D1 = reference.redo(bare).thetas, reference.redo(alone).thetas
    found = []
    for h, full, without, only in zip(record.held, at.thetas, D0, D1, strict=True):
        theta = h.theta.double()
        step = full - theta
        found.append([float((part * step).sum()) for part in (only - theta, without - only, full - without, step)])
    return [*found, [sum(parts) for parts in zip(*found, strict=True)]]


def named(parts: Sequence[float]) -> dict[str, float]:
    """The shares by their names, which add up to 1.

    Args:
        parts: of a tensor, from `shares`.
    """
    size = parts[3]
    return {name: part / size if size else 0.0 for name, part in zip(("gradient", "memory", "decay"), parts[:3], strict=True)}
