"""A sweep: what was asked for, what is there already, which teachers come first, and the summary at its end.

hydra_plugins/kdrun_sweeper.py calls `begin`; `Summary` is a Hydra callback that is always present. Jobs of a sweep never raise: each
leaves job.json in its numeric folder, and what is in no record and left nothing counts as failed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from kdrun.engine import record as records
from kdrun.errors import KdrunError, remove_empty
from kdrun.launchers import gist, read_job
from kdrun.plan import Plan, changed_code, with_protocol
from kdrun.screen import again, clock
from kdrun.tables import jobs as jobs_of

NEXT = "kdrun method=rkd teacher=resnet110 student=resnet20   (CIFAR-10; downloads 170 MB)"
MANIFEST = "manifest.json"
NO_STATE = "the job left no state: was it killed, or never started?"
STOPPED = "stopped"  # a file in a sweep's folder: a job failed and sweep.on_error=stop
ONLY_PLAN = False  # kdrun plan: look, say, train nothing
BEGUN: list[Path] = []  # the folder of this process's sweep


@dataclass
class Asked:
    """One job of a sweep before it is launched: its plan, or why it has none; the record of a run that is finished."""

    overrides: list[str]
    plan: Plan | None = None
    error: str | None = None
    record: dict[str, Any] | None = None
    changed: list[str] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """Its line in the manifest."""
        folder = str(self.plan.folder.resolve()) if self.plan else None
        protocol = self.plan.config.protocol if self.plan else None
        return {
            "overrides": self.overrides, "folder": folder, "id": self.plan.id if self.plan else None, "protocol": protocol,
            "error": self.error, "changed": self.changed,
        }  # fmt: skip


def begin(
    folder: Path, overrides: Sequence[Override], jobs: list[list[str]], compose: Callable[[list[str]], DictConfig]
) -> tuple[list[list[str]], list[list[str]]]:
    """Plan every job, write the manifest, say what there is to do; returns the jobs of missing teachers, then of students.

    A job that cannot be composed ends the sweep; one with a bad value fails alone, when it is launched.
    """
    asked = [_look(job, compose(job)) for job in jobs]
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
        if one.record is not None and one.plan is not None:
            print(_already(one.plan, one.record, one.changed), flush=True)
    return list(teachers.values()), [one.overrides for one in todo]


def lost(folder: Path, config: DictConfig, error: Exception) -> None:
    """A job's process died and left no state: said here, counted as failed at the end, and what comes after it stops if asked to."""
    print(f"kdrun: a job was lost: {gist(error)}", file=sys.stderr)
    if OmegaConf.select(config, "sweep.on_error") == "stop":
        (folder / STOPPED).touch()


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
    asked = [_look(job, compose(job)) for job in jobs]
    todo = [one for one in asked if one.record is None]
    plans = {one.plan.folder: one.plan for one in todo if one.plan}
    teachers = {
        p.teacher.folder: p.teacher for p in plans.values() if p.teacher is not None and not _is_done(p.teacher)
    }
    print(_announce(overrides, asked, todo, len(teachers)))
    known = _known(asked)
    total, disk, blind = 0.0, 0.0, 0
    for one in asked:
        if one.plan is None:
            print(f"  cannot    {' '.join(one.overrides)}: {one.error}")
        elif one.record is not None:
            print(_already(one.plan, one.record, one.changed))
    for role, runs in (("teacher", teachers), ("student", plans)):
        for one_plan in runs.values():
            seconds, size, how = _cost(one_plan, known)
            name = one_plan.config.student.name if role == "teacher" else _name(one_plan)
            about = f"   about {clock(seconds)} ({how})" if seconds is not None else ""
            print(f"  {role:<9} {name:<28} {_state_of(one_plan)}{about}")
            total, disk, blind = total + (seconds or 0), disk + size, blind + (seconds is None)
    missing = len(teachers) + len(plans)
    if missing and blind == missing:
        print("left     nothing like these runs was trained here yet, so there is no estimate")
    elif missing:
        unknown = f" without {blind} run{'s' * (blind != 1)} of which nothing alike was trained here" if blind else ""
        print(f"left     about {clock(total)} in one process{unknown}; about {disk / 2**20:,.0f} MiB of disk")


def _known(asked: list[Asked]) -> list[dict[str, Any]]:
    """The finished runs of the output folders, each with the size of its folder."""
    found = []
    for outputs in {one.plan.config.outputs for one in asked if one.plan}:
        for path in Path(outputs, "runs").glob(f"**/{records.NAME}"):
            try:
                record = records.read(path.parent)
            except KdrunError:
                continue
            if record is not None and record["status"] == "done" and record["time"]["train_s"]:
                size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
                found.append({**record, "size": size})
    return found


def _cost(missing: Plan, known: list[dict[str, Any]]) -> tuple[float | None, float, str]:
    """Seconds, bytes and where they come from: the median of the runs most like it, scaled by epochs."""
    config = missing.config
    likes = [
        ("runs like it", lambda r: r["method"] == [*config.method] and r["student"]["name"] == config.student.name),
        ("other methods of this student", lambda r: r["student"]["name"] == config.student.name),
    ]
    for how, like in likes:
        fitting = [r for r in known if r["dataset"]["name"] == config.dataset.name and like(r)]
        if fitting:
            each = median(r["time"]["train_s"] / r["recipe"]["epochs"] for r in fitting)
            return each * config.recipe.epochs, median(r["size"] for r in fitting), f"{len(fitting)} {how}"
    return None, 0.0, ""


def _name(one: Plan) -> str:
    return f"{'+'.join(one.config.method)} {one.config.student.name} seed {one.config.seed}"


def _state_of(one: Plan) -> str:
    before = one.record()
    return "to do" if before is None else f"{before['status']}, goes on"


def _look(job: list[str], composed: DictConfig) -> Asked:
    from kdrun.explain import message
    from kdrun.job import prepare

    try:
        plan = prepare(composed)
        record = plan.finished()
        changed = changed_code(plan.config, record) if record is not None else []
        return Asked(job, plan, None, record, changed)
    except Exception as error:  # the job says it again in its own line
        return Asked(job, error=message(error))


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
    states = [f"{len(asked) - len(todo)} done, {len(todo)} to do"] if len(todo) < len(asked) else []
    states += [f"{teachers} teacher{'s' * (teachers > 1)} to train first"] if teachers else []
    return f"{len(asked)} run{'s' * (len(asked) != 1)} asked for{what}{'; ' if states else ''}{', '.join(states)}"


def _already(one: Plan, record: dict[str, Any], changed: list[str]) -> str:
    name = _name(one)
    score = with_protocol(record, one.config.protocol)["score"]
    note = f", but the source of {', '.join(changed)} has changed since" if changed else ""
    return f"  student   {name:<28} test {100 * score:.2f}   already done{note}"


def forget() -> None:
    """Take away the folder of a sweep that was refused before its first job: Hydra writes multirun.yaml before it looks."""
    for folder in BEGUN:
        if {path.name for path in folder.glob("*")} <= {"multirun.yaml"} and folder.is_dir():
            (folder / "multirun.yaml").unlink(missing_ok=True)
            remove_empty(folder, levels=3)


class Summary(Callback):
    """Prints the table at the end of a sweep and sets the exit status."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if ONLY_PLAN:
            return
        BEGUN.append(folder)
        for old in [path for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []:
            shutil.rmtree(old)  # a fixed sweep folder (quickstart) keeps no states of an earlier sweep
        (folder / STOPPED).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if ONLY_PLAN:
            return
        folder = Path(config.hydra.sweep.dir)
        if not (folder / MANIFEST).exists():
            return  # a search tells its trials itself
        states = states_of(folder)
        failed = [state for state in states if state["status"] != "done"]
        runs = _runs(states)
        if runs:
            _print(runs, folder)
        for line in _changed(states, {path: record for record, path in runs}):
            print(line)
        recorded = {path for _, path in runs}
        unrecorded = [
            s for s in failed if s["folder"] is None or Path(s["folder"]) not in recorded
        ]  # the table lists the others
        for line in _failures(unrecorded):
            print(line)
        if failed:
            rerun = again(config.hydra.overrides.task)
            print(
                f"{len(states) - len(failed)} done, {len(failed)} failed; {rerun} trains only what is missing",
                file=sys.stderr,
            )
            raise SystemExit(3)


def states_of(folder: Path) -> list[dict[str, Any]]:
    """Every run that a sweep asked for with its status now: done, or what its job or its record says, or failed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KdrunError(f"{folder} is no folder of a sweep: it has no readable {MANIFEST} ({error})") from error
    left = {}
    for path in folder.glob("*/job.json"):
        job = read_job(path)
        left[tuple(job.get("overrides", ()))] = job
    return [_state(line, left.get(tuple(line["overrides"]), {})) for line in manifest["runs"]]


def _state(line: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    record = None
    if line["folder"]:
        try:
            record = records.read(line["folder"])
        except KdrunError as broken:
            return {**line, "status": "failed", "error": str(broken)}
    if record is not None and record["status"] == "done" and record["id"] == line["id"]:
        return {**line, "status": "done", "error": None}
    error = job.get("error") or line["error"] or NO_STATE
    return {**line, "status": job.get("status", "failed"), "error": error}


def _runs(states: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Path]]:
    """The record of each run that the sweep asked for, once, as the protocol asked for reports it."""
    found = {}
    for state in states:
        folder = Path(state["folder"]) if state.get("folder") else None
        try:
            record = records.read(folder) if folder is not None else None
        except KdrunError:
            continue  # its line below says what is wrong with it
        if record is not None and folder is not None:
            found[folder] = (with_protocol(record, state["protocol"] or record["protocol"]), folder)
    return list(found.values())


def _failures(states: list[dict[str, Any]]) -> list[str]:
    """A line per failed job; jobs that failed of one and the same error share a line."""
    by_error: dict[tuple[str, str], list[str]] = {}
    for state in states:
        by_error.setdefault((state["status"], state["error"]), []).append(" ".join(state["overrides"]))
    lines = []
    for (status, error), jobs in by_error.items():
        others = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        lines.append(f"{status:<11} {jobs[0]}{others}: {error}".replace("  : ", "  "))
    return lines


def _changed(states: list[dict[str, Any]], runs: dict[Path, dict[str, Any]]) -> list[str]:
    """The runs whose source is another by now, a line for each that changed: which seeds, and the way out."""
    found: dict[str, dict[str, list[int]]] = {}
    for state in states:
        for source in state["changed"] if state["status"] == "done" else ():
            record = runs[Path(state["folder"])]
            name = f"{'+'.join(record['method'])} {record['student']['name']}"
            found.setdefault(source, {}).setdefault(name, []).append(record["seed"])
    lines = []
    for source, names in found.items():
        which = "; ".join(
            f"{name} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(set(seeds))))}"
            for name, seeds in names.items()
        )
        lines.append(f"note     the source of {source} has changed since {which}; rerun=true trains with the new one")
    return lines


def _print(runs: list[tuple[dict[str, Any], Path]], folder: Path) -> None:
    from rich.console import Console

    from kdrun.report.collect import with_teachers
    from kdrun.report.curves import curves
    from kdrun.report.table import summary

    places = [path for _, path in runs]
    known = with_teachers([{**record, "folder": str(path)} for record, path in runs])
    runs = list(zip(known, places, strict=True))
    console = Console(highlight=False)
    console.print()
    console.print(summary([record for record, _ in runs], width=console.width), soft_wrap=True)
    done = [(record, path) for record, path in runs if record["status"] == "done"]
    if done:
        print(f"\ncurves   {_relative(curves(done, folder / 'curves.png'))}")
        print(f"runs     {_relative(done[0][1].parents[3])}")
    if done and folder.name == "quickstart":
        print(f"next     {NEXT}")


def _relative(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
