"""The metrics of texts, as records name them. No torch; kdrun/tasks/text/metrics.py computes them."""

from __future__ import annotations

from kdrun.tasks.metric import ACCURACY, Metric

METRICS = {
    "accuracy": ACCURACY,
    "f1": Metric("f1", "F1", "%"),
    "matthews": Metric("matthews", "Matthews correlation", "%"),
    "pearson": Metric("pearson", "Pearson correlation", "%"),
    "spearman": Metric("spearman", "Spearman correlation", "%"),
}
