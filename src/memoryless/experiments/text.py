"""Text as words: of Python's own documentation, or of WikiText-2."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from memoryless.errors import BadInput

FILES = "wiki.train.tokens", "wiki.valid.tokens"


class Corpus(NamedTuple):
    """Windows of words by number: inputs and the words after them, (n, context) each, for training and for validation."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    vocabulary: int


def documentation(context: int = 32, train: int = 256, validation: int = 128, vocabulary: int = 512) -> Corpus:
    """Words and signs of `pydoc_data.topics`, which every Python carries; all but the most frequent are one.

    Args:
        context: words of a window.
        train: windows.
        validation: windows, drawn from between those for training.
        vocabulary: of words.
    """
    from pydoc_data.topics import topics

    words = re.findall(r"\w+|[^\w\s]", "\n".join(topics[key] for key in sorted(topics)))
    known = {word: i for i, (word, _) in enumerate(Counter(words).most_common(vocabulary - 1), 1)}
    inputs, targets = windows([known.get(word, 0) for word in words[: (train + validation) * context + 1]], context)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    first, second = order[:train], order[train:]
    return Corpus((inputs[first], targets[first]), (inputs[second], targets[second]), vocabulary)


def wikitext(source: str, context: int = 128) -> Corpus:
    """WikiText-2 (Merity et al. 2017, https://arxiv.org/abs/1609.07843), its words as they are split, each line with an end.

    Args:
        source: "wikitext-2", from the hub, which takes the package datasets; or a folder with its two files.
        context: words of a window.

    Raises:
        BadInput: no such data.
    """
    parts = [[word for line in lines for word in (*line.split(), "<eos>")] for lines in _lines(source)]
    known = {word: i for i, word in enumerate(dict.fromkeys(parts[0] + parts[1]))}
    train, validation = (windows([known[word] for word in words], context) for words in parts)
    return Corpus(train, validation, len(known))


def windows(numbers: list[int], context: int) -> tuple[Tensor, Tensor]:
    """Inputs and the numbers after them, (n, context) each; a remainder is left out.

    Args:
        numbers: a text.
        context: length of a window.

    Raises:
        BadInput: it is shorter than a window.

    Example:
        >>> windows([1, 2, 3, 4, 5, 6], 2)
        (tensor([[1, 2],
                [3, 4]]), tensor([[2, 3],
                [4, 5]]))
    """
    count = (len(numbers) - 1) // context
    if count < 1:
        raise BadInput(f"the text has {len(numbers)} words, fewer than a window of {context} and the word after it")
    tokens = torch.tensor(numbers[: count * context + 1])
    return tokens[:-1].view(count, context), tokens[1:].view(count, context)


def _lines(source: str) -> list[Iterable[str]]:
    instead = f"or give a folder with {' and '.join(FILES)}"
    if source != "wikitext-2":
        folder = Path(source)
        if not folder.is_dir():
            raise BadInput(f"--data {source}: no such folder; expected wikitext-2, or a folder with {' and '.join(FILES)}")
        if missing := next((name for name in FILES if not (folder / name).is_file()), None):
            raise BadInput(f"--data {source}: no {missing} in the folder")
        return [(folder / name).read_text(encoding="utf-8").splitlines() for name in FILES]
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise BadInput(f"--data wikitext-2 needs the package datasets: pip install 'memoryless[data]', {instead}") from None
    try:
        return [load_dataset("Salesforce/wikitext", "wikitext-2-v1", split=s)["text"] for s in ("train", "validation")]
    except Exception as error:  # whatever the hub's client, its transport or its cache raise
        raise BadInput(
            f"--data wikitext-2 could not be loaded ({type(error).__name__}: {error}); try again, {instead}"
        ) from error
