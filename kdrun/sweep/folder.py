"""A sweep's folder: what was asked for (manifest.json), the state that each job left, and what its runs came to.

Jobs of a sweep never raise: each leaves its state in jobs/<number>.json; a job that is in no record and left no state counts as failed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdrun.errors import KdrunError
from kdrun.runs import record as records

MANIFEST = "manifest.json"
NO_STATE = "the job left no state: was it killed, or never started?"
JOBS = "jobs"  # the folder of the jobs' states, in a sweep's folder
STOPPED = "stopped"  # a file in it: a job failed and sweep.on_error=stop
FILES = (MANIFEST, "multirun.yaml", "curves.png", "search.json", JOBS)  # what a sweep writes into its folder
OURS = "hydra_plugins.kdrun_sweeper"  # stands in every multirun.yaml that kdrun wrote


def read_job(path: Path) -> dict[str, Any]:
    """The state that a job left; empty where it cannot be read."""
    try:
        job: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return job


def open_folder(config: DictConfig) -> Path:
    """The sweep's folder with multirun.yaml in it, Hydra's own words for what was asked. States of an earlier sweep are taken away.

    KdrunError where it holds files of these names that kdrun did not write: nothing of the user's is overwritten.
    """
    folder = Path(config.hydra.sweep.dir)
    words = folder / "multirun.yaml"
    if not (words.is_file() and OURS in words.read_text(encoding="utf-8", errors="replace")):
        theirs = [name for name in FILES if (folder / name).exists()]
        if theirs:
            raise KdrunError(
                f"hydra.sweep.dir={folder} holds {theirs[0]}, which is not of a sweep of kdrun's and would be overwritten; "
                "give another folder"
            )
    (folder / JOBS).mkdir(parents=True, exist_ok=True)
    for state in (folder / JOBS).glob("*.json"):
        if state.stem.isdigit():
            state.unlink()
    (folder / JOBS / STOPPED).unlink(missing_ok=True)
    OmegaConf.save(config, words)
    return folder


def name_in(folder: Path, overrides: Sequence[str]) -> str | None:
    """The name that the sweep in this folder gave the job with these overrides; None where it has no manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return next((run["name"] for run in manifest["runs"] if run["overrides"] == list(overrides)), None)
    except (OSError, ValueError, LookupError):
        return None


def states_of(folder: Path) -> list[dict[str, Any]]:
    """Every run that a sweep asked for with its status now: done, or what its job or its record says, or failed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KdrunError(f"{folder} is no folder of a sweep: it has no readable {MANIFEST} ({error})") from error
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


def job_name(composed: DictConfig, swept: Sequence[str] = ()) -> str:
    """`kd resnet8 seed 0 temperature=2`: method, student and seed, and what else is swept."""
    methods = [str(name) for name in composed.get("method") or ()]
    student, seed = OmegaConf.select(composed, "student"), OmegaConf.select(composed, "seed")
    model = student.get("label") or str(student.get("path") or student.get("name")).rpartition(":")[2]
    words = ["+".join(methods), model, f"seed {seed}"]
    for item in swept:
        if key_of(item) not in ("method", "student", "seed"):
            short = item.lstrip("+~").removeprefix("method.")
            words.append(short.removeprefix(f"{methods[0]}.") if len(methods) == 1 else short)
    return " ".join(words)


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
