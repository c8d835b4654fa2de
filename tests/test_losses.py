"""What the papers claim of their losses: invariances, limits and special cases, each on small random tensors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_methods import CLASSES, batch, build, step
from torch import nn

from kdrun.engine.loop import enter
from kdrun.errors import KdrunError
from kdrun.methods import (
    ab,
    afd,
    bss,
    cc,
    cwd,
    dist,
    dkd,
    fsp,
    ft,
    irg,
    kd,
    kdsvd,
    label_smoothing,
    logits,
    lwm,
    mgd,
    mimic,
    nst,
    ofd,
    pkt,
    reviewkd,
    sp,
    vid,
)
from kdrun.methods.at import attention_transfer
from kdrun.methods.crd import Rows, contrast, similarities, update
from kdrun.methods.dml import mutual
from kdrun.methods.kd import soft_targets
from kdrun.methods.rkd import rkd_angle, rkd_distance
from kdrun.methods.sobolev import input_gradient


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size)).Q


# Logits ----------------------------------------------------------------------------------------------------------------

TEMPERATURES = [0.01, 1.0, 4.0, 20.0, 30.0, 1e3, 1e4, 1e5, 1e6]


def bss_support(s, t, temperature):
    return temperature**2 * bss.boundary_support(s, t, torch.ones(len(s), dtype=torch.bool), temperature)


DIVERGENCES = {
    "kd": soft_targets,
    "dkd target": lambda s, t, temperature: dkd.decoupled(s, t, torch.arange(len(s)) % CLASSES, temperature)[0],
    "dkd rest": lambda s, t, temperature: dkd.decoupled(s, t, torch.arange(len(s)) % CLASSES, temperature)[1],
    "cwd": lambda s, t, temperature: cwd.channel_divergence(s[:, None, None], t[:, None, None], temperature),
    "bss": bss_support,
}  # fmt: skip


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_exact_at_any_temperature(name, temperature):
    """Value and gradient of float32 logits are those of float64, also where T^2 enlarges what is left of nearly equal numbers."""
    values = []
    s_BK, t_BK = 3 * torch.randn(2, 7, CLASSES)
    for dtype in (torch.float32, torch.float64):
        s = s_BK.to(dtype).requires_grad_()
        value = DIVERGENCES[name](s, t_BK.to(dtype), temperature)
        assert value.dtype == dtype
        values.append((value.detach().double(), torch.autograd.grad(value, s)[0].double()))
    (ours, gradient), (exact, slopes) = values
    torch.testing.assert_close(ours, exact, rtol=1e-3 if temperature > 1 else 1e-5, atol=0)
    torch.testing.assert_close(gradient, slopes, rtol=1e-3, atol=1e-3 * slopes.abs().max().item())


def test_soft_targets_tend_to_matched_logits():
    """The limit of high temperatures: half the variance over classes of the logits' difference (section 2.1 of the paper)."""
    s_BK, t_BK = 5 * torch.randn(2, 7, CLASSES)
    limit = (s_BK - t_BK).var(1, correction=0).mean() / 2
    for temperature in (1e4, 1e5, 1e6):
        torch.testing.assert_close(soft_targets(s_BK, t_BK, temperature), limit, rtol=20 / temperature, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", [*DIVERGENCES, "dist"])
def test_divergences_are_never_negative(name, temperature):
    """A student that all but equals its teacher pays nothing or next to it; rounding does not pay it."""

    def relations(s, t, temperature):
        return torch.stack(dist.relations(s, t, temperature)).min()

    loss = {**DIVERGENCES, "dist": relations}[name]
    for scale in (1e-7, 1e-5, 1e-3):
        t_BK = torch.randn(64, CLASSES)
        assert loss(t_BK + scale * torch.randn(64, CLASSES), t_BK, temperature) >= 0


def test_standardized_logits_forget_range_and_mean():
    """Scaling by a positive number and shifting an image's logits changes nothing after standardization, in value or order."""
    s_BK, t_BK = torch.randn(2, 7, CLASSES)
    expected = soft_targets(kd.standardize(s_BK), kd.standardize(t_BK), 2.0)
    scale_B1, shift_B1 = torch.rand(7, 1) + 0.5, torch.randn(7, 1)
    moved = soft_targets(kd.standardize(scale_B1 * s_BK + shift_B1), kd.standardize(3 * t_BK), 2.0)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(kd.standardize(s_BK).argsort(1), s_BK.argsort(1))


def test_logit_matching_variants_differ_by_half_the_classes():
    """The paper's sum over K, halved, is K / 2 times the mean."""
    s_BK, t_BK = torch.randn(2, 7, CLASSES)
    mean, paper = (logits.logit_matching(s_BK, t_BK, variant) for variant in ("code", "paper"))
    torch.testing.assert_close(paper, mean * CLASSES / 2)


def test_decoupled_parts_make_up_soft_targets():
    """Soft targets = target part + (1 - p_y of the teacher) * rest, for a single image, at any temperature."""
    for temperature in (1.0, 4.0):
        s_BK, t_BK, label_B = torch.randn(1, CLASSES), torch.randn(1, CLASSES), torch.tensor([3])
        target, rest = dkd.decoupled(s_BK, t_BK, label_B, temperature)
        others = 1 - (t_BK / temperature).softmax(1)[0, 3]
        torch.testing.assert_close(target + others * rest, soft_targets(s_BK, t_BK, temperature), rtol=1e-4, atol=1e-6)


def test_decoupled_is_finite_where_the_teacher_is_certain():
    s_BK = torch.randn(4, CLASSES, requires_grad=True)
    label_B = torch.tensor([0, 1, 2, 3])
    target, rest = dkd.decoupled(s_BK, 1e3 * F.one_hot(label_B, CLASSES).float(), label_B, 1.0)
    (target + rest).backward()
    assert target.isfinite()
    assert rest.isfinite()
    assert s_BK.grad.isfinite().all()


def test_dist_sees_correlation_alone():
    """A positive scale and a shift of each row change nothing; the opposite row costs 2."""
    s_BK, t_BK = torch.randn(2, 7, CLASSES)
    scale_B1, shift_B1 = torch.rand(7, 1) + 0.5, torch.randn(7, 1)
    torch.testing.assert_close(dist.decorrelation(scale_B1 * s_BK + shift_B1, t_BK), dist.decorrelation(s_BK, t_BK))
    torch.testing.assert_close(dist.decorrelation(-t_BK, t_BK), torch.tensor(2.0))


def test_label_smoothing_is_cross_entropy_with_smoothed_labels():
    """torch's own, and between plain cross-entropy (0) and divergence from uniform (1)."""
    logits_BK, label_B = torch.randn(7, CLASSES), torch.arange(7) % CLASSES
    for smoothing in (0.0, 0.1, 0.7):
        ours = label_smoothing.smoothed_cross_entropy(logits_BK, label_B, smoothing)
        torch.testing.assert_close(ours, F.cross_entropy(logits_BK, label_B, label_smoothing=smoothing))


def test_label_smoothing_replaces_the_supervised_loss():
    """The task term is the smoothed one, above the plain one of the same weights."""
    plain, smoothed = step(*build("none"))["task"], step(*build("label_smoothing"))["task"]
    assert smoothed != plain
    assert step(*build("label_smoothing", smoothing=1e-6))["task"] == pytest.approx(plain.item(), rel=1e-4)


# Relations -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [sp.similarity_preserving, pkt.probabilistic_transfer, cc.correlation_congruence, lambda s, t: F.mse_loss(irg.edges(s), irg.edges(t))],
    ids=["sp", "pkt", "cc", "irg edges"],
)  # fmt: skip
def test_relations_ignore_rotation_scale_and_order(loss):
    """Rotating or scaling all embeddings of one side, or shuffling the batch, changes nothing; nothing to pay for a rotated copy."""
    s_BD, t_BD = torch.randn(7, 5), torch.randn(7, 9)
    expected, turned_BD = loss(s_BD, t_BD), 3 * s_BD @ rotation(5)
    torch.testing.assert_close(loss(turned_BD, t_BD), expected, rtol=1e-4, atol=1e-7)
    order = torch.randperm(7)
    torch.testing.assert_close(loss(s_BD[order], t_BD[order]), expected, rtol=1e-4, atol=1e-7)
    assert abs(loss(turned_BD, s_BD)) < 1e-6 * expected.abs().clamp(min=1e-2) + 1e-9
    assert abs(expected) > 1e-5


def test_irg_edges_ignore_a_shift():
    """Distances do not change when all embeddings move together; the largest is 1, the diagonal 0."""
    x_BD = torch.randn(7, 5)
    torch.testing.assert_close(irg.edges(x_BD + torch.randn(5)), irg.edges(x_BD), rtol=1e-4, atol=1e-5)
    assert irg.edges(x_BD).max() == 1
    assert (irg.edges(x_BD).diagonal() == 0).all()


def test_irg_averages_neighbouring_channels_and_pools():
    """A layer of twice the channels and half the side is compared after averaging both down."""
    first_BCHW, second_BCHW = torch.randn(5, 4, 6, 6), torch.randn(5, 8, 3, 3)
    down = F.avg_pool2d(first_BCHW, 2), second_BCHW.view(5, 4, 2, 3, 3).mean(2)
    torch.testing.assert_close(irg.transformation(first_BCHW, second_BCHW), irg.transformation(*down))


def test_relations_are_finite_for_a_single_image_and_for_equal_ones():
    """The last batch may be one image; all relations stay finite, with finite gradients."""
    for rows in (torch.randn(1, 5), torch.ones(3, 5)):
        for loss in (sp.similarity_preserving, pkt.probabilistic_transfer, cc.correlation_congruence):
            s_BD = rows.clone().requires_grad_()
            value = loss(s_BD, torch.randn(len(rows), 9))
            value.backward()
            assert value.isfinite()
            assert s_BD.grad.isfinite().all()
        s_BD = rows.clone().requires_grad_()
        F.mse_loss(irg.edges(s_BD), irg.edges(torch.randn(len(rows), 9))).backward()
        assert s_BD.grad.isfinite().all()


def test_cc_series_tends_to_the_gaussian_kernel():
    """With enough terms the Taylor series is exp(-gamma ||x_i - x_j||^2) of unit-length rows."""
    x_BD = F.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1)
    expected_BB = (-0.4 * torch.cdist(x_BD, x_BD).square()).exp()
    torch.testing.assert_close(cc.correlation(x_BD, 0.4, 12), expected_BB, rtol=1e-6, atol=1e-8)
    assert (cc.correlation(x_BD, 0.4, 2) - expected_BB).abs().max() < 0.06


# Feature maps -----------------------------------------------------------------------------------------------------------


def test_nst_ignores_channel_order_and_scale():
    """A distribution over channels has no order; a channel's size does not matter; a copy costs nothing."""
    s_BCHW, t_BCHW = torch.randn(5, 6, 4, 3), torch.randn(5, 9, 4, 3)
    expected = nst.neuron_selectivity(s_BCHW, t_BCHW)
    scaled_BCHW = s_BCHW[:, torch.randperm(6)] * (torch.rand(5, 6, 1, 1) + 0.5)
    torch.testing.assert_close(nst.neuron_selectivity(scaled_BCHW, t_BCHW), expected)
    assert expected > 1e-3
    assert nst.neuron_selectivity(t_BCHW[:, torch.randperm(9)], t_BCHW) < 1e-6


def test_fsp_ignores_where_things_happen():
    """Moving the positions of both layers alike leaves the flow as it is."""
    first_BCHW, second_BCHW = torch.randn(5, 3, 4, 4), torch.randn(5, 6, 4, 4)
    order = torch.randperm(16)
    moved = [x.flatten(2)[:, :, order].view_as(x) for x in (first_BCHW, second_BCHW)]
    torch.testing.assert_close(fsp.flow(*moved), fsp.flow(first_BCHW, second_BCHW))
    assert fsp.flow(first_BCHW, F.max_pool2d(second_BCHW, 2), "maximum").shape == (5, 3, 6)


def test_fsp_paper_sums_what_code_averages():
    s_BCC, t_BCC = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(fsp.flow_distance(s_BCC, t_BCC, "paper"), 12 * fsp.flow_distance(s_BCC, t_BCC))


def test_ft_ignores_the_size_of_a_factor_and_pools():
    s_BCHW, t_BCHW = torch.randn(5, 6, 8, 8), torch.randn(5, 6, 4, 4)
    expected = ft.factor_distance(F.avg_pool2d(s_BCHW, 2), t_BCHW)
    torch.testing.assert_close(ft.factor_distance(3 * s_BCHW, 0.1 * t_BCHW), expected)


def test_ft_trains_the_paraphraser_first_and_alone():
    """Stage one moves encoder and decoder, stage two the student and its translator, with the paraphraser as it was."""
    distillation, weights = build("ft")
    method = distillation.methods["ft"]
    state = lambda module: [p.detach().clone() for p in module.parameters()]  # noqa: E731
    same = lambda module, before: all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))  # noqa: E731
    before = {name: state(getattr(method, name)) for name in ("encoder", "decoder", "translator")}
    student = state(distillation.student)
    step(distillation, weights, 0)
    assert same(distillation.student, student)
    assert same(method.translator, before["translator"])
    assert not same(method.encoder, before["encoder"])
    assert not same(method.decoder, before["decoder"])
    trained = state(method.encoder)
    step(distillation, weights, 1)
    assert same(method.encoder, trained)
    assert not same(method.translator, before["translator"])
    assert not same(distillation.student, student)


def test_ab_asks_for_a_side_and_a_margin():
    """Nothing to pay beyond the margin on the teacher's side; only the sign of the teacher counts."""
    t = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    s = torch.tensor([3.0, 2.0, -1.0, -3.0, -2.0, 1.0])
    assert ab.boundary(s, t, 2.0).tolist() == [0, 0, 9, 0, 0, 9]
    assert torch.equal(ab.boundary(s, 7 * t, 2.0), ab.boundary(s, t, 2.0))


def test_ab_paper_halves_earlier_layers():
    layers = [(torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)) for _ in range(2)]
    one, two = (ab.boundaries([layer], 1.0, "paper") for layer in layers)
    torch.testing.assert_close(ab.boundaries(layers, 1.0, "paper"), one / 2 + two)


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_an_initial_stage_leaves_what_lies_behind_it(name):
    """The first stage trains the student up to the last tap and leaves the head alone."""
    distillation, weights = build(name)
    before = {key: value.clone() for key, value in distillation.student.module.state_dict().items()}
    step(distillation, weights, 0)
    after = distillation.student.module.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert any(key.startswith("layer3") for key in moved)
    assert not any(key.startswith("head") for key in moved)


def test_vid_is_least_at_the_mean_squared_error():
    """For a given prediction the best variance of a channel is its mean squared error: the Gaussian's likelihood."""
    mean_BCHW, t_BCHW = torch.randn(2, 5, 3, 4, 4)
    best_C = (mean_BCHW - t_BCHW).square().mean((0, 2, 3))
    least = vid.negative_log_likelihood(mean_BCHW, t_BCHW, best_C)
    for factor in (0.8, 1.25):
        assert vid.negative_log_likelihood(mean_BCHW, t_BCHW, factor * best_C) > least


def test_vid_trains_its_variances():
    """They start where the yaml says, and a step moves them."""
    distillation, weights = build("vid")
    gaussian = distillation.methods["vid"].gaussians[0]
    torch.testing.assert_close(F.softplus(gaussian.scale) + 1e-6, torch.full_like(gaussian.scale, 5.0))
    before = gaussian.scale.detach().clone()
    step(distillation, weights)
    assert not torch.equal(gaussian.scale, before)


def test_ofd_leaves_a_student_that_stays_silent_with_its_teacher():
    """Below a silent teacher nothing is paid; above it, and for an active one, the squared distance."""
    t_BCHW = torch.tensor([-0.5, -0.5, 2.0, -9.0]).view(1, 1, 2, 2)
    s_BCHW = torch.tensor([-3.0, 0.5, 1.0, 0.0]).view(1, 1, 2, 2)
    paid = ofd.partial_distance(s_BCHW, t_BCHW, torch.tensor([-1.0])).flatten()
    assert paid.tolist() == [0, 1, 1, 1]  # the last: max(-9, -1) = -1


def test_ofd_margins():
    """The batch's mean of negative values, and what batch norm says it is, agree for a normal channel; 0 without negatives."""
    weight_C, bias_C = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, -1.0, 0.2])
    x_BCHW = (torch.randn(400, 3, 20, 20) * weight_C.abs()[:, None, None]) + bias_C[:, None, None]
    torch.testing.assert_close(ofd.batch_margin(x_BCHW), ofd.expected_margin(weight_C, bias_C), rtol=0.02, atol=0)
    assert ofd.batch_margin(torch.ones(2, 3, 4, 4)).tolist() == [0, 0, 0]
    assert ofd.expected_margin(torch.tensor([0.1]), torch.tensor([5.0])).item() == pytest.approx(-0.3)


def test_ofd_paper_takes_the_batch_norm_before_the_tap():
    """The margin comes from the teacher's own layer, which is no layer of the method's."""
    distillation, weights = build("ofd", variant="paper")
    method = distillation.methods["ofd"]
    teacher = distillation.teacher.module
    assert method.norms == [teacher.layer1[-1].bn2, teacher.layer2[-1].bn2, teacher.layer3[-1].bn2]
    assert not any("norms" in key for key in distillation.state_dict())
    assert step(distillation, weights)["ofd.distance"].isfinite()


def test_afd_attention_sums_to_one_and_maps_have_unit_length():
    t_BCHW, s_BCHW = torch.randn(2, 5, 6, 4, 4)
    attention_BC11 = afd.ChannelAttention(6, 3)(t_BCHW)
    torch.testing.assert_close(attention_BC11.sum(1).flatten(), torch.ones(5))
    expected = afd.attentive_distance(s_BCHW, t_BCHW, attention_BC11)
    scaled = afd.attentive_distance(2 * s_BCHW, t_BCHW, attention_BC11)
    torch.testing.assert_close(scaled, expected, rtol=1e-4, atol=0)


def test_cwd_sees_where_and_not_how_much():
    """A constant added to a channel changes nothing; the loss is the divergence of positions, per channel."""
    s_BCHW, t_BCHW = torch.randn(2, 5, 6, 4, 3)
    expected = cwd.channel_divergence(s_BCHW, t_BCHW, 4.0)
    torch.testing.assert_close(cwd.channel_divergence(s_BCHW + torch.randn(5, 6, 1, 1), t_BCHW, 4.0), expected)
    rows = s_BCHW.flatten(0, 1).flatten(1), t_BCHW.flatten(0, 1).flatten(1)
    torch.testing.assert_close(expected, soft_targets(*rows, 4.0))


def test_mgd_hides_the_share_that_it_is_told():
    """Whole channels, or positions of all channels, each with the stated probability, from the method's own stream."""
    x_BCHW = torch.randn(200, 50, 4, 4)
    draw = lambda mode, seed: mgd.keep_mask(x_BCHW, 0.15, mode, torch.Generator().manual_seed(seed))  # noqa: E731
    channels, positions = draw("channel", 0), draw("spatial", 0)
    assert channels.shape == (200, 50, 1, 1)
    assert positions.shape == (200, 1, 4, 4)
    assert channels.mean().item() == pytest.approx(0.85, abs=0.02)
    assert torch.equal(channels, draw("channel", 0))
    assert not torch.equal(channels, draw("channel", 1))


def test_mimic_ignores_length_when_told():
    s_BD, t_BD = torch.randn(2, 5, 7)
    expected = mimic.feature_distance(s_BD, t_BD)
    torch.testing.assert_close(mimic.feature_distance(3 * s_BD, t_BD), expected)
    assert mimic.feature_distance(3 * s_BD, t_BD, normalize=False) != mimic.feature_distance(
        s_BD, t_BD, normalize=False
    )


def test_kdsvd_ignores_signs_and_positions():
    """Singular vectors have no sign and see no order of positions: neither changes the loss."""
    student, teacher = ([torch.randn(4, c, 5, 5) for c in (6, 8)] for _ in range(2))

    def loss(s_maps, t_maps):
        return sum(
            kdsvd.singular_flow([kdsvd.principal(s, 4)[1] for s in s_maps], [kdsvd.principal(t, 1) for t in t_maps])
        )

    expected = loss(student, teacher)
    order = torch.randperm(25)
    moved = [x.flatten(2)[:, :, order].view_as(x) for x in student]
    torch.testing.assert_close(loss(moved, teacher), expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(loss([-x for x in student], [-x for x in teacher]), expected, rtol=1e-3, atol=1e-6)
    assert loss(teacher, teacher) < 1e-6


def test_kdsvd_principal_is_the_singular_decomposition():
    """Values and vectors, up to sign, are those of LAPACK's decomposition of the (H*W, C) matrix."""
    x_BCHW = torch.randn(4, 6, 5, 5)
    values_Bk, vectors_BCk = kdsvd.principal(x_BCHW, 3)
    _, singular_BC, right_BCC = torch.linalg.svd(x_BCHW.flatten(2).transpose(1, 2), full_matrices=False)
    torch.testing.assert_close(values_Bk, F.normalize(singular_BC[:, :3], dim=1), rtol=1e-4, atol=1e-5)
    cosine_Bk = (vectors_BCk * right_BCC.transpose(1, 2)[:, :, :3]).sum(1).abs()
    torch.testing.assert_close(cosine_Bk, torch.ones(4, 3), rtol=1e-3, atol=0)


def test_kdsvd_has_a_finite_gradient_for_an_empty_map():
    for same_BCHW in (torch.zeros(2, 4, 3, 3), torch.eye(9).view(1, 9, 3, 3)):  # all singular values are equal
        x_BCHW = same_BCHW.clone().requires_grad_()
        kdsvd.principal(x_BCHW, 3)[1].sum().backward()
        assert x_BCHW.grad.isfinite().all()


def test_reviewkd_pyramid():
    """Levels that are not smaller than the map are left out, and weights are divided by their sum."""
    one_BCHW = torch.randn(5, 3, 1, 1)
    torch.testing.assert_close(reviewkd.hierarchical_context(one_BCHW, 2 * one_BCHW), one_BCHW.square().mean())
    shifted_BCHW = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(reviewkd.hierarchical_context(shifted_BCHW + 2, shifted_BCHW), torch.tensor(4.0))


def test_reviewkd_lets_deep_layers_reach_shallow_comparisons():
    """The loss of the shallowest level alone has a gradient in every tap of the student."""
    review = reviewkd.Review([4, 6, 8], [5, 7, 9])
    taps = [torch.randn(3, c, side, side, requires_grad=True) for c, side in ((4, 8), (6, 4), (8, 2))]
    fused = review(taps, [tap.shape[2:] for tap in taps])
    assert [tuple(x.shape[1:]) for x in fused] == [(5, 8, 8), (7, 4, 4), (9, 2, 2)]
    fused[0].sum().backward()
    assert all(tap.grad is not None for tap in taps)


# Gradients ---------------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Average pooling and a linear head: its Grad-CAM is known in closed form."""

    def __init__(self, channels: int):
        super().__init__()
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x_BCHW):
        return self.head(x_BCHW.mean((2, 3)))


def test_lwm_paper_is_class_activation_mapping():
    """For average pooling and a linear head, Grad-CAM is the map weighed by the head's weights of the class, over H*W."""
    model, x_BCHW = Linear(6), torch.randn(5, 6, 4, 3, requires_grad=True)
    label_B = torch.arange(5) % CLASSES
    ours_B1HW = lwm.activation_map(model(x_BCHW), x_BCHW, label_B, "paper", create_graph=False)
    weights_BC11 = model.head.weight[label_B][:, :, None, None]
    torch.testing.assert_close(ours_B1HW, F.relu((weights_BC11 * x_BCHW).sum(1, keepdim=True)) / 12)


def test_lwm_says_when_a_tap_does_not_reach_the_logits():
    x_BCHW = torch.randn(2, 3, 4, 4, requires_grad=True)
    logits_BK = torch.randn(2, CLASSES, requires_grad=True) * 1
    with pytest.raises(KdrunError, match=r"the logits do not depend on method.lwm.taps"):
        lwm.activation_map(logits_BK, x_BCHW, torch.zeros(2, dtype=torch.long), "code", create_graph=False)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_bss_attack_crosses_the_boundary_and_stops(variant):
    """Images of the base class end nearer to the target class, most of them over the boundary; others only are clamped."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
    x_BCHW = torch.rand(40, 3, 2, 2)
    logits_BK = model(x_BCHW).detach()
    base_B, target_B = logits_BK.topk(2, dim=1).indices.T
    base_B = torch.where(
        torch.arange(40) < 30, base_B, logits_BK.argmin(1)
    )  # the last ten are not taken for their base
    moved_BCHW = bss.attack(model, x_BCHW, base_B, target_B, variant)
    gap = lambda x: (model(x).gather(1, base_B[:, None]) - model(x).gather(1, target_B[:, None]))[:30].mean()  # noqa: E731
    assert gap(moved_BCHW) < 0.7 * gap(x_BCHW)
    assert torch.equal(moved_BCHW[30:], x_BCHW[30:])
    assert not moved_BCHW.requires_grad
    assert moved_BCHW.abs().max() <= bss.LIMIT


def test_bss_attacks_what_both_networks_get_right():
    """Only those are fit, largest disagreement on the other classes first; the loss is their mean, and 0 without any."""
    label_B = torch.zeros(4, dtype=torch.long)
    right, wrong = torch.tensor([4.0, 0, 0, 0, 0]), torch.tensor([0.0, 4, 0, 0, 0])
    other = torch.tensor([4.0, 3, 0, 0, 0])
    s_BK, t_BK = torch.stack([right, right, wrong, right]), torch.stack([right, other, right, wrong])
    rows, fit_B = bss.base_samples(s_BK, t_BK, label_B, 3)
    assert rows[:2].tolist() == [1, 0]
    assert fit_B.tolist() == [True, True, False]
    assert bss.boundary_support(s_BK, t_BK, torch.zeros(4, dtype=torch.bool), 3.0) == 0
    first = torch.tensor([False, True, False, False])
    expected = soft_targets(s_BK[1:2], t_BK[1:2], 3.0) / 9
    torch.testing.assert_close(bss.boundary_support(s_BK, t_BK, first, 3.0), expected)


def test_bss_draws_targets_by_the_teachers_probabilities():
    """Never the label; the others as often as the teacher believes, and any of them where it is certain of the label."""
    t_BK = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.0]).repeat(4000, 1)
    drawn = bss.target_classes(t_BK, torch.zeros(4000, dtype=torch.long), torch.Generator().manual_seed(0))
    share_K = torch.bincount(drawn, minlength=CLASSES) / 4000
    expected_K = t_BK[0, 1:].softmax(0)
    assert share_K[0] == 0
    torch.testing.assert_close(share_K[1:], expected_K, rtol=0, atol=0.03)
    certain_BK = 1e4 * F.one_hot(torch.zeros(8, dtype=torch.long), CLASSES).float()
    assert (bss.target_classes(certain_BK, torch.zeros(8, dtype=torch.long), torch.Generator()) > 0).all()


def test_crd_relaxed_positives_are_of_the_images_class():
    """Each row of the class is drawn equally often, rows of the holdout never."""
    rows, generator = Rows(UNEVEN, 5, torch.device("cpu")), torch.Generator().manual_seed(0)
    for label in range(3):
        drawn = rows.positives(torch.full((2000,), label), generator)
        counts = torch.bincount(drawn, minlength=len(UNEVEN))
        assert (counts > 0).tolist() == (label == UNEVEN).tolist()
        assert counts[counts > 0].min() > 0.6 * counts.max()


def test_crd_relaxed_trains():
    assert step(*build("crd", positive="relaxed"))["crd.contrast"].isfinite()


def test_crd_says_how_large_its_banks_are():
    """Banks that cannot fit stop before they are made."""
    with pytest.raises(KdrunError, match=r"crd's two memory banks of 24 x 100,000,000,000 need 17,881.4 GiB of the"):
        build("crd", dim=100_000_000_000)


# KD and DML -----------------------------------------------------------------------------------------------------------


def test_kd_at_high_temperature_matches_centred_logits():
    """As T grows the loss tends to half the squared distance of centred logits over K (section 2.1 of the paper)."""
    s_BK, t_BK = torch.randn(2, 7, CLASSES, dtype=torch.float64)
    centred_BK = (s_BK - t_BK) - (s_BK - t_BK).mean(1, keepdim=True)
    expected = centred_BK.square().sum(1).mean() / (2 * CLASSES)
    torch.testing.assert_close(soft_targets(s_BK, t_BK, 1e4), expected, rtol=1e-3, atol=0)


def test_kd_ignores_a_shift_of_the_logits():
    """A constant added to an image's logits, of student or teacher, changes nothing."""
    s_BK, t_BK = torch.randn(2, 7, CLASSES)
    shifted = soft_targets(s_BK + torch.randn(7, 1), t_BK + torch.randn(7, 1), 4.0)
    torch.testing.assert_close(shifted, soft_targets(s_BK, t_BK, 4.0))


def test_kd_is_a_divergence():
    """Positive for different predictions, and finite where the teacher is certain."""
    s_BK, t_BK = torch.randn(2, 7, CLASSES)
    assert soft_targets(s_BK, t_BK, 1.0) > 0
    assert soft_targets(s_BK, F.one_hot(torch.arange(7) % CLASSES) * 1e4, 1.0).isfinite()


def test_dml_averages_over_peers_and_detaches_them():
    """The mean over the n - 1 peers; a network's loss moves that network alone."""
    logits = [torch.randn(7, CLASSES, requires_grad=True) for _ in range(3)]
    losses = mutual(logits)
    expected = (soft_targets(logits[0], logits[1], 1.0) + soft_targets(logits[0], logits[2], 1.0)) / 2
    torch.testing.assert_close(losses[0], expected)
    losses[0].backward()
    assert logits[0].grad is not None
    assert logits[1].grad is None
    assert logits[2].grad is None


def test_dml_evaluates_its_peers():
    """Peers stand beside the student in the evaluation, and three networks mean two of them."""
    distillation, _ = build("dml", networks=3)
    assert list(distillation.stages[0].evaluates) == ["student", "peer1", "peer2"]


# AT -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_at_ignores_scale_sign_and_channel_order(variant):
    """A map's size, the sign of its channels and their order do not matter."""
    s_BCHW, t_BCHW = torch.randn(5, 6, 4, 3), torch.randn(5, 9, 4, 3)
    expected = attention_transfer(s_BCHW, t_BCHW, 2.0, variant)
    moved = attention_transfer(-7 * s_BCHW.flip(1), 0.1 * t_BCHW, 2.0, variant)
    torch.testing.assert_close(moved, expected)


def test_at_pools_the_larger_map_whichever_it_is():
    """Maps of different size meet at the smaller one, on either side."""
    large_BCHW, small_BCHW = torch.randn(5, 6, 8, 6), torch.randn(5, 9, 4, 3)
    pooled_BCHW = F.avg_pool2d(large_BCHW, 2)
    torch.testing.assert_close(attention_transfer(large_BCHW, small_BCHW), attention_transfer(pooled_BCHW, small_BCHW))
    torch.testing.assert_close(attention_transfer(small_BCHW, large_BCHW), attention_transfer(small_BCHW, pooled_BCHW))


def test_at_averages_over_its_pairs_of_layers():
    """The term is the mean over the taps (KD-Zoo), so its weight does not depend on how many there are."""
    one = [step(*build("at", taps=[tap]))["at.attention"] for tap in ("stage1", "stage3")]
    both = step(*build("at", taps=["stage1", "stage3"]))["at.attention"]
    torch.testing.assert_close(both, torch.stack(one).mean())


# RKD ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_rkd_sees_relations_alone(loss):
    """Rotating, moving and scaling the embeddings changes nothing, nor does the order of the batch."""
    s_BD, t_BD = torch.randn(7, 5), torch.randn(7, 9)
    rotation_DD = torch.linalg.qr(torch.randn(5, 5)).Q
    expected = loss(s_BD, t_BD)
    assert expected > 1e-3
    torch.testing.assert_close(loss(3 * s_BD @ rotation_DD + torch.randn(5), t_BD), expected, rtol=1e-4, atol=1e-6)
    order = torch.randperm(7)
    torch.testing.assert_close(loss(s_BD[order], t_BD[order]), expected, rtol=1e-4, atol=1e-6)
    assert loss(3 * s_BD @ rotation_DD, s_BD) < 1e-6


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
@pytest.mark.parametrize("rows", [[0, 1, 0, 2, 2], [0, 0, 0, 0], [0]], ids=["repeated", "all alike", "one image"])
def test_rkd_has_a_finite_gradient_with_repeated_images(loss, rows):
    """Distances of zero, and a batch of one, give finite losses and gradients."""
    s_BD = torch.randn(3, 5)[rows].requires_grad_()
    value = loss(s_BD, torch.randn(3, 9)[rows])
    value.backward()
    assert value.isfinite()
    assert s_BD.grad.isfinite().all()


# CRD ------------------------------------------------------------------------------------------------------------------

UNEVEN = torch.tensor([0] * 4 + [1] * 7 + [2] * 9 + [-1] * 5)[torch.randperm(25, generator=torch.Generator().manual_seed(0))]  # fmt: skip


@pytest.mark.parametrize("count", [1, 5, 16384])
def test_crd_negatives_are_distinct_rows_of_other_classes(count):
    """Never the image's own class, never a row twice, never a row of the holdout, never more than there are."""
    negatives = Rows(UNEVEN, count, torch.device("cpu"))
    assert negatives.count == min(count, 4 + 7)  # the largest class has that many rows outside it
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        label_B = torch.randint(0, 3, (6,), generator=generator)
        drawn_BK = negatives.negatives(label_B, generator)
        assert drawn_BK.shape == (6, negatives.count)
        classes_BK = UNEVEN[drawn_BK]
        assert (classes_BK >= 0).all()
        assert (classes_BK != label_B[:, None]).all()
        assert all(len(set(row)) == negatives.count for row in drawn_BK.tolist())


def test_crd_negatives_are_uniform():
    """Each row of another class is drawn equally often: chi-square over 3,000 draws, at about five sigma."""
    negatives, generator = Rows(UNEVEN, 3, torch.device("cpu")), torch.Generator().manual_seed(0)
    draws = torch.stack([negatives.negatives(torch.tensor([1]), generator) for _ in range(3000)]).flatten()
    observed = torch.bincount(draws, minlength=len(UNEVEN))[(UNEVEN >= 0) & (UNEVEN != 1)].double()
    expected = len(draws) / len(observed)
    degrees = len(observed) - 1
    assert ((observed - expected) ** 2 / expected).sum() < degrees + 5 * (2 * degrees) ** 0.5


def test_crd_draws_from_its_own_stream():
    """The same stream gives the same negatives; one class alone is an error in one sentence."""
    negatives, label_B = Rows(UNEVEN, 5, torch.device("cpu")), torch.tensor([0, 1, 2])
    first, second, third = (negatives.negatives(label_B, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    with pytest.raises(KdrunError, match="at least two classes"):
        Rows(torch.zeros(5, dtype=torch.long), 5, torch.device("cpu"))


def test_crd_scoring_then_gathering_is_gathering_then_scoring():
    """One product with the whole bank gives what the published (B, K, D) gather gives."""
    anchor_BD, bank_ND = F.normalize(torch.randn(4, 6), dim=1), F.normalize(torch.randn(11, 6), dim=1)
    contrast_BK = torch.randint(0, 11, (4, 5))
    expected_BK = torch.einsum("bd,bkd->bk", anchor_BD, bank_ND[contrast_BK]).div(0.1).exp()
    torch.testing.assert_close(similarities(anchor_BD, bank_ND, contrast_BK, 0.1), expected_BK)


def test_crd_fixes_z_at_the_first_batch():
    """Z is set once, is the mean score times the rows, and later batches use it as it is."""
    bank_s, bank_t = F.normalize(torch.randn(2, 11, 6), dim=2)
    s_BD, t_BD = F.normalize(torch.randn(2, 4, 6), dim=2)
    contrast_BK = torch.randint(0, 11, (4, 5))
    _, z = contrast(s_BD, t_BD, bank_s, bank_t, contrast_BK, 0.1, torch.full((2,), -1.0))
    torch.testing.assert_close(z[0], similarities(s_BD, bank_t, contrast_BK, 0.1).mean() * 11)
    _, later = contrast(t_BD, s_BD, bank_s, bank_t, contrast_BK, 0.1, z)
    assert torch.equal(later, z)

    distillation, weights = build("crd")
    method = distillation.methods["crd"]
    assert (method.z < 0).all()
    step(distillation, weights)
    first = method.z.clone()
    assert (first > 0).all()
    step(distillation, weights, seed=1)
    assert torch.equal(method.z, first)


def test_crd_updates_the_rows_of_the_batch_alone():
    """The bank's other rows keep their bits; the batch's move towards their embeddings at unit length."""
    bank_ND, s_BD = F.normalize(torch.randn(11, 6), dim=1), F.normalize(torch.randn(3, 6), dim=1)
    before, index_B = bank_ND.clone(), torch.tensor([7, 2, 5])
    update(bank_ND, index_B, s_BD, 0.5)
    others = [row for row in range(11) if row not in index_B]
    assert torch.equal(bank_ND[others], before[others])
    torch.testing.assert_close(bank_ND.norm(dim=1), torch.ones(11))
    assert ((bank_ND[index_B] * s_BD).sum(1) > (before[index_B] * s_BD).sum(1)).all()


def test_crd_momentum_is_what_the_bank_keeps():
    """momentum 0.9 keeps nine tenths of a row and takes one of the new embedding, by hand; each bank takes its own side's."""
    bank_ND, s_BD = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    update(bank_ND, torch.tensor([0]), s_BD, 0.9)
    length = (0.9**2 + 0.1**2) ** 0.5
    torch.testing.assert_close(bank_ND, torch.tensor([[0.9 / length, 0.1 / length], [0.0, 1.0]]))

    distillation, weights = build("crd", momentum=0.9)
    method, images = distillation.methods["crd"], batch()
    before = method.bank_student.clone(), method.bank_teacher.clone()
    step(distillation, {**weights, "crd.contrast": 1e-9, "task": 1e-9})
    _, s_BD, t_BD, _ = method._pending
    banks = method.bank_student, method.bank_teacher
    for old_ND, bank_ND, new_BD in zip(before, banks, (s_BD, t_BD), strict=True):
        moved_BD = F.normalize(0.9 * old_ND[images["index"]] + 0.1 * new_BD, dim=1)
        torch.testing.assert_close(bank_ND[images["index"]], moved_BD)
    assert not torch.allclose(s_BD, t_BD, atol=1e-2)
    enter(distillation, distillation.stages[0])
    _, teacher = distillation.run(images)
    pooled_BD = teacher.taps[0].flatten(1)
    torch.testing.assert_close(F.normalize(method.embed_teacher(pooled_BD), dim=1), t_BD, rtol=1e-2, atol=1e-3)


# Sobolev --------------------------------------------------------------------------------------------------------------


def test_sobolev_input_gradient_is_the_slope_of_the_true_logit():
    """The gradient along random directions equals a central difference of the true-class logits."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(CLASSES)).double()
    x_BCHW = torch.randn(3, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    label_B = torch.tensor([0, 3, 1])
    gradient_BD = input_gradient(model(x_BCHW), x_BCHW, label_B, create_graph=False)
    for _ in range(3):
        direction_BCHW = torch.randn_like(x_BCHW)
        ahead, behind = (model(x_BCHW + h * direction_BCHW) for h in (1e-5, -1e-5))
        slope_B = (ahead - behind).gather(1, label_B[:, None])[:, 0] / 2e-5
        ours_B = (gradient_BD * direction_BCHW.flatten(1)).sum(1)
        torch.testing.assert_close(ours_B, slope_B, rtol=1e-5, atol=1e-6)


def test_sobolev_leaves_no_gradient_in_the_images_or_the_teacher():
    """The caller's batch keeps its tensor without a gradient, and the student learns through the second derivative."""
    distillation, weights = build("sobolev")
    images = batch()
    enter(distillation, distillation.stages[0])
    _, terms = distillation(images, distillation.stages[0])
    (weights["sobolev.gradient"] * terms["sobolev.gradient"]).backward()
    assert images["input"].grad is None
    assert not images["input"].requires_grad
    assert all(p.grad is None for p in distillation.teacher.parameters())
    assert distillation.student.module.conv1.weight.grad.abs().max() > 0
