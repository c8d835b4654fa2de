"""One job of a command: validate, plan, answer what is finished, train the rest."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdrun.config.checks import validate
from kdrun.config.explain import report
from kdrun.config.registry import import_plugins
from kdrun.errors import ExitError, KdrunError
from kdrun.runs import record as records
from kdrun.runs.labels import label_of, run_name
from kdrun.runs.plan import Plan, make_plan, with_protocol
from kdrun.runs.source import changed_code
from kdrun.screen import Screen, clock
from kdrun.sweep import launchers
from kdrun.sweep.folder import JOBS, STOPPED, job_name, name_in
from kdrun.tasks.metric import metric_of


def job(composed: DictConfig) -> float:
    """What Hydra calls: a run of its own, trained with a table at its end unless it is finished, or a job of a sweep."""
    began = time.perf_counter()
    with _errors_in_one_line(composed):
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return sweep_job(composed)
        if composed.get("table"):
            raise KdrunError("table=NAME stands for many runs: add -m, as in kdrun -m table=NAME seed=0,1,2")
        plan, screen = prepare(composed), Screen()
        if not _is_answered(plan, screen, began):
            from kdrun.train import train  # brings torch

            result(with_protocol(train(plan, screen), plan.config.protocol), plan, screen)
    return 0.0


@contextmanager
def _errors_in_one_line(composed: DictConfig) -> Iterator[None]:
    """An error of a run ends here as one line and an exit status, because Hydra would add lines of its own."""
    try:
        yield
    except SystemExit as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # of the launcher
        raise SystemExit(report(ExitError())) from error
    except Exception as error:
        raise SystemExit(report(error, debug=bool(composed.engine.get("debug")))) from None


def _is_answered(plan: Plan, screen: Screen, began: float) -> bool:
    """Whether no training is wanted: the run is finished, or its teacher or its rehearsal alone was asked for."""
    if plan.config.phase == "teacher":
        _teacher(plan, screen)
        return True
    if plan.config.engine.rehearse:
        from kdrun.train import show_rehearsal  # brings torch

        show_rehearsal(plan, screen)
        return True
    record = plan.finished()
    if record is not None:
        _already(plan, with_protocol(record, plan.config.protocol), time.perf_counter() - began)
    return record is not None


def prepare(composed: DictConfig, datasets: dict[str, Any] | None = None) -> Plan:
    """The plan of a composed config; `datasets` as in `make_plan`."""
    import_plugins(
        composed.get("plugins") or []
    )  # the command did, but the workers of a sweep are processes of their own
    return make_plan(validate(composed), datasets)


def sweep_job(composed: DictConfig) -> float:
    """A job of a sweep: one line on the screen, its state in Hydra's folder for the job, its score or NaN as result."""
    hydra = HydraConfig.get()
    launchers.arrive(hydra)
    state: dict[str, Any] = {"overrides": list(hydra.overrides.task), "status": "failed", "error": None}
    name = name_in(Path(hydra.sweep.dir), state["overrides"]) or job_name(composed)
    screen, stopped = Screen(brief=True), Path(hydra.sweep.dir, JOBS, STOPPED)
    value = math.nan
    try:
        if stopped.exists():
            state["status"] = "skipped"
            raise KdrunError("sweep.on_error=stop, and a job before it failed")
        plan = prepare(composed)
        if plan.config.engine.rehearse:
            raise KdrunError("engine.rehearse=true looks at one run; leave out -m and give each key one value")
        share(plan, hydra)
        searching = str(hydra.sweeper._target_).endswith(".SearchSweeper")
        value = _teacher(plan, screen) if plan.config.phase == "teacher" else _student(plan, screen, name, searching)
        state["status"] = "done"
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and launchers.name(hydra).startswith("submitit_"):
            raise  # submitit ends a job in this way that ran out of time, and starts it again
        reason = ExitError() if isinstance(error, SystemExit) else error
        state |= _failed(reason, state, composed, name, screen)
        if OmegaConf.select(composed, "sweep.on_error") == "stop":
            stopped.touch()
    folder = Path(hydra.sweep.dir, JOBS)
    folder.mkdir(parents=True, exist_ok=True)
    records.atomically(folder / f"{hydra.job.num}.json", json.dumps({**state, "lines": screen.lines}).encode())
    return value


def _student(plan: Plan, screen: Screen, name: str, searching: bool) -> float:
    """Train a run, or take its record if another process trained it meanwhile; its score. A search does not show test scores."""
    began = time.perf_counter()
    record, word = plan.finished(), "already done"
    if record is None:
        from kdrun.train import train

        # Waiting: a killed sweep's workers may live on, and a second sweep may want the same run.
        record = train(plan, screen, wait=True)
        word = f"done in {clock(time.perf_counter() - began)}"
    value: float = with_protocol(record, plan.config.protocol)["score"]
    shown = metric_of(record).text
    score = f"holdout {shown(record['holdout']['score'])}" if searching else f"test {shown(value)}"
    screen.say(f"  student   {name:<36} {score}   {word}")
    return value


def _teacher(plan: Plan, screen: Screen) -> float:
    """Ready the teacher of a run and nothing else (phase=teacher); its score."""
    if plan.teacher is None:
        screen.say("phase=teacher: this run trains no teacher")
        return math.nan
    from kdrun.train import finished_teacher

    value: float = finished_teacher(plan.teacher, screen)["last"]["score"]
    return value


def _failed(error: Exception, state: dict[str, Any], composed: DictConfig, name: str, screen: Screen) -> dict[str, Any]:
    """Say why a job failed; returns its error as one line."""
    from kdrun.config.explain import message

    line = message(error)
    if state["status"] != "skipped":
        if composed.get("phase") == "teacher":
            name = str(OmegaConf.select(composed, "teacher.name"))
        screen.say(f"  FAILED    {name:<36} {line}")
        if composed.get("engine", {}).get("debug"):
            import traceback

            traceback.print_exc(file=sys.stderr)
    return {"error": line}


def share(plan: Plan, hydra: Any) -> None:
    """Beside other jobs of this machine a run takes its share of the processor's threads, and of the GPUs its turn.

    Threads that wait for each other's cores were measured 10 to 40 times slower.
    """
    threads = launchers.threads(hydra)
    for one in (plan, plan.teacher):
        if one is not None and one.config.engine.threads is None:
            one.config.engine.threads = threads
    if launchers.takes_turns(hydra):
        import torch

        if torch.cuda.device_count() > 1:
            torch.cuda.set_device(hydra.job.num % torch.cuda.device_count())


def result(record: dict[str, Any], plan: Plan, screen: Screen) -> None:
    """The small table at the end of a run."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    last, best, teacher = record["last"], record["best"], record["teacher"]
    metric = metric_of(record)
    shown = metric.text
    cells = {
        "method": "+".join(record["method"]),
        "student": f"{label_of(record, 'student')} seed {record['seed']}",
        "last": shown(last["score"]),
        "best on test": f"{shown(best['score'])} (epoch {best['epoch']})",
    }
    if record["holdout"]:
        cells["holdout's choice"] = f"{shown(record['holdout']['test_score'])} (epoch {record['holdout']['epoch']})"
    if teacher:
        cells[f"teacher {label_of(record, 'teacher')}"] = f"{shown(teacher['score'])}"
        cells["agreement"] = f"{100 * record['agreement']:.2f}"
    cells["parameters"] = f"{record['student']['params'] / 1e6:.2f} M"
    cells["time"] = clock(record["time"]["train_s"])
    for name in cells:
        table.add_column(name)
    table.add_row(*cells.values())
    screen.console.print()
    screen.console.print(table)
    reported = {
        "last": "of the last epoch",
        "best": "best of all epochs, chosen on the test set",
        "holdout": "of the epoch chosen on the holdout",
    }
    screen.say(
        f"test {metric.in_unit()}; protocol {record['protocol']}: {shown(record['score'])}, {reported[record['protocol']]}"
    )
    screen.say(f"record   {plan.folder / records.NAME}")
    screen.say(f"curves   tensorboard --logdir {os.path.join(plan.config.outputs, 'runs')}")


def _already(plan: Plan, record: dict[str, Any], seconds: float) -> None:
    best, teacher, shown = record["best"], record["teacher"], metric_of(record).text
    parts = [f"already done: {run_name(record)}"]
    parts += [
        f"last {shown(record['last']['score'])}",
        f"best on test {shown(best['score'])} (epoch {best['epoch']})",
    ]
    parts += [f"holdout's choice {shown(record['holdout']['test_score'])}"] if record["holdout"] else []
    parts += [f"teacher {label_of(record, 'teacher')} {shown(teacher['score'])}"] if teacher else []
    print("  ".join(parts) + f"   ({seconds:.1f} s; rerun=true trains it again)")
    print(f"record   {plan.folder / records.NAME}")
    changed = changed_code(plan.config, record)
    if changed:
        print(
            f"note     the source of {', '.join(changed)} has changed since this run; rerun=true trains it with the new one"
        )
