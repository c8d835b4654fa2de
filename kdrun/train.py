"""Train one run: build it, hold its folder, ready its teacher, fit, record."""

from __future__ import annotations

import re
import time
from typing import Any

from kdrun.engine.automatic import measured_weights
from kdrun.engine.build import build
from kdrun.engine.journal import RunJournal
from kdrun.engine.kept import keep_logits
from kdrun.engine.loop import evaluate, fit
from kdrun.engine.opening import first_record
from kdrun.engine.picture import draw
from kdrun.engine.precision import resolve
from kdrun.engine.teacher import check_teacher, ready_teacher, trained_weights
from kdrun.errors import KdrunError
from kdrun.runs.folder import clear, hold
from kdrun.runs.labels import label, run_name
from kdrun.runs.plan import Plan, describe, score
from kdrun.screen import Screen
from kdrun.tasks import task_of

_NOTED: set[str] = set()  # notes on data that this process has put on the screen: a sweep says each once


def train(plan: Plan, screen: Screen, *, role: str = "student", wait: bool = False) -> dict[str, Any]:
    """Train a run to its end, or go on with it, and return its record. `wait`: where another process trains it, wait for that one.

    Everything is built and rehearsed before the folder exists, so that a config that cannot work leaves nothing behind. The
    plan is said before that: building takes a while.
    """
    config = plan.config
    compute = resolve(config.engine)
    dataset = task_of(config).load(config.dataset, config.outputs)
    in_full = role == "student" and not screen.brief
    if in_full:
        held_out = f", {len(dataset.holdout.labels):,} held out" if dataset.holdout is not None else ""
        screen.say_all(describe(plan, f"{len(dataset.train.labels):,}/{len(dataset.test.labels):,}{held_out}"))
    screen.say_all(f"note     {line}" for line in dataset.notes if line not in _NOTED)
    _NOTED.update(dataset.notes)
    parts = build(config, compute, dataset, trained_weights(plan))
    if in_full:
        screen.say_all(parts.lines())
    with hold(
        plan.folder, run_name((config.method, label(config.student), config.seed)), config.outputs, wait, screen.say
    ):
        record = plan.finished()  # another process may have finished it meanwhile
        if record is not None:
            return record
        if config.rerun:
            clear(plan.folder)
        before = plan.record()
        with RunJournal(plan.folder, first_record(plan, parts, before), before, parts, screen) as journal:
            journal.open()
            if parts.distillation.teacher is not None:
                trained = finished_teacher(plan.teacher, screen) if plan.teacher is not None else None
                journal.log_to_folder()  # the teacher's own run has a log of its own
                entry, evaluation = ready_teacher(plan, parts, trained, screen)
                journal.teacher(entry, evaluation)
                check_teacher(plan, parts, evaluation, trained)
                journal.start_student(config)
                for method in parts.distillation.methods.values():
                    method.ready()
                kept = keep_logits(plan, parts, entry["sha256"])
                journal.record["engine"]["cache"] = kept is not None
                if kept:
                    (screen.note if screen.brief else screen.say)(kept)
            screen.role = role
            progress = journal.begin(config)
            if progress.step == 0:
                if parts.auto:
                    journal.set_weights(measured_weights(parts, parts.auto))
                _say_shares(parts, screen)
            fit(parts, journal, progress)
            last = journal.last_test or evaluate(
                parts.task, parts.distillation.trained, parts.evals["test"], compute.autocast
            )
            journal.finish(last)
            draw(plan, journal, last)
            journal.record |= {"status": "done", "score": score(journal.record, config.protocol), "error": None}
        return journal.record


def finished_teacher(plan: Plan, screen: Screen) -> dict[str, Any]:
    """The record of the teacher's run, trained if need be: a run like any other; one that another process trains is waited for.

    A teacher that diverged is an error of this run, not its NaN: it goes on once there is another teacher.
    """
    began, name = time.perf_counter(), label(plan.config.student)
    try:
        record = plan.finished()
        if record is not None:
            return record
        record = train(plan, screen, role=f"teacher {name}", wait=True)
    except KdrunError as error:
        its_keys = re.sub(r"(?<![\w.])recipe\.", "teacher.recipe.", str(error))
        raise KdrunError(
            f"the teacher could not be trained: {its_keys}. The teacher has settings of its own: teacher.recipe.epochs, .batch_size, "
            f".lr ..., teacher.seed; the same one again: "
            f"kdrun teacher=none method=none student={plan.config.student.name} ... rerun=true"
        ) from error
    if screen.brief:
        value = task_of(plan.config).metrics[0].text(record["last"]["score"])
        screen.say(f"  teacher   {name:<10} test {value}   {time.perf_counter() - began:.0f} s")
    return record


def show_rehearsal(plan: Plan, screen: Screen) -> None:
    """engine.rehearse=true: each term's share of the gradient on a few samples, and nothing is trained or written."""
    weights = trained_weights(plan)
    parts = build(plan.config, resolve(plan.config.engine), teacher_weights=weights)
    if parts.auto:
        parts.weights |= measured_weights(parts, parts.auto)
        parts.rehearse()
    screen.say_all([*parts.lines(), "", *parts.rehearsal.table(), ""])
    screen.say(
        f"gradient: the norm of weight x gradient in the student, on the first {parts.task.unit} of epoch 0, before any training"
    )
    if plan.teacher is not None and weights is None:
        screen.say(
            "the teacher is not trained yet: its weights are random here, and with the trained teacher the shares will be different"
        )


def _say_shares(parts: Any, screen: Screen) -> None:
    """Each term's share of the gradient, beside the trained teacher: built before that, or before the weights, the parts are rehearsed
    again."""
    if not parts.teacher_is_trained or parts.auto:
        parts.rehearse()
    line = parts.rehearsal.line()
    if line:
        (screen.note if screen.brief else screen.say)(line)
