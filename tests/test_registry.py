"""What a plug-in's methods and models say of themselves; what cannot be used is one line with file, name and argument."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Optional

import pytest

from kdrun.config.arguments import REQUIRED
from kdrun.config.nodes import method_schema, model_node
from kdrun.config.registry import METHODS, MODELS, import_plugin
from kdrun.errors import KdrunError

HEAD = """
from __future__ import annotations
import typing
from typing import *
import torch
from torch import nn
from kdrun.methods import Method, register
from kdrun.methods.dml import DML
from kdrun.methods.kd import KD
from kdrun.methods.none import Alone as Nothing
from kdrun.models import register as model
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Imports a module of a user's; what it registers is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    known = [(registry, dict(registry.plugins)) for registry in (METHODS, MODELS)]
    names = []

    def write(text: str, name: str = "mine", head: str = HEAD) -> None:
        (tmp_path / f"{name}.py").write_text(head + textwrap.dedent(text), encoding="utf-8")
        names.append(name)
        import_plugin(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)
    for registry, plugins in known:
        registry.plugins.clear()
        registry.plugins.update(plugins)


def kinds(arguments: dict) -> dict[str, Any]:
    return {name: argument.kind for name, argument in arguments.items()}


# Inheritance -------------------------------------------------------------------------------------------------------------


def test_a_subclass_keeps_what_it_does_not_replace(plugin):
    """Its parents' attributes, with a build of its own or without; a parent's hyper-parameters over any number of generations."""
    plugin("""
        @register
        class Peers(DML):
            def build(self, pair, *, networks: int, warm: bool):
                super().build(pair, networks=networks)

        @register
        class Alone(Nothing):
            def build(self, pair, *, share: float):
                pass

        class Between(KD):
            paper = "Between, 2026"

        @register
        class Grandchild(Between):
            pass

        class Mixin:
            teacher = "gradients"

        @register
        class Mixed(Mixin, KD):
            def build(self, pair, *, more: int, **options):
                super().build(pair, **options)
        """)
    peers, alone, grandchild, mixed = (METHODS.entry(name) for name in ("peers", "alone", "grandchild", "mixed"))
    assert (peers.attributes["teacher"], kinds(peers.arguments)) == ("fresh", {"networks": int, "warm": bool})
    assert (alone.attributes["teacher"], kinds(alone.arguments)) == ("none", {"share": float})
    assert kinds(grandchild.arguments) == {"temperature": float, "standardize": bool}
    assert (grandchild.attributes["paper"], grandchild.attributes["family"]) == ("Between, 2026", "logits")
    assert kinds(mixed.arguments) == {"temperature": float, "standardize": bool, "more": int}
    assert (mixed.attributes["teacher"], mixed.attributes["family"]) == ("gradients", "logits")


def test_names(plugin):
    """Under the class's name in lower case, or name=; the summary is its own and not its parent's."""
    plugin(
        '@register(name="my_kd")\nclass Mine(KD):\n    """One line.\n\n    More."""\n@register\nclass Other(KD):\n    pass'
    )
    assert (METHODS.entry("my_kd").symbol, METHODS.entry("my_kd").summary) == ("Mine", "One line.")
    assert METHODS.entry("other").summary == ""
    assert METHODS.get("other").__name__ == "Other"


def test_two_plugins_of_one_name(plugin, tmp_path):
    """An error that names both; the same file under two names, or imported again, is no second one."""
    text = "@register\nclass Mine(KD):\n    pass"
    (tmp_path / "my_lab").mkdir()
    plugin(text)

    sys.modules.pop("mine")
    import_plugin("mine")
    with pytest.raises(KdrunError, match=r"method 'mine' of other has the name of one of mine; rename it.*name="):
        plugin(text, "other")
    (tmp_path / "my_lab" / "again.py").symlink_to(tmp_path / "mine.py")
    assert METHODS.entry("mine").module == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@register\ndef mine(pair): pass", "method 'mine' of mine is not a Method; it must be a class"),
        ("@register\nclass Mine: pass", "method 'mine' of mine is not a Method"),
        ("@register\nclass KD(Method): pass", "method 'kd' of mine has the name of a built-in; rename it"),
        ("@model\ndef resnet8(classes): pass", "model 'resnet8' of mine has the name of a built-in"),
        ("@model(name='none')\ndef mine(classes): pass", "model 'none' of mine has the name of a built-in"),
    ],
)
def test_what_cannot_be_registered(text, message, plugin):
    with pytest.raises(KdrunError, match=message):
        plugin(text)


# Options -----------------------------------------------------------------------------------------------------------------

KINDS = {
    "int": int, "float": float, "bool": bool, "str": str, "Any": Any, "typing.Any": Any, "": Any, "'int'": int,
    "int | None": Optional[int], "Optional[float]": Optional[float], "typing.Union[str, None]": Optional[str],
    "None | int": Optional[int], "int | str": int | str, "list": list[Any], "list[int]": list[int], "List[float]": list[float],
    "list[list[int]]": list[list[int]], "list[int | None]": list[Optional[int]], "list[str] | None": Optional[list[str]],
    "dict": dict[str, Any], "dict[str, float]": dict[str, float], "Dict[str, list[int]]": dict[str, list[int]],
    "Mapping[str, Any]": dict[str, Any], "dict[int, str]": dict[int, str], "tuple[int, ...]": list[int],
    "tuple[int, int]": list[int], "tuple[int, str]": list[Any], "Sequence[int]": list[int], "str | list[str]": Any,
    "Widths": list[int], "Literal['a', 'b']": str, "Literal[1, 2]": int, "Literal['a', None]": Optional[str],
    "Optional[Literal['a']]": Optional[str], "Literal[-1, 'auto']": Any,
}  # fmt: skip


@pytest.mark.parametrize("future", [True, False], ids=["as text", "as objects"])
@pytest.mark.parametrize("written", KINDS)
def test_types_of_options(written, future, plugin):
    """As a config can hold them, whether annotations are kept as text or not, for methods and for models; kdrun evaluates none."""
    annotation = f": {written}" if written else ""
    head = HEAD if future else HEAD.replace("from __future__ import annotations\n", "")
    plugin(
        f"""
        Widths = list[int]

        @register
        class Mine(Method):
            def build(self, pair, *, option{annotation}):
                pass

        @model
        def mine(classes, *, option{annotation}):
            pass
        """,
        head=head,
    )
    for registry in (METHODS, MODELS):
        assert registry.entry("mine").arguments["option"].kind == KINDS[written]
        assert registry.entry("mine").arguments["option"].default is REQUIRED
    assert method_schema("mine")
    assert model_node(MODELS.entry("mine"), "teacher")


REFUSED = {  # an argument -> words of the one line, beside file and name
    "temperature=4.0": ("'temperature'", "by position", "no config and no record", "*, temperature: float", "the yaml"),
    "temperature": ("'temperature'", "by position", "*, temperature: float"),
    "temperature: float = 4.0, *, power: int": ("'temperature'", "by position"),
    "*args": ("'*args'", "no config and no record", "Name each"),
    "*, power: int, **options": ("'**options'", "no config and no record", "Name each"),
    "*, act=nn.ReLU": ("ReLU", "'act'", "cannot hold", "Use a name"),
    "*, act: nn.Module = None": ("'act: nn.Module'", "cannot hold", "Literal[...]"),
    "*, act: Unknown = 1": ("'act: Unknown'", "cannot hold"),
    "*, act: Callable[[int], int]": ("'act: Callable", "cannot hold"),
    "*, act: torch.dtype": ("'act: torch.dtype'", "cannot hold"),
    "*, act: Literal[b'a']": ("'act: Literal[b'a']'", "cannot hold"),
    "*, act: list[Literal['a', 'b']]": ("'act: list[Literal['a', 'b']]'", "cannot hold"),
    "*, act: (lambda: 1)()": ("'act: (lambda: 1)()'", "cannot hold"),
    "*, act={1.5: torch.zeros(1)}": ("'act'", "cannot hold"),
    "*, width: int = 'wide'": ("width is 'wide'; it must be a whole number",),
    "*, width: Literal[1, 2] = 3": ("width", "3", "Choices: 1, 2"),
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_options_that_no_config_can_hold(arguments, plugin):
    """One line that names file, class or function, and argument, and says what is accepted."""
    text = f"@register\nclass Mine(Method):\n    def build(self, pair, {arguments}):\n        pass\n"
    plugin(text + f"@model\ndef net(classes, {arguments}):\n    pass\n")
    for name, look in (
        ("Mine", lambda: method_schema("mine")),
        ("net", lambda: model_node(MODELS.entry("net"), "student")),
    ):
        with pytest.raises(KdrunError) as caught:
            look()
        said = str(caught.value)
        assert not [word for word in ("mine.py", name, *REFUSED[arguments]) if word not in said], said
        assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("@register\nclass Mine(Method):\n    def build(self): pass", "Mine.build must take self, pair"),
        ("@model\ndef mine(): pass", "mine must take classes"),
        ("@model\nclass Mine(nn.Module):\n    def __init__(self, classes, width=3): pass", "Mine.__init__ takes 'width' by position"),
        ("@register\nclass Mine(Method):\n    def build(self, pair, *, taps: list): pass", "'taps', which is a key of every method"),
        ("@model\ndef mine(classes, *, label: str): pass", "an option 'label', which is a key of every student"),
        ("@register\nclass Mine(KD):\n    def build(self, pair, hard=1.0, **options): pass", "Mine.build takes 'hard' by position"),
    ],
)  # fmt: skip
def test_builders_that_cannot_be_called(text, words, plugin):
    plugin(text)
    with pytest.raises(KdrunError) as caught:
        method_schema("mine") if "mine" in METHODS.plugins else model_node(MODELS.entry("mine"), "student")
    assert words in str(caught.value)


def test_what_a_builder_may_be(plugin):
    """A class with options, a wrapped function, a default of each kind; null makes its type optional, a tuple is a list."""
    plugin("""
        import functools

        @model
        class Net(nn.Module):
            def __init__(self, classes, *, width: int = 8):
                super().__init__()

        def wrap(function):
            @functools.wraps(function)
            def inner(*args, **kwargs):
                return function(*args, **kwargs)
            return inner

        @model
        @wrap
        def wrapped(classes, *, width: int = None, sizes: tuple[int, ...] = (1, 2), deep: dict = {"a": [1, {"b": None}]}):
            pass
        """)
    assert kinds(MODELS.entry("net").arguments) == {"width": int}
    found = MODELS.entry("wrapped").arguments
    assert kinds(found) == {"width": Optional[int], "sizes": list[int], "deep": dict[str, Any]}
    node = model_node(MODELS.entry("wrapped"), "student")()
    assert (node.width, node.sizes, node.deep) == (None, [1, 2], {"a": [1, {"b": None}]})


# Through the command --------------------------------------------------------------------------------------------------------


def kdrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "kdrun", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


TINY = [
    "dataset=digits", "recipe=quick", "recipe.epochs=1", "teacher=resnet8", "student=resnet8", "engine.threads=1",
    "--config-dir", "conf", "plugins=[mine]",
]  # fmt: skip


def method_of(folder: Path, text: str, yaml: str) -> None:
    """A plug-in `mine` in a folder, with its yaml."""
    (folder / "mine.py").write_text(HEAD + textwrap.dedent(text))
    (folder / "conf" / "method").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "method" / "mine.yaml").write_text(f"mine: {yaml}\n")


def test_a_hyper_parameter_that_is_in_no_config_is_refused(tmp_path):
    """In one line, before anything is trained."""
    method_of(
        tmp_path,
        "@register\nclass Mine(KD):\n    def build(self, pair, temperature=4.0):\n        pass",
        "{weights: {soft: 1.0}}",
    )
    done = kdrun(tmp_path, *TINY, "method=mine")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "mine.py:" in line
    assert "Mine.build takes 'temperature' by position" in line
    assert not (tmp_path / "outputs").exists()


def test_a_choice_is_checked_and_a_subclass_has_no_needless_teacher(tmp_path):
    """Literal gives near matches; a subclass of a method without a teacher plans none."""
    method_of(
        tmp_path,
        "@register\nclass Mine(Nothing):\n    def build(self, pair, *, mode: Literal['mean', 'sum']):\n        pass",
        "{mode: mean, weights: {}}",
    )
    done = kdrun(tmp_path, "plan", *TINY, "method=mine", "method.mine.mode=mena")
    assert "method.mine.mode is 'mena'. Did you mean mean? Choices: mean, sum" in done.stdout + done.stderr
    done = kdrun(tmp_path, "plan", *TINY, "method=mine")
    assert "student   mine resnet8 seed 0" in done.stdout, done.stdout + done.stderr
    assert "teacher" not in done.stdout
