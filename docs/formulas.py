"""Write the formulas of the documents: docs/formulas.md, and the tables between the markers in docs/theory.md and README.md.

python docs/formulas.py          write
python docs/formulas.py --check  exit with 1 if a document is not what the code derives
"""

import re
import sys
from pathlib import Path

import memoryless as ml
from memoryless.derive import SYMBOLS
from memoryless.report.derivation import markdown, plain, title
from memoryless.symbolic import h

ROOT = Path(__file__).parent.parent
INSIDE = {"rmsprop", "adamw", "nadam"}
"""Also with eps inside the root, as in the paper."""
HEADING = """# Formulas

Derived by `ml.derive` from the readout phi that computes the numbers (`python docs/formulas.py` writes this file); proved equal
to the tables of the theory, and to `ml.correction`, by test. `memoryless derive NAME --set eps=0 ...` prints one of them with
other values.

"""


def _derivations() -> list[ml.Derivation]:
    found = []
    for name in SYMBOLS:
        found.append(ml.derive(name))
        if name in INSIDE:
            found.append(ml.derive(name, eps_inside_root=True))
    return [*found, ml.derive("adamw", eps=0)]


def _cell(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`"


def _table(derivations: list[ml.Derivation]) -> str:
    rows = ["| method | F | M / h | modified loss |", "|---|---|---|---|"]
    for d in derivations:
        name = title(d).replace("lr=h, ", "")
        loss = "none" if d.modified_loss is None else _cell(plain(d.modified_loss))
        rows.append(f"| {_cell(name)} | {_cell(plain(d.F))} | {_cell(plain(d.M.subs(h, 1)))} | {loss} |")
    return "\n".join(rows)


def documents() -> dict[Path, str]:
    """Each generated document with its text."""
    derivations = _derivations()
    table = _table(derivations)
    result = {ROOT / "docs/formulas.md": HEADING + "\n".join(markdown(d, level=2) for d in derivations)}
    for path in (ROOT / "docs/theory.md",):
        text = path.read_text(encoding="utf-8")
        result[path] = re.sub(
            r"(<!-- formulas -->\n).*?(<!-- /formulas -->)", lambda m: m[1] + table + "\n" + m[2], text, flags=re.DOTALL
        )
    return result


if __name__ == "__main__":
    check = "--check" in sys.argv
    stale = {path: text for path, text in documents().items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(f"{'stale' if check else 'wrote'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    sys.exit(1 if stale and check else 0)
