"""Measures of a model that chooses among classes: loss, accuracy, agreement with the teacher, calibration, accuracy per class."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.tasks.base import Batch, Evaluation


def loss(logits_BK: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy with the labels, mean over the batch."""
    return F.cross_entropy(logits_BK, batch["label"])


def correct(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """How many samples of a batch are classified correctly, as a scalar on the device. A negative label is never correct."""
    return (logits_BK.argmax(1) == label_B).sum()


def accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Top-1 accuracy in [0, 1]."""
    return correct(logits_NK, labels_N).item() / len(labels_N)


def agreement(logits_NK: Tensor, other_NK: Tensor) -> float:
    """Share of samples for which two models choose the same class, correct or not."""
    return (logits_NK.argmax(1) == other_NK.argmax(1)).float().mean().item()


def mean_loss(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Cross-entropy over a whole split."""
    return F.cross_entropy(logits_NK.float(), labels_N).item()


class LogitsEvaluator:
    """The evaluation of one model on one split; the logits (N, K) stay on the device, in float32."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, output: Any, batch: Batch) -> None:
        self.logits.append(output.float())
        self.labels.append(batch["label"])

    def result(self) -> Evaluation:
        logits_NK, labels_N = torch.cat(self.logits), torch.cat(self.labels)
        predictions = {"logits": logits_NK, "labels": labels_N, "right": logits_NK.argmax(1) == labels_N}
        return Evaluation({"accuracy": accuracy(logits_NK, labels_N)}, mean_loss(logits_NK, labels_N), predictions)


def calibration(logits_NK: Tensor, labels_N: Tensor, bins: int = 15) -> dict[str, Any]:
    """Calibration: is the accuracy as high as the confidence? Confidence is the highest softmax probability; samples are put into bins of
    equal width by it.

    {"ece", "images", "confidence", "accuracy"}: how many samples have a confidence in ((m - 1) / bins, m / bins], their mean
    confidence and accuracy (null for an empty bin), and the expected calibration error, sum over bins of
    (samples / all samples) |accuracy - confidence| (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
    """
    labels_N = labels_N.cpu()
    confidence_N, predicted_N = _confidence(logits_NK)
    bin_N = (confidence_N * bins).ceil().long().sub(1).clamp(0, bins - 1)
    images_M = torch.bincount(bin_N, minlength=bins)
    confidence_M, correct_M = (
        torch.bincount(bin_N, x.double(), minlength=bins) for x in (confidence_N, predicted_N == labels_N)
    )
    return {
        "ece": round((confidence_M - correct_M).abs().sum().item() / len(labels_N), 6), "images": images_M.tolist(),
        "confidence": _shares(confidence_M, images_M), "accuracy": _shares(correct_M, images_M),
    }  # fmt: skip


def class_scores(logits_NK: Tensor, labels_N: Tensor) -> list[float | None]:
    """The accuracy on the samples of each class, null for a class without any."""
    kinds = logits_NK.shape[1]
    right_N = logits_NK.argmax(1) == labels_N
    all_K, right_K = (torch.bincount(x, minlength=kinds) for x in (labels_N.long(), labels_N[right_N].long()))
    return _shares(right_K, all_K)


def mistakes(logits_NK: Tensor, labels_N: Tensor, count: int) -> list[tuple[int, int, float]]:
    """(row, predicted class, its softmax probability) of the wrongly classified samples with the highest confidence, surest first."""
    confidence_N, predicted_N = _confidence(logits_NK)
    wrong_M = (predicted_N != labels_N.cpu()).nonzero()[:, 0]
    rows = wrong_M[confidence_N[wrong_M].argsort(descending=True, stable=True)[:count]].tolist()
    return [(row, int(predicted_N[row]), round(float(confidence_N[row]), 4)) for row in rows]


def _confidence(logits_NK: Tensor) -> tuple[Tensor, Tensor]:
    """The highest softmax probability of each sample (float64) and its class, on the CPU: a GPU's bincount is not deterministic."""
    confidence_N, predicted_N = logits_NK.cpu().double().softmax(1).max(1)
    return confidence_N, predicted_N


def _shares(parts: Tensor, wholes: Tensor) -> list[float | None]:
    """part / whole with six digits; None where the whole is 0."""
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return [round(part / whole, 6) if whole else None for part, whole in pairs]


def check_logits(logits: Tensor, classes: int) -> str | None:
    """What is wrong with a model's output for this task, or None."""
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] != classes:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        return f"gives {shape} where (batch, {classes}) logits are wanted"
    return None


def remark(logits: Tensor, model: str) -> str | None:
    """A line if the logits look like probabilities (they sum to 1), else None."""
    logits = logits.float()
    ones = torch.ones(len(logits), device=logits.device)
    if logits.shape[1] > 1 and (logits >= 0).all() and torch.allclose(logits.sum(1), ones):
        return f"{model} gives numbers that sum to 1, like probabilities; kdrun needs logits: remove the softmax from the model"
    return None
