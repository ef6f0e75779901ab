"""The command line. Thin: torch is imported only when a command runs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

DESCRIPTION = """What an optimizer's memory does to the loss: measured, predicted, and whether the prediction holds.

Examples:
  memoryless audit
  memoryless derive adamw --set eps=0
  memoryless audit --optimizer "sgd(lr=0.1, momentum=0.9)" --steps 300
  memoryless audit train.py:setup --checkpoint run.pt --steps 200 --json > audit.json
"""


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

        from memoryless import problems, script
        from memoryless.loss import Loss
        from memoryless.run import Diverged, audit_run, log_spaced

        page = _writable("--html", self.html)
        for option, value in (("steps", self.steps), ("stops", self.stops)):
            if value < 1:
                raise ValueError(f"--{option} must be at least 1, got {value}")
        device, dtype = _device(self.device), _dtype(self.dtype)
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
                model, criterion, batches, optimizer = script.load_setup(self.script, self.seed)
            if device.type != "cpu" or dtype is not None:
                model.to(device, dtype)
                batches = script.Moved(batches, device, dtype)
            if self.optimizer is not None:
                optimizer = script.parse_optimizer(self.optimizer, model.parameters())
            if self.checkpoint is not None:
                script.load_checkpoint(self.checkpoint, model, optimizer)
            loss = Loss(model, criterion, batches)
            lr = float(optimizer.param_groups[0]["lr"])
            compare = None if self.compare is None else [script.parse_method(text, lr) for text in self.compare]
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
                run, failure = error.run, error
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
        from memoryless.report.table import print_run

        if self.json:
            print(run.to_json())
        else:
            print_run(run, console)
        if page is not None:
            page.write_text(run.to_html(), encoding="utf-8")
            console.print(f"Charts and beta maps: {page}", soft_wrap=True)


@dataclass
class Derive:
    """Derive the formulas of a method: F, M, the modified loss if there is one, the modified flow, limits, and what they say.

    Such as: memoryless derive adamw --set beta1=0.9 --set eps=0 --latex adamw.tex
    """

    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    """heavy_ball, nesterov, rmsprop, adam, adamw, nadam, lion_k, lion, signum, or module:attribute."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """A hyperparameter: a number, or the name of another's symbol. May be given more than once; the others stay symbols."""
    step: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """Number of past steps, or n for a symbol. Default: the steady state."""
    markdown: bool = False
    """Print Markdown."""
    json: bool = False
    """Print JSON."""
    latex: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """LaTeX article to write; compiles as it is. Only a file that memoryless wrote is overwritten."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Page to write. Only a page that memoryless wrote is overwritten."""

    def run(self) -> None:
        """Derive, print, write."""
        from rich.console import Console

        from memoryless.derive import derive

        sys.path.insert(0, "")  # a module of the user's own, where the command is run
        latex, html = _writable("--latex", self.latex), _writable("--html", self.html)
        step: int | str | None = self.step
        if step not in (None, "n"):
            if not str(step).isdigit():
                raise ValueError(f"--step must be an integer >= 0, or n, got {step!r}")
            step = int(str(step))
        with Console(stderr=True).status("deriving"):
            d = derive(self.method, step, **dict(map(_pair, self.set)))
            shown = d.to_json() if self.json else d.markdown() if self.markdown else d.text()
            files = [(path, text()) for path, text in ((latex, d.latex), (html, d.to_html)) if path is not None]
        print(shown)
        for path, text in files:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}", file=sys.stderr)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise ValueError(f"--set expects NAME=VALUE such as beta1=0.9, got {text!r}")
    return name.strip(), value.strip()


def _writable(option: str, name: str | None) -> Path | None:
    """The path of a file to write, checked before any work is done."""
    if name is None:
        return None
    path = Path(name)
    if not path.parent.is_dir():
        raise ValueError(f"{option} {name}: no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"{option} {name} is a folder; expected a file")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(4096)
            if not any(mark in start for mark in (b'name="generator" content="memoryless', b"% written by memoryless")):
                raise ValueError(f"{option} {name} exists and was not written by memoryless; choose another name")
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise ValueError(f"{option} {name} cannot be written: {error.strerror}") from error
    if path.stat().st_size == 0:
        path.unlink()
    return path


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda asked for, but torch sees no CUDA device; use --device cpu")
    return device


def _dtype(name: str | None) -> Any:
    import torch

    if name not in (None, "float32", "float64"):
        raise ValueError(f"--dtype must be float32 or float64, got {name!r}")
    return None if name is None else getattr(torch, name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; bad input is one line on stderr and exit code 2.

    Args:
        arguments: default those of the process.
    """
    command = tyro.extras.subcommand_cli_from_dict(
        {"audit": Audit, "derive": Derive}, prog="memoryless", description=DESCRIPTION, args=arguments
    )
    try:
        command.run()
    except (ValueError, TypeError, OSError) as error:
        print(f"memoryless: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
