"""`benchmarks/compare.py`: which results it finds, and what it calls slower."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MLP = {"unit milliseconds": 20.0, "gradients": {"first": 3.0}, "HVP of curvlinops / ours": 1.3, "parameters": 100}


def compare(*arguments: Any) -> tuple[int, list[str]]:
    command = [sys.executable, BENCHMARKS / "compare.py", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not found.stderr
    return found.returncode, found.stdout.splitlines()


def write(folder: Path, given: dict[str, Any], name: str = "speed_1_threads") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": "any", "figures": given}))
    return folder / f"{name}.json"


def figures(first: float = 3.0, products: float = 0, **others: float) -> dict[str, Any]:
    mlp = MLP | {"gradients": {"first": first}} | others
    return {"cost": {"MLP": mlp}, "step independence": {"lion first": {"products at 10": products}}}


def test_committed_results_are_unchanged_against_themselves():
    code, lines = compare("--against", BENCHMARKS / "results")
    assert code == 0
    assert lines[0].startswith("unchanged: accumulation, batch_maps, beta_map, black_box, ")
    assert lines[-1] == "slower by more than 10 %: nothing"


@pytest.mark.parametrize(
    ("now", "slower"),
    [
        (figures(first=3.2), "nothing"),
        (figures(first=3.4), "speed_1_threads: cost > MLP > gradients > first (1.13)"),
        (figures(first=2.0), "nothing"),
        (figures(**{"HVP of curvlinops / ours": 1.1}), "speed_1_threads: cost > MLP > HVP of curvlinops / ours (0.85)"),
        (figures(**{"HVP of curvlinops / ours": 2.0}), "nothing"),
        (figures(**{"unit milliseconds": 80.0}), "nothing"),
        (figures(parameters=1000), "nothing"),
        (figures(products=1), "speed_1_threads: step independence > lion first > products at 10 (inf)"),
    ],
)
def test_what_is_slower(tmp_path: Path, now: dict[str, Any], slower: str):
    write(tmp_path / "then", figures())
    code, lines = compare(write(tmp_path / "now", now), "--against", tmp_path / "then")
    assert lines[-1] == f"slower by more than 10 %: {slower}"
    assert code == (slower != "nothing")


def test_seconds_are_shown_and_the_rest_is_not(tmp_path: Path):
    write(tmp_path / "then", figures())
    _, lines = compare(write(tmp_path / "now", figures(**{"unit milliseconds": 80.0})), "--against", tmp_path / "then")
    [row] = [line for line in lines if "unit milliseconds" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "speed_1_threads",
        "cost > MLP > unit milliseconds",
        "20",
        "80",
        "4",
        "",
    ]
    assert not any("parameters" in line for line in lines)


def test_results_that_are_not_committed(tmp_path: Path):
    code, lines = compare(write(tmp_path, figures(), name="new"))
    assert (code, lines[0]) == (0, "nothing to compare with: new")
