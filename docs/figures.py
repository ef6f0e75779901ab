"""Writes docs/figures.md from the numbers of the reproduced figures: `python docs/figures.py`."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEAD = """# The paper's figures, and whether its claims hold here

`memoryless reproduce NAME` runs a figure of [arXiv 2502.02132](https://arxiv.org/abs/2502.02132) small, offline, in minutes,
draws it and judges what is claimed of it. The tests stand in the file of the figure (`src/memoryless/experiments/`) and were
written down before the run: an interval of 95 % (t, over seeds) of a statistic has to lie within bounds. *Yes*, *no* and
*cannot be told* are answers; each cell is judged by itself. `--scale paper` has the paper's networks and data; it was built and
checked, not run. These numbers are of one run of each command; they say nothing of ResNet-50 or Transformer-XL at their size.
"""


def document() -> str:
    """The page."""
    parts = [HEAD]
    for path in sorted(HERE.glob("fig*.json")):
        found = json.loads(path.read_text())
        if "claims" in found:
            parts.append(_figure(found))
    return "\n".join(parts)


def _figure(found: dict[str, Any]) -> str:
    name = found["figure"]
    lines = [f"## {name}", "", f"`memoryless reproduce {name}`: {found['about']} ([numbers]({name}.json)).", ""]
    for claim in found["claims"]:
        lines += [f"* {claim['claim']}: **{claim['verdict']}**. Test: {claim['test']}.", ""]
        if claim["cells"]:
            lines += ["  | where | mean | interval | |", "  |---|---|---|---|"]
            lines += [
                f"  | {c['where']} | {_number(c['mean'])} | {_interval(c['interval'])} | {c['answer']} |"
                for c in claim["cells"]
            ]
            lines.append("")
    lines += [f"* No numbers: {failed['setting']}: {failed['reason']}" for failed in found["failed"]]
    return "\n".join([*lines, f"![{name}]({name}.png)", ""])


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}"


def _interval(ends: list[float | None]) -> str:
    return " to ".join(map(_number, ends))


if __name__ == "__main__":
    (HERE / "figures.md").write_text(document())
