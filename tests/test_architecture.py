"""The house: which rooms may import which (contracts in pyproject.toml), how much stands in one place, true maps."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import memoryless

SOURCE = Path(memoryless.__file__).parent
CONTRACTS = Path(__file__).parents[1] / "pyproject.toml"
ROOMS = sorted(init.parent for init in SOURCE.glob("*/**/__init__.py"))
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] != "cli")


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_imports_point_down_and_run_in_no_circle():
    linter = Path(sys.executable).with_name("lint-imports")
    command = [linter, "--config", CONTRACTS, "--no-cache", "--no-logo"]
    found = subprocess.run(command, cwd=SOURCE.parent, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_top_stays_small():
    assert len([path for path in SOURCE.iterdir() if path.is_file()]) <= 6


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_a_room_opens_with_its_map(room: Path):
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    inside = [p.stem for p in room.iterdir() if (p.suffix == ".py" and p.stem != "__init__") or (p / "__init__.py").exists()]
    # Named in backticks, or at the head of a line of its own.
    assert [entry for entry in sorted(inside) if not re.search(rf"`{entry}`|^ +{entry}  ", text, re.MULTILINE)] == []


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


SHARED = {"step", "batches", "order", "scheduler", "gradient", "measures", "betas", "seed", "on_step"}
"""Keywords that mean the same wherever they stand, in one order: whoever has read one head knows them."""


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    a = function.args
    every = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    shared = {x.arg for x in a.kwonlyargs} & SHARED
    return [x.arg for x in every if x is not None and x.arg not in shared | {"self", "cls"}]


# The command line's functions are its lists of options, which is why it is left out.
@pytest.mark.parametrize("path", FILES, ids=name)
def test_functions_fit_on_a_screen_and_in_a_head(path: Path):
    assert {f.name: lines for f in functions(path) if (lines := f.end_lineno - f.lineno + 1) > 80} == {}  # type: ignore[operator]
    assert {f.name: given for f in functions(path) if len(given := parameters(f)) > 8} == {}
