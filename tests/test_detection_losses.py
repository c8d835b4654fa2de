"""The losses of detectors: against other libraries and by hand, and where numbers are extreme."""

from __future__ import annotations

import math

import pytest
import torch
from detector_pair import NARROW, WIDER, batch, build, detector
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torchvision.ops import complete_box_iou, complete_box_iou_loss

from kdrun.engine.loop import enter
from kdrun.methods.boxes import anchor_weights, complete_iou_loss, distances, weighted_mean
from kdrun.methods.dist import dense_relations, relations
from kdrun.methods.fgd import Context, attention, focal_distance, masks
from kdrun.methods.pkd import correlation_distance, standardized
from kdrun.methods.ultralytics import projector, score_weighted_distance
from kdrun.methods.yolo_boxes import box_terms, side_divergence
from kdrun.methods.yolo_logits import KINDS, binary_divergence, score_distance, weighted_cross_entropy

B, K, A, R = 3, 4, 11, 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Scores ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 30.0])
def test_binary_divergence_is_that_of_bernoulli_distributions(temperature):
    s, t = 3 * draw(B, K, A), 3 * draw(B, K, A, seed=1)
    teacher, student = (Bernoulli(logits=x.double() / temperature) for x in (t, s))
    expected = temperature**2 * kl_divergence(teacher, student)
    torch.testing.assert_close(binary_divergence(s, t, temperature).double(), expected, rtol=1e-4, atol=1e-6)


def test_binary_divergence_at_a_high_temperature_is_an_eighth_of_the_squared_difference():
    s, t = draw(B, K, A), draw(B, K, A, seed=1)
    torch.testing.assert_close(binary_divergence(s, t, 1e4), (s - t).square() / 8, rtol=1e-3, atol=1e-6)


def test_probabilities_and_weighted_cross_entropy_by_hand():
    s, t = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[1.0], [2.0]]])
    p, q = 1 / (1 + math.exp(-1)), 0.5
    assert score_distance(s, t, "l2").item() == pytest.approx((p - q) ** 2)
    assert score_distance(s, t, "l1").item() == pytest.approx(p - q)
    assert score_distance(s, t, "bckd").item() == pytest.approx((p - q) * -math.log(0.5))
    assert weighted_cross_entropy(s, t)[0, 1, 0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_copy_are_no_distance_and_the_extremes_have_gradients(kind):
    t = 4 * draw(B, K, A)
    assert score_distance(t, t, kind).abs().max() < 1e-6
    for mine, theirs in ((1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (-1e4, -1e4), (0.0, 1e4), (1e4, 0.0)):
        s = torch.full((1, 2, 3), mine, requires_grad=True)
        value = score_distance(s, torch.full((1, 2, 3), theirs), kind).sum()
        (gradient,) = torch.autograd.grad(value, s)
        assert value.isfinite()
        assert gradient.isfinite().all()
        if kind in ("kl", "bckd") and abs(mine - theirs) > 1e4:
            assert gradient.abs().min() > 0.9  # the way back from a wrong certainty is open
            assert (gradient.sign() == math.copysign(1, mine)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_distance_of_scores_leads_to_the_teacher(kind):
    t = draw(B, K, A)
    s = draw(B, K, A, seed=1).requires_grad_()
    optimizer = torch.optim.Adam([s], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        score_distance(s, t, kind).sum().backward()
        optimizer.step()
    assert (s.sigmoid() - t.sigmoid()).abs().max() < 0.05


# The gate --------------------------------------------------------------------------------------------------------------


def test_anchors_count_by_the_largest_probability_of_the_teacher_above_the_gate():
    t = torch.logit(torch.tensor([[[0.1, 0.6, 0.3], [0.2, 0.5, 0.9]]]))  # two classes, three anchors
    torch.testing.assert_close(anchor_weights(t, 0.0), torch.tensor([[0.2, 0.6, 0.9]]))
    torch.testing.assert_close(anchor_weights(t, 0.4), torch.tensor([[0.0, 0.6, 0.9]]))
    assert not anchor_weights(t.requires_grad_(), 0.0).requires_grad
    loss = torch.tensor([[10.0, 1.0, 2.0]])
    assert weighted_mean(loss, anchor_weights(t, 0.4)).item() == pytest.approx((0.6 + 1.8) / 1.5)
    assert weighted_mean(loss, anchor_weights(t, 0.95)) == 0


def test_an_anchor_below_the_gate_has_no_gradient():
    teacher = detector(WIDER, seed=1)
    with torch.no_grad():
        teacher.eval()(batch()["input"])
        confidence_BA = teacher(batch()["input"])["scores"].sigmoid().amax(1)
    gate = confidence_BA.median().item()
    for names in (("yolo_logits",), ("yolo_boxes",)):
        distillation = build(*names, teacher=teacher, gate=gate)
        enter(distillation, distillation.stages[0])
        student, taught = distillation.run(batch())
        key = "scores" if names == ("yolo_logits",) else "boxes"
        for term in distillation.methods[names[0]].loss(student, taught, batch()).values():
            (gradient,) = torch.autograd.grad(term, student.logits[key], retain_graph=True)
            moved_BA = gradient.abs().sum(1) > 0
            assert torch.equal(moved_BA, confidence_BA > gate)


# Boxes -----------------------------------------------------------------------------------------------------------------


def corners(distance_B4A: Tensor, anchor_2A: Tensor, stride_A: Tensor) -> Tensor:
    """x1, y1, x2, y2 in pixels, (B*A, 4)."""
    first, second = anchor_2A - distance_B4A[:, :2], anchor_2A + distance_B4A[:, 2:]
    return (torch.cat([first, second], 1) * stride_A).movedim(1, 2).flatten(0, 1)


def test_ciou_is_torchvision_s_wherever_the_anchor_lies():
    """Of boxes in pixels at their anchors; value and gradient."""
    s = (4 * draw(B, 4, A).abs() + 0.1).double().requires_grad_()
    t = (4 * draw(B, 4, A, seed=1).abs() + 0.1).double()
    anchor, stride = 20 * draw(2, A, seed=2).double(), 2.0 ** torch.randint(3, 6, (A,))
    ours = complete_iou_loss(s, t)
    theirs = complete_box_iou_loss(corners(s, anchor, stride), corners(t, anchor, stride)).view(B, A)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss.sum(), s)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    matrix = complete_box_iou(corners(s, anchor, stride), corners(t, anchor, stride))
    torch.testing.assert_close(1 - ours.flatten(), matrix.diagonal(), rtol=1e-5, atol=1e-6)


def test_boxes_without_area():
    """Both empty and equal: 0. One empty, or a line: a finite value and gradient."""
    empty, line, box = torch.zeros(1, 4, 1), torch.tensor([0.0, 2, 0, 1]).view(1, 4, 1), torch.ones(1, 4, 1)
    assert complete_iou_loss(empty, empty).item() == pytest.approx(0, abs=1e-6)
    assert complete_iou_loss(line, line).item() == pytest.approx(0, abs=1e-6)
    for mine in (empty, line, box, 1e-6 * box, 1e6 * box):
        for theirs in (empty, line, box, 1e-6 * box):
            s = mine.clone().requires_grad_()
            value = complete_iou_loss(s, theirs).sum()
            (gradient,) = torch.autograd.grad(value, s)
            assert 0 <= value <= 3
            assert gradient.isfinite().all()


def test_distances_are_expected_values():
    logits = draw(B, 4 * R, A)
    expected = torch.stack(
        [(logits[:, side * R : side * R + R].softmax(1) * torch.arange(R)[:, None]).sum(1) for side in range(4)], 1
    )
    torch.testing.assert_close(distances(logits), expected)
    sharp = torch.full((1, 4 * R, 1), -1e4)
    sharp[0, [2, R + 5, 2 * R, 3 * R + 7]] = 1e4
    assert distances(sharp).flatten().tolist() == [2, 5, 0, 7]


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_divergence_of_sides_is_that_of_categorical_distributions(temperature):
    s, t = 2 * draw(B, 4 * R, A), 2 * draw(B, 4 * R, A, seed=1)
    of_sides = [Categorical(logits=x.view(B, 4, R, A).movedim(2, 3).double() / temperature) for x in (t, s)]
    expected = temperature**2 * kl_divergence(*of_sides).mean(1)
    torch.testing.assert_close(side_divergence(s, t, temperature).double(), expected, rtol=1e-4, atol=1e-6)


def test_boxes_of_a_copy_are_no_distance_and_the_extremes_have_gradients():
    t, weight = 3 * draw(B, 4 * R, A), torch.rand(B, A)
    assert all(term.abs() < 1e-6 for term in box_terms(t, t, weight, 10.0).values())
    for scale in (1e4, -1e4, 0.0):
        s = (scale * draw(B, 4 * R, A, seed=1).sign()).requires_grad_()
        terms = box_terms(s, t, weight, 10.0)
        gradients = [torch.autograd.grad(term, s, retain_graph=True)[0] for term in terms.values()]
        assert all(term.isfinite() for term in terms.values())
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_teacher_s_boxes_get_no_gradient():
    s, t = draw(B, 4 * R, A).requires_grad_(), draw(B, 4 * R, A, seed=1).requires_grad_()
    total = sum(box_terms(s, t, torch.ones(B, A), 1.0).values())
    assert torch.autograd.grad(total, t, allow_unused=True)[0] is None


# Maps ------------------------------------------------------------------------------------------------------------------


def test_correlation_distance_is_one_minus_pearson():
    """Of each channel over the whole batch; any scale and offset of a channel leave it as it is."""
    s, t = draw(5, 6, 3, 4), draw(5, 6, 3, 4, seed=1)
    rows = [x.transpose(0, 1).flatten(1) for x in (s, t)]
    expected = 1 - torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*rows, strict=True)]).mean()
    count = rows[0].shape[1]
    torch.testing.assert_close(correlation_distance(s, t), expected * (count - 1) / count, rtol=1e-4, atol=1e-5)
    moved = 3 * s * (1 + torch.arange(6).view(1, 6, 1, 1)) - 7
    torch.testing.assert_close(correlation_distance(moved, t), correlation_distance(s, t), rtol=1e-4, atol=1e-5)
    assert correlation_distance(2 * t + 1, t).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-12, 0.0])
def test_a_constant_channel_has_no_steep_correlation(scale):
    s = (5 + scale * draw(4, 3, 2, 2)).requires_grad_()
    value = correlation_distance(s, draw(4, 3, 2, 2, seed=1))
    (gradient,) = torch.autograd.grad(value, s)
    assert value.isfinite()
    assert gradient.abs().max() <= 2 / 0.01
    assert standardized(s).isfinite().all()


def test_dense_relations_are_those_of_positions():
    s, t = draw(2, 5, 3, 4), draw(2, 5, 3, 4, seed=1)
    rows = [torch.stack([x[b, :, i, j] for b in range(2) for i in range(3) for j in range(4)]) for x in (s, t)]
    for ours, theirs in zip(dense_relations(s, t, 2.0), relations(*rows, 2.0), strict=True):
        torch.testing.assert_close(ours, theirs)


# FGD -------------------------------------------------------------------------------------------------------------------


def test_masks_by_hand():
    """4 x 6 positions, two images. The smaller of two boxes counts; the rest shares the background; no box, no foreground."""
    corner = torch.tensor([[0.0, 0.0, 0.5, 0.5], [1 / 6, 0.25, 2 / 6, 0.5]])
    foreground, background = masks(corner, torch.zeros(2), (2, 4, 6))
    large, small = 1 / (3 * 4), 1 / (2 * 2)  # rows 0 to 2 and columns 0 to 3; rows and columns 1 to 2
    expected = torch.zeros(4, 6)
    expected[:3, :4] = large
    expected[1:3, 1:3] = small
    torch.testing.assert_close(foreground[0], expected)
    torch.testing.assert_close(background[0], (expected == 0) / 12.0)
    assert not foreground[1].any()
    torch.testing.assert_close(background[1], torch.full((4, 6), 1 / 24))


def test_masks_where_boxes_are_everywhere_or_nowhere():
    foreground, background = masks(torch.tensor([[0.0, 0, 1, 1]]), torch.zeros(1), (1, 3, 3))
    assert (foreground == 1 / 16).all()
    assert not background.any()
    foreground, background = masks(torch.zeros(0, 4), torch.zeros(0), (2, 3, 3))
    assert not foreground.any()
    torch.testing.assert_close(background.sum((1, 2)), torch.ones(2))


def test_attention_has_a_mean_of_one_and_focal_distance_follows_the_mask():
    s, t = draw(2, 5, 3, 4), 100 * draw(2, 5, 3, 4, seed=1)
    spatial, channels = attention(t, 0.5)
    torch.testing.assert_close(spatial.mean((1, 2)), torch.ones(2))
    torch.testing.assert_close(channels.mean(1), torch.ones(2))
    mask = torch.zeros(2, 3, 4)
    mask[0, 1, 2] = 1
    expected = ((s - t)[0, :, 1, 2].square() * channels[0]).sum() * spatial[0, 1, 2] / 2
    torch.testing.assert_close(focal_distance(s, t, mask, 0.5), expected)


def test_context_begins_as_the_map_itself():
    x = draw(2, 5, 3, 4)
    torch.testing.assert_close(Context(5)(x), x)
    assert Context(1)(x[:, :1]).isfinite().all()


def test_boxes_belong_to_their_images():
    """Boxes of another image do not matter to an image."""
    distillation = build("fgd")
    enter(distillation, distillation.stages[0])
    distillation.eval()
    data = batch()
    moved = {**data, "batch_idx": (data["batch_idx"] + 1) % 4}
    one, other = (distillation(x, distillation.stages[0])[1] for x in (data, moved))
    assert one["fgd.foreground"] != other["fgd.foreground"]
    assert torch.equal(one["fgd.relation"], other["fgd.relation"])


# The library's own loss ------------------------------------------------------------------------------------------------


def test_it_is_the_library_s_function(monkeypatch, tmp_path):
    """Value and gradient of one level, on random maps."""
    for key, value in {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_CONFIG_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    library = pytest.importorskip("ultralytics.nn.distill_model").DistillationModel
    s, t = draw(2, 5, 3, 4).requires_grad_(), draw(2, 5, 3, 4, seed=1)
    score = draw(2, 1, 12, seed=2).sigmoid()
    ours = score_weighted_distance(s, t, score[:, 0])
    theirs = library.loss_sl2(None, s, t, feat_idx=0, teacher_scores=(score,))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, s), torch.autograd.grad(theirs, s))


def test_its_levels_take_their_own_scores():
    """The whole term by hand, from the output of the two models."""
    distillation = build("ultralytics")
    enter(distillation, distillation.stages[0])
    student, teacher = distillation.run(batch())
    method = distillation.methods["ultralytics"]
    confidence = teacher.logits["scores"].sigmoid().amax(1)
    expected, start = 0.0, 0
    for project, s, t in zip(method.projectors, student.logits["feats"], teacher.logits["feats"], strict=True):
        count = t.shape[2] * t.shape[3]
        score = confidence[:, start : start + count].view(-1, 1, *t.shape[2:])
        expected += (((project(s) - t) ** 2) * score).sum() / (score.sum() * t.shape[1])
        start += count
    assert start == confidence.shape[1]
    torch.testing.assert_close(method.loss(student, teacher, batch())["neck"], expected)
    layers = [type(layer).__name__ for layer in projector(*NARROW[:2])]
    assert layers == ["Conv2d", "ReLU", "Conv2d"]
