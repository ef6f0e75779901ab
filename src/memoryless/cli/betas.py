"""memoryless betas."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro

from memoryless.cli import answer
from memoryless.cli.files import picture, save
from memoryless.cli.map import betas
from memoryless.cli.options import device_of, dtype_of, progress, there
from memoryless.errors import BadInput
from memoryless.progress import OnStep

SIZES = "8,32,128,full"


@dataclass
class Betas:
    """At my batch size, which betas? What memory does over pairs of betas at several batch sizes, measured and predicted.

    The optimizer goes on from the checkpoint at each batch size for --steps steps; memory is measured over the last quarter of
    them, and predicted along the same batches.

    Such as: memoryless betas train.py:setup --checkpoint run.pt --batch-sizes 8,32,128,full --png betas.png
    """

    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")] = "digits"
    """SCRIPT.py:FUNCTION such as train.py:setup; setup() returns model, criterion, batches, optimizer. Default: digits, a small
    GELU network on the digits images, in batches of 32."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """To start from: a file with the state dicts of model and optimizer, or the folder of a Trainer's checkpoint."""
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="OPTIMIZER")] = None
    """In momentum form with a pair of betas, such as "adamw(lr=1e-3, betas=(0.9, 0.99))". Default: the script's, or
    "adamw(lr=3e-4)"."""
    batch_sizes: Annotated[str, tyro.conf.arg(metavar="N,N,...")] = SIZES
    """Samples in a batch; full is all of them. Of the default, those that leave two batches."""
    stages: Annotated[str | None, tyro.conf.arg(metavar="N,N,...")] = None
    """Steps of training to do first, on the script's own batches; several give the curve over training. Default: 0 with a
    script, 100 without."""
    betas1: Annotated[str | None, tyro.conf.arg(metavar="B,B,...")] = None
    """Values of beta1 on the grid; the optimizer's own is added. Default: seven from 0 to 0.99."""
    betas2: Annotated[str | None, tyro.conf.arg(metavar="B,B,...")] = None
    """Values of beta2, likewise. Default: eight from 0.5 to 0.999."""
    measures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = ("gradient_1_norm", "gradient_norm_squared")
    """What memory acts on: gradient_1_norm, gradient_norm_squared, sharpness; means over the batches at
    hand, which noise acts on: batch_gradient_1_norm, batch_gradient_norm_squared, batch_gradient_variance, batch_sharpness."""
    lr: float | None = None
    """Of the optimizer, in place of its own or the checkpoint's, such as where a schedule ended at 0."""
    steps: int = 1000
    """Steps of the run at each batch size."""
    seed: int = 0
    """Of the initial parameters and the orders of the batches."""
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
        path = picture("--png", self.png)
        there(self.problem, self.checkpoint)
        sizes = [None if text == "full" else _whole("--batch-sizes", text) for text in self.batch_sizes.split(",")]
        default = "100" if self.problem == "digits" else "0"
        stages = sorted({_whole("--stages", text, 0) for text in (self.stages or default).split(",")})
        axes = betas("--betas1", self.betas1), betas("--betas2", self.betas2)
        found: list[Any] = []
        with progress("measuring") as on_step:  # before torch is waited for
            device, dtype = device_of(self.device), dtype_of(self.dtype)

            from memoryless.cli import setup
            from memoryless.live.batch_sizes import BETAS_1, BETAS_2, audit_batch_sizes, train
            from memoryless.methods import live_optimizer

            work = setup.load(self.problem, self.seed, setup.MINI_BATCHES, device, dtype)
            optimizer, loss = setup.optimizer_of(work, self.optimizer, "adamw(lr=3e-4)", self.checkpoint, self.lr), work.loss
            if self.batch_sizes == SIZES and loss.batches.sizes:
                sizes = [size for size in sizes if size is None or size <= sum(loss.batches.sizes) // 2]
            for stage, before, training, auditing in _parts(stages, self.steps * len(sizes), on_step):
                train(optimizer, loss, stage - before, self.seed + stages.index(stage), training)
                maps = audit_batch_sizes(
                    optimizer,
                    loss,
                    sizes,
                    measures=self.measures,
                    betas=(axes[0] or BETAS_1, axes[1] or BETAS_2),
                    steps=self.steps,
                    seed=self.seed,
                    on_step=auditing,
                )
                found.append(replace(maps, taken=stage))

        from memoryless.report import betas as report

        if self.json:
            answer.say(json.dumps({"stages": [report.as_dict(each) for each in found]}))
        else:
            about = f"{work.about}, {live_optimizer.method_of(optimizer)}"
            report.print_advice(found, about, answer.console())
        if path is not None:
            save(report.picture(found), path, dpi=130)


def _whole(option: str, text: str, least: int = 1) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise BadInput(f"{option} takes whole numbers from {least} on, separated by commas, got {text!r}")
    return int(text)


def _parts(stages: list[int], steps: int, on_step: OnStep) -> Iterator[tuple[int, int, OnStep, OnStep]]:
    """Each stage, the one before, and what to tell while it trains and is audited, so that all of it makes one progress.

    Args:
        stages: steps of training, increasing.
        steps: those that an audit takes at all its batch sizes; with shadows and predictions each costs about three plain ones.
        on_step: told what is done of all, in plain steps.
    """
    whole = stages[-1] + 3 * steps * len(stages)
    for j, (before, stage) in enumerate(itertools.pairwise([0, *stages])):
        trained, audited = before + 3 * steps * j, stage + 3 * steps * j
        yield (
            stage,
            before,
            lambda done, total, at=trained: on_step(at + done, whole),
            lambda done, total, at=audited: on_step(at + round(3 * steps * done / total), whole),
        )
