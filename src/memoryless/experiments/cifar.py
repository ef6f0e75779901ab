"""CIFAR-10: colour images of ten kinds of things, from the Hugging Face hub or from a folder with its binary version.

Krizhevsky (2009), https://www.cs.toronto.edu/~kriz/cifar.html. The binary version is six files of records, each one byte of
class and 3 x 32 x 32 bytes of pixels, channel by channel.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memoryless.errors import BadInput

TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = ("test_batch.bin",)
PIXELS = 3 * 32 * 32
MEAN, SPREAD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of each channel over the training images."""


def cifar10(source: str, train: bool) -> tuple[Tensor, Tensor]:
    """The images, each channel shifted and scaled by `MEAN` and `SPREAD`, and their classes.

    Args:
        source: "cifar10", from the hub, which takes the package datasets; or a folder with the files of the binary version.
        train: the 50,000 training images; else the 10,000 test images.

    Returns:
        float32 (n, 3, 32, 32) and int64 (n,).

    Raises:
        BadInput: no such data, or a damaged file.
    """
    pixels, classes = _hub(train) if source == "cifar10" else _folder(Path(source), TRAIN if train else TEST)
    mean, spread = (torch.tensor(x)[:, None, None] for x in (MEAN, SPREAD))
    return (torch.tensor(pixels).float() / 255 - mean) / spread, torch.tensor(classes).long()


def _hub(train: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    instead = f"or give a folder with {TRAIN[0]} to {TRAIN[-1]} and {TEST[0]}"
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise BadInput(f"--data cifar10 needs the package datasets: pip install 'memoryless[data]', {instead}") from None
    try:
        found = load_dataset("uoft-cs/cifar10", split="train" if train else "test").with_format("numpy")[:]
    except Exception as error:  # whatever the hub's client, its transport or its cache raise
        raise BadInput(f"--data cifar10 could not be loaded ({type(error).__name__}: {error}); try again, {instead}") from error
    return np.moveaxis(np.asarray(found["img"]), 3, 1), np.asarray(found["label"])


def _folder(folder: Path, names: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if not folder.is_dir():
        raise BadInput(f"--data {folder}: no such folder; expected cifar10, or a folder with {', '.join(TRAIN + TEST)}")
    records = []
    for path in (folder / name for name in names):
        if not path.is_file():
            raise BadInput(f"--data {folder}: no {path.name} in the folder")
        data = np.fromfile(path, np.uint8)
        if not len(data) or len(data) % (PIXELS + 1) or data[:: PIXELS + 1].max() > 9:
            raise BadInput(
                f"{path} is damaged: expected records of a class below 10 and {PIXELS} pixels, got {len(data)} bytes"
            )
        records.append(data.reshape(-1, PIXELS + 1))
    every = np.concatenate(records)
    return every[:, 1:].reshape(-1, 3, 32, 32), every[:, 0]
