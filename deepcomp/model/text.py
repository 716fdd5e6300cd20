"""Text as numbers: words, a vocabulary of the frequent ones, and windows with the next word as target.

The convention is that of PyTorch's `word_language_model` example and of the published figures on WikiText:
words are what stands between spaces, and every line, an empty one too, ends with `<eos>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["END", "UNKNOWN", "encode", "vocabulary", "windows", "words"]

END, UNKNOWN = "<eos>", "<unk>"


def words(text: str) -> list[str]:
    """The words of a text, line by line, with `END` after each line."""
    return [word for line in text.splitlines() for word in (*line.split(), END)]


def vocabulary(found: Sequence[str], least: int) -> dict[str, int]:
    """Numbers for the words that occur `least` times or more, the commonest first, equals in alphabetical order.

    `END` and `UNKNOWN` have numbers, however rare they are.
    """
    counts = Counter(found)
    kept = {word for word, count in counts.items() if count >= least} | {END, UNKNOWN}
    return {word: number for number, word in enumerate(sorted(kept, key=lambda word: (-counts[word], word)))}


def encode(found: Sequence[str], known: Mapping[str, int]) -> Tensor:
    """The number of each word, int64 (words); that of `UNKNOWN` where it has none of its own."""
    return torch.tensor([known.get(word, known[UNKNOWN]) for word in found])


def windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Windows one after the other, and the word that follows each of their places, both int64 (windows, length).

    What is left over at the end is dropped.
    """
    count = (len(tokens) - 1) // length
    return tokens[: count * length].reshape(count, length), tokens[1 : count * length + 1].reshape(count, length)
