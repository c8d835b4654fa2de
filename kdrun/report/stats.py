"""Statistics over seeds: pure functions on lists of numbers, in whatever unit the numbers have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean


def mean_sd(xs: Sequence[float]) -> tuple[float, float | None]:
    """(mean, sample standard deviation sqrt(sum (x - mean)^2 / (n - 1))); the second None for one value.

    ValueError for none.
    """
    if not xs:
        raise ValueError("mean_sd needs at least one value")
    mean = fmean(xs)
    if len(xs) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in xs) / (len(xs) - 1))


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """The mean of a[i] - b[i] and its t interval: (difference, low, high), the ends None for a single pair.

    With d = a - b over n pairs: mean(d) +- t(1 - (1 - level) / 2, n - 1) * sd(d) / sqrt(n) (Student, "The probable
    error of a mean", Biometrika 1908, https://doi.org/10.1093/biomet/6.1.1); the differences are taken to be normal.
    Paired by seed, both runs share initial weights, batches and test images, and what these do to both cancels. The
    interval covers the seeds, on this fixed test set; it does not cover another draw of test images.
    Identical differences give an interval of width zero. ValueError if the lengths differ or are zero.
    """
    if len(a) != len(b):
        raise ValueError(f"paired needs lists of one length, got {len(a)} and {len(b)}")
    difference, sd = mean_sd([x - y for x, y in zip(a, b, strict=True)])
    if sd is None:
        return difference, None, None
    from scipy.special import stdtrit  # the quantile alone: scipy.stats takes a second to import

    half = float(stdtrit(len(a) - 1, (1 + level) / 2)) * sd / math.sqrt(len(a))
    return difference, difference - half, difference + half
