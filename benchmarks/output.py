"""Tables on the screen, figures in benchmarks/results."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(x if isinstance(x, str) else f"{x:.2g}" for x in row))
    Console(width=200).print(table)


def kept(name: str) -> dict[str, Any]:
    """The figures in results/NAME.json, of which a benchmark runs a part anew; nothing where there are none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["figures"] if path.exists() else {}


def save(name: str, figures: Any) -> None:
    """Write figures to results/NAME.json, with the machine they come from."""
    machine = f"2 cores of a shared {platform.machine()} server, torch {version('torch').split('+')[0]} CPU"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")
