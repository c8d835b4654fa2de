"""Registries of models and methods.

Names, summaries and keyword arguments are read from the source with `ast`, not by importing it, so that help, completion,
typos and finished runs are answered without torch; the import happens when something is built.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from kdrun.errors import KdrunError, choices

T = TypeVar("T", bound=Callable[..., Any])
REQUIRED = object()  # the default of an argument that has none


@dataclass(frozen=True)
class Argument:
    """A keyword-only argument: its annotation as written and its default (REQUIRED where there is none)."""

    annotation: str
    default: Any = REQUIRED


@dataclass(frozen=True)
class Entry:
    """What the source says of a registered function or class."""

    name: str
    module: str
    symbol: str
    file: Path
    summary: str
    arguments: dict[str, Argument] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)  # class-level constants: teacher = "outputs"
    inherits: str = ""  # the class that `build` comes from, where it has none of its own


class Registry:
    """Named builders of one kind. A function is registered under its name, a class under its name in lower case."""

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self.plugins: dict[str, str] = {}  # name -> module, for what lies outside the package

    def register(self, item: T | None = None, *, name: str | None = None) -> Any:
        """Decorator: `@register` or `@register(name="import")`. A name that is taken is an error."""

        def add(item: T) -> T:
            key = name or item.__name__.lower()
            if not item.__module__.startswith(self.package + "."):
                if key in _entries(self.package):
                    raise KdrunError(f"{self.kind} '{key}' of {item.__module__} has the name of a built-in; rename it")
                self.plugins[key] = item.__module__
            return item

        return add(item) if item is not None else add

    def entries(self) -> dict[str, Entry]:
        """Every known entry by name, built-in and plug-in."""
        found = dict(_entries(self.package))
        for module in sorted(set(self.plugins.values())):
            found.update(_read(Path(sys.modules[module].__file__ or ""), module))
        parents = {entry.symbol: entry for entry in found.values()}
        for name, entry in found.items():
            if entry.inherits in parents:
                parent = parents[entry.inherits]
                found[name] = replace(
                    entry, arguments=parent.arguments, attributes={**parent.attributes, **entry.attributes}
                )
        return found

    def entry(self, name: str) -> Entry:
        """One entry; an unknown name is an error with near matches."""
        known = self.entries()
        if name not in known:
            raise KdrunError(
                f"no {self.kind} '{name}'. {choices(name, known)} (kdrun {self.kind}s shows them;"
                " yours need @register, and plugins=[MODULE])"
            )
        return known[name]

    def get(self, name: str) -> Any:
        """The function or class itself; imports its module."""
        entry = self.entry(name)
        return getattr(importlib.import_module(entry.module), entry.symbol)


@lru_cache
def import_entry_points() -> None:
    """Import what installed packages add: the entry points of the group kdrun.plugins. Once in every process."""
    for point in entry_points(group="kdrun.plugins"):
        point.load()


def import_plugin(module: str) -> None:
    """Import a user's module; one that cannot be found is an error that says where it was looked for."""
    if not module:
        return
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            raise KdrunError(f"{module} of plugins=[{module}] imports what is not installed: {error}") from error
        path = f"; a module is written {module.removesuffix('.py').replace('/', '.')}" if "/" in module else ""
        raise KdrunError(
            f"cannot import {module} of plugins=[{module}]: {error}. It is looked for from the current folder on{path}"
        ) from error


@lru_cache
def _entries(package: str) -> dict[str, Entry]:
    folder = Path(__file__).parent / package.rpartition(".")[2]
    found: dict[str, Entry] = {}
    for file in sorted(folder.glob("*.py")):
        found.update(_read(file, f"{package}.{file.stem}"))
    return found


def _read(file: Path, module: str) -> dict[str, Entry]:
    """The registered functions and classes of one source file."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        for decorator in node.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else None
            target = call.func if call else decorator
            if (target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")) != "register":
                continue
            named = {k.arg: ast.literal_eval(k.value) for k in call.keywords} if call else {}
            name = named.get("name") or node.name.lower()
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            builder = node if isinstance(node, ast.FunctionDef) else _function(node, "build")
            arguments = dict(_arguments(builder)) if builder else {}
            attributes = dict(_constants(node)) if isinstance(node, ast.ClassDef) else {}
            bases = node.bases if isinstance(node, ast.ClassDef) and builder is None else []
            inherits = next((base.id for base in bases if isinstance(base, ast.Name)), "")
            found[name] = Entry(name, module, node.name, file, summary, arguments, attributes, inherits)
    return found


def _function(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == name), None)


def _arguments(node: ast.FunctionDef) -> Iterator[tuple[str, Argument]]:
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        annotation = ast.unparse(argument.annotation) if argument.annotation else "Any"
        yield argument.arg, Argument(annotation, REQUIRED if default is None else ast.literal_eval(default))


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for item in node.body:
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            try:
                yield item.targets[0].id, ast.literal_eval(item.value)
            except ValueError:
                continue  # not a constant


MODELS = Registry("model", "kdrun.models")
METHODS = Registry("method", "kdrun.methods")
