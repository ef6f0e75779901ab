"""memoryless verify."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from memoryless.cli.options import writable
from memoryless.errors import BadInput, Diverged


@dataclass
class Verify:
    """Check the theorem: the correction makes a memoryless iteration follow the optimizer to one more power of lr.

    Runs the optimizer and each memoryless iteration at several step sizes and compares. frozen, without correction, is the
    negative control. Such as: memoryless verify lion --png lion.png
    """

    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    """Of the catalogue, adamw or "heavy_ball(momentum=0.5)", or a torch optimizer's class by its path, torch.optim.Adamax; lr,
    betas, eps and smoothing that are not given are chosen so that the powers show, and said."""
    problem: Annotated[str, tyro.conf.arg(metavar="PROBLEM")] = "digits"
    """digits, quadratic, smooth, or SCRIPT.py:FUNCTION that returns model, criterion, batches, optimizer (not used)."""
    lrs: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="[LR ...]")] = None
    """Decreasing. Default: the method's lr, or 0.002 (0.008 where F is linear in the gradient), halved three times; twice for
    a torch optimizer's class, which takes all steps before each anew."""
    horizon: Annotated[float | None, tyro.conf.arg(metavar="TIME")] = None
    """Time n lr up to which paths are compared. Default: 32 steps of the largest lr, 16 for a torch optimizer's class."""
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
        import torch
        from rich.console import Console
        from rich.progress import Progress

        from memoryless.experiments.theorem import label, load, verify, visible

        sys.path.insert(0, "")  # a module of the user's own, where the command is run
        if self.png is not None and not self.png.endswith((".png", ".pdf")):
            raise BadInput(f"--png must end in .png or .pdf, got {self.png!r}")
        picture = writable("--png", self.png)
        kinds = [int(kind) if kind.isdecimal() else kind for kind in self.kinds]
        if ":" not in self.problem:
            # Problems this small gain nothing from a second thread, and lose much on a busy machine.
            torch.set_num_threads(1)
        loss, about = load(self.problem, self.seed)
        method, chosen = visible(self.method, loss)
        failure = None
        with Progress(console=Console(stderr=True), transient=True) as progress:
            tasks = {kind: progress.add_task(label(kind), total=None) for kind in kinds}

            def on_step(kind: Any, step: int) -> None:
                progress.update(tasks[kind], completed=step)

            try:
                found = verify(method, loss, self.lrs, self.horizon, kinds, about, on_step)
            except Diverged as error:
                found, failure = error.so_far, error
        self._show(found, chosen, picture)
        if failure is not None:
            raise BadInput(f"{failure} (take smaller lrs)") from failure

    def _show(self, found: Any, chosen: dict[str, Any], picture: Path | None) -> None:
        import json

        from rich.console import Console

        from memoryless.report.verify import draw, print_verification

        console = Console(stderr=self.json)
        if self.json:
            print(json.dumps(found.as_dict() | {"chosen": chosen, "seed": self.seed}, indent=1))
        else:
            print_verification(found, chosen, console)
        if picture is not None and found.accuracies:
            draw(found, picture)
            console.print(f"Picture: {picture}", soft_wrap=True)
