"""Images of handwritten digits: scikit-learn's, MNIST from the Hugging Face hub, or MNIST's own files."""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memoryless.errors import BadInput

COUNT = 10_000
"""MNIST-10K: the first images of the training set."""
FILES = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


class Images(NamedTuple):
    """Pixels in [0, 1], shape (count, pixels), the class of each image, shape (count,), and a name for the whole."""

    name: str
    pixels: NDArray[np.float64]
    classes: NDArray[np.int64]


def load(source: str) -> Images:
    """The first images of a data set: 1000 of scikit-learn's digits, or 10,000 of MNIST.

    Args:
        source: "digits"; "mnist", from the hub, which takes the package datasets; or a folder with MNIST's two training files
            in the IDX format, gzipped or not.

    Returns:
        The images.

    Raises:
        BadInput: no such data, or files that are damaged or do not fit together.

    Example:
        >>> load("digits").pixels.shape
        (1000, 64)
    """
    if source == "digits":
        from memoryless.experiments.problems import digits

        pixels, classes = digits()
        return Images("digits of scikit-learn", pixels.numpy(), classes.numpy())
    return _scaled(source, *(_hub() if source == "mnist" else _folder(Path(source))))


def _scaled(source: str, images: NDArray[np.uint8], classes: NDArray[np.integer]) -> Images:
    if images.ndim != 3 or classes.ndim != 1 or not 0 < len(images) == len(classes):
        raise BadInput(
            f"--data {source}: expected images of shape (count, height, width) and as many classes, "
            f"got {images.shape} and {classes.shape}"
        )
    pixels = images[:COUNT].reshape(len(images[:COUNT]), -1) / 255
    return Images(f"MNIST of {source}" if source != "mnist" else "MNIST", pixels, classes[:COUNT].astype(np.int64))


def _hub() -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    instead = f"or give a folder with {' and '.join(FILES)}"
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise BadInput(f"--data mnist needs the package datasets: pip install 'memoryless[data]', {instead}") from None
    try:
        found = load_dataset("ylecun/mnist", split=f"train[:{COUNT}]").with_format("numpy")[:]
    except Exception as error:  # whatever the hub's client, its transport or its cache raise
        raise BadInput(f"--data mnist could not be loaded ({type(error).__name__}: {error}); try again, {instead}") from error
    return found["image"], found["label"]


def _folder(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if not folder.is_dir():
        raise BadInput(f"--data {folder}: no such folder; expected digits, mnist, or a folder with {' and '.join(FILES)}")
    found = []
    for name in FILES:
        paths = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not paths:
            raise BadInput(f"--data {folder}: no {name} or {name}.gz in the folder")
        found.append(read_idx(paths[0]))
    images, classes = found
    return images, classes


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of unsigned bytes in MNIST's IDX format, http://yann.lecun.com/exdb/mnist/.

    Two zero bytes, 8 for unsigned bytes, the number of dimensions, each size as a big-endian 32-bit integer, the data.

    Args:
        path: gzipped if it ends in .gz.

    Returns:
        The array.

    Raises:
        BadInput: it cannot be read, is damaged, or of another format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise BadInput(f"{path} is damaged or not a gzip file") from None
    dims = data[3] if len(data) > 3 else 0
    start = 4 + 4 * dims
    if data[:3] != b"\0\0\x08" or len(data) < start:
        raise BadInput(f"{path} is not an IDX file of unsigned bytes; it begins with {data[:4].hex(' ') or 'nothing'}")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", dims, offset=4))
    if len(data) - start != (size := int(np.prod(shape))):
        raise BadInput(f"{path} is damaged: its header promises {size} bytes of data, it has {len(data) - start}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
