"""memoryless sweep."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from memoryless.cli import answer
from memoryless.cli.files import picture, save
from memoryless.cli.options import progress
from memoryless.errors import BadInput


@dataclass
class Sweep:
    """Train every combination of a grid: optimizers, betas, lrs, batch sizes, strengths of the dial, seeds, problems.

    Such as: memoryless sweep --example > grid.toml; memoryless sweep grid.toml

    Each result is kept when it is there, in the folder grid.sweep beside the file. Whatever is killed, the same command goes on
    where it was. Exit code 0: all runs are done, 1: some are not, or failed.
    """

    config: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.toml")] = None
    """Its lists are the axes of the grid; --example prints one."""
    store: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where results are kept. Default: beside the file, with .sweep in place of .toml."""
    on: Literal["local", "ray"] = "local"
    """Processes of this machine; or the cluster that RAY_ADDRESS names, or a new one here (takes memoryless[cluster])."""
    jobs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Runs at a time on this machine. Default: one per core."""
    retry: bool = False
    """Run those that failed again, too."""
    wait: bool = False
    """Wait for another process that works on the store."""
    table: bool = False
    """Start nothing: show what the store has."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Start nothing: draw what the store has, PNG or PDF. Only a picture that memoryless wrote is overwritten."""
    json: bool = False
    """Start nothing: print what the store has, as JSON."""
    example: bool = False
    """Print a file to begin with."""

    def run(self) -> None:
        """Run what is left, unless only a look is wanted; show what there is."""
        from memoryless.experiments.sweep import grid as grids
        from memoryless.experiments.sweep.results import Results, folder_of, look

        if self.example:
            answer.say(grids.EXAMPLE.rstrip())
            return
        if self.config is None:
            raise BadInput("expected a file such as memoryless sweep --example prints")
        path = picture("--plot", self.plot, (".png", ".pdf"))
        if self.jobs is not None and self.jobs < 1:
            raise BadInput(f"--jobs must be at least 1, got {self.jobs}")
        grid = grids.read(self.config)
        folder = folder_of(grid, self.store)
        reading = self.table or self.json or path is not None
        found = look(grid, Results(folder)) if reading else self._swept(grid, folder)

        from memoryless.report import sweep as report

        if self.json:
            answer.say(found.to_json())
        elif self.table or path is None:
            report.print_sweep(found, answer.console())
        if path is not None:
            save(report.picture(found), path)
        if found.count("done") < len(found.rows):
            raise SystemExit(1)

    def _swept(self, grid, folder):
        from memoryless.experiments.sweep.driver import sweep, usual_jobs
        from memoryless.experiments.sweep.engines import Cluster, Engine, Local

        def waiting() -> None:
            print(f"another process is writing {folder}: waiting for it", file=sys.stderr)

        def engine() -> Engine:
            return Cluster() if self.on == "ray" else Local(self.jobs or usual_jobs(grid))

        with progress("optimizer steps") as on_step:
            try:
                return sweep(grid, folder, engine, self.retry, waiting if self.wait else None, on_step)
            except KeyboardInterrupt as error:
                error.add_note(f"what is done is in {folder}; the same command goes on from there")
                raise
