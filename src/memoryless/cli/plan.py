"""memoryless plan."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from memoryless.cli import answer
from memoryless.cli.options import progress
from memoryless.errors import BadInput


@dataclass
class Plan:
    """What a sweep will take, before it starts: runs, hours, memory, measured here by a few steps of each kind of run.

    Such as: memoryless plan grid.toml
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.toml")]
    """As of memoryless sweep. Nothing of it is run, and its store is only read."""
    store: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where results are kept. Default: beside the file, with .sweep in place of .toml."""
    jobs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Runs at a time. Default: one per core of this machine."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Measure, and say what it comes to."""
        if self.jobs is not None and self.jobs < 1:
            raise BadInput(f"--jobs must be at least 1, got {self.jobs}")

        from memoryless.experiments.sweep import grid as grids
        from memoryless.experiments.sweep.driver import usual_jobs
        from memoryless.experiments.sweep.planning import plan
        from memoryless.experiments.sweep.results import Results, folder_of, look

        grid = grids.read(self.config)
        found = look(grid, Results(folder_of(grid, self.store)))
        with progress("kinds of run") as on_step:
            planned = plan(found, self.jobs or usual_jobs(grid), on_step)
        if self.json:
            answer.say(planned.to_json())
            return

        from memoryless.report.plan import print_plan

        print_plan(planned, answer.console())
