"""What a run writes while it trains: curves, weights, the resume state, TensorBoard, its record, and the screen."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml  # comes with omegaconf
from torch.utils.tensorboard import SummaryWriter

from kdrun.engine import board
from kdrun.engine.automatic import in_words
from kdrun.engine.build import Parts
from kdrun.engine.failure import failure, plain
from kdrun.engine.loop import Epoch, Progress, evaluate
from kdrun.errors import KdrunError
from kdrun.methods.base import Method, Stage
from kdrun.runs import folder as files
from kdrun.runs import record as records
from kdrun.runs.checkpoint import (
    load_state,
    load_weights,
    plain_state,
    save_state,
    save_tensors,
    save_text,
    weights_sha256,
)
from kdrun.runs.schema import with_metrics
from kdrun.runs.source import TREE, is_other_code
from kdrun.screen import Screen
from kdrun.tasks.base import Evaluation, Task


class RunJournal:
    """Keeps a run's folder in step with its training; the record it holds is the one that ends in record.json.

    Order at the end of an epoch: curve line, candidate weights, resume state, record. A kill between any two of them is
    mended by the resume, which cuts the curve back to what the resume state knows.

    As a context it writes the record at its start and, whatever ends the run, the reason at its end. Until `begin`
    agrees to go on with a run that was begun before, the old record (`before`) stays on disk. So a refusal, or a teacher that fails, loses
    nothing.
    """

    def __init__(
        self, folder: Path, record: dict[str, Any], before: dict[str, Any] | None, parts: Parts, screen: Screen
    ):
        self.folder, self.record, self.parts, self.screen = folder, record, parts, screen
        self.standing = record if before is None else {**before, "status": "running", "error": None}
        self.distillation, self.compute, self.task = parts.distillation, parts.compute, parts.task
        self.metric = parts.task.metrics[0]
        self.teacher_evaluation: Evaluation | None = None
        self.last_test: Evaluation | None = None  # of the student, after the last epoch that was evaluated here
        self.lines = 0
        self.board: Any = None  # opened by begin
        self.progress = Progress()
        self.place: dict[str, Any] = {"stage": None, "step": None}  # where training is: the position of a failure

    def __enter__(self) -> RunJournal:
        return self

    def open(self) -> None:
        """Write the record of a run that is training, and the first lines of its log."""
        records.write(self.folder, self.standing)
        self.log_to_folder()
        for line in [*self.parts.lines(), *(f"note     {line}" for line in self.parts.dataset.notes)]:
            self.screen.note(line)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """The last word: how the run ended, also where the disk is full or the user stopped it."""
        if error is not None:
            self.standing |= failure(error, self.place)
        self.screen.stop()
        if self.board is not None:
            with suppress(OSError):  # a full disk has been reported already; the next run must not find the file open
                self.board.close()
        if self.standing is self.record:
            self.record["time"]["end"] = records.now()
        self._last_word()
        self.screen.log = None
        if error is not None and plain(error) is not error:
            raise plain(error) from error

    def _last_word(self) -> None:
        """Write the record even where the disk is full: its old space is free again by then, or the old record stays."""
        try:
            records.write(self.folder, self.standing)
        except OSError:
            if self.standing["status"] == "done":
                raise

    def log_to_folder(self) -> None:
        """What the screen says goes into this run's log, too."""
        self.screen.log = self.folder / files.LOG

    def teacher(self, entry: dict[str, Any], evaluation: Evaluation) -> None:
        """The teacher is ready: what the record says of it, and what it scored on the test set."""
        self.record["teacher"], self.teacher_evaluation = entry, evaluation

    def start_student(self, config: Any) -> None:
        """Give the student what it takes from the trained teacher."""
        student, teacher = self.distillation.student.module, self.distillation.teacher
        assert teacher is not None
        if self.task.start(config, student, teacher.module):
            self.record["student"]["init_sha256"] = weights_sha256(plain_state(student))

    def begin(self, config: Any) -> Progress:
        """Go on with what was trained before, or start: from here on the record is this run's."""
        if self.compute.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # the teacher's own training is not this run's
        progress = self.resume()
        self.standing = self.record
        records.write(self.folder, self.record)
        save_text(self.folder / files.CONFIG, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
        if progress.step == 0:
            parts = self.parts
            self.task.preview(self.board, parts.dataset, parts.train.view(parts.dataset.train.index[:16], 0))
            if self.record["teacher"] is not None:
                self.board.add_scalar(f"teacher/test/{self.metric.name}", self.record["teacher"]["score"], 0)
        return progress

    def resume(self) -> Progress:
        """The state of the last finished epoch, loaded into the distillation; a fresh Progress where there is none."""
        path = self.folder / files.STATE
        progress = Progress()
        if path.is_file():
            state = load_state(path)
            for key, mine in (("device", self.compute.device.type), ("precision", self.compute.precision)):
                if state[key] != mine:
                    raise KdrunError(
                        f"{self.folder} was begun with {key} {state[key]}, not {mine}: it would not end with the same bits. "
                        f"Say engine.{key}={state[key]}, or rerun=true to start over"
                    )
            teacher = self.record["teacher"] and self.record["teacher"]["sha256"]
            if (state["id"], state["teacher"]) != (self.record["id"], teacher):
                raise KdrunError(
                    f"{self.folder} was begun as another run or with another teacher; rerun=true starts it over"
                )
            if any(not value.startswith(TREE) for value in state["code"].get("method", {}).values()):
                self.screen.say(
                    "note     begun by an older kdrun: whether the source of its method has changed cannot be known"
                )
            if is_other_code(self.record["code"], state["code"]):
                raise KdrunError(
                    f"the source of {'+'.join(self.record['method'])} or of its model has changed since {self.folder} was begun: "
                    "half of it would be trained with each. Put the source back, or say rerun=true to start over"
                )
            self.distillation.load_state_dict(state["distillation"])
            progress = Progress(**_samples(state["progress"]))
            self.lines = state["lines"]
            for key in ("last", "best", "holdout"):
                self.record[key] = with_metrics(state["record"][key], self.metric.name)
            self.record["agreement"] = state["record"]["agreement"]
            if self.parts.auto:
                self.set_weights(state["record"]["weights_auto"])
            self.record["student"]["init_sha256"] = state["record"]["init_sha256"]
            self.record["resumed"] += 1
            self._progress_record(progress)
        self._cut_curves()
        if not progress.step:
            for events in (self.folder / files.BOARD).glob(files.EVENTS):
                events.unlink()  # points of a first epoch that was never finished
        self.board = SummaryWriter(self.folder / files.BOARD, purge_step=progress.step + 1 if progress.step else None)
        self.progress = progress
        return progress

    def set_weights(self, measured: dict[str, float]) -> None:
        """Use the weights that were measured for `auto(SHARE)`, now and after a resume: in the loop, the record and the log."""
        self.parts.weights.update(measured)
        self.record["weights"] = dict(self.parts.weights)
        for term, weight in measured.items():
            self.record["weights_auto"][term]["weight"] = weight
        (self.screen.note if self.screen.brief else self.screen.say)(in_words(self.record["weights_auto"]))

    def start_stage(self, stage: Stage, epochs: int, steps: int, done: int) -> None:
        self.steps = steps
        self._at(stage.name, inside=done < epochs)
        self.screen.start_stage(self._label(stage), epochs, steps, done)

    def tick(self, stage: Stage, epoch: int, losses: dict[str, float] | None) -> None:
        self._at(stage.name, inside=self.progress.step % self.steps > 0)  # after the last step comes the evaluation
        self.screen.tick(epoch, losses["total"] if losses else None)

    def point(self, stage: Stage, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{stage.name}/{name}", value, step)

    def end_epoch(self, epoch: Epoch, progress: Progress) -> None:
        line = self._line(epoch)
        self._points(epoch, line)
        with open(self.folder / files.CURVES, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines += 1
        if line["test"]:
            self._candidates(epoch, line)
        else:
            self.last_test = None  # the student may have learned since
        self._save(progress)
        self._progress_record(progress)
        records.write(self.folder, self.record)
        self.board.flush()
        self.screen.end_epoch(
            epoch,
            self.metric.text(line["test"]["score"]) if line["test"] else None,
            f"{epoch.samples_per_s:,.0f} {self.task.unit}/s",
        )
        self._at(epoch.stage, inside=epoch.epoch < epoch.epochs)

    def finish(self, test: Evaluation) -> None:
        """The last files: weights of the last epoch (and of the peers), and what the student gives for the test set."""
        student = plain_state(self.distillation.trained)
        save_tensors(self.folder / files.WEIGHTS["last"], student)
        for name, model in self.distillation.evaluated(self.distillation.stages[-1]).items():
            if name != "student":
                save_tensors(self.folder / f"{name}.safetensors", plain_state(model))
        save_tensors(self.folder / files.PREDICTIONS, test.predictions)
        for name, text in self.task.files(self.parts.dataset, self.distillation.trained).items():
            (self.folder / files.TASK).mkdir(exist_ok=True)
            save_text(self.folder / files.TASK / name, text)
        self.record["student"]["sha256"] = weights_sha256(student)
        if self.screen.role == "student" and self.task.is_near_chance(test):
            self.screen.say(
                "note     the student is near chance on the test set: too few steps, or a rate too low or too high? recipe.epochs, .lr"
            )
        self._export()
        self.record["details"] = self.task.details(test, self.parts.dataset) | self._details_of_methods()
        self.task.show(self.board, self.parts.dataset, test, self.progress.step)
        board.hyperparameters(self.board, self.record, self.progress.step)
        self.board.close()

    def _export(self) -> None:
        """What other programs open: the student of the last epoch, and of the best one on the holdout, or on test where there is none."""
        if type(self.task).export is Task.export:
            return
        best = "holdout" if self.record["holdout"] else "best"
        chosen = {
            "last": plain_state(self.distillation.trained),
            "best": load_weights(self.folder / files.WEIGHTS[best]),
        }
        self.task.export(self.folder, self.parts.dataset, self.distillation.trained, chosen, self.parts.recipe)

    def _details_of_methods(self) -> dict[str, Any]:
        student, teacher = self.distillation.trained, self.distillation.teacher
        loader = self.parts.evals["test"]

        def score(model: torch.nn.Module) -> float:
            return evaluate(self.task, model, loader, self.compute.autocast).score

        details = {}
        for name, method in self.distillation.methods.items():
            if type(method).details is Method.details:
                continue
            self.screen.say(
                f"details  of {name}: scores and speeds on the test set are measured; this can take minutes"
            )
            details[name] = method.details(student, teacher and teacher.module, loader, score)
        return details

    def _at(self, stage: str, inside: bool) -> None:
        """Training is in `stage`; `inside`: in the step after the last finished one; else in an evaluation."""
        self.place = {"stage": stage, "step": self.progress.step + 1 if inside else None}

    def _line(self, epoch: Epoch) -> dict[str, Any]:
        line: dict[str, Any] = {
            "stage": epoch.stage, "epoch": epoch.epoch, "epochs": epoch.epochs, "step": epoch.step, "lr": epoch.lr, "loss": epoch.loss,
            "test": None, "holdout": None, "train_score": epoch.train_score, "samples_per_s": epoch.samples_per_s,
            "data_wait": epoch.data_wait, "seconds": epoch.seconds, "shares": epoch.shares, "peers": {},
        }  # fmt: skip
        for name, splits in epoch.evaluations.items():
            scores = {split: self._scores(split, evaluation) for split, evaluation in splits.items()}
            if name == "student":
                line |= scores
            else:
                line["peers"][name] = scores["test"]
        return line

    def _scores(self, split: str, evaluation: Evaluation) -> dict[str, Any]:
        scores: dict[str, Any] = {
            "score": evaluation.score, "loss": evaluation.loss, "metrics": evaluation.metrics,
        }  # fmt: skip
        if split == "test":
            teacher = self.teacher_evaluation
            scores["agreement"] = None if teacher is None else self.task.agreement(evaluation, teacher)
        return scores

    def _points(self, epoch: Epoch, line: dict[str, Any]) -> None:
        points = {
            f"{epoch.stage}/train/{self.metric.name}": epoch.train_score,
            f"speed/{self.task.unit}_per_s": epoch.samples_per_s,
            "speed/data_wait": epoch.data_wait,
        }
        for split in ("test", "holdout"):
            if line[split]:
                points |= {f"eval/{split}/{name}": value for name, value in line[split]["metrics"].items()}
                points[f"eval/{split}/loss"] = line[split]["loss"]
        if line["test"] and line["test"]["agreement"] is not None:
            points["eval/test/agreement"] = line["test"]["agreement"]
        for name, scores in line["peers"].items():
            points[f"eval/test/{name}/{self.metric.name}"] = scores["score"]
        for name, value in points.items():
            if value is not None:
                self.board.add_scalar(name, value, epoch.step)

    def _candidates(self, epoch: Epoch, line: dict[str, Any]) -> None:
        """last, best (on the test set, the earliest of equals) and holdout (best on the holdout, scored on test)."""
        test, held = line["test"], line["holdout"]
        self.record["last"] = {
            "epoch": epoch.epoch, "score": test["score"], "loss": test["loss"], "metrics": test["metrics"],
        }  # fmt: skip
        self.record["agreement"] = test["agreement"]
        self.last_test = epoch.evaluations["student"]["test"]
        student = plain_state(self.distillation.trained)
        best, chosen = self.record["best"], self.record["holdout"]
        if self.metric.is_better(test["score"], best and best["score"]):
            self.record["best"] = dict(self.record["last"])
            save_tensors(self.folder / files.WEIGHTS["best"], student)
        if held and self.metric.is_better(held["score"], chosen and chosen["score"]):
            self.record["holdout"] = {
                "epoch": epoch.epoch, "score": held["score"], "loss": held["loss"], "metrics": held["metrics"],
                "test_score": test["score"], "test_metrics": test["metrics"],
            }  # fmt: skip
            save_tensors(self.folder / files.WEIGHTS["holdout"], student)

    def _save(self, progress: Progress) -> None:
        kept = {key: self.record[key] for key in ("last", "best", "holdout", "agreement")}
        state = {
            "device": self.compute.device.type, "precision": self.compute.precision, "lines": self.lines,
            "id": self.record["id"], "code": self.record["code"],
            "teacher": self.record["teacher"] and self.record["teacher"]["sha256"],
            "progress": dict(progress.__dict__), "distillation": self.distillation.state_dict(),
            "record": {
                **kept, "init_sha256": self.record["student"]["init_sha256"],
                "weights_auto": {term: self.parts.weights[term] for term in self.parts.auto},
            },
        }  # fmt: skip
        save_state(self.folder / files.STATE, state)

    def _progress_record(self, progress: Progress) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if self.compute.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        self.record["time"] |= {
            "train_s": round(progress.train_s, 3),
            "samples_per_s": round(progress.samples / progress.train_s, 1),
            "data_wait": round(progress.wait_s / progress.train_s, 4),
            "peak_memory": max(peak, self.record["time"]["peak_memory"] or 0),  # of all starts
        }

    def _cut_curves(self) -> None:
        path = self.folder / files.CURVES
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[: self.lines] if path.is_file() else []
        save_text(path, "".join(kept))

    def _label(self, stage: Stage) -> str:
        """The role, and the stage where there are several: "student hints"."""
        return self.screen.role + (f" {stage.name}" if len(self.distillation.stages) > 1 else "")


def _samples(progress: dict[str, Any]) -> dict[str, Any]:
    """The progress in a resume state; states from before schema 2 counted `images`."""
    return {"samples" if key == "images" else key: value for key, value in progress.items()}
