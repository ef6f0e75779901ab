"""The log of a monitored run: whole lines whatever ends the run, nothing twice, and told to whatever else keeps numbers."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import memoryless as ml
from memoryless.live.monitoring.log import Log, read, stops
from tests.live.monitoring.monitored import LR, Training, monitor

HEAD = {"kind": "run", "optimizer": "AdamW", "d": 3, "measures": ["gradient_1_norm"]}


def stop(step: int) -> dict:
    return {"kind": "stop", "step": step, "overhead": 0.1, "effects": []}


def test_a_torn_line_is_cut_when_the_run_goes_on(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    log = Log(path, HEAD)
    log.write(stop(10))
    log.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        known = whole[:cut].count(b"\n")
        if known:
            assert len(read(path)) == known
        log = Log(path, HEAD)
        assert log.last == (10 if known == 2 else -1)
        log.write(stop(20))
        log.close()
        records = read(path)
        assert records[0] == HEAD
        assert [r["step"] for r in stops(records)] == ([10, 20] if known == 2 else [20])


def test_another_run_is_refused(tmp_path: Path):
    Log(tmp_path / "run.jsonl", HEAD).close()
    before = (tmp_path / "run.jsonl").read_bytes()
    with pytest.raises(ml.errors.BadInput, match=r"is of another run \(d: 3 there, 4 here\)"):
        Log(tmp_path / "run.jsonl", HEAD | {"d": 4})
    (tmp_path / "mine.txt").write_text("the user's own\n")
    with pytest.raises(ml.errors.BadInput, match="is no log of a monitored run"):
        Log(tmp_path / "mine.txt", HEAD)
    (tmp_path / "torn.txt").write_text("the user's own, without an end")
    with pytest.raises(ml.errors.BadInput, match="is no log of a monitored run"):
        Log(tmp_path / "torn.txt", HEAD)
    assert (tmp_path / "run.jsonl").read_bytes() == before
    assert (tmp_path / "mine.txt").read_text() == "the user's own\n"


@pytest.mark.parametrize(("name", "text"), [("none.jsonl", "cannot be read"), ("empty.jsonl", "is empty")])
def test_reading_what_is_not_there(tmp_path: Path, name: str, text: str):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ml.errors.BadInput, match=text):
        read(tmp_path / name)


class Wandb:
    def __init__(self):
        self.told = []

    def log(self, data, step=None):
        self.told.append((step, data))


class MLflow(Wandb):
    log = None  # type: ignore[assignment]

    def log_metrics(self, metrics, step=None):
        self.told.append((step, metrics))


class TensorBoard(Wandb):
    log = None  # type: ignore[assignment]

    def add_scalar(self, name, value, step):
        self.told.append((step, {name: value}))


def test_whatever_keeps_numbers_is_told(tmp_path: Path):
    sinks = [Wandb(), MLflow(), TensorBoard()]
    training = Training(lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.8, 0.95)))
    with monitor(training, log=[tmp_path / "run.jsonl", *sinks]) as watching:
        training.run(lambda batches: watching.step(batches))
    (first, _), records = stops(read(tmp_path / "run.jsonl")), read(tmp_path / "run.jsonl")
    assert [r["kind"] for r in records] == ["run", "stop", "stop", "end"]
    assert first["effects"] == json.loads(json.dumps(watching.stops[0]["effects"]))
    for sink in sinks:
        assert {step for step, _ in sink.told} == {12, 24}
        told: dict = {}
        for step, data in sink.told:
            told |= data if step == 12 else {}
        assert told["memory/gradient_1_norm/slope"] == first["effects"][0]["slope"]
        assert told["memory/lr"] == LR


def test_a_resumed_run_has_no_gap_and_no_duplicate(tmp_path: Path):
    """Ended at step 32, resumed from a checkpoint at step 20; the short memory is known again by the next stop."""

    def training() -> Training:
        return Training(lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.5, 0.7)), steps=61)

    log = tmp_path / "run.jsonl"
    whole = training().run().thetas[-1]
    run = training()
    checkpoint = {}

    def tell(batches):
        watching.step(batches)
        if len(run.thetas) == 20:
            state = {k: v.clone() for k, v in run.net.state_dict().items()}
            checkpoint.update(model=state, optimizer=run.optimizer.state_dict()["state"])
            checkpoint["optimizer"] = {k: {n: x.clone() for n, x in s.items()} for k, s in checkpoint["optimizer"].items()}

    run.batches = run.batches[:32]  # it had logged its stop at 30
    with monitor(run, log=log, every=15) as watching:
        run.run(tell)
    again = training()
    again.net.load_state_dict(checkpoint["model"])
    again.optimizer.load_state_dict(again.optimizer.state_dict() | {"state": checkpoint["optimizer"]})
    again.batches = again.batches[20:]
    with monitor(again, log=log, every=15, data=run.batches[0]) as watching:
        again.run(lambda batches: watching.step(batches))
    assert [r["step"] for r in stops(read(log))] == [15, 30, 45, 60]
    assert torch.equal(again.thetas[-1], whole)


def test_a_log_of_an_earlier_run_is_not_gone_on_with(tmp_path: Path):
    def training() -> Training:
        return Training(lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.8, 0.95)))

    run = training()
    with monitor(run, log=tmp_path / "run.jsonl") as watching:
        run.run(lambda batches: watching.step(batches))
    with pytest.raises(ml.errors.BadInput, match="the log has stops up to step 24"):
        monitor(training(), log=tmp_path / "run.jsonl").__enter__()


def test_a_closed_monitor_is_not_entered_again(tmp_path: Path):
    training = Training(lambda p: torch.optim.AdamW(p, lr=LR), steps=3)
    watching = monitor(training, log=tmp_path / "run.jsonl")
    with watching:
        training.run(lambda batches: watching.step(batches))
    with pytest.raises(ml.errors.BadInput, match=r"watches no other: make a new ml\.Monitor"):
        watching.__enter__()
    assert not training.optimizer._optimizer_step_pre_hooks
    with monitor(training, log=tmp_path / "run.jsonl"):
        pass
    assert [r["kind"] for r in read(tmp_path / "run.jsonl")].count("run") == 1


def test_a_log_that_fails_is_dropped_and_the_run_goes_on(tmp_path: Path, monkeypatch):
    """The disk is full from the first stop on, and a service is gone: said once each, the others are told."""

    class Gone(Wandb):
        def log(self, data, step=None):
            super().log(data, step)
            raise ConnectionError("no route")

    def training() -> Training:
        return Training(lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.8, 0.95)))

    gone, here, fsync, failed = Gone(), Wandb(), os.fsync, []

    def full(fd: int) -> None:
        if os.fstat(fd).st_ino == (tmp_path / "full.jsonl").stat().st_ino:
            failed.append(fd)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    run, plain = training(), training().run()
    with monitor(run, log=[tmp_path / "full.jsonl", tmp_path / "whole.jsonl", gone, here]) as watching:
        monkeypatch.setattr(os, "fsync", full)
        run.run(lambda batches: watching.step(batches))
    assert torch.equal(run.thetas[-1], plain.thetas[-1])
    assert [stop["step"] for stop in watching.stops] == [12, 24]
    assert len(failed) == len(gone.told) == 1
    assert [step for step, _ in here.told] == [12, 24]
    full_note, gone_note = watching.notes
    assert "full.jsonl cannot be written (No space left on device) and gets no more records" in full_note
    assert gone_note == "Gone took no record (ConnectionError: no route) and is told no more"
    records = read(tmp_path / "whole.jsonl")
    assert [r["step"] for r in stops(records)] == [12, 24]
    assert [r["text"] for r in records if r["kind"] == "note"] == watching.notes


def test_a_full_disk_when_the_log_begins_is_one_line(tmp_path: Path, monkeypatch):
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ml.errors.BadInput, match="cannot be written: No space left on device"):
        Log(tmp_path / "run.jsonl", HEAD)


WRITES = """
import itertools, sys
from memoryless.live.monitoring.log import Log
log = Log(sys.argv[1], {"kind": "run", "optimizer": "AdamW", "d": 3, "measures": ["gradient_1_norm"]})
for step in itertools.count(log.last + 1):
    log.write({"kind": "stop", "step": step, "filler": "x" * 20_000})
    print(step, flush=True)
"""


def test_a_killed_run_leaves_whole_lines_and_goes_on(tmp_path: Path):
    path, said = tmp_path / "run.jsonl", []
    for _ in range(3):
        command = [sys.executable, "-c", WRITES, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said += [int(process.stdout.readline()) for _ in range(4)]
            process.send_signal(signal.SIGKILL)
            said += [int(line) for line in process.stdout.read().splitlines() if line]
        steps = [r["step"] for r in stops(read(path))]
        assert steps == list(range(len(steps)))  # no gap and no duplicate
        assert set(said) <= set(steps)  # what was told had been written
