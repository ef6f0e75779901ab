"""memoryless verify."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from memoryless.cli import answer
from memoryless.cli.files import picture, save
from memoryless.cli.options import progress, there
from memoryless.errors import BadInput, Diverged


@dataclass
class Verify:
    """Check the theorem: the correction makes a memoryless iteration follow the optimizer to one more power of lr.

    Runs the optimizer and each memoryless iteration at several step sizes and compares. frozen, without correction, is the
    negative control. Such as: memoryless verify lion --png lion.png
    """

    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    """Such as adamw, "heavy_ball(momentum=0.5)", torch.optim.Adamax, my.py:NAME; lr, betas, eps and smoothing that are not
    given are chosen so that the powers show, and said."""
    problem: Annotated[str, tyro.conf.arg(metavar="PROBLEM")] = "digits"
    """digits, quadratic, smooth, or SCRIPT.py:FUNCTION that returns model, criterion, batches, optimizer (not used)."""
    lrs: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="[LR ...]")] = None
    """Decreasing. Default: the method's lr, or 0.002 (0.008 where F is linear in the gradient), halved three times; twice for
    a torch optimizer's class, which takes all steps before each anew."""
    horizon: Annotated[float | None, tyro.conf.arg(metavar="TIME")] = None
    """Time n lr up to which paths are compared. Default: 32 steps of the largest lr, 20 for the digits, 16 for a
    torch optimizer's class."""
    kinds: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[KIND ...]")] = ("frozen", "first", "resummed", "3", "4")
    """frozen, first, resummed, and integer orders."""
    seed: int = 0
    """Of the problem."""
    json: bool = False
    """Print JSON instead of a table."""
    png: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture to write, .png or .pdf. Only a picture that memoryless wrote is overwritten."""

    def run(self) -> None:
        """Measure, print, draw."""
        path = picture("--png", self.png, (".png", ".pdf"))
        there(self.problem)
        kinds = [int(kind) if kind.isdecimal() else kind for kind in self.kinds]

        failure = None
        with progress("comparing") as on_step:  # before torch is waited for
            from memoryless.cli import setup
            from memoryless.experiments.theorem import PROBLEMS, STEPS, verify, visible

            loss, about, _ = setup.load(self.problem, self.seed, PROBLEMS)
            method, chosen = visible(self.method, loss)
            try:
                steps = PROBLEMS[self.problem].steps if self.problem in PROBLEMS else STEPS
                found = verify(method, loss, self.lrs, self.horizon, kinds, about, on_step, steps)
            except Diverged as error:
                found, failure = error.so_far, error

        from memoryless.report import verify as report

        if self.json:
            answer.say(json.dumps(found.as_dict() | {"chosen": chosen, "seed": self.seed}, indent=1))
        else:
            report.print_verification(found, chosen, answer.console())
        if path is not None and found.accuracies:
            save(report.picture(found), path, dpi=160)
        if failure is not None:
            raise BadInput(f"{failure} (take smaller lrs)") from failure
