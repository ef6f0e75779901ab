"""memoryless audit."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from memoryless.cli import answer
from memoryless.cli.files import command, writable, write
from memoryless.cli.options import device_of, dtype_of, even, progress, there
from memoryless.errors import BadInput, Diverged

VECTORS = 74
"""Of theta, held at most, with maps and six others (`benchmarks/memory.py`)."""


@dataclass
class Audit:
    """Audit an optimizer along a full-batch run: what its memory does to the loss, measured and predicted.

    Such as: memoryless audit train.py:setup --optimizer torch.optim.Adamax
    """

    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")] = "digits"
    """SCRIPT.py:FUNCTION such as train.py:setup; setup() returns model, criterion, batches, optimizer. Default: digits, a small
    GELU network on the digits images that scikit-learn carries."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """To start from: a file with the state dicts of model and optimizer, or the folder of a Trainer's checkpoint."""
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="OPTIMIZER")] = None
    """Such as "adamw(lr=1e-3, betas=(0.9, 0.99))" or torch.optim.Adamax. Default: the script's, or adamw."""
    lr: float | None = None
    """Of the optimizer, in place of its own or the checkpoint's, such as where a schedule ended at 0."""
    steps: int = 1000
    """Steps to run."""
    stops: int = 10
    """How many of them to audit, evenly spaced in their logarithm."""
    measures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = (
        "gradient_1_norm",
        "gradient_norm_squared",
        "sharpness",
    )
    """What memory acts on: gradient_1_norm, gradient_norm_squared, sharpness; means over the batches: batch_gradient_1_norm,
    batch_gradient_norm_squared, batch_gradient_variance, batch_sharpness."""
    compare: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[OPTIMIZER ...]")] = None
    """Others, in momentum form, at the same lr if they say none: lion "adamw(betas=(0.9, 0.95))". Default: six of them."""
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
        page = writable("--html", self.html)
        there(self.problem, self.checkpoint)
        for option, value in (("steps", self.steps), ("stops", self.stops)):
            if value < 1:
                raise BadInput(f"--{option} must be at least 1, got {value}")

        failure = None
        with progress("auditing") as on_step:  # before torch is waited for
            device, dtype = device_of(self.device), dtype_of(self.dtype)

            import torch

            from memoryless.cli import setup
            from memoryless.live.run import audit_run, log_spaced

            work = setup.load(self.problem, self.seed, setup.FULL_BATCH, device, dtype)
            optimizer, loss = setup.optimizer_of(work, self.optimizer, "adamw", self.checkpoint, self.lr), work.loss
            lr = float(optimizer.param_groups[0]["lr"])
            if (needed := VECTORS * loss.layout.d * loss.theta.element_size()) > 2**30:
                print(f"{loss.layout.d:,} parameters: about {needed / 2**30:.0f} GB beside the network's own", file=sys.stderr)
            stops = log_spaced(self.steps, self.stops)
            try:
                run = audit_run(
                    optimizer,
                    loss,
                    self.steps,
                    stops=stops,
                    measures=self.measures,
                    compare=None if self.compare is None else [_rival(text, loss, lr) for text in self.compare],
                    on_step=even(on_step, stops),
                )
            except Diverged as error:
                run, failure = error.so_far, error
        run.about = {
            "problem": work.about,
            "parameters": f"{loss.layout.d:,} in {loss.theta.dtype}".replace("torch.", ""),
            "batches": str(len(loss)),
            "optimizer": type(optimizer).__name__,
            "steps": str(self.steps),
            "seed": str(self.seed),
            "command": command(),
            "torch": str(torch.__version__),
        }
        if run.stops:
            self._show(run, page, answer.console(aside=self.json))
        if failure is not None:
            raise failure

    def _show(self, run: Any, page: Path | None, console: Any) -> None:
        from memoryless.report.audit import print_run

        if self.json:
            answer.say(run.to_json())
        else:
            print_run(run, console)
        if page is not None:
            write(page, run.to_html())
            console.print(f"Charts and beta maps: {page}", soft_wrap=True)


def _rival(text: str, loss: Any, lr: float) -> Any:
    """A method for a shadow memory, which needs it in momentum form: torch's own in the form that they are recognised as."""
    from memoryless.methods.live_optimizer import recognised
    from memoryless.methods.named import resolve

    named = resolve(text)
    method = named.method(loss.shapes, lr)
    return method if method.parts else recognised(named.live(loss.layout.tensors, lr), loss.layout)
