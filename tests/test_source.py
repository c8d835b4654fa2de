"""What counts as the source of a run: what its methods, and the modules of its imported models, mean."""

from __future__ import annotations

import hashlib
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_identity import CHECKSUM, composed

from kdrun.config.registry import METHODS, MODELS, import_plugin
from kdrun.runs import source
from kdrun.runs.identity import identity


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes modules of a user's into an empty folder on the path; hashes and imports start anew each time."""
    monkeypatch.syspath_prepend(tmp_path)
    before, plugins = set(sys.modules), [dict(registry.plugins) for registry in (METHODS, MODELS)]

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")
        forget()
        return tmp_path

    def forget() -> None:
        for cached in (source.module_sha256, source.method_sha256):
            cached.cache_clear()
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]

    yield write
    forget()
    for registry, known in zip((METHODS, MODELS), plugins, strict=True):
        registry.plugins.clear()
        registry.plugins.update(known)


def sha(module: str) -> str | None:
    source.module_sha256.cache_clear()
    return source.module_sha256(module)


# Imported models ---------------------------------------------------------------------------------------------------------

NET = """
from torch import nn

def net(classes, width=16):
    return nn.Linear(width, classes)
"""


def test_what_means_the_same_is_the_same_source(project):
    """Comments, docstrings, layout, `pass` and quotes do not count; a number does."""
    project(w=NET)
    before = sha("w")
    project(
        w='"""A model."""\n# mine\n'
        + NET.replace("width=16", "width = 16").replace(":\n", ':\n    """Net."""\n    pass\n')
    )
    assert sha("w") == before
    project(w=NET.replace("16", "17"))
    assert sha("w") != before
    assert not [name for name in sys.modules if name == "w"], "nothing is imported to know it"


@pytest.mark.parametrize(
    "imports",
    [
        "from my_lab.parts import block",
        "import my_lab.parts",
        "import my_lab.parts as p, os",
        "from my_lab import parts",
        "from . import parts",
        "from .parts import *",
        "from ..my_lab import parts",
        "def later():\n    from my_lab.parts import block",
        "try:\n    import my_lab.parts\nexcept ImportError:\n    pass",
        "import importlib\nparts = importlib.import_module('my_lab.parts')",
        "from importlib import import_module\nparts = import_module('.parts', __package__)",
        "import my_lab.between",
    ],
)
@pytest.mark.parametrize("package", [True, False], ids=["with __init__", "without"])
def test_local_modules_that_are_imported_count(imports, package, project):
    """However they are imported, from packages with or without an __init__.py, and through other modules; never by running them."""
    root = project(
        **{
            "my_lab.nets": imports + "\n" + NET,
            "my_lab.between": "from my_lab import parts",
            "my_lab.parts": "raise SystemExit('this must not run')\nblock = 1",
            "my_lab.other": "unused = 1",
        },
        **({"my_lab.__init__": "NAME = 1"} if package else {}),
    )
    before = sha("my_lab.nets")
    project(**{"my_lab.other": "unused = 2"})
    assert sha("my_lab.nets") == before
    project(**{"my_lab.parts": "block = 2"})
    assert sha("my_lab.nets") != before
    if package:
        before = sha("my_lab.nets")
        project(**{"my_lab.__init__": "NAME = 2"})
        assert sha("my_lab.nets") != before
    assert (root / "my_lab" / "nets.py").is_file()


def test_a_builder_that_a_package_hands_on_counts(project):
    """path=my_lab:net, where net comes from a module below."""
    project(**{"my_lab.__init__": "from my_lab.nets import net", "my_lab.nets": NET})
    before = sha("my_lab")
    project(**{"my_lab.nets": NET.replace("16", "17")})
    assert sha("my_lab") != before


def test_installed_packages_and_python_do_not_count(project, monkeypatch, tmp_path_factory):
    """Nor what pip installed into a folder of its own; a package of the user's in a folder on the path does."""
    there = tmp_path_factory.mktemp("target")
    (there / "bought").mkdir()
    (there / "bought" / "__init__.py").write_text("x = 1")
    monkeypatch.syspath_prepend(there)
    project(w="import bought, torch, json, kdrun, kdrun.methods.kd\n" + NET)
    before = sha("w")
    (there / "bought" / "__init__.py").write_text("x = 2")
    assert sha("w") != before
    (there / "bought-1.0.dist-info").mkdir()
    source._is_installed.cache_clear()
    installed = sha("w")
    (there / "bought" / "__init__.py").write_text("x = 3")
    assert sha("w") == installed
    assert len(source._local(source.locate("w"))) == 1


def test_sources_that_cannot_be_read(project):
    """A module that is not there has no hash; one that is no Python counts by its bytes. Both fail when they are built."""
    assert sha("nowhere") is None
    assert sha("no.where") is None
    project(w="def net(:", loop="import loop, w\nx = " + "+".join("1" * 3000))
    broken = sha("w")
    project(w="def net(:)")
    assert None not in (broken, sha("w"))
    assert sha("w") != broken
    assert sha("loop") is not None


def imported(role: str, path: str, *more: str) -> list[str]:
    return [f"{role}=import", f"{role}.path={path}", *more]


def test_an_imported_model_is_its_source(project):
    """Edit tea.py and it is another teacher, whether it is trained, given or a peer; and another student. Others stay."""

    def ids(*more: str) -> dict[str, dict]:
        configs = {
            "student": composed(*imported("student", "w:net"), "method=none"),
            "taught": composed(*imported("teacher", "tea:net")),
            "peers": composed(*imported("teacher", "tea:net"), "method=dml"),
            "given": composed(*imported("teacher", "tea:net"), f"teacher.checkpoint={root / 'w.py'}"),
        }
        return {name: identity(config, CHECKSUM) for name, config in configs.items()}

    root = project(w=NET, tea=NET)
    before = ids()
    assert before["student"]["student"]["source"] == sha("w")
    project(tea="# a comment\n" + NET)
    assert ids() == before
    project(tea=NET.replace("16", "32"))
    after = ids()
    assert [name for name in before if before[name] != after[name]] == ["taught", "peers", "given"]
    project(w=NET.replace("16", "32"))
    assert ids()["student"] != before["student"]


def test_the_record_has_the_teachers_source(project):
    """code.teacher stands beside code.student; kdrun's own models have neither."""
    project(w=NET, tea=NET.replace("16", "17"))
    config = composed(*imported("student", "w:net"), *imported("teacher", "tea:net"))
    assert source.code(config) == {
        "method": source.code(config)["method"],
        "student": sha("w"),
        "teacher": sha("tea"),
        "task": None,
    }
    config = composed("method=kd")
    assert (source.code(config)["student"], source.code(config)["teacher"]) == (None, None)
    assert source.code(composed("method=none"))["teacher"] is None


def test_two_projects_with_a_module_of_one_name_share_nothing(project, tmp_path_factory, monkeypatch):
    project(w=NET)
    first = identity(composed(*imported("student", "w:net")), CHECKSUM)
    other = tmp_path_factory.mktemp("other")
    (other / "w.py").write_text(NET.replace("16", "8"))
    monkeypatch.syspath_prepend(other)
    source.module_sha256.cache_clear()
    assert identity(composed(*imported("student", "w:net")), CHECKSUM) != first
    (other / "w.py").write_text(NET)
    source.module_sha256.cache_clear()
    assert identity(composed(*imported("student", "w:net")), CHECKSUM) == first


def test_a_model_of_a_plugin_is_its_source_too(project):
    """One that is registered lies outside kdrun as an imported one does."""
    text = "from kdrun.models import register\n@register\ndef my_net(classes, *, width: int = 4):\n    return None\n"
    project(nets=text)
    import_plugin("nets")
    config = composed("student=my_net", "method=none")
    first = identity(config, CHECKSUM)
    assert first["student"] == {"name": "my_net", "width": 4, "source": sha("nets")}
    project(nets=text + "x = 1\n")
    assert identity(config, CHECKSUM) != first
    assert source.code(config)["student"] == sha("nets")


def test_older_records_of_imported_models_can_be_compared(project):
    """They hold the hash of the file's bytes, and nothing of the teacher."""
    root = project(w=NET)
    node = SimpleNamespace(name="import", path="w:net")
    config = SimpleNamespace(method=[], student=node, teacher=SimpleNamespace(name="none"))
    old = {"code": {"method": {}, "student": hashlib.sha256((root / "w.py").read_bytes()).hexdigest()}}
    assert source.changed_code(config, old) == []
    new = {"code": {"method": {}, "student": sha("w"), "teacher": None}}
    assert source.changed_code(config, new) == []
    project(w=NET.replace("16", "17"))
    assert source.changed_code(config, old) == source.changed_code(config, new) == ["model w:net"]


# Methods -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS.entries())
def test_every_method_has_a_hash_of_its_meaning(name):
    assert re.fullmatch("tree:[0-9a-f]{64}", source.method_sha256(name))


def test_a_hash_without_tree_cannot_be_compared():
    """Records of schema 1 hold the hash of a text: a file that was moved since would look changed."""
    assert not source.is_other(source.method_sha256("kd"), "ab12")
    assert source.is_other(source.method_sha256("kd"), "tree:ab12")
    assert not source.is_other(source.method_sha256("kd"), source.method_sha256("kd"))


MINE = """
from kdrun.methods import Method, register
{imports}

@register
class Mine(Method):
    def loss(self, student, teacher, batch):
        return {{}}
"""
KD = "from kdrun.methods.kd import soft_targets"


def mine(project, imports: str, module: str = "mine") -> str:
    """The hash of a method of the user's in a file of its own."""
    project(**{module: MINE.format(imports=imports)})
    METHODS.plugins.pop("mine", None)
    import_plugin(module)
    return source.method_sha256("mine")


def test_words_layout_imports_and_the_name_of_the_file_do_not_count(project):
    before = mine(project, "")
    assert mine(project, "import json, torch\nfrom kdrun.errors import KdrunError") == before
    assert mine(project, '"""What it does."""\n# and why') == before
    assert mine(project, "", "renamed") == before
    assert mine(project, "POWER = 2") != before


@pytest.fixture
def shipped(tmp_path_factory, monkeypatch) -> Path:
    """A copy of kdrun's methods that may be edited."""
    folder = tmp_path_factory.mktemp("kdrun") / "methods"
    folder.mkdir()
    for file in source.OURS.glob("*.py"):
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(source, "OURS", folder)
    return folder


@pytest.mark.parametrize(
    "imports",
    [
        KD, "import kdrun.methods.kd", "import kdrun.methods.kd as theirs", "from kdrun.methods import kd",
        "def later():\n    import kdrun.methods.kd", "from kdrun.methods.dkd import DKD",
        "import helper", "from kdrun.methods import *\nfrom kdrun.methods.kd import *",
    ],
)  # fmt: skip
@pytest.mark.parametrize("module", ["mine", "kd"])
def test_the_maths_that_a_method_uses_counts(imports, module, project, shipped):
    """In every form of import, through a module of the user's, and in a file that is called as kdrun's own."""
    project(helper="from kdrun.methods import kd")
    (shipped / "dkd.py").write_text("from kdrun.methods.kd import soft_targets\nDKD = 1")
    before = mine(project, imports, module)
    (shipped / "kd.py").write_text("soft_targets = 2")
    assert mine(project, imports, module) != before


def test_local_modules_of_a_method_count(project):
    """What it imports from the user's project, by what that means; the package around it does not, and an empty one never."""
    project(**{"my_lab.__init__": "", "my_lab.maths": "POWER = 2"})
    assert mine(project, KD, "my_lab.mine") == mine(project, KD)
    before = mine(project, "from my_lab import maths")
    project(**{"my_lab.maths": "# how steep\nPOWER = 2"})
    assert mine(project, "from my_lab import maths") == before
    project(**{"my_lab.maths": "POWER = 3"})
    assert mine(project, "from my_lab import maths") != before
