"""How far work has come."""

import os
import pty
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from memoryless.cli import options
from memoryless.cli.betas import _parts


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(options, "EVERY", 0.05)
    with options.progress("steps") as on_step:
        time.sleep(0.08)
        on_step(1, 4)
        time.sleep(0.05)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "steps: at work, 0 s so far"
    assert second == "steps: 1 of 4, about 0 s left, 0 s so far"


def test_what_a_store_held_took_no_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(options, "EVERY", 0.05)
    with options.progress("runs") as on_step:
        on_step(54, 63)
        shown = ""
        for _ in range(500):
            time.sleep(0.01)
            if "54" in (shown := shown + capsys.readouterr().err):
                break
    assert "runs: 54 of 63, 0 s so far\n" in shown


def test_nothing_is_said_of_short_work(capsys: pytest.CaptureFixture[str]):
    with options.progress("steps") as on_step:
        on_step(1, 4)
    assert capsys.readouterr().err == ""


def test_long_work_says_early_how_long_it_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "monotonic", clock := Clock())
    with options.progress("steps") as on_step:
        clock.now = 5.0  # torch was waited for
        for done in range(4):
            on_step(done, 100)
            clock.now += 1.0
    assert capsys.readouterr().err == "steps: 2 of 100, about 98 s left, 7 s so far\n"


def test_steps_that_take_longer_are_foreseen(monkeypatch: pytest.MonkeyPatch):
    """Of four steps the first and third take 5 s more than the others, and so it says when it has seen one of each."""
    monkeypatch.setattr(time, "monotonic", clock := Clock())
    told: list[tuple[int, int]] = []
    on_step = options.even(lambda *at: told.append(at), [1, 3])
    for done in range(1, 5):
        clock.now += 6.0 if done in (1, 3) else 1.0
        on_step(done, 4)
    assert told == [(1, 4), (7, 14), (13, 14), (14, 14)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_begins_before_torch_is_waited_for():
    code = """
import sys
from contextlib import contextmanager
from memoryless.cli import audit, betas, compare, kernel, reproduce, verify
from memoryless.cli.main import main
from memoryless.errors import BadInput
@contextmanager
def progress(what):
    print(what, "torch" in sys.modules, file=sys.stderr)
    raise BadInput("enough")
    yield
for room in audit, betas, compare, kernel, reproduce, verify:
    room.progress = progress
for command in "audit", "betas", "compare adamw", "kernel adam", "reproduce fig1", "verify adam":
    try:
        main(command.split())
    except SystemExit:
        pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("memoryless:")]
    assert said == [
        f"{what} False" for what in ("auditing", "measuring", "running", "optimizer steps", "steps of all runs", "comparing")
    ]


def test_training_and_audits_make_one_progress():
    told: list[tuple[int, int]] = []
    for stage, before, training, auditing in _parts([10, 30], 100, lambda *at: told.append(at)):
        training(stage - before, stage - before)
        auditing(1, 2)
        auditing(2, 2)
    assert told == [(10, 630), (160, 630), (310, 630), (330, 630), (480, 630), (630, 630)]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with options.progress("steps") as on_step:
            on_step(1, 4)
    shown = b""
    with suppress(OSError):  # of a terminal that is closed: all was read
        while piece := os.read(reader, 10_000):
            shown += piece
    os.close(reader)
    assert b"steps" in shown
    assert b"25%" in shown
