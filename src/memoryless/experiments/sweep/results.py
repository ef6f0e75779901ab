"""The store of a sweep: a folder with one file of results that only grows, and the checkpoints of runs under way.

    results.jsonl     a line a run, done or failed, by its key: the hash of what it is, of code and libraries
    runs/KEY.pt       its last checkpoint, until the result is there
    lock              held by the one process that writes

To read it starts nothing. It may be read while a sweep runs, by anything that reads lines of JSON, such as
`duckdb -c "select * from 'sweep/results.jsonl'"`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memoryless.errors import BadInput
from memoryless.experiments.store import Lines, Record, sole
from memoryless.experiments.sweep.grid import Grid, Run
from memoryless.experiments.sweep.versions import versions
from memoryless.render.numbers import plain
from memoryless.render.result import Result

FORMAT = 1
STATES = Literal["done", "failed", "left"]


def folder_of(grid: Grid, name: str | None) -> Path:
    """The store of a file of TOML: beside it, unless another is named.

    Args:
        grid: of the file.
        name: of the folder; None for the usual one.
    """
    return grid.path.with_suffix(".sweep") if name is None else Path(name)


class Results:
    """What a store holds.

    Args:
        folder: of the store; need not exist.

    Attributes:
        done: results by key.
        failed: by key, those without a result.

    Raises:
        BadInput: it cannot be read, is no store, or of another version.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            if folder.exists() and not folder.is_dir():
                raise BadInput(f"store {folder} is a file; expected the folder of a sweep")
        except OSError as error:  # no name that a folder can have
            raise BadInput(f"store {folder} cannot be read: {error.strerror}; give another --store") from error
        self._lines = Lines(folder / "results.jsonl", b'{"kind": "', _proper, "a store of a sweep")
        records = self._lines.records
        if records and (records[0]["kind"] != "sweep" or records[0]["format"] != FORMAT):
            was = records[0].get("format", "none")
            raise BadInput(
                f"store {folder} is of format {was}, this memoryless reads {FORMAT}: give another --store, or read it with "
                f"the version that wrote it ({records[0].get('memoryless', 'unknown')})"
            )
        self.done: dict[str, Record] = {}
        self.failed: dict[str, Record] = {}
        for number, record in enumerate(records[1:], 2):
            if record["kind"] == "sweep":
                raise BadInput(
                    f"{self._lines.path}:{number} begins another store, of format {record['format']}: give one of the two; of "
                    f"format {FORMAT} the line can be taken out"
                )
            self._see(record)

    def _see(self, record: Record) -> None:
        if record["kind"] == "done":
            self.done.setdefault(record["key"], record)
            self.failed.pop(record["key"], None)
        elif record["key"] not in self.done:
            self.failed[record["key"]] = record

    def append(self, record: Record) -> None:
        """Keep a result, or why there is none; a result that is there stays the only one.

        Args:
            record: with kind "done" or "failed", and its key.

        Raises:
            BadInput: it cannot be written; the store is as it was.
        """
        if record["key"] in self.done:
            return
        if not self._lines.records:
            from memoryless import __version__

            self._lines.append({"kind": "sweep", "format": FORMAT, "memoryless": __version__})
        self._lines.append(plain(record))
        self._see(self._lines.records[-1])
        if record["kind"] == "done":
            for suffix in (".pt", ".at"):
                with suppress(OSError):
                    self.checkpoint(record["key"]).with_suffix(suffix).unlink()

    def checkpoint(self, key: str) -> Path:
        """Of a run.

        Args:
            key: of the run.
        """
        return self.folder / "runs" / f"{key}.pt"

    @contextmanager
    def sole(self, wait: Any = None) -> Iterator["Results"]:
        """Be the one process that writes it.

        Args:
            wait: is called once before waiting for another; None is not to wait.

        Yields:
            The store as it is by then.

        Raises:
            BadInput: another process writes it, or it cannot be written.
        """
        try:
            (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"store {self.folder} cannot be written: {error.strerror}; give another --store") from error
        with sole(self.folder / "lock", self.folder, wait):
            for torn in (self.folder / "runs").glob(".*"):  # of processes that were killed while writing
                with suppress(OSError):
                    torn.unlink()
            yield Results(self.folder)


def _proper(record: Any) -> bool:
    kind = record.get("kind")
    if kind == "sweep":
        return "format" in record
    return kind in ("done", "failed") and {"key", "run", "versions"} <= set(record)


@dataclass(frozen=True)
class Row:
    """One run of a grid, and what a store knows of it.

    Attributes:
        run: which.
        key: of its result with what is installed now.
        axes: where it lies in the grid.
        state: done, failed, or left to do.
        record: its result or why it failed; of an older version of the code where there is none of this one, with state "left".
    """

    run: Run
    key: str
    axes: dict[str, Any]
    state: STATES
    record: Record | None

    @property
    def older(self) -> bool:
        """Whether the result is of other versions than those installed."""
        return self.state == "left" and self.record is not None

    @property
    def diverged(self) -> bool:
        """Whether its loss left the finite numbers, where it ended."""
        return (self.record or {}).get("diverged") is not None

    @property
    def last(self) -> dict[str, float | None]:
        """The last that was recorded."""
        records = (self.record or {}).get("records") or [{}]
        return {name: records[-1].get(name) for name in self.run.what}


@dataclass(frozen=True)
class Sweep(Result):
    """A grid and what a store knows of its runs; reading it starts nothing.

    Attributes:
        grid: of the file.
        folder: of the store.
        rows: a row for each run, in the order of the file.
    """

    grid: Grid
    folder: Path
    rows: Sequence[Row]

    def count(self, state: STATES) -> int:
        """Runs in a state.

        Args:
            state: done, failed or left.
        """
        return sum(row.state == state for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Every run with its settings, state and records."""

        def row(row: Row) -> dict[str, Any]:
            record = row.record or {}
            told = {
                key: record[key] for key in ("reason", "records", "diverged", "d", "fingerprint", "seconds") if key in record
            }
            return {"key": row.key, "state": row.state, "older": row.older, "run": row.run._asdict(), **told}

        counts = {state: self.count(state) for state in ("done", "failed", "left")}
        return plain({"store": str(self.folder), **counts, "runs": [row(each) for each in self.rows]})


def look(grid: Grid, results: Results) -> Sweep:
    """What a store knows of a grid.

    Args:
        grid: of the file.
        results: of the store.
    """
    older: dict[str, Record] = {}
    for record in results.done.values():
        older[_text(record["run"])] = record
    rows = []
    for run, axes in zip(grid.runs, grid.axes, strict=True):
        key = run.key(versions(run, grid.place))
        if key in results.done:
            rows.append(Row(run, key, axes, "done", results.done[key]))
        elif key in results.failed:
            rows.append(Row(run, key, axes, "failed", results.failed[key]))
        else:
            rows.append(Row(run, key, axes, "left", older.get(_text(run._asdict()))))
    return Sweep(grid, results.folder, rows)


def _text(run: dict[str, Any]) -> str:
    return str(plain(run))
