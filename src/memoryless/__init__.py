"""What does an optimizer's memory do to the loss? See https://arxiv.org/abs/2502.02132.

The public names, imported on first use: `memoryless --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memoryless import errors
    from memoryless.audits.ahead import look_ahead
    from memoryless.audits.audit import audit
    from memoryless.audits.compare import compare
    from memoryless.audits.maps import beta_map
    from memoryless.corrections.correction import correction
    from memoryless.corrections.expected.expected import expected_correction
    from memoryless.errors import NoModifiedLoss
    from memoryless.formulas.derive import derive
    from memoryless.formulas.modified_loss import modified_loss
    from memoryless.live.batch_sizes import audit_batch_sizes
    from memoryless.live.check.checking import check_step
    from memoryless.live.check.recording import recorded
    from memoryless.live.dial import dial
    from memoryless.live.monitoring.monitor import Monitor
    from memoryless.live.run import audit_run
    from memoryless.loss.loss import Loss
    from memoryless.loss.noise_scale import gradient_noise
    from memoryless.methods.black_box.torch_method import TorchMethod
    from memoryless.methods.catalogue import (
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
    from memoryless.methods.fading.memory import memory_kernel
    from memoryless.methods.live_optimizer import method_of
    from memoryless.methods.method import Method, Momentum
    from memoryless.paths.accuracy import order_of_accuracy
    from memoryless.paths.flow import modified_flow
    from memoryless.paths.trajectory import trajectory

_HOME = {
    "audits.audit": "audit",
    "audits.ahead": "look_ahead",
    "audits.maps": "beta_map",
    "audits.compare": "compare",
    "corrections.correction": "correction",
    "corrections.expected.expected": "expected_correction",
    "formulas.derive": "derive",
    "errors": "NoModifiedLoss",
    "formulas.modified_loss": "modified_loss",
    "live.batch_sizes": "audit_batch_sizes",
    "live.check.checking": "check_step",
    "live.check.recording": "recorded",
    "live.dial": "dial",
    "live.monitoring.monitor": "Monitor",
    "live.run": "audit_run",
    "loss.loss": "Loss",
    "loss.noise_scale": "gradient_noise",
    "methods.black_box.torch_method": "TorchMethod",
    "methods.catalogue": "Adam AdamW HeavyBall Lion LionK NAdam Nesterov RMSprop Signum",
    "methods.fading.memory": "memory_kernel",
    "methods.live_optimizer": "method_of",
    "methods.method": "Method Momentum",
    "paths.accuracy": "order_of_accuracy",
    "paths.flow": "modified_flow",
    "paths.trajectory": "trajectory",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = [
    "Adam",
    "AdamW",
    "HeavyBall",
    "Lion",
    "LionK",
    "Loss",
    "Method",
    "Momentum",
    "Monitor",
    "NAdam",
    "Nesterov",
    "NoModifiedLoss",
    "RMSprop",
    "Signum",
    "TorchMethod",
    "audit",
    "audit_batch_sizes",
    "audit_run",
    "beta_map",
    "check_step",
    "compare",
    "correction",
    "derive",
    "dial",
    "errors",
    "expected_correction",
    "gradient_noise",
    "look_ahead",
    "memory_kernel",
    "method_of",
    "modified_flow",
    "modified_loss",
    "order_of_accuracy",
    "recorded",
    "trajectory",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("memoryless.errors")
    if name not in _MODULE:
        raise AttributeError(f"module 'memoryless' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"memoryless.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
