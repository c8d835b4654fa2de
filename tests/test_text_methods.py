"""Methods on small transformers: those of transformers, and those of every task on hidden states; padding, pairs that do not fit."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import text_pair
import torch
from test_methods import build as build_pair
from test_methods import net, settings, snapshot, step
from text_pair import CLASSES, MASK, NARROW, PAD, ROWS, WIDER, batch, encoder, facts, teacher_of
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.engine.loop import enter
from kdrun.errors import KdrunError
from kdrun.methods.base import DataFacts
from kdrun.methods.distillation import Distillation
from kdrun.methods.tinybert import attention_distance, hidden_distance
from kdrun.tasks import classes as task

pytest.importorskip("transformers")

OWN = ("pkd_bert", "distilbert", "tinybert", "minilm", "minilmv2")
HIDDEN = [["layer1", "layer2"], ["layer2", "layer4"]]  # of student and teacher
LAST = [["layer2"], ["layer4"]]
# A case -> the choice of the group method, and changes of its settings.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in (*OWN, "noise_labels", "kd", "logits", "dkd", "dist", "ls", "dml", "label_smoothing")},
    **{f"{name} pooled": (name, {"taps": ["pooled"]}) for name in ("rkd", "sp", "pkt", "cc", "crd", "mimic", "fitnet_joint")},
    "rkd cls": ("rkd", {"taps": ["cls"]}), "crd cls": ("crd", {"taps": ["cls"]}),
    "mimic cls": ("mimic", {"taps": [["cls1", "cls2"], ["cls2", "cls4"]]}),
    "mimic hidden": ("mimic", {"taps": HIDDEN}), "fitnet hidden": ("fitnet", {"taps": LAST}),
    "fitnet_joint hidden": ("fitnet_joint", {"taps": LAST}),
    "pkd_bert last": ("pkd_bert", {"layers": "last"}), "tinybert list": ("tinybert", {"layers": [1, 3]}),
    "minilm layer": ("minilm", {"teacher_layer": 3}), "minilmv2 layer": ("minilmv2", {"teacher_layer": 3, "relation_heads": 4}),
}  # fmt: skip


def build(case: str, student: nn.Module | None = None, teacher: nn.Module | None = None, **changes: Any):
    """A Distillation of this case on a pair of transformers, and the weights of its terms."""
    name, more = CASES[case]
    return pair_of(name, student, teacher, **{**more, **changes})


def pair_of(
    name: str, student: nn.Module | None = None, teacher: nn.Module | None = None, data: DataFacts | None = None, **changes: Any
):  # fmt: skip
    ((key, values),) = settings(name).items()
    values.update(changes)
    teacher = teacher or teacher_of()
    distillation = Distillation(
        student or encoder(), teacher.eval(), {key: (METHODS.get(key), values)}, data=data or facts(), task=task.loss,
        fresh=lambda i: encoder(seed=10 + i),
    )  # fmt: skip
    weights = {t if t == "task" else f"{key}.{t}": weight for t, weight in values.get("weights", {}).items()}
    return distillation, {"task": 1.0, **weights}


def losses(
    distillation: Distillation, number: int, data: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of a stage, and the gradients of their sum by parameter."""
    stage = distillation.stages[number]
    enter(distillation, stage)
    distillation.begin_epoch(number, 0)
    _, terms = distillation(data, stage)
    distillation.zero_grad()
    sum(terms.values()).backward()
    gradients = {name: p.grad.clone() for name, p in distillation.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in terms.items()}, gradients


# Every method ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "widths", [(NARROW, NARROW), (NARROW, WIDER), (WIDER, NARROW)], ids=["equal", "thinner", "wider"]
)
@pytest.mark.parametrize("case", CASES)
def test_a_step_of_each_stage_trains_the_student(case, widths):
    """All terms of the yaml, finite; weights of the student move, also where the teacher has another width."""
    student, teacher = encoder(widths[0]), encoder(widths[1], layers=4, seed=1)
    distillation, weights = build(case, student, teacher)
    met: set[str] = set()
    for number in range(len(distillation.stages)):
        before = snapshot(student)
        terms = step(distillation, weights, number)
        met |= terms.keys()
        assert all(value.isfinite() for value in terms.values()), terms
        moved = [key for key, value in student.state_dict().items() if not torch.equal(value, before[key])]
        assert len(moved) > 5
    assert met == set(weights)


@pytest.mark.parametrize("case", CASES)
def test_padding_changes_no_loss_and_no_gradient(case):
    """Seven more columns of padding: the same terms, and the same gradients of the student and of the method's layers."""
    distillation, _ = build(case)
    for number in range(len(distillation.stages)):
        terms, gradients = losses(distillation, number, batch())
        padded_terms, padded = losses(distillation, number, batch(padding=7))
        assert terms.keys() == padded_terms.keys()
        assert gradients.keys() == padded.keys()
        for name in terms:
            torch.testing.assert_close(padded_terms[name], terms[name], rtol=1e-5, atol=1e-5, msg=name)
        size = max(
            1.0, *(gradient.abs().max().item() for gradient in gradients.values())
        )  # 164 for dist, below 10 for the others
        for name in gradients:
            torch.testing.assert_close(padded[name], gradients[name], rtol=0, atol=1e-5 * size, msg=name)


@pytest.mark.parametrize(
    "case", [c for c in CASES if CASES[c][0] not in ("crd", "dml", "label_smoothing", "noise_labels")]
)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(case):
    """Every term is 0, but for the words that distilbert predicts: neither model knows them."""
    student = encoder(layers=4)
    changes: dict[str, Any] = {"taps": ["layer2", "layer4"]} if CASES[case][1].get("taps") == HIDDEN else {}
    changes |= {"taps": ["layer4"]} if CASES[case][1].get("taps") == LAST else {}
    changes |= {"taps": ["cls1", "cls4"]} if case == "mimic cls" else {}
    changes |= {"layers": [1, 2, 3, 4]} if case == "tinybert list" else {}
    changes |= {"teacher_layer": 4} if "teacher_layer" in CASES[case][1] else {}
    distillation, _ = build(case, student, copy.deepcopy(student), **changes)
    for number in range(len(distillation.stages)):
        terms, _ = losses(distillation, number, batch())
        compared = {name: value.item() for name, value in terms.items() if name not in ("task", "distilbert.masked")}
        assert compared
        assert compared == pytest.approx(
            dict.fromkeys(compared, 0.0), abs=1e-3 if case == "dist" else 1e-5
        )  # its 1e-8, as published


@pytest.mark.parametrize("case", OWN)
def test_a_dead_student_gets_finite_gradients(case):
    """All weights 0: states without length or direction."""
    student = encoder()
    for weight in student.parameters():
        nn.init.zeros_(weight)
    distillation, _ = build(case, student)
    for number in range(len(distillation.stages)):
        terms, gradients = losses(distillation, number, batch())
        assert all(value.isfinite() for value in terms.values())
        assert all(value.isfinite().all() and value.abs().max() < 1e3 for value in gradients.values())


# Taps and layer maps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "student", "teacher"),
    [
        ("pkd_bert", {"layers": "skip"}, ["cls1", "cls2"], ["cls2", "cls4"]),
        ("pkd_bert", {"layers": "last"}, ["cls1", "cls2"], ["cls4", "cls5"]),
        ("pkd_bert", {"layers": [1, 5]}, ["cls1", "cls2"], ["cls1", "cls5"]),
        ("distilbert", {}, ["layer3"], ["layer6"]), ("minilm", {}, ["attention3", "value3"], ["attention6", "value6"]),
        ("minilm", {"teacher_layer": 4}, ["attention3", "value3"], ["attention4", "value4"]),
        ("minilmv2", {"teacher_layer": 5}, ["query3", "key3", "value3"], ["query5", "key5", "value5"]),
        ("tinybert", {"layers": "uniform"}, ["embeddings", "layer1", "layer2", "layer3", "attention1", "attention2", "attention3"],
         ["embeddings", "layer2", "layer4", "layer6", "attention2", "attention4", "attention6"]),
    ],
)  # fmt: skip
def test_layers_are_mapped(name, changes, student, teacher):
    given = METHODS.get(name).choose_taps(
        ([], []), {**settings(name)[name], **changes}, encoder(layers=3), encoder(layers=6)
    )
    assert given == (student, teacher)


def test_a_self_distilled_pair_maps_layer_on_layer():
    mine = METHODS.get("tinybert").choose_taps(([], []), {"layers": "uniform"}, encoder(layers=4), encoder(layers=4))
    assert mine[0] == mine[1]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tinybert", {"layers": "unform"}, "no layers 'unform' of tinybert. Did you mean uniform"),
        ("tinybert", {"layers": [2]}, r"method.tinybert.layers is \[2\]; give 2 of the teacher's layers"),
        ("pkd_bert", {"layers": [2, 4]}, "give 1 of the teacher's layers, one for each layer of the student but the last"),
        ("minilm", {"teacher_layer": 5}, "method.minilm.teacher_layer names layer 5; the teacher's layers are 1 to 4"),
        ("minilmv2", {"relation_heads": 5}, "relation_heads is 5; it must divide the width 48 of the student. Choices: 1, 2, 3, 4"),
        ("minilmv2", {"relation_heads": 0}, "method.minilmv2.relation_heads is 0; it must be 1 or more"),
        ("distilbert", {"share": 1.5}, "method.distilbert.share is 1.5; it must be above 0 and below 1"),
        ("noise_labels", {"scale": -1.0}, "method.noise_labels.scale is -1.0; it must be"),
        *[(name, {"taps": ["layer1"]}, rf"{name}' chooses its own taps; .* method\.{name}\.taps$") for name in OWN],
    ],
)  # fmt: skip
def test_settings_that_cannot_work_stop_with_a_sentence(name, changes, message):
    with pytest.raises(KdrunError, match=message) as error:
        pair_of(name, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tinybert", "minilm"])
def test_attention_head_by_head_wants_equal_numbers(name):
    message = f"{name} compares attention head by head, and the student has 4 heads, the teacher 2; give the student 2, or .*minilmv2"
    with pytest.raises(KdrunError, match=message):
        pair_of(name, encoder(heads=4))
    distillation, weights = pair_of("minilmv2", encoder(heads=4), relation_heads=6)
    assert all(value.isfinite() for value in step(distillation, weights).values())


@pytest.mark.parametrize("name", OWN)
def test_images_have_no_layers_of_transformers(name):
    """A pair of images stops with a sentence, and so does a student without a teacher."""
    data = DataFacts(ROWS, text_pair.LABELS, CLASSES, torch.randn(2, 3, 8, 8))
    with pytest.raises(KdrunError, match=rf"method '{name}' compares .* the student ResNet has no taps layer1"):
        pair_of(name, net(), net(seed=1), data)
    with pytest.raises(KdrunError, match="and this run has teacher=none"):
        Distillation(encoder(), None, {name: (METHODS.get(name), settings(name)[name])}, data=facts(), task=task.loss)


# DistilBERT ------------------------------------------------------------------------------------------------------------------


def test_distilbert_wants_a_mask_token():
    with pytest.raises(
        KdrunError, match="distilbert hides words behind the tokenizer's mask token, and this tokenizer has none"
    ):
        pair_of("distilbert", data=facts(mask_id=None))


def test_distilbert_shows_masked_words_in_its_second_pass_alone():
    """The first pass sees the sentences; the second the same ones with masks, never in place of special words or padding."""
    student, seen = encoder(), []
    distillation, _ = pair_of("distilbert", student, share=0.5)
    student.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    data = batch()
    words = data["input"]["input_ids"]
    losses(distillation, 0, data)
    assert len(seen) == 2
    assert torch.equal(seen[0], words)
    assert torch.equal(data["input"]["input_ids"], words)
    changed = seen[1] != words
    assert (seen[1] == MASK).any()
    assert changed.sum() < 0.6 * (words > MASK).sum()
    assert not changed[words <= MASK].any()
    assert not ((seen[1] == PAD) & (words != PAD)).any()
    losses(distillation, 0, data)
    assert torch.equal(seen[3], seen[1])  # the same epoch, the same draws
    distillation.begin_epoch(0, 1)
    distillation(data, distillation.stages[0])
    assert not torch.equal(seen[5], seen[1])
    distillation(data, distillation.stages[0])
    assert not torch.equal(seen[7], seen[5])  # the next step of an epoch


def test_distilbert_is_tied_to_the_students_embeddings():
    """Its masked term alone moves them; the state dict has them once."""
    student = encoder()
    distillation, _ = pair_of("distilbert", student)
    enter(distillation, distillation.stages[0])
    distillation.begin_epoch(0, 0)
    _, terms = distillation(batch(), distillation.stages[0])
    table = student.get_input_embeddings().weight
    (gradient,) = torch.autograd.grad(terms["distilbert.masked"], table)
    unseen = torch.tensor([w for w in range(3, text_pair.VOCABULARY) if not (batch()["input"]["input_ids"] == w).any()])
    assert gradient[unseen].abs().max() > 0  # as outputs: no sentence has these words
    assert [key for key, v in distillation.state_dict().items() if v.shape == table.shape] == [
        f"student.module.{next(k for k, v in student.named_parameters() if v is table)}"
    ]


# TinyBERT --------------------------------------------------------------------------------------------------------------------


def test_tinyberts_first_stage_leaves_the_classifier_alone_and_its_second_the_map():
    student = encoder()
    distillation, weights = pair_of("tinybert", student)
    assert weights["task"] == 0
    assert [stage.name for stage in distillation.stages] == ["layers", "distil"]
    before = snapshot(distillation)
    assert step(distillation, weights, 0).keys() == {"tinybert.embeddings", "tinybert.attention", "tinybert.hidden"}
    after = snapshot(distillation)
    still = {key for key, value in after.items() if torch.equal(value, before[key])}
    assert {key.split(".")[2] for key in still if key.startswith("student")} >= {"classifier"}
    assert all("classifier" in key or "pooler" in key or key.endswith("key.bias") for key in still), still
    distillation.zero_grad()
    assert step(distillation, weights, 1).keys() == {"task", "tinybert.soft"}
    assert torch.equal(distillation.state_dict()["methods.tinybert.fit.weight"], after["methods.tinybert.fit.weight"])


def test_tinybert_shares_one_map_and_has_none_for_equal_widths():
    """One linear layer for embeddings and all layers, as released."""
    layers = [m for m in pair_of("tinybert")[0].methods["tinybert"].modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(NARROW, WIDER)]
    alike, _ = pair_of("tinybert", teacher=encoder(layers=4, seed=1))
    assert not list(alike.methods["tinybert"].parameters())


def test_tinybert_adds_its_layers():
    """Hidden and attention are sums over the layers, embeddings stand alone, each by its own pair of taps."""
    distillation, _ = pair_of("tinybert", layers=[1, 3])
    data = batch()
    terms, _ = losses(distillation, 0, data)
    method = distillation.methods["tinybert"]
    student, teacher = method.run(data)
    hidden = [hidden_distance(method.fit(student.taps[i]), teacher.taps[i], data["mask"]) for i in (0, 1, 2)]
    attention = [attention_distance(student.taps[i], teacher.taps[i], data["mask"]) for i in (3, 4)]
    assert student.taps[3].shape == (6, 2, 9, 9)
    torch.testing.assert_close(terms["tinybert.embeddings"], hidden[0].detach())
    torch.testing.assert_close(terms["tinybert.hidden"], (hidden[1] + hidden[2]).detach())
    torch.testing.assert_close(terms["tinybert.attention"], (attention[0] + attention[1]).detach())


# Noise labels ----------------------------------------------------------------------------------------------------------------


def targets(distillation: Distillation, data: dict[str, Any]) -> Tensor:
    """What the logits must be for a loss of 0: found by descent on the loss alone."""
    method = distillation.methods["noise_labels"]
    logits = torch.zeros(len(data["label"]), CLASSES, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        loss = method.loss(SimpleNamespace(logits=logits), None, data)["soft"]
        loss.backward()
        return loss

    optimizer.step(closure)
    return (logits - logits.mean(1, keepdim=True)).detach()


def test_noise_labels_belong_to_a_sentence_and_a_seed():
    """Whatever the batch, its order and the epoch; another seed of the run draws others. The label stands out by `peak`."""
    distillation, _ = pair_of("noise_labels")
    data = batch()
    expected = targets(distillation, data)
    order = torch.tensor([3, 0, 5])
    distillation.begin_epoch(0, 7)
    part = {**data, "label": data["label"][order], "index": data["index"][order]}
    torch.testing.assert_close(targets(distillation, part), expected[order], atol=2e-3, rtol=0)
    assert torch.equal(expected.argmax(1), data["label"])
    alike = targets(distillation, {"label": torch.zeros(4, dtype=torch.long), "index": torch.arange(4)})
    assert torch.pdist(alike).min() > 0.02  # four sentences of one class
    assert 0.01 < (expected - nn.functional.one_hot(data["label"], CLASSES).float() + 1 / CLASSES).std() < 0.2
    values = settings("noise_labels")["noise_labels"]
    for seed, same in ((0, True), (1, False)):
        other = Distillation(
            encoder(),
            None,
            {"noise_labels": (METHODS.get("noise_labels"), values)},
            data=facts(),
            task=task.loss,
            seed=seed,
        )
        assert torch.allclose(targets(other, data), expected, atol=2e-3) is same


# Regression ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_numbers_to_be_predicted(name):
    """The relations of MiniLM need no classes; what has soft targets says that it does."""
    labels = torch.linspace(0, 5, ROWS)[:, None]
    data = DataFacts(ROWS, labels, 1, batch(2)["input"], preprocessing=facts().preprocessing, mask=batch(2)["mask"])
    if name not in ("minilm", "minilmv2"):
        with pytest.raises(KdrunError, match=f"method '{name}' compares classes"):
            pair_of(name, data=data)
        return
    distillation, _ = pair_of(name, data=data)
    terms, gradients = losses(distillation, 0, batch())
    assert all(terms[term].isfinite() for term in terms)
    assert gradients


def test_beside_another_method_each_sees_the_taps_as_it_wants_them():
    """minilm takes sentences, mimic rows of tokens; together they give what each gives alone."""
    both, weights = build_pair("minilm", "mimic", student=encoder(), teacher=encoder(layers=4, seed=1))
    together = step(both, weights)
    for name in ("minilm", "mimic"):
        alone, own = pair_of(name, teacher=encoder(layers=4, seed=1))
        for term, value in step(alone, own).items():
            torch.testing.assert_close(together[term], value, rtol=1e-5, atol=1e-6, msg=term)
