"""What holds of every command: help, errors, exit codes."""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from memoryless.cli.audit import Audit
from memoryless.cli.main import COMMANDS, main
from memoryless.errors import BadInput, Diverged, NotRecognised


@pytest.mark.parametrize("arguments", [["--step"], ["--betas", "1"], ["--steps", "many"], ["--no-such"]])
def test_unknown_options_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["audit", *arguments])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [BadInput("what\n  came"), Diverged("what came", 3), NotRecognised("what came")])
def test_bad_input_is_one_line(error: BadInput, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Audit, "run", _raising(error))
    assert refused("audit") == "memoryless: what came"


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("memoryless.cli.setup.load", None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        main(["audit", "--html", "None"])


def _raising(error: Exception) -> Callable[[Audit], None]:
    def run(self: Audit) -> None:
        raise error

    return run


def test_help_does_not_wait_for_torch():
    """One process for all commands: what none of them imported, none imports alone."""
    code = f"""
import sys
from memoryless.cli.main import main
for command in {["", *COMMANDS]}:
    print("command", command)
    try:
        main([*filter(None, [command]), "--help"])
    except SystemExit as end:
        assert not end.code
    assert not {{"torch", "sympy", "matplotlib", "scipy"}} & set(sys.modules), command
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command, shown in zip(["", *COMMANDS], re.split(r"^command .*$", done.stdout, flags=re.M)[1:], strict=True):
        assert "Such as: memoryless" in shown or "usage: memoryless" in shown, command


def test_version(capsys: pytest.CaptureFixture[str]):
    main(["--version"])
    assert capsys.readouterr().out == f"memoryless {version('memoryless')}\n"


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(example: Path):
    subprocess.run([sys.executable, str(example)], check=True, capture_output=True, cwd=example.parent)
