"""The summary of a sweep: a Hydra callback that is always present, prints the table and sets the exit status."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Summary(Callback):
    """Jobs of a sweep never raise; each leaves job.json in its numeric folder. What is not there counts as failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        for old in [path for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []:
            shutil.rmtree(old)  # a fixed sweep folder (quickstart) keeps no states of an earlier sweep

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        states = [_state(path) for path in sorted(folder.glob("*"), key=lambda p: p.name) if path.name.isdigit()]
        failed = [state for state in states if state["status"] != "done"]
        runs = _runs(states)
        if runs:
            _print(runs, folder)
        if failed:
            print(
                f"{len(states) - len(failed)} done, {len(failed)} failed; the same command trains only what is missing",
                file=sys.stderr,
            )
            raise SystemExit(3)


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


def _print(runs: list[tuple[dict[str, Any], Path]], folder: Path) -> None:
    from rich.console import Console

    from kdrun.report.sweep import curves, summary

    console = Console(highlight=False)
    console.print()
    console.print(summary([record for record, _ in runs]))
    done = [(record, path) for record, path in runs if record["status"] == "done"]
    if done:
        print(f"\ncurves   {curves(done, folder / 'curves.png')}")
        print(f"records  {_relative(done[0][1].parents[3])}")


def _relative(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
