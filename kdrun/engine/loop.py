"""fit and evaluate: the only training loop. It knows stages, terms and weights, and nothing of any method or task."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdrun.config.schema import Recipe
from kdrun.engine.meter import Meter
from kdrun.engine.optimization import StepPerBatch
from kdrun.engine.schedule import factor
from kdrun.engine.shares import is_due, shares_of
from kdrun.errors import DivergedError, KdrunError, choices
from kdrun.methods.base import Stage
from kdrun.methods.distillation import Distillation
from kdrun.methods.taps import as_float, detached, device_of
from kdrun.tasks.base import Evaluation, Loader, Optimization, Task


@dataclass
class Training:
    """All that `fit` trains with; built by kdrun/engine/build.py."""

    task: Task
    distillation: Distillation
    train: Loader
    evals: Mapping[str, Loader]  # split -> its batches
    recipe: Recipe
    weights: dict[str, float]  # term -> weight
    schedules: dict[str, dict[str, Any]]  # term -> how its weight moves
    log_every: int = 50


@dataclass
class Progress:
    """Where a run is: what a resume needs beside the weights and the optimiser."""

    stage: int = 0
    epoch: int = 0  # finished epochs of that stage
    step: int = 0  # optimiser steps over all stages
    train_s: float = 0.0
    wait_s: float = 0.0
    samples: int = 0
    optimizer: dict[str, Any] | None = None


@dataclass
class Epoch:
    """What one epoch of one stage left: means over its samples; a line of curves.jsonl."""

    stage: str
    epoch: int  # counts from 1
    epochs: int
    step: int
    lr: float
    loss: dict[str, float]  # total, and each term unweighted
    train_score: float | None
    samples_per_s: float
    data_wait: float
    seconds: float
    shares: dict[str, float] = field(
        default_factory=dict
    )  # of each term in the gradient, as last measured; {}: not, or a single term
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)  # model -> split -> what it scored


class Journal(Protocol):
    """What fit tells the outside (kdrun/engine/journal.py writes it to disk and to the screen)."""

    def start_stage(self, stage: Stage, epochs: int, steps: int, done: int) -> None: ...
    def tick(self, stage: Stage, epoch: int, losses: dict[str, float] | None) -> None: ...
    def point(self, stage: Stage, step: int, values: dict[str, float]) -> None: ...
    def end_epoch(self, epoch: Epoch, progress: Progress) -> None: ...


def fit(training: Training, journal: Journal, progress: Progress) -> None:
    """Train every stage of the distillation, from where `progress` says; the journal keeps what comes of it."""
    distillation = training.distillation
    for number, stage in enumerate(distillation.stages):
        if number < progress.stage:
            continue
        if number > progress.stage:
            progress.stage, progress.epoch, progress.optimizer = number, 0, None
        recipe = stage_recipe(training.recipe, stage)
        enter(distillation, stage)
        optimization = optimization_of(training, stage, recipe)
        if progress.optimizer is not None:
            optimization.load_state_dict(progress.optimizer)
        distillation.keep_average(optimization.average)
        journal.start_stage(stage, recipe.epochs, len(training.train), progress.epoch)
        for epoch in range(progress.epoch, recipe.epochs):
            distillation.begin_epoch(number, epoch)
            line = train_epoch(training, stage, recipe, optimization, epoch, journal, progress)
            line.evaluations = _evaluate_all(training, stage, progress.step)
            enter(distillation, stage)
            progress.epoch, progress.optimizer = epoch + 1, optimization.state_dict()
            journal.end_epoch(line, progress)


def optimization_of(training: Training, stage: Stage, recipe: Recipe) -> Optimization:
    """How the weights of a stage are updated: as the task says, or a step of the recipe's optimiser after every batch."""
    steps, student = len(training.train), training.distillation.student.module
    return training.task.optimization(stage, recipe, student, steps) or StepPerBatch(stage, recipe, steps)


def train_epoch(
    training: Training,
    stage: Stage,
    recipe: Recipe,
    optimization: Optimization,
    epoch: int,
    journal: Journal,
    progress: Progress,
) -> Epoch:
    """One pass over the training samples by the stage's own `recipe`. The device is waited for on logging steps alone."""
    distillation, task = training.distillation, training.task
    steps, began = len(training.train), time.perf_counter()
    meter, shares = Meter(), {}
    batches = iter(training.train.epoch(epoch))
    for i in range(steps):
        waited = time.perf_counter()
        batch = next(batches)
        meter.wait_s += time.perf_counter() - waited
        share, lr = (epoch + i / steps) / recipe.epochs, optimization.begin(epoch, i)

        weights = {name: w * factor(training.schedules.get(name), share) for name, w in training.weights.items()}
        distillation.set_progress(share)
        output, terms = distillation(batch, stage, weights)
        own = {name: weight_of(weights, name) for name in terms}
        total = weighted(terms, own) if any(own.values()) else None
        now = shares_of(terms, own, stage, distillation.student) if is_due(epoch, i, steps) else {}
        if total is not None and (total.requires_grad or not stage.may_skip):
            optimization.step(total, len(batch["index"]))
        elif (
            total is None
        ):  # schedules hold every term at 0 here: no step, because weight decay would change the weights
            total = torch.zeros_like(next(iter(terms.values())))
        distillation.after_step(weights)

        progress.step += 1
        if now:
            shares = now
            journal.point(stage, progress.step, {f"share/{name}": value for name, value in now.items()})
        score_sum = task.train_sum(detached(output.logits), batch)
        meter.add({"total": total, **terms, **distillation.parts}, score_sum, len(batch["index"]), progress.step)
        logged = None
        if progress.step % training.log_every == 0 or i + 1 == steps:
            logged = meter.read(stage.name)
            points = {f"loss/{name}": value for name, value in logged.items()}
            points |= {f"weight/{name}": value for name, value in own.items()}
            points |= {f"log/{name}": value for name, value in distillation.logged().items()}
            journal.point(stage, progress.step, {**points, "lr": lr})
        journal.tick(stage, epoch, logged)
    seconds = time.perf_counter() - began
    progress.train_s, progress.wait_s = progress.train_s + seconds, progress.wait_s + meter.wait_s
    progress.samples += meter.samples
    # A stage that evaluates nothing does not train the head: its score says nothing.
    train_score = task.train_score(meter.mean_score()) if stage.evaluates else None
    return Epoch(
        stage.name, epoch + 1, recipe.epochs, progress.step, lr, meter.means(), train_score,
        meter.samples / seconds, meter.wait_s / seconds, seconds, shares,
    )  # fmt: skip


def _evaluate_all(training: Training, stage: Stage, step: int) -> dict[str, dict[str, Evaluation]]:
    """What every model that the stage evaluates scores on every split."""
    evaluations = {
        name: {
            split: evaluate(training.task, model, loader, training.distillation.student.autocast)
            for split, loader in training.evals.items()
        }
        for name, model in training.distillation.evaluated(stage).items()
    }
    if not all(one.is_finite() for splits in evaluations.values() for one in splits.values()):
        raise DivergedError(stage.name, step, "weights")  # the last update broke them, after a finite loss
    for name, splits in evaluations.items():
        for split, one in splits.items():
            if not math.isfinite(one.score):
                metric = training.task.metrics[0].label
                raise KdrunError(f"{metric} of {name} is {one.score} on the {split} set, so epochs cannot be compared")
    return evaluations


def evaluate(task: Task, model: nn.Module, loader: Loader, autocast: torch.dtype | None = None) -> Evaluation:
    """What a model scores on a split, in eval mode and without gradients; its outputs are float32."""
    model.eval()
    evaluator = task.evaluator()
    with torch.no_grad():
        for batch in loader.batches():
            x = batch["input"]
            with torch.autocast(device_of(x).type, autocast or torch.bfloat16, enabled=autocast is not None):
                output = model(x)
            evaluator.update(as_float(output), batch)
    return evaluator.result()


def enter(distillation: Distillation, stage: Stage) -> None:
    """Thaw exactly what the stage trains, but for what builders froze; all else is frozen and in eval mode."""
    distillation.requires_grad_(False).eval()
    for module in stage.trains:
        module.requires_grad_(True).train()
    distillation.keep_frozen()


STAGE_KEYS = {  # the others belong to the loader, which all stages share
    "epochs", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule", "milestones", "gamma", "warmup",
}  # fmt: skip


def stage_recipe(recipe: Recipe, stage: Stage) -> Recipe:
    """The recipe with the stage's own settings; `epochs` there is a share of the recipe's, at least one epoch."""
    settings = dict(stage.settings)
    unknown = set(settings) - STAGE_KEYS
    if unknown:
        key = sorted(unknown)[0]
        raise KdrunError(f"no key '{key}' in stage {stage.name}. {choices(key, STAGE_KEYS)}")
    if "epochs" in settings:
        share = settings["epochs"]
        if not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise KdrunError(
                f"epochs of stage {stage.name} is {share!r}; it is a share of the recipe's, above 0 and up to 1"
            )
        settings["epochs"] = max(1, round(share * recipe.epochs))
    return dataclasses.replace(recipe, **settings)


def weight_of(weights: Mapping[str, float], term: str) -> float:
    """The weight of a term; one without a weight is an error."""
    if term not in weights:
        method, _, name = term.partition(".")
        raise KdrunError(f"term {term} has no weight; say method.{method}.weights.{name}=NUMBER")
    return weights[term]


def weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of weight * term. A term of weight 0 is left out: zero gradients would still let weight decay work."""
    parts = [weights[name] * value for name, value in terms.items() if weights[name] != 0]
    if not parts:
        raise KdrunError(f"every term has weight 0 ({', '.join(terms)}): there is nothing to train on")
    return sum(parts[1:], parts[0])
