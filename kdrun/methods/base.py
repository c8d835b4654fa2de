"""The one interface: Method, Stage and the Distillation that runs them.

A method is an nn.Module that owns its layers and buffers and returns named, unweighted losses. A Distillation combines a pair of
tapped models with the methods that train the student. The training loop knows only stages and terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.methods.taps import Output, Tapped, device_of

# input (a tensor, or a dict of tensors), label (B, ...), index (B,) int64: the row in the training set; mask where inputs are padded
Batch = Mapping[str, Any]
Terms = dict[str, Tensor]  # scalars in float32, unweighted


class Method(nn.Module):
    """What a student learns from a teacher. Owns its own layers and buffers; the two models belong to the Distillation.

    A subclass defines `loss`, and `build` if it has hyper-parameters or layers. It defines other functions only if it needs them.
    """

    family = "yours"  # logits | features | relations | transformers | gradients | online | labels: how `kdrun methods` groups them
    paper = ""  # authors and year; title and link stand on the first line of the file
    # none | outputs (frozen) | gradients (inputs require grad) | fresh (pair.fresh: peers, trained too)
    teacher = "outputs"
    distils = True  # False: the method works only in its own stages; the last stage trains on the supervised loss alone
    needs: tuple[str, ...] = ("label",)  # keys that a batch must have
    needs_classes = False  # True: labels and outputs must be classes, not numbers to be predicted
    needs_input_gradients = (
        False  # True: inputs must be numbers that a gradient can be taken of; so it is with teacher = "gradients"
    )
    # True: taps of sequences come as (B, T, D), and the method itself leaves out padding (batch["mask"] is True where a token is none).
    # False: where a batch has a mask, they come as rows of its tokens (tokens, D), so that padding never counts.
    sequences = False
    generator: torch.Generator  # the random generator of the method, on the device; it gets a new seed every epoch
    optimizer: Mapping[str, float] = MappingProxyType({})  # lr and weight_decay of its layers, if not the recipe's
    progress = 0.0  # how far training of the stage is, from 0 to 1, at this step

    def build(self, pair: Pair) -> None:
        """Keep the hyper-parameters (keyword-only arguments; the yaml gives their values) and make layers of the sizes in `pair`."""

    @classmethod
    def choose_taps(
        cls,
        taps: tuple[list[str], list[str]],
        settings: Mapping[str, Any],
        student: nn.Module,
        teacher: nn.Module | None,
    ) -> tuple[list[str], list[str]]:
        """The taps of student and teacher; `taps` are those of the yaml. A method that maps layers on layers chooses them here."""
        return taps

    def ready(self) -> None:
        """Called once before the first step, when both models have the weights that they begin with. KdrunError where these cannot work."""

    def loss(self, student: Output, teacher: Any, batch: Batch) -> Terms:
        """Unweighted scalars by term. `teacher` is an Output, or None if `Method.teacher` is none or fresh."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(student, teacher, batch)")

    def log(self, name: str, value: float | Tensor) -> None:
        """Show a number in TensorBoard at the next logging step, as <stage>/log/<method>.<name>. A scalar tensor is not waited for."""
        self.__dict__.setdefault("_logged", {})[name] = value.detach() if isinstance(value, Tensor) else value

    def after_step(self) -> None:
        """Called after the step of the optimiser, to update memory banks. (A change inside `loss` breaks the backward pass.)"""

    def task(self, output: Output, batch: Batch, supervised: Callable[[Any, Batch], Tensor]) -> Tensor | None:
        """A loss that replaces the supervised loss, or None (label smoothing returns one)."""
        return None

    def evaluates(self) -> dict[str, nn.Module]:
        """More models to evaluate after each epoch, by name (peers)."""
        return {}

    def details(
        self, student: nn.Module, teacher: nn.Module | None, test: Any, score: Callable[[nn.Module], float]
    ) -> dict[str, Any]:
        """What the record shows of the trained student beside its scores, in `details` under the name of the method.

        `test`: the batches of the test set (kdrun.tasks.base.Loader). `score`: the first metric of a model on it.
        """
        return {}

    def stages(self, pair: Pair, distil: Stage) -> list[Stage]:
        """The stages of training; `distil`, the default, trains the student and the methods' layers on every loss."""
        return [distil]


@dataclass
class Stage:
    """A phase of training with its own optimiser. Its settings are method.<name>.stages.<stage>."""

    name: str
    terms: Callable[[Batch], tuple[Output, Terms]] | None  # None: the supervised loss and the losses of every method
    trains: list[nn.Module]  # the modules that learn, in train mode; all others are frozen and in eval mode
    # Models to evaluate after an epoch; the best epoch is chosen by the one called "student".
    evaluates: dict[str, nn.Module] = field(default_factory=dict)
    # Overrides of the recipe; epochs is a share of the epochs of the recipe.
    settings: dict[str, Any] = field(default_factory=dict)
    may_skip: bool = (
        False  # True: a step may have no gradient, because nothing that it trains took part; the step changes nothing
    )
    owner: str = ""  # the method that the stage belongs to; set by the Distillation, which puts it in front of the terms of the stage


@dataclass
class Side:
    """One model of the pair as `Method.build` sees it: the shapes of its taps and logits, and its parts."""

    shapes: list[tuple[int, ...]]  # one per tap, in the order of the taps, with a batch of 2: (2, C, H, W) or (2, D)
    logits: Any  # the shape of the output, with a batch of 2; for a dict of tensors a dict of shapes
    until: Callable[[str], list[nn.Module]]  # tap -> the modules that fire before it
    module: nn.Module  # the model itself
    run: Callable[[Any], Output]  # run it alone on an input, with gradients where something in it learns


@dataclass
class DataFacts:
    """What a method may know about the training data."""

    train_n: int  # rows of the training set before any split: the size of a memory bank
    labels: Tensor  # (train_n, ...); -1 where a row belongs to the holdout
    classes: int  # how many numbers a model gives for one sample
    example: Any  # two inputs
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # of the task; of images: size, mean, std
    mask: Tensor | None = None  # (2, T) bool of the example where inputs are padded: True where a token is no padding

    @property
    def device(self) -> torch.device:
        """Where the models and their inputs lie."""
        return device_of(self.example)

    @property
    def are_classes(self) -> bool:
        """Whether labels are classes, one for each sample."""
        return not self.labels.is_floating_point() and self.labels.ndim == 1


@dataclass
class Pair:
    """The two models and the data, as `Method.build` sees them."""

    student: Side
    teacher: Side | None
    data: DataFacts
    taps: tuple[list[str], list[str]]  # names of the taps of the student and of the teacher
    run: Callable[[Batch], tuple[Output, Any]]  # run both models on a batch; for stages that belong to the method
    run_teacher: Callable[[Batch], Output]  # run only the teacher
    # Make a new peer with its own random stream: of the teacher's architecture, or of the student's if there is no teacher.
    fresh: Callable[[int], Tapped]
    supervised: Callable[[Any, Batch], Tensor]  # the task's loss: output, batch -> mean over the batch


def mean(losses: Iterable[Tensor]) -> Tensor:
    """The mean of the losses of several layers, so that a weight does not depend on the number of layers."""
    losses = list(losses)
    return sum(losses[1:], losses[0]) / len(losses)
