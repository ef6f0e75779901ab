"""Data as loaders give them: what an index names, what is drawn anew, what never ends, what is smaller than the rest."""

import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

import memoryless as ml
from memoryless.loss import batches as module

X, Y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(40) % 2
SAMPLES = TensorDataset(X, Y)


def criterion(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def loss_of(source: Any) -> ml.Loss:
    return ml.Loss(nn.Linear(3, 2), criterion, source)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Adds noise to each sample as it is asked for."""

    def __init__(self, noise: Callable[[], Tensor]):
        self.noise = noise

    def __len__(self) -> int:
        return len(SAMPLES)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] + 0.3 * self.noise(), Y[index]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """So many samples in a row; without end if None."""

    def __init__(self, count: int | None):
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        indices = itertools.count() if self.count is None else range(self.count)
        return ((X[i % 40], Y[i % 40]) for i in indices)


def own_numpy() -> Any:
    rng = np.random.default_rng(0)
    return DataLoader(Augmented(lambda: torch.from_numpy(rng.standard_normal(3))), batch_size=10)


def own_torch() -> Any:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(Augmented(lambda: torch.randn(3, generator=generator)), batch_size=10)


def own_python() -> Any:
    rng = random.Random(0)
    return DataLoader(Augmented(lambda: torch.tensor([rng.gauss() for _ in range(3)])), batch_size=10)


class OwnSampler:
    """Permutations from NumPy's own generator, as samplers by length do."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(SAMPLES)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rng.permutation(len(SAMPLES)).tolist())


DRAWN_ANEW = {
    "NumPy's generator": own_numpy,
    "torch's": own_torch,
    "Python's": own_python,
    "a sampler's": lambda: DataLoader(SAMPLES, batch_size=10, sampler=OwnSampler()),  # pyright: ignore[reportArgumentType]
}
COMMANDS: dict[str, Callable[[ml.Loss, torch.optim.Optimizer], Any]] = {
    "audit": lambda loss, optimizer: ml.audit(optimizer, loss),
    "audit_run": lambda loss, optimizer: ml.audit_run(optimizer, loss, 3),
    "audit_run, batches": lambda loss, optimizer: ml.audit_run(optimizer, loss, [0, 1, 2, 3]),
    "compare": lambda loss, optimizer: ml.compare([ml.AdamW()], loss, steps=2),
    "correction": lambda loss, optimizer: ml.correction(ml.AdamW(), loss),
    "expected_correction": lambda loss, optimizer: ml.expected_correction(ml.AdamW(), loss, step=3),
    "gradient_noise": lambda loss, optimizer: ml.gradient_noise(loss),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("source", DRAWN_ANEW)
def test_what_a_generator_of_its_own_draws_anew_is_refused_by_every_command(source, command):
    loss = loss_of(DRAWN_ANEW[source]())
    assert loss.model is not None
    with pytest.raises(ml.errors.BadInput, match="batch 0 is another each time it is asked for"):
        COMMANDS[command](loss, torch.optim.AdamW(loss.model.parameters()))


SHUFFLED: dict[str, Callable[[], Any]] = {
    "shuffle": lambda: DataLoader(SAMPLES, batch_size=10, shuffle=True),
    "its own generator": lambda: DataLoader(SAMPLES, batch_size=10, shuffle=True, generator=torch.Generator()),
    "a sampler with replacement": lambda: DataLoader(SAMPLES, batch_size=10, sampler=RandomSampler(X, replacement=True)),
    "a weighted sampler": lambda: DataLoader(SAMPLES, batch_size=10, sampler=WeightedRandomSampler([0.1, 0.9] * 20, 40)),
    "torch's augmentation": lambda: DataLoader(Augmented(lambda: torch.randn(3)), batch_size=10),
    "NumPy's augmentation": lambda: DataLoader(Augmented(lambda: torch.from_numpy(np.random.randn(3))), batch_size=10),
}


@pytest.mark.parametrize("source", SHUFFLED)
def test_an_index_into_a_shuffled_epoch_names_nothing_and_is_refused(source):
    loss = loss_of(SHUFFLED[source]())
    assert loss.model is not None
    optimizer = torch.optim.AdamW(loss.model.parameters())
    for use in (
        lambda: ml.audit(optimizer, loss, batches=[0, 1, 2]),
        lambda: ml.correction(ml.AdamW(), loss, batches=[0, 1, 2]),
        lambda: ml.audit_run(optimizer, loss, [0, 1, 2]),
    ):
        with pytest.raises(ml.errors.BadInput, match=r"batch 0 depends on random numbers .* keep the batches"):
            use()
    ml.correction(ml.AdamW(), loss)  # the mean over an epoch needs no index


def test_batches_kept_from_shuffled_epochs_are_those_of_the_run():
    loader = DataLoader(SAMPLES, batch_size=10, shuffle=True)
    model = nn.Linear(3, 2)
    optimizer, seen, past = torch.optim.AdamW(model.parameters()), [], []
    for batch in itertools.chain(loader, loader):
        seen.append(batch)
        past.append([p.detach().clone() for p in model.parameters()])
        optimizer.zero_grad()
        criterion(model, batch).backward()
        optimizer.step()
    before, after = (torch.cat([p.reshape(-1) for p in at]) for at in (past[-1], [p.detach() for p in model.parameters()]))
    twin = nn.Linear(3, 2)
    twin.load_state_dict(dict(zip(twin.state_dict(), past[0], strict=True)))
    loss = ml.Loss(twin, criterion, seen)
    found = ml.audit_run(torch.optim.AdamW(twin.parameters()), loss, range(8), stops=[7], compare=(), betas=None)
    vectors = found.stops[0].audit
    assert vectors.measured is not None
    torch.testing.assert_close(before - vectors.lr * (vectors.F + vectors.measured), after, rtol=1e-12, atol=1e-14)


class Repeated:
    """A data set that starts again when it is through, as streaming ones are told to."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle([(X, Y)])


class Crops:
    """Random windows of a token file for ever, nanoGPT's get_batch."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            i = int(torch.randint(0, 20, ()))
            yield X[i : i + 10], Y[i : i + 10]


@pytest.mark.parametrize("source", [DataLoader(Stream(None), batch_size=8), Repeated(), Crops()])
def test_a_stream_without_end_asks_for_a_number_at_once(source):
    start = time.monotonic()
    with pytest.raises(ml.errors.BadInput, match=r"go on after [\d,]+: say how many, such as list\(itertools.islice\(batches"):
        loss_of(source)
    assert time.monotonic() - start < 2 * module.PATIENCE


def test_a_stream_with_an_end_is_counted():
    loss = loss_of(DataLoader(Stream(20), batch_size=8))
    assert len(loss) == 3
    expected = torch.stack([criterion(loss.model, b) for b in zip(X[:20].split(8), Y[:20].split(8), strict=True)])  # pyright: ignore[reportArgumentType]
    assert loss(loss.theta).item() == pytest.approx(expected.mean().item(), rel=1e-14)


class Lying(Stream):
    def __len__(self) -> int:
        return 40


def test_a_length_that_is_not_true_is_told():
    loss = loss_of(DataLoader(Lying(20), batch_size=10))
    with pytest.raises(ml.errors.BadInput, match="batches ended after 2, where their length says 4"):
        loss.gradient(loss.theta)


class Counted:
    """A loader that counts how often it is started: with workers each start is dear."""

    def __init__(self, batches: list[Any]):
        self.batches, self.starts = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.starts += 1
        return iter(self.batches)


def audited(source: Any) -> ml.Loss:
    loss = loss_of(source)
    assert loss.model is not None
    ml.audit_run(torch.optim.AdamW(loss.model.parameters()), loss, 5)
    return loss


def test_a_loader_is_started_three_times_in_all(monkeypatch):
    source = Counted(list(zip(X.split(10), Y.split(10), strict=True)))
    audited(source)
    assert source.starts == 3  # read once, and twice at its head to see that it is the same again
    monkeypatch.setattr(module, "HELD", 1000)
    loss = audited(source)
    assert source.starts > 10  # what does not fit is streamed
    assert torch.equal(loss.gradient(loss.theta, 3), loss.on(loss.model, source.batches).gradient(loss.theta, 3))


@pytest.mark.parametrize(
    ("sizes", "note"),
    [((12, 12, 12, 4), "batches of 4 to 12 samples"), ((10, 10, 10, 10), None), ((39, 1), "batches of 1 to 39 samples")],
)
def test_a_ragged_batch_is_noted(sizes, note):
    source = list(zip(X.split(sizes), Y.split(sizes), strict=True))
    loss = loss_of(source)
    assert loss.model is not None
    notes = " ".join(ml.audit(torch.optim.AdamW(loss.model.parameters()), loss).validity.notes)
    assert (note in notes) if note else ("samples" not in notes)
