"""mAP as ultralytics measures it, and how far two detectors say the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401 - where it is imported, the library takes its fast suppression
from torch import Tensor

from kdrun.tasks.base import Batch, Evaluation
from kdrun.tasks.detection import library
from kdrun.tasks.detection.detector import decoded

library.ready()

from ultralytics.engine.validator import BaseValidator  # noqa: E402
from ultralytics.utils.metrics import ap_per_class, box_iou  # noqa: E402
from ultralytics.utils.nms import non_max_suppression  # noqa: E402

CONFIDENCE, OVERLAP, MOST = 0.001, 0.7, 300  # of the boxes that mAP looks at, as `yolo val`
NO_LIMIT = 1e9  # seconds: the library gives up on slow machines, and mAP would depend on the clock
SHOWN = 0.25  # confidence of the boxes that pictures and agreement look at, as `yolo predict`
_IOUS: Any = SimpleNamespace(iouv=torch.linspace(0.5, 0.95, 10))  # what the library's matching asks of a validator


class DetectionEvaluator:
    """Collects the boxes of a split, batch by batch, in any order."""

    def __init__(self, loss: Any, classes: int):
        self.loss, self.classes = loss, classes
        self.losses: list[Tensor] = []
        self.images, self.found, self.truth, self.places = [], [], [], []  # type: ignore[var-annotated]

    def update(self, output: Any, batch: Batch) -> None:
        count, shape = len(batch["index"]), batch["input"].shape[2:]
        self.losses.append(self.loss(output, batch) * count)
        boxes = non_max_suppression(
            decoded(output), CONFIDENCE, OVERLAP, nc=self.classes, multi_label=True, max_det=MOST, max_time_img=NO_LIMIT
        )
        self.images.append(batch["index"].cpu())
        self.found += [one[:, :6] for one in boxes]
        side = torch.tensor([shape[1], shape[0]] * 2, device=batch["bboxes"].device)
        corners = xyxy(batch["bboxes"] * side)
        for number in range(count):
            mine = batch["batch_idx"] == number
            self.truth.append(torch.cat([corners[mine], batch["cls"][mine]], 1))
        self.places += batch["ratio_pad"]

    def result(self) -> Evaluation:
        index = torch.cat(self.images)
        order = index.argsort()
        found, truth = ([rows[i].float().cpu() for i in order.tolist()] for rows in (self.found, self.truth))
        scores = mean_precisions(found, truth)
        places = [self.places[i] for i in order.tolist()]
        found, truth = ([in_image(*one) for one in zip(rows, places, strict=True)] for rows in (found, truth))
        loss = float(torch.stack(self.losses).sum()) / len(index)
        return Evaluation(
            {"map50_95": scores["map50_95"], "map50": scores["map50"]}, loss,
            {
                "boxes": torch.cat(found), "boxes_of_image": torch.tensor([len(rows) for rows in found]),
                "truth": torch.cat(truth), "truth_of_image": torch.tensor([len(rows) for rows in truth]),
            },
        )  # fmt: skip


def in_image(rows: Tensor, place: tuple[tuple[float, float], tuple[float, float]]) -> Tensor:
    """Rows that begin with corners in px of an input, with corners in px of its image. `place`: scale and padding, as the library gives
    them: (of the height, of the width), (left, top)."""
    (tall, wide), (left, top) = place
    moved = (rows[:, :4] - rows.new_tensor([left, top] * 2)) / rows.new_tensor([wide, tall] * 2)
    return torch.cat([moved, rows[:, 4:]], 1)


def xyxy(boxes_N4: Tensor) -> Tensor:
    """Corners of boxes given by centre and size."""
    centre, size = boxes_N4[:, :2], boxes_N4[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def mean_precisions(found: list[Tensor], truth: list[Tensor]) -> dict[str, Any]:
    """mAP over IoU 0.5 to 0.95 and at 0.5, the mean over the classes that occur, and both for each of them.

    found: (n, 6) corners, confidence, class of each image, the most confident first; truth: (m, 5) corners, class.
    """
    hits = np.concatenate([matches(boxes, known) for boxes, known in zip(found, truth, strict=True)])
    boxes, known = torch.cat(found).numpy(), torch.cat(truth).numpy()
    if not len(boxes) or not len(known):
        numbers = sorted({int(number) for number in known[:, 4]})
        return {"map50_95": 0.0, "map50": 0.0, "classes": {number: (0.0, 0.0) for number in numbers}}
    precisions, numbers = ap_per_class(hits, boxes[:, 4], boxes[:, 5], known[:, 4])[5:7]
    return {
        "map50_95": float(precisions.mean()), "map50": float(precisions[:, 0].mean()),
        "classes": {int(number): (float(row.mean()), float(row[0])) for number, row in zip(numbers, precisions, strict=True)},
    }  # fmt: skip


def matches(found_N6: Tensor, truth_M5: Tensor) -> np.ndarray:
    """(N, 10) bool: whether each box is right at each threshold of the IoU, 0.5 to 0.95. Boxes come in the order of their confidence, and
    each takes the truth of its class that overlaps it most and is not taken yet."""
    overlaps_MN = box_iou(truth_M5[:, :4], found_N6[:, :4])
    right = BaseValidator.match_predictions(_IOUS, found_N6[:, 5], truth_M5[:, 4], overlaps_MN)
    return right.numpy()  # type: ignore[no-any-return]


def split_images(evaluation: Evaluation, what: str) -> list[Tensor]:
    """The rows of each image: "boxes" (n, 6) or "truth" (n, 5)."""
    counts: list[int] = evaluation.predictions[f"{what}_of_image"].tolist()
    return list(evaluation.predictions[what].split(counts))


def agreement(student: Evaluation, teacher: Evaluation) -> float:
    """F1 of the student's boxes above a confidence of 0.25 against the teacher's, at IoU 0.5 and of one class."""
    paired = mine = theirs = 0
    for a, b in zip(split_images(student, "boxes"), split_images(teacher, "boxes"), strict=True):
        a, b = a[a[:, 4] > SHOWN], b[b[:, 4] > SHOWN]
        paired += int(matches(a, b[:, [0, 1, 2, 3, 5]])[:, 0].sum())
        mine, theirs = mine + len(a), theirs + len(b)
    return 2 * paired / (mine + theirs) if mine + theirs else 1.0


def class_scores(evaluation: Evaluation, classes: list[str], counts: list[int]) -> list[dict[str, Any]]:
    """For each class its boxes in the split, AP over IoU 0.5 to 0.95 and at 0.5; None where it does not occur."""
    by_class = mean_precisions(split_images(evaluation, "boxes"), split_images(evaluation, "truth"))["classes"]
    rows = [(name, counts[number], *by_class.get(number, (None, None))) for number, name in enumerate(classes)]
    return [dict(zip(("class", "boxes", "ap50_95", "ap50"), row, strict=True)) for row in rows]
