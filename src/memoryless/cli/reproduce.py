"""memoryless reproduce."""

import json
import math
import os
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from memoryless.cli import answer
from memoryless.cli.files import picture, save
from memoryless.cli.options import progress
from memoryless.errors import BadInput


@dataclass
class Reproduce:
    """Reproduce a figure of the paper, arXiv 2502.02132.

    fig1: how far the weights stray from the optimizer's, in the largest of them, when its memory is frozen (the paper's
    first-order approximation), corrected to first order (its second-order one), or resummed; AdamW and Lion, full batch.
    """

    figure: Annotated[Literal["fig1"], tyro.conf.Positional]
    """Which one."""
    data: Annotated[str, tyro.conf.arg(metavar="digits|mnist|FOLDER")] = "digits"
    """1000 images of scikit-learn's digits; or 10,000 of MNIST, from the hub (takes memoryless[data]) or from a folder."""
    betas: tuple[tuple[float, float], ...] = ((0.9, 0.95),)
    """One pair or more: 0.9 0.95 0.9 0.99. For Lion they are rho1 and rho2."""
    lrs: tuple[float, ...] = (1e-4, 3e-4)
    """Learning rates, at most four."""
    eps: float = 1e-6
    """Inside the root, of AdamW and of Lion's smoothed sign."""
    steps: int = 1000
    """Steps to run."""
    seeds: int = 3
    """How many initial networks."""
    jobs: int = os.cpu_count() or 1
    """Processes, one thread each. Default: one per core."""
    picture: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = "memoryless-fig1.png"
    """PNG or PDF to write; None for none. Only a picture that memoryless wrote is overwritten."""
    json: bool = False
    """Print JSON instead of sentences."""

    def run(self) -> None:
        """Run all settings, show and write what was found."""
        path = picture("--picture", self.picture, (".png", ".pdf"))
        for option, value, least in (("steps", self.steps, 2), ("seeds", self.seeds, 1), ("jobs", self.jobs, 1)):
            if value < least:
                raise BadInput(f"--{option} must be at least {least}, got {value}")
        if not 0 < self.eps < math.inf:
            raise BadInput(f"--eps must be positive and finite, got {self.eps}")
        betas, lrs = list(dict.fromkeys(self.betas)), list(dict.fromkeys(self.lrs))
        if not 1 <= len(lrs) <= 4 or not betas:
            raise BadInput(f"expected one to four --lrs and at least one pair of --betas, got {len(lrs)} and {len(betas)}")

        with progress("steps of all runs") as on_step:  # before torch is waited for
            import torch

            from memoryless.experiments.fig1 import fig1, settings
            from memoryless.experiments.images import load

            wanted = settings(betas, lrs, self.seeds, self.eps, self.steps)
            images = load(self.data)
            torch.set_num_threads(1)
            found = fig1(wanted, images, self.jobs, lambda done, *_: on_step(done, len(wanted) * self.steps))

        from memoryless.report import reproduce as report

        answer.say(json.dumps(found.as_dict()) if self.json else "\n".join(report.lines(found)))
        if path is not None:
            save(report.picture(found), path)
