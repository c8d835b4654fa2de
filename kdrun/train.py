"""Train one run: build data, student, teacher and method, ready the teacher, run the stages, record."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml  # comes with omegaconf
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.config.schema import Config, Recipe
from kdrun.engine.journal import RunJournal
from kdrun.engine.loop import evaluate, fit
from kdrun.engine.precision import Compute, resolve
from kdrun.engine.rehearsal import Rehearsal, rehearse
from kdrun.engine.schedule import check_schedule
from kdrun.errors import DivergedError, KdrunError, choices
from kdrun.methods.base import DataFacts, Distillation
from kdrun.runs import record as records
from kdrun.runs.checkpoint import load_checkpoint, load_into, load_weights, plain_state, save_text, weights_sha256
from kdrun.runs.identity import dataset_label, file_sha256, is_fresh, label
from kdrun.runs.plan import Plan, clear, describe, held, model_arguments, score, settings
from kdrun.runs.source import code
from kdrun.screen import Screen, again
from kdrun.seeds import stream
from kdrun.tasks.cost import multiply_adds, parameters
from kdrun.tasks.image import data, weak
from kdrun.tasks.image import metrics as image
from kdrun.tasks.image.data.loader import Augment, Loader
from kdrun.tasks.model import build_model, rehearse_output, title

_NOTED: set[str] = set()  # notes on data that this process has put on the screen: a sweep says each once


def train(plan: Plan, screen: Screen, *, role: str = "student", wait: bool = False) -> dict[str, Any]:
    """Train a run to its end, or go on with it, and return its record. `wait`: where another process trains it, wait for that one.

    Everything is built and rehearsed before the folder exists, so that a config that cannot work leaves nothing behind. The
    plan is said before that: building takes a while.
    """
    compute = resolve(plan.config.engine)
    dataset = data.load(plan.config.dataset, plan.config.outputs)
    in_full = role == "student" and not screen.brief
    if in_full:
        for line in describe(plan, f"{len(dataset.train.labels):,}/{len(dataset.test.labels):,}"):
            screen.say(line)
    for line in dataset.notes:
        if line not in _NOTED:
            _NOTED.add(line)
            screen.say(f"note     {line}")
    parts = build(plan.config, compute, dataset, _trained_already(plan))
    if in_full:
        for line in parts.lines():
            screen.say(line)
    with held(plan, wait, screen.say):
        found = plan.finished()
        if found is not None:
            return found  # another process finished it meanwhile
        if plan.config.rerun:
            clear(plan)
        return _train(plan, compute, parts, screen, role)


def show_rehearsal(plan: Plan, screen: Screen) -> None:
    """engine.rehearse=true: each term's share of the gradient on a few images, and nothing is trained or written."""
    weights = _trained_already(plan)
    parts = build(plan.config, resolve(plan.config.engine), teacher_weights=weights)
    for line in [*parts.lines(), "", *parts.rehearsal.table(), ""]:
        screen.say(line)
    screen.say(
        "gradient: the norm of weight x gradient in the student, on the first images of epoch 0, before any training"
    )
    if plan.teacher is not None and weights is None:
        screen.say(
            "the teacher is not trained yet: its weights are random here, and the shares will be others beside the trained one"
        )


def _trained_already(plan: Plan) -> dict[str, Tensor] | None:
    """The weights of a teacher whose run is finished."""
    if plan.teacher is None:
        return None
    try:
        record = plan.teacher.finished()
    except KdrunError:
        return None  # readying the teacher says what is wrong with it
    return teacher_weights(plan.teacher, record, plan.config.teacher.weights)[1] if record is not None else None


@dataclass
class Parts:
    """What a run is made of."""

    distillation: Distillation
    teacher: nn.Module | None
    dataset: Any
    train: Loader
    evals: dict[str, Loader]
    weights: dict[str, float]
    schedules: dict[str, dict[str, Any]]
    compute: Compute
    notes: list[str] = field(default_factory=list)  # what a user should know of the models before they train
    layout: str = "channels_last"  # of images and weights in memory, or contiguous
    rehearsal: Rehearsal = field(default_factory=Rehearsal)
    teacher_is_trained: bool = True  # False: at the rehearsal it had random weights yet

    def lines(self) -> list[str]:
        """What is known once everything is built: how it is computed, and what the user should know before training."""
        return [f"engine   {self.compute.said}, {self.layout}", *self.notes, *self.rehearsal.notes]

    def rehearse(self, recipe: Recipe) -> None:
        self.rehearsal = rehearse(self.distillation, self.train, recipe, self.weights, self.dataset.name)


def build(
    config: Config, compute: Compute, dataset: Any = None, teacher_weights: dict[str, Tensor] | None = None
) -> Parts:
    """Data, student, teacher and method, on the device, rehearsed; a pair that cannot work stops here.

    `teacher_weights`: of a teacher whose run is finished; one that is trained later has random weights yet.
    channels_last is fast; a model that it does not suit (`.view` of a map, parameters of five dimensions) runs contiguous.
    """
    dataset = dataset or data.load(config.dataset, config.outputs)
    try:
        return _build(config, compute, dataset, teacher_weights, torch.channels_last)
    except RuntimeError as error:  # whatever the layout's part in it was: without it, it works or fails again
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
    train, evals = loaders(config, dataset, compute, layout)
    classes = len(dataset.classes)
    example = next(iter(evals["test"].batches()))["input"][:2]

    notes: list[str | None] = []

    def model(node: Any, seed: int, role: str) -> nn.Module:
        torch.manual_seed(seed)
        arguments = model_arguments(node)
        name = title(node.name, arguments)
        built: Any = build_model(node.name, classes, arguments, node.output)
        if node.checkpoint:
            note = load_checkpoint(built, node.checkpoint, name, role, node.checkpoint_key)
            notes.append(note and f"weights  {role} {name}: {note}")
        built = built.to(compute.device, memory_format=layout)
        trains = role == "student" or is_fresh(config)
        notes.append(rehearse_output(built, example, classes, role, name, trains))
        return built

    student = model(config.student, stream(config.seed, "student"), "student")
    teacher = None
    if config.teacher.name != "none" and not is_fresh(config):
        teacher = model(config.teacher, 0, "teacher")
        if teacher_weights is not None:
            load_into(teacher, teacher_weights, "the teacher's run", config.teacher.name)
    its = "teacher" if config.teacher.name != "none" else "student"  # whose architecture the peers have
    peer = dataclasses.replace(getattr(config, its), checkpoint=None, checkpoint_key=None)
    labels = torch.full((len(dataset.train.labels) + config.dataset.holdout,), -1)
    labels[dataset.train.index] = dataset.train.labels
    distillation = Distillation(
        student,
        teacher,
        {name: (METHODS.get(name), values) for name, values in settings(config).items()},
        data=DataFacts(len(labels), labels, classes, example),
        task=image.loss,
        seed=config.seed,
        autocast=compute.autocast,
        fresh=lambda i: model(peer, stream(config.seed, "peer", i), its),
    )
    weights, schedules = term_weights(config)
    known = [*dict.fromkeys(note for note in notes if note)]
    parts = Parts(distillation, teacher, dataset, train, evals, weights, schedules, compute, known)
    parts.teacher_is_trained = teacher is None or config.teacher.checkpoint is not None or teacher_weights is not None
    parts.rehearse(config.recipe)
    return parts


def loaders(
    config: Config, dataset: Any, compute: Compute, layout: torch.memory_format = torch.channels_last
) -> tuple[Loader, dict[str, Loader]]:
    """The training loader with the recipe's augmentation, and one loader per split to evaluate on."""
    recipe = config.recipe
    padding = recipe.padding if recipe.padding is not None else dataset.size // 8
    augment = Augment(recipe.crop, padding, recipe.flip and dataset.flip)
    common: dict[str, Any] = {
        "device": compute.device, "channels_last": layout is torch.channels_last, "workers": config.engine.workers,
    }  # fmt: skip
    train = Loader(dataset.train, dataset, batch_size=recipe.batch_size, seed=config.seed, augment=augment, **common)
    splits = {"test": dataset.test} | ({"holdout": dataset.holdout} if dataset.holdout is not None else {})
    return train, {
        name: Loader(split, dataset, batch_size=512, augment=None, **common) for name, split in splits.items()
    }


def term_weights(config: Config) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Weights and schedules by full term name. The task loss weighs 1 unless a method or loss.task says otherwise."""
    weights, schedules, tasks = {}, {}, {}
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
        said = ", ".join(f"{method} {weight:g}" for method, weight in tasks.items())
        raise KdrunError(f"the methods disagree on the weight of the supervised loss ({said}); say loss.task=NUMBER")
    weights["task"] = config.loss.task if config.loss.task is not None else next(iter(tasks.values()), 1.0)
    return weights, schedules


def _train(plan: Plan, compute: Compute, parts: Parts, screen: Screen, role: str) -> dict[str, Any]:
    """With the run's folder held: record, teacher, stages, record.

    Until the journal has agreed to go on with a run that was begun before, the record of before stands: where it refuses, or
    the teacher fails, nothing of it is lost.
    """
    config, distillation = plan.config, parts.distillation
    before = plan.record()
    record = first_record(plan, parts, compute, before)
    told = record if before is None else {**before, "status": "running", "error": None}
    journal = None
    try:
        records.write(plan.folder, told)
        screen.log = plan.folder / "log.txt"
        for line in [*parts.lines(), *(f"note     {line}" for line in parts.dataset.notes)]:
            screen.note(line)
        teacher_logits = ready_teacher(plan, parts, record, screen)
        if compute.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # the teacher's own training is not this run's
        screen.log, screen.role = plan.folder / "log.txt", role
        labels = {name: loader.labels.to(compute.device) for name, loader in parts.evals.items()}
        journal = RunJournal(plan.folder, record, distillation, compute, labels, teacher_logits, screen)
        progress = journal.resume()
        told = record
        records.write(plan.folder, record)
        save_text(plan.folder / "config.yaml", yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
        if progress.step == 0:
            _say_shares(plan, parts, screen)
            journal.samples(parts.train.view(parts.dataset.train.index[:16], 0))
            if teacher_logits is not None and record["teacher"] is not None:
                journal.teacher(record["teacher"]["score"])
        fit(
            distillation, parts.train, parts.evals, config.recipe, parts.weights, parts.schedules, journal,
            progress=progress, correct=image.correct, log_every=config.engine.log_every,
        )  # fmt: skip
        journal.finish(evaluate(distillation, distillation.student.module, parts.evals["test"]))
        record |= {"status": "done", "score": score(record, config.protocol), "error": None}
    except BaseException as error:
        told |= failure(error, journal.place if journal is not None else {})
        plain = _plain(error)
        if plain is error:
            raise  # "from" itself would keep the models alive through the traceback
        raise plain from error
    finally:
        screen.stop()
        if journal is not None:
            journal.close()
        if told is record:
            record["time"]["end"] = records.now()
        _last_word(plan.folder, told)
        screen.log = None
    return record


def _say_shares(plan: Plan, parts: Parts, screen: Screen) -> None:
    """Each term's share of the gradient, beside the trained teacher: built before it was there, the parts are rehearsed again."""
    if not parts.teacher_is_trained:
        parts.rehearse(plan.config.recipe)
    line = parts.rehearsal.line()
    if line:
        (screen.note if screen.brief else screen.say)(line)


def _last_word(folder: Path, record: dict[str, Any]) -> None:
    """Write the record even where the disk is full: its old space is free again by then, or the old record stays."""
    try:
        records.write(folder, record)
    except OSError:
        if record["status"] == "done":
            raise


def _plain(error: BaseException) -> BaseException:
    """Errors of the machine in one line; everything else as it is."""
    if isinstance(error, torch.OutOfMemoryError):
        return KdrunError(
            f"out of memory ({str(error).splitlines()[0][:120]}). A smaller recipe.batch_size needs less; the run can go on"
        )
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, KdrunError):
        return KdrunError(
            f"{os.strerror(error.errno)} while writing {error.filename or 'the run'}; free space, and {again(sys.argv[1:])} goes on"
        )
    return error


def failure(error: BaseException, place: Mapping[str, Any]) -> dict[str, Any]:
    """status and error of the record for what ended a run; `place` is where training was, if the error does not say."""
    status, at = "failed", {"stage": None, "step": None, "term": None, **place}
    if isinstance(error, DivergedError):
        status, at = "nan", {"stage": error.stage, "step": error.step, "term": error.term}
    elif isinstance(error, torch.OutOfMemoryError):
        status = "oom"
    elif isinstance(error, KeyboardInterrupt):
        status = "interrupted"
    message = str(_plain(error)) or type(error).__name__
    return {"status": status, "error": {"type": type(error).__name__, "message": message, **at}}


def ready_teacher(plan: Plan, parts: Parts, record: dict[str, Any], screen: Screen) -> Tensor | None:
    """Train the teacher or load it, say its score, and return its test logits (N, K); None without a teacher."""
    if parts.teacher is None:
        return None
    config, theirs, score_then = plan.config, None, None
    if plan.teacher is None:
        path, sha256 = Path(config.teacher.checkpoint), file_sha256(config.teacher.checkpoint)
    else:
        theirs = finished_teacher(plan.teacher, screen)
        screen.log = plan.folder / "log.txt"
        path, weights = teacher_weights(plan.teacher, theirs, config.teacher.weights)
        sha256, score_then = file_sha256(path), theirs[config.teacher.weights]["score"]
        load_into(parts.teacher, weights, path, config.teacher.name)
    logits = evaluate(parts.distillation, parts.teacher, parts.evals["test"])
    now = image.score(logits, parts.evals["test"].labels.to(logits.device))
    record["teacher"] = {
        "name": config.teacher.name, "label": label(config.teacher), "run_id": theirs["id"] if theirs else None, "sha256": sha256,
        "params": parameters(parts.teacher), "score": now,
    }  # fmt: skip
    note = ""
    if score_then is not None and abs(now - score_then) > 0.002:
        note = f"  (its record says {100 * score_then:.2f}: another device or precision?)"
    elif score_then is not None and weak.is_near_chance(logits, parts.evals["test"].labels.to(logits.device)):
        note = "  (near chance, as it was trained: too few epochs, or too high a rate? teacher.recipe.epochs, teacher.recipe.lr)"
    tell = screen.note if screen.brief else screen.say
    tell(f"teacher  {label(config.teacher)}  test {100 * now:.2f}{note}")
    _check_teacher(config, parts, logits, score_then)
    return logits


def _check_teacher(config: Config, parts: Parts, logits_NK: Tensor, recorded: float | None) -> None:
    """Stop before the student's first step where the teacher is too weak to be what the user meant."""
    if config.teacher.allow_weak:
        return
    test, tapped, dataset = parts.evals["test"], parts.distillation.teacher, parts.dataset
    assert tapped is not None

    def other_normalisation() -> str | None:
        tapped.eval()
        with torch.no_grad():
            return weak.better_normalisation(lambda x: tapped(x).logits, test.batches(), dataset.mean, dataset.std)

    why = weak.weakness(logits_NK, test.labels.to(logits_NK.device), dataset.classes, recorded, other_normalisation)
    if why:
        raise KdrunError(
            f"teacher {label(config.teacher)} is too weak to learn from: {why} (teacher.allow_weak=true goes on with it)"
        )


def teacher_weights(plan: Plan, record: dict[str, Any], which: str) -> tuple[Path, dict[str, Tensor]]:
    """The file and the weights that a teacher's finished run left, held against its record.

    A record has the hash of the last epoch's weights alone; those of another best epoch are held against their score.
    """
    path = plan.folder / ("student.safetensors" if which == "last" else "student-best.safetensors")
    again = f"train the teacher again: kdrun teacher=none method=none student={plan.config.student.name} ... rerun=true"
    if not path.is_file():
        raise KdrunError(f"the teacher's weights {path} are gone; {again}")
    weights = load_weights(path)
    found, told = weights_sha256(weights), record["student"]["sha256"]
    if record[which]["epoch"] == record["last"]["epoch"] and found != told:
        raise KdrunError(f"{path} has other weights ({found[:8]}) than its record says ({told[:8]}); {again}")
    return path, weights


def finished_teacher(plan: Plan, screen: Screen) -> dict[str, Any]:
    """The record of the teacher's run, trained if need be: a run like any other; one that another process trains is waited for.

    A teacher that diverged is an error of this run, not its NaN: it goes on once there is another teacher.
    """
    began = time.perf_counter()
    try:
        record = plan.finished()
        if record is not None:
            return record
        record = train(plan, screen, role=f"teacher {label(plan.config.student)}", wait=True)
    except KdrunError as error:
        name = plan.config.student.name
        its_keys = re.sub(r"(?<![\w.])recipe\.", "teacher.recipe.", str(error))
        raise KdrunError(
            f"the teacher could not be trained: {its_keys}. The teacher has settings of its own: teacher.recipe.epochs, .batch_size, "
            f".lr ..., teacher.seed; the same one again: "
            f"kdrun teacher=none method=none student={name} ... rerun=true"
        ) from error
    if screen.brief:
        screen.say(
            f"  teacher   {label(plan.config.student):<10} test {100 * record['last']['score']:.2f}   {time.perf_counter() - began:.0f} s"
        )
    return record


def first_record(plan: Plan, parts: Parts, compute: Compute, before: dict[str, Any] | None) -> dict[str, Any]:
    """The record of a run that begins; of a start before this one it keeps how it was asked for, when, and its peak."""
    config, dataset, student = plan.config, parts.dataset, parts.distillation.student.module
    record: dict[str, Any] = {
        "schema": 1, "id": plan.id, "group": plan.group, "seed": config.seed, "command": command(), "identity": plan.identity,
        "status": "running", "error": None, "task": "image",
        "dataset": {
            "name": dataset.name, "label": dataset_label(config.dataset), "checksum": dataset.checksum,
            "train_n": len(dataset.train.labels),
            "holdout_n": len(dataset.holdout.labels) if dataset.holdout else 0, "test_n": len(dataset.test.labels),
            "size": dataset.size, "classes": list(dataset.classes), "mean": list(dataset.mean), "std": list(dataset.std),
        },
        "teacher": None,
        "student": {
            "name": config.student.name, "label": label(config.student),
            "init_sha256": weights_sha256(plain_state(student)), "sha256": None,
            "params": parameters(student), "multiply_adds": multiply_adds(student, parts.distillation.example),
        },
        "method": list(config.method), "weights": parts.weights, "recipe": dict(vars(config.recipe)), "protocol": config.protocol,
        "metric": {"name": image.METRIC["name"], "split": "test", "higher_is_better": image.METRIC["higher_is_better"]},
        "score": None, "last": None, "best": None, "holdout": None, "agreement": None, "calibration": None, "class_scores": None,
        "time": {"start": records.now(), "end": None, "train_s": 0.0, "images_per_s": 0.0, "data_wait": 0.0, "peak_memory": 0},
        "engine": {
            "device": compute.device.type, "precision": compute.precision, "compile": False, "cache": False,
            "deterministic": config.engine.deterministic,
        },
        "code": code(config), "versions": records.versions(), "git": records.git_state(Path.cwd()), "host": socket.gethostname(),
        "resumed": 0,
    }  # fmt: skip
    if before is not None:
        record |= {key: before[key] for key in ("command", "resumed")}
        record["time"] |= {key: before["time"][key] for key in ("start", "peak_memory")}
    return record


def command() -> str:
    """The command line as typed."""
    return " ".join([Path(sys.argv[0]).name.replace("__main__.py", "kdrun"), *sys.argv[1:]])
