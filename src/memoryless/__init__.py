"""What does an optimizer's memory do to the loss? See https://arxiv.org/abs/2502.02132.

The public names, imported on first use: `memoryless --help` does not wait for torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memoryless.accuracy import Accuracy, order_of_accuracy
    from memoryless.audit import Audit, audit
    from memoryless.batch_sizes import BatchSizes, batch_sizes
    from memoryless.beta_map import BetaMap, beta_map
    from memoryless.black_box import TorchMethod
    from memoryless.compare import Compared, compare
    from memoryless.correction import Correction, correction
    from memoryless.derivation import Derivation
    from memoryless.derive import derive
    from memoryless.fading import MemoryProfile
    from memoryless.flow import ModifiedFlow, integrate, modified_flow
    from memoryless.gradient_noise import GradientNoise, gradient_noise
    from memoryless.guard import CurvatureWarning
    from memoryless.kernel import NeverForgets
    from memoryless.loss import Diverged, Loss, NotFinite
    from memoryless.method import Groups, Method, Momentum
    from memoryless.methods import (
        Adam,
        AdamW,
        HeavyBall,
        Lion,
        LionK,
        NAdam,
        Nesterov,
        RMSprop,
        Signum,
    )
    from memoryless.modified import ModifiedLoss, NoModifiedLoss, modified_loss
    from memoryless.noise import ExpectedCorrection, TooFewSamples, expected_correction
    from memoryless.profile import memory_profile
    from memoryless.replay import Replay, replay
    from memoryless.run import Run, audit_run
    from memoryless.sampling import Samples
    from memoryless.shadow import Shadow
    from memoryless.symbolic import NotDerivable
    from memoryless.torch_method import NotRecognised, method_of
    from memoryless.trajectory import trajectory

_HOME = {
    "accuracy": "Accuracy order_of_accuracy",
    "audit": "Audit audit",
    "batch_sizes": "BatchSizes batch_sizes",
    "beta_map": "BetaMap beta_map",
    "black_box": "TorchMethod",
    "compare": "Compared compare",
    "correction": "Correction correction",
    "derivation": "Derivation",
    "derive": "derive",
    "fading": "MemoryProfile",
    "flow": "ModifiedFlow integrate modified_flow",
    "gradient_noise": "GradientNoise gradient_noise",
    "guard": "CurvatureWarning",
    "kernel": "NeverForgets",
    "loss": "Diverged Loss NotFinite",
    "method": "Groups Method Momentum",
    "methods": "Adam AdamW HeavyBall Lion LionK NAdam Nesterov RMSprop Signum",
    "modified": "ModifiedLoss NoModifiedLoss modified_loss",
    "noise": "ExpectedCorrection TooFewSamples expected_correction",
    "profile": "memory_profile",
    "replay": "Replay replay",
    "run": "Run audit_run",
    "sampling": "Samples",
    "shadow": "Shadow",
    "symbolic": "NotDerivable",
    "torch_method": "NotRecognised method_of",
    "trajectory": "trajectory",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = [
    "Accuracy",
    "Adam",
    "AdamW",
    "Audit",
    "BatchSizes",
    "BetaMap",
    "Compared",
    "Correction",
    "CurvatureWarning",
    "Derivation",
    "Diverged",
    "ExpectedCorrection",
    "GradientNoise",
    "Groups",
    "HeavyBall",
    "Lion",
    "LionK",
    "Loss",
    "MemoryProfile",
    "Method",
    "ModifiedFlow",
    "ModifiedLoss",
    "Momentum",
    "NAdam",
    "Nesterov",
    "NeverForgets",
    "NoModifiedLoss",
    "NotDerivable",
    "NotFinite",
    "NotRecognised",
    "RMSprop",
    "Replay",
    "Run",
    "Samples",
    "Shadow",
    "Signum",
    "TooFewSamples",
    "TorchMethod",
    "audit",
    "audit_run",
    "batch_sizes",
    "beta_map",
    "compare",
    "correction",
    "derive",
    "expected_correction",
    "gradient_noise",
    "integrate",
    "memory_profile",
    "method_of",
    "modified_flow",
    "modified_loss",
    "order_of_accuracy",
    "replay",
    "trajectory",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'memoryless' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"memoryless.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing memoryless.audit would bind the module over the function of the same name: the public name wins.
        if not (name in _MODULE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
