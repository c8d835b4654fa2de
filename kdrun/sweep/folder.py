"""The folder of a sweep: its list of runs (manifest.json), and the state of each job.

A job of a sweep never raises. It writes its state into jobs/<number>.json. A job without a record and without a state has failed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdrun.errors import KdrunError
from kdrun.runs import record as records
from kdrun.runs.labels import run_name

MANIFEST = "manifest.json"
NO_STATE = "the job left no state: was it killed, or never started?"
JOBS = "jobs"  # the folder of the jobs' states, in a sweep's folder
STOPPED = "stopped"  # a file in it: a job has failed and sweep.on_error=stop
FILES = (MANIFEST, "multirun.yaml", "curves.png", "search.json", JOBS)  # what a sweep writes into its folder
OURS = "hydra_plugins.kdrun_sweeper"  # a word in every multirun.yaml that kdrun wrote


def read_job(path: Path) -> dict[str, Any]:
    """The state that a job wrote; empty if it cannot be read."""
    try:
        job: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return job


def open_folder(config: DictConfig) -> Path:
    """Make the folder of a sweep and write its config (multirun.yaml). States of an earlier sweep are removed.

    KdrunError if it holds files of these names that kdrun did not write: files of the user are never overwritten.
    """
    folder = Path(config.hydra.sweep.dir)
    words = folder / "multirun.yaml"
    if not (words.is_file() and OURS in words.read_text(encoding="utf-8", errors="replace")):
        theirs = [name for name in FILES if (folder / name).exists()]
        if theirs:
            raise KdrunError(
                f"hydra.sweep.dir={folder} holds {theirs[0]}, which kdrun did not write and would overwrite; "
                "give another folder: hydra.sweep.dir=FOLDER"
            )
    (folder / JOBS).mkdir(parents=True, exist_ok=True)
    for state in (folder / JOBS).glob("*.json"):
        if state.stem.isdigit():
            state.unlink()
    (folder / JOBS / STOPPED).unlink(missing_ok=True)
    OmegaConf.save(config, words)
    return folder


def name_in(folder: Path, overrides: Sequence[str]) -> str | None:
    """The name of the job with these overrides in the sweep in this folder; None if the folder has no manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return next((run["name"] for run in manifest["runs"] if run["overrides"] == list(overrides)), None)
    except (OSError, ValueError, LookupError):
        return None


def states_of(folder: Path) -> list[dict[str, Any]]:
    """Every run of a sweep with its status now: done if its record says so, else the state of its job, else failed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KdrunError(f"{folder} is not the folder of a sweep: it has no readable {MANIFEST} ({error})") from error
    left = {}
    for path in folder.glob(f"{JOBS}/*.json"):
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


def job_name(composed: DictConfig, swept: Sequence[str] = (), model: str | None = None) -> str:
    """`kd resnet8 seed 0 temperature=2`: the name of the run, and the other swept values. `model`: the student's label."""
    methods = [str(name) for name in composed.get("method") or ()]
    student, seed = OmegaConf.select(composed, "student"), OmegaConf.select(composed, "seed")
    model = model or student.get("label") or str(student.get("path") or student.get("name")).rpartition(":")[2]
    words = [run_name((methods, model, seed))]
    for item in swept:
        if key_of(item) == "method":
            chosen = item.partition("=")[2].strip("[]").split(",")
            if {*chosen} != {*methods}:  # a variant: method=fitnet_joint
                words.append(item)
        elif key_of(item) not in ("student", "seed"):
            short = item.lstrip("+~").removeprefix("method.")
            words.append(short.removeprefix(f"{methods[0]}.") if len(methods) == 1 else short)
    return " ".join(words)


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
