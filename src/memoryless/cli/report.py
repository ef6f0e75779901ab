"""memoryless report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from memoryless.cli import answer
from memoryless.cli.files import command, writable, write


@dataclass
class Report:
    """A monitored run as one page: memory's effect over training, maps of betas, tensors, noise, what it cost.

    Such as: memoryless report run.jsonl
    """

    log: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LOG")]
    """What Monitor(log=...) writes. It is only read."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Page to write. Default: the log's name with .html. Only a page that memoryless wrote is overwritten."""

    def run(self) -> None:
        """Read, print a look, write."""
        from memoryless.live.monitoring.log import read
        from memoryless.report import report, watch

        records = read(self.log)
        path = writable("--html", self.html or str(Path(self.log).with_suffix(".html")))
        watch.print_once(records, self.log, answer.console())
        write(path, report.page(records, command()))
