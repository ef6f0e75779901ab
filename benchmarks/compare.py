"""What got slower? Benchmark results beside the last committed ones, or beside those of another folder.

python benchmarks/compare.py [RESULTS.json ...] [--against FOLDER]     default: all of benchmarks/results, against HEAD

Judged are ratios measured side by side in one run, and counts of products, steps and vectors. Seconds depend on the machine
and on what else it does: they are listed. Exit code 1 when something got slower.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from output import RESULTS, show

SLOWER = 1.1
COST, GAIN, SECONDS = "cost", "gain", "seconds"
# benchmark, quantity, what it is: less of a cost is better, more of a gain. What no line names says nothing about speed.
KINDS = [
    ("accumulation", "*", COST),
    ("monitor", "* > step_ratio*", COST),
    ("step_check", "cost > * > every step", COST),
    ("sweep", "overhead > steps in the sweep*", COST),
    ("sweep", "cores > times", GAIN),
    ("speed_*", "cost > * > HVP of curvlinops / ours", GAIN),
    ("speed_*", "cost > * > gradients > Loss.gradient", COST),
    ("speed_*", "cost > * > gradients > linearize*", COST),
    ("speed_*", "cost > * > gradients > first*", COST),
    ("speed_*", "cost > * > gradients > resummed*", COST),
    ("speed_*", "cost > * > gradients > HVP", COST),
    ("speed_*", "cost > * > unit milliseconds", SECONDS),
    ("speed_*", "memory > * / gradient", COST),
    ("speed_*", "step independence > *", COST),
    ("beta_map", "milliseconds: *", SECONDS),
    ("beta_map", "map of * / *", COST),
    ("beta_map", "*: peak in vectors of *", COST),
    ("black_box", "*, unrolled", SECONDS),
    ("black_box", "* > time, unrolled over steady", GAIN),
    ("black_box", "* > optimizer steps", COST),
    ("black_box", "* > Hessian-vector products", COST),
    ("black_box", "* > time, in plain steps", COST),
    ("black_box", "* > seconds", SECONDS),
    ("derive", "*", SECONDS),
    ("noise", "cost > *products*", COST),
    ("noise", "cost > *seconds*", SECONDS),
    ("trajectory", "* > plain step > ms", SECONDS),
    ("trajectory", "* > n = *", COST),
    ("trajectory", "* > last / first", COST),
]


def kind(benchmark: str, quantity: str) -> str | None:
    return next((kind for b, q, kind in KINDS if fnmatchcase(benchmark, b) and fnmatchcase(quantity, q)), None)


def numbers(figures: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Every number in nested dictionaries and lists, with the keys that lead to it: "cost > MLP > gradients > first"."""
    if isinstance(figures, dict | list):
        for key, value in figures.items() if isinstance(figures, dict) else enumerate(figures):
            yield from numbers(value, (*path, str(key)))
    elif isinstance(figures, int | float):
        yield " > ".join(path), figures


def before(name: str, folder: Path | None) -> dict[str, Any] | None:
    """The results to compare with; None where there are none."""
    if folder is not None:
        return json.loads((folder / name).read_text()) if (folder / name).exists() else None
    found = subprocess.run(["git", "show", f"HEAD:./{name}"], cwd=RESULTS, capture_output=True, text=True, check=False)
    return json.loads(found.stdout) if found.returncode == 0 else None


class Row(NamedTuple):
    """A quantity then and now."""

    benchmark: str
    quantity: str
    then: float
    now: float
    kind: str

    @property
    def ratio(self) -> float:
        """Now over then."""
        return self.now / self.then if self.then else math.inf if self.now else 1.0

    @property
    def slower(self) -> bool:
        """By more than the rounds of one run differ."""
        return (self.kind == COST and self.ratio > SLOWER) or (self.kind == GAIN and self.ratio < 1 / SLOWER)


def compare(benchmark: str, then: Any, now: Any) -> Iterator[Row]:
    """All that tells of speed and that both have."""
    old = dict(numbers(then))
    for quantity, new in numbers(now):
        if (what := kind(benchmark, quantity)) and quantity in old:
            yield Row(benchmark, quantity, old[quantity], new, what)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("results", nargs="*", type=Path, help="as benchmarks write them; default: all of benchmarks/results")
    options.add_argument("--against", type=Path, metavar="FOLDER", help="older results of the same file names; default: HEAD's")
    given = options.parse_args()
    rows: list[Row] = []
    same, new = [], []
    for path in given.results or sorted(RESULTS.glob("*.json")):
        then, now = before(path.name, given.against), json.loads(path.read_text())
        if then is None:
            new.append(path.stem)
        elif then["figures"] == now["figures"]:
            same.append(path.stem)
        else:
            rows += compare(path.stem, then["figures"], now["figures"])
    if rows:
        words = {True: "slower", False: ""}
        shown = [(r.benchmark, r.quantity, *(f"{x:.3g}" for x in (r.then, r.now, r.ratio)), words[r.slower]) for r in rows]
        show("Benchmarks", ["benchmark", "quantity", "then", "now", "ratio", ""], shown)
    for text, names in (("unchanged", same), ("nothing to compare with", new)):
        if names:
            print(f"{text}: {', '.join(names)}")
    slower = [f"{r.benchmark}: {r.quantity} ({r.ratio:.2f})" for r in rows if r.slower]
    print(f"slower by more than 10 %: {'; '.join(slower) or 'nothing'}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
