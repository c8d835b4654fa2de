"""What every method promises, over each file of conf/method, and the properties that the papers claim for their losses."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
import text_pair
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from kdrun import train
from kdrun.config.checks import validate
from kdrun.config.defaults import of_task
from kdrun.config.listing import FAMILIES, methods_of_detectors, methods_of_every_task
from kdrun.config.nodes import recipe_schema, register_nodes
from kdrun.config.registry import METHODS, MODELS
from kdrun.config.schema import Engine, conf_folder, method_names
from kdrun.engine.loop import enter, weighted
from kdrun.engine.optimization import make_optimizer
from kdrun.engine.precision import resolve
from kdrun.errors import KdrunError
from kdrun.methods.adapters import connector
from kdrun.methods.base import DataFacts, Method
from kdrun.methods.distillation import Distillation
from kdrun.runs.checkpoint import weights_sha256
from kdrun.tasks import classes as image
from kdrun.tasks.image.models.resnet_cifar import ResNet
from kdrun.tasks.image.task import TASK

CLASSES, ROWS, SIZE = 5, 24, 8
NARROW, WIDER = (4, 4, 8, 16), (6, 8, 16, 24)
IMAGES = methods_of_every_task()
ALL = [name for name in method_names() if name not in methods_of_detectors()]  # images; the others want sentences
STAGED = (
    "ab",
    "early_exit",
    "fitnet",
    "fsp",
    "ft",
    "theseus",
    "theseus_control",
    "tinybert",
)  # what has stages of its own and stands alone
ONE_STAGE = [name for name in ALL if name not in (*STAGED, "none")]  # what can stand beside another method
KEYS = {name: next(iter(OmegaConf.load(conf_folder() / "method" / f"{name}.yaml"))) for name in ALL}
RECIPE = recipe_schema(TASK)(**OmegaConf.to_container(OmegaConf.load(conf_folder() / "recipe" / "quick.yaml")))
LABELS = torch.arange(ROWS) % CLASSES


def net(widths=NARROW, seed: int = 0, depth: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return ResNet(depth, widths, CLASSES, "B")


def of_text(*names: str) -> bool:
    """Whether one of these methods wants sentences; then all of them get a pair of transformers."""
    return not set(names) <= {*IMAGES, *(KEYS[name] for name in IMAGES)}


def student_of(*names: str, seed: int = 0) -> nn.Module:
    """A student for these methods."""
    return text_pair.student_of(*names, seed=seed) if of_text(*names) else net(seed=seed)


def teacher_of(*names: str) -> nn.Module:
    """A teacher for these methods: wider than the student, but for fsp, which wants one width."""
    if of_text(*names):
        return text_pair.teacher_of(*names)
    return net(NARROW if "fsp" in names else WIDER, seed=1, depth=14)


def batch(size: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(ROWS, generator=generator)[:size]
    return {"input": torch.randn(size, 3, SIZE, SIZE, generator=generator), "label": LABELS[index], "index": index}


def settings(*names: str) -> dict[str, dict[str, Any]]:
    """The yaml files of conf/method as one dict from method to settings, as runs of images have them."""
    files = [OmegaConf.load(conf_folder() / "method" / f"{name}.yaml") for name in names]
    merged = OmegaConf.to_container(OmegaConf.merge(*files))
    return {name: of_task(name, values or {}, "image") for name, values in merged.items()}


def build(*names: str, student: nn.Module | None = None, teacher: nn.Module | None = None, fresh=None, **changes):
    """A Distillation as train.build makes it; `changes` are settings of the first method."""
    found = settings(*names)
    next(iter(found.values())).update(changes)
    teacher = teacher or teacher_of(*names)
    facts = text_pair.facts() if of_text(*names) else DataFacts(ROWS, LABELS, CLASSES, batch(2)["input"])
    distillation = Distillation(
        student or student_of(*names),
        teacher.eval(),
        {name: (METHODS.get(name), values) for name, values in found.items()},
        data=facts,
        task=image.loss,
        fresh=fresh or (lambda i: net(WIDER, seed=10 + i)),
    )
    weights = {(m, t): weight for m, values in found.items() for t, weight in values.get("weights", {}).items()}
    return distillation, {
        "task": 1.0,
        **{t if t == "task" else f"{m}.{t}": weight for (m, t), weight in weights.items()},
    }


def batch_of(distillation: Distillation, seed: int = 0) -> dict[str, Any]:
    """Images or sentences, as the pair takes them."""
    return text_pair.batch(seed=seed) if isinstance(distillation.example, dict) else batch(seed=seed)


def step(distillation: Distillation, weights: dict[str, float], number: int = 0, seed: int = 0):
    """One step of the optimiser in stage `number`, as train_epoch takes it; returns the terms."""
    stage = distillation.stages[number]
    enter(distillation, stage)
    optimizer = make_optimizer(stage, RECIPE)
    distillation.begin_epoch(number, 0)
    _, terms = distillation(batch_of(distillation, seed), stage)
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
    assert met | {"task"} == set(weights)  # early_exit has no loss with the labels


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
    student, teacher = student_of(name), teacher_of(name)
    before = snapshot(student), snapshot(teacher)
    build(name, student=student, teacher=teacher)
    before[0].pop("exits.limit", None)  # the threshold of early_exit's yaml
    assert same(before[0], {key: value for key, value in student.state_dict().items() if key in before[0]})
    assert same(before[1], teacher.state_dict())


@pytest.mark.parametrize("name", ALL)
def test_teacher_does_not_drift(name):
    """Weights and batch norm buffers of the teacher stay as they were, and it is no part of the state dict."""
    teacher = teacher_of(name)
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


# terms that a perfect copy of the teacher still pays: layers of the method's own stand between the two, or a margin
PAID = {
    "dml.peers", "crd.contrast", "ab.boundary", "ft.reconstruction", "ft.factor", "vid.likelihood", "ofd.distance", "mgd.generation",
    "reviewkd.review", "distilbert.masked", "noise_labels.soft", "theseus.hybrid", "early_exit.branches",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ALL if name != "none"])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name):
    """Student == teacher (for DML: peers) gives 0 for every loss that compares the two directly, in every stage."""
    student = student_of(name)
    head = student.classifier if of_text(name) else student.head
    head.weight.data *= 50  # predictions far from uniform, where dist's 1e-8 would show
    teacher = teacher_of(name) if name == "early_exit" else copy.deepcopy(student)  # which has no exits
    distillation, _ = build(name, student=student, teacher=teacher, fresh=lambda i: copy.deepcopy(student))
    distillation.eval()
    for stage in distillation.stages:
        _, terms = distillation(batch_of(distillation), stage)
        for term, value in terms.items():
            if term not in PAID | {"task"}:
                assert abs(value.item()) < (1e-3 if name == "dist" else 1e-5), term


@pytest.fixture(scope="module")
def alone():
    """The terms of a first step of each method by itself, computed when asked for."""
    return functools.cache(lambda name: step(*build(name)))


PAIRS = [  # of images, and of sentences
    pair
    for kind in (True, False)
    for pair in itertools.combinations([name for name in ONE_STAGE if (name in IMAGES) is kind], 2)
    if KEYS[pair[0]] != KEYS[pair[1]]
]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_methods_combine(pair, alone):
    """Two methods give the union of their terms, each with the value it has alone, and train together."""
    together = step(*build(*pair))
    expected = {term: value for name in pair for term, value in alone(name).items()}
    if "label_smoothing" in pair:
        expected["task"] = alone("label_smoothing")["task"]
    assert together.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(together[term], value, rtol=1e-6, atol=0, msg=term)


@pytest.mark.parametrize("staged", STAGED)
@pytest.mark.parametrize("other", ["kd", "crd", "label_smoothing"])
def test_a_method_with_stages_stands_alone(staged, other):
    """A method of several stages beside another stops with one sentence, in either order."""
    for names in ((staged, other), (other, staged)):
        message = f"{KEYS[staged]} has its own training stages and cannot be combined with other methods: method={KEYS[staged]}"
        with pytest.raises(KdrunError, match=message):
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
    for name in [*IMAGES, "[rkd,kd]"]:
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


@pytest.mark.parametrize("name", ["bss", "crd", "kd"])
def test_a_method_whose_weights_are_zero_for_now_is_not_called(name):
    """It leaves no term and moves nothing: the step is that of the student alone, batch statistics included."""
    distillation, weights = build(name)
    alone, _ = build("none")
    zero = {term: float(term == "task") for term in weights}
    for model in (distillation, alone):
        stage = model.stages[0]
        enter(model, stage)
        model.begin_epoch(0, 0)
        _, terms = model(batch(), stage, zero)
        model.after_step(zero)
        assert terms.keys() == {"task"}
    assert same(snapshot(alone.student), snapshot(distillation.student))
    assert distillation(batch(), distillation.stages[0], weights)[1].keys() == set(weights)


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_after_its_own_stage_the_student_is_alone(name, monkeypatch):
    """The last stage is the supervised loss: the teacher is not run, and the step is that of `none` from the same weights."""
    distillation, weights = build(name)
    monkeypatch.setattr(distillation, "_run_teacher", lambda x: pytest.fail("the teacher was run"))
    alone, _ = build("none")
    assert step(distillation, weights, 1) == step(alone, weights)
    assert same(snapshot(alone.student), snapshot(distillation.student))


@pytest.mark.parametrize("name", ALL)
def test_the_state_dict_holds_all_that_the_next_loss_needs(name):
    """A fresh Distillation with the state dict of a trained one gives the same next losses, bit for bit."""
    distillation, weights = build(name)
    last = len(distillation.stages) - 1
    for number in range(last + 1):
        step(distillation, weights, number)
    other, _ = build(name, student=student_of(name, seed=5), fresh=lambda i: net(WIDER, seed=20 + i))
    other.load_state_dict(snapshot(distillation))
    assert same(step(distillation, weights, last, seed=1), step(other, weights, last, seed=1))


@pytest.mark.parametrize("widths", [(NARROW, WIDER), (WIDER, NARROW)], ids=["student thinner", "student wider"])
@pytest.mark.parametrize("name", IMAGES)
def test_unlike_widths(name, widths):
    """Student and teacher of different channels train under every method."""
    student, teacher = widths
    if name == "fsp":
        with pytest.raises(
            KdrunError, match=r"fsp needs the same channels .* \[\d+, .* in the student and \[\d+, .* Choose"
        ):
            build(name, student=net(student), teacher=net(teacher, seed=1))
        return
    distillation, weights = build(name, student=net(student), teacher=net(teacher, seed=1))
    for number in range(len(distillation.stages)):
        assert all(value.isfinite() for value in step(distillation, weights, number).values())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("kd", {"temperature": 0.0}, "method.kd.temperature is 0.0; it must be a finite number above 0"),
        ("at", {"variant": "papr"}, "no variant 'papr' of at. Did you mean paper.*Choices: code"),
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
        ("crd", {"momentum": 1.0}, "method.crd.momentum is 1.0; it must be 0 or more, and below 1"),
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


def test_methods_agree_on_a_stage_or_say_so():
    """Settings of one stage by two methods are merged; two values for one key stop with a sentence."""
    found = settings("kd", "at")
    found["kd"]["stages"], found["at"]["stages"] = {"distil": {"lr": 0.1}}, {"distil": {"weight_decay": 0.0}}

    def make() -> Distillation:
        methods = {name: (METHODS.get(name), values) for name, values in found.items()}
        return Distillation(
            net(),
            teacher_of().eval(),
            methods,
            data=DataFacts(ROWS, LABELS, CLASSES, batch(2)["input"]),
            task=image.loss,
        )

    assert make().stages[0].settings == {"lr": 0.1, "weight_decay": 0.0}
    found["at"]["stages"] = {"distil": {"lr": 0.2}}
    with pytest.raises(KdrunError, match=r"the methods disagree on lr of stage distil: 0.1, and 0.2 of at"):
        make()


def test_a_method_without_gradients_is_not_slowed_by_one_that_wants_them():
    """Beside sobolev, kd sees the teacher's logits without their graph, and the values are those it has alone."""
    seen = {}

    def spy(name):
        def keep(student, teacher, batch):
            seen[name] = teacher.logits.requires_grad
            return METHODS.get(name).loss(distillation.methods[name], student, teacher, batch)

        return keep

    distillation, weights = build("kd", "sobolev")
    for name in ("kd", "sobolev"):
        distillation.methods[name].loss = spy(name)
    step(distillation, weights)
    assert seen == {"kd": False, "sobolev": True}


def test_what_a_method_is_given_is_what_the_page_says():
    """Types and shapes of docs/adding-a-method.md; `.again` gives the method's own taps, in the mode of the moment, with gradients."""
    given = {}

    def spy(student, teacher, batch):
        given.update(student=student, teacher=teacher, batch=batch)
        return {"attention": student.taps[0].sum()}

    distillation, _ = build("at", "rkd")
    distillation.methods["at"].loss = spy
    enter(distillation, distillation.stages[0])
    distillation(batch(), distillation.stages[0])
    images = {key: (value.dtype, tuple(value.shape)) for key, value in given["batch"].items()}
    assert images == {
        "input": (torch.float32, (6, 3, SIZE, SIZE)),
        "label": (torch.int64, (6,)),
        "index": (torch.int64, (6,)),
    }
    x = batch(4, seed=1)["input"].requires_grad_(True)
    student, teacher = given["student"], given["teacher"]
    mean = distillation.student.module.bn1.running_mean.clone()
    for side, channels in ((student, NARROW), (teacher, WIDER)):
        again = side.again(x)
        assert again.logits.shape == (4, CLASSES)
        assert [tap.shape[:2] for tap in again.taps] == [(4, width) for width in channels[1:]]  # not rkd's pooled one
        assert len(again.live) == 3
        assert again.logits.requires_grad
    assert not torch.equal(distillation.student.module.bn1.running_mean, mean)
    assert not any(module.training for module in distillation.teacher.modules())
    with torch.no_grad():
        assert not student.again(x).logits.requires_grad


def test_a_method_that_needs_a_teacher_says_so():
    """teacher=none under a method that needs one stops with a sentence."""
    with pytest.raises(KdrunError, match="method 'kd' needs a teacher, and this run has teacher=none"):
        Distillation(
            net(), None, {"kd": (METHODS.get("kd"), settings("kd")["kd"])},
            data=DataFacts(ROWS, LABELS, CLASSES, batch(2)["input"]), task=image.loss,
        )  # fmt: skip


MODEL_PAIRS = [
    ("resnet14", "resnet8"),
    ("resnet32x4", "shufflenetv2"),
    ("vgg13", "mobilenetv2"),
    ("wrn_40_2", "resnet8x4"),
]


@pytest.fixture(scope="module")
def models():
    """One of each model of MODEL_PAIRS, made once."""
    torch.manual_seed(0)
    return {name: MODELS.get(name)(CLASSES) for pair in MODEL_PAIRS for name in pair}


@pytest.mark.parametrize("pair", MODEL_PAIRS, ids="-".join)
@pytest.mark.parametrize("name", IMAGES)
def test_families(name, pair, models):
    """Every method takes a step in each stage for models of one family and of two, at 32 px; fsp says why where it cannot."""
    teacher, student = (copy.deepcopy(models[model]) for model in pair)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = {"input": images, "label": LABELS[:4], "index": torch.arange(4)}
    found = settings(name)

    def make() -> Distillation:
        methods = {key: (METHODS.get(key), values) for key, values in found.items()}
        facts = DataFacts(ROWS, LABELS, CLASSES, images[:2])
        return Distillation(
            student, teacher.eval(), methods, data=facts, task=image.loss, fresh=lambda _: copy.deepcopy(student)
        )

    if name == "fsp" and pair != MODEL_PAIRS[0]:
        with pytest.raises(KdrunError, match="fsp needs the same channels on both sides"):
            make()
        return
    distillation = make()
    for number, stage in enumerate(distillation.stages):
        enter(distillation, stage)
        distillation.begin_epoch(number, 0)
        _, terms = distillation(data, stage)
        sum(terms.values()).backward()
        distillation.after_step()
        assert all(value.isfinite() for value in terms.values())
        learned = [p for module in stage.trains for p in module.parameters()]
        assert any(p.grad is not None for p in learned)
        assert all(p.grad.isfinite().all() for p in learned if p.grad is not None)


class Odd(Method):
    """A method whose loss is what a test says."""

    returned: Any = None

    def loss(self, student, teacher, batch):
        return self.returned


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(()), "odd must return its losses as a dict from term to scalar, .* it returned Tensor"),
        (None, "it returned NoneType"),
        ({"a": torch.zeros(6)}, r"term 'a' of odd must be a scalar tensor, a mean or a sum; it is of shape \(6,\)"),
        ({"a": 0.5}, "term 'a' of odd must be a scalar tensor, a mean or a sum; it is a float"),
    ],
)
def test_a_loss_that_is_no_named_scalar_is_told(returned, message):
    """A tensor, nothing, a vector or a float: one sentence, not torch's."""
    cls = type("Odd", (Odd,), {"returned": returned})
    facts = DataFacts(ROWS, LABELS, CLASSES, batch(2)["input"])
    distillation = Distillation(net(), teacher_of(), {"odd": (cls, {})}, data=facts, task=image.loss)
    with pytest.raises(KdrunError, match=message):
        distillation(batch(), distillation.stages[0])


def test_an_unknown_wish_of_the_teacher_is_told():
    cls = type("Odd", (Odd,), {"teacher": "output"})
    with pytest.raises(KdrunError, match=r"method odd has teacher = 'output'. Did you mean outputs"):
        Distillation(
            net(),
            teacher_of(),
            {"odd": (cls, {})},
            data=DataFacts(ROWS, LABELS, CLASSES, batch(2)["input"]),
            task=image.loss,
        )


@pytest.mark.parametrize("name", sorted({*KEYS.values(), *methods_of_detectors()}))
def test_a_method_says_where_it_belongs(name):
    """Its family is one that `kdrun methods` shows, it names a paper, and its docstring states the loss."""
    cls = METHODS.get(name)
    assert cls.family in FAMILIES
    if name != "none":
        assert re.fullmatch(r".+, (19|20)\d\d", cls.paper)
        assert "\nLoss: " in inspect.getdoc(cls)


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


# The interface --------------------------------------------------------------------------------------------------------


def test_a_method_that_forgets_its_loss_is_told_what_to_write():
    """The base class names the signature that is missing."""
    from kdrun.methods import Method

    with pytest.raises(NotImplementedError, match=r"Method must define loss\(student, teacher, batch\)"):
        Method().loss(SimpleNamespace(), None, {})
