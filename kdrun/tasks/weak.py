"""Finds a teacher that is weaker than it should be, by its logits. One sentence gives the likely cause before a student is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdrun.tasks.classes import accuracy

MUCH = 0.05  # another order of classes or another preprocessing is the likely cause if the accuracy is so much higher with it


def weakness(
    logits_NK: Tensor,
    labels_N: Tensor,
    classes: Sequence[str],
    recorded: float | None,
    unknown: str,
    cause: Callable[[], str | None] = lambda: None,
) -> str | None:
    """What is wrong with the test logits of a teacher, with the likely cause; None if nothing is wrong.

    `recorded`: the score in the record of a teacher that kdrun trained. The accuracy must not be far below it (two points and three
    standard errors); it may be near chance if the record says so. For a checkpoint from outside it is None. Then the accuracy must not
    be near chance, and it must not be far better with renamed classes, or with another preprocessing, which `cause` looks for. `unknown`: a
    sentence that asks for causes that cannot be seen.
    """
    score = accuracy(logits_NK, labels_N)
    what = f"its test accuracy is {100 * score:.2f}"
    if recorded is not None:
        if score >= recorded - max(0.02, 3 * error(recorded, len(labels_N))):
            return None
        return f"{what}, far below the {100 * recorded:.2f} of its record. {unknown}"
    likely = _other_order(logits_NK, labels_N, classes) or cause()
    if likely:
        return f"{what}. The likely cause: {likely}"
    if not is_near_chance(logits_NK, labels_N):
        return None
    return f"{what}, near chance ({100 * chance_of(labels_N, logits_NK.shape[1]):.2f}). {unknown}"


def chance_of(labels_N: Tensor, classes: int) -> float:
    """The accuracy of always choosing the most common class, or of a random choice, whichever is higher."""
    return max(1 / classes, torch.bincount(labels_N.long(), minlength=classes).max().item() / len(labels_N))


def is_near_chance(logits_NK: Tensor, labels_N: Tensor) -> bool:
    """Whether the accuracy is above chance by less than a tenth of the distance from chance to 1, or less than two standard errors."""
    chance = chance_of(labels_N, logits_NK.shape[1])
    near = max(0.1 * (1 - chance), 2 * error(chance, len(labels_N)))
    return accuracy(logits_NK, labels_N) < chance + near


def _other_order(logits_NK: Tensor, labels_N: Tensor, classes: Sequence[str]) -> str | None:
    """A line with an example if the model is good after its classes are renamed, else None."""
    kinds = logits_NK.shape[1]
    cells = torch.bincount(labels_N.long().cpu() * kinds + logits_NK.argmax(1).cpu(), minlength=kinds * kinds)
    true_of_K = cells.view(kinds, kinds).argmax(0)  # the true class that each predicted class mostly is
    renamed = true_of_K[logits_NK.argmax(1).cpu()]
    score = (renamed == labels_N.cpu()).float().mean().item()
    least = accuracy(logits_NK, labels_N) + max(MUCH, 3 * error(0.5, len(labels_N)))
    if len(set(true_of_K.tolist())) < kinds or score < max(0.5, least):
        return None
    other = next((k for k in range(kinds) if true_of_K[k] != k), None)
    if other is None:
        return None
    return (
        f"its classes have another order: its class {other} is '{classes[int(true_of_K[other])]}', here class {other} is "
        f"'{classes[other]}'. The classes of a folder are sorted by name"
    )


def error(share: float, n: int) -> float:
    """Standard error of a share measured on n samples."""
    return math.sqrt(share * (1 - share) / n)
