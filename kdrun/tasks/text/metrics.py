"""Scores of a model of texts: accuracy, F1 and Matthews of classes, Pearson and Spearman of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.tasks import classes
from kdrun.tasks.base import Batch, Evaluation


def score(name: str, outputs: Tensor, labels: Tensor) -> float:
    """One metric. outputs (N, K) logits with labels (N,), or outputs (N, 1) with labels (N, 1).

    f1: of class 1 where there are two classes, as in GLUE; else the mean of the F1 of every class. A correlation with a constant
    is 0: it says nothing of the other side. By scikit-learn and scipy.
    """
    if name == "accuracy":
        return classes.accuracy(outputs, labels)
    if name in ("f1", "matthews"):
        from sklearn.metrics import f1_score, matthews_corrcoef

        right, given = labels.cpu().numpy(), outputs.argmax(1).cpu().numpy()
        if name == "matthews":
            return float(matthews_corrcoef(right, given))
        average = "binary" if outputs.shape[1] == 2 else "macro"
        return float(f1_score(right, given, average=average, zero_division=0.0))
    from scipy import stats

    x, y = outputs.flatten().double().cpu().numpy(), labels.flatten().double().cpu().numpy()
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return 0.0
    correlate = stats.pearsonr if name == "pearson" else stats.spearmanr
    return float(correlate(x, y)[0])


def loss(output: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy with classes, mean squared error with numbers; mean over the batch."""
    return _loss(output, batch["label"])


def _loss(outputs: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return F.mse_loss(outputs.float(), labels)
    return F.cross_entropy(outputs.float(), labels)


class TextEvaluator:
    """The evaluation of one model on one split. Batches may come in any order: `index` puts their outputs in the split's."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.outputs: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.index: list[Tensor] = []

    def update(self, output: Any, batch: Batch) -> None:
        self.outputs.append(output.float())
        self.labels.append(batch["label"])
        self.index.append(batch["index"])

    def result(self) -> Evaluation:
        order = torch.cat(self.index).argsort()
        outputs, labels = torch.cat(self.outputs)[order], torch.cat(self.labels)[order]
        predictions = {"logits": outputs, "labels": labels}
        if not labels.is_floating_point():
            predictions["right"] = outputs.argmax(1) == labels
        values = {name: score(name, outputs, labels) for name in self.names}
        return Evaluation(values, _loss(outputs, labels).item(), predictions)


def agreement(outputs: Tensor, others: Tensor) -> float:
    """The share of sentences for which two models choose the same class; of numbers (N, 1), their Pearson correlation."""
    return classes.agreement(outputs, others) if outputs.shape[1] > 1 else score("pearson", outputs, others)
