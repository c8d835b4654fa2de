"""What stops, or is said, before the first step: gradients, frozen and unused parts, small batches, layouts, weak teachers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_schedule import recipe
from torch import nn

from kdrun.engine.loop import enter
from kdrun.engine.optimization import make_optimizer
from kdrun.engine.rehearsal import rehearse
from kdrun.errors import DivergedError, KdrunError
from kdrun.methods import Method
from kdrun.methods.base import DataFacts
from kdrun.methods.distillation import Distillation
from kdrun.tasks import classes as image
from kdrun.tasks.image.data.base import Dataset, Split
from kdrun.tasks.image.data.loader import Augment, Loader
from kdrun.tasks.image.task import TASK
from kdrun.tasks.image.weak import better_normalisation
from kdrun.tasks.weak import weakness


class Net(nn.Module):
    def __init__(self, norm: bool = False):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()

    def forward(self, x):
        return self.fc(self.norm(self.conv(x).relu().mean((2, 3))))


class Pull(Method):
    """A method to break: `detach` cuts its gradient, `spare` is a layer that nothing uses."""

    detach = spare = False

    def build(self, pair):
        self.used = nn.Linear(3, 3)
        if self.spare:
            self.forgotten = nn.Linear(3, 3)

    def loss(self, student, teacher, batch):
        logits = student.logits.detach() if self.detach else student.logits
        return {"pull": (self.used(logits) - teacher.logits).square().mean()}


class Cut(Pull):
    detach = True


class Spare(Pull):
    spare = True


class Number(Method):
    def loss(self, student, teacher, batch):
        return {"pull": (student.logits.detach() - teacher.logits).square().mean()}


def loader(n: int = 20, batch_size: int = 8) -> Loader:
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(torch.arange(n) % 3, torch.arange(n), images)
    dataset = Dataset("x", list("abc"), 8, [0.5] * 3, [0.5] * 3, "", True, split, None, split)
    return Loader(split, dataset, batch_size=batch_size, device="cpu", augment=Augment("zero", 1, True))


def pair(method: type[Method] = Pull, student: nn.Module | None = None) -> Distillation:
    torch.manual_seed(0)
    facts = DataFacts(20, torch.arange(20) % 3, 3, torch.randn(2, 3, 8, 8))
    return Distillation(student or Net(), Net(), {"m": (method, {})}, data=facts, task=image.loss)


def look(distillation: Distillation, train: Loader | None = None, weight: float = 2.0):
    weights = {"task": 1.0, "m.pull": weight}
    return rehearse(distillation, train or loader(), recipe("quick"), weights, "x", TASK.first)


def test_shares_are_those_of_the_weighted_gradients() -> None:
    """By hand: the norm over the student's parameters of each term's weighted gradient, and their shares."""
    distillation, train = pair(), loader()
    rehearsal = look(distillation, train)
    enter(distillation, distillation.stages[0])
    batch = {key: value[:4] for key, value in next(iter(train.epoch(0))).items()}  # 20 = 8 + 8 + 4: the smallest batch
    student = [*distillation.student.parameters()]
    _, terms = distillation(batch, distillation.stages[0])
    norms = []
    for term, weight in (("task", 1.0), ("m.pull", 2.0)):
        gradients = torch.autograd.grad(weight * terms[term], student, retain_graph=True)
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
    assert [s.norm for s in rehearsal.shares] == pytest.approx(norms, rel=1e-5)
    assert [s.share for s in rehearsal.shares] == pytest.approx([n / sum(norms) for n in norms], rel=1e-5)
    assert rehearsal.line().startswith("gradient task ")
    assert rehearsal.notes == []


def test_a_rehearsal_leaves_no_trace() -> None:
    distillation = pair(student=Net(norm=True))
    before = {name: value.clone() for name, value in distillation.state_dict().items()}
    look(distillation)
    assert all(torch.equal(value, before[name]) for name, value in distillation.state_dict().items())
    assert all(p.grad is None for p in distillation.parameters())


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Number, "term m.pull of stage distil has no gradient"),
        (Cut, "method m: no gradient of its terms reaches the student"),
        (Spare, "method m builds 'forgotten.bias' and no loss depends on it"),
    ],
)
def test_a_loss_that_teaches_nothing_stops(method: type[Method], words: str) -> None:
    with pytest.raises(KdrunError, match=words):
        look(pair(method))


def test_a_term_of_weight_0_may_be_without_a_gradient() -> None:
    assert [s.term for s in look(pair(Number), weight=0.0).shares] == ["task"]


def test_an_unused_layer_of_a_model_is_said() -> None:
    student = Net()
    student.head2 = nn.Linear(2, 2)
    (note,) = look(pair(student=student)).notes
    assert "no loss depends on head2.bias, head2.weight" in note


def test_what_a_builder_froze_stays_frozen() -> None:
    """Out of the optimiser, with its weights as they were, and in eval mode where the builder said so."""
    student = Net(norm=True)
    student.conv.requires_grad_(False)
    student.norm.eval()
    distillation = pair(student=student)
    assert look(distillation).notes == ["student  112 of 135 parameters are frozen, as its builder left them"]
    (stage,) = distillation.stages
    enter(distillation, stage)
    assert not student.conv.weight.requires_grad
    assert (student.training, student.norm.training) == (True, False)
    optimised = {id(p) for group in make_optimizer(stage, recipe("quick")).param_groups for p in group["params"]}
    assert id(student.conv.weight) not in optimised
    assert id(student.fc.weight) in optimised


def test_a_model_that_is_frozen_whole_has_nothing_to_train() -> None:
    with pytest.raises(KdrunError, match="nothing to train"):
        look(pair(Number, student=Net().requires_grad_(False)))


def test_a_student_left_in_eval_mode_is_trained() -> None:
    distillation = pair(student=Net(norm=True).eval())
    enter(distillation, distillation.stages[0])
    assert distillation.student.module.norm.training


@pytest.mark.parametrize(("n", "sizes"), [(17, [8, 9]), (16, [8, 8]), (18, [8, 8, 2]), (8, [8])])
def test_a_last_batch_of_one_joins_the_one_before(n: int, sizes: list[int]) -> None:
    train = loader(n)
    assert [len(batch["index"]) for batch in train.epoch(0)] == sizes
    assert (len(train), train.smallest) == (len(sizes), min(sizes))
    assert sorted(i for batch in train.epoch(0) for i in batch["index"].tolist()) == list(range(n))
    assert sum(len(batch["index"]) for batch in train.batches()) == n


def test_batches_of_one_stop_where_a_model_cannot_take_them() -> None:
    """recipe.batch_size=1: said at the start, with a size that fits; a model without batch statistics trains."""
    with pytest.raises(ValueError, match="more than 1 value"):
        look(pair(student=Net(norm=True)), loader(20, batch_size=1))
    look(pair(), loader(20, batch_size=1))


class TooSmall(Method):
    def loss(self, student, teacher, batch):
        if len(student.logits) < 5:
            raise ValueError("needs 5 images")
        return {"pull": (student.logits - teacher.logits).square().mean()}


def test_a_last_batch_that_is_too_small_stops_with_a_size_that_fits() -> None:
    with pytest.raises(
        KdrunError, match=r"smallest batch of an epoch has 2 of the 18 .* needs 5 images. Say recipe.batch_size=9"
    ):
        look(pair(TooSmall), loader(18))
    look(pair(TooSmall), loader(18, batch_size=9))


@pytest.mark.parametrize(
    ("terms", "named"),
    [(["task"], "term task"), (["task", "kd.soft"], "term kd.soft, and the task loss"), (["kd.soft"], "term kd.soft)")],
)
def test_nan_names_the_methods_term(terms: list[str], named: str) -> None:
    from kdrun.engine.loop import Meter

    meter = Meter()
    values = {
        name: torch.tensor(float("nan") if name in [*terms, "total"] else 1.0) for name in ("total", "task", "kd.soft")
    }
    meter.add(values, torch.tensor(1), 4, step=3)
    with pytest.raises(DivergedError, match="step 3") as error:
        meter.read("distil")
    assert named in str(error.value)
    assert error.value.term == terms[-1]


# Teachers ---------------------------------------------------------------------------------------------------------------

LABELS = torch.arange(300) % 3


def logits_of(labels: torch.Tensor, right: float) -> torch.Tensor:
    """Logits that are right for this share of the labels."""
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(labels), generator=generator) >= right
    return nn.functional.one_hot((labels + wrong) % 3, 3).float()


def nothing() -> None:
    return None


@pytest.mark.parametrize(
    ("logits", "recorded", "words"),
    [
        (logits_of(LABELS, 0.9), 0.9, None),
        (logits_of(LABELS, 0.9), None, None),
        (torch.randn(300, 3, generator=torch.Generator().manual_seed(0)), None, "near chance"),
        (logits_of(LABELS, 0.35), 0.35, None),  # what its recipe made of it: said, and no error
        (logits_of(LABELS, 0.7), 0.9, "far below the 90.00 of its record"),
        (logits_of(torch.where(LABELS == 0, 0, 3 - LABELS), 0.95), None, "another order: its class 1 is 'c'"),
        (logits_of((LABELS + 1) % 3, 0.95), None, "its class 0 is 'c', here class 0 is 'a'"),
    ],
)
def test_a_weak_teacher_is_told_with_its_cause(logits, recorded, words) -> None:
    why = weakness(logits, LABELS, list("abc"), recorded, nothing)
    assert (why is None) if words is None else (words in why)


def test_another_normalisation_is_recognised() -> None:
    """A model that is right under ImageNet's mean and std alone."""
    images = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    labels = torch.arange(200) % 3
    expected = {
        tuple(((x - mean) / std).flatten()[:6].mul(100).round().tolist()): y
        for x, y in zip(images, labels.tolist(), strict=True)
    }

    def model(x: torch.Tensor) -> torch.Tensor:
        known = [expected.get(tuple(row.flatten()[:6].mul(100).round().tolist()), 0) for row in x]
        return nn.functional.one_hot(torch.tensor(known), 3).float()

    batches = [{"input": (images - 0.5) / 0.25, "label": labels}]
    words = better_normalisation(model, batches, [0.5] * 3, [0.25] * 3)
    assert words is not None
    assert "ImageNet's" in words
    assert "with it the accuracy is 100: 'dataset.mean=[0.485,0.456,0.406]'" in words
    right = [{"input": (images - mean) / std, "label": labels}]
    assert better_normalisation(model, right, mean.flatten().tolist(), std.flatten().tolist()) is None


# Through the command ------------------------------------------------------------------------------------------------------

MODELS = """
import torch
from torch import nn
from kdrun.methods import Method, register

class Net(nn.Module):
    def __init__(self, classes, view):
        super().__init__()
        self.conv, self.view = nn.Conv2d(3, 4, 3, padding=1), view
        self.fc = nn.Linear(4 * 64 if view else 4, classes)
    def forward(self, x):
        x = self.conv(x).relu()
        return self.fc(x.view(len(x), -1) if self.view else x.mean((2, 3)))

def view(classes):
    return Net(classes, True)

def frozen(classes):
    model = Net(classes, False)
    nn.init.constant_(model.conv.weight, 0.1)
    model.conv.requires_grad_(False)
    return model
"""
TINY = [
    "dataset=digits",
    "recipe=quick",
    "recipe.epochs=1",
    "engine.threads=1",
    "teacher=none",
    "method=none",
    "student=import",
]


def kdrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_a_layout_that_does_not_suit_a_model_is_left(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(MODELS)
    done = kdrun(tmp_path, *TINY, "student.path=m:view")
    assert done.returncode == 0, done.stderr
    assert "contiguous (channels_last does not suit this model" in done.stdout


def test_a_frozen_layer_is_frozen_in_what_is_written(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (tmp_path / "m.py").write_text(MODELS)
    done = kdrun(tmp_path, *TINY, "student.path=m:frozen")
    assert done.returncode == 0, done.stderr
    assert "student  112 of 162 parameters are frozen" in done.stdout
    (weights,) = tmp_path.glob("outputs/runs/**/student.safetensors")
    assert (load_file(weights)["conv.weight"] == 0.1).all()


@pytest.mark.slow
def test_a_checkpoint_of_another_normalisation_stops_before_step_1(tmp_path: Path) -> None:
    """A teacher's own weights as a checkpoint, under another mean and std; teacher.allow_weak=true goes on."""
    common = ["dataset=digits", "recipe=quick", "engine.threads=1"]
    trained = kdrun(tmp_path, *common, "teacher=none", "method=none", "student=resnet8", "recipe.epochs=8")
    assert trained.returncode == 0, trained.stderr
    (weights,) = tmp_path.glob("outputs/runs/**/student.safetensors")
    wrong = [
        *common,
        "recipe.epochs=1",
        "method=kd",
        "teacher=resnet8",
        "student=resnet8",
        f"teacher.checkpoint={weights}",
    ]
    wrong += ["dataset.mean=[0,0,0]", "dataset.std=[0.01,0.01,0.01]"]
    stopped = kdrun(tmp_path, *wrong)
    assert stopped.returncode == 1
    assert "too weak to learn from" in stopped.stderr
    assert kdrun(tmp_path, *wrong, "teacher.allow_weak=true").returncode == 0


@pytest.mark.slow
def test_rehearse_shows_the_table_and_writes_nothing(tmp_path: Path) -> None:
    done = kdrun(
        tmp_path, "dataset=digits", "recipe=quick", "teacher=resnet14", "student=resnet8", "method=[rkd,kd]",
        "engine.rehearse=true", "engine.threads=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("distil")] == [
        "task", "kd.soft", "rkd.distance", "rkd.angle",
    ]  # fmt: skip
    assert "the teacher is not trained yet" in done.stdout
    assert not (tmp_path / "outputs").exists()
