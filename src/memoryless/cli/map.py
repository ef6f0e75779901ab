"""memoryless map."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from memoryless.cli import answer
from memoryless.cli.files import picture, save
from memoryless.cli.options import device_of, dtype_of, progress, there
from memoryless.errors import BadInput


@dataclass
class Map:
    """Which betas? What memory would do at other betas, read off a checkpoint's own buffers or predicted, in seconds.

    Such as: memoryless map train.py:setup --checkpoint run.pt --png map.png
    """

    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")] = "digits"
    """SCRIPT.py:FUNCTION such as train.py:setup; setup() returns model, criterion, batches, optimizer. Default: digits, a small
    GELU network on the digits images that scikit-learn carries, after 300 steps."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """To start from: a file with the state dicts of model and optimizer, or the folder of a Trainer's checkpoint."""
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="OPTIMIZER")] = None
    """Such as "adamw(lr=1e-3, betas=(0.9, 0.99))". Default: the script's, or adamw."""
    order: Literal["state", "path", "resummed", "first"] = "state"
    """state: by the optimizer's own buffers. From theta alone: path, resummed, first."""
    ahead: Annotated[int | None, tyro.conf.arg(metavar="STEPS")] = None
    """With the buffers as a start, real steps to take on a copy, and to measure there."""
    train: Annotated[int | None, tyro.conf.arg(metavar="STEPS")] = None
    """Full-batch steps to take first. Default: none, 300 for the digits without a checkpoint."""
    full_batch: bool = False
    """Say that every past step took the mean gradient of all batches, where there are several: the noise of single batches in
    the buffers cannot be told from memory."""
    betas1: Annotated[str | None, tyro.conf.arg(metavar="B,B,...")] = None
    """Values of beta1 on the grid; the optimizer's own is added. Default: seven from 0 to 0.99."""
    betas2: Annotated[str | None, tyro.conf.arg(metavar="B,B,...")] = None
    """Values of beta2, likewise. Default: eight from 0.5 to 0.999."""
    measures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = ("gradient_1_norm",)
    """What memory acts on: gradient_1_norm, gradient_norm_squared, sharpness."""
    lr: float | None = None
    """Of the optimizer, in place of its own or the checkpoint's, such as where a schedule ended at 0."""
    seed: int = 0
    """Of the initial parameters."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    dtype: Annotated[str | None, tyro.conf.arg(metavar="DTYPE")] = None
    """float32 or float64. Default: float64 for the digits, the script's own otherwise."""
    png: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture to write. Only a picture that memoryless wrote is overwritten."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        """Make the map and show it."""
        path = picture("--png", self.png)
        there(self.problem, self.checkpoint)
        for option, value in (("ahead", self.ahead), ("train", self.train)):
            if value is not None and value < (option == "ahead"):
                raise BadInput(f"--{option} must be at least {int(option == 'ahead')}, got {value}")
        axes = betas("--betas1", self.betas1), betas("--betas2", self.betas2)
        device, dtype = device_of(self.device), dtype_of(self.dtype)

        with progress("steps") as on_step:
            from memoryless.audits.maps import beta_map
            from memoryless.cli import setup
            from memoryless.live import loop
            from memoryless.live.batch_sizes import BETAS_1, BETAS_2
            from memoryless.methods import live_optimizer

            work = setup.load(self.problem, self.seed, setup.FULL_BATCH, device, dtype)
            optimizer, loss = setup.optimizer_of(work, self.optimizer, "adamw", self.checkpoint, self.lr), work.loss
            default = 300 if self.problem == "digits" and self.checkpoint is None else 0
            train = default if self.train is None else self.train
            fresh = not any(optimizer.state.values())
            loop.run(optimizer, loss, train, on_step=on_step)
            method = live_optimizer.method_of(optimizer, loss.layout)
            own = method.parts[0].method.hyper.get("betas") if method.parts else None
            first, second = (tuple(sorted({*(axis or usual), *((own[k],) if own else ())}))
                    for k, (axis, usual) in enumerate(zip(axes, (BETAS_1, BETAS_2), strict=True)))  # fmt: skip
            found = beta_map(
                optimizer,
                loss,
                first,
                second,
                order=self.order,
                step=train if fresh and train else None,
                measures=self.measures,
                steps=self.ahead,
                full_batch=self.full_batch or bool(train and self.checkpoint is None),
            )
        if self.json:
            answer.say(found.to_json())
        if self.json and path is None:
            return

        from memoryless.report import map as report

        about = f"{work.about}, {method}"
        if not self.json:
            report.print_map(found, own, about, answer.console())
        if path is not None:
            save(report.picture(found, own, about), path, dpi=130)


def betas(option: str, text: str | None) -> tuple[float, ...]:
    """Values of an axis.

    Args:
        option: that they were given by.
        text: numbers separated by commas, or None.

    Raises:
        BadInput: they are not.
    """
    try:
        return tuple(sorted({float(part) for part in (text or "").split(",") if text}))
    except ValueError:
        raise BadInput(f"{option} takes numbers separated by commas, got {text!r}") from None
