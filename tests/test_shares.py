"""Weights that are a share of the task's gradient, and the shares that training logs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from test_loop import Run, linear
from test_methods import ALL, RECIPE, batch_of, build
from test_rehearsal import Net, loader
from test_resume import COMMON, KILLER, points
from torch import nn

from kdrun.config.checks import validate
from kdrun.config.nodes import register_nodes
from kdrun.config.schema import conf_folder
from kdrun.config.weights import quoted, share_of
from kdrun.engine import loop
from kdrun.engine import shares as engine_shares
from kdrun.engine.automatic import BATCHES, check_shares, measured_weights
from kdrun.engine.loop import Progress, Training, enter, fit, weighted
from kdrun.engine.optimization import make_optimizer
from kdrun.engine.rehearsal import rehearse
from kdrun.engine.shares import shares_of
from kdrun.errors import KdrunError
from kdrun.methods import Method
from kdrun.methods.base import DataFacts, Stage
from kdrun.methods.distillation import Distillation
from kdrun.runs import record as records
from kdrun.runs.identity import digest, identity
from kdrun.tasks import classes as image
from kdrun.tasks.image.task import TASK


class Near(Method):
    """Pulls at the map of the first layer; the layers behind it belong to the task alone. A random scale, as a dropout would give."""

    scale = 3.0

    def build(self, pair):
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(()), persistent=False)
        self.layer = nn.Conv2d(4, 4, 1)

    def loss(self, student, teacher, batch):
        self.calls += 1
        self.hidden += 1
        self.log("calls", 1.0)
        noise = torch.rand((), generator=self.generator)
        return {"map": (1 + noise) * self.scale * (self.layer(student.taps[0]) - teacher.taps[0]).square().mean()}


class Zero(Near):
    scale = 0.0


class Infinite(Near):
    scale = math.inf


class Own(Near):
    """A term that reaches its own layer alone."""

    def loss(self, student, teacher, batch):
        return {"map": self.layer(teacher.taps[0]).square().mean()}


class Staged(Near):
    """The term comes first in a stage of its own, without the task."""

    def stages(self, pair: object, distil: Stage) -> list[Stage]:
        def terms(batch):
            student, teacher = pair.run(batch)
            return student, self.loss(student, teacher, batch)

        return [Stage("hints", terms, [pair.student.module, self]), distil]


class Dropping(Net):
    def __init__(self):
        super().__init__(norm=True)
        self.norm = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))


def training(method: type[Method] = Near, task: float = 1.0, n: int = 20) -> Training:
    torch.manual_seed(0)
    facts = DataFacts(n, torch.arange(n) % 3, 3, torch.randn(2, 3, 8, 8))
    distillation = Distillation(
        Dropping(), Net(), {"m": (method, {"taps": ["conv"]})}, data=facts, task=image.loss, seed=4
    )
    return Training(None, distillation, loader(n), {}, RECIPE, {"task": task, "m.map": 1.0}, {})  # type: ignore[arg-type]


def means_by_hand(one: Training, count: int) -> tuple[float, float]:
    """The mean norms of both gradients in the first layer, over the first batches of epoch 0."""
    enter(one.distillation, one.distillation.stages[0])
    one.distillation.begin_epoch(0, 0)
    shared = [*one.distillation.student.module.conv.parameters()]
    task, own = [], []
    for _, batch in zip(range(count), one.train.epoch(0), strict=False):
        _, terms = one.distillation(batch, one.distillation.stages[0])
        for values, term in ((task, "task"), (own, "m.map")):
            gradients = torch.autograd.grad(terms[term], shared, retain_graph=True)
            values.append(torch.cat([g.flatten() for g in gradients]).double().norm().item())
    return sum(task) / len(task), sum(own) / len(own)


@pytest.mark.parametrize(("share", "task", "n"), [(0.1, 1.0, 20), (2.0, 0.5, 20), (0.1, 1.0, 100)])
def test_the_weight_makes_the_share_true(share: float, task: float, n: int) -> None:
    """On a fresh measure by hand: mean over 3 batches where the epoch has 3, over 8 of 13; of weight x gradient of the task."""
    one = training(task=task, n=n)
    weight = measured_weights(one, {"m.map": share})["m.map"]
    of_task, of_term = means_by_hand(one, min(len(one.train), BATCHES))
    assert weight * of_term / (task * of_task) == pytest.approx(share, rel=1e-4)
    assert measured_weights(one, {"m.map": share}) == {"m.map": weight}  # bit for bit
    assert measured_weights(training(task=task, n=n), {"m.map": share}) == {"m.map": weight}
    assert one.weights["m.map"] == 1.0


def test_a_measure_leaves_no_trace() -> None:
    one = training()
    distillation = one.distillation
    torch.manual_seed(7)
    distillation.methods["m"].generator.manual_seed(8)
    distillation.student.module.norm[0].eval()
    modes = [module.training for module in distillation.modules()]
    learns = [parameter.requires_grad for parameter in distillation.parameters()]
    tensors = [t.clone() for t in (*distillation.parameters(), *distillation.buffers())]
    measured_weights(one, {"m.map": 0.1})
    assert all(a.equal(b) for a, b in zip((*distillation.parameters(), *distillation.buffers()), tensors, strict=True))
    assert distillation.methods["m"].hidden == 0  # a buffer that no state dict has
    assert [module.training for module in distillation.modules()] == modes
    assert [parameter.requires_grad for parameter in distillation.parameters()] == learns
    assert all(parameter.grad is None for parameter in distillation.parameters())
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(7))
    drawn = torch.rand((), generator=distillation.methods["m"].generator)
    assert drawn == torch.rand((), generator=torch.Generator().manual_seed(8))
    assert distillation.logged() == {}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Zero, "in the first 3 batches the gradient of m.map is 0 in"),
        (Infinite, "in the first 3 batches the gradient of m.map is not finite in"),
        (Own, "in the first 3 batches the gradient of m.map is 0 in"),
    ],
)
def test_a_gradient_that_says_nothing_is_an_error(method: type[Method], words: str) -> None:
    one = training(method)
    before = {name: value.clone() for name, value in one.distillation.state_dict().items()}
    with pytest.raises(KdrunError) as error:
        measured_weights(one, {"m.map": 0.1})
    assert words in str(error.value)
    assert str(error.value).startswith("method.m.weights.map=auto(0.1) cannot be measured: ")
    assert str(error.value).endswith("say a number, as in method.m.weights.map=1")
    assert all(value.equal(before[name]) for name, value in one.distillation.state_dict().items())


@pytest.mark.parametrize(
    ("task", "stages", "words"),
    [
        (1.0, {"hints": ["m.map"], "distil": ["task", "m.map"]}, "stage hints, the first with this term, has no task loss"),
        (0.0, {"distil": ["task", "m.map"]}, "the task's loss has weight 0"),
    ],
)  # fmt: skip
def test_nothing_to_be_a_share_of_is_an_error(task: float, stages: dict[str, list[str]], words: str) -> None:
    with pytest.raises(KdrunError, match=f"{words}; say a number, as in method.m.weights.map=1"):
        check_shares({"m.map": 0.1}, task, stages)
    check_shares({"m.map": 0.1}, 1.0, {"first": ["m.other"], "distil": ["task", "m.map"]})


def test_a_term_whose_first_stage_has_no_task_is_refused_after_the_rehearsal() -> None:
    one = training(Staged)
    stages = rehearse(one.distillation, one.train, RECIPE, one.weights, "x", TASK.first).terms()
    assert stages == {"hints": ["m.map"], "distil": ["task", "m.map"]}
    with pytest.raises(KdrunError, match="stage hints, the first with this term, has no task loss"):
        check_shares({"m.map": 0.1}, 1.0, stages)


# What is typed ------------------------------------------------------------------------------------------------------------


def config_of(*overrides: str):
    register_nodes()
    common = ["dataset=digits", "teacher=resnet8", "student=resnet8", "method=cwd"]
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return validate(compose("config", quoted([*common, *overrides])))


KEY = "method.cwd.weights.channels"


@pytest.mark.parametrize(
    ("typed", "text"),
    [("auto(0.1)", "auto(0.1)"), ("auto( .10 )", "auto(0.1)"), ("'auto(0.1)'", "auto(0.1)"), ('"auto(1.0)"', "auto(1)"),
     ("auto(1e-3)", "auto(0.001)"), ("auto(10)", "auto(10)")],
)  # fmt: skip
def test_auto_is_read_as_typed(typed: str, text: str) -> None:
    weights = config_of(f"{KEY}={typed}").method["cwd"].weights
    assert weights["channels"] == text
    assert share_of(text) == float(text[5:-1])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"{KEY}=auto", f"{KEY} is 'auto'; it must be a number of 0 or more, or auto(SHARE)"),
        (f"{KEY}=auto()", f"{KEY} is 'auto()'; it must be a number of 0 or more, or auto(SHARE)"),
        (f"{KEY}=auto(0.1", f"{KEY} is 'auto(0.1'; it must be a number of 0 or more, or auto(SHARE)"),
        (f"{KEY}=auto(x)", f"{KEY} is 'auto(x)'; it must be a number of 0 or more, or auto(SHARE)"),
        (f"{KEY}=auto(-1)", f"{KEY} is 'auto(-1)'; it must be a number of 0 or more, or auto(SHARE)"),
        (f"{KEY}=auto(nan)", f"{KEY} is 'auto(nan)'; it must be a number of 0 or more, or auto(SHARE)"),
        (f"{KEY}=auto(0)", f"{KEY} is 'auto(0)'; the share must be above 0 and up to 10: auto(SHARE)"),
        (f"{KEY}=auto(11)", f"{KEY} is 'auto(11)'; the share must be above 0 and up to 10: auto(SHARE)"),
        (f"{KEY}=half", f"{KEY} is 'half'; it must be a number"),
        (f"{KEY}=-1", f"{KEY} is -1.0; it must be a number of 0 or more (0 leaves the term out)"),
        ("+method.cwd.weights.task=auto(1)", "method.cwd.weights.task is 'auto(1)'; it must be a number"),
        ("loss.task=auto(1)", "loss.task is 'auto(1)'; it must be a number"),
    ],
)
def test_what_is_no_weight_is_an_error_of_one_line(override: str, words: str) -> None:
    from kdrun.config.explain import explain

    with pytest.raises(Exception) as error:  # noqa: PT011 - Hydra's own for a typed key
        config_of(override)
    message = explain(error.value, [override])
    assert message.startswith(words)
    assert "\n" not in message


def test_quotes_stand_around_auto_alone() -> None:
    assert quoted([f"{KEY}=auto(0.1),auto(0.3),1.0"]) == [f'{KEY}="auto(0.1)","auto(0.3)",1.0']
    assert quoted(["method.cwd.weights={channels:auto(0.1)}"]) == ['method.cwd.weights={channels:"auto(0.1)"}']
    same = [f'{KEY}="auto(0.1)"', "outputs=a/auto(1)", "report", "runs/auto(1)", "method=kd"]
    assert quoted(same) == same
    assert quoted(quoted([f"{KEY}=auto(0.1)"])) == quoted([f"{KEY}=auto(0.1)"])


def test_two_shares_are_two_runs() -> None:
    ids = [digest(identity(config_of(f"{KEY}={v}"), "ab12")) for v in ("auto(0.1)", "auto(0.2)", "0.1", "auto(.1)")]
    assert len(set(ids[:3])) == 3
    assert ids[3] == ids[0]


# What is logged -----------------------------------------------------------------------------------------------------------


def test_shares_of_a_step_by_hand() -> None:
    one = training()
    stage = one.distillation.stages[0]
    enter(one.distillation, stage)
    _, terms = one.distillation(next(iter(one.train.epoch(0))), stage)
    student = [*one.distillation.student.parameters()]
    weights = {"task": 1.0, "m.map": 0.25}
    norms = {}
    for term, weight in weights.items():
        found = torch.autograd.grad(terms[term], student, retain_graph=True, allow_unused=True)
        norms[term] = weight * torch.cat([g.flatten() for g in found if g is not None]).norm().item()
    shares = shares_of(terms, weights, stage, one.distillation.student)
    assert shares == pytest.approx({term: norm / sum(norms.values()) for term, norm in norms.items()}, rel=1e-5)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(parameter.grad is None for parameter in one.distillation.parameters())
    assert shares_of(terms, {"task": 1.0, "m.map": 0.0}, stage, one.distillation.student) == {}
    broken = {**terms, "task": terms["task"] * math.nan}
    assert shares_of(broken, weights, stage, one.distillation.student) == {}


@pytest.mark.parametrize("name", [name for name in ALL if name != "none"])
def test_measuring_changes_no_bit_of_a_step(name: str) -> None:
    """Of any method, in each of its stages, those with gradients of gradients among them."""

    def steps(measure: bool) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor], int]:
        distillation, weights = build(name)
        losses, count = [], 0
        for number, stage in enumerate(distillation.stages):
            enter(distillation, stage)
            optimizer = make_optimizer(stage, RECIPE)
            distillation.begin_epoch(number, 0)
            for seed in range(2):
                _, terms = distillation(batch_of(distillation, seed), stage)
                own = {term: weights[term] for term in terms}
                if measure:
                    count += len(shares_of(terms, own, stage, distillation.student))
                total = weighted(terms, own)
                if total.requires_grad:
                    optimizer.zero_grad(set_to_none=True)
                    total.backward()
                    optimizer.step()
                distillation.after_step()
                losses.append({term: value.detach() for term, value in terms.items()})
        return losses, distillation.state_dict(), count

    (mine, after, count), (theirs, expected, _) = steps(True), steps(False)
    assert all(a[term].equal(b[term]) for a, b in zip(mine, theirs, strict=True) for term in b)
    assert all(value.equal(expected[key]) for key, value in after.items())
    assert count > 0 or max(map(len, theirs)) == 1  # a single term has the whole gradient


@pytest.mark.parametrize(("steps", "due"), [(250, [(0, 0), (0, 100), (0, 200), (1, 0), (1, 100), (1, 200)]),
    (100, [(0, 0), (1, 0)]), (60, [(0, 0), (1, 0)]), (50, [(0, 0)])])  # fmt: skip
def test_when_shares_are_measured(steps: int, due: list[tuple[int, int]]) -> None:
    """In two epochs: never more than once in 100 steps, but for what the first batch of an epoch adds."""
    assert [(e, i) for e in range(2) for i in range(steps) if engine_shares.is_due(e, i, steps)] == due


def test_an_epoch_logs_its_shares_and_trains_with_the_same_bits(tmp_path: Path, monkeypatch) -> None:
    """At the first step of each epoch, and every EVERY steps after it; the line has the last measure; bits are the same without."""
    monkeypatch.setattr(engine_shares, "EVERY", 2)
    with_it = Run(tmp_path / "a", "kd")
    said: list[tuple[int, dict[str, float]]] = []
    lines: list[dict[str, float]] = []
    journal = SimpleNamespace(
        start_stage=lambda *_: None, tick=lambda *_: None, end_epoch=lambda epoch, _: lines.append(epoch.shares),
        point=lambda stage, step, values: said.append((step, values)),
    )  # fmt: skip
    fit(with_it.parts, journal, Progress())
    shares = [(step, values) for step, values in said if any(name.startswith("share/") for name in values)]
    assert [step for step, _ in shares] == [1, 3, 4, 6, 7, 9]  # three epochs of three steps
    assert all(values.keys() == {"share/task", "share/kd.soft"} for _, values in shares)
    assert lines == [{k.removeprefix("share/"): v for k, v in shares[i][1].items()} for i in (1, 3, 5)]
    without = Run(tmp_path / "b", "kd")
    monkeypatch.setattr(loop, "shares_of", lambda *_: {})
    fit(without.parts, SimpleNamespace(**{**vars(journal), "point": lambda *_: None}), Progress())
    assert lines[-1] == {}
    mine, theirs = with_it.distillation.state_dict(), without.distillation.state_dict()
    assert all(value.equal(theirs[name]) for name, value in mine.items())
    assert not mine["student.module.1.weight"].equal(linear()[1].weight)  # it has learned


# Through the command ------------------------------------------------------------------------------------------------------

AUTO = [*COMMON, "method=cwd", f"{KEY}=auto(0.1)", "recipe.epochs=2"]


def kdrun(folder: Path, *arguments: str, kill_at: int = 0) -> subprocess.CompletedProcess:
    (folder / "killer.py").write_text(KILLER)
    keys = {argument.partition("=")[0]: argument for argument in (*AUTO, *arguments)}
    extra = ["plugins=[killer]"] if kill_at else []
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for key, argument in keys.items() if not key.startswith("-")]
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *flags, *overrides, *extra], cwd=folder, capture_output=True, text=True, timeout=240,
        env={**os.environ, "KILL_AT": str(kill_at), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def student(folder: Path) -> Path:
    (run,) = folder.glob("outputs/runs/digits/cwd/*/*/seed0")
    return run


def test_a_run_measures_once_and_a_resume_keeps_the_weight(tmp_path: Path) -> None:
    """Killed in its first epoch it measures again, killed in its second it does not; each time it ends with the same bits."""
    whole = tmp_path / "whole"
    whole.mkdir()
    done = kdrun(whole)
    assert done.returncode == 0, done.stderr
    record = json.loads((student(whole) / "record.json").read_text())
    weight = record["weights"]["cwd.channels"]
    assert record["weights_auto"] == {"cwd.channels": {"share": 0.1, "weight": weight}}
    assert record["identity"]["method"]["cwd"]["weights"] == {"channels": "auto(0.1)"}
    records.validate(record)
    line = f"weights  cwd.channels {weight:.4g} (auto(0.1))"
    assert line in done.stdout.splitlines()
    assert "weights  cwd.channels auto(0.1)" in done.stdout.splitlines()  # the plan, before it is measured
    assert line in (student(whole) / "log.txt").read_text()
    scalars = points(student(whole))
    assert [value for _, value in scalars["distil/weight/cwd.channels"]] == pytest.approx([weight] * 6)
    assert [step for step, _ in scalars["distil/share/cwd.channels"]] == [1]  # the first of ten epochs of ten steps
    curve = [json.loads(line) for line in (student(whole) / "curves.jsonl").read_text().splitlines()]
    assert curve[0]["shares"]["task"] == pytest.approx(scalars["distil/share/task"][0][1])
    assert curve[1]["shares"] == {}

    for kill_at in (5, 15):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        # Steps count from the teacher's first one: ten of its only epoch come before the student's.
        assert kdrun(folder, kill_at=10 + kill_at).returncode == -signal.SIGKILL
        resumed = kdrun(folder)
        assert resumed.returncode == 0, resumed.stderr
        again = json.loads((student(folder) / "record.json").read_text())
        assert again["resumed"] == int(kill_at > 10)
        assert (again["weights"], again["weights_auto"]) == (record["weights"], record["weights_auto"])
        assert again["student"] == record["student"]
        mine, theirs = (
            load_file(student(folder) / "student.safetensors"),
            load_file(student(whole) / "student.safetensors"),
        )
        assert all(mine[name].equal(theirs[name]) for name in theirs)
        assert points(student(folder)) == scalars
        assert resumed.stdout.splitlines().count(line) == 1


@pytest.mark.slow
def test_a_sweep_over_shares_a_report_and_a_difference(tmp_path: Path) -> None:
    swept = kdrun(tmp_path, "-m", f"{KEY}=auto(0.1),auto(0.3),1.0", "recipe.epochs=1")
    assert swept.returncode == 0, swept.stderr
    runs = sorted(tmp_path.glob("outputs/runs/digits/cwd/*/*/seed0"))
    found = {json.loads((run / "record.json").read_text())["weights"]["cwd.channels"]: run for run in runs}
    assert len(found) == 3
    assert 1.0 in found

    def verb(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "kdrun", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert all(f"weights.channels={text}" in verb("report", "outputs") for text in ("auto(0.1)", "auto(0.3)", "1"))
    assert "auto(0.3)" in verb("report", "outputs", "--format", "html")
    assert f"{KEY}: " in verb("diff", str(runs[0]), str(runs[1]))
    assert verb("verify", "outputs").count("ok  ") == 4
    rehearsed = kdrun(tmp_path, "engine.rehearse=true", "recipe.epochs=1")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert "cwd.channels" in rehearsed.stdout
