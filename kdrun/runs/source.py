"""Hashes of the source code behind a run: of its methods, and of models that are not kdrun's own. No module is imported for it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kdrun import PACKAGE
from kdrun.config.registry import METHODS, MODELS, TASKS
from kdrun.config.schema import Config
from kdrun.tasks import task_of

OURS = PACKAGE / "methods"
MACHINERY = (
    "base",
    "distillation",
    "taps",
)  # files of kdrun.methods that run every method and hold no maths of a method
TREE = "tree:"  # the prefix of hashes of syntax trees
SILENT = ("ctx", "kind", "type_comment")  # fields of a syntax tree that do not change what is computed


def code(config: Config) -> dict[str, Any]:
    """SHA-256 of the source of each method and of the models that are not kdrun's own, each with its imports."""
    return {
        "method": {name: method_sha256(name) for name in config.method},
        "student": model_sha256(config.student),
        "teacher": model_sha256(config.teacher),
        "task": task_sha256(task_of(config)),
    }


def task_sha256(task: Any) -> str | None:
    """Of what a plug-in's task means, with the local modules that it imports; None for kdrun's own."""
    module = type(task).__module__
    return None if _is_ours(module) else module_sha256(module)


def changed_code(config: Config, record: dict[str, Any]) -> list[str]:
    """Names of methods and models whose source has changed since a finished run. Older records have no hash of the teacher's source."""
    names = [name for name, then in record["code"]["method"].items() if is_other(method_sha256(name), then)]
    for role in ("student", "teacher"):
        node = getattr(config, role, None)
        if node is not None and role in record["code"] and is_changed(node, record["code"][role]):
            names.append(f"model {getattr(node, 'path', None) or node.name}")
    then = record["code"].get("task")
    if then is not None and then != task_sha256(TASKS.get(record["task"])):
        names.append(f"task {record['task']}")
    return names


def is_other(now: str, then: str) -> bool:
    """Whether the source of a method computes something else now; False if the hash of the record cannot be compared."""
    return then.startswith(TREE) and now != then


def is_other_code(now: dict[str, Any], then: dict[str, Any]) -> bool:
    """Whether a run that is resumed would be trained with other source code than it started with."""
    methods = any(is_other(now["method"].get(name, ""), value) for name, value in then["method"].items())
    return methods or any(now.get(role) != value for role, value in then.items() if role != "method")


def is_changed(node: Any, then: str | None) -> bool:
    """Whether the source of a model differs from that of a record. Older records hold the hash of the bytes of its file."""
    return then not in (model_sha256(node), _file_sha256(builder(node)))


def builder(node: Any) -> str | None:
    """The module of a model's builder; None for kdrun's own models and for no model."""
    if node.name in ("none", "import"):
        return str(node.path).partition(":")[0] if node.name == "import" else None
    module = MODELS.entry(node.name).module
    return None if _is_ours(module) else module


def model_sha256(node: Any) -> str | None:
    """Hash of the source of a model's builder and of the local modules that it imports; None for kdrun's own, or if it is missing."""
    module = builder(node)
    return module_sha256(module) if module else None


@cache
def module_sha256(module: str) -> str | None:
    """Hash of the syntax trees of a module, of the packages around it and of the local modules that it imports; None if it is missing.

    Comments, docstrings and layout do not change the hash. A module is local if it is not installed and not part of Python or kdrun.
    The hash is computed once in a process: an imported module stays as it is when its file changes.
    """
    root = locate(module)
    if root is None:
        return None
    trees = {place.name: _meaning(place.file) for place in [*_around(module), *_local(root)] if place.file is not None}
    return _sha256({name: tree for name, tree in trees.items() if tree != NOTHING})


@cache
def method_sha256(name: str) -> str:
    """ "tree:" and the SHA-256 of the source of a method: its file, the methods whose maths it uses, the local modules that it imports.

    Comments, docstrings, layout, imports and names of files do not change the hash: a method stays the same if its file is moved or its
    docstring is rewritten. Records from before schema 2 hold the hash of the text, without "tree:"; it cannot be compared.
    """
    entry = METHODS.entry(name)
    root = Place(entry.module, entry.file, (str(entry.file.parent),) if entry.file.name == "__init__.py" else ())
    places = _local(root) if not _is_ours(entry.module) else [root]
    ours: dict[Path, None] = {}
    for place in places:
        _shipped(place, ours)
    files = {place.file: None for place in places if place.file is not None} | ours
    meanings = {_meaning(file, imports=False) for file in files} - {NOTHING}
    return TREE + _sha256(sorted(meanings))


@dataclass(frozen=True)
class Place:
    """Where a module lies: its file (None for a package without one), and the folders of its submodules."""

    name: str
    file: Path | None
    folders: tuple[str, ...]

    @property
    def package(self) -> str:
        """The package that a relative import starts from."""
        return self.name if self.folders else self.name.rpartition(".")[0]


def locate(module: str) -> Place | None:
    """Where Python finds a module; None if it finds none. Imports neither the module nor the packages around it."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    place: Place | None = Place(top, file, tuple(spec.submodule_search_locations or ()))
    for part in rest:
        place = _below(place, part) if place is not None else None
    return place


def _below(package: Place, part: str) -> Place | None:
    """A module of a package. As in Python, a package comes before a file, and a folder without __init__.py comes last."""
    name = f"{package.name}.{part}"
    for folder in package.folders:
        path = Path(folder, part)
        if (path / "__init__.py").is_file():
            return Place(name, path / "__init__.py", (str(path),))
        if path.with_name(f"{part}.py").is_file():
            return Place(name, path.with_name(f"{part}.py"), ())
    spaces = tuple(str(Path(folder, part)) for folder in package.folders if Path(folder, part).is_dir())
    return Place(name, None, spaces) if spaces else None


def _around(module: str) -> Iterator[Place]:
    """The packages that contain a module, which Python runs before it, with their local imports."""
    parts = module.split(".")
    for end in range(1, len(parts)):
        place = locate(".".join(parts[:end]))
        if place is not None and _is_local(place.name):
            yield from _local(place)


def _local(root: Place) -> list[Place]:
    """A module and the local modules that it imports, directly or through others."""
    places, waiting = {root.name: root}, [root]
    while waiting:
        place = waiting.pop()
        for name in _imports(place):
            if name not in places and _is_local(name):
                other = locate(name)
                if other is not None:
                    places[name] = other
                    waiting.append(other)
    return list(places.values())


def _shipped(place: Place, seen: dict[Path, None]) -> None:
    """Add to `seen` the files of kdrun's methods that a module imports, directly or through others."""
    for name in _imports(place):
        package, _, stem = name.rpartition(".")
        file = OURS / f"{stem}.py"
        if package == "kdrun.methods" and stem not in MACHINERY and file not in seen and file.is_file():
            seen[file] = None
            _shipped(Place(name, file, ()), seen)


def _imports(place: Place) -> list[str]:
    """Every name that a source may import, with the packages around it. Some of the names are not modules."""
    tree = _tree(place.file)
    names: dict[str, None] = {}
    for node in ast.walk(tree) if tree is not None else ():
        for name in _named(node, place.package):
            parts = name.split(".")
            names |= dict.fromkeys(".".join(parts[: end + 1]) for end in range(len(parts)))
    return list(names)


def _named(node: ast.AST, package: str) -> Iterator[str]:
    """The modules that one node imports: `import a.b`, `from .a import b` (which may be a module too), `import_module("a.b")`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        around = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*around, *([node.module] if node.module else [])])
        if module:
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        name = node.args[0].value
        if called in ("import_module", "__import__") and isinstance(name, str):
            yield f"{package}{name}" if name.startswith(".") else name


def _is_ours(module: str) -> bool:
    return f"{module}.".startswith("kdrun.")


def _is_local(module: str) -> bool:
    """Whether a module is the user's own: not part of kdrun, of Python or of an installed package."""
    top = locate(module.partition(".")[0])
    if top is None or _is_ours(module):
        return False
    paths = top.folders or ((str(top.file),) if top.file is not None else ())
    return bool(paths) and not any(_is_installed(os.path.dirname(os.path.abspath(path))) for path in paths)


@cache
def _is_installed(folder: str) -> bool:
    """Whether packages are installed in this folder: a folder of Python, of pip, or of `pip install --target`."""
    here, python = Path(folder), Path(os.__file__).parent
    if {"site-packages", "dist-packages"} & {*here.parts} or python in (here, *here.parents):
        return True
    return any(here.glob("*.dist-info"))


def _tree(file: Path | None) -> ast.Module | None:
    """The syntax tree of a file; None if it is not Python. Such a file fails when it is imported."""
    try:
        return ast.parse(file.read_bytes()) if file is not None else None
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _meaning(file: Path, imports: bool = True) -> str:
    """SHA-256 of the syntax tree of a file, with or without its import statements; of its bytes, if it is not Python."""
    tree = _tree(file)
    try:
        return _sha256(_plain(tree, imports)) if tree is not None else _file_bytes(file)
    except RecursionError:
        return _file_bytes(file)


def _plain(node: Any, imports: bool = True) -> Any:
    """A syntax tree as lists, the same in every version of Python: without positions, docstrings, `pass`, and empty fields."""
    if isinstance(node, list):
        return [_plain(item, imports) for item in node if not _is_idle(item, imports)]
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if name not in SILENT and value not in (None, []))
    return [type(node).__name__, *([name, _plain(value, imports)] for name, value in fields)]


def _is_idle(node: Any, imports: bool) -> bool:
    """Whether a statement computes nothing: a docstring or another bare constant, `pass`, or an import if `imports` is False."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return not imports
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _file_sha256(module: str | None) -> str | None:
    """Hash of the bytes of a module's file, as in older records."""
    place = locate(module) if module else None
    return _file_bytes(place.file) if place is not None and place.file is not None and place.file.is_file() else None


def _file_bytes(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


NOTHING = _sha256(_plain(ast.parse("")))  # the hash of an empty __init__.py
