"""Every method of detection on a pair of small detectors: it learns, it fits any channels, it says why where it cannot."""

from __future__ import annotations

import copy
import itertools
import math

import detector_pair
import pytest
import torch
from detector_pair import CLASSES, NARROW, WIDER, build, detector, supervised, terms_of
from torch import nn

from kdrun.config.defaults import of_task, shipped_settings
from kdrun.config.listing import methods_of_detectors, methods_of_every_task
from kdrun.config.registry import METHODS
from kdrun.engine.loop import enter
from kdrun.errors import KdrunError
from kdrun.methods.base import DataFacts
from kdrun.methods.distillation import RESERVED, Distillation

DETECTORS = methods_of_detectors()
ZOO = [name for name in methods_of_every_task() if "detection" in shipped_settings(name).get("tasks", {})]
METHODS_HERE = [*ZOO, *DETECTORS]
ONLINE = ["yolo_mutual"]
OF_MAPS = [
    name for name in METHODS_HERE if "neck1" in of_task(name, shipped_settings(name), "detection").get("taps", ())
]


def gradient(distillation: Distillation, term: str) -> torch.Tensor:
    """Of one term with respect to the student's neck and stem, as one vector."""
    stage = distillation.stages[0]
    enter(distillation, stage)
    distillation.begin_epoch(0, 0)
    _, terms = distillation(detector_pair.batch(), stage)
    body = [p for part in ("stem", "levels") for p in getattr(distillation.student.module, part).parameters()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(terms[term], body)])


def test_the_issue_s_methods_are_here():
    assert set(ZOO) == {"mimic", "cwd", "mgd", "at", "pkd", "dist"}
    assert set(DETECTORS) == {"fgd", "yolo_logits", "yolo_boxes", "ultralytics", "yolo_mutual"}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS_HERE)
def test_every_term_is_finite_and_not_zero_and_reaches_the_student(name, autocast):
    """The yaml weighs each term; each is a positive float32 scalar and moves the neck of the student."""
    distillation = build(name)
    for tapped in (distillation.student, distillation.teacher):
        tapped.autocast = autocast
    enter(distillation, distillation.stages[0])
    _, terms = distillation(detector_pair.batch(), distillation.stages[0])
    assert set(terms) == {"task"} | terms_of(name)
    for term, value in terms.items():
        assert (value.shape, value.dtype) == ((), torch.float32)
        assert value.isfinite()
        assert value > 0, term
    if autocast is None:
        for term in terms_of(name) - {"yolo_mutual.peers"}:
            push = gradient(distillation, term)
            assert push.isfinite().all()
            assert push.norm() > 0, term


def test_another_method_is_another_gradient():
    """No two terms pull the student in the same direction."""
    pushes = {
        term: gradient(build(name), term) for name in METHODS_HERE for term in terms_of(name) - {"yolo_mutual.peers"}
    }
    for (one, a), (other, b) in itertools.combinations(pushes.items(), 2):
        assert torch.cosine_similarity(a, b, dim=0) < 0.999, (one, other)


@pytest.mark.parametrize("widths", [(NARROW, WIDER), (WIDER, NARROW), (NARROW, NARROW)], ids=str)
@pytest.mark.parametrize("name", METHODS_HERE)
def test_adapters_follow_the_channels_of_both_models(name, widths):
    """A convolution for each level from the student's channels to the teacher's, none where they are equal; they learn."""
    student, teacher = widths
    distillation = build(name, student=detector(student), teacher=detector(teacher, seed=1))
    enter(distillation, distillation.stages[0])
    _, terms = distillation(detector_pair.batch(), distillation.stages[0])
    sum(terms.values()).backward()
    method = distillation.methods[name]
    learned = [p for key, p in method.named_parameters() if not key.startswith("peers")]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned)
    shapes = {
        tuple(m.weight.shape[:2]) for m in method.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
    }
    adapters = {(t, s) for s, t in zip(student, teacher, strict=True)}
    if name in ("ultralytics",) or (name in OF_MAPS and name != "at" and student != teacher):
        assert adapters <= shapes
    elif name in ("mimic", "cwd", "pkd", "dist"):
        assert not shapes


@pytest.mark.parametrize("name", [name for name in METHODS_HERE if name not in ONLINE])
def test_the_teacher_learns_nothing_and_is_kept_nowhere(name):
    teacher = detector(WIDER, seed=1)
    before = copy.deepcopy(teacher.state_dict())
    distillation = build(name, teacher=teacher)
    enter(distillation, distillation.stages[0])
    _, terms = distillation(detector_pair.batch(), distillation.stages[0])
    sum(terms.values()).backward()
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    own = {value.data_ptr() for value in teacher.state_dict().values()}
    assert not own & {value.data_ptr() for value in distillation.state_dict().values()}
    assert not own & {p.data_ptr() for module in distillation.stages[0].trains for p in module.parameters()}


@pytest.mark.parametrize("name", [n for n in METHODS_HERE if n not in ("ultralytics", "mgd")])
def test_a_copy_of_the_teacher_has_nothing_to_learn(name):
    """Every term is 0 but for those with trained layers between the two maps, and the peers' own losses."""
    student = detector(WIDER, seed=11)  # of yolo_mutual's first peer, too
    distillation = build(name, student=student, teacher=copy.deepcopy(student))
    distillation.eval()
    _, terms = distillation(detector_pair.batch(), distillation.stages[0])
    for term in terms_of(name) - {"yolo_mutual.peers", "fgd.relation"}:
        least = 5e-3 if name == "dist" else 1e-5  # the authors' 1e-8 shows where a channel's probabilities hardly vary
        assert abs(terms[term].item()) < least, term


def test_methods_combine():
    """Each term has the value that it has alone."""
    names = ("cwd", "yolo_logits", "yolo_boxes", "fgd", "mgd")
    together, alone = build(*names), [build(name) for name in names]
    stage = together.stages[0]
    values = []
    for distillation in (together, *alone):
        enter(distillation, distillation.stages[0])
        distillation.begin_epoch(0, 0)
        values.append(distillation(detector_pair.batch(), distillation.stages[0])[1])
    assert stage.name == "distil"
    assert set(values[0]) == {"task"}.union(*(terms_of(name) for name in names))
    for one in values[1:]:
        for term, value in one.items():
            torch.testing.assert_close(values[0][term], value, rtol=1e-6, atol=0, msg=term)


@pytest.mark.parametrize("name", METHODS_HERE)
def test_a_batch_without_boxes_is_a_batch(name):
    empty = detector_pair.batch()
    empty = {**empty, "cls": empty["cls"][:0], "bboxes": empty["bboxes"][:0], "batch_idx": empty["batch_idx"][:0]}
    distillation = build(name)
    enter(distillation, distillation.stages[0])
    _, terms = distillation(empty, distillation.stages[0])
    sum(terms.values()).backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in distillation.parameters())


def test_several_taps_are_the_mean_of_each():
    for name in ("mimic", "cwd", "at"):
        same = {"student": detector(), "teacher": detector(NARROW, seed=1)}

        def value(*taps: str, name=name, same=same) -> dict[str, torch.Tensor]:
            distillation = build(name, **same, taps=list(taps))
            distillation.eval()
            return distillation(detector_pair.batch(), distillation.stages[0])[1]

        together = value("neck1", "neck2", "neck3")
        for term in terms_of(name):
            each = [value(f"neck{i}")[term] for i in (1, 2, 3)]
            torch.testing.assert_close(together[term], sum(each) / 3)


def test_peers_learn_and_are_evaluated():
    """Both learn from each other: the student's term has a gradient in both, through the other's scores in neither."""
    distillation = build("yolo_mutual", networks=3)
    method = distillation.methods["yolo_mutual"]
    assert set(method.evaluates()) == {"peer1", "peer2"}
    assert set(distillation.stages[0].evaluates) == {"student", "peer1", "peer2"}
    enter(distillation, distillation.stages[0])
    _, terms = distillation(detector_pair.batch(), distillation.stages[0])
    for term in ("logits", "ciou", "dfl"):
        for module in (distillation.student.module, *(peer.module for peer in method.peers)):
            heads = module.scores if term == "logits" else module.boxes
            found = torch.autograd.grad(terms[f"yolo_mutual.{term}"], [*heads.parameters()], retain_graph=True)
            assert all(g.abs().sum() > 0 for g in found)
    peers = torch.autograd.grad(
        terms["yolo_mutual.peers"], [*distillation.student.parameters()], allow_unused=True, retain_graph=True
    )
    assert all(g is None for g in peers)


def test_peers_do_not_move_each_other_as_teachers():
    """With one peer: the gradient of the student is that of the offline losses, the peer as the teacher."""
    student = detector(seed=4)
    online = build("yolo_mutual", student=student)
    peer = online.methods["yolo_mutual"].peers[0].module
    online.eval()
    _, mutual = online(detector_pair.batch(), online.stages[0])
    offline = build("yolo_logits", "yolo_boxes", student=student, teacher=copy.deepcopy(peer))
    offline.eval()
    _, single = offline(detector_pair.batch(), offline.stages[0])
    parameters = [*student.parameters()]
    for ours, theirs in (("logits", "yolo_logits.scores"), ("ciou", "yolo_boxes.ciou"), ("dfl", "yolo_boxes.dfl")):
        a, b = (
            torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
            for loss in (mutual[f"yolo_mutual.{ours}"], single[theirs])
        )
        for one, other in zip(a, b, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)


# What cannot work ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
def test_a_model_that_is_no_detector(name):
    """One line that names the method and what the model gives."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    settings = of_task(name, shipped_settings(name), "image")
    with pytest.raises(KdrunError, match=rf"method '{name}' compares detections .* \(2, 5\); .* dataset=yolo") as error:
        Distillation(
            plain, copy.deepcopy(plain).eval(), {name: (METHODS.get(name), {**settings, "taps": []})},
            data=DataFacts(10, torch.arange(10), 5, torch.rand(2, 3, 4, 4)), task=nn.functional.cross_entropy,
            fresh=lambda i: copy.deepcopy(plain),
        )  # fmt: skip
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["yolo_logits", "yolo_boxes"])
@pytest.mark.parametrize(
    ("options", "message"),
    [({"classes": 7}, f"the teacher has 7 classes, and the student has {CLASSES}"), ({"bins": 4}, "the teacher has 16 logits for a box")],
    ids=["classes", "bins"],
)  # fmt: skip
def test_a_teacher_of_another_kind(name, options, message):
    with pytest.raises(KdrunError, match=message) as error:
        build(name, teacher=detector(WIDER, **options))
    assert "\n" not in str(error.value)


def test_peers_of_other_bins_are_refused():
    with pytest.raises(KdrunError, match="the peer has 24 logits for a box, and the student has 16"):
        build("yolo_mutual", student=detector(bins=4))


def test_feature_methods_do_not_compare_classes():
    """A teacher of other classes still teaches its features."""
    distillation = build("cwd", "fgd", teacher=detector(WIDER, classes=7))
    enter(distillation, distillation.stages[0])
    assert all(v.isfinite() for v in distillation(detector_pair.batch(), distillation.stages[0])[1].values())


def test_dist_without_taps_wants_classes():
    with pytest.raises(KdrunError, match=r"method 'dist' compares classes, which .*method\.dist\.taps"):
        build("dist", taps=[])


def numbers() -> list[tuple[str, str]]:
    return [
        (name, key)
        for name in METHODS_HERE
        for key, value in of_task(name, shipped_settings(name), "detection").items()
        if key not in RESERVED and isinstance(value, int | float) and not isinstance(value, bool)
    ]


@pytest.mark.parametrize("value", [-1, 0, 1, math.nan, math.inf, 1e-30, 1e30], ids=str)
@pytest.mark.parametrize(("name", "key"), numbers(), ids=str)
def test_a_number_out_of_range_is_refused_by_its_key(name, key, value):
    """Or it trains: the losses of a step are finite."""
    kind = type(of_task(name, shipped_settings(name), "detection")[key])
    if kind is int and not (math.isfinite(value) and 0 <= value < 10):
        pytest.skip("the config takes whole numbers alone, and as many as memory holds")
    try:
        distillation = build(name, **{key: kind(value)})
    except KdrunError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert f"method.{name}.{key} is " in refusal
        assert "\n" not in refusal
        return
    assert math.isfinite(value)
    enter(distillation, distillation.stages[0])
    _, terms = distillation(detector_pair.batch(), distillation.stages[0])
    assert all(term.isfinite() for term in terms.values())


@pytest.mark.parametrize("name", ["yolo_logits", "yolo_mutual"])
def test_kinds_and_their_temperature(name):
    with pytest.raises(KdrunError, match=f"no kind 'kll' of {name}. Did you mean kl"):
        build(name, kind="kll")
    with pytest.raises(
        KdrunError, match=f"method.{name}.temperature is 2, and kind=l2 compares probabilities as they are"
    ):
        build(name, kind="l2", temperature=2.0)
    pushes = [
        gradient(build(name, kind=kind), term)
        for kind in ("kl", "l2", "l1", "bckd")
        for term in terms_of(name)
        if "peers" not in term
    ]
    assert all(push.isfinite().all() and push.norm() > 0 for push in pushes)


def test_the_stand_in_for_a_detector_s_loss_reaches_every_weight():
    model = detector()
    supervised(model(detector_pair.batch()["input"]), detector_pair.batch()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)
