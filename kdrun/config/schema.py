"""The typed config: its schema, the nodes that the model registry gives to `teacher` and `student`, and its checks.

Nothing here imports torch: a typo is answered before anything heavy is loaded.
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass, field, fields, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdrun import PACKAGE
from kdrun.config.arguments import REQUIRED, Argument
from kdrun.config.registry import METHODS, MODELS, Entry
from kdrun.config.words import wrong_value
from kdrun.errors import KdrunError, choices


@dataclass
class Recipe:
    """How a model is trained. Milestones and warm-up are shares of the epochs, so `recipe.epochs=10` scales them."""

    name: str = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    optimizer: str = MISSING  # sgd | adamw
    lr: float = MISSING
    momentum: float = MISSING
    nesterov: bool = MISSING
    weight_decay: float = MISSING
    schedule: str = MISSING  # step | cosine | constant
    milestones: list[float] = MISSING
    gamma: float = MISSING
    warmup: float = MISSING
    crop: str = MISSING  # zero | reflect | none: what fills the border before the random crop
    padding: int | None = None  # pixels on each side; null: side / 8, the published 4 at 32 px
    flip: bool = MISSING


@dataclass
class Data:
    """Where images come from; each file of conf/dataset gives one."""

    name: str = MISSING
    root: str | None = None
    holdout: int = 0
    size: int | None = None
    flip: bool = True
    memory: str = "auto"  # auto | always | never
    mean: list[float] | None = None
    std: list[float] | None = None
    label: str | None = None  # what it is called in folders and tables; null: its name, or that of the folder


@dataclass
class Engine:
    """How a run is computed. Of these only precision and deterministic are part of a run's identity."""

    device: str = "auto"  # auto | cpu | cuda
    precision: str = "auto"  # auto | fp32 | bf16
    deterministic: bool = True
    threads: int | None = None  # torch threads; null: torch's own choice
    workers: int = 2  # of the DataLoader, for data that does not fit in memory
    log_every: int = 50  # steps between points in TensorBoard
    rehearse: bool = False  # show each term's share of the gradient and stop
    debug: bool = False  # tracebacks


@dataclass
class Loss:
    """`task`: weight of the supervised loss, where the methods' own `weights.task` does not say or disagrees."""

    task: float | None = None


@dataclass
class Sweep:
    """`on_error`: what a sweep does after a job that failed."""

    on_error: str = "continue"  # continue | stop


@dataclass
class Config:
    """One run, as composed from conf/config.yaml and the command line."""

    dataset: Data = field(default_factory=Data)
    teacher: Any = MISSING
    student: Any = MISSING
    method: Any = MISSING
    recipe: Recipe = field(default_factory=Recipe)
    loss: Loss = field(default_factory=Loss)
    engine: Engine = field(default_factory=Engine)
    seed: int = 0
    protocol: str = "last"  # last | best | holdout
    rerun: bool = False
    table: Any = None  # of a sweep: a published table, expanded into its cells (kdrun/config/tables.py)
    pair: str | None = None  # of a table: teacher-student; null: every pair
    budget: str = "full"  # of a table: full | short | smoke
    phase: str = "all"  # all | teacher: stop once the teacher is ready (a sweep's first jobs)
    sweep: Sweep = field(default_factory=Sweep)
    outputs: str = "outputs"
    plugins: list[str] = field(default_factory=list)


_NODES: dict[str, tuple[Entry, type]] = {}  # the schemas of models and methods, each with what it was made from
_TYPED: dict[tuple[str, type, str], Any] = {}  # parts of configs that were checked, by their place, schema and values
PROVIDER = "kdrun"  # of the schema in Hydra's ConfigStore
ROLES = ("teacher", "student")  # the groups whose choices are models
CHOICES = {
    "protocol": ("last", "best", "holdout"),
    "phase": ("all", "teacher"),
    "budget": ("full", "short", "smoke"),
    "sweep.on_error": ("continue", "stop"),
    "dataset.memory": ("auto", "always", "never"),
    "engine.device": ("auto", "cpu", "cuda"),
    "engine.precision": ("auto", "fp32", "bf16"),
    "recipe.optimizer": ("sgd", "adamw"),
    "recipe.schedule": ("step", "cosine", "constant"),
    "recipe.crop": ("zero", "reflect", "none"),
    "teacher.weights": ("last", "best"),
}


def conf_folder() -> Path:
    """conf/ lies beside the package in a checkout and inside it in a wheel."""
    return PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def method_names() -> list[str]:
    """The choices of the group method that kdrun ships."""
    return sorted(file.stem for file in (conf_folder() / "method").glob("*.yaml"))


def check_user_folder(folder: str) -> None:
    """Refuse a file of --config-dir that has the name of a built-in: Hydra would take the built-in without a word."""
    if not Path(folder).is_dir():
        raise KdrunError(
            f"--config-dir {folder} is no folder; give the one that holds your method/NAME.yaml and the like"
        )
    for file in sorted(Path(folder).glob("*/*.yaml")):
        group, name = file.parent.name, file.stem
        models = [*MODELS.entries(), "none"] if group in ("teacher", "student") else []
        if name in models or (conf_folder() / group / file.name).is_file():
            raise KdrunError(f"{file} has the name of the built-in {group}={name}, which would win; rename the file")


def register_nodes() -> None:
    """Put the schema into Hydra's ConfigStore. The nodes of models come from hydra_plugins/kdrun_models.py.

    Those of plug-ins are made here once, so that an error in one is reported whichever model is chosen.
    """
    from hydra.core.config_store import ConfigStore  # 0.1 s that `kdrun methods` does not need

    ConfigStore.instance().store(name="schema", node=Config, provider=PROVIDER)
    # Hydra deep-copies its sources, and the store with them, at every composition and for every group that it lists. The store hands out
    # copies of its nodes anyway.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    for name in sorted(MODELS.plugins):
        for role in ROLES:
            model_node(MODELS.entry(name), role)


def model_choices(group: str) -> list[str]:
    """The choices of the groups `teacher` and `student` that the registry of models gives; none for another group."""
    return [*MODELS.entries(), *["none"] * (group == "teacher")] if group in ROLES else []


def model_choice(group: str, name: str) -> type:
    """The typed node of one choice: `teacher` or `student`, and the model's name."""
    return _no_teacher() if name == "none" else model_node(MODELS.entry(name), group)


def model_node(entry: Entry, role: str) -> type:
    """The typed node of a model: its name, a checkpoint, a label, and the builder's own keyword arguments."""
    return _schema(f"{role}_{entry.name}", _parts(entry.name, role), entry)


def _parts(name: str, role: str) -> list[Any]:
    parts: list[Any] = [("name", str, name), ("label", Optional[str], None), ("checkpoint", Optional[str], None)]
    parts += [("checkpoint_key", Optional[str], None), ("output", Optional[str], None)]
    if role == "teacher":
        parts += [("seed", int, 0), ("weights", str, "last"), ("recipe", Recipe, field(default_factory=Recipe))]
        parts += [("allow_weak", bool, False)]  # go on with a teacher near chance or far below its record
    return parts


@lru_cache
def _no_teacher() -> type:
    return make_dataclass("teacher_none", _parts("none", "teacher"))


def no_teacher(recipe: Recipe) -> Any:
    """The node of teacher=none; its recipe is never used and so is the student's."""
    node = _no_teacher()()
    node.recipe = recipe
    return node


def _schema(name: str, parts: list[Any], entry: Entry) -> type:
    """The keys that every node of its kind has, and the options of a builder; a clash, or a default of another type, is an error."""
    taken = [option for option in entry.arguments if option in {part[0] for part in parts}]
    where = f"{entry.file.name}: {entry.symbol}"
    if taken:
        raise KdrunError(
            f"{where} has an option '{taken[0]}', which is a key of every {name.partition('_')[0]}; rename it"
        )
    if name in _NODES and _NODES[name][0] == entry:
        return _NODES[name][1]
    node = make_dataclass(name, parts + [_field(option, argument) for option, argument in entry.arguments.items()])
    try:
        if not entry.module.startswith("kdrun."):  # kdrun's own are held by tests
            OmegaConf.structured(node)
    except OmegaConfBaseException as error:
        raise KdrunError(
            f"{where} has a default that does not fit its type: {wrong_value(str(error.full_key), str(error).splitlines()[0])}"
        ) from error
    _NODES[name] = entry, node
    return node


def _field(name: str, argument: Argument) -> tuple[str, Any, Any]:
    """One field: its type, its default, and in its metadata the values that it may have."""
    about: Any = {"metadata": {"choices": argument.choices}}
    if argument.default is REQUIRED:
        return name, argument.kind, field(default=MISSING, **about)
    if isinstance(argument.default, (list, dict)):
        return name, argument.kind, field(default_factory=argument.default.copy, **about)
    return name, argument.kind, field(default=argument.default, **about)


def method_schema(name: str) -> type:
    """The schema of `method.<name>`: the keyword-only arguments of its `build` and the keys that every method has."""
    parts: list[Any] = [
        ("taps", Any, None),  # a list, or a mapping with a list for each side
        ("weights", dict[str, float], field(default_factory=dict)),
        ("stages", dict[str, Any], field(default_factory=dict)),
        ("schedules", dict[str, Any], field(default_factory=dict)),
    ]
    return _schema(f"method_{name}", parts, METHODS.entry(name))


def validate(composed: DictConfig) -> Config:
    """The composed config as typed objects; every error is a KdrunError that names the key.

    `+key=1` and `~key` bypass Hydra's checks and a missing `???` passes them, so the schema is merged again here.
    """
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    for role in ("teacher", "student"):
        node = plain.get(role)
        if not isinstance(node, dict) or "name" not in node:
            raise KdrunError(f"{role} has no value; say {role}=NAME. {choices('', MODELS.entries())}")
    schema = {
        "dataset": Data, "recipe": Recipe, "engine": Engine, "loss": Loss, "sweep": Sweep,
        "student": model_node(MODELS.entry(plain["student"]["name"]), "student"),
        "teacher": _no_teacher() if plain["teacher"]["name"] == "none"
        else model_node(MODELS.entry(plain["teacher"]["name"]), "teacher"),
    }  # fmt: skip
    unknown = set(plain) - {f.name for f in fields(Config)} - {"experiment", "hydra"}
    if unknown:
        name = sorted(unknown)[0]
        raise KdrunError(f"no key '{name}' in the config. {choices(name, [f.name for f in fields(Config)])}")
    typed = {key: _typed(key, plain.get(key) or {}, node) for key, node in schema.items()}
    typed["method"] = _methods(plain.get("method"))
    config = Config(**typed, **_scalars({str(key): value for key, value in plain.items() if key not in typed}))
    _expand_home(config)
    _check(config)
    return config


def _expand_home(config: Config) -> None:
    """`~` in paths that come from a file; the command line's are expanded before."""
    config.outputs = os.path.expanduser(config.outputs)
    for node, key in ((config.dataset, "root"), (config.teacher, "checkpoint"), (config.student, "checkpoint")):
        if getattr(node, key):
            setattr(node, key, os.path.expanduser(getattr(node, key)))


def _methods(given: Any) -> dict[str, Any]:
    """Each method's settings, typed; sorted by name, since the order of `method=[a,b]` does not count."""
    if not isinstance(given, dict) or not given:
        raise KdrunError(
            f"method has no value; say method=NAME, or method=none for the student alone. {choices('', method_names())}"
        )
    methods = {str(name): values or {} for name, values in given.items()}
    if "none" in methods and len(methods) > 1:
        raise KdrunError(
            f"method={'+'.join(methods)}: none is the student alone and combines with nothing; leave it out"
        )
    typed = {name: _typed(f"method.{name}", methods[name], method_schema(name)) for name in sorted(methods)}
    for values in typed.values():
        values.taps = [] if values.taps is None else values.taps
    return typed


def _typed(where: str, values: dict[str, Any], node: type) -> Any:
    """A part of the config as an object of its own. The jobs of a sweep mostly share it, so it is checked once and then copied."""
    key = (where, node, repr(values))
    if key not in _TYPED:
        _TYPED[key] = _checked(where, values, node)
    return copy.deepcopy(_TYPED[key])


def _checked(where: str, values: dict[str, Any], node: type) -> Any:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(node), values)
        missing = OmegaConf.missing_keys(merged)
        if missing:
            key = sorted(missing)[0]
            if "name" in missing and where in ("dataset", "recipe"):
                known = [file.stem for file in (conf_folder() / where).glob("*.yaml")]
                raise KdrunError(f"{where} has no value; say {where}=NAME. {choices('', known)}")
            raise KdrunError(f"{where}.{key} has no value; give one: {where}.{key}=VALUE")
        typed = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key or "")
        if key.split(".")[0] not in {f.name for f in fields(node)}:
            raise KdrunError(f"no key '{key}' in {where}. {choices(key, [f.name for f in fields(node)])}") from error
        raise KdrunError(wrong_value(f"{where}.{key}", str(error).splitlines()[0])) from error
    for one in fields(node):
        value, allowed = getattr(typed, one.name), one.metadata.get("choices", ())
        if allowed and value is not None and value not in allowed:
            raise KdrunError(f"{where}.{one.name} is '{value}'. {choices(str(value), map(str, allowed))}")
    return typed


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    """seed, protocol, outputs and the like, typed."""
    return {one.name: _scalar(one.name, values[one.name]) for one in fields(Config) if one.name in values}


def _scalar(name: str, value: Any) -> Any:
    key = (name, object, repr(value))
    if key not in _TYPED:
        try:
            merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(_scalar_schema(name)), {name: value}))
        except OmegaConfBaseException as error:
            raise KdrunError(wrong_value(str(error.full_key or error.key), str(error).splitlines()[0])) from error
        _TYPED[key] = merged[name]  # type: ignore[index, call-overload]
    return copy.deepcopy(_TYPED[key])


@lru_cache
def _scalar_schema(name: str) -> type:
    """One key of Config alone: most jobs of a sweep bring a new value of a single key."""
    return make_dataclass("Scalar", [(name, get_type_hints(Config)[name], MISSING)])


def _check(config: Config) -> None:
    """Ranges and choices: what types cannot say."""
    for key, allowed in CHOICES.items():
        value = _get(config, key)
        if value not in allowed:
            meant = "cuda" if key == "engine.device" and str(value).startswith(("gpu", "cuda")) else str(value)
            raise KdrunError(f"{key} is '{value}'. {choices(meant, allowed)}")
    for key in ("seed", "teacher.seed", "dataset.holdout"):
        if _get(config, key) < 0:
            raise KdrunError(f"{key} is {_get(config, key)}; it must be 0 or more")
    for role in ("teacher", "student"):
        if getattr(config, role).checkpoint == "":
            raise KdrunError(f"{role}.checkpoint has no value; say {role}.checkpoint=FILE, or leave it out")
    if not config.outputs:
        raise KdrunError("outputs has no value; say outputs=FOLDER, or leave it out for outputs=outputs")
    weights = {
        f"method.{m}.weights.{term}": w for m, values in config.method.items() for term, w in values.weights.items()
    }
    for key, weight in {"loss.task": config.loss.task, **weights}.items():
        if weight is not None and not (math.isfinite(weight) and weight >= 0):
            raise KdrunError(f"{key} is {weight}; it must be a number of 0 or more (0 leaves the term out)")
    for where in ("recipe", "teacher.recipe"):
        check_recipe(where, _get(config, where))
    if config.engine.log_every < 1 or (config.engine.threads is not None and config.engine.threads < 1):
        key = "log_every" if config.engine.log_every < 1 else "threads"
        raise KdrunError(f"engine.{key} is {getattr(config.engine, key)}; it must be 1 or more")
    if config.engine.workers < 0:
        raise KdrunError(
            f"engine.workers is {config.engine.workers}; it must be 0 or more (0 reads in the main process)"
        )
    if config.protocol == "holdout" and not config.dataset.holdout:
        raise KdrunError(
            "protocol=holdout needs a holdout; say dataset.holdout=5000 (images taken from the training set)"
        )
    for role in ("teacher", "student"):
        node = _get(config, role)
        if node.checkpoint_key and not node.checkpoint:
            raise KdrunError(
                f"{role}.checkpoint_key={node.checkpoint_key} chooses weights of a file; say which: {role}.checkpoint=FILE"
            )
    _check_teacher(config)


def check_recipe(where: str, recipe: Recipe) -> None:
    """Positive sizes, shares within [0, 1], finite rates."""
    for key in ("optimizer", "schedule", "crop"):
        if getattr(recipe, key) not in CHOICES[f"recipe.{key}"]:
            raise KdrunError(
                f"{where}.{key} is '{getattr(recipe, key)}'. {choices(getattr(recipe, key), CHOICES[f'recipe.{key}'])}"
            )
    for key in ("epochs", "batch_size"):
        if getattr(recipe, key) < 1:
            raise KdrunError(f"{where}.{key} is {getattr(recipe, key)}; it must be 1 or more")
    if not (recipe.lr > 0 and math.isfinite(recipe.lr)):
        raise KdrunError(f"{where}.lr is {recipe.lr}; it must be above 0, as in {where}.lr=0.1")
    for key in ("weight_decay", "momentum", "gamma", "padding"):
        value = getattr(recipe, key) or 0
        if not (value >= 0 and math.isfinite(value)):
            raise KdrunError(f"{where}.{key} is {value}; it must be 0 or more")
    if recipe.nesterov and recipe.optimizer == "sgd" and recipe.momentum == 0:
        raise KdrunError(f"{where}.nesterov=true needs {where}.momentum above 0, as in momentum=0.9")
    for key, shares in (("milestones", recipe.milestones), ("warmup", [recipe.warmup])):
        wrong = [share for share in shares if not 0 <= share <= 1]
        if wrong:
            meant = f"; epoch {wrong[0]:g} of {recipe.epochs} is {wrong[0] / recipe.epochs:g}" * (
                1 < wrong[0] <= recipe.epochs
            )
            raise KdrunError(f"{where}.{key} has {wrong[0]:g}; it wants shares of the epochs, between 0 and 1{meant}")


def _check_teacher(config: Config) -> None:
    """Method none implies teacher none, or each teacher would retrain the same student."""
    if all(METHODS.entry(name).attributes.get("teacher", "outputs") == "none" for name in config.method):
        config.teacher = no_teacher(config.recipe)
        return
    kinds = {METHODS.entry(name).attributes.get("teacher", "outputs") for name in config.method}
    if "fresh" in kinds and kinds & {"outputs", "gradients"}:
        raise KdrunError(
            f"method={'+'.join(config.method)}: dml trains its peers from scratch and has no teacher for the others"
        )
    for name in config.method:
        wants = METHODS.entry(name).attributes.get("teacher", "outputs")
        if config.teacher.name == "none" and wants not in ("none", "fresh"):
            raise KdrunError(
                f"method '{name}' needs a teacher and teacher=none was asked for; say teacher=MODEL or method=none"
            )
        if wants == "fresh" and config.teacher.checkpoint:
            raise KdrunError(
                f"method '{name}' trains its peers from scratch; teacher.checkpoint={config.teacher.checkpoint} cannot be used"
            )


def _get(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = getattr(config, part)
    return config
