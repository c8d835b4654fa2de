"""The summary of a sweep: a Hydra callback that is always present, prints the table and sets the exit status."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from kdrun.errors import remove_empty
from kdrun.screen import again

NEXT = "kdrun method=rkd teacher=resnet110 student=resnet20   (CIFAR-10; downloads 170 MB)"


BEGUN: list[Path] = []  # the folder of this process's sweep


def forget() -> None:
    """Take away the folder of a sweep that was refused before its first job: Hydra writes multirun.yaml before it looks."""
    for folder in BEGUN:
        if [path.name for path in folder.glob("*")] == ["multirun.yaml"]:
            (folder / "multirun.yaml").unlink()
            remove_empty(folder, levels=3)


class Summary(Callback):
    """Jobs of a sweep never raise; each leaves job.json in its numeric folder. What is not there counts as failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        BEGUN.append(folder)
        for old in [path for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []:
            shutil.rmtree(old)  # a fixed sweep folder (quickstart) keeps no states of an earlier sweep
        asked = _asked(config)
        if asked:
            count = math.prod(asked.values())
            print(f"{count} run{'s' * (count != 1)} asked for: {' x '.join(f'{n} {key}' for key, n in asked.items())}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        states = [_state(path) for path in sorted(folder.glob("*"), key=lambda p: p.name) if path.name.isdigit()]
        failed = [state for state in states if state["status"] != "done"]
        runs = _runs(states)
        if runs:
            _print(runs, folder)
        for line in _changed(states, {path: record for record, path in runs}):
            print(line)
        recorded = {path for _, path in runs}
        for state in failed:
            if state["folder"] is None or Path(state["folder"]) not in recorded:  # the table lists the others
                print(f"failed      {' '.join(state.get('overrides', []))}: {state.get('error')}".replace("  : ", "  "))
        if failed:
            rerun = again(config.hydra.overrides.task)
            print(
                f"{len(states) - len(failed)} done, {len(failed)} failed; {rerun} trains only what is missing",
                file=sys.stderr,
            )
            raise SystemExit(3)


def _asked(config: DictConfig) -> dict[str, int]:
    """{key: number of values} of what a sweep varies; empty where only the sweeper knows."""
    if not config.hydra.sweeper["_target_"].endswith("BasicSweeper"):
        return {}
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    asked: dict[str, int] = {}
    for override in OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task]):
        asked.pop(override.key_or_group, None)  # the command line replaces what an experiment sweeps
        if override.is_sweep_override():
            if override.value_type == ValueType.GLOB_CHOICE_SWEEP or not override.is_discrete_sweep():
                return {}
            asked[override.key_or_group] = sum(1 for _ in override.sweep_iterator())
    return asked


def _state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"status": "failed", "folder": None, "error": "the job left no state: was it killed?"}


def _runs(states: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Path]]:
    """The record of each run that the sweep asked for, once, as the protocol asked for reports it."""
    from kdrun.engine import record as records
    from kdrun.plan import with_protocol

    found = {}
    for state in states:
        folder = Path(state["folder"]) if state.get("folder") else None
        record = records.read(folder) if folder is not None else None
        if record is not None and folder is not None:
            found[folder] = (with_protocol(record, state.get("protocol", record["protocol"])), folder)
    return list(found.values())


def _changed(states: list[dict[str, Any]], runs: dict[Path, dict[str, Any]]) -> list[str]:
    """The runs whose source is another by now, a line for each that changed: which seeds, and the way out."""
    found: dict[str, dict[str, list[int]]] = {}
    for state in states:
        for source in state.get("changed", ()) if state["status"] == "done" else ():
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

    from kdrun.report.curves import curves
    from kdrun.report.table import summary

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
