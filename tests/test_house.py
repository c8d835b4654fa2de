"""The house: imports go one way between the folders, and no module imports itself through others."""

from __future__ import annotations

import ast

import pytest

import kdrun

# Every folder and file at the top of the package, from the ground up. A module imports from its own row or from rows above it here,
# also inside functions. What stands in one row knows nothing of its neighbours, but for the files of the first.
ROWS = (
    ("errors", "process", "screen", "seeds"),
    ("config",),
    ("methods", "models", "datasets"),
    ("tasks",),
    ("runs",),
    ("engine", "report"),
    ("train",),
    ("sweep",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
FILES = {
    ".".join(("kdrun", *file.relative_to(kdrun.PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in kdrun.PACKAGE.rglob("*.py")
}


def imports(name: str) -> set[str]:
    """The modules of kdrun that a module imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").partition(".")[0] == "kdrun":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in FILES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "kdrun"}
    return found - {"kdrun"}


GRAPH = {name: imports(name) for name in FILES}


def test_every_folder_has_its_row() -> None:
    tops = {name.split(".")[1] for name in FILES if name != "kdrun"}
    assert tops == set(LEVEL)


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_go_one_way(name: str) -> None:
    if name == "kdrun":
        return  # it holds kdrun.load, which imports what it needs when it is called
    own = name.split(".")[1]
    for other in GRAPH[name]:
        top = other.split(".")[1]
        allowed = top == own or LEVEL[top] < LEVEL[own] or LEVEL[top] == LEVEL[own] == 0
        assert allowed, f"{name} imports {other}, which stands above it or beside it"


def test_no_module_imports_itself_through_others() -> None:
    def below(name: str, seen: set[str]) -> set[str]:
        for other in GRAPH.get(name, ()):
            if other not in seen:
                seen.add(other)
                below(other, seen)
        return seen

    assert [name for name in FILES if name in below(name, set())] == []


def test_relative_imports_are_not_used() -> None:
    """They would escape the rows above."""
    for file in FILES.values():
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
