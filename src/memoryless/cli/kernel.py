"""memoryless profile."""

import ast
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from memoryless.cli.options import writable
from memoryless.errors import BadInput

SHAPES = ((8, 6), (6,))


@dataclass
class Profile:
    """How far back an optimizer remembers, and whether it forgets fast enough for the theory to hold.

    Such as: memoryless profile torch.optim.AdamW --set betas=0.9,0.999 --set lr=1e-3 --png adamw.png
    """

    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    """A torch optimizer's class by its path, torch.optim.AdamW, or a method of the catalogue: lion, "nadam(lr=1e-3)"."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """A hyperparameter; may be given more than once."""
    shapes: Annotated[str | None, tyro.conf.arg(metavar="SHAPES")] = None
    """Of the parameters: 8,6:6 is a matrix and a vector. Default: these, or the matrix alone where vectors are refused."""
    horizon: int = 2048
    """Most steps to follow a torch optimizer after a disturbance."""
    seed: int = 0
    """Of the random gradients and parameters."""
    png: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture to write. Only a picture that memoryless wrote is overwritten."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Profile, print, draw."""
        sys.path.insert(0, "")  # a module of the user's own, where the command is run
        picture = writable("--png", self.png)
        if picture is not None and picture.suffix != ".png":
            raise BadInput(f"--png must end in .png, got {self.png}")
        if self.horizon < 128:
            raise BadInput(f"--horizon must be at least 128, got {self.horizon}")
        shapes = None if self.shapes is None else _shapes(self.shapes)

        import torch
        from rich.console import Console
        from rich.progress import Progress

        from memoryless import __version__
        from memoryless.methods.fading.profile import memory_kernel
        from memoryless.report import kernel as report

        torch.set_num_threads(1)
        hyper = dict(map(_pair, self.set))
        method = _torch(self.method, hyper, shapes) if _dotted(self.method) else _catalogue(self.method, hyper)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("optimizer steps", total=None)

            def on_step(steps: int) -> None:
                progress.update(task, completed=steps, description=f"{steps:,} optimizer steps")

            found = memory_kernel(method, horizon=self.horizon, seed=self.seed, on_step=on_step)
        if self.json:
            print(found.to_json())
        else:
            report.print_profile(found, Console())
        if picture is not None:
            report.picture(found).savefig(picture, metadata={"Software": f"memoryless {__version__}"})
            print(f"wrote {picture}", file=sys.stderr)


def _dotted(text: str) -> bool:
    return "." in text.partition("(")[0]


def _torch(path: str, hyper: dict[str, Any], shapes: tuple[tuple[int, ...], ...] | None) -> Any:
    import importlib

    from torch.optim import Optimizer

    from memoryless.methods.black_box.torch_method import TorchMethod

    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise BadInput(f"{path}: {error}") from error
    except Exception as error:
        raise BadInput(f"{path}: importing {module} raised {type(error).__name__}: {error}") from error
    if kind is None:
        raise BadInput(f"{path}: {module} has no '{name}'")
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise BadInput(f"{path} is no class of torch optimizers, but {kind!r}")

    def made(shapes: tuple[tuple[int, ...], ...]) -> TorchMethod:
        return TorchMethod(lambda parameters: kind(parameters, **hyper), shapes)  # pyright: ignore[reportCallIssue]

    try:
        return made(shapes or SHAPES)
    except ValueError as refused:
        if shapes is None:
            try:
                return made(SHAPES[:1])
            except ValueError:
                pass
        raise BadInput(str(refused).replace("the factory raised", f"{path} raised")) from refused


def _catalogue(text: str, hyper: dict[str, Any]) -> Any:
    from memoryless.methods.named import parse_method

    method = parse_method(text, 1e-3)
    return method.with_hyper(**hyper) if hyper else method


def _shapes(text: str) -> tuple[tuple[int, ...], ...]:
    try:
        shapes = tuple(tuple(int(size) for size in shape.split(",")) for shape in text.split(":"))
    except ValueError:
        raise BadInput(f"--shapes expects sizes such as 8,6:6 for a matrix and a vector, got {text!r}") from None
    if any(size < 1 for shape in shapes for size in shape):
        raise BadInput(f"--shapes must be positive, got {text!r}")
    return shapes


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name.isidentifier() and equals and value):
        raise BadInput(f"--set expects NAME=VALUE such as betas=0.9,0.999, got {text!r}")
    literal = {"true": "True", "false": "False", "none": "None"}.get(value, value)
    try:
        return name, ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        return name, value
