"""The task of image classification: each image has one class.

Many imports are inside functions, so that plans and reports, which need only names and metrics, do not import torch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.tasks.base import Batch, Evaluation, Evaluator, Loader, Task
from kdrun.tasks.image import data
from kdrun.tasks.image.settings import Augment, Data
from kdrun.tasks.metric import ACCURACY

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.tensorboard import SummaryWriter


class ImageTask(Task):
    """Images in, one class out."""

    name = "image"
    unit = "images"
    metrics = (ACCURACY,)
    datasets = data.SOURCES
    Data, Augment = Data, Augment

    def checksum(self, cfg: Any, outputs: str) -> str:
        return data.checksum(cfg, outputs)

    def settled(self, cfg: Any, outputs: str) -> Any:
        return dataclasses.replace(cfg, size=data.own_size(cfg, outputs))  # size=8 of 8 px images is the run of null

    def identity(self, cfg: Any) -> dict[str, Any]:
        return {"size": cfg.size, "mean": cfg.mean, "std": cfg.std, "flip": cfg.flip}

    def label(self, cfg: Any) -> str:
        """The name of a folder of images; of data that a function gives, its module and its name."""
        if cfg.name == "import":
            module, _, function = cfg.path.partition(":")
            return f"{module.rpartition('.')[2]}.{function}"
        if cfg.name != "image_folder" or not cfg.root:
            return str(cfg.name)
        return os.path.basename(os.path.abspath(os.path.expanduser(cfg.root)))

    def sizes(self, cfg: Any, outputs: str) -> tuple[int, int]:
        train_n, test_n, _ = data.sizes(cfg, outputs)
        return train_n - cfg.holdout, test_n

    def costs_alike(self, cfg: Any, outputs: str, record: Mapping[str, Any]) -> bool:
        """Images of the same side cost the same."""
        try:
            side = cfg.size or data.sizes(cfg, outputs)[2]
        except KdrunError:
            return True  # the side is not known
        return side in (None, record["dataset"]["preprocessing"]["size"])

    def load(self, cfg: Any, outputs: str) -> Any:
        return data.load(cfg, outputs)

    def loaders(
        self, dataset: Any, config: Any, device: torch.device, layout: torch.memory_format
    ) -> tuple[Loader, Mapping[str, Loader]]:
        from kdrun.tasks.image.data.loader import loaders

        needs = {key for name in config.method for key in METHODS.entry(name).attributes.get("needs", ())}
        return loaders(
            dataset, config.recipe, config.seed, config.engine.workers, device, layout, two_views="input2" in needs
        )

    def preprocessing(self, dataset: Any) -> dict[str, Any]:
        """The side in px, and the mean and deviation that normalise pixels in [0, 1]."""
        return {"size": dataset.size, "mean": list(dataset.mean), "std": list(dataset.std)}

    def preprocessor(self, model: nn.Module, record: Mapping[str, Any], folder: Path) -> nn.Module:
        from kdrun.tasks.image.preprocess import Normalised

        wanted = record["dataset"]["preprocessing"]
        return Normalised(model, wanted["mean"], wanted["std"])

    def check_output(self, output: Any, outputs: int) -> str | None:
        from kdrun.tasks import classes as metrics

        return metrics.check_logits(output, outputs)

    def wanted(self, outputs: int) -> str:
        return f"logits (batch, {outputs})"

    def remark(self, output: Any, model: str) -> str | None:
        from kdrun.tasks import classes as metrics

        return metrics.remark(output, model)

    def timing_input(self, count: int, cfg: Any, outputs: str) -> Any | None:
        import torch

        side = cfg.size or data.sizes(cfg, outputs)[2]
        return torch.rand(count, 3, side, side).to(memory_format=torch.channels_last) if side else None

    def loss(self, output: Any, batch: Batch) -> Tensor:
        from kdrun.tasks import classes as metrics

        return metrics.loss(output, batch)

    def evaluator(self) -> Evaluator:
        from kdrun.tasks.classes import LogitsEvaluator

        return LogitsEvaluator()

    def train_sum(self, output: Any, batch: Batch) -> Tensor:
        from kdrun.tasks import classes as metrics

        return metrics.correct(output, batch["label"])

    def agreement(self, student: Evaluation, teacher: Evaluation) -> float:
        from kdrun.tasks import classes as metrics

        return metrics.agreement(student.predictions["logits"], teacher.predictions["logits"])

    def details(self, evaluation: Evaluation, dataset: Any) -> dict[str, Any]:
        from kdrun.tasks import classes as metrics

        logits, labels = evaluation.predictions["logits"], evaluation.predictions["labels"]
        return {
            "calibration": metrics.calibration(logits, labels),
            "class_scores": metrics.class_scores(logits, labels),
        }

    def weakness(
        self, evaluation: Evaluation, recorded: float | None, dataset: Any, model: Any, test: Loader
    ) -> str | None:
        from kdrun.tasks.image.weak import UNKNOWN, better_normalisation
        from kdrun.tasks.weak import weakness

        return weakness(
            evaluation.predictions["logits"], evaluation.predictions["labels"], dataset.classes, recorded, UNKNOWN,
            lambda: better_normalisation(model, test.batches(), dataset.mean, dataset.std),
        )  # fmt: skip

    def is_near_chance(self, evaluation: Evaluation) -> bool:
        from kdrun.tasks import weak

        return weak.is_near_chance(evaluation.predictions["logits"], evaluation.predictions["labels"])

    def preview(self, board: SummaryWriter, dataset: Any, inputs: Any) -> None:
        from kdrun.tasks.image import pictures

        pictures.samples(board, inputs, dataset.mean, dataset.std)

    def show(self, board: SummaryWriter, dataset: Any, evaluation: Evaluation, step: int) -> None:
        from kdrun.tasks.image import pictures

        logits, labels = evaluation.predictions["logits"], evaluation.predictions["labels"]
        pictures.classes(board, logits, labels, dataset.classes, step)


TASK = ImageTask()
