"""A run before it is trained: its identity, its folder, and what is already there. A finished run is answered without torch."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.config.registry import MODELS
from kdrun.config.schema import Config
from kdrun.errors import KdrunError
from kdrun.runs import record as records
from kdrun.runs.folder import held_by
from kdrun.runs.identity import alone_config, digest, folder, group, identity, is_fresh, teacher_config
from kdrun.runs.labels import dataset_label, label
from kdrun.tasks import task_of
from kdrun.tasks.metric import metric_of


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
        """The record in the folder now; None if there is none."""
        try:
            return records.read(self.folder)
        except KdrunError as error:
            raise KdrunError(f"{error}; rerun=true starts the run over") from error

    def finished(self) -> dict[str, Any] | None:
        """The record of a finished run; None if it must be trained (not finished, or rerun=true). A run that ended in NaN is an error."""
        record = None if self.config.rerun else self.record()
        if record is None:
            return None
        if record["id"] != self.id:
            raise KdrunError(f"{self.folder} holds another run ({record['id']}, not {self.id}); rerun=true replaces it")
        if record["status"] == "nan":
            raise KdrunError(f"{self.folder} ended in NaN: {record['error']['message']}. rerun=true starts it over")
        return record if record["status"] == "done" else None


def make_plan(config: Config, datasets: dict[str, tuple[str, Any]] | None = None) -> Plan:
    """Identity and folder of a run and of its teacher. Reads the checksum of the dataset; trains nothing.

    `datasets`: checksums and settings that were read before. The jobs of a sweep share this dict, so that each folder of samples is
    listed only once.
    """
    _check_files(config)
    datasets, key = {} if datasets is None else datasets, repr((config.dataset, config.outputs))
    if key not in datasets:
        task = task_of(config)
        datasets[key] = task.checksum(config.dataset, config.outputs), task.settled(config.dataset, config.outputs)
    checksum, settled = datasets[key]
    config.dataset = copy.copy(settled)
    teacher = None
    if config.teacher.name != "none" and not config.teacher.checkpoint and not is_fresh(config):
        of_teacher = teacher_config(config)
        its_identity = identity(of_teacher, checksum)
        teacher = Plan(of_teacher, its_identity, folder(of_teacher, its_identity))
    own = identity(config, checksum, teacher.id if teacher else None)
    return Plan(config, own, folder(config, own), teacher)


def alone(plan: Plan) -> Plan:
    """The plan of the run that trains the same student alone."""
    config = alone_config(plan.config)
    own = identity(config, plan.identity["dataset"]["checksum"])
    return Plan(config, own, folder(config, own))


def _check_files(config: Config) -> None:
    """KdrunError for a checkpoint that does not exist, and for an output folder that cannot be made; it names the key to change."""
    for role in ("teacher", "student"):
        path = getattr(config, role).checkpoint
        if path and not Path(path).is_file():
            raise KdrunError(
                f"{role}.checkpoint={path} does not exist (current folder: {Path.cwd()}); give a .safetensors, .pt or .pth file"
            )
    place = next(path for path in (Path(config.outputs), *Path(config.outputs).absolute().parents) if path.exists())
    if not place.is_dir():
        raise KdrunError(
            f"outputs={config.outputs} cannot be written: {place} is a file; give another folder: outputs=FOLDER"
        )


def describe(plan: Plan, sizes: str) -> list[str]:
    """The plan as lines: what will be trained, and what is already there. `sizes`: numbers of training, test and held-out samples."""
    config = plan.config
    methods = "+".join(config.method)
    student = f"student {label(config.student)} seed {config.seed}"
    lines = [f"plan     {dataset_label(config.dataset)} {sizes} | {methods} | {student} | {_recipe(config.recipe)}"]
    if config.teacher.name != "none":
        lines.append(f"teacher  {label(config.teacher)} {_teacher(plan)}")
    weights = {f"{m}.{term}": weight for m, values in config.method.items() for term, weight in values.weights.items()}
    if weights:
        texts = {term: weight if isinstance(weight, str) else f"{weight:g}" for term, weight in weights.items()}
        lines.append("weights  " + ", ".join(f"{term} {text}" for term, text in texts.items()))
    before = None if config.rerun else plan.record()
    holder = held_by(plan.folder)
    if holder:
        lines.append(f"held     by {holder}")
    elif before is not None:
        lines.append(f"resume   this run was {before['status']}; it goes on after its last finished epoch")
    lines.append(f"folder   {plan.folder}")
    return lines


def _teacher(plan: Plan) -> str:
    config = plan.config
    if is_fresh(config):
        return "is the peers' architecture; they are trained together with the student"
    if plan.teacher is None:
        key = config.teacher.checkpoint_key
        return f"from {config.teacher.checkpoint}" + (f", its weights under '{key}'" if key else "")
    record = plan.teacher.record()
    if record is not None and record["status"] == "done":
        return f"(seed {config.teacher.seed}): here, test {metric_of(record).text(record['last']['score'])} ({plan.teacher.folder})"
    state = "not here, will be trained first" if record is None else f"{record['status']}, will be finished first"
    return f"(seed {config.teacher.seed}): {state} | {_recipe(config.teacher.recipe)}"


def _recipe(recipe: Any) -> str:
    epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}"
    return f"{recipe.name}: {epochs}, batch {recipe.batch_size}, lr {recipe.lr:g}"


def model_arguments(node: Any) -> dict[str, Any]:
    """The keyword arguments for the builder of a model, from its node of the config."""
    return {name: getattr(node, name) for name in MODELS.entry(node.name).arguments}


def with_protocol(record: dict[str, Any], protocol: str) -> dict[str, Any]:
    """The record with the score of another protocol. A record holds the scores of all protocols, so nothing is trained."""
    return {**record, "protocol": protocol, "score": score(record, protocol)}


def score(record: dict[str, Any], protocol: str) -> float | None:
    """The reported test score: of the last epoch, of the best on the test set, or of the best on the holdout."""
    if protocol == "holdout":
        return record["holdout"]["test_score"] if record["holdout"] else None
    return record[protocol]["score"] if record[protocol] else None


def settings(config: Config) -> dict[str, dict[str, Any]]:
    """The settings of each method as plain dicts."""
    return {name: dataclasses.asdict(values) for name, values in config.method.items()}
