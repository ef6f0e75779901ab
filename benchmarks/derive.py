"""How long does a derivation take? Under 3 s for every method of the catalogue.

python benchmarks/derive.py         each method in a process of its own: imports, then all that `memoryless derive` prints
python benchmarks/derive.py NAME    one method, here; prints seconds of CPU time as JSON
"""

import json
import subprocess
import sys
import time

from output import save, show

TARGET = 3.0


def cpu_seconds(name: str) -> dict[str, float]:
    """Imports; the derivation, printed with its limits; the same again with SymPy's caches warm; as LaTeX and HTML."""
    start = time.process_time()
    import memoryless as ml
    import memoryless.formulas.printing

    seconds = {}
    for what, work in {
        "imports": lambda: None,
        "derivation": lambda: ml.derive(name).text(),
        "again": lambda: ml.derive(name).text(),
        "latex": lambda: ml.derive(name).latex(),
        "html": lambda: ml.derive(name).to_html(),
    }.items():
        work()
        seconds[what], start = time.process_time() - start, time.process_time()
    return seconds


def main() -> None:
    from memoryless.methods.catalogue import CATALOGUE

    figures = {}
    for name in CATALOGUE:
        done = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True)
        figures[name] = json.loads(done.stdout)
    columns = list(next(iter(figures.values())))
    show("Seconds of CPU time", ["method", *columns], [[name, *row.values()] for name, row in figures.items()])
    slowest = max(row["derivation"] for row in figures.values())
    print(f"slowest derivation {slowest:.2f} s, target {TARGET:g} s: {'met' if slowest < TARGET else 'missed'}")
    save("derive", figures)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(cpu_seconds(sys.argv[1])))
    else:
        main()
