"""Batches of texts on the device: padded to their longest text, and in training made of texts of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdrun.errors import KdrunError
from kdrun.seeds import stream
from kdrun.tasks.text.data.base import TextDataset, TextSplit

POOL = 50  # batches whose texts are sorted by length together
EVALUATED = 128  # texts of a batch in evaluations

Batch = dict[str, Any]


class Loader:
    """The batches of one split: {"input", "label", "index" (B,), "mask" (B, T): True where a token is no padding}.

    `input` has int64 (B, T) "input_ids", "attention_mask" and, where texts come in pairs, "token_type_ids". An epoch's order is a
    function of (seed, epoch): texts are shuffled, each POOL batches of them are sorted by length and cut, and the batches are
    shuffled. So little is padded, and a text still meets other texts in every epoch.
    """

    def __init__(
        self, split: TextSplit, dataset: TextDataset, *, batch_size: int, device: torch.device | str, seed: int = 0
    ):
        self.split, self.batch_size, self.seed, self.device = split, batch_size, seed, torch.device(device)
        self.pad_id = dataset.pad_id
        self.lengths = split.lengths
        self.position = torch.full((int(split.index.max()) + 1,), -1)  # row of the training set -> row of this split
        self.position[split.index] = torch.arange(len(split))

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    @property
    def smallest(self) -> int:
        """Texts of the smallest batch of an epoch."""
        return len(self.split) % self.batch_size or self.batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, in an order of its own."""
        if self.batch_size > len(self.split):
            raise KdrunError(
                f"batch size {self.batch_size} is above the {len(self.split):,} training texts; "
                f"recipe.batch_size={len(self.split)} or less"
            )
        return (self._batch(rows) for rows in self._order(epoch))

    def _order(self, epoch: int) -> list[Tensor]:
        """Row numbers of each batch. The smaller last batch of the shuffled texts keeps its place among the shortest of its pool."""
        draw = torch.Generator().manual_seed(stream(self.seed, "order", epoch))
        batches: list[Tensor] = []
        for pool in torch.randperm(len(self.split), generator=draw).split(POOL * self.batch_size):
            batches += pool[self.lengths[pool].argsort(descending=True, stable=True)].split(self.batch_size)
        return [batches[number] for number in torch.randperm(len(batches), generator=draw).tolist()]

    def batches(self) -> Iterator[Batch]:
        """Every text once, the longest first: for evaluation. `index` says which ones; an evaluator puts them in order."""
        order = self.lengths.argsort(descending=True, stable=True)
        return (self._batch(rows) for rows in order.split(EVALUATED))

    def view(self, index: Tensor, epoch: int) -> dict[str, Tensor]:
        """The inputs of these rows of the training set; texts are not augmented, so they are the same in every epoch."""
        rows = self.position[index.cpu()]
        if (rows < 0).any():
            raise IndexError("a row of another split")
        inputs: dict[str, Tensor] = self._batch(rows)["input"]
        return inputs

    def first(self, count: int) -> dict[str, Tensor]:
        """The inputs of the first texts."""
        inputs: dict[str, Tensor] = self._batch(torch.arange(min(count, len(self.split))))["input"]
        return inputs

    def _batch(self, rows: Tensor) -> Batch:
        split = self.split
        inputs = padded(split.ids, split.segments, split.starts[rows], self.lengths[rows], self.pad_id)
        batch = {"input": inputs, "label": split.labels[rows], "index": split.index[rows]}
        batch["mask"] = inputs["attention_mask"].bool()
        return {key: _to(value, self.device) for key, value in batch.items()}


def padded(ids: Tensor, segments: Tensor | None, starts_B: Tensor, lengths_B: Tensor, pad_id: int) -> dict[str, Tensor]:
    """Some texts of a flat tensor of tokens as int64 (B, T), T the length of the longest."""
    step_T = torch.arange(int(lengths_B.max()))
    mask_BT = step_T < lengths_B[:, None]
    place_BT = torch.where(mask_BT, starts_B[:, None] + step_T, 0)
    inputs = {"input_ids": torch.where(mask_BT, ids[place_BT].long(), pad_id), "attention_mask": mask_BT.long()}
    if segments is not None:
        inputs["token_type_ids"] = torch.where(mask_BT, segments[place_BT].long(), 0)
    return inputs


def collated(texts: Sequence[tuple[list[int], list[int]]], pad_id: int, with_segments: bool) -> dict[str, Tensor]:
    """Tokens and segments of some texts, as a tokenizer gives them, as the inputs of a model."""
    ids, segments = (torch.tensor([one for text in texts for one in text[part]]) for part in (0, 1))
    lengths = torch.tensor([len(text[0]) for text in texts])
    return padded(ids, segments if with_segments else None, lengths.cumsum(0) - lengths, lengths, pad_id)


def loaders(dataset: TextDataset, batch_size: int, seed: int, device: torch.device) -> tuple[Loader, dict[str, Loader]]:
    """The training loader, and one loader for each split to evaluate on."""
    train = Loader(dataset.train, dataset, batch_size=batch_size, device=device, seed=seed)
    splits = {"test": dataset.test} | ({"holdout": dataset.holdout} if dataset.holdout is not None else {})
    evals = {name: Loader(split, dataset, batch_size=EVALUATED, device=device) for name, split in splits.items()}
    return train, evals


def _to(value: Any, device: torch.device) -> Any:
    return {key: one.to(device) for key, one in value.items()} if isinstance(value, dict) else value.to(device)
