"""Models: published parameter counts, taps that exist, images of any size, and models of one's own."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from torch import nn

from kdrun.errors import KdrunError
from kdrun.registry import METHODS, MODELS, REQUIRED
from kdrun.taps import Tapped

BUILT_IN = [name for name in MODELS.entries() if name != "import"]


def build(name: str, classes: int = 10, **options) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.get(name)(classes, **options)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)]
)  # fmt: skip
def test_parameter_counts_of_he_et_al(name, millions):
    """Table 6 of the paper, with shortcut A and 10 classes, to the two digits that it prints."""
    assert parameters(build(name, shortcut="A")) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(
    ("name", "classes", "shortcut", "count"),
    [
        ("resnet20", 10, "A", 269_722),
        ("resnet20", 100, "B", 278_324),
        ("resnet56", 100, "B", 861_620),
        ("resnet110", 100, "B", 1_736_564),
        ("resnet8x4", 100, "B", 1_233_540),
        ("resnet32x4", 100, "B", 7_433_860),
    ],
)
def test_parameter_counts_of_the_released_code(name, classes, shortcut, count):
    """Exact counts: akamaster's resnet20, and those of RepDistiller and mdistiller."""
    assert parameters(build(name, classes, shortcut=shortcut)) == count


@pytest.mark.parametrize("size", [32, 27], ids="{}px".format)
@pytest.mark.parametrize("name", BUILT_IN)
def test_forward_and_backward(name, size):
    """Logits of the right shape and a gradient for every parameter, at 32 px and at an odd size."""
    model = build(name)
    logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", [32, 27], ids="{}px".format)
@pytest.mark.parametrize("name", BUILT_IN)
def test_declared_taps_fire(name, size):
    """Each declared tap exists and has the shape that its name says; a stage's map halves at the next, rounded up."""
    model = build(name)
    taps = Tapped(model, [*model.taps])(torch.randn(2, 3, size, size)).taps
    shapes = {name: tap.shape for name, tap in zip(model.taps, taps, strict=True)}
    half = (size + 1) // 2
    sides = {"stem": size, "stage1": size, "stage2": half, "stage3": (half + 1) // 2}
    for tap, side in sides.items():
        assert shapes[tap][2:] == (side, side)
        assert shapes.get(f"{tap}_pre", shapes[tap]) == shapes[tap]
    assert shapes["pooled"] == shapes["stage3"][:2]
    assert shapes["logits"] == (2, 10)


def test_a_tap_before_the_activation_is_before_it():
    """stage2_pre is what the last ReLU of stage 2 turns into stage2, and has negative values."""
    pre, post = Tapped(build("resnet14"), ["stage2_pre", "stage2"])(torch.randn(2, 3, 16, 16)).taps
    assert (pre < 0).any()
    assert torch.equal(pre.relu(), post)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_shortcuts(shortcut):
    """A pads and has no parameters, B projects; any other is an error with the choices."""
    model = build("resnet8", shortcut=shortcut)
    assert (parameters(model.layer2[0].shortcut) == 0) == (shortcut == "A")
    assert model(torch.randn(2, 3, 9, 9)).shape == (2, 10)
    with pytest.raises(KdrunError, match=r"no shortcut 'C' for a ResNet. Choices: A"):
        build("resnet8", shortcut="C")


# Models of one's own ------------------------------------------------------------------------------------------------------

OWN = """
from torch import nn

class Net(nn.Sequential):
    taps = {"flat": "0"}

def net(classes, width=4):
    return Net(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, classes))

def number(classes):
    return classes
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of a user's on the path; builds through `import`."""
    (tmp_path / "own_models.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(importlib.sys.modules, "own_models", raising=False)
    return lambda **options: MODELS.get("import")(7, **options)


def test_import_builds_a_model_with_arguments_and_taps(own):
    """The function gets classes and the arguments; taps of the config join those that the model declares."""
    model = own(path="own_models:net", arguments={"width": 6}, taps={"hidden": "1"})
    output = Tapped(model, ["flat", "hidden"])(torch.randn(2, 3, 4, 4))
    assert output.logits.shape == (2, 7)
    assert [tuple(tap.shape) for tap in output.taps] == [(2, 48), (2, 6)]
    assert type(model).taps == {"flat": "0"}


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("own_models", {}, "path 'own_models' is not module:function"),
        (":net", {}, "path ':net' is not module:function"),
        ("own_model:net", {}, "cannot import own_model of path=own_model:net: .*current folder"),
        ("own_models:nett", {}, "module own_models has no 'nett'. Did you mean net"),
        ("own_models:net", {"widht": 6}, "own_models:net could not be called with classes=7, {'widht': 6}"),
        ("own_models:number", {}, "own_models:number returned int, not an nn.Module"),
    ],
)
def test_import_says_what_is_wrong(own, path, arguments, message):
    """Each way to get it wrong is one sentence that names the path."""
    with pytest.raises(KdrunError, match=message):
        own(path=path, arguments=arguments)


# The registry -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "name"), [(registry, name) for registry in (MODELS, METHODS) for name in registry.entries()],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)  # fmt: skip
def test_the_index_says_what_the_import_gives(registry, name):
    """Name, summary, keyword-only arguments and defaults read from the source are those of the imported object."""
    entry, built = registry.entry(name), registry.get(name)
    assert built.__module__ == entry.module
    assert inspect.getdoc(built).splitlines()[0] == entry.summary
    signature = inspect.signature(built.build if inspect.isclass(built) else built)
    keyword_only = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert [p.name for p in keyword_only] == list(entry.arguments)
    for parameter in keyword_only:
        expected = REQUIRED if parameter.default is parameter.empty else parameter.default
        assert entry.arguments[parameter.name].default == expected
        assert entry.arguments[parameter.name].annotation == parameter.annotation
    for attribute, value in entry.attributes.items():
        assert getattr(built, attribute) == value


@pytest.mark.parametrize(("registry", "name", "near"), [(MODELS, "resnet8x5", "resnet8x4"), (METHODS, "rdk", "rkd")])
def test_an_unknown_name_is_an_error_with_a_near_match(registry, name, near):
    """A typo names the near match and the verb that lists all."""
    with pytest.raises(KdrunError, match=f"no {registry.kind} '{name}'. Did you mean {near}.*kdrun {registry.kind}s"):
        registry.get(name)


def test_a_built_in_name_cannot_be_taken():
    """A plug-in that registers a shipped name is refused; nothing is silently replaced."""

    def resnet20(classes):
        return None

    with pytest.raises(KdrunError, match="model 'resnet20' of test_models has the name of a built-in; rename it"):
        MODELS.register(resnet20)
