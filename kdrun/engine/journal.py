"""What a run writes while it trains: curves, weights, the resume state, TensorBoard, its record, and the screen."""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from kdrun.engine import board
from kdrun.engine.loop import Epoch, Progress
from kdrun.engine.precision import Compute
from kdrun.errors import KdrunError
from kdrun.methods.base import Distillation, Stage
from kdrun.runs import record as records
from kdrun.runs.checkpoint import load_state, plain_state, save_state, save_tensors, save_text, weights_sha256
from kdrun.screen import Screen
from kdrun.tasks.image import metrics as image


class RunJournal:
    """Keeps a run's folder in step with its training; the record it holds is the one that ends in record.json.

    Order at the end of an epoch: curve line, candidate weights, resume state, record. A kill between any two of them is
    mended by the resume, which cuts the curve back to what the resume state knows.
    """

    def __init__(
        self,
        folder: Path,
        record: dict[str, Any],
        distillation: Distillation,
        compute: Compute,
        labels: dict[str, Tensor],
        teacher_logits: Tensor | None,
        screen: Screen,
    ):
        self.folder, self.record, self.distillation, self.compute = folder, record, distillation, compute
        self.labels, self.teacher_logits, self.screen = labels, teacher_logits, screen
        self.lines = 0
        self.board: Any = None  # opened by resume
        self.progress = Progress()
        self.place: dict[str, Any] = {"stage": None, "step": None}  # where training is: the position of a failure

    def resume(self) -> Progress:
        """The state of the last finished epoch, loaded into the distillation; a fresh Progress where there is none."""
        path = self.folder / "last.ckpt"
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
            if any(self.record["code"].get(key) != value for key, value in state["code"].items()):
                raise KdrunError(
                    f"the source of {'+'.join(self.record['method'])} or of its model has changed since {self.folder} was begun: "
                    "half of it would be trained with each. Put the source back, or say rerun=true to start over"
                )
            self.distillation.load_state_dict(state["distillation"])
            progress = Progress(**state["progress"])
            self.lines = state["lines"]
            for key in ("last", "best", "holdout", "agreement"):
                self.record[key] = state["record"][key]
            self.record["student"]["init_sha256"] = state["record"]["init_sha256"]
            self.record["resumed"] += 1
            self._progress_record(progress)
        self._cut_curves()
        if not progress.step:
            for events in (self.folder / "tb").glob("events.out.tfevents.*"):
                events.unlink()  # points of a first epoch that was never finished
        self.board = SummaryWriter(self.folder / "tb", purge_step=progress.step + 1 if progress.step else None)
        self.progress = progress
        return progress

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

    def samples(self, images_BCHW: Tensor) -> None:
        board.samples(self.board, images_BCHW, self.record["dataset"]["mean"], self.record["dataset"]["std"])

    def teacher(self, score: float) -> None:
        self.board.add_scalar(f"teacher/test/{image.METRIC['name']}", score, 0)

    def end_epoch(self, epoch: Epoch, progress: Progress) -> None:
        line = self._line(epoch)
        self._points(epoch, line)
        with open(self.folder / "curves.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines += 1
        if line["test"]:
            self._candidates(epoch, line)
        self._save(progress)
        self._progress_record(progress)
        records.write(self.folder, self.record)
        self.board.flush()
        self.screen.end_epoch(epoch, line["test"]["score"] if line["test"] else None)
        self._at(epoch.stage, inside=epoch.epoch < epoch.epochs)

    def finish(self, test_logits: Tensor) -> None:
        """The last files: weights of the last epoch (and of the peers), and its test logits (N, K)."""
        student = plain_state(self.distillation.student.module)
        save_tensors(self.folder / "student.safetensors", student)
        for name, model in self.distillation.stages[-1].evaluates.items():
            if name != "student":
                save_tensors(self.folder / f"{name}.safetensors", plain_state(model))
        save_tensors(self.folder / "test_logits.safetensors", {"logits": test_logits, "labels": self.labels["test"]})
        self.record["student"]["sha256"] = weights_sha256(student)
        self.record["calibration"] = image.calibration(test_logits, self.labels["test"])
        self.record["class_scores"] = image.class_scores(test_logits, self.labels["test"])
        names = self.record["dataset"]["classes"]
        board.classes(self.board, test_logits, self.labels["test"], names, self.progress.step)
        board.hyperparameters(self.board, self.record, self.progress.step)
        self.board.close()

    def close(self) -> None:
        """However training ended: the next run of this process must not find TensorBoard's thread and file still open."""
        if self.board is not None:
            with suppress(OSError):  # a full disk has been told already
                self.board.close()

    def _at(self, stage: str, inside: bool) -> None:
        """Training is in `stage`; `inside` the step that follows the last finished one, or outside of steps (evaluation)."""
        self.place = {"stage": stage, "step": self.progress.step + 1 if inside else None}

    def _line(self, epoch: Epoch) -> dict[str, Any]:
        line: dict[str, Any] = {
            "stage": epoch.stage, "epoch": epoch.epoch, "epochs": epoch.epochs, "step": epoch.step, "lr": epoch.lr, "loss": epoch.loss,
            "test": None, "holdout": None, "train_score": epoch.train_score, "images_per_s": epoch.images_per_s,
            "data_wait": epoch.data_wait, "seconds": epoch.seconds, "peers": {},
        }  # fmt: skip
        for name, splits in epoch.logits.items():
            scores = {split: self._scores(split, logits) for split, logits in splits.items()}
            if name == "student":
                line |= scores
            else:
                line["peers"][name] = scores["test"]
        return line

    def _scores(self, split: str, logits: Tensor) -> dict[str, float | None]:
        labels = self.labels[split]
        found: dict[str, float | None] = {"score": image.score(logits, labels), "loss": image.mean_loss(logits, labels)}
        if split == "test":
            found["agreement"] = None if self.teacher_logits is None else image.agreement(logits, self.teacher_logits)
        return found

    def _points(self, epoch: Epoch, line: dict[str, Any]) -> None:
        metric = image.METRIC["name"]
        points = {
            f"{epoch.stage}/train/{metric}": epoch.train_score,
            "speed/images_per_s": epoch.images_per_s,
            "speed/data_wait": epoch.data_wait,
        }
        for split in ("test", "holdout"):
            if line[split]:
                points |= {f"eval/{split}/{metric}": line[split]["score"], f"eval/{split}/loss": line[split]["loss"]}
        if line["test"] and line["test"]["agreement"] is not None:
            points["eval/test/agreement"] = line["test"]["agreement"]
        for name, scores in line["peers"].items():
            points[f"eval/test/{name}/{metric}"] = scores["score"]
        for name, value in points.items():
            if value is not None:
                self.board.add_scalar(name, value, epoch.step)

    def _candidates(self, epoch: Epoch, line: dict[str, Any]) -> None:
        """last, best (highest test score, the earliest of equals) and holdout (highest holdout score, scored on test)."""
        test, held = line["test"], line["holdout"]
        self.record["last"] = {"epoch": epoch.epoch, "score": test["score"], "loss": test["loss"]}
        self.record["agreement"] = test["agreement"]
        student = plain_state(self.distillation.student.module)
        if self.record["best"] is None or test["score"] > self.record["best"]["score"]:
            self.record["best"] = dict(self.record["last"])
            save_tensors(self.folder / "student-best.safetensors", student)
        if held and (self.record["holdout"] is None or held["score"] > self.record["holdout"]["score"]):
            self.record["holdout"] = {
                "epoch": epoch.epoch,
                "score": held["score"],
                "loss": held["loss"],
                "test_score": test["score"],
            }
            save_tensors(self.folder / "student-holdout.safetensors", student)

    def _save(self, progress: Progress) -> None:
        kept = {key: self.record[key] for key in ("last", "best", "holdout", "agreement")}
        state = {
            "device": self.compute.device.type, "precision": self.compute.precision, "lines": self.lines,
            "id": self.record["id"], "code": self.record["code"],
            "teacher": self.record["teacher"] and self.record["teacher"]["sha256"],
            "progress": dict(progress.__dict__), "distillation": self.distillation.state_dict(),
            "record": {**kept, "init_sha256": self.record["student"]["init_sha256"]},
        }  # fmt: skip
        save_state(self.folder / "last.ckpt", state)

    def _progress_record(self, progress: Progress) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if self.compute.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        self.record["time"] |= {
            "train_s": round(progress.train_s, 3),
            "images_per_s": round(progress.images / progress.train_s, 1),
            "data_wait": round(progress.wait_s / progress.train_s, 4),
            "peak_memory": max(peak, self.record["time"]["peak_memory"] or 0),  # of all starts
        }

    def _cut_curves(self) -> None:
        path = self.folder / "curves.jsonl"
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[: self.lines] if path.is_file() else []
        save_text(path, "".join(kept))

    def _label(self, stage: Stage) -> str:
        """The role, and the stage where there are several: "student hints"."""
        return self.screen.role + (f" {stage.name}" if len(self.distillation.stages) > 1 else "")
