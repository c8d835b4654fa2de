"""A sweep: what was asked for, what is there already, and which teachers come first.

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

from kdrun.config.tables import jobs as jobs_of
from kdrun.errors import KdrunError
from kdrun.runs import record as records
from kdrun.runs.identity import label
from kdrun.runs.plan import Plan, with_protocol
from kdrun.runs.source import changed_code
from kdrun.screen import about
from kdrun.sweep.estimate import Estimate, estimate, finished_runs, rough
from kdrun.sweep.folder import JOBS, MANIFEST, STOPPED, job_name, key_of, open_folder
from kdrun.sweep.job import prepare
from kdrun.sweep.launchers import gist

ONLY_PLAN = False  # kdrun plan: look, say, train nothing


@dataclass
class Asked:
    """One job of a sweep before it is launched: its plan, or why it has none; the record of a run that is finished."""

    overrides: list[str]
    name: str = ""  # for the screen: method, student and seed, and what else differs among the jobs
    plan: Plan | None = None
    error: str | None = None
    record: dict[str, Any] | None = None
    changed: list[str] = field(default_factory=list)

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
    """Plan every job, write the manifest, say what there is to do; returns the jobs of missing teachers, then of students.

    A job that cannot be composed ends the sweep, and nothing is written; one with a bad value fails alone, when it is launched.
    """
    asked = look(jobs, compose)
    folder = open_folder(config)
    manifest = {"command": sys.argv, "runs": [one.line() for one in asked]}
    records.atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    todo = [one for one in asked if one.record is None]
    teachers: dict[Path, list[str]] = {}
    for one in todo:
        teacher = one.plan.teacher if one.plan else None
        if teacher is not None and not _is_done(teacher):
            teachers.setdefault(teacher.folder, [*one.overrides, "phase=teacher"])
    print(_announce(overrides, asked, todo, len(teachers)), flush=True)
    for one in asked:
        if one.record is not None:
            print(_already(one), flush=True)
    return list(teachers.values()), [one.overrides for one in todo]


def lost(folder: Path, config: DictConfig, error: Exception) -> None:
    """A job's process died and left no state: said here, counted as failed at the end, and what comes after it stops if asked to."""
    print(f"kdrun: a job was lost: {gist(error)}", file=sys.stderr)
    if OmegaConf.select(config, "sweep.on_error") == "stop":
        (folder / JOBS / STOPPED).touch()


def for_its_methods(jobs: list[list[str]], keys_of: Callable[[str], set[str]]) -> list[list[str]]:
    """Jobs without the overrides of methods that they do not have, each once: `method=none,kd method.kd.temperature=1,2` is three jobs.

    `keys_of`: the keys below `method` that a choice of the group brings. An override whose method is in no job stays, and composing
    says what is wrong with it.
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
    found = []
    for job in jobs:
        said = dict(item.split("=", 1) for item in job if item.startswith(("table=", "pair=", "budget=")))
        if said.get("table", "null") == "null":
            found.append(job)
            continue
        others = [item for item in job if not item.startswith(("table=", "pair=", "budget="))]
        expanded = jobs_of(said["table"], others, said.get("pair"), said.get("budget", "full"))
        found += [one for one in expanded if one not in found]
    return found


def plan(overrides: Sequence[Override], jobs: list[list[str]], compose: Callable[[list[str]], DictConfig]) -> None:
    """Say which runs there are, which are missing, how long these take by what was measured here, and what disk they need."""
    asked = look(jobs, compose)
    todo = [one for one in asked if one.record is None]
    plans = {one.plan.folder: one.plan for one in todo if one.plan}
    teachers = {
        p.teacher.folder: p.teacher for p in plans.values() if p.teacher is not None and not _is_done(p.teacher)
    }
    print(_announce(overrides, asked, todo, len(teachers)))
    names = {one.plan.folder: one.name for one in asked if one.plan}
    known = [record for outputs in {p.config.outputs for p in plans.values()} for record in finished_runs(outputs)]
    for one in asked:
        if one.plan is None:
            print(f"  cannot    {' '.join(one.overrides)}: {one.error}")
        elif one.record is not None:
            print(_already(one))
    total, disk, blind = 0.0, 0.0, 0
    timed: dict[str, Estimate | None] = {}
    for role, runs in (("teacher", teachers), ("student", plans)):
        for missing in runs.values():
            cost = estimate(missing, known) or _timed(missing, timed)
            name = label(missing.config.student) if role == "teacher" else names[missing.folder]
            words = f"   about {about(cost.seconds)} ({cost.source})" if cost else ""
            print(f"  {role:<9} {name:<36} {_state_of(missing)}{words}", flush=True)
            total, disk, blind = (
                total + (cost.seconds if cost else 0),
                disk + (cost.size if cost else 0),
                blind + (not cost),
            )
    count = len(teachers) + len(plans)
    if count and blind == count:
        print("left     nothing like these runs was trained here yet, so there is no estimate")
    elif count:
        unknown = f" without {blind} run{'s' * (blind != 1)} that nothing is known of" if blind else ""
        space = f"; about {disk / 2**20:,.0f} MiB of disk" if disk else ""
        print(f"left     about {about(total)} in one process{unknown}{space}")


def _timed(missing: Plan, timed: dict[str, Estimate | None]) -> Estimate | None:
    """A rough estimate from timed steps; each pair of models and recipe is timed once."""
    config = missing.config
    stages = [values.stages for values in config.method.values()]
    key = json.dumps([str(missing.identity["student"]), config.teacher.name, vars(config.recipe), stages], default=str)
    if key not in timed:
        timed[key] = rough(missing)
    return timed[key]


def _state_of(one: Plan) -> str:
    before = one.record()
    return "to do" if before is None else f"{before['status']}, goes on"


def look(jobs: list[list[str]], compose: Callable[[list[str]], DictConfig]) -> list[Asked]:
    """Every job with its plan and, where the run is finished, its record. A job that cannot be composed raises."""
    differing = _differing(jobs)
    return [_look(job, compose(job), differing) for job in jobs]


def _look(job: list[str], composed: DictConfig, differing: list[str]) -> Asked:
    from kdrun.config.explain import message

    name = job_name(composed, [item for item in job if key_of(item) in differing])
    try:
        plan = prepare(composed)
        record = plan.finished()
        changed = changed_code(plan.config, record) if record is not None else []
        return Asked(job, name, plan, None, record, changed)
    except Exception as error:  # the job says it again in its own line
        return Asked(job, name, error=message(error))


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
        return False  # its own job says what is wrong


def _announce(overrides: Sequence[Override], asked: list[Asked], todo: list[Asked], teachers: int) -> str:
    """30 runs asked for: 5 method x 2 student x 3 seed; 17 done, 13 to do, 1 teacher to train first."""
    counts: dict[str, int] = {}
    for override in overrides:
        if override.key_or_group in ("table", "pair", "budget", "method") and any(
            o.key_or_group == "table" for o in overrides
        ):
            continue  # the rows and pairs of a table are counted in the runs
        counts.pop(override.key_or_group, None)  # the command line replaces what an experiment sweeps
        if override.is_sweep_override():
            counts[override.key_or_group] = sum(1 for _ in override.sweep_string_iterator())
    what = f": {' x '.join(f'{n} {key}' for key, n in counts.items())}" if counts else ""
    if counts and prod(counts.values()) > len(asked):
        what += ", a method's keys where it is at work"
    states = [f"{len(asked) - len(todo)} done, {len(todo)} to do"] if len(todo) < len(asked) else []
    states += [f"{teachers} teacher{'s' * (teachers > 1)} to train first"] if teachers else []
    return f"{len(asked)} run{'s' * (len(asked) != 1)} asked for{what}{'; ' if states else ''}{', '.join(states)}"


def _already(one: Asked) -> str:
    assert one.plan is not None
    assert one.record is not None
    score = with_protocol(one.record, one.plan.config.protocol)["score"]
    note = f", but the source of {', '.join(one.changed)} has changed since" if one.changed else ""
    return f"  student   {one.name:<36} test {100 * score:.2f}   already done{note}"
