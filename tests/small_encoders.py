"""Small encoders and batches of sentences for tests, as kdrun runs them: a dict of tensors in, logits out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

CLASSES, WORDS = 3, 100
SIZES = {
    "bert": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "roberta": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "pad_token_id": 0},
    "electra": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "embedding_size": 32},
    "distilbert": {"dim": 32, "n_heads": 2, "hidden_dim": 64},
}
BLOCKS = {
    "bert": "bert.encoder.layer", "roberta": "roberta.encoder.layer", "electra": "electra.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
}  # fmt: skip


def encoder(layers: int, seed: int = 0, kind: str = "bert", classes: int = CLASSES, **sizes: Any) -> nn.Module:
    """A random encoder with a classifier; weights are large enough for sentences to differ."""
    torch.manual_seed(seed)
    count = {"n_layers": layers} if kind == "distilbert" else {"num_hidden_layers": layers}
    options = {**SIZES[kind], **count, "vocab_size": WORDS, "initializer_range": 0.2, "num_labels": classes, **sizes}
    model: Any = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **options))
    model.blocks, model.taps = BLOCKS[kind], {}
    model.register_forward_pre_hook(
        lambda _, args, kwargs: ((), dict(args[0])) if args else (args, kwargs), with_kwargs=True
    )
    model.register_forward_hook(lambda _, args, output: output.logits)
    return model


def shorter(teacher: nn.Module, layers: list[int]) -> nn.Module:
    """A student with the teacher's embeddings and classifier, and copies of some of its layers."""
    student: Any = copy.deepcopy(teacher)
    parent, _, name = student.blocks.rpartition(".")
    owner = student.get_submodule(parent)
    setattr(owner, name, nn.ModuleList(getattr(owner, name)[i] for i in layers))
    return student


def batch(size: int, long: int = 7, seed: int = 0, kind: str = "bert") -> dict[str, Any]:
    """Sentences of several lengths, padded."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, long + 1, (size,), generator=draw)
    lengths[0] = long
    mask = torch.arange(long) < lengths[:, None]
    words = torch.randint(1, WORDS, (size, long), generator=draw) * mask
    labels = torch.randint(0, CLASSES, (size,), generator=draw)
    return {"input": inputs(words, mask, kind), "label": labels, "index": torch.arange(size), "mask": mask}


def inputs(words: Tensor, mask: Tensor, kind: str = "bert") -> dict[str, Tensor]:
    x = {"input_ids": words, "attention_mask": mask.long()}
    return x if kind in ("distilbert", "roberta") else {**x, "token_type_ids": torch.zeros_like(words)}
