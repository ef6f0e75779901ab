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

SAID = {
    "dial": """Memory's effect is multiplied by 1 + s, all else held: s = -1 is no memory, 0 the optimizer as it is, 1
twice as much. In words, of the residual and the plain network full batch: on the residual one AdamW's
memory as it is raises the test loss and costs a quarter of a point of accuracy at equal training loss, as
the theory has it; on the plain network it does the reverse, and by more. The gradient's 1-norm, of which
the theory speaks, is not raised by memory as it is on either: it is 10 % lower than without. It grows five-
to tenfold where memory is half more or doubled, where the path oscillates, and neither a placebo of the
same size nor a learning rate of the same speed does that. On the plain network placebos move the test loss
as much as the dial: there what changes the path at all counts. The first four claims were added after a
first run on other seeds had shown that all it found lay above s = 0; all numbers are of seeds that had not
been looked at.""",
    "ranking": """Tau is 1 where a rule orders the pairs as their own runs came out, -1 where it has them the wrong way
round; what the other seeds tell is what a rule could know at best. In words: one run's map at 5 % of training
does not tell which betas to take. Full batch it ranks the residual network's test losses, .65 where .90 could be
known, as beta_1 = beta_2 and the theory to first order do, too; on the plain network, where beta_2's effect is
reversed (Fig. 2a), it has them the wrong way round. Along mini-batches it knows no more than an arbitrary order,
or has it wrong. By the final training loss it ranks one cell of six. What it measures it does tell, full batch:
the gradient 1-norm of the finished runs. Nowhere does the measured map rank better than the theory to first order
by accuracy or test loss. Seeds repeat what an order happens to have right, so the share of arbitrary orders that do
as well stands beside (added after the run); the intervals of "the other seeds", whose taus share runs, are about 1.5
times too narrow; and at batch 8 the training loss at the first look below the target differs by up to 15 % between
pairs. The map is of 15 to 65 steps, in which beta_2 = .99 and .999 hardly differ.""",
}
"""What a study comes to, in words."""
NOT_RUN = "Batches of 32, the CNN with 20 % of its labels wrong and the GPT were not run."
"""Of the study of the dial, where its numbers are full batch only."""


def document() -> str:
    """The page."""
    parts = [HEAD]
    for path in sorted(HERE.glob("*.json")):
        found = json.loads(path.read_text())
        if "claims" in found:
            parts.append(_figure(found))
    return "\n".join(parts)


def _figure(found: dict[str, Any]) -> str:
    name = found["figure"]
    command = f"study {name}" if name in SAID else f"reproduce {name}"
    lines = [f"## {command}", "", f"`memoryless {command}`: {found['about']} ([numbers]({name}.json)).", ""]
    lines += [SAID[name], ""] if name in SAID else []
    if name == "dial" and not any(run["setting"].get("batch") for run in found["runs"]):
        lines += [NOT_RUN, ""]
    for claim in found["claims"]:
        lines += [f"* {claim['claim']}: **{claim['verdict']}**. Test: {claim['test']}.", ""]
        if claim["cells"]:
            lines += ["  | where | mean | interval | |", "  |---|---|---|---|"]
            lines += [
                f"  | {c['where']} | {_number(c['mean'])} | {_interval(c['interval'])} | {c['answer']} |"
                for c in claim["cells"]
            ]
            lines.append("")
    lines += _failures(found)
    return "\n".join([*lines, f"![{name}]({name}.png)", ""])


def _failures(found: dict[str, Any]) -> list[str]:
    """Runs that ended without numbers, those of one setting but for the seeds together."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for failed in found["failed"]:
        where = {name: value for name, value in failed["setting"].items() if name != "seeds"}
        seeds.setdefault((json.dumps(where), failed["reason"]), []).extend(failed["setting"]["seeds"])
    return [f"* No numbers from seeds {of} of `{where}`: {reason}\n" for (where, reason), of in seeds.items()]


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}"


def _interval(ends: list[float | None]) -> str:
    return " to ".join(map(_number, ends))


if __name__ == "__main__":
    (HERE / "figures.md").write_text(document())
