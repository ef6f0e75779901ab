"""Standard output carries the answer alone; whose an error is."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memoryless.cli import answer
from memoryless.cli.main import main

SHORT = ["--steps", "3", "--stops", "1", "--measures", "gradient_1_norm", "--html", "None"]
PROGRAM = [sys.executable, "-m", "memoryless.cli.main"]


def start(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([*PROGRAM, *arguments], cwd=folder, text=True, stderr=subprocess.PIPE, **options)


def test_json_alone_whatever_a_script_prints(folder: Path):
    process = start(folder, "audit", "talks.py:prints", *SHORT, "--json", stdout=subprocess.PIPE)
    out, err = process.communicate()
    assert process.returncode == 0
    (stop,) = json.loads(out)["stops"]
    assert stop["step"] == 3  # a single stop is the last step
    for text in ("imported", "parameters: 21", "no line end", "by descriptor", "by a child", "evaluating", "good bye"):
        assert text in err


def test_json_alone_in_process(folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["audit", "talks.py:prints", *SHORT, "--json"])
    shown = capsys.readouterr()
    assert json.loads(shown.out)
    assert "evaluating" in shown.err


@pytest.mark.parametrize(
    ("function", "message", "code"),
    [
        ("exits", "hostile.py:exits raised SystemExit: 0", "sys.exit(0)"),
        ("exits_later", "raised SystemExit: 0", "sys.exit(0)"),
        ("unreadable", "RuntimeError: no such image", 'raise RuntimeError("no such image")'),
        # What torch raises is told where the user called it.
        ("wrong_shape", "raised RuntimeError: ", "model(batch[0]), batch[1].long())"),
    ],
)
def test_an_error_of_the_users_names_the_users_line(
    function: str, message: str, code: str, refused: Callable[..., str], folder: Path
):
    line = refused("audit", f"hostile.py:{function}", *SHORT, "--json")
    assert message in line
    number = int(line.partition("(line ")[2].split()[0])
    assert code in "".join((folder / "hostile.py").read_text().splitlines()[number - 1 : number + 1])


def test_a_closed_pipe_is_silent_and_files_are_written(folder: Path):
    read, write = os.pipe()
    os.close(read)
    process = start(folder, "kernel", "lion", "--png", "page.png", stdout=write)
    assert process.communicate()[1].split() == ["wrote", "page.png"]
    assert process.returncode == 141
    assert (folder / "page.png").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_standard_output_on_a_full_disk(folder: Path):
    with Path("/dev/full").open("w") as full:
        process = start(folder, "kernel", "lion", stdout=full)
        said = [line for line in process.communicate()[1].splitlines() if ", " not in line or "so far" not in line]  # progress
        assert said == ["memoryless: standard output cannot be written: No space left on device"]
    assert process.returncode == 2


def alive(group: int) -> list[int]:
    """The processes of a group that run (those that nobody has collected yet do not)."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stats.append((int(path.parent.name), path.read_text().rpartition(")")[2].split()))
    return [number for number, (state, _, of, *_) in stats if int(of) == group and state not in "ZX"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "arguments", [("audit", "base.py:setup", "--html", "None"), ("reproduce", "fig1", "--jobs", "2", "--picture", "None")]
)
def test_ctrl_c_is_one_line_and_ends_all_at_once(arguments: tuple[str, ...], folder: Path):
    # Where the tests run in the background of a shell, it has them ignore the signal.
    process = start(
        folder,
        *arguments,
        "--steps",
        "1000000",
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr
    late = threading.Timer(120, lambda: os.killpg(process.pid, signal.SIGKILL))
    late.start()
    try:
        while " left, " not in (line := process.stderr.readline()):  # it is at work, and says so
            assert line, "it ended"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out) == (130, "")
        assert err.splitlines()[-1] == "memoryless: interrupted"
        assert "Traceback" not in err
        end = time.monotonic() + 3
        while alive(process.pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert not alive(process.pid)
    finally:
        late.cancel()
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def test_brackets_are_text(capsys: pytest.CaptureFixture[str]):
    with answer.alone():
        answer.console().print("own[/b].py [bold]adamw(betas=[b])")
    assert capsys.readouterr().out == "own[/b].py [bold]adamw(betas=[b])\n"


def test_streams_are_put_back(capsys: pytest.CaptureFixture[str]):
    with answer.alone():
        print("aside")
        answer.say("answer")
    print("after")
    assert capsys.readouterr() == ("answer\nafter\n", "aside\n")
