"""The end of a sweep: its table, its picture, its failures, and the exit status. It reads the manifest and the records only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdrun.errors import KdrunError
from kdrun.runs import record as records
from kdrun.runs.labels import label_of
from kdrun.runs.plan import with_protocol
from kdrun.screen import about, again
from kdrun.sweep.folder import states_of

NEXT = ["method=rkd", "teacher=resnet110", "student=resnet20"]  # the command to try after the quickstart


def finish(folder: Path, config: DictConfig) -> int:
    """Print the results of a sweep; returns the exit status: 3 where a run failed."""
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
        print(line, flush=True)
    if not failed:
        return 0
    rerun = again(config.hydra.overrides.task)
    print(
        f"{len(states) - len(failed)} done, {len(failed)} failed; {rerun} trains only what is missing", file=sys.stderr
    )
    return 3


def _runs(states: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Path]]:
    """The record of each run of the sweep, once, with the score that the protocol of its job chooses."""
    by_folder = {}
    for state in states:
        folder = Path(state["folder"]) if state.get("folder") else None
        try:
            record = records.read(folder) if folder is not None else None
        except KdrunError:
            continue  # its line among the failures says what is wrong with it
        if record is not None and folder is not None:
            by_folder[folder] = (with_protocol(record, state["protocol"] or record["protocol"]), folder)
    return list(by_folder.values())


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
    """A line for each source that has changed since runs were trained with it: which runs, and how to train them again."""
    by_source: dict[str, dict[str, list[int]]] = {}
    for state in states:
        for source in state["changed"] if state["status"] == "done" else ():
            record = runs[Path(state["folder"])]
            name = f"{'+'.join(record['method'])} {label_of(record, 'student')}"
            by_source.setdefault(source, {}).setdefault(name, []).append(record["seed"])
    lines = []
    for source, names in by_source.items():
        which = "; ".join(
            f"{name} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(set(seeds))))}"
            for name, seeds in names.items()
        )
        lines.append(f"note     the source of {source} has changed since {which}; rerun=true trains with the new one")
    return lines


def _print(runs: list[tuple[dict[str, Any], Path]], folder: Path) -> None:
    from rich.console import Console

    from kdrun.report.collect import with_teachers
    from kdrun.report.summary import summary

    places = [path for _, path in runs]
    known = with_teachers([{**record, "folder": str(path)} for record, path in runs])
    runs = list(zip(known, places, strict=True))
    console = Console(highlight=False)
    console.print()
    console.print(summary([record for record, _ in runs], width=console.width), soft_wrap=True)
    done = [(record, path) for record, path in runs if record["status"] == "done"]
    if done:
        print(f"\n{_picture(done, folder)}")
        print(f"runs     {_relative(done[0][1].parents[3])}")


def _picture(done: list[tuple[dict[str, Any], Path]], folder: Path) -> str:
    """The line that says where the learning curves are. A picture that cannot be drawn is no reason to lose the table."""
    from kdrun.config.explain import message
    from kdrun.report.curves import curves

    try:
        return f"curves   {_relative(curves(done, folder / 'curves.png'))}"
    except Exception as error:
        return f"curves   not drawn: {message(error)}"


def next_step(compose: Callable[[list[str]], DictConfig]) -> str:
    """The command to try after the quickstart, and the time that it takes on this machine."""
    from kdrun.sweep.estimate import rough
    from kdrun.sweep.job import prepare

    composed = compose(NEXT)
    OmegaConf.update(composed, "outputs", "outputs")
    plan = prepare(composed)
    costs = [rough(one) for one in (plan, plan.teacher) if one is not None]
    cost = f", about {about(sum(c.seconds for c in costs if c))} on this machine" if all(costs) else ""
    return f"next     kdrun {' '.join(NEXT)}   (CIFAR-10; downloads 170 MB{cost})"


def _relative(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
