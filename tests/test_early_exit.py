"""Early exit: what branches read and learn, who leaves when, and what the record says of it."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from small_encoders import CLASSES, batch, encoder
from torch import nn

from kdrun.config.schema import Recipe, conf_folder
from kdrun.engine.loop import enter
from kdrun.engine.optimization import make_optimizer
from kdrun.errors import KdrunError
from kdrun.methods import speedup
from kdrun.methods.base import DataFacts
from kdrun.methods.distillation import Distillation
from kdrun.methods.early_exit import EarlyExit, branch_divergence
from kdrun.methods.taps import Tapped
from kdrun.tasks.text.models.exits import Branch, add_exits, exits_of, uncertainty

KINDS = ["bert", "distilbert", "roberta", "electra"]


def with_exits(layers: int = 4, seed: int = 0, kind: str = "bert", gain: float = 3.5) -> Any:
    """A model whose branches differ in how sure they are of a sentence."""
    model = add_exits(encoder(layers, seed, kind), CLASSES).eval()
    with torch.no_grad():
        for branch in model.exits:
            for parameter in branch.parameters():
                parameter.mul_(gain)
    return model


def one_by_one(model: Any, x: dict[str, torch.Tensor], threshold: float) -> tuple[torch.Tensor, list[int]]:
    """Logits and the layer of leaving of each sentence, from the plain model and its branches alone."""
    outputs: list[torch.Tensor] = []
    layers = [*model.get_submodule(model.blocks)]
    handles = [layer.register_forward_hook(lambda _, a, output: outputs.append(output)) for layer in layers]
    model.exits.threshold = 0
    with torch.no_grad():
        last = model(x)
    for handle in handles:
        handle.remove()
    logits, places = last.clone(), [len(layers) - 1] * len(last)
    for row in range(len(last)):
        for place, branch in enumerate(model.exits):
            own = branch(outputs[place][row : row + 1], x["attention_mask"][row : row + 1])[0]
            p = own.softmax(0)
            if -(p * p.log()).sum().item() / math.log(CLASSES) < threshold:
                logits[row], places[row] = own, place
                break
    return logits.detach(), places


def test_uncertainty_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]], dtype=torch.float64)
    wanted = [(0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(3), 1.0, 0.0]
    assert uncertainty((p + 1e-30).log()).tolist() == pytest.approx(wanted, abs=1e-6)


def test_divergence_from_the_equation() -> None:
    """The sum over branches of the batch mean of sum_k p log(p / q), in float64."""
    draw = torch.Generator().manual_seed(0)
    t, *branches = torch.randn(4, 5, 3, generator=draw, dtype=torch.float64)
    p = t.softmax(1)
    wanted = sum((p * (p / q.softmax(1)).log()).sum(1).mean() for q in branches)
    torch.testing.assert_close(branch_divergence(branches, t), wanted)
    assert branch_divergence([t, t], t).item() == pytest.approx(0, abs=1e-12)


def test_a_branch_reads_the_output_of_its_layer() -> None:
    """Branch i reads what layer i gives, not what it gets."""
    model, x = with_exits(), batch(5)["input"]
    output = Tapped(model, ["exit1", "exit2", "exit3", "bert.encoder.layer.0", "bert.encoder.layer.2"])(x)
    assert [tuple(tap.shape) for tap in output.taps[:3]] == [(5, CLASSES)] * 3
    torch.testing.assert_close(model.exits[0](output.taps[3], x["attention_mask"]), output.taps[0])
    torch.testing.assert_close(model.exits[2](output.taps[4], x["attention_mask"]), output.taps[2])


@pytest.mark.parametrize("kind", KINDS)
def test_exits_change_no_name_and_no_logit_of_the_model(kind: str) -> None:
    plain, model, x = encoder(4, kind=kind).eval(), with_exits(kind=kind), batch(5, kind=kind)["input"]
    names = [name for name in model.state_dict() if not name.startswith("exits.")]
    assert names == [*plain.state_dict()]
    for threshold in (None, 0.0):
        if threshold is not None:
            model.exits.threshold = threshold
        assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 1.0])
def test_sentences_leave_when_their_branch_is_sure(kind: str, threshold: float) -> None:
    """Logits and places as one by one; every sentence in its row; nobody computes a layer after it has left."""
    model, x = with_exits(kind=kind), batch(16, kind=kind)["input"]
    wanted, places = one_by_one(model, x, threshold)
    sizes: list[int] = []
    for layer in model.get_submodule(model.blocks).children():
        layer.register_forward_hook(lambda _, args, output: sizes.append(len(args[0])))
    model.exits.threshold = threshold
    model.exits.count()
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    stay = [sum(place >= layer for place in places) for layer in range(4)]
    assert sizes == [count for count in stay if count]
    assert model.exits.count() == [places.count(layer) for layer in range(4)]


def test_the_cases_are_not_all_alike() -> None:
    """So that the test above sees sentences leave after each layer, and all of them leave."""
    model, x = with_exits(), batch(16)["input"]
    assert len({*one_by_one(model, x, 0.6)[1]}) >= 3
    assert max(one_by_one(model, x, 1.0)[1]) == 0


def test_padding_changes_nothing() -> None:
    model, one = with_exits(), batch(6)
    model.exits.threshold = 0.6
    longer = {key: F.pad(value, (0, 5)) for key, value in one["input"].items()}
    with torch.no_grad():
        torch.testing.assert_close(model(longer), model(one["input"]), rtol=1e-4, atol=1e-4)


def test_one_sentence_alone_and_a_pass_that_broke_off() -> None:
    model, x = with_exits(), batch(6)["input"]
    model.exits.threshold = 0.3
    with torch.no_grad():
        whole = model(x)
        alone = [model({key: value[i : i + 1] for key, value in x.items()}) for i in range(6)]
        torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-4, atol=1e-4)
        handle = model.get_submodule(model.blocks + ".1").register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(x)
        handle.remove()
        assert torch.equal(model(x), whole)


def test_a_copy_has_exits_of_its_own_and_the_threshold_is_saved() -> None:
    model, x = with_exits(), batch(6)["input"]
    model.exits.threshold = 0.6
    twin = copy.deepcopy(model)
    twin.exits.threshold = 0
    other = with_exits(seed=3)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert not torch.equal(twin(x), model(x))
        assert torch.equal(other(x), model(x))
    assert (other.exits.threshold, twin.exits.threshold) == (0.6, 0.0)
    assert exits_of(nn.Sequential(other)) is other.exits


def test_what_cannot_work_is_one_line() -> None:
    model = with_exits()
    with pytest.raises(KdrunError, match=r"threshold of early exit is 1\.5; it must lie between 0"):
        model.exits.threshold = 1.5
    with pytest.raises(KdrunError, match="exits=true needs classes"):
        add_exits(encoder(2), 1)
    with pytest.raises(KdrunError, match="exits=true needs two layers or more"):
        add_exits(encoder(1), CLASSES)
    with pytest.raises(KdrunError, match="Linear has no exits"):
        exits_of(nn.Linear(2, 2))
    with pytest.raises(KdrunError, match=r"has none; say student\.exits=true"):
        pair(encoder(4), encoder(4))
    with pytest.raises(KdrunError, match=r"the teacher's bert\.encoder\.layer\.4.* has no place in it"):
        pair(encoder(5), with_exits())


def test_a_branch_from_its_equations() -> None:
    """In float64: two heads, all tokens that are no padding, the first token's answer alone."""
    torch.manual_seed(0)
    branch = Branch(96, 3).double()
    x, mask = torch.randn(4, 7, 96, dtype=torch.float64), torch.arange(7) < torch.tensor([7, 3, 5, 1])[:, None]
    h = torch.tanh(branch.narrow(x))
    q, (k, v) = branch.query(h), branch.key_value(h).split(16, 2)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        scores = q[:, 0, None, part] @ k[:, :, part].transpose(1, 2) / 8**0.5
        heads.append(scores.masked_fill(~mask[:, None], -torch.inf).softmax(2) @ v[:, :, part])
    mixed = torch.cat(heads, 2)[:, 0]
    torch.testing.assert_close(branch(x, mask), branch.out(torch.tanh(branch.dense(mixed))))


# The method -------------------------------------------------------------------------------------------------------------


def pair(teacher: nn.Module, student: nn.Module, **changes: Any) -> Distillation:
    one = batch(2)
    values = {**yaml.safe_load((conf_folder() / "method" / "early_exit.yaml").read_text())["early_exit"], **changes}
    facts = DataFacts(8, torch.arange(8) % CLASSES, CLASSES, one["input"], mask=one["mask"])
    loss = lambda output, batch: F.cross_entropy(output, batch["label"])  # noqa: E731
    return Distillation(student, teacher, {"early_exit": (EarlyExit, values)}, data=facts, task=loss)


def alike(**changes: Any) -> Distillation:
    """A teacher, and a student with its weights and with exits."""
    return pair(encoder(4), with_exits(), **changes)


def test_only_branches_learn_and_they_learn_the_teacher() -> None:
    distillation = alike(threshold=0.5)
    (stage,) = distillation.stages
    assert stage.name == "distil"
    enter(distillation, stage)
    before = {name: value.clone() for name, value in distillation.state_dict().items()}
    optimizer = make_optimizer(stage, Recipe(optimizer="adamw", lr=1e-2, weight_decay=0.1))
    one, losses = batch(16), []
    for _ in range(20):
        output, terms = distillation(one, stage)
        assert {*terms} == {"early_exit.branches"}
        assert torch.equal(
            output.logits, distillation.teacher(one["input"]).logits
        )  # eval mode: the whole model, no dropout
        optimizer.zero_grad()
        terms["early_exit.branches"].backward()
        optimizer.step()
        losses.append(terms["early_exit.branches"].item())
    assert losses[-1] < 0.5 * losses[0]
    changed = {name for name, value in distillation.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".exits." in name and not name.endswith("limit")}
    wanted = branch_divergence(output.taps, output.logits)
    torch.testing.assert_close(terms["early_exit.branches"], wanted)


def test_a_student_that_does_not_start_from_the_teacher_is_refused() -> None:
    """Before the first step: at the rehearsal a student has no weights of the teacher yet."""
    distillation = pair(encoder(4), with_exits(seed=1))
    stage, method = distillation.stages[0], distillation.methods["early_exit"]
    enter(distillation, stage)
    distillation(batch(4), stage)
    with pytest.raises(KdrunError, match=r"not the teacher's; say student\.init_from=teacher"):
        method.ready()
    distillation.student.module.load_state_dict(
        {**distillation.student.module.state_dict(), **distillation.teacher.module.state_dict()}
    )
    method.ready()


def test_what_is_evaluated_is_the_model_at_the_threshold() -> None:
    distillation = alike(threshold=0.6)
    model, x = distillation.student.module, batch(16)["input"]
    enter(distillation, distillation.stages[0])
    evaluated = distillation.stages[0].evaluates["student"].eval()
    with torch.no_grad():
        adaptive = evaluated(x)
    torch.testing.assert_close(adaptive, one_by_one(model, x, 0.6)[0], rtol=1e-4, atol=1e-4)
    assert not torch.equal(adaptive, distillation.teacher(x).logits)


def loader(count: int = 3, size: int = 8) -> Any:
    batches = [batch(size, seed=seed) for seed in range(count)]
    return SimpleNamespace(batches=lambda: iter(batches), batch_size=size)


def test_the_curve_of_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedup, "REPEATS", 1)
    distillation, test = alike(threshold=0.6), loader()
    student, teacher = distillation.student.module, distillation.teacher.module

    def score(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            return sum((model(b["input"]).argmax(1) == b["label"]).sum().item() for b in test.batches()) / 24

    details = distillation.methods["early_exit"].details(student, teacher, test, score)
    assert student.exits.threshold == 0.6
    assert details["thresholds"] == [0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8]
    assert details["scores"][0] == details["teacher_score"] == score(teacher)
    assert details["scores"][5] == score(student)
    places = [place for b in test.batches() for place in one_by_one(student, b["input"], 0.6)[1]]
    assert details["layers"][5] == pytest.approx([places.count(layer) / 24 for layer in range(4)])
    assert details["layers"][0] == [0, 0, 0, 1]
    assert details["flops_share"][0] == pytest.approx(1)
    assert all(b <= a for a, b in zip(details["flops_share"][1:], details["flops_share"][2:], strict=False))
    assert details["flops_share"][-1] < 0.9
    assert (details["batch_size"], details["threads"]) == (32, 1)
    assert all(len(details[key]) == 7 for key in ("speedups", "alone", "over_full", "scores", "layers"))


def test_the_batches_that_times_are_measured_on() -> None:
    """Parts of one size from the whole split; a split that is smaller gives what it has."""
    test = loader(count=6, size=20)
    sizes = lambda *want: [len(x["input_ids"]) for x in speedup.some_batches(test, *want)]  # noqa: E731
    assert sizes(8, 48) == [8] * 6
    assert sizes(1, 24) == [1] * 24
    assert sizes(32, 60) == [20]
    assert sizes(20, 10_000) == [20] * 6
    first, *_, last = speedup.some_batches(test, 20, 10_000)
    assert torch.equal(first["input_ids"], batch(20, seed=0)["input"]["input_ids"])
    assert torch.equal(last["input_ids"], batch(20, seed=5)["input"]["input_ids"])


def test_work_is_that_of_the_layers_that_ran() -> None:
    """All leave after the first of four layers: about a quarter of the work."""
    model, x = with_exits(), batch(8)["input"]
    model.exits.threshold = 0
    whole = speedup.work(model, [x])
    model.exits.threshold = 1
    assert 0.25 < speedup.work(model, [x]) / whole < 0.3


def test_a_branch_is_cheap_beside_a_layer() -> None:
    x = torch.randn(32, 64, 384)
    branch = speedup.work(Branch(384, 2), [x])
    layer = encoder(1, hidden_size=384, num_attention_heads=12, intermediate_size=1536).get_submodule(
        "bert.encoder.layer.0"
    )
    assert branch < 0.03 * speedup.work(layer, [x])
