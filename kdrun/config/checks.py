"""From a composed config to a typed one: every error names the key, the value and the choices."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import fields, make_dataclass
from functools import lru_cache
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdrun.config.defaults import of_task
from kdrun.config.nodes import _no_teacher, dataset_schema, method_schema, model_node, no_teacher, recipe_schema
from kdrun.config.registry import MODELS, TASKS, teacher_of
from kdrun.config.schema import Config, Engine, Loss, Recipe, Sweep, conf_folder, method_names
from kdrun.config.weights import share_of, without_auto
from kdrun.config.words import wrong_value
from kdrun.errors import KdrunError, choices

_TYPED: dict[tuple[str, type, str], Any] = {}  # parts of configs that were checked, by their place, schema and values
CHOICES = {
    "protocol": ("last", "best", "holdout"),
    "phase": ("all", "teacher"),
    "budget": ("full", "short", "smoke"),
    "sweep.on_error": ("continue", "stop"),
    "engine.device": ("auto", "cpu", "cuda"),
    "engine.precision": ("auto", "fp32", "bf16"),
    "teacher.weights": ("last", "best"),
}
# Of the recipe, of the teacher's, and of stages.
RECIPE_CHOICES = {"optimizer": ("sgd", "adamw"), "schedule": ("step", "cosine", "linear", "constant")}


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
    task = _task(plain)
    schema = {
        "dataset": dataset_schema(task, str(plain["dataset"]["name"])),
        "recipe": recipe_schema(task), "engine": Engine, "loss": Loss, "sweep": Sweep,
        "student": model_node(MODELS.entry(plain["student"]["name"]), "student"),
        "teacher": _no_teacher() if plain["teacher"]["name"] == "none"
        else model_node(MODELS.entry(plain["teacher"]["name"]), "teacher"),
    }  # fmt: skip
    unknown = set(plain) - {f.name for f in fields(Config)} - {"experiment", "hydra"}
    if unknown:
        name = sorted(unknown)[0]
        raise KdrunError(f"no key '{name}' in the config. {choices(name, [f.name for f in fields(Config)])}")
    plain["recipe"] = _own_keys(task, "recipe", plain.get("recipe") or {})
    typed = {key: _typed(key, plain.get(key) or {}, node) for key, node in schema.items()}
    theirs = typed["recipe"]
    if typed["teacher"].name != "none":
        theirs = _typed("teacher.recipe", _own_keys(task, "teacher.recipe", typed["teacher"].recipe), schema["recipe"])
    typed["teacher"].recipe = theirs
    typed["method"] = _methods(plain.get("method"), task.name)
    config = Config(**typed, **_scalars({str(key): value for key, value in plain.items() if key not in typed}))
    _expand_home(config)
    task.complete(config)
    _check(config)
    return config


def _task(plain: dict[Any, Any]) -> Any:
    """The task that the dataset belongs to; the models must be of the same one."""
    name = (plain.get("dataset") or {}).get("name")
    if not name:
        known = [file.stem for file in (conf_folder() / "dataset").glob("*.yaml")]
        raise KdrunError(f"dataset has no value; say dataset=NAME. {choices('', known)}")
    task = TASKS.of(str(name))
    taught = any(teacher_of(name) != "none" for name in plain.get("method") or {})
    for role in ("teacher", "student") if taught else ("student",):
        model = str(plain[role]["name"])
        other = "any" if model == "none" else MODELS.entry(model).task
        if other not in (task.name, "any"):
            fitting = [name for name, entry in MODELS.entries().items() if entry.task in (task.name, "any")]
            raise KdrunError(
                f"{role}={model} is a model of the task {other}, and the dataset {name} is of the task {task.name}. "
                f"{choices(model, [*fitting, *['none'] * (role == 'teacher')])}"
            )
    return task


def _own_keys(task: Any, where: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the augmentation of other tasks that its file brings; one of these that the user has set is an error."""
    own = {one.name for one in fields(recipe_schema(task))}
    foreign = {one.name: other.name for other in TASKS.all() for one in fields(other.Augment) if one.name not in own}
    if not foreign.keys() & recipe.keys():
        return recipe
    file = conf_folder() / "recipe" / f"{recipe.get('name')}.yaml"
    shipped = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    for key in foreign.keys() & recipe.keys():
        if not shipped or recipe[key] != shipped.get(key):  # type: ignore[union-attr]
            raise KdrunError(
                f"{where}.{key} is of the task {foreign[key]}, and this dataset is of the task {task.name}; leave it out"
            )
    return {key: value for key, value in recipe.items() if key not in foreign}


def _expand_home(config: Config) -> None:
    """`~` in paths that come from a file; the command line's are expanded before."""
    config.outputs = os.path.expanduser(config.outputs)
    for node, key in ((config.dataset, "root"), (config.teacher, "checkpoint"), (config.student, "checkpoint")):
        if getattr(node, key):
            setattr(node, key, os.path.expanduser(getattr(node, key)))


def _methods(given: Any, task: str) -> dict[str, Any]:
    """Each method's settings for a run of `task`, typed; sorted by name, since the order of `method=[a,b]` does not count."""
    if not isinstance(given, dict) or not given:
        raise KdrunError(
            f"method has no value; say method=NAME, or method=none for the student alone. {choices('', method_names())}"
        )
    methods = {str(name): of_task(str(name), values or {}, task) for name, values in given.items()}
    if "none" in methods and len(methods) > 1:
        raise KdrunError(
            f"method={'+'.join(methods)}: none is the student alone and combines with nothing; leave it out"
        )
    typed = {}
    for name in sorted(methods):
        values, autos = without_auto(name, methods[name])
        typed[name] = _typed(f"method.{name}", values, method_schema(name))
        typed[name].weights |= autos
        typed[name].taps = [] if typed[name].taps is None else typed[name].taps
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
        raise KdrunError(
            wrong_value(f"{where}.{key}", str(error).splitlines()[0], str(values.get(key, "VALUE")))
        ) from error
    for one in fields(node):
        value, allowed = getattr(typed, one.name), one.metadata.get("choices", ())
        if allowed and value is not None and value not in allowed:
            raise KdrunError(f"{where}.{one.name} is '{value}'. {choices(str(value), map(str, allowed))}")
        if "least" in one.metadata and value is not None and not value >= one.metadata["least"]:
            raise KdrunError(f"{where}.{one.name} is {value}; it must be {one.metadata['least']} or more")
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
        f"method.{m}.weights.{term}": w
        for m, values in config.method.items()
        for term, w in values.weights.items()
        if share_of(w) is None
    }
    for key, weight in {"loss.task": config.loss.task, **weights}.items():
        if weight is not None and not (math.isfinite(weight) and weight >= 0):
            raise KdrunError(f"{key} is {weight}; it must be a number of 0 or more (0 leaves the term out)")
    for name, values in config.method.items():
        for key, value in values.optimizer.items():
            if key not in ("lr", "weight_decay"):
                raise KdrunError(f"no key '{key}' in method.{name}.optimizer. {choices(key, ('lr', 'weight_decay'))}")
            if not (math.isfinite(value) and value >= 0 and (value > 0 or key != "lr")):
                least = "above 0" if key == "lr" else "0 or more"
                raise KdrunError(f"method.{name}.optimizer.{key} is {value}; it must be {least}")
    for where in ("recipe", "teacher.recipe"):
        check_recipe(where, _get(config, where))
    if config.engine.log_every < 1 or (config.engine.threads is not None and config.engine.threads < 1):
        key = "log_every" if config.engine.log_every < 1 else "threads"
        raise KdrunError(f"engine.{key} is {getattr(config.engine, key)}; it must be 1 or more")
    if config.engine.workers < 0:
        raise KdrunError(
            f"engine.workers is {config.engine.workers}; it must be 0 or more (0 reads in the main process)"
        )
    if config.protocol == "holdout" and not TASKS.of(config.dataset.name).has_holdout(config.dataset, config.outputs):
        raise KdrunError(
            "protocol=holdout needs a holdout; say dataset.holdout=N (N samples are taken out of the training set)"
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
    for key, allowed in RECIPE_CHOICES.items():
        value = getattr(recipe, key)
        if value not in allowed:
            raise KdrunError(f"{where}.{key} is '{value}'. {choices(value, allowed)}")
    for key in ("epochs", "batch_size"):
        if getattr(recipe, key) < 1:
            raise KdrunError(f"{where}.{key} is {getattr(recipe, key)}; it must be 1 or more")
    if not (recipe.lr > 0 and math.isfinite(recipe.lr)):
        raise KdrunError(f"{where}.lr is {recipe.lr}; it must be above 0, as in {where}.lr=0.1")
    for key in ("weight_decay", "momentum", "gamma"):
        value = getattr(recipe, key)
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
    if all(teacher_of(name) == "none" for name in config.method):
        config.teacher = no_teacher(config.recipe)
        return
    kinds = {teacher_of(name) for name in config.method}
    if "fresh" in kinds and kinds & {"outputs", "gradients"}:
        raise KdrunError(
            f"method={'+'.join(config.method)}: such a method trains its peers from scratch and has no teacher for the others"
        )
    for name in config.method:
        wants = teacher_of(name)
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
