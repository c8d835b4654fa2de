"""The task of text classification and regression: one or two texts in, classes or a number out.

Many imports are inside functions, so that plans and reports, which need only names and metrics, import neither torch nor transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.tasks.base import Batch, Evaluation, Evaluator, Loader, Task
from kdrun.tasks.metric import Metric
from kdrun.tasks.text import data, fitting
from kdrun.tasks.text.scores import METRICS
from kdrun.tasks.text.settings import Data, metrics_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.tensorboard import SummaryWriter

MISTAKES, SHOWN = 10, 200  # in a record: the surest mistakes, and letters of a text
UNKNOWN = (
    "Was it trained with another tokenizer (dataset.tokenizer), does it have another order of classes (dataset.classes), or is it "
    "the file of another model?"
)


class TextTask(Task):
    """Texts in; classes or a number out."""

    name = "text"
    unit = "sentences"
    metrics: tuple[Metric, ...] = (METRICS["accuracy"], METRICS["f1"])
    datasets = data.SOURCES
    Data = Data

    def of(self, cfg: Any) -> TextTask:
        own = copy.copy(self)
        own.metrics = tuple(METRICS[name] for name in metrics_of(cfg))
        return own

    def complete(self, config: Any) -> None:
        fitting.complete(config)

    def has_holdout(self, cfg: Any, outputs: str) -> bool:
        return data.has_holdout(cfg, outputs)

    def model_identity(self, node: dict[str, Any]) -> dict[str, Any]:
        return fitting.model_identity(node)

    # Data --------------------------------------------------------------------------------------------------------------------

    def checksum(self, cfg: Any, outputs: str) -> str:
        return data.checksum(cfg, outputs)

    def identity(self, cfg: Any) -> dict[str, Any]:
        chosen = metrics_of(cfg)[0] != metrics_of(replace(cfg, metric=None))[0]  # it selects epochs
        own = {"tokenizer": data.tokenizer_identity(cfg), "max_length": cfg.max_length}
        return {**own, "metric": cfg.metric} if chosen else own

    def label(self, cfg: Any) -> str:
        """GLUE's task; the name of a folder of files."""
        if cfg.name == "glue":
            return str(cfg.task)
        return Path(cfg.root).expanduser().absolute().name if cfg.name == "text_files" and cfg.root else str(cfg.name)

    def sizes(self, cfg: Any, outputs: str) -> tuple[int, int]:
        train_n, test_n = data.sizes(cfg, outputs)
        return train_n - cfg.holdout, test_n

    def costs_alike(self, cfg: Any, outputs: str, record: Mapping[str, Any]) -> bool:
        return cfg.max_length == record["dataset"]["preprocessing"]["max_length"]

    def load(self, cfg: Any, outputs: str) -> Any:
        return data.load(cfg, outputs)

    def loaders(
        self, dataset: Any, config: Any, device: torch.device, layout: torch.memory_format
    ) -> tuple[Loader, Mapping[str, Loader]]:
        from kdrun.tasks.text.data.loader import loaders

        return loaders(dataset, config.recipe.batch_size, config.seed, device)

    def mask(self, inputs: Any) -> Tensor | None:
        mask_BT: Tensor = inputs["attention_mask"].bool()
        return mask_BT

    def augments(self, recipe: Any) -> bool:
        return False

    def preprocessing(self, dataset: Any) -> dict[str, Any]:
        """Tokens that a model knows, the special ones, and where texts are cut."""
        return {
            "tokenizer": dataset.tokenizer_sha256, "vocabulary": dataset.vocabulary, "max_length": dataset.max_length,
            "pad_id": dataset.pad_id, "mask_id": dataset.mask_id, "special_ids": list(dataset.special_ids),
            "pairs": len(dataset.train.texts[0]) == 2, "segments": dataset.train.segments is not None,
        }  # fmt: skip

    def files(self, dataset: Any, model: nn.Module) -> dict[str, str]:
        config: Any = model.config
        return {"config.json": config.to_json_string(use_diff=False), "tokenizer.json": dataset.tokenizer.to_str()}

    def preprocessor(self, model: nn.Module, record: Mapping[str, Any], folder: Path) -> nn.Module:
        from kdrun.tasks.text.preprocess import Reader

        return Reader(
            model, record["dataset"]["preprocessing"], folder / "tokenizer.json", record["dataset"]["classes"]
        )

    # Models ------------------------------------------------------------------------------------------------------------------

    def outputs(self, dataset: Any) -> int:
        return len(dataset.classes) or 1

    def outputs_of(self, record: Mapping[str, Any]) -> int:
        return len(record["dataset"]["classes"]) or 1

    def start(self, config: Any, student: nn.Module, teacher: nn.Module) -> bool:
        if getattr(config.student, "init_from", "pretrained") != "teacher":
            return False
        from kdrun.tasks.text.models.hf import from_teacher

        from_teacher(student, teacher, config.student.layers, config.student.init)
        return True

    def rebuild(self, record: Mapping[str, Any], folder: Path) -> nn.Module | None:
        from kdrun.tasks.text.models.hf import rebuilt

        node = record["identity"]["student"]
        return rebuilt(folder / "config.json", self.outputs_of(record), node) if node["name"] == fitting.HF else None

    def check_output(self, output: Any, outputs: int) -> str | None:
        from kdrun.tasks import classes

        return classes.check_logits(output, outputs)

    def wanted(self, outputs: int) -> str:
        return f"logits (batch, {outputs})" if outputs > 1 else "numbers (batch, 1)"

    def remark(self, output: Any, model: str) -> str | None:
        from kdrun.tasks import classes

        return classes.remark(output, model)

    def timing_input(self, count: int, cfg: Any, outputs: str) -> Any | None:
        import torch

        ids = torch.randint(data.vocabulary_size(cfg), (count, min(16, cfg.max_length)))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    # Learning ----------------------------------------------------------------------------------------------------------------

    def loss(self, output: Any, batch: Batch) -> Tensor:
        from kdrun.tasks.text import metrics

        return metrics.loss(output, batch)

    def evaluator(self) -> Evaluator:
        from kdrun.tasks.text.metrics import TextEvaluator

        return TextEvaluator([metric.name for metric in self.metrics])

    def train_sum(self, output: Any, batch: Batch) -> Tensor:
        """Right answers, or squared errors of numbers."""
        from kdrun.tasks import classes

        label: Tensor = batch["label"]
        return (output - label).square().sum() if label.is_floating_point() else classes.correct(output, label)

    def train_score(self, mean: float) -> float | None:
        """Only accuracy is a mean over sentences; for other metrics the score on training sentences is not known."""
        return mean if self.metrics[0].name == "accuracy" else None

    def agreement(self, student: Evaluation, teacher: Evaluation) -> float:
        """The share of sentences with the same class; of numbers, their correlation."""
        from kdrun.tasks.text import metrics

        return metrics.agreement(student.predictions["logits"], teacher.predictions["logits"])

    def details(self, evaluation: Evaluation, dataset: Any) -> dict[str, Any]:
        if not dataset.classes:
            return {}
        from kdrun.tasks import classes

        logits, labels = evaluation.predictions["logits"], evaluation.predictions["labels"]
        names, test = dataset.classes, dataset.test
        return {
            "calibration": classes.calibration(logits, labels),
            "class_scores": classes.class_scores(logits, labels),
            "mistakes": [
                {"texts": [_short(text) for text in test.texts[row]], "label": names[int(test.labels[row])],
                 "predicted": names[predicted], "confidence": confidence}
                for row, predicted, confidence in classes.mistakes(logits, labels, MISTAKES)
            ],
        }  # fmt: skip

    def weakness(
        self, evaluation: Evaluation, recorded: float | None, dataset: Any, model: Any, test: Loader
    ) -> str | None:
        if not dataset.classes:
            return None
        from kdrun.tasks.weak import MUCH, weakness

        metric = self.metrics[0]
        if recorded is not None and metric.name != "accuracy":
            if evaluation.score >= recorded - MUCH:
                return None
            scores = metric.text(evaluation.score), metric.text(recorded)
            return f"its test {metric.label} is {scores[0]}, far below the {scores[1]} of its record. {UNKNOWN}"

        return weakness(
            evaluation.predictions["logits"], evaluation.predictions["labels"], dataset.classes, recorded, UNKNOWN
        )

    def is_near_chance(self, evaluation: Evaluation) -> bool:
        from kdrun.tasks import weak

        logits, labels = evaluation.predictions["logits"], evaluation.predictions["labels"]
        return not labels.is_floating_point() and weak.is_near_chance(logits, labels)

    # Pictures ----------------------------------------------------------------------------------------------------------------

    def preview(self, board: SummaryWriter, dataset: Any, inputs: Any) -> None:
        from kdrun.tasks.text.preprocess import sentences

        board.add_text("train/sentences", "\n\n".join(sentences(dataset.tokenizer, inputs)), 0)


def _short(text: str) -> str:
    """A text as the record shows it."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


TASK = TextTask()
