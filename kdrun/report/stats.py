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


def deviation(differences: Sequence[float], resolution: float = 0.0) -> float | None:
    """The sample standard deviation of differences of scores, at least as large as that of rounding; None for one difference.

    An accuracy on n samples is a multiple of 1 / n (`resolution`), so it is rounded with a variance of resolution^2 / 12, a difference of
    two with twice that. Without the floor, two or three differences that happen to agree to the sample would be certain.
    """
    sd = mean_sd(differences)[1]
    return None if sd is None else max(sd, resolution / math.sqrt(6))


def paired(
    a: Sequence[float], b: Sequence[float], level: float = 0.95, resolution: float = 0.0
) -> tuple[float, float | None, float | None]:
    """The mean of a[i] - b[i] and its t interval: (difference, low, high), the ends None for a single pair.

    With d = a - b over n pairs: mean(d) +- t(1 - (1 - level) / 2, n - 1) * sd(d) / sqrt(n) (Student, "The probable
    error of a mean", Biometrika 1908, https://doi.org/10.1093/biomet/6.1.1); the differences are taken to be normal.
    Paired by seed, both runs share initial weights, batches and test samples, and what these do to both cancels. The
    interval covers the seeds, on this fixed test set; it does not cover another draw of test samples.
    Identical differences give an interval of the width that `resolution` (see deviation) leaves. ValueError if the lengths
    differ or are zero.
    """
    if len(a) != len(b):
        raise ValueError(f"paired needs lists of one length, got {len(a)} and {len(b)}")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    difference, sd = fmean(differences), deviation(differences, resolution)
    if sd is None:
        return difference, None, None
    from scipy.special import stdtrit  # the quantile alone: scipy.stats takes a second to import

    half = float(stdtrit(len(a) - 1, (1 + level) / 2)) * sd / math.sqrt(len(a))
    return difference, difference - half, difference + half


def p_value(a: Sequence[float], b: Sequence[float], resolution: float = 0.0) -> float | None:
    """Two-sided p of the paired t test: how often differences at least as far from 0 would come of equal means.

    None for a single pair. Identical pairs give 1; without a `resolution` a difference that is the same in every pair gives 0.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    difference, sd = fmean(differences), deviation(differences, resolution)
    if sd is None:
        return None
    if sd == 0:
        return 1.0 if difference == 0 else 0.0
    from scipy.special import stdtr

    return 2 * float(stdtr(len(a) - 1, -abs(difference) / sd * math.sqrt(len(a))))


def sign_flip(differences: Sequence[float], draws: int = 20_000) -> float:
    """Two-sided p of the sign-flip test: of all 2^n signs of the differences, the share with a mean at least as far from 0.

    It takes differences to be as likely above 0 as below, by the same amounts (Fisher, "The design of experiments", 1935), and not
    to be normal. The smallest p of n pairs is 2 / 2^n: 0.25 for three, 0.031 for six. Exact up to 32 pairs, by counting pairs of
    half sums; beyond, over `draws` random signs of a fixed stream, the given ones counted among them. 1 where all are 0.
    ValueError for none.
    """
    if not differences:
        raise ValueError("sign_flip needs at least one difference")
    import numpy as np

    given = abs(math.fsum(differences))
    reach = given - 1e-9 * math.fsum(map(abs, differences))  # equal sums differ in their last digits
    if len(differences) > 32:
        draw, signed = np.random.default_rng(0), 0
        for _ in range(draws // 1000):
            signs = draw.integers(0, 2, size=(1000, len(differences))) * 2 - 1
            signed += int((abs(signs @ np.asarray(differences)) >= reach).sum())
        return (signed + 1) / (draws // 1000 * 1000 + 1)

    def sums(values: Sequence[float]) -> np.ndarray:
        totals = np.zeros(1)
        for value in values:
            totals = np.concatenate([totals + value, totals - value])
        return totals

    middle = len(differences) // 2
    first, second = sums(differences[:middle]), np.sort(sums(differences[middle:]))
    above = len(second) - np.searchsorted(second, reach - first, side="left")
    below = np.searchsorted(second, -reach - first, side="right")
    count = int(above.sum() + below.sum()) if reach > 0 else 2 ** len(differences)
    return count / 2 ** len(differences)


def sign_flip_seeds(tests: int, level: float = 0.05) -> int:
    """The fewest pairs with which the sign-flip test can fall below the level in each of so many tests under Holm."""
    return next(n for n in range(1, 1000) if tests * least_sign_flip(n) < level)


def least_sign_flip(pairs: int) -> float:
    """The smallest p that the exact sign-flip test can have over so many pairs."""
    return 2.0 ** (1 - pairs)


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number, so that the chance of any false claim among them stays below the level.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979: the smallest is
    multiplied by n, the next by n - 1, and so on; none falls below the one before it, none exceeds 1.
    """
    corrected, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = least
    return corrected


def seeds_needed(
    difference: float, sd: float, level: float = 0.95, power: float = 0.8, most: int = 10_000
) -> int | None:
    """The number of paired seeds with which a t test detects `difference` with this power, if differences have this deviation.

    The smallest n with P(|t| > critical) >= power under the non-central t of n - 1 degrees and difference / sd * sqrt(n). The
    observed difference and deviation stand for the true ones, so with few seeds this is a rough figure. None beyond `most`
    or where there is no difference; 2 where the deviation is 0.
    """
    from scipy.special import nctdtr, stdtrit

    if difference == 0:
        return None
    if sd == 0:
        return 2

    def reached(n: int) -> bool:
        critical = float(stdtrit(n - 1, (1 + level) / 2))
        shift = abs(difference) / sd * math.sqrt(n)
        missed = float(nctdtr(n - 1, shift, critical))
        if math.isnan(missed):  # far out its series gives up, here and there
            missed = float(shift < critical)
        return 1 - missed >= power

    if not reached(most):
        return None
    low, high = 1, 2  # power grows with n: double until it is reached, then halve the way
    while not reached(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of two classifiers on one test set: samples that only a, and only b, has right (McNemar 1947).

    Under equal accuracy each such sample falls to either side with probability 1/2. Covers the draw of test samples, not the
    seeds of training.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))) if only_a + only_b else 1.0


def binomial_error(score: float, n: int) -> float:
    """Standard error of an accuracy (a fraction) that was measured on n samples."""
    return math.sqrt(score * (1 - score) / n)
