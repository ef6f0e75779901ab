"""memoryless reproduce."""

import json
import math
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import tyro

from memoryless.cli import answer
from memoryless.cli.files import picture, save
from memoryless.cli.options import progress
from memoryless.errors import BadInput

NAME = "memoryless-FIGURE"
"""Of the files that are written by default."""
FIG1 = {"betas": ((0.9, 0.95),), "lrs": (1e-4, 3e-4), "eps": 1e-6, "steps": 1000}
"""Defaults of the options that fig1 alone has."""


@dataclass
class Reproduce:
    """Reproduce a figure of the paper, arXiv 2502.02132, and judge what it claims by a test fixed before the run.

    fig1: how far the weights stray from the optimizer's, in the largest of them, when its memory is frozen (the paper's
    first-order approximation), corrected to first order (its second-order one), or resummed; AdamW and Lion, full batch.

    fig2a, fig3: test accuracy at equal training loss against beta_2, and Lion's; fig3 at other learning rates.

    fig2b, fig4: minimal validation perplexity against beta_2, and Lion's; fig4 at other learning rates.

    fig5, fig6: how sharp Adam lets the loss become, against the threshold of stability, at beta_1 = 0.9 and 0.99.

    The small scale runs offline within minutes; the paper's own takes its data and machines.
    """

    figure: Annotated[Literal["fig1", "fig2a", "fig2b", "fig3", "fig4", "fig5", "fig6"], tyro.conf.Positional]
    """Which one."""
    scale: Literal["small", "medium", "paper"] = "small"
    """How large. For fig1 paper means MNIST, the others the digits."""
    data: Annotated[str | None, tyro.conf.arg(metavar="digits|mnist|cifar10|wikitext-2|FOLDER")] = None
    """Of fig1: digits (1000 images of scikit-learn's) or mnist (10,000). At scale paper: from the hub (takes memoryless[data])
    or from a folder with the files as they are distributed. Default: what the scale says."""
    betas: tuple[tuple[float, float], ...] | None = None
    """Of fig1: one pair or more, 0.9 0.95 0.9 0.99. For Lion they are rho1 and rho2. Default: 0.9 0.95."""
    lrs: tuple[float, ...] | None = None
    """Of fig1: learning rates, at most four. Default: 1e-4 3e-4."""
    eps: float | None = None
    """Of fig1: inside the root, of AdamW and of Lion's smoothed sign. Default: 1e-6."""
    steps: int | None = None
    """Of fig1: steps to run. Default: 1000."""
    seeds: int | None = None
    """How many initial networks. Default: the figure's own, 3 for fig1."""
    jobs: int = os.cpu_count() or 1
    """Processes, one thread each. Default: one per core."""
    picture: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = f"{NAME}.png"
    """PNG or PDF to write; None for none. Only a picture that memoryless wrote is overwritten."""
    store: Annotated[str | None, tyro.conf.arg(metavar="FILE.jsonl")] = f"{NAME}.jsonl"
    """Keeps finished runs of all but fig1, so that a stopped command goes on where it was; None for none."""
    json: bool = False
    """Print JSON instead of sentences."""

    def run(self) -> None:
        """Run all settings, show and write what was found."""
        path = picture("--picture", self._named(self.picture), (".png", ".pdf"))
        for option, value, least in (("steps", self.steps, 2), ("seeds", self.seeds, 1), ("jobs", self.jobs, 1)):
            if value is not None and value < least:
                raise BadInput(f"--{option} must be at least {least}, got {value}")
        given = [option for option in FIG1 if getattr(self, option) is not None]
        if self.figure != "fig1" and given:
            raise BadInput(f"--{given[0]} is an option of fig1; the settings of {self.figure} are those of its --scale")
        found = self._fig1() if self.figure == "fig1" else judged(self.figure, self.scale, self.data, self)
        if self.figure == "fig1":
            from memoryless.report import reproduce as report
        else:
            from memoryless.report import claims as report
        answer.say(json.dumps(found.as_dict()) if self.json else "\n".join(report.lines(found)))
        if path is not None:
            save(report.picture(found), path)

    def _named(self, name: str | None) -> str | None:
        return name and name.replace("FIGURE", self.figure)

    def _fig1(self) -> Any:
        """The runs of fig1."""
        options: dict[str, Any] = {name: value if (own := getattr(self, name)) is None else own for name, value in FIG1.items()}
        if not 0 < options["eps"] < math.inf:
            raise BadInput(f"--eps must be positive and finite, got {options['eps']}")
        betas, lrs = list(dict.fromkeys(options["betas"])), list(dict.fromkeys(options["lrs"]))
        if not 1 <= len(lrs) <= 4 or not betas:
            raise BadInput(f"expected one to four --lrs and at least one pair of --betas, got {len(lrs)} and {len(betas)}")

        with progress("steps of all runs") as on_step:  # before torch is waited for
            import torch

            from memoryless.experiments.fig1 import fig1, settings
            from memoryless.experiments.images import load

            steps = options["steps"]
            wanted = settings(betas, lrs, 3 if self.seeds is None else self.seeds, options["eps"], steps)
            images = load(self.data or ("mnist" if self.scale == "paper" else "digits"))
            torch.set_num_threads(1)
            return fig1(wanted, images, self.jobs, lambda done, *_: on_step(done, len(wanted) * steps))


class Work(Protocol):
    """How the tasks of a figure are worked on: the options of a command."""

    seeds: int | None
    jobs: int
    store: str | None


def judged(figure: str, scale: str, data: str | None, work: Work) -> Any:
    """The figure of the tasks, those that the store lacks being run.

    Args:
        figure: its name.
        scale: small, medium or paper.
        data: as the command line has it.
        work: how.
    """
    name = work.store and work.store.replace("FIGURE", figure)
    if name is not None and not Path(name).resolve().parent.is_dir():
        raise BadInput(f"--store {name}: no folder {Path(name).parent}")
    with progress("runs") as on_step:
        import torch

        from memoryless.experiments.atlas.pool import sole
        from memoryless.experiments.figure import Kept, Reproduction, experiment

        wanted = experiment(figure).settings(scale, data, work.seeds)
        torch.set_num_threads(1)
        with nullcontext() if name is None else sole(Path(name)):
            tasks = Reproduction(figure, scale, wanted, None if name is None else Kept(Path(name)))
            try:
                return tasks.run(work.jobs, on_step)
            except KeyboardInterrupt as error:
                if name is not None:
                    error.add_note(
                        f"{len(tasks.rows)} of {len(wanted)} runs are in {name}; the same command goes on from there"
                    )
                raise
