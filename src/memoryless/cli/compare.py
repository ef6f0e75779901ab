"""memoryless compare."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from memoryless.cli import answer
from memoryless.cli.files import command, picture, save, writable, write
from memoryless.cli.options import progress, there
from memoryless.errors import BadInput


@dataclass
class Compare:
    """Compare optimizers: what the memory of each does to the same loss, measured and predicted, along its own run.

    Such as: memoryless compare adamw lion "torch.optim.Muon(lr=1e-3)" --steps 200 --html compare.html
    """

    optimizers: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="OPTIMIZER ...")]
    """Such as lion, "adamw(betas=(0.9, 0.95))", torch.optim.Adamax, my.py:NAME."""
    problem: str = "digits"
    """digits: a small GELU network on the digits images of scikit-learn; or SCRIPT.py:FUNCTION as for audit."""
    steps: int = 100
    """Steps of each run."""
    lr: float | None = None
    """For those that do not say theirs. Default: the class's own, 1e-3 for the catalogue."""
    measures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = (
        "gradient_1_norm",
        "gradient_norm_squared",
        "sharpness",
    )
    """What memory acts on, as for audit."""
    seed: int = 0
    """Of the initial parameters."""
    png: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture to write. Only a picture that memoryless wrote is overwritten."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Page to write, with charts. Only a page that memoryless wrote is overwritten."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        """Run each, audit, print."""
        path, page = picture("--png", self.png), writable("--html", self.html)
        there(self.problem)
        if self.lr is not None and not self.lr > 0:
            raise BadInput(f"--lr must be positive, got {self.lr}")
        if not self.optimizers:
            raise BadInput("expected at least one optimizer, such as adamw")

        methods, refused = {}, {}
        with progress("running") as on_step:  # before torch is waited for
            from memoryless.audits.compare import Compared, Comparison, compare
            from memoryless.cli import setup
            from memoryless.methods.named import resolve

            loss = setup.load(self.problem, self.seed, setup.FULL_BATCH).loss
            for text in self.optimizers:
                try:
                    methods[text] = resolve(text).method(loss.shapes, self.lr)
                except BadInput as error:
                    refused[text] = error
            if not methods:
                raise next(iter(refused.values()))
            ran = compare(methods, loss, steps=self.steps, measures=self.measures, on_step=on_step)

        from memoryless.report import compare as report

        rows = {row.name: row for row in ran} | {name: Compared(name, None, str(error)) for name, error in refused.items()}
        about = {
            "problem": self.problem,
            "size": f"{loss.layout.d:,} parameters, full batch",
            "seed": str(self.seed),
            "command": command(),
        }
        found = Comparison(tuple(rows[text] for text in dict.fromkeys(self.optimizers)), self.steps, about)
        if self.json:
            answer.say(found.to_json(indent=2))
        else:
            report.print_comparison(found, answer.console())
        if path is not None and any(row.audit for row in found):
            save(report.picture(found), path, dpi=130)
        if page is not None:
            write(page, found.to_html())
