"""Train one run: build data, student, teacher and method, ready the teacher, run the stages, record."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml  # comes with omegaconf
from torch import Tensor, nn

from kdrun import data
from kdrun.config import Config, Recipe, check_recipe
from kdrun.data.loader import Augment, Loader
from kdrun.engine import record as records
from kdrun.engine.checkpoint import load_into, load_weights, save_text, weights_sha256
from kdrun.engine.cost import multiply_adds, parameters
from kdrun.engine.journal import RunJournal
from kdrun.engine.loop import enter, evaluate, fit, stage_recipe, weighted, weights_of
from kdrun.engine.precision import Compute, resolve
from kdrun.engine.random import stream
from kdrun.engine.schedule import check_schedule
from kdrun.errors import DivergedError, KdrunError, choices
from kdrun.identity import file_sha256, is_fresh
from kdrun.methods.base import DataFacts, Distillation
from kdrun.plan import Plan, clear, code, describe, held, model_arguments, score, settings
from kdrun.registry import METHODS, MODELS
from kdrun.screen import Screen, again
from kdrun.taps import evaluate as look
from kdrun.tasks import image

_NOTED: set[str] = set()  # notes on data that this process has put on the screen: a sweep says each once


def train(plan: Plan, screen: Screen, *, role: str = "student", wait: bool = False) -> dict[str, Any]:
    """Train a run to its end, or go on with it, and return its record. `wait`: where another process trains it, wait for that one.

    Everything is built and rehearsed before the folder exists, so that a config that cannot work leaves nothing behind. The
    plan is said before that: building takes a while.
    """
    compute = resolve(plan.config.engine)
    dataset = data.load(plan.config.dataset, plan.config.outputs)
    if role == "student" and not screen.brief:
        sizes = f"{len(dataset.train.labels):,}/{len(dataset.test.labels):,}"
        for line in [*describe(plan, sizes), f"engine   {compute.said}"]:
            screen.say(line)
    for line in dataset.notes:
        if line not in _NOTED:
            _NOTED.add(line)
            screen.say(f"note     {line}")
    parts = build(plan.config, compute, dataset)
    with held(plan, wait, screen.say):
        found = plan.finished()
        if found is not None:
            return found  # another process finished it meanwhile
        if plan.config.rerun:
            clear(plan)
        return _train(plan, compute, parts, screen, role)


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


def build(config: Config, compute: Compute, dataset: Any = None) -> Parts:
    """Data, student, teacher (without its weights yet) and method, on the device; a pair that cannot work stops here."""
    dataset = dataset or data.load(config.dataset, config.outputs)
    train, evals = loaders(config, dataset, compute)
    classes = len(dataset.classes)
    example = next(iter(evals["test"].batches()))["input"][:2]

    def model(node: Any, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        built = MODELS.get(node.name)(classes, **model_arguments(node))
        if node.checkpoint:
            load_into(built, load_weights(node.checkpoint), node.checkpoint, node.name)
        built = built.to(compute.device, memory_format=torch.channels_last)
        wrong = image.check_logits(look(built, example), classes)
        if wrong:
            raise KdrunError(f"model {node.name} {wrong}")
        return built

    student = model(config.student, stream(config.seed, "student"))
    teacher = None
    if config.teacher.name != "none" and not is_fresh(config):
        teacher = model(config.teacher, 0)
    peer = dataclasses.replace(config.teacher if config.teacher.name != "none" else config.student, checkpoint=None)
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
        fresh=lambda i: model(peer, stream(config.seed, "peer", i)),
    )
    weights, schedules = term_weights(config)
    parts = Parts(distillation, teacher, dataset, train, evals, weights, schedules)
    rehearse(parts, config.recipe)
    return parts


def loaders(config: Config, dataset: Any, compute: Compute) -> tuple[Loader, dict[str, Loader]]:
    """The training loader with the recipe's augmentation, and one loader per split to evaluate on."""
    recipe = config.recipe
    padding = recipe.padding if recipe.padding is not None else dataset.size // 8
    augment = Augment(recipe.crop, padding, recipe.flip and dataset.flip)
    common: dict[str, Any] = {"device": compute.device, "channels_last": True, "workers": config.engine.workers}
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


def rehearse(parts: Parts, recipe: Recipe) -> None:
    """Run every stage once on a few images, without learning: shapes, taps and weights are wrong now or never.

    The rehearsal leaves no trace: weights and buffers are put back.
    """
    distillation = parts.distillation
    before = {name: value.clone() for name, value in distillation.state_dict().items()}
    batch = {key: value[:8] for key, value in next(iter(parts.train.epoch(0))).items()}
    check_needs(distillation, batch, parts.dataset.name)
    met: set[str] = set()
    for number, stage in enumerate(distillation.stages):
        check_recipe(f"stage {stage.name}", stage_recipe(recipe, stage))
        enter(distillation, stage)
        distillation.begin_epoch(number, 0)
        _, terms = distillation(batch, stage)
        met.update(terms)
        if not terms:
            raise KdrunError(f"stage {stage.name} has no loss: there is nothing to train on")
        weighted(terms, {term: weights_of(parts.weights, term) for term in terms})  # schedules may begin at 0
    unused = sorted(set(parts.weights) - met - {"task"})
    if unused:
        method, _, term = unused[0].partition(".")
        known = [t.partition(".")[2] for t in met if t.startswith(f"{method}.")]
        raise KdrunError(
            f"method.{method}.weights has '{term}', which is no term of it. {choices(term, [*known, 'task'])}"
        )
    distillation.load_state_dict(before)


def check_needs(distillation: Distillation, batch: Mapping[str, Tensor], dataset: str) -> None:
    """What a method wants to find in a batch, the dataset must give."""
    for name, method in distillation.methods.items():
        for key in method.needs:
            if key not in batch:
                raise KdrunError(
                    f"method '{name}' needs '{key}' in its batches, which dataset {dataset} does not give (it gives "
                    f"{', '.join(sorted(batch))}); choose another dataset, or another method"
                )


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
        for line in [f"engine {compute.said}", *(f"note {line}" for line in parts.dataset.notes)]:
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
        "name": config.teacher.name, "run_id": theirs["id"] if theirs else None, "sha256": sha256,
        "params": parameters(parts.teacher), "score": now,
    }  # fmt: skip
    note = ""
    if score_then is not None and abs(now - score_then) > 0.002:
        note = f"  (its record says {100 * score_then:.2f}: another device or precision?)"
    tell = screen.note if screen.brief else screen.say
    tell(f"teacher  {config.teacher.name}  test {100 * now:.2f}{note}")
    return logits


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
        record = train(plan, screen, role=f"teacher {plan.config.student.name}", wait=True)
    except KdrunError as error:
        name = plan.config.student.name
        raise KdrunError(
            f"the teacher could not be trained: {error}. The teacher has settings of its own: teacher.recipe.epochs, .batch_size, "
            f".lr ..., teacher.seed; the same one again: "
            f"kdrun teacher=none method=none student={name} ... rerun=true"
        ) from error
    if screen.brief:
        screen.say(
            f"  teacher   {plan.config.student.name:<10} test {100 * record['last']['score']:.2f}   {time.perf_counter() - began:.0f} s"
        )
    return record


def first_record(plan: Plan, parts: Parts, compute: Compute, before: dict[str, Any] | None) -> dict[str, Any]:
    """The record of a run that begins; of a start before this one it keeps how it was asked for, when, and its peak."""
    config, dataset, student = plan.config, parts.dataset, parts.distillation.student.module
    record: dict[str, Any] = {
        "schema": 1, "id": plan.id, "group": plan.group, "seed": config.seed, "command": command(), "identity": plan.identity,
        "status": "running", "error": None, "task": "image",
        "dataset": {
            "name": dataset.name, "checksum": dataset.checksum, "train_n": len(dataset.train.labels),
            "holdout_n": len(dataset.holdout.labels) if dataset.holdout else 0, "test_n": len(dataset.test.labels),
            "size": dataset.size, "classes": list(dataset.classes), "mean": list(dataset.mean), "std": list(dataset.std),
        },
        "teacher": None,
        "student": {
            "name": config.student.name, "init_sha256": weights_sha256(student.state_dict()), "sha256": None,
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
