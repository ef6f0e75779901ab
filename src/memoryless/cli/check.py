"""memoryless check."""

import itertools
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from memoryless.cli import answer
from memoryless.cli.files import command, writable, write
from memoryless.cli.options import device_of, dtype_of, progress, there
from memoryless.errors import BadInput, BadType


@dataclass
class Check:
    """Check the steps of a short run: is each the one that its optimizer documents, and if not, why?

    Such as: memoryless check train.py:setup --steps 20

    Exit code: 0 where all steps are the documented ones, 1 where one is not, 2 where the input is bad or a step could not be
    checked.
    """

    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")] = "digits"
    """SCRIPT.py:FUNCTION such as train.py:setup; setup() returns model, criterion, batches, optimizer. Default: digits, a small
    GELU network on the digits images that scikit-learn carries."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """To start from: a file with the state dicts of model and optimizer, or the folder of a Trainer's checkpoint."""
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="OPTIMIZER")] = None
    """Such as "adamw(lr=1e-3)" or torch.optim.Adamax. Default: the script's, or adamw."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="OPTIMIZER")] = None
    """Whose step is documented, such as torch.optim.AdamW, for an optimizer of one's own. Default: the nearest of torch's."""
    steps: int = 20
    """Steps to take and check, one batch each."""
    seed: int = 0
    """Of the initial parameters."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    dtype: Annotated[str | None, tyro.conf.arg(metavar="DTYPE")] = None
    """float32 or float64. Default: the problem's own."""
    json: bool = False
    """Print JSON instead of tables."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Page to write. Only a page that memoryless wrote is overwritten."""

    def run(self) -> None:
        """Take the steps, check and show them."""
        page = writable("--html", self.html)
        there(self.problem, self.checkpoint)
        if self.steps < 1:
            raise BadInput(f"--steps must be at least 1, got {self.steps}")

        with progress("steps") as on_step:
            device, dtype = device_of(self.device), dtype_of(self.dtype)
            from memoryless.live.check.checking import check_step
            from memoryless.live.check.step_check import StepChecks

            model, criterion, batches, optimizer, about = self._work(device, dtype)
            check = check_step(optimizer, model, criterion, self._reference())
            off, unchecked, wrong, open_ = [], [], None, None
            endless = (batch for _ in itertools.repeat(None) for _, batch in batches.select(None))
            for n, batch in enumerate(itertools.islice(endless, self.steps)):
                optimizer.zero_grad()
                with check.at([batch]):
                    _scalar(criterion(model, batch)).backward()
                    optimizer.step()
                assert check.result is not None
                if check.result.ok is False:
                    off.append(n)
                    wrong = wrong or check.result
                elif check.result.ok is None:
                    unchecked.append(n)
                    open_ = open_ or check.result
                on_step(n + 1, self.steps)
        assert check.result is not None
        told = {"problem": about, "optimizer": type(optimizer).__name__, "seed": str(self.seed), "command": command()}
        checks = StepChecks(self.steps, tuple(off), wrong or open_ or check.result, told, tuple(unchecked))
        if self.json:
            answer.say(checks.to_json())
        else:
            from memoryless.report.check import print_checks

            print_checks(checks, answer.console())
        if page is not None:
            write(page, checks.to_html())
        if not checks.ok:
            raise SystemExit(2 if checks.ok is None else 1)

    def _work(self, device: Any, dtype: Any) -> tuple[Any, Any, Any, Any, str]:
        """Model, criterion, batches, optimizer, and the problem in words."""
        import torch

        from memoryless.cli import setup
        from memoryless.loss.batches import Batches

        if ":" in self.problem and (device, dtype, self.optimizer, self.checkpoint) == (None, None, None, None):
            # As it is: parameters of half precision, which no audit takes, are what a step may founder on.
            model, criterion, batches, optimizer = setup.load_setup(self.problem, self.seed)
            device = next((p.device for group in optimizer.param_groups for p in group["params"]), torch.device("cpu"))
            return model, criterion, Batches(batches, device), optimizer, self.problem
        work = setup.load(self.problem, self.seed, setup.MINI_BATCHES, device, dtype)
        loss = work.loss
        optimizer = setup.optimizer_of(work, self.optimizer, "adamw", self.checkpoint)
        return loss.model, loss.criterion, loss.batches, optimizer, work.about

    def _reference(self) -> Any:
        if self.reference is None:
            return None
        from torch.optim import Optimizer

        from memoryless.methods.named import found

        cls = found(self.reference) if {".", ":"} & set(self.reference) else None
        if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
            raise BadInput(f"--reference {self.reference} is no class of optimizer; expected such as torch.optim.AdamW")
        return cls


def _scalar(output: Any) -> Any:
    """The loss in what a criterion returned, to be differentiated."""
    from torch import Tensor

    from memoryless.loss.scope import loss_in

    value = loss_in(output)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise BadType(f"criterion must return a scalar that depends on the parameters, got {got}; take the mean over the batch")
    return value
