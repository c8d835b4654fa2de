"""The nodes of the config that the registries give: a choice of `teacher` and `student` for each model, one of `dataset` for each dataset
of a plug-in, a schema for each method."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdrun.config.arguments import REQUIRED, Argument
from kdrun.config.registry import DATASETS, METHODS, MODELS, TASKS, Entry
from kdrun.config.schema import Config, Recipe, conf_folder
from kdrun.config.words import wrong_value
from kdrun.errors import KdrunError, choices

_NODES: dict[str, tuple[Entry, type]] = {}  # the schemas of models and methods, each with what it was made from
PROVIDER = "kdrun"  # of the schema in Hydra's ConfigStore
ROLES = ("teacher", "student")  # the groups whose choices are models
_RECIPES: dict[str, type] = {}
OPEN = ("dataset", "recipe")  # what a task adds to these is known once the dataset is: checks.py refuses the rest


def check_user_folder(folder: str) -> None:
    """Refuse a file of --config-dir that has the name of a built-in: Hydra would take the built-in without a word."""
    if not Path(folder).is_dir():
        raise KdrunError(
            f"--config-dir {folder} is no folder; give the one that holds your method/NAME.yaml and the like"
        )
    for file in sorted(Path(folder).glob("*/*.yaml")):
        group, name = file.parent.name, file.stem
        if name in registry_choices(group) or (conf_folder() / group / file.name).is_file():
            raise KdrunError(f"{file} has the name of the built-in {group}={name}, which would win; rename the file")


def register_nodes() -> None:
    """Put the schema into Hydra's ConfigStore. The nodes of models come from hydra_plugins/kdrun_models.py.

    Those of plug-ins are made here once, so that an error in one is reported whichever model is chosen.
    """
    from hydra.core.config_store import ConfigStore  # 0.1 s that `kdrun methods` does not need

    schema = OmegaConf.structured(Config)
    for key in OPEN:
        OmegaConf.set_struct(schema[key], False)
    ConfigStore.instance().store(name="schema", node=schema, provider=PROVIDER)
    # Hydra deep-copies its sources, and the store with them, at every composition and for every group that it lists. The store hands out
    # copies of its nodes anyway.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    for name in sorted(MODELS.plugins):
        for role in ROLES:
            model_node(MODELS.entry(name), role)
    for name in sorted(DATASETS.plugins):
        dataset_schema(TASKS.of(name), name)


def registry_choices(group: str) -> list[str]:
    """The choices that the registries give: models for `teacher` and `student`, those of plug-ins for `dataset`."""
    if group == "dataset":
        return sorted(DATASETS.plugins)
    return [*MODELS.entries(), *["none"] * (group == "teacher")] if group in ROLES else []


def registry_choice(group: str, name: str) -> DictConfig:
    """The node of one choice of a group."""
    if group == "dataset":  # open, as the files of conf/dataset are: checks.py says which keys there are
        plain = OmegaConf.to_container(OmegaConf.structured(dataset_schema(TASKS.of(name), name)))
        assert isinstance(plain, dict)
        return OmegaConf.create(plain)
    node: DictConfig = OmegaConf.structured(_no_teacher() if name == "none" else model_node(MODELS.entry(name), group))
    if group == "teacher":
        OmegaConf.set_struct(node.recipe, False)
    return node


def model_node(entry: Entry, role: str) -> type:
    """The typed node of a model: its name, a checkpoint, a label, and the builder's own keyword arguments."""
    return _schema(f"{role}_{entry.name}", _parts(entry.name, role), entry)


def _parts(name: str, role: str) -> list[Any]:
    parts: list[Any] = [("name", str, name), ("label", Optional[str], None), ("checkpoint", Optional[str], None)]
    parts += [("checkpoint_key", Optional[str], None), ("output", Optional[str], None)]
    if role == "teacher":
        parts += [("seed", int, 0), ("weights", str, "last"), ("recipe", Any, field(default_factory=dict))]
        parts += [("allow_weak", bool, False)]  # go on with a teacher near chance or far below its record
    return parts


@lru_cache
def _no_teacher() -> type:
    return make_dataclass("teacher_none", _parts("none", "teacher"))


def no_teacher(recipe: Recipe) -> Any:
    """The node of teacher=none; its recipe is never used; it is a copy of the student's."""
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
        ("optimizer", dict[str, float], field(default_factory=dict)),
    ]
    return _schema(f"method_{name}", parts, METHODS.entry(name))


def dataset_schema(task: Any, name: str) -> type:
    """The schema of a dataset: what every dataset of its task has, and the options of the function that gives it, where there is one."""
    if name in task.datasets:
        return task.Data  # type: ignore[no-any-return]
    entry, defaults, kinds = DATASETS.entry(name), DATASETS.defaults.get(name, {}), get_type_hints(task.Data)
    unknown = [key for key in defaults if key not in kinds or key in ("name", "root")]
    if unknown:
        known = [key for key in kinds if key not in ("name", "root")]
        raise KdrunError(
            f"{entry.file.name}: @register of {entry.symbol} has no '{unknown[0]}'. {choices(unknown[0], known)}"
        )
    parts = [(one.name, kinds[one.name], _with_default(one, {"name": name, **defaults})) for one in fields(task.Data)]
    return _schema(f"dataset_{name}", parts, entry)


def _with_default(one: Any, defaults: dict[str, Any]) -> Any:
    """The field of a dataclass, with another default where there is one."""
    value = defaults.get(one.name, one.default)
    if isinstance(value, (list, tuple)):
        return field(default_factory=lambda: list(value), metadata=one.metadata)
    return field(default=value, metadata=one.metadata)


def forget() -> None:
    """Make the schemas anew when they are next needed.

    Ray sends configs back with the classes of their nodes. Where Python knows such a class already, unpickling writes new fields into it,
    which OmegaConf then refuses.
    """
    _NODES.clear()
    _RECIPES.clear()
    _no_teacher.cache_clear()


def recipe_schema(task: Any) -> type:
    """The recipe of a task: what every recipe has, and the task's augmentation."""
    if task.name not in _RECIPES:
        extra = [
            (one.name, one.type, field(default=one.default, metadata=one.metadata)) for one in fields(task.Augment)
        ]
        _RECIPES[task.name] = make_dataclass(f"Recipe_{task.name}", extra, bases=(Recipe,))
    return _RECIPES[task.name]
