"""Language models: the next word's logits at every place of a text of WikiText-2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LENGTH", "VOCABULARY", "WordLSTM", "WordTransformer"]

VOCABULARY = 6_928  # words that occur at least three times in the training text
LENGTH = 64  # words an item, and the most the transformer can look back on


class WordLSTM(nn.Module):
    """Two layers of LSTM between an embedding and a decoder of its own (Zaremba et al. 2014): 3.4 M parameters.

    Dropout acts on what goes up, not on what goes along the text.
    """

    def __init__(self, width: int = 200, dropout: float = 0.5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True, dropout=dropout)
        self.decoder = nn.Linear(width, VOCABULARY)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, T, vocabulary) of words (N, T), int64; every item starts from a state of zeros."""
        hidden, _ = self.lstm(self.dropout(self.embedding(tokens)))
        return self.decoder(self.dropout(hidden))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Causal self-attention and a GELU layer of four times the width, each normalised before and added after."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (N, T, width) to the same shape."""
        x = x + self.dropout(self.out(self._attend(self.norm1(x))))
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)


class WordTransformer(nn.Module):
    """A decoder-only transformer, normalised before each layer (Radford et al. 2019, §2.3): 3.1 M parameters.

    The embedding is the decoder too (Press & Wolf 2017); positions are learned.
    """

    def __init__(self, width: int = 192, depth: int = 4, heads: int = 4, dropout: float = 0.3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(torch.empty(LENGTH, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        for weight in (self.embedding.weight, self.position):
            nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, T, vocabulary) of words (N, T), int64, T at most `LENGTH`."""
        x = self.dropout(self.embedding(tokens) + self.position[: tokens.shape[1]])
        return F.linear(self.norm(self.blocks(x)), self.embedding.weight)
