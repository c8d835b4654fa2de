"""Registries of models, methods, datasets and tasks.

Names, summaries and keyword arguments of kdrun's own entries are read from their source with `ast`. So help, completion, messages
for typos and finished runs need no torch; a module is imported when something of it is built. A user's function or class is imported
before, and is inspected. Both ways follow the order in which classes inherit.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from kdrun import PACKAGE
from kdrun.config.arguments import Argument, of_builder, read
from kdrun.config.schema import conf_folder
from kdrun.errors import KdrunError, choices

T = TypeVar("T", bound=Callable[..., Any])
ATTRIBUTES = (
    "family",
    "paper",
    "teacher",
    "distils",
    "needs",
    "sequences",
)  # constants of a method's class, which are known without building the method


@dataclass(frozen=True)
class Entry:
    """What is known about a registered function or class without building it."""

    name: str
    module: str
    symbol: str
    file: Path
    summary: str
    arguments: dict[str, Argument] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)  # class-level constants: teacher = "outputs"
    task: str = "any"  # of a model: what it learns; of a dataset: what is learned from it


class Registry:
    """Builders of one kind by name. A function is registered under its name, a class under its name in lower case.

    `given`: the arguments that a builder gets by position. All other arguments are its options, given by keyword.
    """

    def __init__(self, kind: str, package: str, given: tuple[str, ...]):
        self.kind, self.package, self.given = kind, package, given
        self.plugins: dict[str, Any] = {}  # what lies outside the package, by name
        self.tasks: dict[str, str] = {}  # of a plug-in's models and datasets
        self.defaults: dict[str, dict[str, Any]] = {}  # of a plug-in's datasets: the keys that every dataset has

    def register(self, item: T | None = None, *, name: str | None = None, task: str = "image") -> Any:
        """Decorator: `@register` or `@register(name="import")`. A name that is taken is an error. `task`: as in Entry."""

        def add(item: T) -> T:
            key = name or item.__name__.lower()
            shipped = _entries(self.package).get(key)
            if shipped is not None and (shipped.module, shipped.symbol) == (item.__module__, item.__qualname__):
                return item
            where = f"{self.kind} '{key}' of {item.__module__}"
            if shipped is not None or key == "none" or (self.kind == "dataset" and _is_file_of_ours(key)):
                raise KdrunError(f"{where} has the name of a built-in; rename it")
            known = self.plugins.get(key)
            if known is not None and _origin(known) != _origin(item):
                raise KdrunError(
                    f"{where} has the name of one of {known.__module__}; rename it, as in @register(name=...)"
                )
            if self.kind == "method" and not (isinstance(item, type) and hasattr(item, "build")):
                raise KdrunError(f"{where} is not a Method; it must be a class, as in class {item.__name__}(Method)")
            self.plugins[key], self.tasks[key] = item, task
            return item

        return add(item) if item is not None else add

    def names(self) -> list[str]:
        """Built-in and plug-in."""
        return [*_entries(self.package), *sorted(self.plugins)]

    def entries(self) -> dict[str, Entry]:
        """Every entry by name, built-in and plug-in. KdrunError for a plug-in whose options a config cannot hold."""
        return {
            **_entries(self.package),
            **{name: self._inspect(name, self.plugins[name]) for name in sorted(self.plugins)},
        }

    def entry(self, name: str) -> Entry:
        """One entry; an unknown name is an error with near matches."""
        known = _entries(self.package)
        if name in known:
            return known[name]
        if name in self.plugins:
            return self._inspect(name, self.plugins[name])
        raise KdrunError(
            f"no {self.kind} '{name}'. {choices(name, [*known, *self.plugins])} (kdrun {self.kind}s shows them;"
            " yours need @register, and plugins=[MODULE])"
        )

    def get(self, name: str) -> Any:
        """The function or class; imports its module."""
        if name in self.plugins:
            return self.plugins[name]
        entry = self.entry(name)
        return getattr(importlib.import_module(entry.module), entry.symbol)

    def _inspect(self, name: str, item: Any) -> Entry:
        """The entry of a user's function or class, from its signature, its docstring and its constants."""
        builders = [item]
        if isinstance(item, type):
            own = "build" if self.kind == "method" else "__init__"
            builders = [vars(one)[own] for one in item.__mro__ if own in vars(one)]
        file = getattr(sys.modules.get(item.__module__), "__file__", None) or inspect.getfile(
            inspect.unwrap(builders[0])
        )
        given = ("self", *self.given) if isinstance(item, type) else self.given
        attributes = (
            {key: getattr(item, key) for key in ATTRIBUTES if hasattr(item, key)} if isinstance(item, type) else {}
        )
        summary = inspect.cleandoc(item.__doc__ or "").partition("\n")[0]
        arguments = of_builder(builders[0], given, builders[1:])
        task = self.tasks.get(name, "image") if self.kind != "method" else "any"
        return Entry(name, item.__module__, item.__qualname__, Path(file), summary, arguments, attributes, task)


def _is_file_of_ours(dataset: str) -> bool:
    return (conf_folder() / "dataset" / f"{dataset}.yaml").is_file()


def _origin(item: Any) -> tuple[str, str]:
    """File and name of a function or class. They are the same if its module is imported again, also under another name."""
    return getattr(sys.modules.get(item.__module__), "__file__", None) or item.__module__, item.__qualname__


@lru_cache
def import_entry_points() -> None:
    """Import the plug-ins of installed packages: the entry points of the group kdrun.plugins. Happens once in a process."""
    for point in entry_points(group="kdrun.plugins"):
        point.load()


def import_plugin(module: str) -> None:
    """Import a user's module. If it does not exist, the error says where Python looked for it."""
    if not module:
        return
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            raise KdrunError(
                f"{module} of plugins=[{module}] imports a module that is not installed: {error}"
            ) from error
        path = f"; write the module as {module.removesuffix('.py').replace('/', '.')}" if "/" in module else ""
        raise KdrunError(
            f"cannot import {module} of plugins=[{module}]: {error}. It must be in the current folder ({Path.cwd()}) or installed{path}"
        ) from error


def import_plugins(modules: Iterable[str]) -> None:
    """Import the plug-ins of installed packages, and the user's modules."""
    import_entry_points()
    for module in modules:
        import_plugin(module)


def import_plugins_of(arguments: Iterable[str]) -> None:
    """The same for a command: the modules of its argument plugins=[module, ...]."""
    given = [argument.removeprefix("plugins=") for argument in arguments if argument.startswith("plugins=")]
    import_plugins(module.strip(" '\"") for modules in given for module in modules.strip("'\"[]").split(","))


@lru_cache
def _entries(package: str) -> dict[str, Entry]:
    """kdrun's own entries of one kind, from the sources of a package. A `*` in the name of the package stands for each task."""
    files = sorted(PACKAGE.glob("/".join([*package.split(".")[1:], "*.py"])))
    trees = {file: ast.parse(file.read_text(encoding="utf-8")).body for file in files}
    nodes = [
        (file, node)
        for file, body in trees.items()
        for node in body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]
    classes = {node.name: node for _, node in nodes if isinstance(node, ast.ClassDef)}
    entries = {}
    for file, node in nodes:
        for decorator in node.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else None
            target = call.func if call else decorator
            if (target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")) != "register":
                continue
            named = {k.arg: ast.literal_eval(k.value) for k in call.keywords} if call else {}
            name = named.get("name") or node.name.lower()
            module = ".".join(("kdrun", *file.relative_to(PACKAGE).with_suffix("").parts))
            task = named.get("task") or (file.parts[-3] if "*" in package else "any")
            entries[name] = replace(_shipped(name, module, file, node, classes), task=task)
    return entries


def _shipped(
    name: str, module: str, file: Path, node: ast.FunctionDef | ast.ClassDef, classes: dict[str, ast.ClassDef]
) -> Entry:
    summary = (ast.get_docstring(node) or "").partition("\n")[0]
    if isinstance(node, ast.FunctionDef):
        return Entry(name, module, node.name, file, summary, read(node))
    attributes: dict[str, Any] = {}
    builders: list[ast.FunctionDef] = []
    for one in _lineage(node, classes):
        builders += [item for item in one.body if isinstance(item, ast.FunctionDef) and item.name == "build"]
        attributes = {**_constants(one), **attributes}
    return Entry(name, module, node.name, file, summary, read(builders[0]) if builders else {}, attributes)


def _lineage(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """A class and the classes of this package that it inherits from, the nearest first."""
    lineage = [node]
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            lineage += [one for one in _lineage(classes[base.id], classes) if one not in lineage]
    return lineage


def _constants(node: ast.ClassDef) -> dict[str, Any]:
    """The constants of a class that are listed in ATTRIBUTES: `teacher = "fresh"`, `needs: tuple[str, ...] = ("label",)`."""
    constants = {}
    for item in node.body:
        target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        if isinstance(item, (ast.Assign, ast.AnnAssign)) and isinstance(target, ast.Name) and target.id in ATTRIBUTES:
            constants[target.id] = ast.literal_eval(item.value) if item.value is not None else None
    return constants


class Tasks:
    """Tasks by name. kdrun's own are folders of kdrun/tasks; others come from plug-ins."""

    SHIPPED = ("image", "text", "detection")

    def __init__(self) -> None:
        self.plugins: dict[str, Any] = {}

    def register(self, task: Any) -> Any:
        """Add a user's task (an object of a subclass of kdrun.tasks.Task). A name that is in use is an error."""
        known = self.plugins.get(task.name)
        if task.name in (*self.SHIPPED, "any") or (known is not None and _origin(type(known)) != _origin(type(task))):
            raise KdrunError(
                f"task '{task.name}' of {type(task).__module__} has a name that is already in use; rename it"
            )
        self.plugins[task.name] = task
        return task

    def names(self) -> list[str]:
        return [*self.SHIPPED, *self.plugins]

    def all(self) -> list[Any]:
        return [self.get(name) for name in self.names()]

    def get(self, name: str) -> Any:
        """The task of that name. kdrun's own tasks are imported when they are needed. An unknown name is an error with near matches."""
        if name in self.plugins:
            return self.plugins[name]
        if name not in self.SHIPPED:
            raise KdrunError(f"no task '{name}'. {choices(name, self.names())} (yours needs plugins=[MODULE])")
        return importlib.import_module(f"kdrun.tasks.{name}.task").TASK

    def of(self, dataset: str) -> Any:
        """The task that a dataset belongs to."""
        for task in self.all():
            if dataset in task.datasets:
                return task
        if dataset in DATASETS.names():
            return self.get(DATASETS.entry(dataset).task)
        known = [*(name for task in self.all() for name in task.datasets), *DATASETS.names()]
        raise KdrunError(f"dataset.name={dataset} is unknown. {choices(dataset, known)}")


def teacher_of(method: str) -> str:
    """What a method needs of the teacher (Method.teacher), as far as it is known: an unknown method is refused elsewhere."""
    known = METHODS.entry(method) if method in METHODS.names() else None
    return str(known.attributes.get("teacher", "outputs")) if known else "outputs"


TASKS = Tasks()
MODELS = Registry("model", "kdrun.tasks.*.models", ("classes",))
METHODS = Registry("method", "kdrun.methods", ("pair",))
DATASETS = Registry("dataset", "kdrun.tasks.*.data", ("root",))  # those that a function gives; others are Task.datasets
