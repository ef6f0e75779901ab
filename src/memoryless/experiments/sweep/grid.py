"""What a sweep runs: a file of TOML whose lists are the axes of a grid.

    problem = "digits_mlp"                          optimizer = ["adamw(weight_decay=0)", "lion(lr=1e-4)"]
    lr = [1e-3, 3e-3]                               seed = [0, 1, 2]

is 12 runs. Tables `[[grid]]` are several grids, each with its own axes beside the common ones. Nothing is imported or run here:
a file is read, and what is wrong with it is told, before torch is waited for.
"""

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from memoryless.errors import BadInput
from memoryless.methods.call import called

EXAMPLE = """\
# Every combination of the lists is a run: here 2 optimizers x 2 pairs of betas x 3 seeds = 12 runs.
problem = "digits_mlp"              # digits_mlp, digits_cnn, text_gpt, as "digits_mlp(width=128)", or "script.py:setup"
optimizer = ["adamw(weight_decay=0)", "lion(lr=1e-4)"]      # as everywhere; without it the script's own
betas = [[0.9, 0.95], [0.9, 0.999]] # with lr and what stands in [options] they win over what the text says
batch_size = "full"                 # or numbers; without it a script's own batches, in an order drawn by the seed
# lr = [1e-3, 3e-3]
# dial = [-1, 0, 1]                 # memory's effect cancelled, left, doubled (ml.dial)
seed = [0, 1, 2]                    # of the initial parameters, the order of the data, dropout
steps = 500

# [options]                         # further options of the optimizer
# weight_decay = [0, 0.1]

# [[grid]]                          # several grids, each with axes of its own beside the common ones above
# optimizer = "sgd(momentum=0.9)"
# lr = [0.01, 0.1]

[record]
every = 100                         # steps; the first and the last are recorded, too
what = ["train_loss", "gradient_1_norm", "test_loss", "test_accuracy"]
# test = "script.py:test"           # of a script: a function that returns the batches of the test set

[run]
# cores = 1                         # of each run: threads of torch, and what a run asks a cluster for
# gpus = 0                          # the same; with device = "cuda"
# device = "cpu"
# dtype = "float64"                 # of the built-in problems, or float32
# checkpoint = 30                   # seconds between two
"""

MEASURES = ("train_loss", "gradient_1_norm", "test_loss", "test_accuracy")
BUILT_IN = ("digits_mlp", "digits_cnn", "text_gpt")
FULL = "full"

Options = tuple[tuple[str, Any], ...]


class Run(NamedTuple):
    """One run: everything that its numbers depend on, but for versions.

    Attributes:
        problem: as text, with its options.
        optimizer: as text without options; None is the script's own.
        options: of the optimizer, by name.
        batch_size: samples, "full", or None: the script's own batches.
        dial: strength of the dial; 0 is none.
        seed: of the initial parameters, the order of the data, and what the model draws.
        steps: of the optimizer.
        every: steps from record to record.
        what: is recorded.
        test: function of a script that returns the batches of the test set.
        dtype: of a built-in problem.
        device: where to compute.
        cores: threads.
    """

    problem: str
    optimizer: str | None
    options: Options
    batch_size: int | str | None
    dial: float
    seed: int
    steps: int
    every: int
    what: tuple[str, ...]
    test: str | None
    dtype: str
    device: str
    cores: int

    @property
    def recorded(self) -> list[int]:
        """Steps at which something is."""
        return [*range(0, self.steps, self.every), self.steps]

    def key(self, versions: Mapping[str, str]) -> str:
        """The name of its result in a store: a hash of what it depends on.

        Args:
            versions: of code and libraries.
        """
        text = json.dumps([self._asdict(), dict(versions)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Grid:
    """The runs of a file, and how they are to be run.

    Attributes:
        path: of the file.
        runs: each once, in the order of the file.
        gpus: that each asks for.
        checkpoint: seconds between two.
    """

    path: Path
    runs: tuple[Run, ...]
    gpus: float = 0.0
    checkpoint: float = 30.0

    @cached_property
    def axes(self) -> list[dict[str, Any]]:
        """Where each run lies, along the axes on which the runs differ, the seed last.

        An option of the optimizer is an axis where one optimizer has several of it, else a part of the optimizer's name.
        """
        values: dict[tuple[Any, str], set[Any]] = {}
        for run in self.runs:
            for name, value in run.options:
                values.setdefault((run.optimizer, name), set()).add(value)
        turned = dict.fromkeys(name for (_, name), several in values.items() if len(several) > 1)
        common = {name for name in dict(self.runs[0].options) if len({dict(run.options).get(name) for run in self.runs}) == 1}
        every = []
        for run in self.runs:
            options = dict(run.options)
            own = ", ".join(f"{name}={value}" for name, value in options.items() if name not in turned and name not in common)
            axes = {"problem": run.problem, "optimizer": (run.optimizer or "the script's own") + (f"({own})" if own else "")}
            axes |= {name: options.get(name) for name in turned}
            axes |= {name: getattr(run, name) for name in ("batch_size", "dial", "steps", "seed")}
            every.append(axes)
        varied = [name for name in every[0] if len({axes[name] for axes in every}) > 1]
        return [{name: axes[name] for name in varied} for axes in every]

    @cached_property
    def place(self) -> Callable[[str], str]:
        """Finds scripts, which are beside the file, from anywhere; see `placed`."""
        return partial(placed, self.path.resolve().parent)


def placed(folder: Path, target: str) -> str:
    """A problem or optimizer as a process anywhere finds it.

    Args:
        folder: beside what is said there.
        target: script.py:name, with options or without, or anything else.
    """
    script = script_of(target)
    return target if script is None else f"{(folder / script).resolve()}{target[len(script) :]}"


def different(runs: Iterable[Run]) -> list[Run]:
    """Runs among which is each problem with each size of batches, and each optimizer with its options and dial.

    Args:
        runs: any.
    """
    seen, found = set[Any](), list[Run]()
    for run in runs:
        parts = {(run.problem, run.batch_size, run.test), (run.optimizer, run.options, run.dial, run.batch_size == FULL)}
        if not parts <= seen:
            seen |= parts
            found.append(run)
    return found


def script_of(target: str) -> str | None:
    """The script in script.py:name or script.py:name(...); None where there is none.

    Args:
        target: a problem or optimizer in text.
    """
    script, colon, _ = target.partition("(")[0].rpartition(":")
    return script if colon and script.endswith(".py") else None


def read(name: str) -> Grid:
    """The grid of a file.

    Args:
        name: of the file.

    Raises:
        BadInput: it cannot be read, is no TOML, or says something that is not understood; says what, and what is expected.
    """
    path = Path(name)
    try:
        if path.exists() and not path.is_file():  # of a device or a pipe there is no end
            raise BadInput(f"{name} cannot be read: not a file; memoryless sweep --example prints one")
        text = path.read_bytes().decode()
    except OSError as error:
        raise BadInput(f"{name} cannot be read: {error.strerror}; memoryless sweep --example prints such a file") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is no text: {error}") from error
    except ValueError as error:  # a name that no file can have
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{name!r} is no name of a file ({error})") from error
    try:
        return parsed(tomllib.loads(text), path)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from error
    except ValueError as error:  # a number of more digits than Python reads, too
        raise BadInput(f"{name} is no TOML: {error}") from error


def parsed(told: Mapping[str, Any], path: Path) -> Grid:
    """The grid of what a file says.

    Args:
        told: the file as dictionaries.
        path: of the file: scripts are beside it.

    Raises:
        BadInput: an unknown key, a missing one, or a value of another kind.
    """
    _known(told, [*AXES, "options", "grid", "record", "run"], "")
    record, how = _table(told, "record"), _table(told, "run")
    _known(record, ["every", "what", "test"], "[record] ")
    _known(how, ["cores", "gpus", "device", "dtype", "checkpoint"], "[run] ")
    grids = told.get("grid", [{}])
    if not isinstance(grids, list) or not grids or not all(isinstance(grid, dict) for grid in grids):
        raise BadInput("grid must be tables [[grid]]")
    common = {key: value for key, value in told.items() if key in AXES}
    runs: dict[Run, None] = {}
    for grid in grids:
        _known(grid, [*AXES, "options"], "[[grid]] ")
        options = _table(told, "options") | _table(grid, "options")
        runs |= dict.fromkeys(_runs({**common, **grid}, options, record, how))
    wants = 0 if _device(how.get("device", "cpu")) == "cpu" else 1
    gpus = _number(how.get("gpus", wants), "[run] gpus", 0)
    return Grid(path, tuple(runs), gpus, _number(how.get("checkpoint", 30), "[run] checkpoint", 0))


def _runs(axes: dict[str, Any], options: dict[str, Any], record: dict[str, Any], how: dict[str, Any]) -> Iterator[Run]:
    values = {name: _axis(name, axes.get(name, default), one) for name, (one, default) in AXES.items()}
    further = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    if empty := next((name for name, axis in {**values, **further}.items() if not axis), None):
        raise BadInput(f"{empty} is an empty list; expected at least one value")
    if axis := next((name for name in further if name in AXES), None):
        raise BadInput(f"[options] {axis}: {axis} is an axis of its own, outside [options]")
    further = {name: [_frozen(value, f"[options] {name}") for value in axis] for name, axis in further.items()}
    for chosen in itertools.product(*values.values(), *further.values()):
        now = dict(zip([*values, *further], chosen, strict=True))
        problem, built_in = now["problem"], called(now["problem"])[0] in BUILT_IN
        given = {name: now[name] for name in ("lr", "betas") if now[name] is not None} | {name: now[name] for name in further}
        optimizer = None
        if now["optimizer"] is not None:
            optimizer, own = called(now["optimizer"])
            if twice := next((name for name in given if name in own), None):
                raise BadInput(f"{now['optimizer']} has {twice} of its own, and {twice} is given beside it: leave one out")
            given = {key: _frozen(value, f"{now['optimizer']}: {key}") for key, value in own.items()} | given
        elif built_in:
            raise BadInput('optimizer is missing; such as optimizer = ["adamw", "lion(lr=1e-4)"]')
        every = record.get("every", max(1, now["steps"] // 20))
        yield Run(
            problem,
            optimizer,
            tuple(sorted(given.items())),
            (now["batch_size"] or FULL) if built_in else now["batch_size"],
            now["dial"],
            now["seed"],
            now["steps"],
            _whole(every, "[record] every", 1),
            _what(record, built_in),
            None if built_in else record.get("test"),
            _one_of(how.get("dtype", "float64"), "[run] dtype", ("float64", "float32")) if built_in else "",
            _device(how.get("device", "cpu")),
            _whole(how.get("cores", 1), "[run] cores", 1),
        )


def _what(record: Mapping[str, Any], built_in: bool) -> tuple[str, ...]:
    """What is recorded, in the order of `MEASURES`: all there is, unless it is said."""
    test = record.get("test")
    if test is not None and (not isinstance(test, str) or script_of(test) is None):
        raise BadInput(f'[record] test must be such as "script.py:test", got {test!r}')
    there = MEASURES if built_in else MEASURES[: 3 if test else 2]
    asked = record.get("what", list(there))
    asked = [asked] if isinstance(asked, str) else asked
    unknown = [name for name in asked if name not in MEASURES] if isinstance(asked, list) and asked else [asked]
    if unknown:
        raise BadInput(f"[record] what expects some of {', '.join(MEASURES)}, got {unknown[0]!r}")
    if missing := [name for name in asked if name not in there]:
        needs = "is of built-in problems" if missing[0] == "test_accuracy" else 'of a script needs test = "script.py:test"'
        raise BadInput(f"[record] what: {missing[0]} {needs}")
    return tuple(name for name in MEASURES if name in asked)


# Values of one run along each axis: what reads it, and what it is where the file does not say.


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{name} must be text, got {value!r}")
    return value.strip()


def _problem(value: Any, name: str) -> str:
    if value is None:
        raise BadInput(f'problem is missing; one of {", ".join(BUILT_IN)}, or "script.py:setup"')
    text = _text(value, name)
    path, options = called(text)
    if path not in BUILT_IN and script_of(text) is None:
        raise BadInput(f"problem must be one of {', '.join(BUILT_IN)}, or script.py:setup, got {text!r}")
    if options and path not in BUILT_IN:
        raise BadInput(f"{text}: a script's setup takes no options")
    return path + (f"({', '.join(f'{key}={value!r}' for key, value in sorted(options.items()))})" if options else "")


def _betas(value: Any, name: str) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise BadInput(f"{name} must be pairs such as [[0.9, 0.95], [0.9, 0.999]], got {value!r}")
    return tuple(_number(beta, name, 0) for beta in value)


def _batch_size(value: Any, name: str) -> int | str:
    if value == FULL:
        return FULL
    if isinstance(value, str):
        raise BadInput(f'{name} must be a whole number or "full", got {value!r}')
    return _whole(value, name, 1)


def _number(value: Any, name: str, least: float = -math.inf) -> float:
    if not _is_number(value) or value < least:
        bound = "" if least == -math.inf else f" from {least:g} on"
        raise BadInput(f"{name} must be a finite number{bound}, got {value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def _lr(value: Any, name: str) -> float:
    if not _number(value, name) > 0:
        raise BadInput(f"{name} must be positive, got {value!r}")
    return float(value)


def _whole(value: Any, name: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"{name} must be a whole number from {least} on, got {value!r}")
    return value


AXES: dict[str, tuple[Callable[[Any, str], Any], Any]] = {
    "problem": (_problem, None),
    "optimizer": (lambda value, name: None if value is None else _text(value, name), None),
    "betas": (lambda value, name: None if value is None else _betas(value, name), None),
    "lr": (lambda value, name: None if value is None else _lr(value, name), None),
    "batch_size": (lambda value, name: None if value is None else _batch_size(value, name), None),
    "dial": (_number, 0),
    "steps": (lambda value, name: _whole(value, name, 1), 500),
    "seed": (_whole, 0),
}


def _axis(name: str, value: Any, one: Callable[[Any, str], Any]) -> list[Any]:
    several = isinstance(value, list)
    if name == "betas" and several and not any(isinstance(each, list) for each in value) and value:
        several = False  # one pair
    return [one(each, name) for each in (value if several else [value])]


def _frozen(value: Any, name: str) -> Any:
    """An option of an optimizer as a key of a store can hold it."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(each, name) for each in value)
    if value is None or isinstance(value, (bool, str)) or _is_number(value):
        return value
    raise BadInput(f"{name} must be a finite number, text, true, false or a list of such, got {value!r}")


def _known(table: Mapping[str, Any], names: list[str], where: str) -> None:
    if unknown := next((name for name in table if name not in names), None):
        raise BadInput(f"unknown key {where}'{unknown}'; expected some of {', '.join(names)}")


def _table(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = told.get(name, {})
    if not isinstance(found, dict):
        raise BadInput(f"{name} must be a table [{name}], got {found!r}")
    return found


def _one_of(value: Any, name: str, names: tuple[str, ...]) -> str:
    if value not in names:
        raise BadInput(f"{name} must be one of {', '.join(names)}, got {value!r}")
    return value


def _device(value: Any) -> str:
    if value != "cpu" and not (isinstance(value, str) and value.partition(":")[0] == "cuda"):
        raise BadInput(f"[run] device must be cpu, cuda or cuda:N, got {value!r}")
    return value
