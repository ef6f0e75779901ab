"""memoryless derive."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from memoryless.cli import answer
from memoryless.cli.files import writable, write
from memoryless.cli.options import assignments, progress
from memoryless.errors import BadInput


@dataclass
class Derive:
    """Derive the formulas of a method: F, M, the modified loss if there is one, the modified flow, limits, and what they say.

    Such as: memoryless derive adamw --set beta1=0.9 --set eps=0 --latex adamw.tex
    """

    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    """heavy_ball, nesterov, rmsprop, adam, adamw, nadam, lion_k, lion, signum; torch.optim.AdamW; module:NAME or script.py:NAME
    of your own method or of a function or class that makes it."""
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
        latex, html = writable("--latex", self.latex), writable("--html", self.html)
        values = assignments(self.set, "beta1=0.9")
        step: int | str | None = self.step
        if step not in (None, "n"):
            if not str(step).isdigit():
                raise BadInput(f"--step must be an integer >= 0, or n, got {step!r}")
            step = int(str(step))

        from memoryless.formulas.derive import derive

        with progress("deriving"):
            d = derive(self.method, step, **values)
            shown = d.to_json() if self.json else d.markdown() if self.markdown else d.text()
            files = [(path, text()) for path, text in ((latex, d.latex), (html, d.to_html)) if path is not None]
        answer.say(shown)
        for path, text in files:
            write(path, text)
