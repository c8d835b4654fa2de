"""`kdrun status [FOLDER]`: the state of every run below a folder, usable while a sweep trains. Reads files alone."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdrun.errors import KdrunError
from kdrun.report.collect import collect
from kdrun.report.command import Parser
from kdrun.report.groups import name
from kdrun.screen import clock
from kdrun.sweep import MANIFEST


@dataclass
class State:
    """One run: what it is doing, how far it is, and what it needs."""

    name: str
    status: str  # done, running, interrupted, failed, nan, oom, not started
    told: str = ""  # epoch and eta, or the error
    left_s: float | None = None


def status(arguments: Sequence[str]) -> int:
    """The verb; returns the exit status."""
    found = Parser(
        "kdrun status", description="Every run's state, progress, ETA and last error; runs that are done are counted."
    )
    found.add_argument("folder", nargs="?", default="outputs", metavar="FOLDER", help="default: outputs")
    found.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="again every few seconds")
    asked = found.parse_args(arguments)
    while True:
        print("\n".join(lines(states(Path(asked.folder)))), flush=True)
        if asked.watch is None:
            return 0
        time.sleep(max(asked.watch, 0.5))
        print()


def states(folder: Path) -> list[State]:
    """Every run that has a record, then those that the newest sweep asked for and that have none."""
    records = collect([folder]).records
    found = [_state(record) for record in records]
    return found + [
        State(what, "not started") for what in _not_started(folder, {record["folder"] for record in records})
    ]


def lines(found: list[State]) -> list[str]:
    """What is not done, a line each; the counts last, with the time that is left where it is known."""
    counts = Counter(state.status for state in found)
    shown = [state for state in found if state.status not in ("done", "not started")]
    width = max((len(state.name) for state in shown), default=0)
    told = [f"{state.status:<12}{state.name:<{width}}  {state.told}".rstrip() for state in shown]
    total = f"{len(found)} run{'s' * (len(found) != 1)}   " + "   ".join(
        f"{n} {what}" for what, n in counts.most_common()
    )
    left = [state.left_s for state in found if state.left_s is not None]
    return [*told, total + (f"   eta of what is running {clock(max(left))}" if left else "")]


def _state(record: dict) -> State:
    what, folder = name(record), Path(record["folder"])
    if record["status"] == "running":
        alive = _alive(folder)
        progress, left = _progress(record, folder)
        return State(what, "running" if alive else "interrupted", progress, left if alive else None)
    if record["status"] == "done":
        return State(what, "done")
    error = (record.get("error") or {}).get("message") or ""
    return State(what, record["status"], error if record["status"] != "interrupted" else _progress(record, folder)[0])


def _alive(folder: Path) -> bool:
    """Whether the process that holds the folder lives; one of another host is taken at its word."""
    try:
        holder = json.loads((folder / ".holder.json").read_text(encoding="utf-8"))
        if holder["host"] != socket.gethostname():
            return True
        os.kill(holder["pid"], 0)
        return True
    except PermissionError:
        return True  # it lives and is someone else's
    except (OSError, ValueError, KeyError):
        return False


def _progress(record: dict, folder: Path) -> tuple[str, float | None]:
    """How far a run is, and the seconds left of its last stage; stages before it are shown by name."""
    try:
        done = json.loads((folder / "curves.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return "before its first epoch", None
    epochs = done.get("epochs") or record["recipe"].get("epochs")
    told = f"epoch {done['epoch']}/{epochs}" + (f" of {done['stage']}" if done["stage"] != "distil" else "")
    if "seconds" not in done or not epochs:
        return told, None
    left = done["seconds"] * max(epochs - done["epoch"], 0)
    return f"{told}  eta {clock(left)}", left


def _not_started(folder: Path, known: set[str]) -> list[str]:
    """The overrides of the newest sweep's runs that have no folder with a record yet."""
    sweeps = [path for place in (folder, folder / "sweeps") for path in place.glob(f"*/{MANIFEST}")]
    if not sweeps:
        return []
    newest = max(sweeps, key=lambda path: path.stat().st_mtime)
    try:
        runs = json.loads(newest.read_text(encoding="utf-8"))["runs"]
    except (ValueError, KeyError) as error:
        raise KdrunError(f"{newest} is truncated or not a manifest ({error})") from error
    here = {str(Path(path).resolve()) for path in known}
    return [" ".join(run["overrides"]) for run in runs if run["folder"] and run["folder"] not in here]
