"""What is left of a grid is run, each run once, whatever becomes of processes, results and the disk."""

import errno
import json
import os
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.sweep import writes
from memoryless.errors import BadInput
from memoryless.experiments.sweep import driver, engines
from memoryless.experiments.sweep import results as store
from memoryless.experiments.sweep.driver import sweep
from memoryless.experiments.sweep.engines import Task
from memoryless.experiments.sweep.grid import Grid, parsed
from memoryless.experiments.sweep.results import Results, Sweep, look
from memoryless.experiments.sweep.versions import versions

TEXT = """
problem = "digits_mlp(count=20, width=2)"
optimizer = "adam"
seed = [0, 1, 2]
steps = 2
"""


class Here:
    """An engine that works at once, in this process, and may lose a task."""

    def __init__(self, loses: Callable[[Task], bool] = lambda task: False, answer=engines.answer):
        self.loses, self.answer, self.begun, self.stopped = loses, answer, [], False

    def refusal(self, runs, place) -> str | None:
        return engines.refusal(runs, place)

    def room(self) -> int:
        return 2

    def start(self, task: Task) -> Future:
        self.begun.append(task.run.seed)
        future: Future = Future()
        if self.loses(task):
            future.set_exception(RuntimeError("gone"))
        else:
            future.set_result(self.answer(task))
        return future

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def grid(tmp_path) -> Grid:
    return parsed(tomllib.loads(TEXT), tmp_path / "grid.toml")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "grid.sweep"


def state(found: Sweep) -> tuple[int, int, int]:
    return found.count("done"), found.count("failed"), found.count("left")


def test_what_is_done_is_not_done_again(grid, folder):
    engine, told = Here(), []
    found = sweep(grid, folder, lambda: engine, on_step=lambda done, total: told.append((done, total)))
    assert state(found) == (3, 0, 0)
    assert engine.begun == [0, 1, 2]
    assert engine.stopped
    assert told[-1] == (6, 6)
    assert all(0 <= done <= total == 6 for done, total in told)
    more = parsed(tomllib.loads(TEXT.replace("[0, 1, 2]", "[2, 3, 0]")), grid.path)
    assert state(look(more, Results(folder))) == (2, 0, 1)
    again = Here()
    assert state(sweep(more, folder, lambda: again)) == (3, 0, 0)
    assert again.begun == [3]

    def none():
        raise AssertionError("nothing is left to do")

    assert state(sweep(grid, folder, none)) == (3, 0, 0)


def test_reading_starts_and_makes_nothing(grid, folder):
    found = look(grid, Results(folder))
    assert state(found) == (0, 0, 3)
    assert not folder.exists()
    assert json.loads(found.to_json())["left"] == 3


def test_failed_runs_are_tried_again_on_request_only(grid, folder):
    def fails(task: Task) -> dict:
        return {"kind": "failed", "reason": "no luck"} if task.run.seed == 1 else engines.answer(task)

    found = sweep(grid, folder, lambda: Here(answer=fails))
    assert state(found) == (2, 1, 0)
    assert found.rows[1].record["reason"] == "no luck"  # type: ignore[index]
    engine = Here()
    assert state(sweep(grid, folder, lambda: engine)) == (2, 1, 0)
    assert engine.begun == []
    assert state(sweep(grid, folder, lambda: engine, retry=True)) == (3, 0, 0)
    assert engine.begun == [1]
    assert state(look(grid, Results(folder))) == (3, 0, 0)


def test_a_lost_process_is_no_failure_until_it_is_lost_again_and_again(grid, folder):
    lost = {1: 2, 2: 10**6}

    def loses(task: Task) -> bool:
        lost[task.run.seed] = lost.get(task.run.seed, 0) - 1
        return lost[task.run.seed] >= 0

    engine = Here(loses)
    found = sweep(grid, folder, lambda: engine)
    assert state(found) == (2, 1, 0)
    assert [engine.begun.count(seed) for seed in range(3)] == [1, 3, driver.LOST]
    assert found.rows[2].record["reason"] == "its process was lost 5 times in a row at step 0 or later: RuntimeError: gone"  # type: ignore[index]


def test_one_that_is_lost_but_gets_on_is_none(grid, folder):
    count = 0

    def loses(task: Task) -> bool:
        nonlocal count
        count += 1
        task.checkpoint.with_suffix(".at").write_text(f"{count} {count}")
        return count < 20

    assert state(sweep(grid, folder, lambda: Here(loses))) == (3, 0, 0)


def test_a_result_is_visible_once(grid, folder):
    sweep(grid, folder, Here)
    with Results(folder).sole() as results:
        before = (folder / "results.jsonl").read_bytes()
        results.append({"kind": "done", "key": grid.runs[0].key({}), "run": {}, "versions": {}})
        results.append({"kind": "done", "key": grid.runs[0].key({}), "run": {"other": 1}, "versions": {}})
    added = (folder / "results.jsonl").read_bytes()[len(before) :]
    assert added.count(b"\n") == 1


def test_results_of_other_versions_do_not_count(grid, folder, monkeypatch):
    sweep(grid, folder, Here)
    monkeypatch.setattr(store, "versions", lambda run, place: {"torch": "3"})
    found = look(grid, Results(folder))
    assert state(found) == (0, 0, 3)
    assert all(row.older for row in found.rows)


def test_a_module_of_the_users_own_is_part_of_what_a_result_is_of(grid, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    run, module = grid.runs[0]._replace(optimizer="my_opt:Mine"), tmp_path / "my_opt.py"
    module.write_text("Mine = 1")
    before = versions(run)
    assert before["my_opt"] != "none"
    module.write_text("Mine = 2")
    assert versions(run)["my_opt"] != before["my_opt"]
    folder = tmp_path / "my_room"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "inside.py").write_text("Mine = 1")
    before = versions(run._replace(optimizer="my_room.inside:Mine"))
    (folder / "inside.py").write_text("Mine = 2")
    assert versions(run._replace(optimizer="my_room.inside:Mine"))["my_room"] != before["my_room"]


def test_a_node_with_other_versions_ends_the_sweep(grid, folder, monkeypatch):
    monkeypatch.setattr(driver, "versions", lambda run, place: versions(run, place) | {"torch": "3"})
    with pytest.raises(BadInput, match=r"torch is .* on .*, 3 where the sweep was started: install the same"):
        sweep(grid, folder, Here)
    assert state(look(grid, Results(folder))) == (0, 0, 3)


def test_a_full_disk_ends_the_sweep_in_one_line(grid, folder, monkeypatch):
    write, count = os.write, 0

    def full(file: int, data: bytes) -> int:
        nonlocal count
        count += 1
        if count > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(BadInput, match=r"results\.jsonl cannot be written: No space left on device"):
            sweep(grid, folder, Here)
    assert state(look(grid, Results(folder))) == (1, 0, 2)
    assert state(sweep(grid, folder, Here)) == (3, 0, 0)


def test_two_drivers(grid, folder):
    with Results(folder).sole(), pytest.raises(BadInput, match=r"another process is writing .*grid\.sweep; wait for it"):
        sweep(grid, folder, Here)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": "sweep", "format": 9, "memoryless": "7.0"}\n', r"is of format 9, this memoryless reads 1: .* \(7\.0\)"),
        ("some notes\n", r"results\.jsonl:1 is no row of a sweep"),
        ('{"kind": "done", "key": "a", "run": {}, "versions": {}}\n', "is of format none"),
        ("notes without an end", "is no store of a sweep"),
        (
            2 * '{"kind": "sweep", "format": 1, "memoryless": "1"}\n',
            r"results\.jsonl:2 begins another store, of format 1: give one",
        ),
        (None, "cannot be read: not a file"),
    ],
)
def test_stores_that_are_none(grid, folder, content, message):
    folder.mkdir()
    path = folder / "results.jsonl"
    path.mkdir() if content is None else path.write_text(content)
    for action in (lambda: look(grid, Results(folder)), lambda: sweep(grid, folder, Here)):
        with pytest.raises(BadInput, match=message):
            action()
    assert content is None or path.read_text() == content


def test_a_store_is_a_folder(grid, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is a file; expected the folder of a sweep"):
        sweep(grid, tmp_path / "file", Here)
    with pytest.raises(BadInput, match=r"cannot be (read|written): Not a directory"):
        sweep(grid, tmp_path / "file" / "in", Here)
    with pytest.raises(BadInput, match=r"xxx.* cannot be read: File name too long"):
        look(grid, Results(tmp_path / ("x" * 300)))


@pytest.mark.parametrize(("cores", "gpus", "fits"), [(4, 0, True), (2, 1, True), (5, 0, False), (4, 1, False), (1, 2, False)])
def test_what_no_node_of_a_cluster_has_is_refused(grid, monkeypatch, cores, gpus, fits):
    """Two nodes, of 4 cores, and of 2 and a GPU; another is lost. Without the refusal Ray would wait without a word."""
    nodes = [({"CPU": 4.0}, True), ({"CPU": 2.0, "GPU": 1.0}, True), ({"CPU": 64.0, "GPU": 8.0}, False)]
    future = Future()
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        nodes=lambda: [{"Resources": resources, "Alive": alive} for resources, alive in nodes],
        remote=lambda **asked: lambda f: SimpleNamespace(remote=lambda task: SimpleNamespace(future=lambda: future)),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    run = grid.runs[0]._replace(cores=cores)
    task = Task("k", run, grid.place, {}, Path("k.pt"), 1.0, gpus)
    if fits:
        assert engines.Cluster().start(task) is future
        return
    with pytest.raises(
        BadInput, match=rf"asks for {cores} cores and {gpus} GPUs, and no node has them: .* of 2 cores and 1 GPUs; 4 cores"
    ):
        engines.Cluster().start(task)


def test_killed_at_any_call_of_the_system_the_store_opens(tmp_path):
    assert writes(tmp_path, 10) >= 10
