"""What a step is made of: present gradient, memory, decay, per tensor and on the whole."""

import torch

from memoryless.live.check.record import Held, Record
from memoryless.live.check.reference import Redone, Reference

FIRST = "exp_avg", "momentum_buffer", "grad_avg"
"""Buffers whose memory of past gradients enters the step linearly."""


def shares(reference: Reference, at: Redone) -> list[dict[str, float]] | None:
    """Of each tensor's step: <part, step> / |step|^2, which add up to 1; and last of the whole.

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
    found, whole = [], [0.0, 0.0, 0.0, 0.0]
    for h, full, without, only in zip(record.held, at.thetas, D0, D1, strict=True):
        theta = h.theta.double()
        step = full - theta
        parts = [float((part * step).sum()) for part in (only - theta, without - only, full - without)]
        size = float(step.square().sum())
        whole = [a + b for a, b in zip(whole, [*parts, size], strict=True)]
        found.append(_named(parts, size))
    return [*found, _named(whole[:3], whole[3])]


def _named(parts: list[float], size: float) -> dict[str, float]:
    return {name: part / size if size else 0.0 for name, part in zip(("gradient", "memory", "decay"), parts, strict=True)}
