"""Pictures of images for TensorBoard: augmented samples; after the last epoch accuracies of classes and the confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

MOST_CLASSES = 100  # more classes get no curves


def samples(board: SummaryWriter, images_BCHW: Tensor, mean: list[float], std: list[float]) -> None:
    """A few images as the student sees them in its first epoch, without the normalisation (tag train/augmented)."""
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
