"""Write the formulas of the documents: docs/formulas.md, and what stands between the markers in docs/theory.md and README.md.

python docs/formulas.py          write
python docs/formulas.py --check  exit with 1 if a document is not what the code derives
"""

import sys
from pathlib import Path

import memoryless as ml
from memoryless.formulas.derive import Derivation
from memoryless.formulas.hyperparameters import SYMBOLS
from memoryless.formulas.printing import markdown, plain, title
from memoryless.formulas.symbols import h, name_of

ROOT = Path(__file__).parent.parent
INSIDE = {"rmsprop", "adamw", "nadam"}
"""Also with eps inside the root, as in the paper."""
HEADING = """# Formulas

Derived by `ml.derive` from the readout phi that computes the numbers (`python docs/formulas.py` writes this file); proved equal
to the tables of the theory, and to `ml.correction`, by test. `memoryless derive NAME --set eps=0 ...` prints one of them with
other values.

"""


def _derivations() -> list[Derivation]:
    found = []
    for name in SYMBOLS:
        found.append(ml.derive(name))
        if name in INSIDE:
            found.append(ml.derive(name, eps_inside_root=True))
    return [*found, ml.derive("adamw", eps=0)]


def _cell(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`"


def _table(derivations: list[Derivation]) -> str:
    rows = ["| method | F | M / h | net age | potential of F | modified loss |", "|---|---|---|---|---|---|"]
    for d in derivations:
        name = title(d).replace("lr=h, ", "")
        a = d.anatomy
        kappa, potential = (
            ("a matrix", "K(∇L)") if a is None else (_cell(plain(a.symbolic)), f"{name_of(a.R)}".partition(":")[0])
        )
        loss = "none" if d.modified_loss is None else _cell(plain(d.modified_loss))
        cells = [_cell(name), _cell(plain(d.F)), _cell(plain(d.M.subs(h, 1))), kappa, potential, loss]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _example(shown: tuple[str, ...]) -> str:
    """A doctest of some sections."""
    blocks = ml.derive("adamw", eps=0, weight_decay=0).text().split("\n\n")
    lines, before = blocks[0], 0
    for i, block in enumerate(blocks):
        if block.partition("\n")[0] in shown:
            lines, before = f"{lines}\n{'<BLANKLINE>' if i == before + 1 else '...'}\n{block}", i
    call = '>>> print(ml.derive("adamw", eps=0, weight_decay=0).text())            # doctest: +ELLIPSIS'
    return "\n".join(["```python", call, lines, "", "```"])


def documents() -> dict[Path, str]:
    """Each generated document with its text."""
    derivations = _derivations()
    result = {ROOT / "docs/formulas.md": HEADING + "\n".join(markdown(d, level=2) for d in derivations)}
    example = _example(("Net age", "Modified loss", "In words"))
    for name, generated in {"docs/theory.md": _table(derivations), "README.md": example}.items():
        before, _, rest = (ROOT / name).read_text(encoding="utf-8").partition("<!-- formulas -->\n")
        _, end, after = rest.partition("<!-- /formulas -->")
        assert end, f"{name} has no place for formulas"
        result[ROOT / name] = f"{before}<!-- formulas -->\n{generated}\n{end}{after}"
    return result


if __name__ == "__main__":
    check = "--check" in sys.argv
    stale = {path: text for path, text in documents().items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(f"{'stale' if check else 'wrote'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    sys.exit(1 if stale and check else 0)
