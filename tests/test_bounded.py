"""No method blows up where a student hardly varies: constant logits, dead taps, equal images, a copy of the teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from test_methods import CLASSES, IMAGES, batch, build, net
from torch import Tensor, nn

from kdrun.engine.loop import enter, weighted
from kdrun.methods import (
    afd,
    at,
    bounded,
    cc,
    dist,
    dkd,
    ft,
    irg,
    kd,
    kdsvd,
    lwm,
    mimic,
    nst,
    pkd,
    pkt,
    rkd,
    sobolev,
    sp,
)
from kdrun.methods.bounded import LEAST, LEAST_DEVIATION


def quiet(student: nn.Module, scale: float) -> nn.Module:
    """Every activation and logit times `scale`: the norms' affine part and the head; 0 is a dead network."""
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Linear):
            module.weight.data *= scale
            module.bias.data *= scale
    return student


def zero_head(student: nn.Module, scale: float = 0.0) -> nn.Module:
    student.head.weight.data *= scale
    student.head.bias.data *= scale
    return student


def equal_images(data: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**data, "input": data["input"][:1].expand_as(data["input"]).clone()}


STUDENTS = {
    "head of zeros": zero_head,
    "head of nearly zeros": lambda s: zero_head(s, 1e-6),
    "dead": lambda s: quiet(s, 0.0),
    "nearly dead": lambda s: quiet(s, 1e-4),
    "equal images": lambda s: s,
    "copy of the teacher": lambda s: s,
}


def pushes(name: str, student: nn.Module, teacher: nn.Module | None, data: dict[str, Tensor]) -> list[float]:
    """In each stage the largest push of a method's own losses on a logit, on a tap, and on a parameter of the student."""
    distillation, weights = build(name, student=student, teacher=teacher)
    found = []
    for number, stage in enumerate(distillation.stages):
        enter(distillation, stage)
        distillation.begin_epoch(number, 0)
        kept: list[Tensor] = []
        forward = distillation.student.forward

        def keep(x: Tensor, forward=forward, kept=kept):
            output = forward(x)
            kept.extend([output.logits, *output.taps])
            output.again = forward
            return output

        distillation.student.forward = keep  # type: ignore[method-assign]
        _, terms = distillation(data, stage)
        distillation.student.forward = forward  # type: ignore[method-assign]
        own = {term: value for term, value in terms.items() if term != "task"}
        if name == "label_smoothing" or not own:
            own = terms
        assert all(value.isfinite() for value in own.values()), own
        total = weighted(own, {term: weights[term] for term in own})
        reached = [x for x in (*kept, *student.parameters()) if x.requires_grad]
        if not reached:  # a stage of the method's own layers
            continue
        gradients = torch.autograd.grad(total, reached, allow_unused=True, retain_graph=True)
        assert all(g.isfinite().all() for g in gradients if g is not None)
        found.append(max((g.abs().max().item() for g in gradients if g is not None), default=0.0))
    return found


# Times an ordinary gradient. Batch norms of published connectors multiply by up to 1e-5**-0.5 where their input is constant, as
# in every network that has them: reviewkd has two in a row between a tap and its loss, ft three.
LIMITS = {"reviewkd": 1e4, "ft": 1e7}


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("name", IMAGES)
def test_no_method_blows_up(name, kind):
    """Losses are finite, and no gradient is more than a hundred times the largest that an ordinary student gets.

    A length of 1e-12 or a deviation of 1e-7 in a denominator makes it a million times and more.
    """
    data = batch()
    student = STUDENTS[kind](net())
    teacher = copy.deepcopy(student) if kind == "copy of the teacher" else None
    data = equal_images(data) if kind == "equal images" else data
    ordinary = pushes(name, net(seed=3), None, batch())
    for push, usual in zip(pushes(name, student, teacher, data), ordinary, strict=True):
        assert push <= LIMITS.get(name, 100) * max(usual, 1e-3), f"{push:.3g}, ordinary is {usual:.3g}"


# The divisions themselves ----------------------------------------------------------------------------------------------


def published_unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=1)


def published_standardized(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (1e-7 + x.std(1, keepdim=True))


def slope(function, x: Tensor, towards: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = function(x)
    (gradient,) = torch.autograd.grad((value * towards).sum(), x)
    return value.detach(), gradient


@pytest.mark.parametrize(
    ("ours", "published", "size", "least"),
    [
        (bounded.unit, published_unit, lambda x: x.norm(dim=1, keepdim=True), LEAST),
        (kd.standardize, published_standardized, lambda x: x.std(1, keepdim=True), LEAST_DEVIATION),
    ],
    ids=["unit", "standardize"],
)
@pytest.mark.parametrize("scale", [3.0, 1.0, 0.1, 1e-3, 1e-5, 1e-9, 0.0])
def test_values_are_published_and_gradients_fade(ours, published, size, least, scale):
    """Every value has the published bits; so has the gradient above `least`, and below it is (size / least)^2 of that."""
    torch.manual_seed(0)
    x, towards = scale * torch.randn(7, CLASSES), torch.randn(7, CLASSES)
    (value, gradient), (expected, slopes) = slope(ours, x, towards), slope(published, x, towards)
    assert torch.equal(value, expected)
    share = (size(x) / least).clamp(max=1).square()
    torch.testing.assert_close(gradient, share * slopes.nan_to_num(), rtol=1e-5, atol=0)
    assert gradient.norm(dim=1).max() <= 1.1 * towards.norm(dim=1).max() / least
    ordinary = size(x)[:, 0] >= least
    assert torch.equal(gradient[ordinary], slopes[ordinary])
    assert ordinary.any() == (scale >= 0.1)
    if scale == 0:
        assert not gradient.any()


def maps(scale: float) -> Tensor:
    return scale * torch.randn(6, 4, 4, 4)


def rows(scale: float) -> Tensor:
    return scale * torch.randn(6, 9)


LOSSES = {
    "at": (at.attention_transfer, maps),
    "sp": (sp.similarity_preserving, maps),
    "nst": (nst.neuron_selectivity, maps),
    "ft": (ft.factor_distance, maps),
    "ft collapsed": (ft.collapsed_distance, maps),
    "afd": (lambda s, t: afd.attentive_distance(s, t, torch.full((6, 4, 1, 1), 0.25)), maps),
    "irg edges": (lambda s, t: nn.functional.mse_loss(irg.edges(s), irg.edges(t)), maps),
    "irg transformation": (
        lambda s, t: nn.functional.mse_loss(irg.transformation(s, s.flip(1)), irg.transformation(t, t.flip(1))),
        maps,
    ),
    "kdsvd": (lambda s, t: sum(kdsvd.singular_flow([kdsvd.principal(s, 4)[1]] * 2, [kdsvd.principal(t, 1)] * 2)), maps),
    "lwm": (lwm.map_distance, lambda scale: scale * torch.rand(6, 1, 4, 4)),
    "mimic": (mimic.feature_distance, rows),
    "pkd": (pkd.correlation_distance, maps),
    "cc": (cc.correlation_congruence, rows),
    "pkt": (pkt.probabilistic_transfer, rows),
    "rkd distance": (rkd.rkd_distance, rows),
    "rkd angle": (rkd.rkd_angle, rows),
    "sobolev": (sobolev.sobolev, rows),
    "ls": (lambda s, t: kd.soft_targets(kd.standardize(s), kd.standardize(t), 2.0), rows),
    "standardized dkd": (
        lambda s, t: sum(dkd.decoupled(kd.standardize(s), kd.standardize(t), torch.arange(6), 4.0)),
        rows,
    ),
    "dist inter": (lambda s, t: dist.relations(s, t)[0], rows),
    "dist intra": (lambda s, t: dist.relations(s, t)[1], rows),
    "dist of maps": (lambda s, t: sum(dist.dense_relations(s, t)), maps),
}  # fmt: skip
LENGTHS = {"lwm": 1e-8, "sobolev": 1e-3}  # of gradients, which are small by nature


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_blows_up_at_any_scale(name):
    """From ordinary activations down to zeros, beside a constant and for equal rows: no gradient is above what LEAST allows."""
    torch.manual_seed(0)
    loss, make = LOSSES[name]
    teacher, one = make(1.0), make(1.0)
    students = [make(scale) for scale in (1.0, 1e-2, 1e-3, 1e-4, 1e-6, 1e-9, 1e-20, 0.0)]
    students += [one[:1].expand_as(one), one[:1] + make(1e-6), torch.ones_like(one), 1 + make(1e-6)]
    students += [
        torch.cat([one[:3], one[:3]]),
        teacher,
        teacher + make(1e-6),
        one * (torch.arange(6) > 0).view(6, *[1] * (one.ndim - 1)),
    ]
    pushes = []
    for student in students:
        s = student.clone().requires_grad_()
        value = loss(s, teacher)
        assert value.isfinite()
        (gradient,) = torch.autograd.grad(value, s)
        assert gradient.isfinite().all()
        pushes.append(gradient.abs().max().item())
    assert max(pushes[1:]) <= 20 * pushes[0] / LENGTHS.get(name, LEAST), pushes
