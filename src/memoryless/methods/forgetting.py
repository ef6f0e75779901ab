"""Does a memory fade? One judgement for momentum forms, black boxes, kernels and the atlas.

True     it fades: sum_k k^2 gamma_k converges, for every n alike (Assumption 3.1 of https://arxiv.org/abs/2502.02132)
False    it never fades: what it was told once, or at every age, has its say for ever
None     not resolved up to step N: it may fade beyond
"""

LONGEST = 1_000_000
"""A memory of a greater mean age, in steps, fades in no run: its limit is not resolved."""

KEPT = 1e-12
"""A memory that loses a smaller share of itself a step is kept for ever: the rest is rounding."""


def judgement(decays: bool | None, up_to: int) -> str:
    """The judgement in words.

    Args:
        decays: the judgement.
        up_to: the last step looked at.
    """
    return {True: "fades", False: "never fades", None: f"not resolved up to step {up_to:,}"}[decays]
