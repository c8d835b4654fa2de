"""Task: everything that is about what is learned. Nothing outside kdrun/tasks/<task>/ knows images, sentences or boxes.

The loop, the journal and the report work with batches, evaluations and metrics. A batch is a dict: `input` (a tensor, or a dict of
tensors), `index` (N,) int64, `label` where there is one, and `mask` where inputs are padded.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kdrun.config import schema
from kdrun.tasks.metric import Metric

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.tensorboard import SummaryWriter

    from kdrun.methods.base import Stage

Batch = Mapping[str, Any]


class Split(Protocol):
    """One of train, holdout and test."""

    labels: Tensor  # (N, ...) on the CPU
    index: Tensor  # (N,) int64: row in the training set before any split

    def __len__(self) -> int: ...


class Dataset(Protocol):
    """Three splits of one kind of sample."""

    name: str
    classes: list[str]  # names in the order of the labels; empty where labels are no classes
    checksum: str
    train: Split
    holdout: Split | None
    test: Split
    notes: list[str]  # what the user should know before training, a line each


class Loader(Protocol):
    """The batches of one split, on the device. Order and augmentation are functions of (seed, epoch, index)."""

    split: Any
    batch_size: int

    def __len__(self) -> int:
        """Batches of an epoch."""

    @property
    def smallest(self) -> int:
        """Samples of the smallest batch of an epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The augmented batches of one epoch, in an order of its own."""

    def batches(self) -> Iterator[Batch]:
        """Every sample once, not augmented: for evaluation. An order other than the split's is for the task's evaluator to put right."""

    def view(self, index: Tensor, epoch: int) -> Any:
        """The inputs that these rows of the training set have at `epoch`, bit for bit those of epoch()."""

    def first(self, count: int) -> Any:
        """The inputs of the first samples, not augmented."""


@dataclass
class Evaluation:
    """What a model scored on a split."""

    metrics: dict[str, float]  # by name, in the task's order; the first selects and is reported
    loss: float  # the mean supervised loss
    predictions: dict[str, Tensor] = field(
        default_factory=dict
    )  # "logits": what the model gave, in order; what belongs to it

    @property
    def score(self) -> float:
        """The value of the first metric."""
        return next(iter(self.metrics.values()))

    def is_finite(self) -> bool:
        """False where the model's weights are broken: a prediction is not finite, or neither the score nor the loss is.

        A metric alone may be undefined, such as the correlation of a constant.
        """
        if not (math.isfinite(self.score) or math.isfinite(self.loss)):
            return False
        return all(bool(value.isfinite().all()) for value in self.predictions.values() if value.is_floating_point())


class Optimization(Protocol):
    """How the weights of a stage are updated."""

    average: nn.Module | None  # a running average of the student's weights, which is evaluated and kept in its place

    def begin(self, epoch: int, i: int) -> float:
        """Set the rates for the batch `i` of `epoch` (both count from 0); returns the learning rate."""

    def step(self, total: Tensor, samples: int) -> None:
        """The gradient of the batch's loss, and an update where one is due. `total`: a mean over the batch's samples."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Evaluator(Protocol):
    """Collects what a model gives for a split, batch by batch, and never waits for the device before the end."""

    def update(self, output: Any, batch: Batch) -> None: ...
    def result(self) -> Evaluation: ...


@dataclass
class NoAugment:
    """The augmentation of a task that has none."""


class Task:
    """What is learned. One object per task; `name`, `unit` and `metrics` are readable without torch."""

    name: str
    unit: str  # samples in the plural: "images"
    metrics: tuple[Metric, ...]  # the first selects and is reported
    datasets: Collection[str]  # the names of its datasets
    Data: type = schema.Data  # a dataclass, which may add keys to those that every dataset has
    gives_dict = False  # True: a model gives a dict of tensors, such as boxes and scores
    Augment: type = NoAugment  # a dataclass: the keys that it adds to a recipe

    # Config ------------------------------------------------------------------------------------------------------------------

    def of(self, cfg: Any) -> Task:
        """The task with what depends on the dataset `cfg`, such as its metrics."""
        return self

    def complete(self, config: Any) -> None:
        """Fill in what one part of a config says of another, such as the tokenizer of a pretrained model. Light. KdrunError for
        parts that do not fit together."""

    def has_holdout(self, cfg: Any, outputs: str) -> bool:
        """Whether the dataset has samples to choose an epoch on, beside those of the test set."""
        return bool(cfg.holdout)

    def model_identity(self, node: dict[str, Any]) -> dict[str, Any]:
        """What of a model's node makes another model: content in place of paths. Light."""
        return node

    # Data --------------------------------------------------------------------------------------------------------------------

    def checksum(self, cfg: Any, outputs: str) -> str:
        """What identifies the content of the dataset that `cfg` describes. Light: no torch. KdrunError for impossible settings."""
        raise NotImplementedError

    def settled(self, cfg: Any, outputs: str) -> Any:
        """The dataset's settings, with one value for those that mean the same, so that both are one run. Light."""
        return cfg

    def identity(self, cfg: Any) -> dict[str, Any]:
        """The settings of a dataset that make another run of it, beside its content and its holdout."""
        own = {"name", "root", "holdout", "label"}
        return {key: value for key, value in vars(cfg).items() if key not in own}

    def label(self, cfg: Any) -> str:
        """What a dataset without a label of its own is called."""
        return str(cfg.name)

    def sizes(self, cfg: Any, outputs: str) -> tuple[int, int]:
        """Training samples without the holdout, and test samples, for estimates; 0 where they are not known without the data."""
        return 0, 0

    def costs_alike(self, cfg: Any, outputs: str, record: Mapping[str, Any]) -> bool:
        """Whether a sample costs a model as much as one of a finished run on the same content."""
        return True

    def load(self, cfg: Any, outputs: str) -> Any:
        """The Dataset that `cfg` describes."""
        raise NotImplementedError

    def loaders(
        self, dataset: Any, config: Any, device: torch.device, layout: torch.memory_format
    ) -> tuple[Loader, Mapping[str, Loader]]:
        """The training loader with the recipe's augmentation, and one loader for each split to evaluate on."""
        raise NotImplementedError

    def mask(self, inputs: Any) -> Tensor | None:
        """Where inputs are padded: (B, T) bool, True where a token is no padding. None where they are not."""
        return None

    def first(self, batch: Batch, count: int) -> Batch:
        """The first samples of a batch."""
        from kdrun.methods.taps import first_rows  # needs torch

        return {key: first_rows(value, count) for key, value in batch.items()}

    def augments(self, recipe: Any) -> bool:
        """Whether a sample is another input in every epoch. If not, a teacher's outputs are computed once and kept."""
        return True

    def preprocessing(self, dataset: Any) -> dict[str, Any]:
        """What a record must hold to give a model its inputs again."""
        raise NotImplementedError

    def files(self, dataset: Any, model: nn.Module) -> dict[str, str]:
        """Files of a run that `rebuild` and `preprocessor` need, by name: their content. They lie in the folder `task` of the run."""
        return {}

    def preprocessor(self, model: nn.Module, record: Mapping[str, Any], folder: Path) -> nn.Module:
        """A trained model with its preprocessing, for kdrun.load. `folder`: where its `files` lie."""
        raise NotImplementedError

    # Models ------------------------------------------------------------------------------------------------------------------

    def outputs(self, dataset: Any) -> int:
        """How many numbers a model gives for one sample: its builder's first argument."""
        return len(dataset.classes)

    def outputs_of(self, record: Mapping[str, Any]) -> int:
        """The same from a record."""
        return len(record["dataset"]["classes"])

    def start(self, config: Any, student: nn.Module, teacher: nn.Module) -> bool:
        """Give the student what it takes from the trained teacher before its first step; False where that is nothing."""
        return False

    def load_checkpoint(self, model: nn.Module, path: str, name: str, role: str, classes: list[str]) -> str | None:
        """Load a file of a kind that only this task knows; returns a line for the user. None: it is a file of another kind."""
        return None

    def fold(self, teacher: nn.Module) -> None:
        """Make a teacher faster, once it has its trained weights: it never learns again."""

    def rebuild(self, record: Mapping[str, Any], folder: Path) -> nn.Module | None:
        """The model of a finished run, without its weights; None where its builder and its settings are enough to build it again.

        `folder`: where the `files` of the run lie.
        """
        return None

    def check_output(self, output: Any, outputs: int) -> str | None:
        """What is wrong with what a model gives for a batch, or None."""
        raise NotImplementedError

    def wanted(self, outputs: int) -> str:
        """What a model must give, for a message: "logits (batch, 10)"."""
        return f"outputs (batch, {outputs})"

    def remark(self, output: Any, model: str) -> str | None:
        """A line on an output that is allowed and may not be what the user meant; `model` names it: "teacher resnet20"."""
        return None

    def cost(self, model: nn.Module, example: Any) -> int:
        """Multiply-adds for one sample."""
        from kdrun.tasks.cost import multiply_adds  # needs torch

        return multiply_adds(model, example)

    def timing_input(self, count: int, cfg: Any, outputs: str) -> Any | None:
        """Random inputs of the dataset's shape, to time a model on; None where the shape is not known."""
        return None

    # Learning ----------------------------------------------------------------------------------------------------------------

    def loss(self, output: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
        """The supervised loss, mean over the batch; or its parts by name, whose sum it is and which are shown one by one."""
        raise NotImplementedError

    def optimization(self, stage: Stage, recipe: Any, student: nn.Module, steps: int) -> Optimization | None:
        """How the weights of a stage are updated; `steps`: batches of an epoch. None: a step of the recipe's optimiser after each."""
        return None

    def evaluator(self) -> Evaluator:
        """For one model on one split."""
        raise NotImplementedError

    def train_sum(self, output: Any, batch: Batch) -> Tensor:
        """A scalar on the device, summed over the batch's samples; its mean over an epoch is what `train_score` takes."""
        raise NotImplementedError

    def train_score(self, mean: float) -> float | None:
        """The first metric on the training samples, while the weights still change, from the mean of `train_sum`; None if it is no mean."""
        return mean

    def agreement(self, student: Evaluation, teacher: Evaluation) -> float:
        """How far two models say the same, right or wrong; 1 where they do everywhere."""
        raise NotImplementedError

    def details(self, evaluation: Evaluation, dataset: Any) -> dict[str, Any]:
        """What the record and the page show of the last epoch beside the metrics."""
        return {}

    def weakness(
        self, evaluation: Evaluation, recorded: float | None, dataset: Any, model: Any, test: Loader
    ) -> str | None:
        """Why a teacher is too weak to be what the user meant; None where it is not. `recorded`: the score of its own run."""
        return None

    def is_near_chance(self, evaluation: Evaluation) -> bool:
        """Whether a model is hardly better than one that learned nothing."""
        return False

    # Pictures ----------------------------------------------------------------------------------------------------------------

    def preview(self, board: SummaryWriter, dataset: Any, inputs: Any) -> None:
        """A few inputs of the first epoch, for TensorBoard."""

    def show(self, board: SummaryWriter, dataset: Any, evaluation: Evaluation, step: int) -> None:
        """What TensorBoard shows of the last epoch beside its curves."""

    def picture(self, path: Path, dataset: Any, columns: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a PNG of what several models give for the same few samples. `columns`: title -> predictions of the test set."""

    # Files -------------------------------------------------------------------------------------------------------------------

    def export(self, folder: Path, dataset: Any, student: nn.Module, chosen: Mapping[str, Any], recipe: Any) -> None:
        """Write files of a finished run that other programs open. `chosen`: last, and best where an epoch was chosen -> state dict."""
