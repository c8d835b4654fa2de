"""Why a teacher of images may be weak: it was trained with another normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from kdrun.tasks.base import Batch
from kdrun.tasks.classes import correct
from kdrun.tasks.weak import MUCH, error

# Common normalisations: (name, mean, std) of images in [0, 1].
NORMALISATIONS = (
    ("none, images in [0, 1]", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ("images in [-1, 1]", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ("ImageNet's", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("CIFAR-10's", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ("CIFAR-100's", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
)
UNKNOWN = (
    "Was it trained with another normalisation (dataset.mean, dataset.std), does it have another order of classes, or is it the file of "
    "another model?"
)
IMAGES = 1000  # of the test set, on which other normalisations are tried


def better_normalisation(
    logits_of: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    mean: Sequence[float],
    std: Sequence[float],
) -> str | None:
    """A line that names a common normalisation with which the model has a far better accuracy; None if there is none.

    `batches` are normalised by `mean` and `std`; the first IMAGES images are used.
    """
    right, count = torch.zeros(len(NORMALISATIONS) + 1), 0
    for batch in batches:
        x_BCHW, label_B = batch["input"][: IMAGES - count], batch["label"][: IMAGES - count]
        pixels_BCHW = x_BCHW * _channels(std, x_BCHW) + _channels(mean, x_BCHW)
        views = [(pixels_BCHW - _channels(m, x_BCHW)) / _channels(s, x_BCHW) for _, m, s in NORMALISATIONS]
        right += torch.stack([correct(logits_of(view), label_B).cpu() for view in [x_BCHW, *views]])
        count += len(label_B)
        if count >= IMAGES:
            break
    best = int(right[1:].argmax())
    score, gain = right[best + 1].item() / count, (right[best + 1] - right[0]).item() / count
    if gain < max(MUCH, 3 * math.sqrt(2) * error(0.5, count)):
        return None
    name, m, s = NORMALISATIONS[best]
    if score < 0.5:
        return f"not known; with another normalisation ({name}) the accuracy is {100 * score:.0f}. Is it the file of another model?"
    return f"another normalisation ({name}); with it the accuracy is {100 * score:.0f}: 'dataset.mean={_list(m)}' 'dataset.std={_list(s)}'"


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


def _list(values: Sequence[float]) -> str:
    return f"[{','.join(f'{value:g}' for value in values)}]"
