"""Lines that survive a kill, files that are there whole or not at all, one process at a time."""

import errno
import os
import threading
from pathlib import Path

import pytest

from memoryless.errors import BadInput
from memoryless.experiments.atlas import pool
from memoryless.experiments.store import Lines, replaced, sole


def lines(path: Path) -> Lines:
    return Lines(path, b'{"key": ', lambda record: "key" in record, "a store of keys")


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, piece):
    path, write, room = tmp_path / "a.jsonl", os.write, 50
    kept = lines(path)
    kept.append({"key": 0})
    before = path.read_bytes()

    def filling(file: int, data: bytes) -> int:
        """A part of what does not fit is taken without an error, the next piece is refused."""
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        took = write(file, data[: min(piece, room)])
        room -= took
        return took

    monkeypatch.setattr(os, "write", filling)
    with pytest.raises(BadInput, match=r"a\.jsonl cannot be written: No space left on device; what was there is unchanged"):
        kept.append({"key": "x" * 100})
    assert path.read_bytes() == before
    monkeypatch.setattr(os, "write", write)
    kept.append({"key": 1})
    assert lines(path).records == kept.records == [{"key": 0}, {"key": 1}]


def test_a_file_that_was_taken_away_is_not_filled_with_zeros(tmp_path):
    path = tmp_path / "a.jsonl"
    kept = lines(path)
    kept.append({"key": 0})
    path.unlink()
    with pytest.raises(BadInput, match=r"a\.jsonl cannot be written: No such file or directory"):
        kept.append({"key": 1})
    assert not path.exists()
    path.write_bytes(b"{}\n")
    with pytest.raises(BadInput, match=r"a\.jsonl had 11 bytes and has 3: something else writes it; nothing was written"):
        kept.append({"key": 1})
    assert path.read_bytes() == b"{}\n"


def test_what_a_killed_process_of_this_number_left_is_no_hindrance(tmp_path):
    path, left = tmp_path / "a", tmp_path / f".a.{os.getpid()}"
    left.write_text("torn")
    with replaced(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert not left.exists()


def test_a_name_that_no_file_can_have(tmp_path):
    with pytest.raises(BadInput, match="xxx cannot be read: File name too long; give another file"):
        lines(tmp_path / ("x" * 300))
    for name in (".", "/"):
        with pytest.raises(BadInput, match="cannot be read: not a file; give another file"), pool.sole(Path(name)):
            pass


def test_a_torn_end_is_passed_over_and_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"key": 1}\n{"key": 2')
    kept = lines(path)
    assert kept.records == [{"key": 1}]
    assert path.read_bytes() == b'{"key": 1}\n{"key": 2'
    kept.append({"key": 3})
    assert path.read_bytes() == b'{"key": 1}\n{"key": 3}\n'


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o600)

    def fail() -> None:
        with replaced(path) as file:
            file.write(b"new")
            raise KeyError("in between")

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    with replaced(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [*tmp_path.iterdir()] == [path]


def test_one_process_at_a_time(tmp_path):
    lock, waited = tmp_path / "lock", threading.Event()
    with sole(lock, tmp_path):
        with pytest.raises(BadInput, match="another process is writing"), sole(lock, tmp_path):
            pass
        pid = os.fork()
        if not pid:
            with sole(lock, tmp_path, lambda: (tmp_path / "waits").touch()):
                (tmp_path / "came").touch()
            os._exit(0)
        while not (tmp_path / "waits").exists():
            waited.wait(0.01)
        assert not (tmp_path / "came").exists()
    os.waitpid(pid, 0)
    assert (tmp_path / "came").exists()
    with pytest.raises(BadInput, match="cannot be written"), sole(tmp_path / "came" / "lock", tmp_path):
        pass
