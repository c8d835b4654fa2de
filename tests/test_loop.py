"""The loop and the journal on a model of a few numbers: what an epoch sees, what a step changes, what the record says of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from kdrun.config.nodes import recipe_schema
from kdrun.config.registry import METHODS
from kdrun.config.schema import Recipe, conf_folder
from kdrun.engine.build import Parts
from kdrun.engine.journal import RunJournal
from kdrun.engine.loop import Epoch, Progress, evaluate, fit
from kdrun.engine.precision import Compute
from kdrun.engine.schedule import learning_rate
from kdrun.errors import DivergedError
from kdrun.methods.base import DataFacts, Method
from kdrun.methods.distillation import Distillation
from kdrun.screen import Screen
from kdrun.tasks import classes as image
from kdrun.tasks.base import Evaluation
from kdrun.tasks.image.data.augment import Augment
from kdrun.tasks.image.data.base import Dataset, Split
from kdrun.tasks.image.data.loader import Loader
from kdrun.tasks.image.task import TASK

CLASSES, TRAIN, HELD, TEST, BATCH = 3, 15, 6, 9, 5
RECIPE = recipe_schema(TASK)(
    **{**OmegaConf.to_container(OmegaConf.load(conf_folder() / "recipe" / "quick.yaml")), "epochs": 3}
)


def split(n: int, seed: int) -> Split:
    images = torch.randint(0, 256, (n, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Split(torch.arange(n) % CLASSES, torch.arange(n), images)


DATASET = Dataset(
    "tiny", ["a", "b", "c"], 4, [0.5] * 3, [0.25] * 3, "0" * 64, True, split(TRAIN, 0), split(HELD, 1), split(TEST, 2)
)


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES))


def evaluation(logits: torch.Tensor, labels: torch.Tensor) -> Evaluation:
    """What a model scores that gives these logits."""
    evaluator = TASK.evaluator()
    evaluator.update(logits, {"label": labels})
    return evaluator.result()


class Run:
    """One run in a folder: the parts that engine/build.py makes, of small things, and the journal."""

    def __init__(self, folder: Path, method: str = "none", teacher_logits: torch.Tensor | None = None, **changes: Any):
        self.recipe = dataclasses.replace(RECIPE, **changes)
        self.seen: list[dict[str, torch.Tensor]] = []
        settings = OmegaConf.to_container(OmegaConf.load(conf_folder() / "method" / f"{method}.yaml"))[method]
        self.teacher = linear(1) if method != "none" else None
        self.train = Loader(DATASET.train, DATASET, batch_size=BATCH, device="cpu", augment=Augment("zero", 1, True))
        self.evals = {
            name: Loader(part, DATASET, batch_size=4, device="cpu")
            for name, part in (("test", DATASET.test), ("holdout", DATASET.holdout))
        }
        example = next(self.evals["test"].batches())["input"][:2]
        self.distillation = Distillation(
            linear(), self.teacher, {method: (METHODS.get(method), settings)},
            data=DataFacts(TRAIN, DATASET.train.labels, CLASSES, example), task=self.task,
        )  # fmt: skip
        self.weights = {
            "task": 1.0,
            **{f"{method}.{term}": value for term, value in settings.get("weights", {}).items()},
        }
        record = {
            "id": "a" * 16, "method": [method], "code": {"method": {}}, "teacher": None, "last": None, "best": None, "holdout": None,
            "agreement": None, "student": {"init_sha256": "0"},
            "resumed": 0, "time": {"peak_memory": 0},
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        compute = Compute(torch.device("cpu"), "fp32", None, "")
        self.parts = Parts(
            TASK,
            self.distillation,
            self.train,
            self.evals,
            self.recipe,
            self.weights,
            {},
            dataset=DATASET,
            compute=compute,
        )
        self.journal = RunJournal(folder, record, None, self.parts, Screen(brief=True))
        if teacher_logits is not None:
            self.journal.teacher_evaluation = evaluation(teacher_logits, DATASET.test.labels)

    def task(self, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The supervised loss, which keeps what it sees."""
        self.seen.append({key: value.detach().clone() for key, value in batch.items()})
        return image.loss(logits, batch)

    def fit(self, progress: Progress | None = None, schedules: dict[str, Any] | None = None, **settings: Any) -> Run:
        progress = progress or self.journal.resume()
        self.parts.train, self.parts.weights, self.parts.schedules = self.train, self.weights, schedules or {}
        fit(dataclasses.replace(self.parts, **settings), self.journal, progress)
        self.journal.board.close()
        return self

    @property
    def head(self) -> torch.Tensor:
        return self.distillation.student.module[1].weight.detach().clone()

    @property
    def curve(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "curves.jsonl").read_text().splitlines()]


def epochs_of(seen: list[dict[str, torch.Tensor]], key: str) -> list[torch.Tensor]:
    """What the batches of each epoch had, put together."""
    steps = TRAIN // BATCH
    return [torch.cat([batch[key] for batch in seen[i : i + steps]]) for i in range(0, len(seen), steps)]


def after_epochs(run: Run, look: Callable[[], Any]) -> list[Any]:
    """What `look` gives at the end of each epoch, before the journal writes."""
    found: list[Any] = []
    end_epoch = run.journal.end_epoch

    def looking(epoch: Epoch, progress: Progress) -> None:
        found.append(look())
        end_epoch(epoch, progress)

    run.journal.end_epoch = looking
    return found


# What an epoch sees -------------------------------------------------------------------------------------------------------


def test_every_epoch_has_an_order_and_views_of_its_own(tmp_path):
    """All images once, in an order that no other epoch has; the same image is seen differently; a second run sees the same."""
    run = Run(tmp_path / "a").fit()
    orders, inputs = epochs_of(run.seen, "index"), epochs_of(run.seen, "input")
    assert len(orders) == 3
    assert all(order.sort().values.equal(torch.arange(TRAIN)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3
    views = [x[order.argsort()] for x, order in zip(inputs, orders, strict=True)]
    assert not any(views[i].equal(views[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    again = Run(tmp_path / "b").fit()
    assert all(one["input"].equal(other["input"]) for one, other in zip(run.seen, again.seen, strict=True))


def test_a_run_that_goes_on_sees_the_epochs_that_are_left(tmp_path):
    """Resumed after epoch 2 of 3, it sees the batches of epoch 3, and ends with the weights of the run that never stopped."""
    whole = Run(tmp_path / "whole").fit()
    stopped = Run(tmp_path / "stopped")
    end_epoch = stopped.journal.end_epoch

    def stop(epoch: Epoch, progress: Progress) -> None:
        end_epoch(epoch, progress)
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    stopped.journal.end_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    stopped.journal.board.close()
    resumed = Run(tmp_path / "stopped").fit()
    assert [batch["index"].tolist() for batch in resumed.seen] == [batch["index"].tolist() for batch in whole.seen[6:]]
    assert resumed.head.equal(whole.head)
    assert [line["epoch"] for line in resumed.curve] == [1, 2, 3]
    assert resumed.journal.record["resumed"] == 1
    for key in ("last", "best", "holdout", "agreement"):
        assert resumed.journal.record[key] == whole.journal.record[key]


# What a step changes ------------------------------------------------------------------------------------------------------


def plain_loop(recipe: Recipe, seen: list[dict[str, torch.Tensor]], loss) -> nn.Module:
    """The same steps in plain PyTorch."""
    model, steps = linear(), TRAIN // BATCH
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    for i, batch in enumerate(seen):
        epoch, step = divmod(i, steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, recipe.epochs, epoch, step / steps)
        optimizer.zero_grad()
        loss(model(batch["input"]), batch, (epoch + step / steps) / recipe.epochs).backward()
        optimizer.step()
    return model


def test_the_loop_is_that_of_plain_pytorch(tmp_path):
    """Bit for bit: rate, momentum and weight decay of every step, over all epochs."""
    run = Run(tmp_path).fit()
    model = plain_loop(run.recipe, run.seen, lambda logits, batch, share: image.loss(logits, batch))
    assert run.head.equal(model[1].weight)


def test_weights_and_their_schedules_reach_the_sum(tmp_path):
    """task 0.5, and soft targets whose weight falls linearly to a fifth: as a plain loop that says so."""
    run = Run(tmp_path, "kd")
    run.weights = {"task": 0.5, "kd.soft": 2.0}
    run.fit(schedules={"kd.soft": {"kind": "linear", "to": 0.2}})
    kd = run.distillation.methods["kd"]

    def loss(logits, batch, share):
        with torch.no_grad():
            taught = run.teacher(batch["input"])
        soft = kd.loss(SimpleNamespace(logits=logits), SimpleNamespace(logits=taught), batch)["soft"]
        return 0.5 * image.loss(logits, batch) + 2.0 * (1 - 0.8 * share) * soft

    assert torch.allclose(run.head, plain_loop(run.recipe, run.seen, loss)[1].weight, atol=1e-5)
    assert not torch.allclose(run.head, Run(tmp_path / "flat", "kd").fit().head, atol=1e-3)


def test_nothing_moves_while_every_weight_is_zero(tmp_path):
    """A schedule that holds the only term at 0: no update, not even of weight decay; training begins when it does."""
    run = Run(tmp_path, weight_decay=0.1, epochs=2)
    before, heads = run.head, after_epochs(run, lambda: run.head)
    run.fit(schedules={"task": {"kind": "linear", "to": 1, "start": 0.5}})
    assert heads[0].equal(before)
    assert not heads[1].equal(before)


def test_a_loss_that_is_not_finite_stops_and_names_its_first_step(tmp_path):
    """Seen when the losses are read, and the step named is the first bad one; no epoch is written."""
    run = Run(tmp_path, epochs=1)
    task = run.task
    run.distillation._task = lambda logits, batch: task(logits, batch) * (float("nan") if len(run.seen) >= 2 else 1)
    with pytest.raises(DivergedError) as caught:
        run.fit()
    run.journal.board.close()
    assert (caught.value.stage, caught.value.step, caught.value.term) == ("distil", 2, "task")
    assert run.curve == []


def test_evaluation_is_in_order_in_eval_mode_and_leaves_training_as_it_was(tmp_path):
    run = Run(tmp_path)
    dropout = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, CLASSES)).train()
    logits = evaluate(TASK, dropout, run.evals["test"]).predictions["logits"]
    x = torch.cat([batch["input"] for batch in run.evals["test"].batches()])
    assert logits.equal(torch.cat([dropout.eval()(part) for part in x.split(4)]))
    assert not logits.requires_grad
    modes = after_epochs(run, lambda: run.distillation.student.module.training)
    run.fit()
    assert modes == [True] * 3


# What the record says -----------------------------------------------------------------------------------------------------


def test_best_is_the_earliest_of_equals(tmp_path):
    """A rate that moves weights and no prediction: every epoch scores alike, so best and holdout are epoch 1, with its weights."""
    run = Run(tmp_path, lr=1e-5)
    heads = after_epochs(run, lambda: run.head)
    run.fit()
    assert len({(line["test"]["score"], line["holdout"]["score"]) for line in run.curve}) == 1
    record = run.journal.record
    assert (record["last"]["epoch"], record["best"]["epoch"], record["holdout"]["epoch"]) == (3, 1, 1)
    assert record["best"]["loss"] == run.curve[0]["test"]["loss"] != record["last"]["loss"]
    assert not heads[0].equal(heads[1])
    for which in ("best", "holdout"):
        assert load_file(tmp_path / f"student-{which}.safetensors")["1.weight"].equal(heads[0])


def end(run: Run, epoch: int, **logits: torch.Tensor) -> None:
    """The end of an epoch in which the student gave these logits on each split."""
    run.journal.progress.train_s = 1.0
    line = Epoch("distil", epoch, 9, epoch, 0.1, {"total": 1.0, "task": 1.0}, 0.5, 1.0, 0.0, 1.0)
    labels = {"test": DATASET.test.labels, "holdout": DATASET.holdout.labels}
    line.evaluations = {"student": {name: evaluation(value, labels[name]) for name, value in logits.items()}}
    run.journal.end_epoch(line, run.journal.progress)


def choosing(*right: int, n: int = TEST) -> torch.Tensor:
    """Logits that choose the true class on the images named, and the next class on the others."""
    chosen = torch.tensor([i % CLASSES if i in right else (i + 1) % CLASSES for i in range(n)])
    return nn.functional.one_hot(chosen, CLASSES).float()


def test_last_best_and_holdout_are_chosen_by_their_own_split(tmp_path):
    """Scores of 3, 5, 5, 4 of 9 on the test set and 2, 1, 3, 3 of 6 on the holdout: last 4, best 2, holdout 3."""
    run = Run(tmp_path)
    run.journal.resume()
    run.journal.start_stage(run.distillation.stages[0], 9, 1, 0)
    for epoch, (test, held) in enumerate([(3, 2), (5, 1), (5, 3), (4, 3)], start=1):
        end(run, epoch, test=choosing(*range(test)), holdout=choosing(*range(held), n=HELD))
    run.journal.board.close()
    record = run.journal.record
    assert (record["last"]["epoch"], record["last"]["score"]) == (4, pytest.approx(4 / 9))
    assert (record["best"]["epoch"], record["best"]["score"]) == (2, pytest.approx(5 / 9))
    held = record["holdout"]
    assert (held["epoch"], held["score"], held["test_score"]) == (3, 0.5, pytest.approx(5 / 9))
    assert held["loss"] == run.curve[2]["holdout"]["loss"]
    assert json.loads((tmp_path / "record.json").read_text())["best"] == record["best"]


def test_agreement_is_with_the_teacher_and_not_with_the_labels(tmp_path):
    """Right on images 0 to 4, the teacher on 3 to 8: 2 of 9 alike and right, and none alike and wrong."""
    teacher = choosing(3, 4, 5, 6, 7, 8)
    run = Run(tmp_path, teacher_logits=teacher)
    run.journal.resume()
    run.journal.start_stage(run.distillation.stages[0], 9, 1, 0)
    end(run, 1, test=choosing(0, 1, 2, 3, 4), holdout=choosing(0, n=HELD))
    assert run.curve[0]["test"]["score"] == pytest.approx(5 / 9)
    assert run.curve[0]["test"]["agreement"] == pytest.approx(2 / 9)
    assert run.journal.record["agreement"] == pytest.approx(2 / 9)
    end(run, 2, test=teacher, holdout=choosing(0, n=HELD))
    assert run.journal.record["agreement"] == 1
    run.journal.board.close()
    assert "agreement" not in run.curve[0]["holdout"]
    alone = Run(tmp_path / "alone").fit()
    assert alone.journal.record["agreement"] is None


def test_a_line_of_the_curve_is_the_means_over_its_images(tmp_path):
    """Loss, accuracy and rate of an epoch, as a plain loop counts them; loss is on unequal batches, too."""
    run = Run(tmp_path, epochs=1, lr=1e-7)
    run.train = Loader(DATASET.train, DATASET, batch_size=4, device="cpu", augment=Augment("none", 0, False))
    run.fit(log_every=2)
    logits = evaluate(TASK, run.distillation.student.module, run.train).predictions["logits"]
    (line,) = run.curve
    assert line["loss"]["task"] == pytest.approx(image.mean_loss(logits, run.train.labels), rel=1e-4)
    assert line["loss"]["total"] == line["loss"]["task"]
    assert line["train_score"] == pytest.approx(image.accuracy(logits, run.train.labels))
    assert (line["step"], line["epoch"]) == (4, 1)
    assert line["test"]["loss"] == pytest.approx(
        evaluate(TASK, run.distillation.student.module, run.evals["test"]).loss
    )


def test_a_curve_with_a_line_too_many_is_cut_by_the_resume(tmp_path):
    """Killed between the curve's line and the resume state: the line is written again, once."""
    Run(tmp_path, epochs=2).fit()
    curve = tmp_path / "curves.jsonl"
    curve.write_text(curve.read_text() + curve.read_text().splitlines()[-1].replace('"epoch": 2', '"epoch": 3') + "\n")
    run = Run(tmp_path).fit()
    assert [line["epoch"] for line in run.curve] == [1, 2, 3]


class Observer(Method):
    """Logs how far training is."""

    teacher = "none"

    def loss(self, student, teacher, batch):
        self.log("progress", self.progress)
        self.log("norm", student.logits.norm())
        return {"size": student.logits.square().mean()}


def test_a_method_knows_its_progress_and_logs_numbers(tmp_path):
    """Progress goes from 0 towards 1, a step at a time; what is logged stands in TensorBoard under the method's name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path, epochs=2)
    distillation = Distillation(
        linear(), None, {"observer": (Observer, {})}, data=run.distillation.data, task=image.loss
    )
    run.parts.distillation = run.journal.distillation = distillation
    run.weights = {"task": 1.0, "observer.size": 0.1}
    run.fit(log_every=1)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    steps = 2 * TRAIN // BATCH
    seen = [point.value for point in events.Scalars("distil/log/observer.progress")]
    assert seen == pytest.approx([step / steps for step in range(steps)])
    assert all(point.value > 0 for point in events.Scalars("distil/log/observer.norm"))


class Layered(Method):
    """Has a layer of its own, which learns nothing but what weight decay does to it, and the student's loss beside it."""

    teacher = "none"

    def build(self, pair):
        self.layer = nn.Linear(CLASSES, 1)

    def loss(self, student, teacher, batch):
        return {"size": self.layer(student.logits.detach()).square().mean()}


def test_a_method_s_layers_have_a_rate_of_their_own(tmp_path):
    """method.x.optimizer: its layers learn at that rate, which follows the recipe's schedule; the student's rate is untouched."""
    moved = {}
    for name, optimizer in {"recipe": {}, "slow": {"lr": 1e-6, "weight_decay": 0.0}}.items():
        run = Run(tmp_path / name, epochs=1)
        settings = {"layered": (Layered, {"optimizer": optimizer})}
        distillation = Distillation(linear(), None, settings, data=run.distillation.data, task=image.loss)
        before = distillation.methods["layered"].layer.weight.detach().clone()
        run.distillation = run.parts.distillation = run.journal.distillation = distillation
        run.weights = {"task": 1.0, "layered.size": 1.0}
        run.fit()
        layer = distillation.methods["layered"].layer
        moved[name] = (layer.weight - before).abs().max().item(), run.head
    assert moved["slow"][0] < 1e-4 < 100 * moved["slow"][0] < moved["recipe"][0]
    assert moved["slow"][1].equal(moved["recipe"][1])


def test_a_state_of_an_older_kdrun_is_resumed(tmp_path, capsys):
    """Schema 1 counted `images`, had no metrics, and held the hash of a text, which cannot be compared: a line says so."""
    whole = Run(tmp_path / "whole").fit()
    stopped = Run(tmp_path / "old")
    end_epoch = stopped.journal.end_epoch

    def stop(epoch: Epoch, progress: Progress) -> None:
        end_epoch(epoch, progress)
        raise KeyboardInterrupt

    stopped.journal.end_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    stopped.journal.board.close()
    path = tmp_path / "old" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    state["progress"]["images"] = state["progress"].pop("samples")
    state["code"] = {"method": {"none": "ab" * 32}}
    for key in ("last", "best", "holdout"):
        state["record"][key] = {k: v for k, v in state["record"][key].items() if not k.endswith("metrics")}
    torch.save(state, path)
    resumed = Run(tmp_path / "old").fit()
    assert "whether the source of its method has changed cannot be known" in capsys.readouterr().out
    assert resumed.head.equal(whole.head)
    for key in ("last", "best", "holdout"):
        assert resumed.journal.record[key] == whole.journal.record[key]
