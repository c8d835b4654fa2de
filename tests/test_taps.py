"""Taps: what they catch, when they refuse, and that looking at a model leaves no trace in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdrun.errors import KdrunError
from kdrun.methods.taps import Tapped, dry_run
from kdrun.tasks.image.models.resnet_cifar import ResNet


class Toy(nn.Module):
    """One of everything: a tuple output, a module used twice, one used never, and an in-place change."""

    def __init__(self):
        super().__init__()
        self.taps = {"hidden": "first", "in": "last:in"}
        self.first = nn.Linear(3, 4)
        self.act = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.shared = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x = self.act(self.first(x))
        x, _ = self.pair(x)
        return self.last(self.shared(self.shared(x)))


class Pair(nn.Module):
    def forward(self, x):
        return x + 1, x - 1


def x(rows: int = 5) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(8, (4, 4, 8, 16), 5, "B")


def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_aliases_paths_and_inputs_in_the_order_asked_for():
    """An alias, a module path and ":in" on either give the tensors that flow there, in the order of the names."""
    toy = Toy()
    output = Tapped(toy, ["in", "pair", "last", "pair:in", "in"])(x())
    hidden = toy.first(x()).relu()
    last_in = toy.shared(toy.shared(hidden + 1))
    for ours, expected in zip(output.taps, [last_in, hidden + 1, toy.last(last_in), hidden, last_in], strict=True):
        torch.testing.assert_close(ours, expected)
    assert torch.equal(output.logits, output.taps[2])
    assert torch.equal(output.input, x())


def test_tuples_give_their_first_item():
    """A module that returns a tuple is tapped for its first item."""
    toy = Toy()
    torch.testing.assert_close(Tapped(toy, ["pair"])(x()).taps[0], toy.first(x()).relu() + 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hiden", "no tap 'hiden' in Toy. Did you mean hidden"),
        ("fist", "no tap 'fist' in Toy. .*a module path such as first, with :in for its input"),
        ("first:out", "no tap 'first:out' in Toy"),
    ],
)
def test_an_unknown_name_is_an_error_with_choices(name, message):
    """A name that is neither alias nor path stops at construction, with the near match and the choices."""
    with pytest.raises(KdrunError, match=message):
        Tapped(Toy(), [name])


def test_a_model_without_aliases_offers_its_modules():
    """Where a model declares nothing, the choices are its module paths."""
    with pytest.raises(KdrunError, match=r"no tap '3' in Sequential. Choices: 0, 1"):
        Tapped(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), ["3"])


def test_a_tap_that_does_not_fire_is_an_error():
    """A module that the forward pass leaves out cannot be tapped."""
    with pytest.raises(KdrunError, match="tap 'unused' did not fire: the forward pass of Toy does not use that module"):
        Tapped(Toy(), ["unused"])(x())


@pytest.mark.parametrize("name", ["shared", "shared:in"])
def test_a_tap_that_fires_twice_is_an_error(name):
    """A module that is used twice has no one output, and the model still works by itself afterwards."""
    toy = Toy()
    tapped = Tapped(toy, [name])
    with pytest.raises(KdrunError, match=f"tap '{name}' fired twice in one forward pass of Toy"):
        tapped(x())
    assert toy(x()).shape == (5, 2)


def test_a_tensor_that_is_changed_in_place_later_is_cloned():
    """The tap before an in-place ReLU holds the values from before it, forward after forward, with their gradient."""
    toy = Toy()
    tapped = Tapped(toy, ["hidden"])
    for _ in range(2):
        (hidden,) = tapped(x()).taps
        torch.testing.assert_close(hidden, toy.first(x()))
        assert (hidden < 0).any()
    hidden.sum().backward()
    torch.testing.assert_close(toy.first.bias.grad, torch.full((4,), 5.0))


def test_hooks_are_silent_when_the_module_is_called_by_itself():
    """Evaluating the bare module neither counts as a firing nor keeps its tensors."""
    toy = Toy()
    tapped = Tapped(toy, ["pair"])
    toy(x()), toy(x())
    assert tapped._caught == {}
    assert len(tapped(x()).taps) == 1
    assert tapped._caught == {}
    again = tapped(x()).again(2 * x())
    torch.testing.assert_close(again.logits, toy(2 * x()))


def test_tensors_are_float32_under_autocast():
    """Whatever the compute precision, a method sees float32."""
    output = Tapped(Toy(), ["hidden", "pair"], torch.bfloat16)(x())
    assert {tensor.dtype for tensor in (output.logits, *output.taps)} == {torch.float32}


def test_taps_carry_gradients_to_the_model():
    """A loss on a tap trains what lies before it and nothing after."""
    toy = Toy()
    Tapped(toy, ["pair"])(x()).taps[0].sum().backward()
    assert toy.first.weight.grad is not None
    assert toy.last.weight.grad is None


@pytest.mark.parametrize(
    ("tap", "expected"),
    [
        ("stem", {"conv1", "bn1"}),
        ("layer1:in", {"conv1", "bn1"}),
        ("stage1", {"conv1", "bn1", "layer1"}),
        ("stage2", {"conv1", "bn1", "layer1", "layer2"}),
        ("pooled", {"conv1", "bn1", "layer1", "layer2", "layer3"}),
        ("logits", {"conv1", "bn1", "layer1", "layer2", "layer3", "head"}),
    ],
)
def test_until_gives_the_modules_before_a_tap(tap, expected):
    """Exactly the parameters and buffers that fire before the tap, each once, and none after it."""
    model = resnet()
    found = Tapped(model, [tap]).until(tap, images())
    held = [value.data_ptr() for module in found for value in module.state_dict().values()]
    names = {value.data_ptr(): name for name, value in model.state_dict().items()}
    assert len(held) == len(set(held))
    assert {names[pointer] for pointer in held} == {
        name for name in model.state_dict() if name.split(".")[0] in expected
    }


def test_until_inside_a_block_stops_inside_it():
    """A tap on an inner module leaves the rest of its block out."""
    model = resnet()
    found = Tapped(model, ["layer1.0.act1"]).until("layer1.0.act1", images())
    assert found == [model.conv1, model.bn1, model.layer1[0].conv1, model.layer1[0].bn1]


def test_the_dry_run_finds_in_place_changes_so_that_training_runs_once():
    """After one look in eval mode the first forward pass in train mode updates batch norm exactly once."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    tapped = Tapped(model, ["1"])
    dry_run(tapped, x())
    assert model[1].num_batches_tracked == 0
    (normalised,) = tapped(x()).taps
    assert model[1].num_batches_tracked == 1
    assert (normalised < 0).any()


def test_looking_leaves_no_trace():
    """Neither evaluate nor until changes statistics, modes or hooks of a model in train mode."""
    model = resnet().train()
    model.bn1.eval()  # a mode of its own must come back too
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    tapped = Tapped(model, ["stage2"])
    dry_run(tapped, images())
    tapped.until("stage2", images())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert hooks == 1


class Token(nn.Module):
    """As a vision transformer: a parameter of the root's own, used before its blocks."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.first(x) + self.token)


def test_until_refuses_what_it_cannot_part():
    """Training the root for its own parameter would train all that it contains, behind the tap too."""
    with pytest.raises(
        KdrunError, match=r"up to 'first' cannot be separated: Token has its own parameters, .* such as Linear"
    ):
        Tapped(Token(), ["first"]).until("first", x())
    whole = Tapped(Token(), ["last"])
    assert whole.module in whole.until("last", x())


def test_live_taps_are_what_a_gradient_can_be_taken_of():
    """In bf16 the float32 tap is a copy beside the path to the logits; the live one lies on it, with the same values."""
    model = resnet()
    output = Tapped(model, ["stage2"], torch.bfloat16)(images())
    assert output.live[0].dtype == torch.bfloat16
    assert torch.equal(output.live[0].float(), output.taps[0])
    (gradient,) = torch.autograd.grad(output.logits.sum(), output.live[0])
    assert gradient.shape == output.taps[0].shape
    assert not output.detach().logits.requires_grad
