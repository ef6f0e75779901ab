"""memoryless atlas."""

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from memoryless.cli import answer
from memoryless.cli.files import MARKS, writable, write
from memoryless.cli.options import progress
from memoryless.errors import BadInput


@dataclass
class Atlas:
    """Put every optimizer of torch, pytorch_optimizer and heavyball through one machine: what does its memory do to the loss?

    Such as: memoryless atlas --store atlas.jsonl --html atlas.html
    """

    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """Names of optimizers, in any case. Default: all."""
    library: Literal["torch", "pytorch_optimizer", "heavyball"] | None = None
    """Only this library."""
    store: Annotated[str | None, tyro.conf.arg(metavar="FILE.jsonl")] = None
    """Rows are kept here as they are finished; the same command goes on where it was stopped."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Page to write, with a table to sort and filter. Only a page that memoryless wrote is overwritten."""
    markdown: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Markdown to write; the file must not exist, or be an atlas."""
    json: bool = False
    """Print JSON instead of a table."""
    jobs: int = 2
    """Processes, one optimizer each."""
    limit: float = 180.0
    """Seconds of processor time for one optimizer."""

    def run(self) -> None:
        """Examine what is not in the store yet, show and write all of it."""
        html, document = writable("--html", self.html), writable("--markdown", self.markdown, (*MARKS, b"# Atlas"))
        if self.jobs < 1:
            raise BadInput(f"--jobs must be at least 1, got {self.jobs}")
        if not 0 < self.limit < 1e6:
            raise BadInput(f"--limit must be positive and at most a million seconds, got {self.limit}")
        if self.store is not None and not Path(self.store).parent.is_dir():
            raise BadInput(f"--store {self.store}: no folder {Path(self.store).parent}")

        import json

        from memoryless.experiments.atlas import subjects
        from memoryless.experiments.atlas.pool import Store, run, sole, tasks
        from memoryless.report import atlas as report

        libraries = subjects.installed()
        if self.library is not None and self.library not in libraries:
            raise BadInput(f"{self.library} is not installed: {subjects.INSTALL}")
        if missing := [name for name in subjects.LIBRARIES if name not in libraries]:
            print(f"without {' and '.join(missing)}, which {subjects.INSTALL} brings", file=sys.stderr)
        every = tasks(libraries if self.library is None else [self.library], self.only)
        with nullcontext() if self.store is None else sole(Path(self.store)):
            store = None if self.store is None else Store(Path(self.store))
            rows = {} if store is None else {key: store.rows[key] for key in every if store.has(key)}
            wanted = {key: task for key, task in every.items() if key not in rows}
            try:
                with progress("optimizers") as on_step:
                    for row in run(wanted, self.jobs, self.limit):
                        if store is not None:
                            store.append(row)
                        rows[row["library"], row["name"]] = row
                        on_step(len(rows), len(every))
            except KeyboardInterrupt as error:
                if store is not None:
                    error.add_note(f"{len(rows)} of {len(every)} rows are in {store.path}; the same command goes on from there")
                raise
        found = report.ordered(rows.values())
        console = answer.console(aside=self.json)
        if self.json:
            answer.say("[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in found) + "\n]")
        else:
            console.print(report.table(found))
        for line in report.summary(found):
            console.print(line, soft_wrap=True, markup=False)
        for path, text in ((html, report.page), (document, report.markdown)):
            if path is not None:
                write(path, text(found))
