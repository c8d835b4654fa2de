"""Models of other people: how their builders are called, and outputs that are more than logits."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

import kdrun
from kdrun import train
from kdrun.config.checks import validate
from kdrun.config.nodes import register_nodes
from kdrun.config.registry import MODELS
from kdrun.config.schema import Engine, conf_folder
from kdrun.engine.precision import resolve
from kdrun.errors import KdrunError
from kdrun.runs.checkpoint import load_weights, weights_sha256
from kdrun.runs.identity import identity
from kdrun.tasks.model import item, training

NETS = '''
import functools
from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import nn


class Net(nn.Module):
    """Its head is as wide as it was asked for; "more" is what it returns beside the logits."""

    def __init__(self, classes=3, more=None):
        super().__init__()
        self.norm, self.head, self.more, self.width = nn.BatchNorm2d(3), nn.Linear(192, classes), more, classes

    def forward(self, x):
        logits = self.head(self.norm(x).flatten(1))
        return logits if self.more is None else self.more(logits, self.training)


def num_classes(num_classes): return Net(num_classes)
def num_class(width=1, num_class=100): return Net(num_class)
def keyword(*, n_classes): return Net(n_classes)
def nclass(nclass, width=3): return Net(nclass)
def class_num(pretrained=False, class_num=1000): return Net(class_num)
def classes(classes): return Net(classes)
def odd_name(k): return Net(k)
def by_place(k, /): return Net(k)
def rest(*args): return Net(*args)
def second(width, k): return Net(k)
def handed_on(pretrained=False, **kwargs): return named_inside(**kwargs)
def named_inside(num_classes=1000): return Net(num_classes)
def swallows(**kwargs): return Net(kwargs["classes"])
def none(): return Net(7)
def optional(width=7): return Net(width)
def depth(depth): return Net(depth)
def two(depth, num_classes): return Net(num_classes)
def nobody(**kwargs): return no_name(**kwargs)
def no_name(): return Net(7)
def old_name(**kwargs): return classes(**kwargs)
partial = functools.partial(num_class, width=4)
partial_given = functools.partial(num_classes, num_classes=7)
ready = Net(7)
number = 3


class Factory:
    def __call__(self, num_classes): return Net(num_classes)

    def method(self, classes): return Net(classes)


factory = Factory()


def broken(classes):
    return Net(classes) + 1


def broken_deep(**kwargs):
    return deep(kwargs["classes"])


def deep(classes):
    return nn.Linear(classes)


Named = namedtuple("Named", ["features", "logits"])


@dataclass
class Data:
    loss: object
    logits: torch.Tensor


class Plain:
    def __init__(self, logits): self.logits = logits


def tuple_(classes): return Net(classes, lambda y, train: (y, y[:, :1]))
def second_(classes): return Net(classes, lambda y, train: [y[:, :1], y])
def nested(classes): return Net(classes, lambda y, train: {"out": (y[:, :1], y)})
def dict_(classes): return Net(classes, lambda y, train: {"features": y[:, :1], "logits": y})
def named(classes): return Net(classes, lambda y, train: Named(y[:, :1], y))
def data(classes): return Net(classes, lambda y, train: Data(None, y))
def plain(classes): return Net(classes, lambda y, train: Plain(y))
def aux(classes): return Net(classes, lambda y, train: (y, y) if train else y)
def softmax(classes): return Net(classes, lambda y, train: y.softmax(1))
def log_softmax(classes): return Net(classes, lambda y, train: y.log_softmax(1))
def compiled(classes): return torch.compile(Net(classes), backend="eager")
def averaged(classes): return torch.optim.swa_utils.AveragedModel(Net(classes))
'''


@pytest.fixture
def nets(tmp_path, monkeypatch) -> Path:
    """The folder of a user's module on the path."""
    (tmp_path / "odd_nets.py").write_text(NETS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(importlib.sys.modules, "odd_nets", raising=False)
    return tmp_path


def build(name: str, **arguments):
    return MODELS.get("import")(7, path=f"odd_nets:{name}", arguments=arguments)


@pytest.mark.parametrize(
    "name",
    [
        "num_classes", "num_class", "keyword", "nclass", "class_num", "classes", "odd_name", "by_place", "rest", "handed_on",
        "swallows", "nobody", "old_name", "none", "optional", "partial", "partial_given", "Net", "factory", "factory.method",
    ],
)  # fmt: skip
def test_the_number_of_classes_goes_where_the_signature_has_it(nets, name):
    """Functions, classes, partial functions, callable objects and their methods."""
    assert build(name).width == 7


def test_arguments_join_and_may_say_the_classes_themselves(nets):
    """A number of classes among the arguments is the one that is passed; the head fits or not."""
    assert build("second", width=2).width == 7
    assert build("two", depth=2).width == 7
    assert build("num_class", width=2).width == 7
    assert build("num_classes", num_classes=5).width == 5
    assert build("handed_on", num_classes=5).width == 5


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("num_class", {"widht": 3}, "takes? no 'widht'. Did you mean width\\? Choices: num_class, width"),
        ("depth", {}, "missing a required argument: 'depth'; arguments={NAME: VALUE} gives it. It takes depth"),
        ("two", {}, "missing a required argument: 'depth'"),
        ("second", {}, "missing a required argument: 'width'"),
        ("ready", {}, "odd_nets:ready is a model, not a function that builds one"),
        ("number", {}, "odd_nets:number is int, not a function or class"),
        ("Factory.nothing", {}, "has no 'Factory.nothing'"),
    ],
)
def test_a_builder_that_cannot_be_called_says_why(nets, name, arguments, message):
    with pytest.raises(KdrunError, match=message):
        build(name, **arguments)


@pytest.mark.parametrize(("name", "words"), [("broken", "unsupported operand"), ("broken_deep", "missing 1 required")])
def test_an_error_inside_a_builder_stays_its_own(nets, name, words):
    """It is no matter of how the builder was called, so that the line names its place."""
    from kdrun.config.explain import message

    with pytest.raises(TypeError, match=words) as caught:
        build(name)
    line = (
        NETS.split("\n").index("    return Net(classes) + 1" if name == "broken" else "    return nn.Linear(classes)")
        + 1
    )
    assert message(caught.value).startswith(f"TypeError at odd_nets.py:{line}: ")


def test_torchvision_models_take_their_name_for_it():
    """They hand **kwargs on to a class."""
    for name in ("mobilenet_v2", "mobilenet_v3_small"):  # the second swallows a name that it does not know
        model = MODELS.get("import")(7, path=f"torchvision.models:{name}", arguments={"width_mult": 0.25})
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_missing_package_of_the_user_s_module_is_called_that(nets):
    (nets / "wants.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(
        KdrunError, match=r"wants of path=wants:f imports a module that is not installed: .*not_installed_anywhere"
    ):
        MODELS.get("import")(7, path="wants:f")


# Outputs ------------------------------------------------------------------------------------------------------------------


def parts(*overrides: str) -> train.Parts:
    register_nodes()
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        config = validate(compose("config", ["dataset=digits", "recipe=quick", *overrides]))
    return train.build(config, resolve(Engine(device="cpu", precision="fp32")))


STUDENT = ["teacher=none", "method=none", "student=import"]
OUTPUTS = [
    ("tuple_", "0", "a tuple of (2, 10), (2, 1)"), ("second_", "1", "a list of (2, 1), (2, 10)"),
    ("dict_", "logits", "a dict of (2, 1), (2, 10)"), ("named", "logits", "a Named of (2, 1), (2, 10)"),
    ("data", "logits", "a Data of NoneType, (2, 10)"), ("plain", "logits", "a Plain of (2, 10)"),
    ("aux", "0", "(in train mode) gives a tuple of (2, 10), (2, 10)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "output", "words"), OUTPUTS)
def test_a_container_is_named_with_the_way_out(nets, name, output, words):
    """Before anything trains; the way out works, in train mode and in eval mode."""
    with pytest.raises(KdrunError) as caught:
        parts(*STUDENT, f"student.path=odd_nets:{name}")
    assert words in str(caught.value)
    assert f"student.output={output} takes one of them" in str(caught.value)
    model = parts(*STUDENT, f"student.path=odd_nets:{name}", f"student.output={output}").distillation.student.module
    for mode in (True, False):
        assert model.train(mode)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert [*model.state_dict()][-1] == "head.bias"


def test_the_teacher_s_output_too(nets):
    """A teacher is frozen: what it returns in train mode is nobody's business."""
    teacher = ["student=resnet8", "method=kd", "teacher=import", "teacher.path=odd_nets:"]
    with pytest.raises(KdrunError, match=r"teacher.output=logits takes one of them. Choices: features, logits"):
        parts(*teacher[:-1], teacher[-1] + "dict_")
    parts(*teacher[:-1], teacher[-1] + "dict_", "teacher.output=logits")
    parts(*teacher[:-1], teacher[-1] + "aux")


def test_an_item_that_is_not_there_names_the_choices(nets):
    with pytest.raises(
        KdrunError, match=r"output=logit: odd_nets:dict_ gives a dict .* and no 'logit'. Did you mean logits"
    ):
        parts(*STUDENT, "student.path=odd_nets:dict_", "student.output=logit")
    with pytest.raises(KdrunError, match=r"output=2: odd_nets:tuple_ gives a tuple .* and no '2'. Choices: 0, 1"):
        parts(*STUDENT, "student.path=odd_nets:tuple_", "student.output=2")


def test_an_item_may_lie_deeper():
    value = torch.zeros(2, 3)
    assert item({"out": (None, value)}, "out.1", "net") is value
    assert item((None, value), "-1", "net") is value
    assert item(value, "logits", "net") is value


def test_a_tensor_of_another_shape_is_refused_whatever_the_mode(nets):
    with pytest.raises(KdrunError, match=r"gives \(2, 3\) where \(batch, 10\) logits are wanted"):
        parts(*STUDENT, "student.path=odd_nets:Net", "+student.arguments.classes=3")


def test_probabilities_are_remarked_and_log_probabilities_are_not(nets):
    notes = parts(*STUDENT, "student.path=odd_nets:softmax").notes
    assert len(notes) == 1
    assert "student odd_nets:softmax gives numbers that sum to 1, like probabilities" in notes[0]
    assert not parts(*STUDENT, "student.path=odd_nets:log_softmax").notes


def test_a_look_in_train_mode_leaves_no_trace():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    before, x = {k: v.clone() for k, v in model.state_dict().items()}, torch.randn(1, 3, 2, 2)
    random = torch.get_rng_state()
    assert training(model, x).shape == (2, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(torch.get_rng_state(), random)


# Identity and real runs ---------------------------------------------------------------------------------------------------


def test_new_keys_are_in_the_identity_only_when_they_are_set(tmp_path):
    torch.save({"a": {"w": torch.ones(2, 2)}}, tmp_path / "a.pth")
    register_nodes()

    def found(*overrides: str):
        with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
            config = validate(compose("config", ["dataset=digits", "teacher=resnet8", "student=resnet8", *overrides]))
        return identity(config, "c")

    file = f"teacher.checkpoint={tmp_path}/a.pth"
    assert not {"output", "checkpoint_key"} & ({*found(file)["student"]} | {*found(file)["teacher"]})
    assert found(file, "teacher.checkpoint_key=a")["teacher"]["checkpoint_key"] == "a"
    assert found("student.output=0")["student"]["output"] == "0"
    assert found("teacher.output=0")["teacher"] != found()["teacher"]
    assert not {"output", "checkpoint_key"} & {*found("method=dml")["teacher"]["fresh"]}
    with pytest.raises(KdrunError, match=r"student.checkpoint_key=a chooses weights of a file; say which"):
        found("student.checkpoint_key=a")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{Path(__file__).parents[1]}"}
    command = [sys.executable, "-m", "kdrun", "dataset=digits", "recipe=quick", "recipe.epochs=1", "engine.threads=1"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


def test_a_run_of_a_wrapped_model_with_two_kinds_of_weights(nets):
    """Through the real command: what was taken is told, what is written has plain names, and the run loads again."""
    import odd_nets

    weights, average = odd_nets.Net(10).state_dict(), odd_nets.Net(10).state_dict()
    torch.save({"state_dict": weights, "state_dict_ema": average}, nets / "two.pth.tar")
    student = [
        "student=import",
        "student.path=odd_nets:averaged",
        "student.checkpoint=two.pth.tar",
        "teacher=none",
        "method=none",
    ]
    done = run(nets, *student)
    assert done.returncode == 0, done.stderr
    told = "weights  student odd_nets:averaged: the weights under 'state_dict' of two.pth.tar are taken, not those under state_dict_ema"
    assert told in done.stdout
    (folder,) = (nets / "outputs/runs/digits/none").glob("none-*/*/seed0")
    assert told in (folder / "log.txt").read_text()
    for file in ("student.safetensors", "student-best.safetensors"):
        written = load_weights(folder / file)
        assert written.keys() == weights.keys()
        assert weights_sha256(written) == kdrun.load(folder).record["student"]["sha256"]  # one epoch: last and best
    loaded = kdrun.load(folder)
    assert loaded.student(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 10)


@pytest.mark.slow
def test_a_run_whose_model_returns_a_dict(nets):
    """student.output holds while it trains, in the record's identity, and in kdrun.load."""
    done = run(
        nets, "student=import", "student.path=odd_nets:dict_", "student.output=logits", "teacher=none", "method=none"
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (nets / "outputs/runs/digits/none").glob("none-*/*/seed0")
    assert json.loads((folder / "record.json").read_text())["identity"]["student"]["output"] == "logits"
    assert kdrun.load(folder).student(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 10)
