"""The task of detection: images in, boxes with a class each out.

Many imports are inside functions, so that plans and reports, which need only names and metrics, import neither torch nor ultralytics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.tasks.base import Batch, Evaluation, Evaluator, Loader, Optimization, Task
from kdrun.tasks.detection import data
from kdrun.tasks.detection.settings import Augment, Data
from kdrun.tasks.metric import Metric

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.tensorboard import SummaryWriter

    from kdrun.methods.base import Stage

WEAK = 0.05  # mAP50-95 below which a teacher has hardly learned anything


class DetectionTask(Task):
    """Images in; boxes, each with a class and a confidence, out."""

    name = "detection"
    unit = "images"
    metrics = (Metric("map50_95", "mAP50-95", "%"), Metric("map50", "mAP50", "%"))
    datasets = data.NAMES
    Data, Augment = Data, Augment
    gives_dict = True
    criterion: Any = None  # the detection loss with the recipe's gains; `loaders` makes it
    classes = 0

    def of(self, cfg: Any) -> DetectionTask:
        return copy.copy(self)  # a run's own: its loss has the gains of its recipe

    def complete(self, config: Any) -> None:
        from kdrun.tasks.detection.fitting import complete  # it reads the yaml of every method

        complete(config)

    def has_holdout(self, cfg: Any, outputs: str) -> bool:
        return data.has_holdout(cfg, outputs)

    # Data --------------------------------------------------------------------------------------------------------------------

    def checksum(self, cfg: Any, outputs: str) -> str:
        return data.checksum(cfg, outputs)

    def identity(self, cfg: Any) -> dict[str, Any]:
        """Where the files lie, and whether images stay in memory, makes no other run."""
        return {"imgsz": cfg.imgsz, "test": cfg.test}

    def settled(self, cfg: Any, outputs: str) -> Any:
        settled = copy.copy(cfg)
        settled.test = data.reports(cfg, data.checked(cfg, outputs))
        return settled

    def label(self, cfg: Any) -> str:
        """The name of the data yaml."""
        return Path(cfg.data).stem if cfg.name == "yolo" and cfg.data else str(cfg.name)

    def sizes(self, cfg: Any, outputs: str) -> tuple[int, int]:
        return data.sizes(cfg, outputs)

    def costs_alike(self, cfg: Any, outputs: str, record: Mapping[str, Any]) -> bool:
        return cfg.imgsz == record["dataset"]["preprocessing"]["imgsz"]  # type: ignore[no-any-return]

    def load(self, cfg: Any, outputs: str) -> Any:
        return data.load(cfg, outputs)

    def loaders(
        self, dataset: Any, config: Any, device: torch.device, layout: torch.memory_format
    ) -> tuple[Loader, Mapping[str, Loader]]:
        from kdrun.tasks.detection.data.loader import loaders
        from kdrun.tasks.detection.loss import Criterion

        self.classes = len(dataset.classes)
        self.criterion = Criterion(self.classes, config.recipe, device)
        return loaders(dataset, config, device, layout)

    def first(self, batch: Batch, count: int) -> Batch:
        from kdrun.tasks.detection.data.loader import first_of

        return first_of(batch, count)

    def preprocessing(self, dataset: Any) -> dict[str, Any]:
        """The longer side in px, and the split that reports."""
        return {"imgsz": dataset.imgsz, "reports": dataset.reports}

    def preprocessor(self, model: nn.Module, record: Mapping[str, Any], folder: Path) -> nn.Module:
        from kdrun.tasks.detection.preprocess import Finder

        return Finder(model, record["dataset"]["preprocessing"]["imgsz"], record["dataset"]["classes"])

    # Models ------------------------------------------------------------------------------------------------------------------

    def load_checkpoint(self, model: nn.Module, path: str, name: str, role: str, classes: list[str]) -> str | None:
        from kdrun.tasks.detection import checkpoint

        return checkpoint.load(model, path, name, role, classes)

    def fold(self, teacher: nn.Module) -> None:
        """Batch norm into convolution, as the library does for inference."""
        fuse: Callable[..., Any] = teacher.fuse  # type: ignore[assignment]
        fuse(verbose=False)
        teacher.requires_grad_(False)

    def check_output(self, output: Any, outputs: int) -> str | None:
        if not isinstance(output, dict) or not {"boxes", "scores", "feats"} <= set(output):
            return f"gives {type(output).__name__} where {self.wanted(outputs)} are wanted"
        given = output["scores"].shape[1]
        return None if given == outputs else f"gives scores of {given} classes where {outputs} are wanted"

    def wanted(self, outputs: int) -> str:
        return f"boxes, and scores of {outputs} classes,"

    def timing_input(self, count: int, cfg: Any, outputs: str) -> Any | None:
        import torch

        return torch.rand(count, 3, cfg.imgsz, cfg.imgsz).to(memory_format=torch.channels_last)

    # Learning ----------------------------------------------------------------------------------------------------------------

    def loss(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """box, cls and dfl, each times its gain in the recipe."""
        parts: dict[str, Tensor] = self.criterion.parts(output, batch)
        return parts

    def optimization(self, stage: Stage, recipe: Any, student: nn.Module, steps: int) -> Optimization:
        from kdrun.tasks.detection.optimization import Accumulated

        return Accumulated(stage, recipe, student, steps)

    def evaluator(self) -> Evaluator:
        from kdrun.tasks.detection.metrics import DetectionEvaluator

        return DetectionEvaluator(self.criterion, self.classes)

    def train_sum(self, output: Any, batch: Batch) -> Tensor:
        """mAP of training images is not measured: this is 0."""
        scores: Tensor = output["scores"]
        return scores.new_zeros(())

    def train_score(self, mean: float) -> float | None:
        return None

    def agreement(self, student: Evaluation, teacher: Evaluation) -> float:
        """F1 of the student's boxes above a confidence of 0.25 against the teacher's, at IoU 0.5 and of one class."""
        from kdrun.tasks.detection import metrics

        return metrics.agreement(student, teacher)

    def details(self, evaluation: Evaluation, dataset: Any) -> dict[str, Any]:
        from kdrun.tasks.detection import metrics
        from kdrun.tasks.detection.data.base import counts_per_class

        counts = counts_per_class(dataset.test, len(dataset.classes))
        rows = metrics.class_scores(evaluation, dataset.classes, counts)
        return {
            "precisions": rows, "class_scores": [row["ap50_95"] for row in rows], "class_metric": "AP50-95",
        }  # fmt: skip

    def weakness(
        self, evaluation: Evaluation, recorded: float | None, dataset: Any, model: Any, test: Loader
    ) -> str | None:
        if recorded is not None or not self.is_near_chance(evaluation):
            return None
        return (
            f"its test mAP50-95 is {100 * evaluation.score:.2f}. Was it trained on other classes, in another order, or is it the file of "
            "another model?"
        )

    def is_near_chance(self, evaluation: Evaluation) -> bool:
        return evaluation.score < WEAK

    # Pictures ----------------------------------------------------------------------------------------------------------------

    def preview(self, board: SummaryWriter, dataset: Any, inputs: Any) -> None:
        board.add_images("train/images", inputs[:16], 0)

    def export(self, folder: Path, dataset: Any, student: nn.Module, chosen: Mapping[str, Any], recipe: Any) -> None:
        from kdrun.tasks.detection import checkpoint

        checkpoint.export(folder, dataset, student, chosen, recipe)

    def picture(self, path: Path, dataset: Any, columns: Mapping[str, Mapping[str, Tensor]]) -> None:
        from kdrun.tasks.detection.picture import draw

        draw(path, dataset, columns)


TASK = DetectionTask()
