"""What long work keeps: lines of JSON that survive a kill, one process that writes them, files there whole or not at all.

No torch: the command line writes its pages and pictures by `replaced`, too.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from memoryless.errors import BadInput

Record = dict[str, Any]


class Lines:
    """A file of records, one a line, that only grows.

    A record is on the disk when `append` returns, or is not in the file at all. What a kill may leave is a last line without
    its end: readers pass over it, and the next record takes its place.

    Args:
        path: of the file; made by the first record.
        begins: the bytes that every line begins with: by these a first line without its end is known for this store's.
        proper: whether what a line holds is a record of this store.
        what: the store in words, with its article, for messages.

    Attributes:
        records: in the order in which they were written.

    Raises:
        BadInput: it cannot be read, or a line is no record; says which.
    """

    def __init__(self, path: Path, begins: bytes, proper: Callable[[Any], bool], what: str):
        self.path, self.records = path, list[Record]()
        try:
            if path.exists() and not path.is_file():  # of a device or a pipe there is no end
                raise BadInput(f"{path} cannot be read: not a file; give another file")
            text = path.read_bytes()
        except FileNotFoundError:
            text = b""
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}; give another file") from error
        self._whole = text.rfind(b"\n") + 1
        for number, line in enumerate(text[: self._whole].splitlines(), 1):
            record = _parsed(line)
            if not isinstance(record, dict) or not proper(record):
                kind = what.removeprefix("a store of ")
                raise BadInput(f"{path}:{number} is no row of {kind}; give another file, or take the line out")
            self.records.append(record)
        if text and not self._whole and not begins.startswith(text[: len(begins)]):
            raise BadInput(f"{path} is no {what.removeprefix('a ')}; give another file")

    def append(self, record: Record) -> None:
        """Keep a record.

        Args:
            record: plain data, as JSON has it.

        Raises:
            BadInput: it cannot be written, or something else took lines out of it; the file is as it was.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            new = not self.path.exists()
            file = os.open(self.path, os.O_WRONLY | (0 if self._whole else os.O_CREAT), 0o644)
            try:
                if (size := os.fstat(file).st_size) < self._whole:  # to be cut to a larger size is to be filled up with zeros
                    raise BadInput(
                        f"{self.path} had {self._whole} bytes and has {size}: something else writes it; nothing was written"
                    )
                os.ftruncate(file, self._whole)
                try:
                    os.lseek(file, 0, os.SEEK_END)
                    written = 0
                    while written < len(line):  # a disk that fills up takes a part without an error
                        written += os.write(file, line[written:])
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, self._whole)
                    raise
            finally:
                os.close(file)
            if new:
                sync_folder(self.path.parent)
        except OSError as error:
            raise BadInput(f"{self.path} cannot be written: {error.strerror}; what was there is unchanged") from error
        self._whole += len(line)
        self.records.append(record)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write in place of another: written beside, brought to the disk, renamed.

    Whatever happens there is the old file or the whole new one.

    Args:
        path: of the file; through a link, of the one it leads to.

    Yields:
        The new file, open.
    """
    place = path.resolve()
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with suppress(FileNotFoundError):  # of a killed process that had this number
            beside.unlink()
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            if place.exists():
                os.chmod(beside, place.stat().st_mode & 0o7777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
        sync_folder(place.parent)
    finally:
        with suppress(OSError):
            beside.unlink()


def sync_folder(folder: Path) -> None:
    """Bring to the disk which files a folder has, where the system can.

    Args:
        folder: to bring there.
    """
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


@contextmanager
def sole(lock: Path, path: Path, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Be the one process that works on a store; the system frees it when the process ends, however that comes.

    Args:
        lock: a file of its own.
        path: of the store, for messages.
        wait: is called once before waiting for another process; None is not to wait.

    Raises:
        BadInput: another one does, or the lock cannot be made.
    """
    held = FileLock(lock)
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            if wait is None:
                raise BadInput(f"another process is writing {path}; wait for it, or give another file") from None
            wait()
            while not held.is_locked:
                with suppress(Timeout):
                    held.acquire(timeout=0)
                    break
                time.sleep(0.5)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}; give another file") from error
    try:
        yield
    finally:
        held.release()
