"""memoryless derive."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from memoryless.cli.options import writable
from memoryless.errors import BadInput


@dataclass
class Derive:
    """Derive the formulas of a method: F, M, the modified loss if there is one, the modified flow, limits, and what they say.

    Such as: memoryless derive adamw --set beta1=0.9 --set eps=0 --latex adamw.tex
    """

    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    """heavy_ball, nesterov, rmsprop, adam, adamw, nadam, lion_k, lion, signum; module:NAME or script.py:NAME of your own
    method, of a function or class that makes it, or of an optimizer's class, torch.optim:AdamW."""
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

        from memoryless.formulas.derive import derive

        sys.path.insert(0, "")  # a module of the user's own, where the command is run
        latex, html = writable("--latex", self.latex), writable("--html", self.html)
        step: int | str | None = self.step
        if step not in (None, "n"):
            if not str(step).isdigit():
                raise BadInput(f"--step must be an integer >= 0, or n, got {step!r}")
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
        raise BadInput(f"--set expects NAME=VALUE such as beta1=0.9, got {text!r}")
    return name.strip(), value.strip()
