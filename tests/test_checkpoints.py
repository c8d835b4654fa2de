"""Checkpoints as people have them: what loads, what is refused, and that nothing in a file is ever executed."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import logging
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kdrun.errors import KdrunError
from kdrun.runs.checkpoint import load_checkpoint, load_into, load_weights, plain_state, save_tensors
from kdrun.runs.fitting import ORDER


class Net(nn.Module):
    def __init__(self, classes: int = 10, width: int = 4):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


class Holder(nn.Module):
    """A model of its own that keeps its layers under an attribute with the name of a wrapper's prefix."""

    def __init__(self, name: str, inner: nn.Module):
        super().__init__()
        self.inner = name
        setattr(self, name, inner)

    def forward(self, x):
        return getattr(self, self.inner)(x)


def renamed(weights, change):
    return {change(name): value for name, value in weights.items()}


@pytest.fixture
def source() -> Net:
    """A trained model: its statistics are not those of a new one."""
    torch.manual_seed(1)
    model = Net()
    model(torch.randn(8, 3, 6, 6))
    return model.eval()


@pytest.fixture
def loads(source, tmp_path):
    """Writes a file, loads it into a new model, and says whether both give the same; returns the remark of the load."""

    def load(content, model=None, *, file="a.pth", key=None, role="teacher", **saving):
        model, path = Net() if model is None else model, tmp_path / file
        save_file(content, path) if file.endswith("safetensors") else torch.save(content, path, **saving)
        note = load_checkpoint(model, path, "net", role, key)
        x = torch.randn(2, 3, 6, 6)
        assert torch.allclose(model.eval()(x), source(x), atol=1e-2)
        return note

    return load


def refused(content, tmp_path, model=None, key=None) -> str:
    path = tmp_path / "a.pth"
    torch.save(content, path)
    with pytest.raises(KdrunError) as caught:
        load_checkpoint(model or Net(), path, "net", "teacher", key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PREFIXES = [
    "module.", "_orig_mod.", "model.", "student.", "backbone.", "net.", "module._orig_mod.", "_orig_mod.module.", "model.module.",
    "model.backbone.", "encoder.", "_forward_module.",
]  # fmt: skip


@pytest.mark.parametrize("file", ["a.pth", "a.safetensors", "weights.bin"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_that_all_names_share_is_taken_off(prefix, file, source, loads):
    loads(renamed(source.state_dict(), lambda name: prefix + name), file=file)


@pytest.mark.parametrize("inner", ["model", "backbone", "net", "module", "student"])
def test_a_model_whose_own_names_begin_like_a_wrapper_loads(inner, source, loads):
    """Its own file, that file through DataParallel, and the file of what it holds."""
    own = Holder(inner, source).state_dict()
    loads(own, Holder(inner, Net()))
    loads(renamed(own, lambda name: f"module.{name}"), Holder(inner, Net()))
    loads(source.state_dict(), Holder(inner, Net()))


def test_counters_of_batches_may_be_missing(source, loads):
    """Files from before PyTorch 0.4.1 have none, nor has the file of a compiled model of that kind."""
    old = {name: value for name, value in source.state_dict().items() if "num_batches_tracked" not in name}
    loads(old)
    loads(renamed(old, lambda name: f"module.{name}"))
    loads({"state_dict": old, "best_prec1": 91.7})


def test_missing_statistics_are_not_made_up(source, tmp_path):
    lacks = {name: value for name, value in source.state_dict().items() if "running_" not in name}
    assert "it lacks bn.running_mean, bn.running_var" in refused(lacks, tmp_path)


def test_what_is_no_weight_is_left_out(source, loads):
    """The counter of an average and thop's sums, at any depth, beside and below a prefix; a mid-level compile too."""
    weights, one = source.state_dict(), torch.ones(1)
    loads({**weights, "total_ops": one, "total_params": one, "conv.total_ops": one, "bn.total_params": one})
    loads({**renamed(weights, lambda name: f"module.{name}"), "total_ops": one, "module.conv.total_ops": one})
    loads(AveragedModel(source).state_dict())
    loads(AveragedModel(torch.compile(source)).state_dict())
    loads(renamed(weights, lambda name: name.replace("bn.", "bn._orig_mod.")))


class Own:
    def __init__(self):
        self.lr = 0.1


@dataclasses.dataclass
class Slotted:
    __slots__ = ("lr",)
    lr: float


class Kind(enum.Enum):
    A = 1


class Dict(dict):
    """As easydict, yacs and mmengine have them."""


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("x")), "float64": np.float64(0.9), "bool": np.bool_(True),
    "array": np.arange(3.0), "objects": np.array([None, {}], dtype=object), "dtype": np.dtype("f4"),
    "rng": np.random.get_state(), "path": pathlib.PurePosixPath("a"), "date": datetime.datetime(2020, 1, 2),
    "defaultdict": collections.defaultdict(list, a=[1]), "deque": collections.deque([1, 2]),
    "simple": types.SimpleNamespace(a=1), "omegaconf": OmegaConf.create({"a": [1, {"b": "${a}"}]}), "own": Own(),
    "enum": Kind.A, "version": torch.__version__, "logger": logging.getLogger("x"),
    "slots": Slotted(0.1), "dict": Dict(a=1), "partial": functools.partial(max, 1), "function": nn.functional.relu, "class": Own,
    "set": {1}, "frozenset": frozenset([1]), "complex": 1j, "dtypes": [torch.float16, torch.Size([1]), torch.device("cpu")],
    "optimizer": torch.optim.AdamW(Net().parameters()).state_dict(),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("kind", BESIDE)
def test_whatever_lies_beside_the_weights_they_load(kind, zipped, source, loads):
    """Objects beside the weights come out empty; PyTorch's formats of today and from before 1.6."""
    content = {"epoch": 3, kind: BESIDE[kind], "state_dict": source.state_dict()}
    assert loads(content, _use_new_zipfile_serialization=zipped) is None


class Bomb:
    """A pickle that calls a function where it is executed."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    ("bomb", "name"),
    [
        (Bomb(os.system, "touch executed"), "system"),
        (Bomb(eval, "open('executed', 'w')"), "builtins.eval"),
        (Bomb(exec, "open('executed', 'w')"), "builtins.exec"),
        (Bomb(subprocess.Popen, ["touch", "executed"]), "subprocess.Popen"),
        (Bomb(torch.load, "executed"), "torch.serialization.load"),
        (Bomb(pathlib.Path.touch, pathlib.Path("executed")), "touch"),
    ],
    ids=["system", "eval", "exec", "popen", "torch", "method"],
)
def test_nothing_in_a_file_is_executed(bomb, name, beside, zipped, source, tmp_path, monkeypatch):
    """The one line names what the file wanted to call, and the way out."""
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": source.state_dict(), "args": bomb} if beside else {"state_dict": bomb}
    torch.save(content, "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        KdrunError, match=r"a.pth is refused: .*executes no code from a file. Save only the state dict"
    ) as caught:
        load_weights("a.pth")
    assert name in str(caught.value) or "getattr" in str(caught.value)
    assert not pathlib.Path("executed").exists()


GONE = """
class A:
    def __getstate__(self):
        return {"a": 1}

    def __setstate__(self, state):
        raise SystemExit("executed")
"""


def test_blanks_import_nothing(tmp_path, source):
    """A class of a module that is not here is no obstacle, and is not looked for."""
    script = "import gone, torch; torch.save({'a': gone.A(), 'state_dict': {'w': torch.ones(2, 2)}}, 'a.pth')"
    (tmp_path / "gone.py").write_text(GONE)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    (tmp_path / "gone.py").unlink()
    assert [*load_weights(tmp_path / "a.pth")] == ["w"]


def test_a_whole_model_is_refused_by_its_class(source, tmp_path):
    for content in (source, {"model": source, "epoch": 3}):
        message = refused(content, tmp_path)
        assert "test_checkpoints.Net" in message
        assert "torch.save(model.state_dict(), FILE)" in message
    torch.save(source, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(
        KdrunError, match=r"old.pth is refused: it holds a module with its class .*Save only the state dict"
    ):
        load_weights(tmp_path / "old.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_refused(source, tmp_path):
    torch.jit.trace(source, torch.randn(2, 3, 6, 6)).save(tmp_path / "a.pt")
    with pytest.raises(KdrunError, match="TorchScript program, and kdrun executes no code from a file"):
        load_weights(tmp_path / "a.pt")


def test_another_pickle_is_refused(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "a.pt", pickle_protocol=4)
    with pytest.raises(KdrunError, match="another pickle protocol"):
        load_weights(tmp_path / "a.pt")


def test_numpy_weights_are_refused(source, tmp_path):
    arrays = {name: value.numpy() for name, value in source.state_dict().items()}
    assert "NumPy arrays and no tensors" in refused(arrays, tmp_path)


# Which weights -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "net", "model_state_dict", "params", "weights", "student", "foo"]
)
def test_the_only_weights_need_no_key(key, source, loads):
    assert loads({key: source.state_dict(), "epoch": 3, "acc": torch.tensor(0.5)}) is None


def test_of_several_the_plain_weights_are_taken_and_it_is_told(source, loads):
    other = Net().state_dict()
    for plain, ema in (("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("net", "other")):
        note = loads({ema: other, plain: source.state_dict()})
        assert note.startswith(f"the weights under '{plain}' of a.pth are taken, not those under {ema}")
        assert note.endswith(" takes others")
        assert "teacher.checkpoint_key=KEY" not in note
        assert loads({plain: other, ema: source.state_dict()}, key=ema) is None


def test_the_order_is_the_documented_one():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    paragraph = text.split("then `state_dict`")[1].split("then the others")[0]
    assert ["state_dict", *re.findall(r"`(\w+)`", paragraph), "teacher"] == [*ORDER]


def test_a_side_of_a_pair_is_taken_by_role_or_by_what_fits(source, loads):
    other = Net().state_dict()
    assert "under 'teacher'" in loads({"student": other, "teacher": source.state_dict()})
    assert "under 'student'" in loads({"student": source.state_dict(), "teacher": other}, role="student")
    wide = Net(width=9).state_dict()
    assert "under 'teacher'" in loads({"student": wide, "teacher": source.state_dict()}, role="student")


def test_a_key_may_be_a_path_or_a_part_of_the_names(source, loads):
    weights, other = source.state_dict(), Net(width=9).state_dict()
    nested = {"model": other, "ema": {"module": weights, "decay": 0.9}}
    loads(nested, key="ema.module")
    loads(nested, key="ema")
    lightning = {**renamed(weights, lambda name: f"model.{name}"), "criterion.weight": torch.ones(10)}
    loads({"state_dict": lightning}, key="model")
    loads({"state_dict": lightning}, key="state_dict.model")
    loads(lightning, key="model", file="a.safetensors")


def test_a_part_that_fits_is_named(source, tmp_path):
    both = renamed(source.state_dict(), lambda name: f"module.student.{name}")
    both |= renamed(Net(width=9).state_dict(), lambda name: f"module.teacher.{name}")
    assert refused({"model": both}, tmp_path).endswith("say teacher.checkpoint_key=model.module.student")


def test_an_unknown_key_names_the_choices(source, tmp_path):
    message = refused(
        {"state_dict": source.state_dict(), "state_dict_ema": Net().state_dict()}, tmp_path, key="state_dict_em"
    )
    assert "Did you mean state_dict_ema? Choices: state_dict, state_dict_ema" in message


# What does not fit ---------------------------------------------------------------------------------------------------------


def test_other_names_for_the_same_shapes_are_called_that(source, tmp_path):
    other = renamed(source.state_dict(), lambda name: name.replace("fc.", "linear."))
    for weights in (other, {name: value for name, value in other.items() if "num_batches" not in name}):
        message = refused(weights, tmp_path)
        assert "only the names differ: 'linear.weight' in the file is 'fc.weight' in the model" in message
        assert "architecture" not in message


def test_another_network_is_called_that(source, tmp_path):
    assert "another architecture" in refused(nn.Linear(3, 4).state_dict(), tmp_path)
    assert "fc.bias is (100,) in the file, (10,) in the model (another number of classes?)" in refused(
        Net(100).state_dict(), tmp_path
    )


def test_half_and_double_precision_load(source, loads):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model = Net()
        loads(
            {
                name: value.to(dtype) if value.is_floating_point() else value
                for name, value in source.state_dict().items()
            },
            model,
        )
        assert model.fc.weight.dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
def test_numbers_that_are_no_weights_are_refused(source, tmp_path):
    weights = source.state_dict()
    assert "fc.bias holds NaN" in refused({**weights, "fc.bias": torch.full((10,), torch.nan)}, tmp_path)
    assert "bn.running_var holds NaN or infinite" in refused(
        {**weights, "bn.running_var": torch.full((4,), torch.inf)}, tmp_path
    )
    assert "fc.weight is sparse" in refused({**weights, "fc.weight": weights["fc.weight"].to_sparse()}, tmp_path)
    quantised = torch.quantize_per_tensor(weights["fc.weight"], 0.1, 0, torch.qint8)
    assert "fc.weight is quantised" in refused({**weights, "fc.weight": quantised}, tmp_path)
    assert "conv.weight holds int8" in refused(
        dict(weights, **{"conv.weight": weights["conv.weight"].to(torch.int8)}), tmp_path
    )


def test_an_infinite_mask_of_the_model_s_own_is_sound(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    load_into(model, model.state_dict(), "a.pth", "masked")


# What kdrun writes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        AveragedModel,
        lambda model: torch.compile(nn.DataParallel(model)),
        lambda model: model,
    ],
    ids=["compile", "parallel", "average", "both", "plain"],
)
def test_written_weights_have_plain_names_and_load_again(wrap, source, tmp_path):
    """The names are those of the model within; they load into the wrapped and into the plain one."""
    save_tensors(tmp_path / "student.safetensors", plain_state(wrap(source)))
    weights = load_weights(tmp_path / "student.safetensors")
    assert weights.keys() == source.state_dict().keys()
    for model in (wrap(Net()), Net()):
        load_into(model, weights, "student.safetensors", "net")
        assert torch.equal(plain_state(model)["conv.weight"], source.conv.weight)


def test_a_compiled_layer_within_is_plain_too(source):
    source.bn = torch.compile(source.bn)
    assert plain_state(source).keys() == Net().state_dict().keys()
    assert plain_state(Holder("module", Net())).keys() == Holder("module", Net()).state_dict().keys()
