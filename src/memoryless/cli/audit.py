"""memoryless audit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from memoryless.cli.options import device_of, dtype_of, writable
from memoryless.errors import BadInput, Diverged


@dataclass
class Audit:
    """Audit an optimizer along a full-batch run: what its memory does to the loss, measured and predicted.

    Without a script, a small GELU network on the digits images that scikit-learn carries, with AdamW.
    """

    script: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SCRIPT.py:FUNCTION")] = None
    """such as train.py:setup; setup() returns model, criterion, batches, optimizer."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """File with the state dicts 'model' and 'optimizer' to start from."""
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="NAME(OPTIONS)")] = None
    """sgd, adam, adamw, nadam, rmsprop, with options: "adamw(lr=1e-3, betas=(0.9, 0.99))". Default: adamw, or the script's."""
    steps: int = 1000
    """Steps to run."""
    stops: int = 10
    """How many of them to audit, evenly spaced in their logarithm."""
    measures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = (
        "gradient_1_norm",
        "gradient_norm_squared",
        "sharpness",
    )
    """What memory acts on: gradient_1_norm, gradient_norm_squared, sharpness."""
    compare: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[NAME(OPTIONS) ...]")] = None
    """Other methods, at the same lr unless they say theirs: lion "adamw(betas=(0.9, 0.95))". Default: a choice of six."""
    seed: int = 0
    """Of the initial parameters."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    dtype: Annotated[str | None, tyro.conf.arg(metavar="DTYPE")] = None
    """float32 or float64. Default: float64 for the digits, the script's own otherwise."""
    json: bool = False
    """Print JSON instead of tables."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = "memoryless-audit.html"
    """Page to write; None for none. Only a page that memoryless wrote is overwritten."""

    def run(self) -> None:
        """Run the audit and show it."""
        import torch
        from rich.console import Console
        from rich.progress import Progress

        from memoryless.experiments import problems
        from memoryless.live.run import audit_run, log_spaced
        from memoryless.loss.loss import Loss
        from memoryless.methods import named

        page = writable("--html", self.html)
        for option, value in (("steps", self.steps), ("stops", self.stops)):
            if value < 1:
                raise BadInput(f"--{option} must be at least 1, got {value}")
        device, dtype = device_of(self.device), dtype_of(self.dtype)
        console = Console(stderr=self.json)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("setting up", total=self.steps)
            if self.script is None:
                # A network this small gains little from a second thread, and loses much on a busy machine.
                torch.set_num_threads(1)
                problem = problems.digits_mlp(self.seed, dtype=dtype or torch.float64)
                model, criterion, batches = problem
                optimizer = torch.optim.AdamW(model.parameters())
            else:
                model, criterion, batches, optimizer = named.load_setup(self.script, self.seed)
            if device.type != "cpu" or dtype is not None:
                model.to(device, dtype)
                batches = named.Moved(batches, device, dtype)
            if self.optimizer is not None:
                optimizer = named.parse_optimizer(self.optimizer, model.parameters())
            if self.checkpoint is not None:
                named.load_checkpoint(self.checkpoint, model, optimizer)
            loss = Loss(model, criterion, batches)
            lr = float(optimizer.param_groups[0]["lr"])
            compare = None if self.compare is None else [named.parse_method(text, lr) for text in self.compare]
            stops = log_spaced(self.steps, self.stops)
            failure = None
            try:
                run = audit_run(
                    optimizer,
                    loss,
                    self.steps,
                    stops,
                    self.measures,
                    compare,
                    on_step=lambda step: progress.update(task, completed=step, description=f"step {step}"),
                )
            except Diverged as error:
                run, failure = error.so_far, error
        run.about = {
            "problem": self.script or "digits images of scikit-learn, GELU network 64-64-10",
            "parameters": f"{sum(p.numel() for p in loss.parameters):,} in {loss.parameters[0].dtype}".replace("torch.", ""),
            "batches": str(len(loss)),
            "optimizer": type(optimizer).__name__,
            "steps": str(self.steps),
            "seed": str(self.seed),
            "torch": str(torch.__version__),
        }
        if run.stops:
            self._show(run, page, console)
        if failure is not None:
            raise failure

    def _show(self, run: Any, page: Path | None, console: Any) -> None:
        from memoryless.report.audit import print_run

        if self.json:
            print(run.to_json())
        else:
            print_run(run, console)
        if page is not None:
            page.write_text(run.to_html(), encoding="utf-8")
            console.print(f"Charts and beta maps: {page}", soft_wrap=True)
