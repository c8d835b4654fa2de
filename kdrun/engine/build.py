"""From a config to all that a run trains with: data, student, teacher and method, on the device and rehearsed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.config.schema import Config
from kdrun.config.weights import share_of
from kdrun.engine.automatic import check_shares
from kdrun.engine.loop import Training
from kdrun.engine.precision import Compute
from kdrun.engine.rehearsal import Rehearsal, rehearse
from kdrun.engine.schedule import check_schedule
from kdrun.errors import KdrunError, choices
from kdrun.methods.base import DataFacts
from kdrun.methods.distillation import Distillation
from kdrun.runs.checkpoint import load_checkpoint, load_into
from kdrun.runs.identity import is_fresh
from kdrun.runs.plan import model_arguments, settings
from kdrun.seeds import stream
from kdrun.tasks import Task, task_of
from kdrun.tasks.model import build_model, rehearse_output, title


@dataclass
class Parts(Training):
    """What a run is made of: a Training, and what was learned while it was built."""

    dataset: Any = None  # kdrun.tasks.base.Dataset
    compute: Compute = None  # type: ignore[assignment]
    notes: list[str] = field(default_factory=list)  # what a user should know of the models before they train
    layout: str = "channels_last"  # of inputs and weights in memory, or contiguous
    rehearsal: Rehearsal = field(default_factory=Rehearsal)
    teacher_is_trained: bool = True  # False: at the rehearsal it still had random weights
    auto: dict[str, float] = field(
        default_factory=dict
    )  # term -> SHARE of auto(SHARE); until it is measured its weight is 1

    def lines(self) -> list[str]:
        """What is known once everything is built: how it is computed, and what the user should know before training."""
        example = self.distillation.example
        layout = f", {self.layout}" if isinstance(example, Tensor) and example.ndim == 4 else ""
        return [f"engine   {self.compute.words}{layout}", *self.notes, *self.rehearsal.notes]

    def rehearse(self) -> None:
        """One step of every stage on a few samples; weights and buffers are put back."""
        self.rehearsal = rehearse(
            self.distillation, self.train, self.recipe, self.weights, self.dataset.name, self.task.first
        )


def build(
    config: Config, compute: Compute, dataset: Any = None, teacher_weights: dict[str, Tensor] | None = None
) -> Parts:
    """Data, student, teacher and method, on the device, rehearsed; a pair that cannot work stops here.

    `teacher_weights`: of a teacher whose run is finished; one that is trained later still has random weights.
    channels_last is fast; a model that it does not suit (`.view` of a map, parameters of five dimensions) runs contiguous.
    """
    dataset = dataset or task_of(config).load(config.dataset, config.outputs)
    try:
        return _build(config, compute, dataset, teacher_weights, torch.channels_last)
    except RuntimeError as error:  # the layout may be the cause: try without it; a real error comes again
        parts = _build(config, compute, dataset, teacher_weights, torch.contiguous_format)
        parts.layout = f"contiguous (channels_last does not suit this model: {str(error).partition('.')[0]})"
        return parts


def _build(
    config: Config,
    compute: Compute,
    dataset: Any,
    teacher_weights: dict[str, Tensor] | None,
    layout: torch.memory_format,
) -> Parts:
    task = task_of(config)
    train, evals = task.loaders(dataset, config, compute.device, layout)
    models = _Models(config, task, compute, layout, task.outputs(dataset), evals["test"].first(2), dataset.classes)
    student = models.build(config.student, stream(config.seed, "student"), "student")
    teacher = None
    if config.teacher.name != "none" and not is_fresh(config):
        teacher = models.build(config.teacher, 0, "teacher")
        if teacher_weights is not None:
            load_into(teacher, teacher_weights, "the teacher's run", config.teacher.name)
    distillation = Distillation(
        student,
        teacher,
        {name: (METHODS.get(name), values) for name, values in settings(config).items()},
        data=_facts(dataset, config.dataset.holdout, models, task),
        task=task.loss,
        seed=config.seed,
        autocast=compute.autocast,
        fresh=models.peer,
    )
    weights, schedules = term_weights(config)
    auto = {term: share for term, weight in weights.items() if (share := share_of(weight)) is not None}
    weights |= dict.fromkeys(auto, 1.0)
    parts = Parts(
        task, distillation, train, evals, config.recipe, weights, schedules, config.engine.log_every,
        dataset=dataset, compute=compute, notes=models.notes, auto=auto,
    )  # fmt: skip
    parts.teacher_is_trained = teacher is None or config.teacher.checkpoint is not None or teacher_weights is not None
    parts.rehearse()
    check_shares(auto, weights["task"], parts.rehearsal.terms())
    return parts


def _facts(dataset: Any, holdout: int, models: _Models, task: Task) -> DataFacts:
    """What methods may know of the training data; rows of the holdout have the label -1."""
    labels = dataset.train.labels
    every = labels.new_full((len(labels) + holdout, *labels.shape[1:]), -1)
    every[dataset.train.index] = labels
    example = models.example
    return DataFacts(len(every), every, models.outputs, example, task.preprocessing(dataset), task.mask(example))


@dataclass
class _Models:
    """Builds the models of one run, each from a random stream of its own, and notes what a user should know of them."""

    config: Config
    task: Task
    compute: Compute
    layout: torch.memory_format
    outputs: int
    example: Any
    classes: list[str]
    notes: list[str] = field(default_factory=list)

    def build(self, node: Any, seed: int, role: str) -> nn.Module:
        """A model on the device, with its checkpoint if its node names one, after a look at what it gives."""
        torch.manual_seed(seed)
        arguments = model_arguments(node)
        name = title(node.name, arguments)
        model: Any = build_model(node.name, self.outputs, arguments, node.output)
        if node.checkpoint:
            note = self.task.load_checkpoint(model, node.checkpoint, name, role, self.classes)
            note = note or load_checkpoint(model, node.checkpoint, name, role, node.checkpoint_key)
            self._note(note and f"weights  {role} {name}: {note}")
        model = model.to(self.compute.device, memory_format=self.layout)
        trains = role == "student" or is_fresh(self.config)
        self._note(rehearse_output(model, self.example, self.task, self.outputs, role, name, trains))
        return model

    def peer(self, number: int) -> nn.Module:
        """A peer with the architecture of the teacher, or of the student where there is no teacher."""
        role = "teacher" if self.config.teacher.name != "none" else "student"
        node = dataclasses.replace(getattr(self.config, role), checkpoint=None, checkpoint_key=None)
        return self.build(node, stream(self.config.seed, "peer", number), role)

    def _note(self, line: str | None) -> None:
        if line and line not in self.notes:
            self.notes.append(line)


def term_weights(config: Config) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Weights, as the config has them, and schedules by full term name.

    The task loss weighs 1 unless a method or loss.task says otherwise.
    """
    weights: dict[str, Any] = {}
    schedules, tasks = {}, {}
    for method, values in settings(config).items():
        for term, weight in values["weights"].items():
            if term == "task":
                tasks[method] = weight
            else:
                weights[f"{method}.{term}"] = weight
        for term, schedule in values["schedules"].items():
            check_schedule(f"method.{method}.schedules.{term}", schedule)
            schedules[f"{method}.{term}"] = schedule
            if term not in values["weights"] or term == "task":
                known = [name for name in values["weights"] if name != "task"]
                raise KdrunError(
                    f"method.{method}.schedules has '{term}', which has no weight there. {choices(term, known)}"
                )
    if config.loss.task is None and len(set(tasks.values())) > 1:
        different = ", ".join(f"{method} {weight:g}" for method, weight in tasks.items())
        raise KdrunError(
            f"the methods disagree on the weight of the supervised loss ({different}); say loss.task=NUMBER"
        )
    weights["task"] = config.loss.task if config.loss.task is not None else next(iter(tasks.values()), 1.0)
    return weights, schedules
