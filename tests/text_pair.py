"""A small pair of transformers and batches of sentences, for the tests of methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdrun.methods.base import DataFacts

CLASSES, ROWS, VOCABULARY = 5, 24, 100
PAD, CLS, MASK = 0, 1, 2  # special words
LABELS = torch.arange(ROWS) % CLASSES
NARROW, WIDER = 48, 96  # both a multiple of 48, the relation heads of minilmv2


def encoder(width: int = NARROW, layers: int = 2, seed: int = 0, heads: int = 2, exits: bool = False) -> nn.Module:
    """A BERT without dropout, in train mode."""
    pytest.importorskip("transformers")
    from kdrun.tasks.text.models.hf import hf_text

    torch.manual_seed(seed)
    model = hf_text(
        CLASSES, vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=64,
        max_position_embeddings=64, dropout=0.0, exits=exits,
    )  # fmt: skip
    for (
        name,
        weight,
    ) in model.named_parameters():  # 0.02 as published gives nearly equal states, in which little can be seen
        if weight.ndim == 2 and "embeddings" not in name:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model.train()


def student_of(*names: str, seed: int = 0) -> nn.Module:
    """A student for these methods (names of conf/method); early_exit wants branches."""
    return encoder(seed=seed, exits="early_exit" in names)


def teacher_of(*names: str) -> nn.Module:
    """A teacher that is wider and deeper than the student; module replacing wants one width, early exit the student itself."""
    if "early_exit" in names:
        return encoder(seed=0)
    if any(name.startswith("theseus") for name in names):
        return encoder(layers=4, seed=1)
    return encoder(WIDER, layers=4, seed=1)


def batch(size: int = 6, seed: int = 0, padding: int = 0) -> dict[str, Any]:
    """Sentences of 4 to 9 words, the longest one among them, and `padding` more columns of padding."""
    draw = torch.Generator().manual_seed(seed)
    index = torch.randperm(ROWS, generator=draw)[:size]
    length = torch.randint(4, 9, (size, 1), generator=draw)
    length[0] = 9
    words = torch.randint(3, VOCABULARY, (size, 9), generator=draw)
    words[:, 0] = CLS
    words = nn.functional.pad(words, (0, padding))
    mask = torch.arange(9 + padding) < length
    return {"input": inputs(words.masked_fill(~mask, PAD), mask), "label": LABELS[index], "index": index, "mask": mask}


def inputs(words: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"input_ids": words, "attention_mask": mask.long(), "token_type_ids": torch.zeros_like(words)}


def facts(**changes: Any) -> DataFacts:
    """What a method may know of the data: two sentences as an example; `changes`: of the preprocessing."""
    two = batch(2)
    known = {
        "vocabulary": VOCABULARY,
        "pad_id": PAD,
        "mask_id": MASK,
        "special_ids": [PAD, CLS, MASK],
        "max_length": 16,
        **changes,
    }
    return DataFacts(ROWS, LABELS, CLASSES, two["input"], preprocessing=known, mask=two["mask"])
