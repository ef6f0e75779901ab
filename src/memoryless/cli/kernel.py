"""memoryless kernel."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from memoryless.cli import answer
from memoryless.cli.files import picture, save
from memoryless.cli.options import assignments, progress
from memoryless.errors import BadInput

SHAPES = ((8, 6), (6,))


@dataclass
class Kernel:
    """How far back an optimizer remembers, and whether it forgets fast enough for the theory to hold.

    Such as: memoryless kernel torch.optim.AdamW --set betas=0.9,0.999 --set lr=1e-3 --png adamw.png
    """

    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    """Such as lion, "nadam(betas=(0.95, 0.99))", torch.optim.AdamW, my.py:NAME."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """A hyperparameter; may be given more than once."""
    shapes: Annotated[str | None, tyro.conf.arg(metavar="SHAPES")] = None
    """Of the parameters: 8,6:6 is a matrix and a vector. Default: these, or the matrix alone where vectors are refused."""
    horizon: int | None = None
    """Steps to follow a torch optimizer after a disturbance. Default: 2048, doubled up to 16,384 while that does not tell."""
    seed: int = 0
    """Of the random gradients and parameters."""
    png: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture to write. Only a picture that memoryless wrote is overwritten."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Follow the memory, print, draw."""
        path = picture("--png", self.png)
        if self.horizon is not None and self.horizon < 128:
            raise BadInput(f"--horizon must be at least 128, got {self.horizon}")
        shapes = None if self.shapes is None else _shapes(self.shapes)
        hyper = assignments(self.set, "betas=0.9,0.999")

        with progress("optimizer steps") as on_step:  # before torch is waited for
            import torch

            from memoryless.methods.fading.memory import memory_kernel
            from memoryless.methods.named import resolve

            torch.set_num_threads(1)
            named = resolve(self.method).given(**hyper)
            if shapes is None:
                shapes = SHAPES if named.takes(SHAPES) else SHAPES[:1]
            found = memory_kernel(named.method(shapes), horizon=self.horizon, seed=self.seed, on_step=on_step)

        from memoryless.report import kernel as report

        if self.json:
            answer.say(found.to_json())
        else:
            report.print_kernel(found, answer.console())
        if path is not None:
            save(report.picture(found), path)


def _shapes(text: str) -> tuple[tuple[int, ...], ...]:
    try:
        shapes = tuple(tuple(int(size) for size in shape.split(",")) for shape in text.split(":"))
    except ValueError:
        raise BadInput(f"--shapes expects sizes such as 8,6:6 for a matrix and a vector, got {text!r}") from None
    if any(size < 1 for shape in shapes for size in shape):
        raise BadInput(f"--shapes must be positive, got {text!r}")
    return shapes
