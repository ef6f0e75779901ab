"""What a run trains on: one of the built-in problems with its test set, or a user's script."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memoryless.errors import BadInput, BadType
from memoryless.experiments import problems
from memoryless.experiments.script import load_setup
from memoryless.experiments.sweep.grid import FULL, Run
from memoryless.loss.batches import Batches, map_tensors, tensors, together
from memoryless.loss.scope import loss_in
from memoryless.methods.call import called
from memoryless.methods.named import attempt, found

CHUNK = 1024
"""Samples that are measured at a time."""


class Known(NamedTuple):
    """A built-in problem.

    Attributes:
        make: from a seed, a count of samples and a dtype.
        train: samples that are trained on, by default; as many again, or the rest, are the test set.
        most: samples that there are.
    """

    make: Callable[..., problems.Problem]
    train: int
    most: int


KNOWN = {
    "digits_mlp": Known(problems.digits_mlp, 1000, 1797),
    "digits_cnn": Known(problems.digits_cnn, 1000, 1797),
    "text_gpt": Known(problems.text_gpt, 64, 2**14),
}


class Work(NamedTuple):
    """A problem at the start of a run.

    Attributes:
        model: with its initial parameters.
        criterion: its mean loss on a batch.
        samples: the training set as one batch; None where a script's own batches are trained on.
        batches: the training set in parts, for what is measured on all of it.
        test: the test set in parts; None where there is none.
        optimizer: a script's own.
    """

    model: nn.Module
    criterion: Callable[[nn.Module, Any], Any]
    samples: Any
    batches: Sequence[Any]
    test: Sequence[Any] | None
    optimizer: Optimizer | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def mean(self, batch: Any) -> Tensor:
        """The criterion's scalar.

        Args:
            batch: of the training or the test set.

        Raises:
            BadType: it is none.
        """
        value = loss_in(self.criterion(self.model, batch))
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise BadType("criterion must return a scalar, the mean loss of the batch")
        return value.squeeze()


def work(run: Run, place: Callable[[str], str] = lambda target: target) -> Work:
    """Make the problem of a run; draws from torch's generators, seeded.

    Args:
        run: which.
        place: where its scripts are.

    Raises:
        BadInput: the problem, its script or the size of its batches is not as expected.
    """
    path, options = called(run.problem)
    made = _known(run, path, options) if path in KNOWN else _script(run, place)
    _require(made, run)
    return made


def _known(run: Run, path: str, options: dict[str, Any]) -> Work:
    known, dtype, device = KNOWN[path], getattr(torch, run.dtype), torch.device(run.device)
    count = options.pop("count", known.train)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < known.most:
        raise BadInput(f"{run.problem}: count must lie in 1..{known.most - 1}, the rest is the test set, got {count!r}")
    whole = min(2 * count, known.most)
    model, criterion, (everything,) = attempt(run.problem, lambda: known.make(run.seed, count=whole, dtype=dtype, **options))
    everything = map_tensors(lambda x: x.to(device), everything)
    train, test = (map_tensors(lambda x, part=part: x[part], everything) for part in (slice(count), slice(count, None)))
    return Work(model.to(device), criterion, train, parts(train), parts(test), None)


def _script(run: Run, place: Callable[[str], str]) -> Work:
    device, own = torch.device(run.device), None
    model, criterion, source, optimizer = load_setup(place(run.problem), run.seed)
    if run.device != "cpu":
        model.to(device)

    def read(source: Any, what: str) -> list[Any]:
        batches = Batches(source, device)
        try:
            batches.require_indexed()
        except BadInput:
            raise BadInput(
                f"{what} gives other batches each time it is asked, so that no run could be had again: give a list of batches, "
                "or a loader that does not shuffle; a sweep draws the order by the seed"
            ) from None
        return [map_tensors(lambda x: x.to(device), data) for _, data in batches.select(None)]

    batches, test = read(source, run.problem), None
    if run.test is not None:
        function = found(place(run.test))
        test = read(attempt(run.test, function), run.test)
    if run.batch_size is not None:
        own = together(batches)
        batches = parts(own)
    return Work(model, criterion, own, batches, test, optimizer)


def _require(made: Work, run: Run) -> None:
    if not made.parameters:
        raise BadInput(f"{run.problem}: the model has no parameter to train")
    if isinstance(run.batch_size, int) and run.batch_size > (count := size(made.samples)):
        raise BadInput(f"batch_size {run.batch_size} is more than the {count} samples of {run.problem}")


def size(batch: Any) -> int:
    """Samples of a batch, along the first dimension of its first tensor.

    Args:
        batch: with tensors.
    """
    return len(tensors(batch)[0])


def parts(data: Any) -> list[Any]:
    """A batch in parts of about equal size, at most `CHUNK` samples each.

    Args:
        data: one batch of all samples.
    """
    bounds = np.linspace(0, size(data), math.ceil(size(data) / CHUNK) + 1).round().astype(int)
    return [map_tensors(lambda x, low=low, high=high: x[low:high], data) for low, high in itertools.pairwise(bounds)]


class Order:
    """The batch of each step: known from the seed and the step alone, so that a run goes on anywhere.

    Each epoch is a new permutation of the samples, or of a script's batches; a remainder of samples is left out.

    Args:
        made: the problem.
        run: its batch size and seed.
    """

    def __init__(self, made: Work, run: Run):
        self._made, self._seed, self._epoch = made, run.seed, (-1, np.empty(0, int))
        self._size = 1 if run.batch_size is None else size(made.samples) if run.batch_size == FULL else int(run.batch_size)
        self._full = run.batch_size == FULL
        self._count = len(made.batches) if run.batch_size is None else size(made.samples)

    def __getitem__(self, step: int) -> Any:
        """The batch of a step."""
        if self._full:
            return self._made.samples
        epoch, k = divmod(step, self._count // self._size)
        if self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng([self._seed, epoch]).permutation(self._count)
        rows = self._epoch[1][k * self._size : (k + 1) * self._size]
        if self._made.samples is None:
            return self._made.batches[int(rows[0])]
        index = torch.from_numpy(rows)
        return map_tensors(lambda x: x[index.to(x.device)], self._made.samples)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, each module put back as it was.

    Args:
        model: to measure.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def measure(made: Work, what: Sequence[str]) -> dict[str, float]:
    """What is recorded, in evaluation mode, on all of the training and test set.

    Parts of a training set that was one batch count by their samples, a script's own batches alike.

    Args:
        made: the problem as it is now.
        what: of `grid.MEASURES`.
    """
    found: dict[str, float] = {}
    with evaluating(made.model):
        if "gradient_1_norm" in what:
            loss, gradient = 0.0, [torch.zeros_like(p) for p in made.parameters]
            for share, batch in _shares(made, made.batches):
                value = share * made.mean(batch)
                for total, g in zip(gradient, torch.autograd.grad(value, made.parameters, allow_unused=True), strict=True):
                    total += 0 if g is None else g
                loss += float(value.detach())
            found["gradient_1_norm"] = float(sum(g.abs().sum().double() for g in gradient))
            found["train_loss"] = loss
        with torch.no_grad():
            if "train_loss" in what and "train_loss" not in found:
                found["train_loss"] = sum(share * float(made.mean(batch)) for share, batch in _shares(made, made.batches))
            if made.test is not None and "test_loss" in what:
                found["test_loss"] = sum(share * float(made.mean(batch)) for share, batch in _shares(made, made.test))
            if made.test is not None and "test_accuracy" in what:
                right = [(made.model(x).argmax(-1) == y).double().mean() for x, y in made.test]
                found["test_accuracy"] = float(sum(s * r for (s, _), r in zip(_shares(made, made.test), right, strict=True)))
    return {name: found[name] for name in what}


def _shares(made: Work, batches: Sequence[Any]) -> Iterator[tuple[float, Any]]:
    alike = made.samples is None or not tensors(batches[0])
    sizes = [1 if alike else size(batch) for batch in batches]
    for count, batch in zip(sizes, batches, strict=True):
        yield count / sum(sizes), batch
