"""Models: published parameter counts, taps that exist, images of any size, what they cost, and models of one's own."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from kdrun.config.registry import METHODS, MODELS
from kdrun.errors import KdrunError
from kdrun.methods.taps import Tapped, dry_run
from kdrun.tasks.cost import multiply_adds, parameters

SCRIPT = Path(__file__).parents[1] / "scripts" / "docs_models.py"
BUILT_IN = [name for name, entry in MODELS.entries().items() if name != "import" and entry.task == "image"]


def build(name: str, classes: int = 10, **options) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.get(name)(classes, **options)


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


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("wrn_16_2", 703_284),
        ("wrn_40_1", 569_780),
        ("wrn_40_2", 2_255_156),
        ("resnet18", 11_220_132),
        ("resnet50", 23_705_252),
        ("mobilenetv2", 812_836),
        ("shufflenetv1", 949_258),
        ("shufflenetv2", 1_355_528),
        ("densenet_100_12", 800_032),
    ],
)
def test_parameter_counts_with_100_classes(name, count):
    """Exact counts of released code: RepDistiller's layouts, weiaicunzai's resnet18 and resnet50, osmr's DenseNet-BC-100."""
    assert parameters(build(name, 100)) == count


@pytest.mark.parametrize(("name", "count"), [("wrn_28_10", 36_479_194), ("densenet_100_12", 769_162)])
def test_parameter_counts_with_10_classes(name, count):
    """Exact counts of osmr's CIFAR-10 models; no values needed."""
    with torch.device("meta"):
        assert parameters(MODELS.get(name)(10)) == count


@pytest.mark.parametrize(
    ("name", "millions"),
    [("vgg8", 3.97), ("vgg13", 9.46), ("wrn_16_4", 2.77), ("wrn_40_4", 8.97), ("wrn_28_10", 36.54), ("resnet34", 21.33)],
)  # fmt: skip
def test_parameter_counts_as_published(name, millions):
    """Millions with 100 classes, to the two digits that are printed."""
    with torch.device("meta"):
        assert round(parameters(MODELS.get(name)(100)) / 1e6, 2) == millions


@pytest.mark.parametrize("size", [32, 27, 8], ids="{}px".format)
@pytest.mark.parametrize("name", BUILT_IN)
def test_forward_and_backward(name, size):
    """Logits of the right shape and a gradient for every parameter, at 32 px, at an odd size and at that of digits."""
    model = build(name)
    logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# How often each map's side has been halved on the way from the image
RESIDUAL = {"stem": 0, "stage1": 0, "stage2": 1, "stage3": 2, "last": 2}
SHUFFLE = {"stem": 0, "stage1": 1, "stage2": 2, "stage3": 3, "last": 3}
HALVINGS = {
    "resnet_cifar": RESIDUAL,
    "wrn": RESIDUAL,
    "densenet": RESIDUAL,
    "resnet": {**RESIDUAL, "stage4": 3, "last": 3},
    "vgg": {"stem": 0, "stage1": 1, "stage2": 2, "stage3": 3, "stage4": 3, "last": 3},
    "mobilenetv2": {"stem": 1, "stage1": 1, "stage2": 2, "stage3": 3, "stage4": 4, "last": 4},
    "shufflenetv1": SHUFFLE,
    "shufflenetv2": SHUFFLE,
    "small": RESIDUAL,
}
BEFORE_THE_NORM = {"wrn", "densenet"}  # a stage ends in a sum or a concatenation; norm and activation follow
LINEAR = {"mobilenetv2"}  # a stage ends without activation


def family(name: str) -> str:
    return MODELS.entry(name).module.rpartition(".")[2]


def tapped(model: nn.Module, size: int) -> dict[str, torch.Tensor]:
    names = list(model.taps)
    return dict(zip(names, dry_run(Tapped(model, names), torch.randn(2, 3, size, size)).taps, strict=True))


@pytest.mark.parametrize("size", [32, 27], ids="{}px".format)
@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "mlp"])
def test_declared_taps_fire(name, size):
    """Each declared tap exists and has the size that its family says; `pre` is the map before its last activation."""
    taps = tapped(build(name), size)
    sides = HALVINGS[family(name)]
    maps = [tap for tap in taps if not tap.endswith("_pre") and tap not in ("pooled", "logits")]
    assert set(maps) == set(sides)
    for tap in maps:
        assert taps[tap].shape[2:] == (-(-size // 2 ** sides[tap]),) * 2
        if tap == "stem":
            continue
        pre = taps[f"{tap}_pre"]
        assert pre.shape == taps[tap].shape
        if tap != "last" and family(name) in LINEAR:
            assert torch.equal(pre, taps[tap])
        elif tap == "last" or family(name) not in BEFORE_THE_NORM:
            assert torch.equal(pre.relu(), taps[tap])
    assert taps["logits"].shape == (2, 10)
    torch.testing.assert_close(taps["last"].mean((2, 3)), taps["pooled"])


@pytest.mark.parametrize(("name", "norms"), [
    ("wrn_16_1", ("layer2.0.bn1", "layer3.0.bn1", "bn")), ("densenet_100_12", ("transition1.bn", "transition2.bn", "bn")),
])  # fmt: skip
def test_pre_activation_networks_tap_the_sum_and_the_norm_behind_it(name, norms):
    """stageN_pre is the batch norm of stageN: what the code of the CRD tables hands to methods that want maps before activation."""
    model = build(name).eval()
    taps = tapped(model, 9)
    for stage, norm in enumerate(norms, start=1):
        with torch.no_grad():
            assert torch.equal(model.get_submodule(norm)(taps[f"stage{stage}"]), taps[f"stage{stage}_pre"])


def test_taps_of_the_mlp():
    """It has no maps: two hidden vectors, the second of which is the embedding."""
    taps = tapped(build("mlp", width=12, grid=4), 9)
    assert {tap: tuple(t.shape) for tap, t in taps.items()} == {
        "hidden1": (2, 12), "hidden2": (2, 12), "pooled": (2, 12), "logits": (2, 10)
    }  # fmt: skip
    assert torch.equal(taps["hidden2"], taps["pooled"])
    assert (taps["hidden1"] >= 0).all()


def small_stem(theirs: nn.Module, name: str) -> nn.Module:
    """torchvision's network with the stem of ours."""
    if name.startswith("resnet"):
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    elif name == "shufflenetv2":
        theirs.conv1[0], theirs.maxpool = nn.Conv2d(3, 24, 1, bias=False), nn.Identity()
    else:
        theirs.features.conv0 = nn.Conv2d(3, 24, 3, 1, 1, bias=False)
        theirs.features.norm0 = theirs.features.relu0 = theirs.features.pool0 = nn.Identity()
    return theirs


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet18", lambda: torchvision.models.resnet18(num_classes=10)),
        ("resnet50", lambda: torchvision.models.resnet50(num_classes=10)),
        ("shufflenetv2", lambda: torchvision.models.shufflenet_v2_x1_0(num_classes=10)),
        ("densenet_100_12", lambda: torchvision.models.DenseNet(12, (16, 16, 16), 24, num_classes=10)),
    ],
)
def test_the_logits_are_those_of_torchvision(name, theirs):
    """With its weights in the same order, and its stem exchanged: an independent implementation says the same."""
    torch.manual_seed(1)
    theirs, ours = small_stem(theirs(), name), build(name)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(4, 3, 16, 16)
    for model in (ours, theirs):  # in train mode: batch statistics keep the values of every layer alive
        model.train()
    mine, reference = ours(x), theirs(x)
    torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-4)


# Options ------------------------------------------------------------------------------------------------------------------


def test_dropout_of_a_wide_resnet():
    """It acts in training alone, and the default has none."""
    x = torch.randn(2, 3, 8, 8)
    for dropout in (0.0, 0.5):
        model = build("wrn_16_1", dropout=dropout)
        assert torch.equal(model(x), model(x)) == (dropout == 0)
        assert torch.equal(dry_run(model, x), dry_run(model, x))
    with pytest.raises(KdrunError, match=r"dropout=1.5 of a wide ResNet is not a share"):
        build("wrn_16_1", dropout=1.5)


def test_widths():
    """The channels follow; a width that leaves none is an error."""
    assert tapped(build("mobilenetv2", width=1.0), 8)["stage4"].shape[1] == 320
    assert tapped(build("mobilenetv2", width=2.0), 8)["last"].shape[1] == 2560
    assert [tapped(build("cnn", width=4), 8)[tap].shape[1] for tap in ("stem", "stage1", "stage2", "stage3")] == [
        4,
        4,
        8,
        16,
    ]
    for name, option in (
        ("mobilenetv2", {"width": 0.01}),
        ("cnn", {"width": 0}),
        ("mlp", {"width": 0}),
        ("mlp", {"grid": 0}),
    ):
        with pytest.raises(KdrunError, match="{}={} of a".format(*next(iter(option.items())))):
            build(name, **option)


def test_the_grid_of_the_mlp():
    """On images of that size the pixels go in as they are; the parameters do not depend on the size of the image."""
    model = build("mlp", width=5, grid=8)
    assert model.hidden1.in_features == 3 * 8 * 8
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.pool(x), x)
    assert model(torch.randn(2, 3, 5, 5)).shape == (2, 10)


# What they cost -----------------------------------------------------------------------------------------------------------


def test_multiply_adds_by_hand():
    """Output values times what each sums over; groups and strides, a linear layer, and a transposed convolution."""
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),  # 5x5 out: 25 * 6 * 9 * 2
        nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 2, 2, stride=2),  # 25 * 6 in, each to 2 * 4 values
        nn.Flatten(),
        nn.Linear(200, 7),
    )
    assert multiply_adds(model, torch.randn(3, 4, 10, 10)) == 25 * 6 * 9 * 2 + 25 * 6 * 8 + 200 * 7


def test_multiply_adds_leave_no_trace():
    """Modes, buffers and hooks are as before; the count is of one image whatever the batch."""
    model = build("resnet8")
    model.layer2.eval()
    modes = {module: module.training for module in model.modules()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    counts = {multiply_adds(model, torch.randn(batch, 3, 32, 32)) for batch in (1, 3)}
    assert counts == {432 * 1024 + 1024 * 2 * 2304 + 256 * (4608 + 9216 + 512) + 64 * (18432 + 36864 + 2048) + 640}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert modes == {module: module.training for module in model.modules()}
    assert not any(module._forward_hooks for module in model.modules())


def test_multiply_adds_of_wrn_28_10():
    """5.2 G at 32 px, as published; shapes suffice."""
    with torch.device("meta"):
        assert multiply_adds(MODELS.get("wrn_28_10")(10), torch.empty(1, 3, 32, 32)) / 1e9 == pytest.approx(
            5.2, abs=0.05
        )


@pytest.mark.skipif(not SCRIPT.is_file(), reason="scripts/ does not travel with the source distribution")
def test_the_page_of_the_models_is_current():
    """docs/models.md is what `python scripts/docs_models.py` writes."""
    spec = importlib.util.spec_from_file_location("docs_models", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.FILE.read_text(encoding="utf-8") == script.text(), "run: python scripts/docs_models.py"


# Taps and shortcuts of the CIFAR ResNets ----------------------------------------------------------------------------------


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
        ("own_models", {}, "path=own_models is not module:function"),
        (":net", {}, "path=:net is not module:function"),
        ("own_model:net", {}, "cannot import own_model of path=own_model:net: .*current folder"),
        ("own_models:nett", {}, "module own_models of path=own_models:nett has no 'nett'. Did you mean net"),
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
    """All that is read from the source, without importing it, is what the imported object says of itself."""
    inspected = registry._inspect(name, registry.get(name))
    assert registry.entry(name) == dataclasses.replace(inspected, task=registry.entry(name).task)


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
