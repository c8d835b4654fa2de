"""The folder of one run: the names of its files, which process holds it, and how it is emptied."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdrun.errors import HeldError, KdrunError
from kdrun.runs import record as records

RECORD = records.NAME
CONFIG = "config.yaml"
CURVES = "curves.jsonl"
LOG = "log.txt"
STATE = "last.ckpt"  # everything that a resume needs
PREDICTIONS = "test_logits.safetensors"  # the outputs of the student for the test set, after the last epoch
PICTURE = "picture.png"  # what the run's models give for the same test samples, where the task draws it
EXPORTS = ("best.pt", "last.pt")  # of detectors: files that ultralytics opens
BOARD = "tb"  # TensorBoard's events lie in it
EVENTS = "events.out.tfevents.*"
TASK = "task"  # what the task keeps to give a model its inputs again, such as a tokenizer
WEIGHTS = {  # protocol -> the student's weights at the epoch that it reports
    "last": "student.safetensors",
    "best": "student-best.safetensors",
    "holdout": "student-holdout.safetensors",
}
LOCK, HOLDER = ".lock", ".holder.json"
# What a run writes into its folder. Nothing else is ever removed from it.
WRITTEN = (
    STATE, RECORD, CONFIG, CURVES, LOG, *WEIGHTS.values(), "peer[0-9]*.safetensors", PREDICTIONS, f"{BOARD}/{EVENTS}",
    f"{TASK}/*.json", PICTURE, *EXPORTS, ".*.[0-9]*.tmp",
)  # fmt: skip


@contextmanager
def hold(folder: Path, run: str, outputs: str, wait: bool, say: Callable[[str], None] = print) -> Iterator[None]:
    """Make the folder and lock it for this process.

    If another process holds it, this is an error with exit code 4, or with `wait` (a teacher, a job of a sweep) the function waits.
    `run` is the name of the run in the line that says so; `outputs` is the folder that the user chose.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KdrunError(
            f"outputs={outputs} cannot be written ({error.strerror}: {error.filename}); say outputs=FOLDER"
        ) from error
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = _holder(folder)
        if not wait:
            raise HeldError(f"{folder} is being trained by {who}. Wait for it, or start another run") from None
        say(f"{run} is being trained by {who}; waiting for it")
        lock.acquire()
    try:
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": records.now()}
        (folder / HOLDER).write_text(json.dumps(mine), encoding="utf-8")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def held_by(folder: Path) -> str | None:
    """Which process holds the folder of the run now; None if no process does."""
    if not (folder / LOCK).is_file():
        return None
    try:
        with FileLock(folder / LOCK, timeout=0):
            return None
    except Timeout:
        return _holder(folder)


def clear(folder: Path) -> None:
    """Remove the files of a run (rerun=true). Other files in the folder stay.

    The order makes a kill in between harmless. The resume state goes first, so that no run goes on from half a folder. The record goes
    second, before the files that it names: without a record, the folder is not taken for a finished run.
    """
    for pattern in WRITTEN:
        for path in sorted(folder.glob(pattern)):
            path.unlink(missing_ok=True)


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
