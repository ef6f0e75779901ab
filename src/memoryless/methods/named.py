"""Every way to say an optimizer in text, read once for all commands.

    adamw    "adamw(lr=1e-3, betas=(0.9, 0.95))"    torch.optim.Adamax    "torch.optim.Muon(lr=1e-3)"
    module:name    script.py:name    "script.py:name(option=value, ...)"

A bare name is of the catalogue, or sgd, which is torch's. A path leads to a torch optimizer's class, to a `Method`, to a
function or class that makes a `Method`, or to a function that makes an optimizer from a list of parameters. The last is told by
its first argument: it has no default, is not lr, and is not among the options given.
"""

import importlib
import inspect
import runpy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from memoryless.errors import BadInput, users_line
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.call import called
from memoryless.methods.catalogue import CATALOGUE
from memoryless.methods.method import AnyOptimizer, Method
from memoryless.methods.method_optimizer import MethodOptimizer

TORCH: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "nadam": NAdam, "rmsprop": RMSprop}
"""Names that are torch's where a live optimizer is wanted, with torch's options and defaults."""

LR = 1e-3
"""Of a method, where nobody gives it."""

EXPECTED = "expected a torch optimizer's class, a memoryless.Method, or a function that makes one"


@dataclass(frozen=True)
class Named:
    """An optimizer as text names it, not made yet.

    Attributes:
        text: as given, for messages.
        path: the text without its options.
        target: what the path leads to.
        options: given in brackets.
    """

    text: str
    path: str
    target: Any
    options: Mapping[str, Any]

    @property
    def defaults(self) -> dict[str, Any]:
        """Its hyperparameters with their defaults, `inspect.Parameter.empty` where there is none."""
        if isinstance(self.target, Method):
            return dict(self.target.hyper)
        return {name: parameter.default for name, parameter in _parameters(self.target).items()}

    def given(self, **options: Any) -> "Named":
        """The same with further options; they win over those in the text.

        Args:
            **options: by name.
        """
        return replace(self, options={**self.options, **options})

    def method(self, shapes: Sequence[Sequence[int]], lr: float | None = None) -> AnyOptimizer:
        """A method in momentum form, or a black box of these shapes; one that takes matrices only leaves the others alone.

        Args:
            shapes: of the parameters.
            lr: where the options give none; None is a class's own default, 1e-3 for the catalogue.

        Raises:
            BadInput: it refuses an option, its value, or the shapes.
        """
        make = self._maker(lr)
        if isinstance(make, Method):
            return make
        probe = [nn.Parameter(torch.zeros(tuple(shape), dtype=torch.float64)) for shape in shapes]

        def whole() -> TorchMethod:
            self._over(probe, make)  # refuses in words that name the text
            return TorchMethod(make, shapes)

        return _or_matrices(probe, whole, lambda: TorchMethod(lambda parameters: make(_matrices(parameters)), shapes))

    def live(self, parameters: Iterable[Tensor], lr: float | None = None) -> Optimizer:
        """A torch optimizer over the trainable parameters, or over the matrices among them if it takes nothing else.

        Args:
            parameters: of a model.
            lr: where the options give none; None is a class's own default, 1e-3 for a method.

        Raises:
            BadInput: it refuses an option, its value, or the parameters.
        """
        trainable = [p for p in parameters if p.requires_grad]
        make = replace(self, target=TORCH.get(self.path, self.target))._maker(lr)
        if isinstance(make, Method):
            return MethodOptimizer(trainable, make)
        made = _or_matrices(trainable, lambda: self._over(trainable, make), lambda: self._over(_matrices(trainable), make))
        if not isinstance(made, Optimizer):
            raise BadInput(f"{self.text} makes a {type(made).__name__}; expected a torch optimizer")
        for group in made.param_groups:
            if not group.get("lr", LR) > 0:
                raise BadInput(f"{self.text}: lr must be positive, got {group['lr']}")
        return made

    def takes(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Whether it is made from parameters of all these shapes, rather than of the matrices alone.

        Args:
            shapes: of the parameters.
        """
        make = self._maker(None)
        try:
            return isinstance(make, Method) or bool(self._over([nn.Parameter(torch.zeros(tuple(s))) for s in shapes], make))
        except BadInput:
            return False

    def _maker(self, lr: float | None) -> Method | Callable[[list[Any]], Any]:
        """The method, or what makes an optimizer from parameters; options checked."""
        target: Any = self.target
        options = dict(self.options)
        if isinstance(target, Method):
            return target.with_hyper(**options) if options else target
        optimizer = _is_class(target, Optimizer)
        if not callable(target) or (_is_class(target, object) and not (optimizer or _is_class(target, Method))):
            what = "a class of another kind" if _is_class(target, object) else f"of type {type(target).__name__}"
            raise BadInput(f"{self.text} is {what}; {EXPECTED}")
        parameters = _parameters(target)
        free = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
        if unknown := [] if free else [name for name in options if name not in parameters]:
            known = ", ".join(name for name in parameters if name != "params")
            raise BadInput(f"{self.text}: no option '{unknown[0]}'; expected some of {known or 'none'}")
        if "lr" in parameters or free:
            if lr is None and not optimizer and (self.path in CATALOGUE or _required(parameters.get("lr"))):
                lr = LR
            options = ({} if lr is None else {"lr": lr}) | options
        needed = [name for name, parameter in parameters.items() if _required(parameter) and name not in options]
        if optimizer or needed == list(parameters)[:1] != []:
            return lambda parameters: target(parameters, **options)
        if needed:
            raise BadInput(f"{self.text} needs {', '.join(needed)}; write {self.path}({needed[0]}=...)")
        made = attempt(self.text, lambda: target(**options))
        if _is_class(made, Optimizer):
            return replace(self, target=made, options={})._maker(lr)
        if isinstance(made, Method) or (callable(made) and not _is_class(made, object)):
            return made
        raise BadInput(f"{self.text} returned {type(made).__name__}; {EXPECTED}")

    def _over(self, parameters: list[Any], make: Callable[[list[Any]], Any]) -> Any:
        return attempt(self.text, lambda: make(parameters))


def resolve(text: str) -> Named:
    """Find what a text names; nothing is made yet.

    Args:
        text: "adamw", "adamw(betas=(0.9, 0.95))", "torch.optim.Muon(lr=1e-3)", "module:name", "script.py:name".

    Raises:
        BadInput: not of that form, there is nothing of that name, or importing it fails.

    Example:
        >>> print(resolve("signum(momentum=0.95)").method([(2,)]))
        signum(lr=0.001, momentum=0.95)
        >>> print(resolve("torch.optim.Adamax(lr=0.1)").method([(2,)]))
        Adamax(lr=0.1, betas=(0.9, 0.999))
    """
    path, options = called(text)
    names = TORCH | CATALOGUE
    if path not in names and "." not in path and ":" not in path:
        known = ", ".join([*CATALOGUE, "sgd"])
        raise BadInput(f"unknown optimizer '{path}'; expected one of {known}, or torch.optim.NAME, module:NAME, script.py:NAME")
    return Named(text, path, names[path] if path in names else found(path), options)


def found(path: str) -> Any:
    """What is at a path; a script runs for it, its folder first on the path of imports.

    Args:
        path: "module.name", "module:name" or "path/to/script.py:name".

    Raises:
        BadInput: there is no such module, script or name, or running it fails; says where.
    """
    place, _, name = path.rpartition(":" if ":" in path else ".")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise BadInput(f"script not found: {place}")
        sys.path.insert(0, str(Path(place).resolve().parent))
        names = attempt(place, lambda: runpy.run_path(place))
        if name not in names:
            own = [key for key, value in names.items() if callable(value) and getattr(value, "__module__", "") == "<run_path>"]
            raise BadInput(f"no function '{name}' in {place}; it defines {', '.join(own) or 'none'}")
        return names[name]
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise BadInput(f"{path} not found: {error}") from error
    except (Exception, SystemExit) as error:
        raise _raised(place, error) from error
    if not hasattr(module, name):
        raise BadInput(f"{path} not found: {place} has no '{name}'")
    return getattr(module, name)


def attempt(what: str, action: Callable[[], Any]) -> Any:
    """Run the user's code, or code with the user's arguments; whatever it raises becomes one line.

    Args:
        what: is run, in words, with which the line begins.
        action: the code, a function without arguments.

    Returns:
        What the action returns.

    Raises:
        BadInput: it raised; says what and where, with the original behind it.
    """
    try:
        return action()
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        raise _raised(what, error) from error


def _raised(what: str, error: BaseException) -> BadInput:
    place = users_line(error)
    message = str(error).splitlines()[0] if str(error) else ""
    return BadInput(f"{what} raised {type(error).__name__}: {message}" + (f" ({place})" if place else ""))


def _or_matrices(parameters: list[Any], whole: Callable[[], Any], matrices: Callable[[], Any]) -> Any:
    """What `whole` gives; if it refuses some matrices among other parameters, what `matrices` gives, or the first refusal."""
    try:
        return whole()
    except BadInput:
        if 0 < len(_matrices(parameters)) < len(parameters):
            with suppress(BadInput):
                return matrices()
        raise


def _is_class(target: Any, base: type) -> bool:
    return isinstance(target, type) and issubclass(target, base)


def _matrices(parameters: Iterable[Any]) -> list[Any]:
    return [p for p in parameters if p.ndim == 2]


def _parameters(target: Any) -> Mapping[str, Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # not callable, or written in C
        return {}


def _required(parameter: Parameter | None) -> bool:
    if parameter is None or parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
        return False
    return parameter.default is Parameter.empty
