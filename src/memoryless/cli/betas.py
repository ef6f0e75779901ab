"""memoryless betas."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from memoryless.cli.options import device_of, dtype_of, writable
from memoryless.errors import BadInput


@dataclass
class Betas:
    """At my batch size, which betas? What memory does over pairs of betas at several batch sizes, measured and predicted.

    The optimizer goes on from the checkpoint at each batch size for --steps steps; memory is measured over the last quarter of
    them, and predicted where they end. Without a script: a small GELU network on the digits images, AdamW, lr 3e-4, batches of
    32.

    Such as: memoryless betas train.py:setup --checkpoint run.pt --batch-sizes 8,32,128,full --png betas.png
    """

    script: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SCRIPT.py:FUNCTION")] = None
    """such as train.py:setup; setup() returns model, criterion, batches, optimizer."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """File with the state dicts 'model' and 'optimizer' to start from."""
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="NAME(OPTIONS)")] = None
    """adam, adamw or nadam with options: "adamw(lr=1e-3, betas=(0.9, 0.99))". Default: the script's."""
    batch_sizes: Annotated[str, tyro.conf.arg(metavar="N,N,...")] = "8,32,128,full"
    """Samples in a batch; full is all of them."""
    stages: Annotated[str | None, tyro.conf.arg(metavar="N,N,...")] = None
    """Steps of training to do first, on the script's own batches; several give the curve over training. Default: 0 with a
    script, 100 without."""
    betas1: Annotated[str | None, tyro.conf.arg(metavar="B,B,...")] = None
    """Values of beta1 on the grid; the optimizer's own is added. Default: seven from 0 to 0.99."""
    betas2: Annotated[str | None, tyro.conf.arg(metavar="B,B,...")] = None
    """Values of beta2, likewise. Default: eight from 0.5 to 0.999."""
    measures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = ("gradient_1_norm", "gradient_norm_squared")
    """What memory acts on: gradient_1_norm, gradient_norm_squared, sharpness."""
    steps: int = 1000
    """Steps of the run at each batch size."""
    samples: int = 32
    """Random orders for each predicted pair."""
    seed: int = 0
    """Of the initial parameters, the orders and the draws."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    dtype: Annotated[str | None, tyro.conf.arg(metavar="DTYPE")] = None
    """float32 or float64. Default: float64 for the digits, the script's own otherwise."""
    png: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = "memoryless-betas.png"
    """Picture to write; None for none. Only a picture that memoryless wrote is overwritten."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        """Measure, predict, advise."""
        path = writable("--png", self.png)
        if path is not None and path.suffix != ".png":
            raise BadInput(f"--png must end in .png, got {self.png}")
        sizes = [None if text == "full" else _whole("--batch-sizes", text) for text in self.batch_sizes.split(",")]
        default = "100" if self.script is None else "0"
        stages = sorted({_whole("--stages", text, 0) for text in (self.stages or default).split(",")})
        axes = [_betas("--betas1", self.betas1), _betas("--betas2", self.betas2)]
        device, dtype = device_of(self.device), dtype_of(self.dtype)

        import torch
        from rich.console import Console
        from rich.progress import Progress

        from memoryless import __version__
        from memoryless.experiments import problems
        from memoryless.live.batch_sizes import BETAS_1, BETAS_2, audit_batch_sizes, train
        from memoryless.methods import named
        from memoryless.report import betas as report

        if self.script is None:
            torch.set_num_threads(1)
            model, criterion, batches = problems.digits_batches(self.seed, dtype=dtype or torch.float64)
            optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        else:
            model, criterion, batches, optimizer = named.load_setup(self.script, self.seed)
        if device.type != "cpu" or dtype is not None:
            model.to(device, dtype)
            batches = list(named.Moved(batches, device, dtype))
        if self.optimizer is not None:
            optimizer = named.parse_optimizer(self.optimizer, model.parameters())
        if self.checkpoint is not None:
            named.load_checkpoint(self.checkpoint, model, optimizer)
        found: list[Any] = []
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("training", total=len(stages))
            taken = 0
            for j, stage in enumerate(stages):
                train(model, criterion, batches, optimizer, stage - taken, self.seed + j)
                taken = stage

                def told(what: str, share: float, j: int = j, stage: int = stage) -> None:
                    progress.update(task, completed=j + share, description=f"after {stage} steps, {what}")

                found.append(
                    audit_batch_sizes(
                        model,
                        criterion,
                        batches,
                        optimizer,
                        sizes,
                        measures=self.measures,
                        betas_1=axes[0] or BETAS_1,
                        betas_2=axes[1] or BETAS_2,
                        samples=self.samples,
                        steps=self.steps,
                        seed=self.seed,
                        taken=taken,
                        on_progress=told,
                    )
                )
        if self.json:
            print(json.dumps({"stages": [report.as_dict(each) for each in found]}))
        else:
            report.print_advice(found, Console())
        if path is not None:
            report.picture(found).savefig(path, dpi=130, metadata={"Software": f"memoryless {__version__}"})
            print(f"wrote {path}", file=sys.stderr)


def _whole(option: str, text: str, least: int = 1) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise BadInput(f"{option} takes whole numbers from {least} on, separated by commas, got {text!r}")
    return int(text)


def _betas(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(part) for part in (text or "").split(",") if text}))
    except ValueError:
        raise BadInput(f"{option} takes numbers separated by commas, got {text!r}") from None
