"""A picture of what a run's models give for the same test samples: the teacher, the student trained alone where that run is there, and the
student of this run."""

from __future__ import annotations

from kdrun.engine.journal import RunJournal
from kdrun.errors import KdrunError
from kdrun.runs import folder as files
from kdrun.runs.checkpoint import load_weights
from kdrun.runs.plan import Plan, alone
from kdrun.tasks.base import Evaluation, Task


def draw(plan: Plan, journal: RunJournal, test: Evaluation) -> None:
    """Write the picture of a finished run, where its task draws one. Its name goes into the record."""
    task = journal.task
    if type(task).picture is Task.picture:
        return
    metric, columns = task.metrics[0], {}
    teacher = journal.teacher_evaluation
    if teacher is not None:
        columns[f"teacher ({metric.text(teacher.score)})"] = teacher.predictions
    if [*plan.config.method] != ["none"]:
        other = alone(plan)
        try:
            record = other.finished()
            if record is not None:
                predictions = load_weights(other.folder / files.PREDICTIONS)
                columns[f"student alone ({metric.text(record['last']['score'])})"] = predictions
        except KdrunError:
            pass  # the picture does without it
    columns[f"{'+'.join(plan.config.method)} ({metric.text(test.score)})"] = test.predictions
    task.picture(plan.folder / files.PICTURE, journal.parts.dataset, columns)
    journal.record["details"]["picture"] = files.PICTURE
