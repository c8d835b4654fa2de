"""TextDataset and TextSplit: texts, their labels and their tokens in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class TextSplit:
    """One of train, holdout and test. The tokens of all samples lie one after the other, without padding.

    Sample i has the tokens ids[starts[i] : starts[i + 1]], special ones included.
    """

    texts: list[tuple[str, ...]]  # one text a sample, or two
    labels: Tensor  # int64 (N,), or float32 (N, 1) where labels are numbers
    index: Tensor  # int64 (N,): row in the training set before any split (0..N-1 for other files)
    ids: Tensor  # int32 (tokens of all samples,)
    starts: Tensor  # int64 (N + 1,)
    segments: Tensor | None = None  # uint8 like ids: 0 in the first text, 1 in the second; None where all are 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sample, int64 (N,)."""
        return self.starts.diff()

    def rows(self, rows_N: Tensor) -> TextSplit:
        """The split with only these rows, in this order."""
        lengths_N = self.lengths[rows_N]
        starts = torch.cat([lengths_N.new_zeros(1), lengths_N.cumsum(0)])
        shift_N = self.starts[rows_N] - starts[:-1]
        place = torch.arange(int(starts[-1])) + shift_N.repeat_interleave(lengths_N)
        segments = None if self.segments is None else self.segments[place]
        texts = [self.texts[row] for row in rows_N.tolist()]
        return TextSplit(texts, self.labels[rows_N], self.index[rows_N], self.ids[place], starts, segments)


@dataclass
class TextDataset:
    """Texts in three splits, and the tokenizer that made their tokens."""

    name: str
    classes: list[str]  # in the order of the labels; empty where labels are numbers
    checksum: str
    train: TextSplit
    holdout: TextSplit | None
    test: TextSplit
    tokenizer: Any  # tokenizers.Tokenizer, without padding; it cuts at max_length
    tokenizer_sha256: str
    vocabulary: int  # rows that the embeddings of a model need
    pad_id: int
    mask_id: int | None
    special_ids: list[int]  # [CLS], [SEP] and the like, pad and mask included
    max_length: int
    notes: list[str] = field(default_factory=list)  # what the user should know before training, a line each
