"""Planning a sweep: which runs it consists of, which of them are finished, and which teachers are trained first.

hydra_plugins/kdrun_sweeper.py calls `begin`, launches the jobs, and ends with kdrun/sweep/summary.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from kdrun.config.explain import message
from kdrun.config.tables import jobs as jobs_of
from kdrun.errors import KdrunError
from kdrun.runs import record as records
from kdrun.runs.labels import label
from kdrun.runs.plan import Plan, with_protocol
from kdrun.runs.source import changed_code
from kdrun.screen import about
from kdrun.sweep.estimate import Estimate, estimate, finished_runs, rough
from kdrun.sweep.folder import JOBS, MANIFEST, STOPPED, job_name, key_of, open_folder
from kdrun.sweep.job import prepare
from kdrun.sweep.launchers import gist
from kdrun.tasks.metric import metric_of


@dataclass
class PlannedJob:
    """One job of a sweep before it is launched: its plan, or why it has none; the record of a run that is finished."""

    overrides: list[str]
    name: str = ""  # for the screen: method, student and seed, and what else differs among the jobs
    plan: Plan | None = None
    error: str | None = None
    record: dict[str, Any] | None = None
    changed: list[str] = field(
        default_factory=list
    )  # methods whose source is not the one that the run was trained with

    def line(self) -> dict[str, Any]:
        """Its line in the manifest."""
        folder = str(self.plan.folder.resolve()) if self.plan else None
        protocol = self.plan.config.protocol if self.plan else None
        return {
            "overrides": self.overrides, "name": self.name, "folder": folder, "id": self.plan.id if self.plan else None,
            "protocol": protocol, "error": self.error, "changed": self.changed,
        }  # fmt: skip


def begin(
    config: DictConfig,
    overrides: Sequence[Override],
    jobs: list[list[str]],
    compose: Callable[[list[str]], DictConfig],
) -> tuple[list[list[str]], list[list[str]]]:
    """Plan every job, write the manifest, print what there is to do; returns the jobs of missing teachers, then of students.

    A job that cannot be composed ends the sweep, and nothing is written; one with a bad value fails alone, when it is launched.
    """
    planned = plan_jobs(jobs, compose)
    folder = open_folder(config)
    manifest = {"command": sys.argv, "runs": [job.line() for job in planned]}
    records.atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    missing = [job for job in planned if job.record is None]
    teachers: dict[Path, list[str]] = {}
    for teacher, job in _missing_teachers(missing).values():
        teachers[teacher.folder] = [*job.overrides, "phase=teacher"]
    print(_announce(overrides, planned, missing, len(teachers)), flush=True)
    for job in planned:
        if job.record is not None:
            print(_already(job), flush=True)
    return list(teachers.values()), [job.overrides for job in missing]


def _missing_teachers(missing: list[PlannedJob]) -> dict[Path, tuple[Plan, PlannedJob]]:
    """The teachers that these jobs need and that are not trained yet, by folder, each with the first job that needs it."""
    needed: dict[Path, tuple[Plan, PlannedJob]] = {}
    for job in missing:
        teacher = job.plan.teacher if job.plan else None
        if teacher is not None:
            needed.setdefault(teacher.folder, (teacher, job))
    return {folder: (teacher, job) for folder, (teacher, job) in needed.items() if not _is_done(teacher)}


def lost(folder: Path, config: DictConfig, error: Exception) -> None:
    """Report a job whose process died and left no state. It counts as failed; sweep.on_error=stop skips the jobs after it."""
    print(f"kdrun: a job was lost: {gist(error)}", file=sys.stderr)
    if OmegaConf.select(config, "sweep.on_error") == "stop":
        (folder / JOBS / STOPPED).touch()


def for_its_methods(jobs: list[list[str]], keys_of: Callable[[str], set[str]]) -> list[list[str]]:
    """Jobs without the overrides of methods that they do not have, each once: `method=none,kd method.kd.temperature=1,2` is three jobs.

    `keys_of`: the keys below `method` that a choice of the group brings. An override whose method is in no job stays, and
    fails when the job is composed.
    """
    methods: list[set[str] | None] = []
    for job in jobs:
        choice = next((item.partition("=")[2] for item in job if item.startswith("method=")), None)
        names = [] if choice is None else [name.strip() for name in choice.strip("[]").split(",")]
        methods.append(None if choice is None else set().union(*map(keys_of, names)))
    anywhere: set[str] = set().union(*(keys for keys in methods if keys))

    def stays(item: str, keys: set[str] | None) -> bool:
        path = item.lstrip("+~").partition("=")[0].split(".")
        return keys is None or path[0] != "method" or len(path) < 2 or path[1] in keys or path[1] not in anywhere

    kept = [[item for item in job if stays(item, keys)] for job, keys in zip(jobs, methods, strict=True)]
    return [list(job) for job in dict.fromkeys(map(tuple, kept))]


def expand(jobs: list[list[str]]) -> list[list[str]]:
    """Jobs with table=NAME become the cells of that table, each with the job's other overrides."""
    expanded: dict[tuple[str, ...], None] = {}
    for job in jobs:
        of_table = dict(item.split("=", 1) for item in job if item.startswith(("table=", "pair=", "budget=")))
        if of_table.get("table", "null") == "null":
            expanded[tuple(job)] = None
            continue
        others = [item for item in job if not item.startswith(("table=", "pair=", "budget="))]
        cells = jobs_of(of_table["table"], others, of_table.get("pair"), of_table.get("budget", "full"))
        expanded |= dict.fromkeys(map(tuple, cells))
    return [list(job) for job in expanded]


def show_plan(overrides: Sequence[Override], jobs: list[list[str]], compose: Callable[[list[str]], DictConfig]) -> None:
    """`kdrun plan`: print the finished runs and the missing ones, with the time and the disk that these will need."""
    planned = plan_jobs(jobs, compose)
    missing = [job for job in planned if job.record is None]
    students = {job.plan.folder: job.plan for job in missing if job.plan}
    teachers = {folder: teacher for folder, (teacher, _) in _missing_teachers(missing).items()}
    print(_announce(overrides, planned, missing, len(teachers)))
    for job in planned:
        if job.plan is None:
            print(f"  cannot    {job.error}   ({' '.join(job.overrides)})")
        elif job.record is not None:
            print(_already(job))
    names = {job.plan.folder: job.name for job in planned if job.plan}
    rows = [("teacher", label(plan.config.student), plan) for plan in teachers.values()]
    rows += [("student", names[plan.folder], plan) for plan in students.values()]
    _print_costs(rows)


def _print_costs(rows: list[tuple[str, str, Plan]]) -> None:
    """A line for each missing run (its role, its name, its plan) with its state and an estimate, and their sum."""
    finished: dict[str, list[dict[str, Any]]] = {}
    for folder in {plan.config.outputs for _, _, plan in rows}:
        for record in finished_runs(folder):
            finished.setdefault(_kind(record["identity"]), []).append(record)
    total, disk, unknown = 0.0, 0.0, 0
    timed: dict[str, Estimate | None] = {}
    costs: dict[tuple[str, str], Estimate | None] = {}
    for role, name, plan in rows:
        key = plan.group, plan.config.outputs  # runs of other seeds cost the same
        if key not in costs:
            costs[key] = estimate(plan, finished.get(_kind(plan.identity), [])) or _timed(plan, timed)
        cost = costs[key]
        words = f"   about {about(cost.seconds)} ({cost.source})" if cost else ""
        print(f"  {role:<9} {name:<36} {_state_of(plan)}{words}", flush=True)
        total, disk, unknown = (
            total + (cost.seconds if cost else 0),
            disk + (cost.size if cost else 0),
            unknown + (not cost),
        )
    if rows and unknown == len(rows):
        print("left     nothing like these runs was trained here yet, so there is no estimate")
    elif rows:
        without = f" without {unknown} run{'s' * (unknown != 1)} that nothing is known of" if unknown else ""
        space = f"; about {disk / 2**20:,.0f} MiB of disk" if disk else ""
        print(f"left     about {about(total)} in one process{without}{space}")


def _kind(identity: dict[str, Any]) -> str:
    """Data and student: runs that differ in these tell nothing of each other's time."""
    return json.dumps([identity["dataset"]["checksum"], identity["student"]], sort_keys=True)


def _timed(missing: Plan, timed: dict[str, Estimate | None]) -> Estimate | None:
    """A rough estimate from timed steps; each pair of models and recipe is timed once."""
    config = missing.config
    stages = [values.stages for values in config.method.values()]
    key = json.dumps([str(missing.identity["student"]), config.teacher.name, vars(config.recipe), stages], default=str)
    if key not in timed:
        timed[key] = rough(missing)
    return timed[key]


def _state_of(plan: Plan) -> str:
    before = plan.record()
    return "to do" if before is None else f"{before['status']}, goes on"


def plan_jobs(jobs: list[list[str]], compose: Callable[[list[str]], DictConfig]) -> list[PlannedJob]:
    """Every job with its plan and, where the run is finished, its record. A job that cannot be composed raises."""
    differing = set(_differing(jobs))
    datasets: dict[str, Any] = {}  # what was read of each
    return [_planned(job, compose(job), differing, datasets) for job in jobs]


def _planned(job: list[str], composed: DictConfig, differing: set[str], datasets: dict[str, Any]) -> PlannedJob:
    swept = [item for item in job if key_of(item) in differing]
    name = job_name(composed, swept)
    try:
        plan = prepare(composed, datasets)
        name = job_name(composed, swept, label(plan.config.student))
        record = plan.finished()
        changed = changed_code(plan.config, record) if record is not None else []
        return PlannedJob(job, name, plan, None, record, changed)
    except Exception as error:  # the job reports it in its own line when it is launched
        return PlannedJob(job, name, error=message(error))


def _differing(jobs: list[list[str]]) -> list[str]:
    """The keys that the jobs of a sweep do not all set to one value."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for item in job:
            values.setdefault(key_of(item), set()).add(item)
    return [key for key, items in values.items() if len(items) > 1 or any(not items & set(job) for job in jobs)]


def _is_done(teacher: Plan) -> bool:
    try:
        return teacher.finished() is not None
    except KdrunError:
        return False  # its own job reports the error


def _announce(
    overrides: Sequence[Override], planned: list[PlannedJob], missing: list[PlannedJob], teachers: int
) -> str:
    """30 runs asked for: 5 method x 2 student x 3 seed; 17 done, 13 to do, 1 teacher to train first."""
    counts: dict[str, int] = {}
    of_table = any(override.key_or_group == "table" for override in overrides)
    for override in overrides:
        if of_table and override.key_or_group in ("table", "pair", "budget", "method"):
            continue  # the rows and pairs of a table are counted in the runs
        counts.pop(override.key_or_group, None)  # the command line replaces what an experiment sweeps
        if override.is_sweep_override():
            counts[override.key_or_group] = sum(1 for _ in override.sweep_string_iterator())
    what = f": {' x '.join(f'{n} {key}' for key, n in counts.items())}" if counts else ""
    if counts and prod(counts.values()) > len(planned):
        what += ", a method's keys where it is at work"
    done = len(planned) - len(missing)
    states = [f"{done} done, {len(missing)} to do"] if done else []
    states += [f"{teachers} teacher{'s' * (teachers > 1)} to train first"] if teachers else []
    return f"{len(planned)} run{'s' * (len(planned) != 1)} asked for{what}{'; ' if states else ''}{', '.join(states)}"


def _already(job: PlannedJob) -> str:
    assert job.plan is not None
    assert job.record is not None
    score = with_protocol(job.record, job.plan.config.protocol)["score"]
    note = f", but the source of {', '.join(job.changed)} has changed since" if job.changed else ""
    return f"  student   {job.name:<36} test {metric_of(job.record).text(score)}   already done{note}"
