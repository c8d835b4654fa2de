"""Image classification: the supervised loss, the metric, and what agreement with the teacher means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Batch

METRIC = {"name": "accuracy", "higher_is_better": True}


def loss(logits_BK: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy with the labels, mean over the batch."""
    return F.cross_entropy(logits_BK, batch["label"])


def correct(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """How many of a batch are right, as a scalar on the device; rows without a label are negative and never right."""
    return (logits_BK.argmax(1) == label_B).sum()


def score(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Top-1 accuracy in [0, 1]."""
    return correct(logits_NK, labels_N).item() / len(labels_N)


def agreement(logits_NK: Tensor, other_NK: Tensor) -> float:
    """Share of images on which two models choose the same class, right or wrong."""
    return (logits_NK.argmax(1) == other_NK.argmax(1)).float().mean().item()


def mean_loss(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Cross-entropy over a whole split."""
    return F.cross_entropy(logits_NK.float(), labels_N).item()


def check_logits(logits: Tensor, classes: int) -> str | None:
    """What is wrong with a model's output for this task, or None."""
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] != classes:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        return f"gives {shape} where (batch, {classes}) logits are wanted"
    return None
