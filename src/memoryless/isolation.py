"""Leave every random number generator that a model or a data loader may draw from as it was."""

import contextlib
import random
from collections.abc import Iterable, Iterator

import numpy as np
import torch


@contextlib.contextmanager
def isolated(device: torch.device, seed: int | None = None, generators: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Run a block, optionally from a seed, then restore the generators of Python, NumPy, torch and the device.

    Args:
        device: a CUDA device's generator is restored too.
        seed: if given, the block starts from it.
        generators: restored too.
    """
    python, legacy = random.getstate(), np.random.get_state()
    own = [(generator, generator.get_state()) for generator in generators]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
            for generator, state in own:
                generator.set_state(state)
