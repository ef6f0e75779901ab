"""How far work has come."""

import os
import pty
import sys
import time

import pytest

from memoryless.cli import options


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(options, "EVERY", 0.05)
    with options.progress("steps") as on_step:
        time.sleep(0.08)
        on_step(1, 4)
        time.sleep(0.05)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "steps: at work, 0 s so far"
    assert second == "steps: 1 of 4, about 0 s left, 0 s so far"


def test_nothing_is_said_of_short_work(capsys: pytest.CaptureFixture[str]):
    with options.progress("steps") as on_step:
        on_step(1, 4)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with options.progress("steps") as on_step:
            on_step(1, 4)
        shown = os.read(reader, 10_000).decode()
    os.close(reader)
    assert "steps" in shown
    assert "25%" in shown
