"""A monitored run's records: lines of JSON that survive whatever ends the run, and whatever else keeps numbers.

A line is written whole and flushed to the disk before the run goes on. Of a run that was killed while writing, the torn last
line is cut when it goes on; one that is resumed appends, and leaves out what is there.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from memoryless.errors import BadInput, BadType
from memoryless.render.numbers import plain

Record = dict[str, Any]
SAME = ("optimizer", "d", "measures")
"""What tells one run's log from another's."""


class Log:
    """A file of records.

    Args:
        path: to write to; may exist.
        head: of the run: its first record.

    Attributes:
        last: step of the last stop in it; -1 where there is none.
        checked: step of the last broken one that it tells of, likewise.

    Raises:
        BadInput: it cannot be written, is no log, or that of another run.
    """

    def __init__(self, path: str | os.PathLike[str], head: Record):
        self.path, self.last, self.checked = Path(path), -1, -1
        try:
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115  # held for as long as the run
        except OSError as error:
            raise BadInput(f"log {self.path} cannot be written: {error.strerror}") from None
        try:
            self._go_on(head)
        except OSError as error:
            self._file.close()
            raise BadInput(f"log {self.path} cannot be written: {error.strerror}") from None
        except BadInput:
            self._file.close()
            raise

    def _go_on(self, head: Record) -> None:
        """Cut what is torn, and make sure that it is the same run."""
        self._file.seek(0)
        text = self._file.read()
        records, whole = _parsed(text, self.path)
        if whole < len(text):
            self._file.truncate(whole)
        if not records:
            self.write(head)
            return
        if other := [key for key in SAME if records[0].get(key) != plain(head[key])]:
            there, here = records[0].get(other[0]), plain(head[other[0]])
            raise BadInput(f"log {self.path} is of another run ({other[0]}: {there} there, {here} here); give another file")
        self.last, self.checked = (
            max((r["step"] for r in records if r["kind"] == kind), default=-1) for kind in ("stop", "check")
        )

    def write(self, record: Record) -> None:
        """Append a record; it is on the disk when this returns.

        Args:
            record: plain data.

        Raises:
            OSError: it could not be written (a full disk, say).
        """
        line = (json.dumps(plain(record), allow_nan=False) + "\n").encode()
        while line:  # a full disk takes a part without an error
            line = line[self._file.write(line) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more will come."""
        self._file.close()


def _parsed(text: bytes, path: Path) -> tuple[list[Record], int]:
    """The records of the whole lines, and the bytes that these take."""
    whole = text.rfind(b"\n") + 1
    lines = text[:whole].splitlines()
    try:
        records = [json.loads(line) for line in lines]
        proper = all(isinstance(r, dict) and "kind" in r for r in records) and (not records or records[0]["kind"] == "run")
    except ValueError:
        proper, records = False, []
    if not proper or (not records and text and not text.startswith(b'{"kind"'[: len(text)])):
        raise BadInput(f"{path} is no log of a monitored run; expected what Monitor(log=...) writes")
    return records, whole


def read(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a log, the run's head first; a line that is being written is left out.

    Args:
        path: of the file, which is only read.

    Raises:
        BadInput: there is none, or it is no log.
    """
    if Path(path).exists() and not Path(path).is_file():  # a pipe would wait for ever
        raise BadInput(f"log {path} cannot be read: not a file")
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"log {path} cannot be read: {error.strerror}") from None
    records, _ = _parsed(text, Path(path))
    if not records:
        raise BadInput(f"log {path} is empty: no monitored run has begun in it")
    return records


def numbers(record: Record) -> dict[str, float]:
    """A stop as names and numbers, for what plots those.

    Args:
        record: of a stop.
    """
    found: dict[str, Any] = {"memory/overhead": record["overhead"]}
    found |= {f"memory/{key}": record[key] for key in ("lr", "noise_scale") if record.get(key) is not None}
    for effect in record["effects"]:
        name = effect["measure"]
        found |= {f"memory/{name}/{key}": effect[key] for key in ("value", "change", "slope", "error")}
    check = record.get("check") or {}
    found |= {f"memory/step/{part}": share for part, share in ((check.get("shares") or {}).get("whole") or {}).items()}
    if check.get("ok") is not None:
        found["memory/step/ok"] = int(check["ok"])
    return {key: float(value) for key, value in found.items() if isinstance(value, (int, float))}


class Sinks:
    """Everything that is told of a stop. What fails is told no more, the others are.

    Args:
        log: a path, or anything with `log(dict, step=)` (wandb, trackio), `log_metrics(dict, step=)` (MLflow, Lightning's
            loggers) or `add_scalar(name, value, step)` (TensorBoard), or a list of such; None for none.
        head: of the run.
        failed: is told of what failed, in words.

    Raises:
        BadType: it is none of these.
        BadInput: a path cannot be written to.
    """

    def __init__(self, log: Any, head: Record, failed: Callable[[str], object]):
        every = log if isinstance(log, (list, tuple)) else [] if log is None else [log]
        others = [sink for sink in every if not isinstance(sink, (str, os.PathLike))]
        if bad := next((sink for sink in others if _way(sink) is None), None):
            raise BadType(
                f"log must be a path, something with .log(dict, step=), .log_metrics or .add_scalar, or a list of these, got "
                f"{type(bad).__name__}"
            )
        self._others, self._failed = others, failed
        self._files = [Log(path, head) for path in every if path not in others]
        self.last = max((file.last for file in self._files), default=-1)

    def note(self, text: str, step: int) -> None:
        """Something that a reader of the files must know."""
        self._file_each({"kind": "note", "step": step, "text": text})

    def write(self, record: Record) -> None:
        """A stop, or the end."""
        self._file_each(record)
        if record["kind"] == "stop":
            told = numbers(plain(record))
            for sink in list(self._others):
                try:
                    _tell(sink, told, record["step"])
                except Exception as error:  # whatever another's code raises: the run goes on
                    self._others = [other for other in self._others if other is not sink]
                    self._failed(f"{type(sink).__name__} took no record ({_why(error)}) and is told no more")

    def _file_each(self, record: Record) -> None:
        for file in list(self._files):
            if record["kind"] == "check" and record["step"] <= file.checked:  # told before the run was resumed
                continue
            try:
                file.write(record)
            except OSError as error:
                self._drop(file, error)

    def _drop(self, file: Log, error: OSError) -> None:
        """Before it is said: what is said is written to the others."""
        self._files = [other for other in self._files if other is not file]
        with suppress(OSError):
            file.close()
        self._failed(f"log {file.path} cannot be written ({_why(error)}) and gets no more records; the run goes on")

    def close(self) -> None:
        """No more will come."""
        for file in list(self._files):
            try:
                file.close()
            except OSError as error:
                self._drop(file, error)


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"


def _way(sink: Any) -> str | None:
    return next((name for name in ("add_scalar", "log_metrics", "log") if callable(getattr(sink, name, None))), None)


def _tell(sink: Any, told: Mapping[str, float], step: int) -> None:
    way = _way(sink)
    if way == "add_scalar":
        for name, value in told.items():
            sink.add_scalar(name, value, step)
    else:
        getattr(sink, str(way))(dict(told), step=step)


def told(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """What is said of a run in words: its broken steps, and notes.

    Args:
        records: of the log.
    """
    broken = [r["verdict"] for r in records if r["kind"] == "check"]
    end = records[-1] if records[-1]["kind"] == "end" else {}
    if end.get("off"):
        are = "is not the documented one" if end["off"] == 1 else "are not the documented ones"
        broken.append(f"{end['off']:,} of {end['checked']:,} checked steps {are}.")
    if end.get("unchecked"):
        broken.append(f"{end['unchecked']:,} of {end['checked'] + end['unchecked']:,} steps could not be checked.")
    return broken, [r["text"] for r in records if r["kind"] == "note"]


def stops(records: Sequence[Record]) -> list[Record]:
    """The stops among records, by step."""
    return sorted((r for r in records if r["kind"] == "stop"), key=lambda r: r["step"])
