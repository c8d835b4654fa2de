"""fit and evaluate: the only optimiser loop. It knows stages, terms and weights, and nothing of any method."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdrun.config.schema import Recipe
from kdrun.engine.schedule import factor, learning_rate
from kdrun.errors import DivergedError, KdrunError, choices
from kdrun.methods.base import Distillation, Stage


@dataclass
class Progress:
    """Where a run is: what a resume needs beside the weights and the optimiser."""

    stage: int = 0
    epoch: int = 0  # finished epochs of that stage
    step: int = 0  # optimiser steps over all stages
    train_s: float = 0.0
    wait_s: float = 0.0
    images: int = 0
    optimizer: dict[str, Any] | None = None


@dataclass
class Epoch:
    """What one epoch of one stage left: means over its images; a line of curves.jsonl."""

    stage: str
    epoch: int  # counts from 1
    epochs: int
    step: int
    lr: float
    loss: dict[str, float]  # total, and each term unweighted
    train_score: float | None
    images_per_s: float
    data_wait: float
    seconds: float
    logits: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # model -> split -> (N, K) on the device


class Journal(Protocol):
    """What fit tells the outside (kdrun/engine/journal.py writes it to disk and to the screen)."""

    def start_stage(self, stage: Stage, epochs: int, steps: int, done: int) -> None: ...
    def tick(self, stage: Stage, epoch: int, losses: dict[str, float] | None) -> None: ...
    def point(self, stage: Stage, step: int, values: dict[str, float]) -> None: ...
    def end_epoch(self, epoch: Epoch, progress: Progress) -> None: ...


def fit(
    distillation: Distillation,
    train: Any,  # kdrun.tasks.image.data.loader.Loader
    evals: Mapping[str, Any],  # split -> Loader
    recipe: Recipe,
    weights: Mapping[str, float],
    schedules: Mapping[str, Mapping[str, Any]],
    journal: Journal,
    *,
    progress: Progress,
    correct: Callable[[Any, Tensor], Tensor],
    log_every: int = 50,
) -> None:
    """Train every stage of the distillation, from where `progress` says, and leave the best that it knows in the journal."""
    for number, stage in enumerate(distillation.stages):
        if number < progress.stage:
            continue
        if number > progress.stage:
            progress.stage, progress.epoch, progress.optimizer = number, 0, None
        settings = stage_recipe(recipe, stage)
        enter(distillation, stage)
        optimizer = make_optimizer(stage, settings)
        if progress.optimizer is not None:
            optimizer.load_state_dict(progress.optimizer)
        journal.start_stage(stage, settings.epochs, len(train), progress.epoch)
        for epoch in range(progress.epoch, settings.epochs):
            distillation.begin_epoch(number, epoch)
            line = train_epoch(
                distillation,
                stage,
                optimizer,
                train,
                settings,
                epoch,
                weights,
                schedules,
                journal,
                progress,
                correct,
                log_every,
            )
            for name, model in stage.evaluates.items():
                line.logits[name] = {split: evaluate(distillation, model, loader) for split, loader in evals.items()}
            if not all(logits.isfinite().all() for splits in line.logits.values() for logits in splits.values()):
                raise DivergedError(
                    stage.name, progress.step, "weights"
                )  # the last update broke them, after a finite loss
            if not stage.evaluates:
                line.train_score = None  # the head is not trained: its accuracy says nothing
            enter(distillation, stage)
            progress.epoch, progress.optimizer = epoch + 1, optimizer.state_dict()
            journal.end_epoch(line, progress)


def train_epoch(
    distillation: Distillation,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    train: Any,
    recipe: Recipe,
    epoch: int,
    weights: Mapping[str, float],
    schedules: Mapping[str, Mapping[str, Any]],
    journal: Journal,
    progress: Progress,
    correct: Callable[[Any, Tensor], Tensor],
    log_every: int,
) -> Epoch:
    """One pass over the training images. The device is waited for on logging steps alone."""
    steps, began = len(train), time.perf_counter()
    meter = Meter()
    batches = iter(train.epoch(epoch))
    for i in range(steps):
        waited = time.perf_counter()
        batch = next(batches)
        meter.wait_s += time.perf_counter() - waited
        share = (epoch + i / steps) / recipe.epochs
        lr = learning_rate(recipe, recipe.epochs, epoch, i / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr

        now = {name: weight * factor(schedules.get(name), share) for name, weight in weights.items()}
        output, terms = distillation(batch, stage, now)
        now = {name: weights_of(now, name) for name in terms}
        if any(now.values()):
            total = weighted(terms, now)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
        else:  # schedules hold every term at 0 as yet: no update, not even of weight decay
            total = torch.zeros_like(next(iter(terms.values())))
        distillation.after_step()

        progress.step += 1
        hits = correct(output.logits.detach(), batch["label"])
        meter.add({"total": total, **terms}, hits, len(batch["label"]), progress.step)
        logged = None
        if progress.step % log_every == 0 or i + 1 == steps:
            logged = meter.read(stage.name)
            points = {f"loss/{name}": value for name, value in logged.items()} | {
                f"weight/{name}": value for name, value in now.items()
            }
            journal.point(stage, progress.step, {**points, "lr": lr})
        journal.tick(stage, epoch, logged)
    seconds = time.perf_counter() - began
    progress.train_s, progress.wait_s = progress.train_s + seconds, progress.wait_s + meter.wait_s
    progress.images += meter.images
    return Epoch(
        stage.name, epoch + 1, recipe.epochs, progress.step, lr, meter.means(), meter.score(),
        meter.images / seconds, meter.wait_s / seconds, seconds,
    )  # fmt: skip


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


def make_optimizer(stage: Stage, recipe: Recipe) -> torch.optim.Optimizer:
    """A fresh optimiser over the parameters that the stage has thawed, each once."""
    parameters = list(dict.fromkeys(p for module in stage.trains for p in module.parameters() if p.requires_grad))
    fused = all(p.is_cuda for p in parameters)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
    return torch.optim.SGD(
        parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov, fused=fused
    )


def weights_of(weights: Mapping[str, float], term: str) -> float:
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


def evaluate(distillation: Distillation, model: nn.Module, loader: Any) -> Tensor:
    """The logits (N, K) in float32 of a model over a split, in order, in eval mode."""
    model.eval()
    dtype = distillation.student.autocast
    logits = []
    with torch.no_grad():
        for batch in loader.batches():
            x = batch["input"]
            with torch.autocast(x.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                logits.append(model(x).float())
    return torch.cat(logits)


class Meter:
    """Sums over images, kept on the device until someone reads them; by the names of the terms, which a schedule may change."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], Tensor] = {}  # since the last read
        self.epoch_sums: dict[tuple[str, ...], Tensor] = {}
        self.counts: dict[tuple[str, ...], int] = {}
        self.epoch_counts: dict[tuple[str, ...], int] = {}
        self.bad: dict[tuple[str, ...], Tensor] = {}  # first step at which a term was not finite, or -1
        self.hits = torch.zeros(())
        self.images = 0
        self.wait_s = 0.0

    def add(self, terms: Mapping[str, Tensor], hits: Tensor, size: int, step: int) -> None:
        names, values = tuple(terms), torch.stack([value.detach() for value in terms.values()])
        if not self.images:
            self.hits = torch.zeros_like(hits)
        if names not in self.sums:
            self.sums[names] = self.epoch_sums[names] = torch.zeros_like(values, dtype=torch.float64)
            self.counts[names] = self.epoch_counts[names] = 0
            self.bad[names] = torch.full_like(values, -1, dtype=torch.long)
        self.bad[names] = torch.where((self.bad[names] < 0) & ~values.isfinite(), step, self.bad[names])
        self.sums[names] = self.sums[names] + values * size
        self.hits = self.hits + hits
        self.counts[names] += size
        self.images += size

    def read(self, stage: str) -> dict[str, float]:
        """Means since the last read; raises DivergedError for the first term that was not finite."""
        steps = [
            (step, name) for names, bad in self.bad.items() for name, step in zip(names, bad.tolist(), strict=True)
        ]
        first = min((step for step, _ in steps if step >= 0), default=None)
        if first is not None:
            # `total` is bad wherever a term is. Where the task loss is bad beside a method's term, the model's weights are broken,
            # and the method is the likelier cause.
            bad_terms = [name for step, name in steps if step == first and name != "total"] or ["total"]
            raise DivergedError(stage, first, next((name for name in bad_terms if name != "task"), "task"), bad_terms)
        means = _means(self.sums, self.counts)
        for names, sums in self.sums.items():
            self.epoch_sums[names] = self.epoch_sums[names] + sums
            self.epoch_counts[names] += self.counts[names]
            self.sums[names], self.counts[names] = torch.zeros_like(sums), 0
        return means

    def means(self) -> dict[str, float]:
        return _means(self.epoch_sums, self.epoch_counts)

    def score(self) -> float:
        return self.hits.item() / self.images


def _means(sums: Mapping[tuple[str, ...], Tensor], counts: Mapping[tuple[str, ...], int]) -> dict[str, float]:
    """Each term's mean over the images that it was computed for."""
    totals: dict[str, float] = {}
    images: dict[str, int] = {}
    for names, values in sums.items():
        for name, value in zip(names, values.tolist(), strict=True):
            totals[name] = totals.get(name, 0.0) + value
            images[name] = images.get(name, 0) + counts[names]
    return {name: total / images[name] for name, total in totals.items() if images[name]}
