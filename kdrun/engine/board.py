"""What TensorBoard shows of a run beside its curves: augmented samples; at the end classes, confusions and hyper-parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from kdrun.runs.identity import flat

MOST_CLASSES = 100  # that get a curve of their own


def samples(board: SummaryWriter, images_BCHW: Tensor, mean: list[float], std: list[float]) -> None:
    """A few images as the student sees them in its first epoch, normalisation undone (tag train/augmented)."""
    shape = (1, 3, 1, 1)
    mean_1311, std_1311 = (torch.tensor(values, device=images_BCHW.device).view(shape) for values in (mean, std))
    board.add_images("train/augmented", (images_BCHW.float() * std_1311 + mean_1311).clamp(0, 1).cpu(), 0)


def classes(board: SummaryWriter, logits_NK: Tensor, labels_N: Tensor, names: list[str], step: int) -> None:
    """Per-class accuracy (eval/test/class/<name>) and the confusion matrix, rows true and summing to 1 (eval/test/confusion)."""
    count = len(names)
    cells = torch.bincount(labels_N.long() * count + logits_NK.argmax(1), minlength=count * count).view(count, count)
    share_KK = cells / cells.sum(1, keepdim=True).clamp(min=1)
    for name, accuracy in zip(names[:MOST_CLASSES], share_KK.diagonal().tolist(), strict=False):
        board.add_scalar(f"eval/test/class/{name}", accuracy, step)
    zoom = max(1, 256 // count)
    board.add_image(
        "eval/test/confusion", share_KK[None].repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).cpu(), step
    )


def hyperparameters(board: SummaryWriter, record: dict[str, Any], step: int) -> None:
    """The run's row of the hparams tab: its settings, and its scores at the last step."""

    asked: dict[str, Any] = dict(flat(record["identity"])) | {"seed": record["seed"]}
    scores = {f"hparam/{which}": record[which]["score"] for which in ("last", "best") if record[which]}
    for summary in hparams(asked, scores):
        board._get_file_writer().add_summary(summary)  # add_hparams would open a folder of its own
    for name, value in scores.items():
        board.add_scalar(name, value, step)
