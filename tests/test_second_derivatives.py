"""Methods that take gradients of gradients, on models whose usual kernels have no second derivatives."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from test_methods import CLASSES, batch, build, net, step
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models import VisionTransformer

from kdrun.config.explain import message
from kdrun.methods.taps import Tapped


class Attention(nn.Module):
    """Patches of two pixels as tokens of nn.MultiheadAttention; `kernel` is what the model itself insists on."""

    kernel: SDPBackend | None = None

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x_BCHW):
        tokens_BPD = self.patches(x_BCHW).flatten(2).transpose(1, 2)
        with sdpa_kernel(self.kernel) if self.kernel is not None else nullcontext():
            tokens_BPD = tokens_BPD + self.attend(tokens_BPD, tokens_BPD, tokens_BPD, need_weights=False)[0]
        return self.head(tokens_BPD.mean(1))


class Insists(Attention):
    kernel = SDPBackend.FLASH_ATTENTION


def transformer(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = VisionTransformer(8, 2, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "make", "changes"),
    [("sobolev", transformer, {}), ("sobolev", Attention, {}), ("lwm", Attention, {"taps": ["patches"]})],
    ids=["sobolev transformer", "sobolev attention", "lwm attention"],
)
def test_attention_has_second_derivatives(name, make, changes, autocast):
    """Student and teacher of scaled_dot_product_attention: the term reaches the projections of the attention."""
    student = make()
    distillation, weights = build(name, student=student, teacher=make(seed=1), **changes)
    for tapped in (distillation.student, distillation.teacher):
        tapped.autocast = autocast
    (term,) = (term for term in weights if term != "task")
    terms = step(distillation, {**weights, "task": 0.0})
    assert terms[term].isfinite()
    (projection,) = (p for key, p in student.named_parameters() if key.endswith("in_proj_weight"))
    assert projection.grad.isfinite().all()
    assert projection.grad.abs().max() > 0


def test_again_has_them_too():
    """`.again` runs the model as the first time: a gradient of its input's gradient exists."""
    distillation, _ = build("sobolev", student=transformer(), teacher=transformer())
    student, _ = distillation.run(batch())
    x_BCHW = batch(seed=1)["input"].requires_grad_(True)
    (gradient,) = torch.autograd.grad(student.again(x_BCHW).logits.sum(), x_BCHW, create_graph=True)
    gradient.square().sum().backward()
    assert x_BCHW.grad.isfinite().all()


def test_first_derivatives_keep_the_fast_kernels():
    """A method that needs no second derivatives does not pay for them."""
    distillation, _ = build("kd", student=transformer(), teacher=transformer())
    assert not distillation.student.second
    assert not Tapped(net()).second


class Once(nn.Module):
    """A model with a layer that can be differentiated once, as custom kernels are."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * gradient

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(self.Double.apply(x).square())


@pytest.mark.parametrize("make", [Once, Insists])
def test_a_model_without_second_derivatives_is_told_in_one_sentence(make):
    distillation, weights = build("sobolev", student=make())
    with pytest.raises(RuntimeError) as error:
        step(distillation, weights)
    line = message(error.value)
    assert "no second derivatives" in line
    assert "sobolev" in line
    assert "\n" not in line
