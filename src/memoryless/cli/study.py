"""memoryless study."""

import json
import os
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from memoryless.cli import answer
from memoryless.cli.files import picture, save
from memoryless.cli.reproduce import judged
from memoryless.errors import BadInput


@dataclass
class Study:
    """Does memory cause it, and does its map tell which betas? Hypotheses and tests are fixed before the run.

    dial: all else held, memory's effect alone is turned; gradient 1-norm, sharpness, test loss and accuracy at equal training
    loss, of AdamW with memory cancelled, halved, as it is, half more, doubled; beside them placebos and learning rates that are
    as fast. Two small networks and a CNN with wrong labels, full batch and with batches of 32, and a GPT with batches of 32.

    ranking: does one run's map of memory's effect, after 5 % of its steps, rank 15 pairs of betas as their own finished runs
    do, and better than rules that need no run? Kendall's tau by test accuracy and test loss at equal training loss and by the
    final training loss. Two small networks, full batch, 32 and 8.
    """

    study: Annotated[Literal["dial", "ranking"], tyro.conf.Positional]
    """Which one."""
    seeds: int | None = None
    """How many initial networks. Default: the study's own, 16 and 8."""
    jobs: int = os.cpu_count() or 1
    """Processes, one thread each. Default: one per core."""
    picture: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = "memoryless-study-FIGURE.png"
    """PNG or PDF to write; None for none. Only a picture that memoryless wrote is overwritten."""
    store: Annotated[str | None, tyro.conf.arg(metavar="FILE.jsonl")] = "memoryless-study-FIGURE.jsonl"
    """Keeps finished runs, so that a stopped command goes on where it was; None for none."""
    json: bool = False
    """Print JSON instead of sentences."""

    def run(self) -> None:
        """Run what is missing, show and write what was found."""
        path = picture("--picture", self.picture and self.picture.replace("FIGURE", self.study), (".png", ".pdf"))
        for option, value in (("seeds", self.seeds), ("jobs", self.jobs)):
            if value is not None and value < 1:
                raise BadInput(f"--{option} must be at least 1, got {value}")
        found = judged(self.study, "small", None, self)
        from memoryless.report import claims as report

        answer.say(json.dumps(found.as_dict()) if self.json else "\n".join(report.lines(found)))
        if path is not None:
            save(report.picture(found), path)
