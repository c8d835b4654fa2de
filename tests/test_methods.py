"""What every method promises, over each file of conf/method, and the properties that the papers claim for their losses."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from kdrun import train
from kdrun.config import Engine, Recipe, conf_folder, method_names, register_nodes, validate
from kdrun.engine.checkpoint import weights_sha256
from kdrun.engine.loop import enter, make_optimizer, weighted
from kdrun.engine.precision import resolve
from kdrun.errors import KdrunError
from kdrun.methods.adapters import connector
from kdrun.methods.at import attention_transfer
from kdrun.methods.base import DataFacts, Distillation
from kdrun.methods.crd import Negatives, contrast, similarities, update
from kdrun.methods.dml import mutual
from kdrun.methods.kd import soft_targets
from kdrun.methods.rkd import rkd_angle, rkd_distance
from kdrun.methods.sobolev import input_gradient
from kdrun.models.resnet_cifar import ResNet
from kdrun.registry import METHODS
from kdrun.tasks import image

CLASSES, ROWS, SIZE = 5, 24, 8
NARROW, WIDER = (4, 4, 8, 16), (6, 8, 16, 24)
ALL = method_names()
ONE_STAGE = [name for name in ALL if name not in ("fitnet", "none")]  # what can stand beside another method
RECIPE = Recipe(**OmegaConf.to_container(OmegaConf.load(conf_folder() / "recipe" / "quick.yaml")))
LABELS = torch.arange(ROWS) % CLASSES


def net(widths=NARROW, seed: int = 0, depth: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return ResNet(depth, widths, CLASSES, "B")


def batch(size: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(ROWS, generator=generator)[:size]
    return {"input": torch.randn(size, 3, SIZE, SIZE, generator=generator), "label": LABELS[index], "index": index}


def settings(*names: str) -> dict[str, dict[str, Any]]:
    """The yaml files of conf/method as one dict from method to settings."""
    files = [OmegaConf.load(conf_folder() / "method" / f"{name}.yaml") for name in names]
    return OmegaConf.to_container(OmegaConf.merge(*files))


def build(*names: str, student: nn.Module | None = None, teacher: nn.Module | None = None, fresh=None, **changes):
    """A Distillation as train.build makes it; `changes` are settings of the first method."""
    found = settings(*names)
    next(iter(found.values())).update(changes)
    teacher = teacher or net(WIDER, seed=1, depth=14)
    distillation = Distillation(
        student or net(),
        teacher.eval(),
        {name: (METHODS.get(name), values) for name, values in found.items()},
        data=DataFacts(ROWS, LABELS, CLASSES, batch(2)["input"]),
        task=image.loss,
        fresh=fresh or (lambda i: net(WIDER, seed=10 + i)),
    )
    weights = {f"{m}.{t}": weight for m, values in found.items() for t, weight in values.get("weights", {}).items()}
    return distillation, {"task": 1.0, **weights}


def step(distillation: Distillation, weights: dict[str, float], number: int = 0, seed: int = 0):
    """One step of the optimiser in stage `number`, as train_epoch takes it; returns the terms."""
    stage = distillation.stages[number]
    enter(distillation, stage)
    optimizer = make_optimizer(stage, RECIPE)
    distillation.begin_epoch(number, 0)
    _, terms = distillation(batch(seed=seed), stage)
    weighted(terms, {name: weights[name] for name in terms}).backward()
    optimizer.step()
    distillation.after_step()
    return {name: term.detach() for name, term in terms.items()}


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


# Contracts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ALL)
def test_terms_are_finite_float32_scalars_and_the_yaml_weighs_each(name, autocast):
    """Every term is a finite float32 scalar in either precision, and terms and weights of the yaml are the same set."""
    distillation, weights = build(name)
    for tapped in (distillation.student, distillation.teacher):
        tapped.autocast = autocast
    met = set()
    for number in range(len(distillation.stages)):
        terms = step(distillation, weights, number)
        met.update(terms)
        for term, value in terms.items():
            assert value.shape == (), term
            assert value.dtype == torch.float32, term
            assert value.isfinite(), term
    assert met == set(weights)


@pytest.mark.parametrize("name", ALL)
def test_a_stage_changes_what_it_declares_and_nothing_else(name):
    """One step leaves all outside stage.trains alone bit for bit, and moves each module of it that has parameters."""
    distillation, weights = build(name)
    teacher = snapshot(distillation.teacher)
    for number, stage in enumerate(distillation.stages):
        declared = {value.data_ptr() for module in stage.trains for value in module.state_dict().values()}
        before = snapshot(distillation)
        step(distillation, weights, number)
        after = distillation.state_dict()
        moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert moved
        assert all(after[key].data_ptr() in declared for key in moved)
        still = {after[key].data_ptr() for key in after.keys() - moved}
        for module in stage.trains:
            values = [*module.state_dict().values()]
            assert not values or any(value.data_ptr() not in still for value in values)
        assert same(teacher, distillation.teacher.state_dict())
        assert not any(module.training for module in distillation.teacher.modules())


def test_hints_train_the_student_up_to_the_guided_layer():
    """FitNet's first stage leaves the third stage of the student and its head alone, and the second trains all."""
    distillation, weights = build("fitnet")
    before = snapshot(distillation.student.module)
    step(distillation, weights, 0)
    after = distillation.student.module.state_dict()
    moved = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved == {"conv1", "bn1", "layer1", "layer2"}
    step(distillation, weights, 1)
    assert not torch.equal(distillation.student.module.head.weight, before["head.weight"])


@pytest.mark.parametrize("name", ALL)
def test_construction_leaves_the_models_as_they_were(name):
    """Dry runs at construction change no weight and no batch norm statistic of student or teacher."""
    student, teacher = net(), net(WIDER, seed=1)
    before = snapshot(student), snapshot(teacher)
    build(name, student=student, teacher=teacher)
    assert same(before[0], student.state_dict())
    assert same(before[1], teacher.state_dict())


@pytest.mark.parametrize("name", ALL)
def test_teacher_does_not_drift(name):
    """Weights and batch norm buffers of the teacher stay as they were, and it is no part of the state dict."""
    teacher = net(WIDER, seed=1)
    before = snapshot(teacher)
    distillation, weights = build(name, teacher=teacher)
    distillation.train()
    for seed in range(2):
        for number in range(len(distillation.stages)):
            step(distillation, weights, number, seed)
    assert same(before, teacher.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    shared = {value.data_ptr() for value in teacher.state_dict().values()}
    assert not shared & {value.data_ptr() for value in distillation.state_dict().values()}


ZERO = {"kd.soft", "at.attention", "rkd.distance", "rkd.angle", "fitnet.hint", "fitnet.soft", "dml.mutual", "sobolev.gradient"}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("none", "crd")])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name):
    """Student == teacher (for DML: peers) gives 0 for every loss but DML's supervised one, in both stages of FitNet."""
    student = net()
    distillation, _ = build(
        name, student=student, teacher=copy.deepcopy(student), fresh=lambda i: copy.deepcopy(student)
    )
    distillation.eval()
    for stage in distillation.stages:
        _, terms = distillation(batch(), stage)
        assert ZERO & terms.keys()
        assert all(abs(terms[term].item()) < 1e-6 for term in ZERO & terms.keys())
        assert terms.keys() - ZERO <= {"task", "dml.peers"}


@pytest.mark.parametrize("pair", list(itertools.combinations(ONE_STAGE, 2)), ids="+".join)
def test_methods_combine(pair):
    """Two methods give the union of their terms, each with the value it has alone, and train together."""
    together = step(*build(*pair))
    alone = {term: value for name in pair for term, value in step(*build(name)).items()}
    assert together.keys() == alone.keys()
    for term, value in alone.items():
        torch.testing.assert_close(together[term], value, rtol=1e-6, atol=0, msg=term)


@pytest.mark.parametrize("other", [name for name in ONE_STAGE if name != "fitnet_joint"])
def test_a_method_with_stages_stands_alone(other):
    """FitNet's paper variant beside another method stops with one sentence, in either order."""
    for names in (("fitnet", other), (other, "fitnet")):
        with pytest.raises(KdrunError, match="fitnet has training stages of its own and stands alone: method=fitnet"):
            build(*names)


@pytest.fixture(scope="module")
def parts():
    """Builds a run as the command does, on digits, from overrides."""
    register_nodes()

    def make(*overrides: str) -> train.Parts:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder().resolve())):
            composed = compose("config", ["dataset=digits", "student=resnet8", "teacher=resnet8", *overrides])
        return train.build(validate(composed), resolve(Engine(device="cpu", precision="fp32")))

    return make


def test_initial_weights_and_batches_depend_on_the_seed_alone(parts):
    """Whatever the method, a seed gives the same initial student and the same first batches; another seed gives others."""

    def start(*overrides: str) -> tuple[str, str]:
        made = parts(*overrides)
        first = itertools.islice(made.train.epoch(0), 2)
        batches = {f"{i}.{key}": value for i, one in enumerate(first) for key, value in one.items()}
        return weights_sha256(made.distillation.student.module.state_dict()), weights_sha256(batches)

    expected = start("method=none")
    for name in [*ALL, "[rkd,kd]"]:
        assert start(f"method={name}") == expected, name
    weights, batches = start("method=kd", "seed=1")
    assert weights != expected[0]
    assert batches != expected[1]


@pytest.mark.parametrize(
    ("name", "layers"), [("crd", "embed_student"), ("fitnet_joint", "regressor"), ("dml", "peers")]
)
def test_weight_zero_is_no_term(name, layers):
    """A term of weight 0 leaves the layers that it alone reaches untouched: no gradient, no weight decay."""
    distillation, weights = build(name)
    module = getattr(distillation.methods[name.partition("_")[0]], layers)
    before = [p.detach().clone() for p in module.parameters()]
    assert before
    step(distillation, {term: float(term == "task") for term in weights})
    assert all(torch.equal(p, was) for p, was in zip(module.parameters(), before, strict=True))
    step(distillation, weights)
    assert not all(torch.equal(p, was) for p, was in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_the_state_dict_holds_all_that_the_next_loss_needs(name):
    """A fresh Distillation with the state dict of a trained one gives the same next losses, bit for bit."""
    distillation, weights = build(name)
    last = len(distillation.stages) - 1
    for number in range(last + 1):
        step(distillation, weights, number)
    other, _ = build(name, student=net(seed=5), fresh=lambda i: net(WIDER, seed=20 + i))
    other.load_state_dict(snapshot(distillation))
    assert same(step(distillation, weights, last, seed=1), step(other, weights, last, seed=1))


@pytest.mark.parametrize("widths", [(NARROW, WIDER), (WIDER, NARROW)], ids=["student thinner", "student wider"])
@pytest.mark.parametrize("name", ALL)
def test_unlike_widths(name, widths):
    """Student and teacher of different channels train under every method."""
    student, teacher = widths
    distillation, weights = build(name, student=net(student), teacher=net(teacher, seed=1))
    for number in range(len(distillation.stages)):
        assert all(value.isfinite() for value in step(distillation, weights, number).values())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("kd", {"temperature": 0.0}, "method.kd.temperature is 0.0; it must be above 0"),
        ("at", {"variant": "papr"}, "no variant 'papr' of at. Choices: code"),
        ("at", {"taps": ["pooled"]}, "at needs taps of feature maps .* names pooled"),
        ("at", {"taps": []}, "at needs taps of feature maps .* names none"),
        ("at", {"taps": "stage1"}, "method.at.taps is 'stage1'; give a list"),
        ("at", {"taps": {"student": ["stage1"], "teacher": ["stage1", "stage2"]}}, "1 for the student, 2 for the teacher"),
        ("at", {"taps": {"pupil": ["stage1"]}}, r"keys \['pupil'\]; give one list, or student and teacher"),
        ("rkd", {"taps": ["poolt"]}, "no tap 'poolt' in ResNet. Did you mean pooled"),
        ("fitnet", {"variant": "both"}, "no variant 'both' of fitnet. Choices: paper"),
        ("fitnet", {"taps": ["stage1", "stage2"]}, "fitnet takes one guided layer; .* names 2"),
        ("fitnet", {"stages": {"hint": {"epochs": 0.2}}}, "no stage 'hint' in method.fitnet.stages. Did you mean hints"),
        ("fitnet", {"taps": {"student": ["pooled"], "teacher": ["stage2"]}}, "no adapter from the student's tap of shape"),
        ("fitnet", {"taps": {"student": ["stage3"], "teacher": ["stage1"]}}, "student's map of 2x2 to the teacher's 8x8"),
        ("crd", {"momentum": 1.0}, "method.crd wants negatives and dim of 1 or more"),
        ("crd", {"temperature": -1.0}, "method.crd.temperature is -1.0"),
        ("dml", {"networks": 1}, "method.dml.networks is 1; mutual learning needs at least 2"),
    ],
)  # fmt: skip
def test_what_cannot_work_stops_with_a_sentence(name, changes, message):
    """Bad settings and pairs of layers that do not fit are errors at construction, with the value and the choices."""
    with pytest.raises(KdrunError, match=message) as error:
        build(name, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rkd", "crd"])
@pytest.mark.parametrize("taps", [[], ["stage3", "pooled"]], ids=["none", "two"])
def test_a_method_of_one_tap_says_so(name, taps):
    """RKD and CRD compare one layer; none or two stop at construction with a sentence."""
    with pytest.raises(KdrunError, match=f"{name} takes one tap; method.{name}.taps names {len(taps)}"):
        build(name, taps=taps)


def test_a_method_that_needs_a_teacher_says_so():
    """teacher=none under a method that needs one stops with a sentence."""
    with pytest.raises(KdrunError, match="method 'kd' needs a teacher and teacher=none was asked for"):
        Distillation(
            net(), None, {"kd": (METHODS.get("kd"), settings("kd")["kd"])},
            data=DataFacts(ROWS, LABELS, CLASSES, batch(2)["input"]), task=image.loss,
        )  # fmt: skip


# Adapters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 4, 8, 6), (2, 4, 8, 6)), ((2, 4, 8, 6), (2, 7, 8, 6)), ((2, 4, 8, 6), (2, 7, 4, 3)), ((2, 4, 7, 5), (2, 7, 4, 3)),
        ((2, 4, 4, 3), (2, 7, 8, 6)), ((2, 4, 8, 6), (2, 7, 6, 5)), ((2, 4, 8, 6), (2, 7, 1, 1)), ((2, 4), (2, 7)),
    ],
)  # fmt: skip
def test_connector_gives_the_teachers_shape(student, teacher):
    """Equal, halved (odd sides too), doubled and cropped maps, square or not, and vectors."""
    assert connector(student, teacher)(torch.randn(student)).shape == teacher


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
    """Equation 8: the mean over the n - 1 peers; a network's loss moves that network alone."""
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
    negatives = Negatives(UNEVEN, count, torch.device("cpu"))
    assert negatives.count == min(count, 4 + 7)  # the largest class has that many rows outside it
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        label_B = torch.randint(0, 3, (6,), generator=generator)
        drawn_BK = negatives.draw(label_B, generator)
        assert drawn_BK.shape == (6, negatives.count)
        classes_BK = UNEVEN[drawn_BK]
        assert (classes_BK >= 0).all()
        assert (classes_BK != label_B[:, None]).all()
        assert all(len(set(row)) == negatives.count for row in drawn_BK.tolist())


def test_crd_negatives_are_uniform():
    """Each row of another class is drawn equally often: chi-square over 3,000 draws, at about five sigma."""
    negatives, generator = Negatives(UNEVEN, 3, torch.device("cpu")), torch.Generator().manual_seed(0)
    draws = torch.stack([negatives.draw(torch.tensor([1]), generator) for _ in range(3000)]).flatten()
    observed = torch.bincount(draws, minlength=len(UNEVEN))[(UNEVEN >= 0) & (UNEVEN != 1)].double()
    expected = len(draws) / len(observed)
    degrees = len(observed) - 1
    assert ((observed - expected) ** 2 / expected).sum() < degrees + 5 * (2 * degrees) ** 0.5


def test_crd_draws_from_its_own_stream():
    """The same stream gives the same negatives; one class alone is an error in one sentence."""
    negatives, label_B = Negatives(UNEVEN, 5, torch.device("cpu")), torch.tensor([0, 1, 2])
    first, second, third = (negatives.draw(label_B, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    with pytest.raises(KdrunError, match="at least two classes"):
        Negatives(torch.zeros(5, dtype=torch.long), 5, torch.device("cpu"))


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


# The interface --------------------------------------------------------------------------------------------------------


def test_a_method_that_forgets_its_loss_is_told_what_to_write():
    """The base class names the signature that is missing."""
    from kdrun.methods import Method

    with pytest.raises(NotImplementedError, match=r"Method must define loss\(student, teacher, batch\)"):
        Method().loss(SimpleNamespace(), None, {})
