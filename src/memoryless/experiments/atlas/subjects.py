"""The optimizers of the atlas, each with what it must be given besides a list of parameters.

Hyperparameters are the library's own defaults, but for a momentum where the default is to have none, storage in float64, and
what has no default.
"""

import importlib
import importlib.util
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.errors import BadInput
from memoryless.isolation import isolated
from memoryless.methods.black_box.torch_method import Lifted

Make = Callable[[list[nn.Parameter]], Optimizer]
LIBRARIES = ("torch", "pytorch_optimizer", "heavyball")
INSTALL = "pip install 'memoryless[atlas]'"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """An optimizer to be examined.

    Attributes:
        library: where it is from, one of `LIBRARIES`.
        name: of its class there.
        make: parameters -> the optimizer.
        given: what it was given, in words.
        needs: "gradient": that it finds in p.grad is enough; "closure" or "hessian": it evaluates the loss itself, or takes
            the diagonal of the loss's Hessian.
        remark: why the machine refuses it, if it does.
    """

    library: str
    name: str
    make: Make = field(repr=False)
    given: str = ""
    needs: str = "gradient"
    remark: str = ""

    def seeded(self, seed: int) -> Make:
        """Makes one that draws the same random numbers at each step, whatever the gradient and theta; it seeds all generators.

        Args:
            seed: of these numbers.
        """
        return partial(_seeded, self.make, seed)


def installed() -> list[str]:
    """The libraries that can be imported, torch first."""
    return [library for library in LIBRARIES if importlib.util.find_spec(library)]


def version_of(library: str) -> str:
    """The version of an installed library.

    Args:
        library: its name, as `pip` has it.
    """
    return version(library)


def names(library: str) -> list[str]:
    """Every optimizer of a library, in alphabetical order.

    Args:
        library: one of `LIBRARIES`, installed.
    """
    module = importlib.import_module("torch.optim" if library == "torch" else library)
    if library == "pytorch_optimizer":
        return sorted(module.get_supported_optimizers())
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, Optimizer)}
    return sorted(name for name in classes if name != "Optimizer" and name not in BASES)


def subject(library: str, name: str) -> Subject:
    """An optimizer of a library.

    Args:
        library: one of `LIBRARIES`, installed.
        name: from `names`.
    """
    if library == "heavyball":
        return _heavyball(name)
    if library == "torch":
        cls, table = getattr(torch.optim, name), TORCH
    else:
        cls, table = importlib.import_module(library).load_optimizer(name), PYTORCH_OPTIMIZER
    entry = table.get(name, {})
    if isinstance(entry, dict):
        return Subject(library, name, partial(_given, cls, **entry), _words(entry))
    return Subject(library, name, partial(entry.make, cls), entry.given, entry.needs, entry.remark)


@dataclass(frozen=True)
class Special:
    """How to make what a list of parameters and options do not make: (class, parameters) -> optimizer."""

    make: Callable[[Any, list[nn.Parameter]], Optimizer]
    given: str
    needs: str = "gradient"
    remark: str = ""


def _given(cls: Any, parameters: list[nn.Parameter], **options: Any) -> Optimizer:
    return cls(parameters, **options)


def _with_unit(cls: Any, parameters: list[nn.Parameter], **options: Any) -> Optimizer:
    """It has no learning rate: displacements are told in units of 1."""
    optimizer = cls(parameters, **options)
    for group in optimizer.param_groups:
        group.setdefault("lr", 1.0)
    return optimizer


def _matrices(cls: Any, parameters: list[nn.Parameter], **options: Any) -> Optimizer:
    chosen = [p for p in parameters if p.ndim >= 2]
    if not chosen:
        raise BadInput(f"{cls.__name__} is for matrices, and this problem has none")
    return cls(chosen, **options)


def _muon(cls: Any, parameters: list[nn.Parameter]) -> Optimizer:
    groups = [{"params": [p for p in parameters if (p.ndim >= 2) == flag], "use_muon": flag} for flag in (True, False)]
    return cls([group for group in groups if group["params"]])


def _distributed(make: Callable[[Any, list[nn.Parameter]], Optimizer]) -> Callable[[Any, list[nn.Parameter]], Optimizer]:
    def made(cls: Any, parameters: list[nn.Parameter]) -> Optimizer:
        import torch.distributed as dist

        if not dist.is_initialized():
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        return make(cls, parameters)

    return made


class _Model(nn.Module):
    """A model that has these parameters."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__()
        for i, p in enumerate(parameters):
            self.register_parameter(f"layer{i // 2}_{'bias' if i % 2 else 'weight'}", p)


def _of_model(cls: Any, parameters: list[nn.Parameter]) -> Optimizer:
    return _lifted(cls, _Model(parameters))


class _Done:
    """A loss whose gradients are there already."""

    def backward(self) -> None:
        pass


def _fused(cls: Any, parameters: list[nn.Parameter], **options: Any) -> Optimizer:
    """It steps in loss.backward(), or what it calls so: after that, what is left to do is a step."""

    def step(self: Any, closure: Any = None) -> None:
        self.fused_backward(_Done(), self.param_groups[0]["lr"])

    return _lifted(type(cls.__name__, (cls,), {"step": step}), _Model(parameters), **options)


def _lifted(cls: Any, *args: Any, **options: Any) -> Optimizer:
    """It mixes float32 of its own with the parameters' type and fails: float64 takes the place of float32."""

    def step(self: Any, closure: Any = None) -> None:
        with _double():
            cls.step(self)

    with _double():
        return type(cls.__name__, (cls,), {"step": step})(*args, **options)


def _gradient(p: nn.Parameter) -> Tensor:
    assert p.grad is not None
    return p.grad


def _accumulating(cls: Any, parameters: list[nn.Parameter]) -> Optimizer:
    """Its momentum is p.grad, which it must find again: nobody zeroes it."""

    def step(self: Any, closure: Any = None) -> None:
        held = [p for group in self.param_groups for p in group["params"]]
        for p in held:
            if (left := self.state[p].get("left")) is not None:
                _gradient(p).add_(left)
        cls.step(self)
        for p in held:
            self.state[p]["left"] = _gradient(p).clone()

    return type(cls.__name__, (cls,), {"step": step})(parameters)


def _sparse(cls: Any, parameters: list[nn.Parameter]) -> Optimizer:
    def step(self: Any, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = _gradient(p).to_sparse()
        cls.step(self)

    return type(cls.__name__, (cls,), {"step": step})(parameters)


LBFGS = "a frozen history gives it no curvature pair, any other gives it one: the update jumps there and has no derivative"


@contextmanager
def _double() -> Iterator[None]:
    """Float64 in place of every coarser type, asked for or not."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Lifted():
            yield
    finally:
        torch.set_default_dtype(before)


TORCH: dict[str, Any] = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9},
    "LBFGS": Special(partial(_given, max_iter=1), "a closure, max_iter=1", "closure", LBFGS),
    "Muon": Special(_matrices, "matrices only"),
    "SparseAdam": Special(_sparse, "the gradients as sparse tensors that hold every entry"),
}

PYTORCH_OPTIMIZER: dict[str, Any] = {
    "pid": {"momentum": 0.9},
    "qhm": {"momentum": 0.9, "nu": 0.7},
    "sara": {"threshold": 10.0, "lr": 1e-3},
    "sgd": {"momentum": 0.9},
    "sgdp": {"momentum": 0.9},
    "sgdw": {"momentum": 0.9},
    "rmsprop": {"momentum": 0.9},
    "shampoo": {"momentum": 0.9},
    "sm3": {"momentum": 0.9, "beta": 0.9},
    "fadam": {"momentum_dtype": torch.float64, "fim_dtype": torch.float64},
    "adafactor": {"momentum_dtype": torch.float64},
    "ranger21": {"num_iterations": 1000},
    "a2grad": Special(_with_unit, "no learning rate: displacements in units of 1"),
    "adago": Special(_muon, "use_muon for matrices"),
    "adahessian": Special(_given, "the exact diagonal of the Hessian in place of its random estimate", "hessian"),
    "adalomo": Special(
        partial(_fused, loss_scale=0.0),
        "loss_scale=0, a model, float64 in place of float32, and its gradients in place of a backward pass",
    ),
    "adammini": Special(_of_model, "a model, float64 in place of float32"),
    "adamuon": Special(_muon, "use_muon for matrices"),
    "alig": Special(
        partial(_with_unit, momentum=0.9), "a closure, momentum=0.9; no learning rate: displacements in units of 1", "closure"
    ),
    "bsam": Special(partial(_given, num_data=16), "a closure, num_data=16", "closure"),
    "demo": Special(
        _distributed(partial(_given, compression_top_k=2)),
        "a process group of one; compression_top_k=2, so that something is left over from small tensors",
    ),
    "distributedmuon": Special(_distributed(_muon), "a process group of one; use_muon for matrices"),
    "lbfgs": Special(partial(_given, max_iter=1), "a closure, max_iter=1", "closure", LBFGS),
    "lomo": Special(_fused, "a model, and its gradients in place of a backward pass"),
    "lorarite": Special(_matrices, "the two weight matrices as a pair of LoRA factors"),
    "muon": Special(_muon, "use_muon for matrices"),
    "muonclip": Special(_muon, "use_muon for matrices"),
    "normuon": Special(_muon, "use_muon for matrices"),
    "sophiah": Special(_given, "the exact diagonal of the Hessian in place of its random estimate", "hessian"),
    "scionlight": Special(_accumulating, "the gradient added to what it left in p.grad, as it asks for"),
    "spectralsphere": Special(_matrices, "matrices only"),
}

BASES = ("PSGDBase", "SOAPBase")
"""Classes of heavyball that others are made of."""


def _heavyball(name: str) -> Subject:
    module = importlib.import_module("heavyball")
    # Compiled steps take minutes to compile and no tangents.
    module.utils.compile_mode = None
    cls = getattr(module, name)
    double = {"storage_dtype": "float64"}

    def plain(parameters: list[nn.Parameter]) -> Optimizer:
        quantized = {"q_dtype": "float64"} if "q_dtype" in inspect.signature(cls).parameters else {}
        return cls(parameters, **double, **quantized)

    def split(parameters: list[nn.Parameter]) -> Optimizer:
        kinds = (module.Muon, [p for p in parameters if p.ndim >= 2]), (module.AdamW, [p for p in parameters if p.ndim < 2])
        specs = [{"params": chosen, "optimizer": kind} | double for kind, chosen in kinds if chosen]
        optimizer = cls(specs)
        optimizer.param_groups[0]["lr"] = optimizer.optimizers[0].param_groups[0]["lr"]
        return optimizer

    def wrapped(parameters: list[nn.Parameter]) -> Optimizer:
        optimizer = cls(parameters, module.AdamW(parameters, **double))
        optimizer.param_groups[0]["lr"] = optimizer.wrapped_optimizer.param_groups[0]["lr"]
        return optimizer

    if name == "SplitOpt":
        return Subject("heavyball", name, split, "Muon for matrices, AdamW for the rest")
    if name == "SAMWrapper":
        return Subject("heavyball", name, wrapped, "a closure, and AdamW to wrap", "closure")
    return Subject("heavyball", name, plain, "states in float64, not compiled")


def _words(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _seeded(make: Make, seed: int, parameters: list[nn.Parameter]) -> Optimizer:
    with isolated(CPU, seed):
        optimizer = make(parameters)
    cls: Any = type(optimizer)

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.steps_drawn = getattr(self, "steps_drawn", 0) + 1
        for start in (random.seed, np.random.seed, torch.manual_seed):
            start(1_000_000 * seed + self.steps_drawn)
        return cls.step(self, *args, **kwargs)

    optimizer.__class__ = type(cls.__name__, (cls,), {"step": step})
    return optimizer
