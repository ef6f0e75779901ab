"""Which code a result comes from: this package's, that of the libraries that a run uses, the user's scripts."""

import hashlib
import platform
from collections.abc import Callable
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import memoryless
from memoryless.errors import BadInput
from memoryless.experiments.sweep.grid import Run, script_of

ASIDE = {"cli", "report", "render", "integrations", "formulas", "audits"}
"""Rooms whose code decides no number of a run."""
LIBRARIES = "torch", "numpy", "scikit-learn"


@cache
def code() -> str:
    """Of this package: its version, and a hash of the source that runs go through."""
    root, found = Path(memoryless.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place.parts[0] not in ASIDE:
            found.update(f"{place.as_posix()}\n".encode() + path.read_bytes())
    return f"{memoryless.__version__}+{found.hexdigest()[:12]}"


@cache
def _library(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


@cache
def _distribution(module: str) -> str | None:
    return next(iter(metadata.packages_distributions().get(module, [])), None)


def _source(module: str) -> str:
    """Of a module that belongs to no distribution: the hash of its file, or of all files of its folder."""
    spec = find_spec(module)
    origin = None if spec is None or spec.origin is None else Path(spec.origin)
    if origin is None or not origin.is_file():
        return "none"
    files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def versions(run: Run, place: Callable[[str], str] = lambda target: target) -> dict[str, str]:
    """All that a run depends on besides what it is.

    Args:
        run: which.
        place: where its scripts are.

    Returns:
        Name and version; of a script, or a module that is not installed, the hash of its text. What these import from files
        beside them is not seen.

    Raises:
        BadInput: a script is not there.
    """
    found = {"memoryless": code(), "python": platform.python_version()} | {name: _library(name) for name in LIBRARIES}
    for target in (run.problem, run.optimizer, run.test):
        if target is None:
            continue
        if (script := script_of(target)) is not None:
            found[script] = _script(place(target).rpartition(":")[0])
        elif "." in (path := target.partition("(")[0]) or ":" in path:
            module = path.replace(":", ".").partition(".")[0]
            if module in ("torch", "memoryless"):
                continue
            name = _distribution(module)
            found |= {module: _source(module)} if name is None else {name: _library(name)}
    return found


def _script(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise BadInput(f"script {path} cannot be read: {error.strerror}") from error
