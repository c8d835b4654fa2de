"""Module replacing: who learns, what a hybrid computes, and how the probability moves."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from small_encoders import CLASSES, batch, encoder, shorter
from torch import nn

from kdrun.config.schema import conf_folder
from kdrun.engine.loop import enter
from kdrun.engine.optimization import make_optimizer
from kdrun.errors import KdrunError
from kdrun.methods.base import DataFacts
from kdrun.methods.distillation import Distillation
from kdrun.methods.theseus import Mixed, Theseus, replaced, replacing_rate


def settings(**changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load((conf_folder() / "method" / "theseus.yaml").read_text())["theseus"], **changes}


def pair(teacher: nn.Module, student: nn.Module, **changes: Any) -> Distillation:
    one = batch(2)
    facts = DataFacts(8, torch.arange(8) % CLASSES, CLASSES, one["input"], mask=one["mask"])
    loss = lambda output, batch: F.cross_entropy(output, batch["label"])  # noqa: E731
    return Distillation(student, teacher, {"theseus": (Theseus, settings(**changes))}, data=facts, task=loss)


def small(kind: str = "bert", **changes: Any) -> Distillation:
    """Four layers and two."""
    teacher = encoder(4, kind=kind)
    return pair(teacher, shorter(teacher, [0, 2]), **changes)


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def step(distillation: Distillation, number: int = 0, p: float | None = None) -> tuple[Any, Any]:
    """Output and terms of one step of a stage, as the loop makes them; `p` forces the probability."""
    stage = distillation.stages[number]
    enter(distillation, stage)
    method: Any = distillation.methods["theseus"]
    if p is not None:
        method.rate, method.full_at = p, None
    return distillation(batch(6), stage)


def test_stages_and_what_they_train() -> None:
    distillation = small()
    first, second = distillation.stages
    assert (first.name, second.name) == ("replace", "distil")
    assert first.may_skip
    assert not second.may_skip
    assert [*first.trains] == [distillation.student.module.get_submodule("bert.encoder.layer")]


def test_only_the_students_layers_learn_while_modules_are_replaced() -> None:
    """Three steps of the optimiser change the student's layers, and no other bit of either model."""
    from kdrun.config.schema import Recipe

    distillation = small(rate=0.6, full_at=None)
    stage, teacher = distillation.stages[0], distillation.teacher
    enter(distillation, stage)
    distillation.begin_epoch(0, 0)
    before = bits(distillation), bits(teacher)
    optimizer = make_optimizer(stage, Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.1))
    trained = 0
    for _ in range(6):
        _, terms = distillation(batch(6), stage)
        total = terms["theseus.hybrid"]
        assert torch.isfinite(total)
        if total.requires_grad:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            trained += 1
    assert trained >= 2
    changed = {name for name, value in distillation.state_dict().items() if not torch.equal(value, before[0][name])}
    layers = {name for name in before[0] if ".encoder.layer." in name}
    assert changed == layers
    assert all(torch.equal(value, before[1][name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())
    assert [*teacher.module.get_submodule("bert.encoder.layer")] == [
        *distillation.methods["theseus"].frame[0].bert.encoder.layer
    ]


def test_with_p_one_the_hybrid_is_the_students_layers_in_the_frozen_frame() -> None:
    distillation = small()
    with torch.no_grad():  # so that the frames differ
        distillation.student.module.classifier.bias += 1
        distillation.student.module.bert.encoder.layer[0].output.dense.bias += 0.5
    enter(distillation, distillation.stages[0])
    distillation.eval()  # no dropout
    method: Any = distillation.methods["theseus"]
    method.rate, method.full_at = 1.0, None
    x = batch(6)
    output, _ = distillation(x, distillation.stages[0])
    student, teacher = distillation.student.module, distillation.teacher.module
    hidden = teacher.bert.embeddings(**{k: v for k, v in x["input"].items() if k != "attention_mask"})
    mask = (1 - x["input"]["attention_mask"][:, None, None].float()) * torch.finfo(torch.float32).min
    for layer in student.bert.encoder.layer:
        hidden = layer(hidden, mask)
    wanted = teacher.classifier(teacher.bert.pooler(hidden))
    torch.testing.assert_close(output.logits, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output.logits, student(x["input"]), atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra"])
def test_with_p_zero_the_hybrid_is_the_teacher_and_has_no_gradient(kind: str) -> None:
    distillation = small(kind)
    stage = distillation.stages[0]
    enter(distillation, stage)
    method: Any = distillation.methods["theseus"]
    method.rate, method.full_at = 0.0, None
    x = batch(6, kind=kind)
    output, terms = distillation(x, stage)
    assert torch.equal(output.logits, distillation.teacher(x["input"]).logits)
    assert not terms["theseus.hybrid"].requires_grad


def test_the_rate() -> None:
    """Constant, and the line p0 + k * step, which is 1 at `full_at` and stays there."""
    assert [replacing_rate(t, 0.5, None) for t in (0.0, 0.5, 1.0)] == [0.5] * 3
    line = [replacing_rate(t, 0.3, 0.5) for t in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)]
    assert line == pytest.approx([0.3, 0.475, 0.65, 1.0, 1.0, 1.0])
    steps, k = 400, 0.7 / (0.5 * 400)  # the same in steps
    assert [replacing_rate(i / steps, 0.3, 0.5) for i in range(steps)] == pytest.approx(
        [min(1.0, 0.3 + k * i) for i in range(steps)]
    )


def test_the_stage_follows_its_progress() -> None:
    distillation = small(rate=0.3, full_at=0.5)
    enter(distillation, distillation.stages[0])
    distillation.begin_epoch(0, 0)
    rates = []
    for progress in (0.0, 0.25, 0.5, 0.9):
        distillation.set_progress(progress)
        distillation(batch(2), distillation.stages[0])
        rates.append(distillation.logged()["theseus.rate"])
    assert rates == pytest.approx([0.3, 0.65, 1.0, 1.0])


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_the_share_of_replaced_modules_is_p(p: float) -> None:
    """Each module has draws of its own: both are replaced together in p^2 of the steps."""
    distillation = small()
    method: Any = distillation.methods["theseus"]
    method.generator.manual_seed(1)
    new = set(method.successors)
    hybrids = [
        [
            layer in new
            for layer in method._hybrid(p)
            if layer in new or layer in (method.groups[0][0], method.groups[1][0])
        ]
        for _ in range(2000)
    ]
    draws = torch.tensor(hybrids).float()
    assert draws.mean(0).tolist() == pytest.approx([p, p], abs=0.04)
    assert draws.prod(1).mean().item() == pytest.approx(p * p, abs=0.04)


def test_a_student_layer_stands_for_a_group_in_its_place() -> None:
    distillation = small()
    method: Any = distillation.methods["theseus"]
    teacher = [*distillation.teacher.module.bert.encoder.layer]
    assert method.groups == (teacher[:2], teacher[2:])
    assert method._hybrid(0.0) == teacher
    assert method._hybrid(1.0) == [*method.successors]


def test_proportional_by_hand() -> None:
    """p s(x) + (1 - p) t(x) with layers that multiply; a group is one after another."""

    class Times(nn.Module):
        def __init__(self, factor: float):
            super().__init__()
            self.factor = factor

        def forward(self, x, mask=None):
            return self.factor * x

    x = torch.tensor([[[1.0, -2.0]]])
    mixed = Mixed(Times(5.0), [Times(2.0), Times(3.0)], 0.25, 1.0)
    torch.testing.assert_close(mixed(x, None), x * (0.25 * 5 + 0.75 * 6))
    halved = Mixed(Times(5.0), [Times(2.0), Times(3.0)], 0.25, 0.5)
    torch.testing.assert_close(halved(x, mask=None), x * (0.25 * 5 + 0.75 * 6) / 2)


@pytest.mark.parametrize(("variant", "scale"), [("proportional", 1.0), ("code", 0.5)])
def test_proportional_mixes_whole_models(variant: str, scale: float) -> None:
    """Against a loop over the modules, with gradients in every successor and nowhere else."""
    distillation = small(variant=variant, rate=0.4, full_at=None)
    stage = distillation.stages[0]
    enter(distillation, stage)
    distillation.eval()
    x = batch(5)
    output, terms = distillation(x, stage)
    student, teacher = distillation.student.module, distillation.teacher.module
    hidden = teacher.bert.embeddings(**{k: v for k, v in x["input"].items() if k != "attention_mask"})
    mask = (1 - x["input"]["attention_mask"][:, None, None].float()) * torch.finfo(torch.float32).min
    for number, layer in enumerate(student.bert.encoder.layer):
        old = hidden
        for one in teacher.bert.encoder.layer[2 * number : 2 * number + 2]:
            old = one(old, mask)
        hidden = scale * (0.4 * layer(hidden, mask) + 0.6 * old)
    torch.testing.assert_close(output.logits, teacher.classifier(teacher.bert.pooler(hidden)), rtol=1e-4, atol=1e-5)
    terms["theseus.hybrid"].backward()
    with_gradient = {name for name, p in student.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in student.named_parameters() if ".encoder.layer." in name}


def test_the_teachers_layers_come_back_after_an_error() -> None:
    teacher = encoder(4)
    own = teacher.bert.encoder.layer
    with suppress(ZeroDivisionError), replaced(teacher, [own[0]]):
        assert [*teacher.bert.encoder.layer] == [own[0]]
        raise ZeroDivisionError
    assert teacher.bert.encoder.layer is own


def test_the_teacher_is_in_no_state_dict() -> None:
    distillation = small()
    assert not any("theseus" in name for name in distillation.state_dict())
    assert len([*distillation.parameters()]) == len([*distillation.student.module.parameters()])


def test_pairs_that_cannot_work_are_one_line() -> None:
    teacher = encoder(4)
    with pytest.raises(
        KdrunError, match=r"the teacher's 4 layers do not divide by the student's 3; say student.layers=1 or 2 or 4"
    ):
        pair(teacher, shorter(teacher, [0, 1, 2]))
    with pytest.raises(KdrunError, match="the student's hidden_size is 16, the teacher's 32"):
        pair(teacher, encoder(2, hidden_size=16))
    with pytest.raises(KdrunError, match=r"method.theseus.rate is 0; it must be from 0.1 to 1"):
        pair(teacher, shorter(teacher, [0]), rate=0)
    with pytest.raises(KdrunError, match="no variant 'proportion' of theseus"):
        pair(teacher, shorter(teacher, [0]), variant="proportion")
    student = shorter(teacher, [0])
    del student.blocks
    with pytest.raises(KdrunError, match="the student BertForSequenceClassification declares no list of them"):
        pair(teacher, student)
