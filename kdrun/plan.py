"""A run before it is trained: who it is, where it lies, what is already there. Answers finished runs without torch."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdrun import data
from kdrun.config import Config
from kdrun.engine import record as records
from kdrun.errors import HeldError, KdrunError
from kdrun.identity import digest, file_sha256, folder, group, identity, is_fresh, teacher_config
from kdrun.registry import METHODS, MODELS


@dataclass
class Plan:
    """A validated config with its identity and its folder; `teacher` is the plan of the run that trains its teacher."""

    config: Config
    identity: dict[str, Any]
    folder: Path
    teacher: Plan | None = None

    @property
    def id(self) -> str:
        return digest(self.identity)

    @property
    def group(self) -> str:
        return group(self.identity)

    def record(self) -> dict[str, Any] | None:
        """What record.json in the folder says now."""
        try:
            return records.read(self.folder)
        except KdrunError as error:
            raise KdrunError(f"{error}; rerun=true starts the run over") from error

    def finished(self) -> dict[str, Any] | None:
        """The record of a finished run, unless rerun=true asks for another. A run that ended in NaN needs rerun=true."""
        found = None if self.config.rerun else self.record()
        if found is None:
            return None
        if found["id"] != self.id:
            raise KdrunError(f"{self.folder} holds another run ({found['id']}, not {self.id}); rerun=true replaces it")
        if found["status"] == "nan":
            raise KdrunError(f"{self.folder} ended in NaN: {found['error']['message']}. rerun=true starts it over")
        return found if found["status"] == "done" else None


def make_plan(config: Config) -> Plan:
    """Identity and folder of a run and of its teacher; reads the dataset's checksum, trains nothing."""
    _check_files(config)
    checksum = data.checksum(config.dataset, config.outputs)
    config.dataset.size = data.own_size(config.dataset, config.outputs)  # size=8 of 8 px images is the run of null
    found = identity(config, checksum)
    teacher = None
    if config.teacher.name != "none" and not config.teacher.checkpoint and not is_fresh(config):
        theirs = teacher_config(config)
        its_identity = identity(theirs, checksum)
        teacher = Plan(theirs, its_identity, folder(theirs, its_identity))
    return Plan(config, found, folder(config, found), teacher)


def _check_files(config: Config) -> None:
    """A checkpoint that is not there and an output folder that cannot be: said by the key that asked for them."""
    for role in ("teacher", "student"):
        path = getattr(config, role).checkpoint
        if path and not Path(path).is_file():
            raise KdrunError(
                f"{role}.checkpoint={path} is not there (looked from {Path.cwd()}); give a .safetensors, .pt or .pth file"
            )
    place = next(path for path in (Path(config.outputs), *Path(config.outputs).absolute().parents) if path.exists())
    if not place.is_dir():
        raise KdrunError(f"outputs={config.outputs} cannot be written: {place} is a file; say outputs=FOLDER")


def code(config: Config) -> dict[str, Any]:
    """SHA-256 of the source of each method (with the methods that it imports) and of an imported model."""
    student = None
    if getattr(config.student, "path", None):
        student = _module_sha256(config.student.path.partition(":")[0])
    elif not MODELS.entry(config.student.name).module.startswith("kdrun."):
        student = file_sha256(MODELS.entry(config.student.name).file)
    return {"method": {name: _method_sha256(name) for name in config.method}, "student": student}


def changed_code(config: Config, record: dict[str, Any]) -> list[str]:
    """Names whose source differs from the one that a finished run was trained with."""
    now = code(config)
    names = [name for name, value in record["code"]["method"].items() if now["method"].get(name) != value]
    return names + ([f"model {config.student.name}"] if now["student"] != record["code"]["student"] else [])


@contextmanager
def held(plan: Plan, wait: bool, say: Any = print) -> Iterator[None]:
    """Hold a run's folder. Another holder is an error of exit code 4, or is waited for (a teacher, a job of a sweep)."""
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KdrunError(
            f"outputs={plan.config.outputs} cannot be written ({error.strerror}: {error.filename}); say outputs=FOLDER"
        ) from error
    lock, holder = FileLock(plan.folder / ".lock"), plan.folder / ".holder.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = _holder(holder)
        if not wait:
            raise HeldError(f"{plan.folder} is being trained by {who}. Wait for it, or ask for another run") from None
        config = plan.config
        say(
            f"{'+'.join(config.method)} {config.student.name} seed {config.seed} is being trained by {who}; waiting for it"
        )
        lock.acquire()
    try:
        holder.write_text(
            json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": records.now()}), encoding="utf-8"
        )
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def clear(plan: Plan) -> None:
    """Empty a run's folder (rerun=true), but for its lock.

    A kill in between is harmless by the order: without the resume state nothing goes on from half a folder, and without the
    record nothing takes the folder for a finished run; until the record is gone, all that it names is there.
    """
    first = ("last.ckpt", "record.json")
    paths = {path.name: path for path in plan.folder.iterdir() if path.name not in (".lock", ".holder.json")}
    for name in sorted(paths, key=lambda name: first.index(name) if name in first else len(first)):
        shutil.rmtree(paths[name]) if paths[name].is_dir() else paths[name].unlink()


def describe(plan: Plan, sizes: str) -> list[str]:
    """The plan as lines: what will be trained and what is already there; `sizes` is train/test."""
    config = plan.config
    methods = "+".join(config.method)
    holdout = f", {config.dataset.holdout:,} held out" if config.dataset.holdout else ""
    student = f"student {config.student.name} seed {config.seed}"
    lines = [f"plan     {config.dataset.name} {sizes}{holdout} | {methods} | {student} | {_recipe(config.recipe)}"]
    if config.teacher.name != "none":
        lines.append(f"teacher  {config.teacher.name} {_teacher(plan)}")
    weights = {f"{m}.{term}": weight for m, values in config.method.items() for term, weight in values.weights.items()}
    if weights:
        lines.append("weights  " + ", ".join(f"{term} {weight:g}" for term, weight in weights.items()))
    before = None if config.rerun else plan.record()
    if before is not None:
        lines.append(f"resume   this run was {before['status']}; it goes on after its last finished epoch")
    lines.append(f"folder   {plan.folder}")
    return lines


def _teacher(plan: Plan) -> str:
    config = plan.config
    if is_fresh(config):
        return "is the peers' architecture; they are trained together with the student"
    if plan.teacher is None:
        return f"from {config.teacher.checkpoint}"
    record = plan.teacher.record()
    if record is not None and record["status"] == "done":
        return f"(seed {config.teacher.seed}): here, test {100 * record['last']['score']:.2f} ({plan.teacher.folder})"
    state = "not here, will be trained first" if record is None else f"{record['status']}, will be finished first"
    return f"(seed {config.teacher.seed}): {state} | {_recipe(config.teacher.recipe)}"


def _recipe(recipe: Any) -> str:
    epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}"
    return f"{recipe.name}: {epochs}, batch {recipe.batch_size}, lr {recipe.lr:g}"


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def _method_sha256(name: str) -> str:
    """Over the method's file and, through its imports, those of the methods whose maths it uses."""
    seen: dict[str, str] = {}
    folder = Path(__file__).parent / "methods"

    def visit(file: Path) -> None:
        seen[file.name] = file_sha256(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdrun.methods."):
                other = folder / f"{(node.module or '').rpartition('.')[2]}.py"
                if other.name != "base.py" and other.name not in seen and other.is_file():
                    visit(other)

    visit(METHODS.entry(name).file)
    if len(seen) == 1:
        return next(iter(seen.values()))
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _module_sha256(module: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return file_sha256(spec.origin) if spec is not None and spec.origin else None


def model_arguments(node: Any) -> dict[str, Any]:
    """The builder's keyword arguments in a model's node."""
    return {name: getattr(node, name) for name in MODELS.entry(node.name).arguments}


def with_protocol(record: dict[str, Any], protocol: str) -> dict[str, Any]:
    """The record as another protocol reports it: all candidates are always recorded, so nothing is trained."""
    return {**record, "protocol": protocol, "score": score(record, protocol)}


def score(record: dict[str, Any], protocol: str) -> float | None:
    """The reported test score: of the last epoch, of the best on the test set, or of the best on the holdout."""
    if protocol == "holdout":
        return record["holdout"]["test_score"] if record["holdout"] else None
    return record[protocol]["score"] if record[protocol] else None


def settings(config: Config) -> dict[str, dict[str, Any]]:
    """Each method's values as plain dicts."""
    return {name: dataclasses.asdict(values) for name, values in config.method.items()}
