"""Finds a teacher of images that is weaker than it should be. One sentence gives the likely cause before a student is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from kdrun.tasks.base import Batch
from kdrun.tasks.image import metrics as image

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
MUCH = 0.05  # another order of classes or another normalisation is the likely cause if the accuracy is so much higher with it
IMAGES = 1000  # of the test set, on which other normalisations are tried


def weakness(
    logits_NK: Tensor,
    labels_N: Tensor,
    classes: Sequence[str],
    recorded: float | None,
    normalisation: Callable[[], str | None],
) -> str | None:
    """What is wrong with the test logits of a teacher, with the likely cause; None if nothing is wrong.

    `recorded`: the score in the record of a teacher that kdrun trained. The accuracy must not be far below it (two points and three
    standard errors); it may be near chance if the record says so. For a checkpoint from outside it is None. Then the accuracy must not
    be near chance, and it must not be far better with renamed classes or with another normalisation, which `normalisation` looks for.
    """
    score = image.accuracy(logits_NK, labels_N)
    what = f"its test accuracy is {100 * score:.2f}"
    if recorded is not None:
        if score >= recorded - max(0.02, 3 * _error(recorded, len(labels_N))):
            return None
        return f"{what}, far below the {100 * recorded:.2f} of its record. {UNKNOWN}"
    cause = _other_order(logits_NK, labels_N, classes) or normalisation()
    if cause:
        return f"{what}. The likely cause: {cause}"
    if not is_near_chance(logits_NK, labels_N):
        return None
    return f"{what}, near chance ({100 * chance_of(labels_N, logits_NK.shape[1]):.2f}). {UNKNOWN}"


def chance_of(labels_N: Tensor, classes: int) -> float:
    """The accuracy of always choosing the most common class, or of a random choice, whichever is higher."""
    return max(1 / classes, torch.bincount(labels_N.long(), minlength=classes).max().item() / len(labels_N))


def is_near_chance(logits_NK: Tensor, labels_N: Tensor) -> bool:
    """Whether the accuracy is above chance by less than a tenth of the distance from chance to 1, or less than two standard errors."""
    chance = chance_of(labels_N, logits_NK.shape[1])
    near = max(0.1 * (1 - chance), 2 * _error(chance, len(labels_N)))
    return image.accuracy(logits_NK, labels_N) < chance + near


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
        right += torch.stack([image.correct(logits_of(view), label_B).cpu() for view in [x_BCHW, *views]])
        count += len(label_B)
        if count >= IMAGES:
            break
    best = int(right[1:].argmax())
    score, gain = right[best + 1].item() / count, (right[best + 1] - right[0]).item() / count
    if gain < max(MUCH, 3 * math.sqrt(2) * _error(0.5, count)):
        return None
    name, m, s = NORMALISATIONS[best]
    if score < 0.5:
        return f"not known; with another normalisation ({name}) the accuracy is {100 * score:.0f}. Is it the file of another model?"
    return f"another normalisation ({name}); with it the accuracy is {100 * score:.0f}: 'dataset.mean={_list(m)}' 'dataset.std={_list(s)}'"


def _other_order(logits_NK: Tensor, labels_N: Tensor, classes: Sequence[str]) -> str | None:
    """A line with an example if the model is good after its classes are renamed, else None."""
    kinds = logits_NK.shape[1]
    cells = torch.bincount(labels_N.long().cpu() * kinds + logits_NK.argmax(1).cpu(), minlength=kinds * kinds)
    true_of_K = cells.view(kinds, kinds).argmax(0)  # the true class that each predicted class mostly is
    renamed = true_of_K[logits_NK.argmax(1).cpu()]
    score = (renamed == labels_N.cpu()).float().mean().item()
    least = image.accuracy(logits_NK, labels_N) + max(MUCH, 3 * _error(0.5, len(labels_N)))
    if len(set(true_of_K.tolist())) < kinds or score < max(0.5, least):
        return None
    other = next((k for k in range(kinds) if true_of_K[k] != k), None)
    if other is None:
        return None
    return (
        f"its classes have another order: its class {other} is '{classes[int(true_of_K[other])]}', here class {other} is "
        f"'{classes[other]}'. The classes of a folder are sorted by name"
    )


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


def _error(share: float, n: int) -> float:
    """Standard error of a share measured on n images."""
    return math.sqrt(share * (1 - share) / n)


def _list(values: Sequence[float]) -> str:
    return f"[{','.join(f'{value:g}' for value in values)}]"
