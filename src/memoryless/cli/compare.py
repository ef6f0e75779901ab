"""memoryless compare."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from memoryless.cli.options import writable
from memoryless.errors import BadInput


@dataclass
class Compare:
    """Compare optimizers: what the memory of each does to the same loss, measured and predicted, along its own run.

    Such as: memoryless compare adamw lion "torch.optim.Muon(lr=1e-3)" --steps 200 --png compare.png
    """

    optimizers: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="OPTIMIZER ...")]
    """Of the catalogue, lion or "adamw(betas=(0.9, 0.95))", or a torch optimizer's class by its path."""
    problem: str = "digits"
    """digits: a small GELU network on the digits images of scikit-learn; or SCRIPT.py:FUNCTION as for audit."""
    steps: int = 100
    """Steps of each run."""
    lr: float | None = None
    """For those that do not say theirs. Default: the class's own, 1e-3 for the catalogue."""
    measures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = (
        "gradient_1_norm",
        "gradient_norm_squared",
        "sharpness",
    )
    """What memory acts on."""
    seed: int = 0
    """Of the initial parameters."""
    png: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture to write. Only a picture that memoryless wrote is overwritten."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        """Run each, audit, print."""
        sys.path.insert(0, "")  # a module of the user's own, where the command is run
        path = writable("--png", self.png)
        if path is not None and path.suffix != ".png":
            raise BadInput(f"--png must end in .png, got {self.png}")
        if self.lr is not None and not self.lr > 0:
            raise BadInput(f"--lr must be positive, got {self.lr}")

        import torch
        from rich.console import Console
        from rich.progress import Progress

        from memoryless import __version__
        from memoryless.audits.compare import compare, parse
        from memoryless.experiments import problems
        from memoryless.loss.loss import Loss
        from memoryless.methods import named
        from memoryless.report import compare as report

        torch.set_num_threads(1)
        if self.problem == "digits":
            loss = problems.digits_mlp(self.seed, dtype=torch.float64).loss
        else:
            setup = named.load_setup(self.problem, self.seed)
            loss = Loss(setup.model, setup.criterion, setup.batches)
        methods: dict[str, Any] = {}
        for text in self.optimizers:
            try:
                methods[text] = parse(text, loss, self.lr)
            except ValueError as error:
                methods[text] = error
        if all(isinstance(method, Exception) for method in methods.values()):
            raise next(iter(methods.values()), ValueError("expected at least one optimizer, such as adamw"))
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("running", total=self.steps * len(methods))

            def on_step(name: str, step: int) -> None:
                progress.update(task, completed=self.steps * list(methods).index(name) + step, description=name)

            rows = compare(methods, loss, self.steps, self.measures, on_step)
        size = f"{loss.theta.numel():,} parameters, full batch"
        about = f"{self.problem}, {size}, after {self.steps} steps of each optimizer's own run"
        if self.json:
            print(json.dumps({"problem": self.problem, "steps": self.steps, "rows": [row.as_dict() for row in rows]}, indent=2))
        else:
            report.print_comparison(rows, about, Console())
        if path is not None and any(row.audit for row in rows):
            report.picture(rows, about).savefig(path, dpi=130, metadata={"Software": f"memoryless {__version__}"})
            print(f"wrote {path}", file=sys.stderr)
