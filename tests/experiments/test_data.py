"""The loading of CIFAR-10 and WikiText-2, on small files of the same format and on a hub that is none."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from memoryless.errors import BadInput
from memoryless.experiments.cifar import MEAN, SPREAD, TEST, TRAIN, cifar10
from memoryless.experiments.text import FILES, documentation, wikitext

RANDOM = np.random.default_rng(0)
IMAGES, CLASSES = RANDOM.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8), RANDOM.integers(0, 10, 12, dtype=np.uint8)


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[Any]:
    """A package datasets whose every table is the answer, or which raises it."""
    asked: list[Any] = []

    def load_dataset(*names: str, split: str) -> Any:
        asked.append((*names, split))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


# CIFAR-10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = [bytes([c]) + image.tobytes() for c, image in zip(CLASSES, IMAGES, strict=True)]
    for k, name in enumerate(TRAIN + TEST):
        (tmp_path / name).write_bytes(b"".join(records[2 * k : 2 * k + 2]))
    return tmp_path


def expected(which: slice) -> torch.Tensor:
    mean, spread = (np.array(x)[:, None, None] for x in (MEAN, SPREAD))
    return torch.tensor((IMAGES[which] / 255 - mean) / spread)


@pytest.mark.parametrize(("train", "which"), [(True, slice(10)), (False, slice(10, 12))])
def test_binary_files(folder: Path, train: bool, which: slice):
    pixels, classes = cifar10(str(folder), train)
    assert torch.allclose(pixels.double(), expected(which), atol=1e-5)
    assert classes.tolist() == CLASSES[which].tolist()


def test_cifar_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    class Table:
        def with_format(self, name: str) -> "Table":
            assert name == "numpy"
            return self

        def __getitem__(self, rows: slice) -> dict[str, np.ndarray]:
            return {"img": np.moveaxis(IMAGES, 1, 3)[rows], "label": CLASSES[rows]}

    asked = hub(monkeypatch, Table())
    pixels, classes = cifar10("cifar10", train=False)
    assert asked == [("uoft-cs/cifar10", "test")]
    assert torch.allclose(pixels.double(), expected(slice(12)), atol=1e-5)
    assert classes.tolist() == CLASSES.tolist()


def test_bad_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadInput, match=r"--data nowhere: no such folder; expected cifar10, or a folder with data_batch_1\.bin"):
        cifar10("nowhere", True)
    (folder / TRAIN[0]).write_bytes((folder / TRAIN[0]).read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"data_batch_1\.bin is damaged: expected records of a class below 10 and 3072 pixels"):
        cifar10(str(folder), True)
    (folder / TRAIN[2]).unlink()
    (folder / TRAIN[0]).write_bytes((folder / TRAIN[1]).read_bytes())
    with pytest.raises(BadInput, match=r"no data_batch_3\.bin in the folder"):
        cifar10(str(folder), True)
    hub(monkeypatch, ConnectionError("no route"))
    with pytest.raises(BadInput, match=r"could not be loaded \(ConnectionError: no route\); try again, or give a folder"):
        cifar10("cifar10", True)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"needs the package datasets: pip install 'memoryless\[data\]'"):
        cifar10("cifar10", True)


# Text


def test_words_of_the_documentation():
    corpus = documentation(context=8, train=20, validation=5, vocabulary=30)
    assert [x.shape for x in (*corpus.train, *corpus.validation)] == [(20, 8), (20, 8), (5, 8), (5, 8)]
    assert torch.equal(corpus.train[0][:, 1:], corpus.train[1][:, :-1])
    assert int(torch.cat([*corpus.train, *corpus.validation]).max()) < corpus.vocabulary == 30
    rows = {tuple(row) for row in corpus.train[0].tolist()}
    assert not rows & {tuple(row) for row in corpus.validation[0].tolist()}


TRAINING, VALIDATION = " = Title = \n\n the cat sat\n", " the dog sat \n the cat\n"


def test_wikitext_files(tmp_path: Path):
    for name, text in zip(FILES, (TRAINING, VALIDATION), strict=True):
        (tmp_path / name).write_text(text)
    corpus = wikitext(str(tmp_path), context=3)
    # = 0, Title 1, <eos> 2, the 3, cat 4, sat 5, dog 6
    assert corpus.train[0].tolist() == [[0, 1, 0], [2, 2, 3]]
    assert corpus.train[1].tolist() == [[1, 0, 2], [2, 3, 4]]
    assert corpus.validation[0].tolist() == [[3, 6, 5], [2, 3, 4]]
    assert corpus.vocabulary == 7


def test_wikitext_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    asked = hub(monkeypatch, {"text": TRAINING.splitlines()})
    assert wikitext("wikitext-2", context=3).vocabulary == 6
    assert asked == [("Salesforce/wikitext", "wikitext-2-v1", split) for split in ("train", "validation")]


def test_bad_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadInput, match=r"no such folder; expected wikitext-2, or a folder with wiki\.train\.tokens and"):
        wikitext("nowhere")
    (tmp_path / FILES[0]).write_text("few")
    with pytest.raises(BadInput, match=r"no wiki\.valid\.tokens in the folder"):
        wikitext(str(tmp_path))
    (tmp_path / FILES[1]).write_text("few")
    with pytest.raises(BadInput, match="the text has 2 words, fewer than a window of 128"):
        wikitext(str(tmp_path))
    hub(monkeypatch, ConnectionError("no route"))
    with pytest.raises(BadInput, match=r"could not be loaded \(ConnectionError: no route\)"):
        wikitext("wikitext-2")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match="needs the package datasets"):
        wikitext("wikitext-2")
