"""memoryless watch."""

import os
import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from memoryless.cli import answer
from memoryless.errors import BadInput


@dataclass
class Watch:
    """A monitored run as it happens: what its optimizer's memory does to the loss, stop by stop.

    Such as: memoryless watch run.jsonl
    """

    log: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LOG")]
    """What Monitor(log=...) writes. It is only read."""
    once: bool = False
    """One look, then the end; the default stays until the run ends, or Ctrl-C."""
    seconds: float = 1.0
    """Between looks."""

    def run(self) -> None:
        """Look."""
        if not self.seconds > 0:
            raise BadInput(f"--seconds must be positive, got {self.seconds}")

        from memoryless.live.monitoring.log import read
        from memoryless.report import watch as report

        records, console = read(self.log), answer.console()
        if self.once:
            report.print_once(records, self.log, console)
            return
        from rich.live import Live

        with Live(report.view(records, self.log), console=console, auto_refresh=False) as live:
            seen = os.stat(self.log).st_mtime_ns
            while records[-1]["kind"] != "end":
                time.sleep(self.seconds)
                if (now := os.stat(self.log).st_mtime_ns) != seen:
                    seen, records = now, read(self.log)
                    live.update(report.view(records, self.log), refresh=True)
