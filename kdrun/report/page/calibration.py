"""Reliability diagrams: the confidence of a network beside the share of samples that it classifies correctly."""

from __future__ import annotations

from itertools import pairwise

from markupsafe import Markup

from kdrun.report.display import percent
from kdrun.report.page.lines import Line
from kdrun.report.page.rendering import render
from kdrun.report.stats import mean_sd

FEW = 50  # a bin with fewer samples is faded


def reliability(lines: list[Line], samples: str) -> Markup:
    """A diagram per row, its seeds together, with the baseline as a thin line in each; empty where there are no runs."""
    known = [line for line in lines if line.calibrations]
    without = sum(line.cell.n - len(line.calibrations) for line in lines)
    if not known and not without:
        return Markup("")
    base = next((line for line in known if line.cell.baseline), None)
    thin = _diagram(base.calibrations, "ghost") if base else Markup("")
    diagrams = []
    for line in known:
        own = _shares(line.calibrations) + (thin if line is not base else Markup(""))
        diagrams.append((line, _text(line.calibrations), own + _diagram(line.calibrations, "line")))
    return render("calibration.html", diagrams=diagrams, few=FEW, without=without, samples=samples)


def error_text(calibrations: list[dict]) -> str:
    """The calibration error in percent: mean ± standard deviation over seeds; empty without any."""
    if not calibrations:
        return ""
    mean, sd = mean_sd([one["ece"] for one in calibrations])
    return percent(mean) if sd is None else f"{percent(mean)} ± {percent(sd)}"


def _text(calibrations: list[dict]) -> str:
    """The calibration error, and by how much the network is over- or underconfident."""
    total = sum(_counts(calibrations))
    confidence, accuracy = (sum(_sums(calibrations, key)) / total for key in ("confidence", "accuracy"))
    gap = 100 * (confidence - accuracy)
    return f"ECE {error_text(calibrations)}: {'over' if gap > 0 else 'under'}confident by {abs(gap):.2f} points"


def _sums(calibrations: list[dict], key: str) -> list[float]:
    """Per bin, the sum of a value over all samples of all seeds."""
    each = [[n * (mean or 0) for n, mean in zip(one["images"], one[key], strict=True)] for one in calibrations]
    return [sum(at) for at in zip(*each, strict=True)]


def _counts(calibrations: list[dict]) -> list[int]:
    """Per bin, the number of samples of all seeds."""
    return [sum(at) for at in zip(*(one["images"] for one in calibrations), strict=True)]


LINE = Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}" opacity="{:.2f}"/>')
DOT = Markup('<circle class="bin" cx="{:.1f}" cy="{:.1f}" r="2" opacity="{:.2f}"/>')
BAR = Markup('<rect class="share" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')


def _diagram(calibrations: list[dict], kind: str) -> Markup:
    """A line from bin to bin, and for kind "line" a dot per bin, faded where there are few samples. Places are percent."""
    counts = _counts(calibrations)
    sums = zip(counts, _sums(calibrations, "confidence"), _sums(calibrations, "accuracy"), strict=True)
    points = [(100 * sure / n, 100 - 100 * right / n, _opacity(n / len(calibrations))) for n, sure, right in sums if n]
    parts = [LINE.format(kind, x, y, to, up, min(own, next_)) for (x, y, own), (to, up, next_) in pairwise(points)]
    parts += [DOT.format(*point) for point in points] if kind == "line" else []
    return Markup("").join(parts)


def _opacity(count: float) -> float:
    """How opaque a bin with this number of samples per seed is."""
    return max(0.12, min(count / FEW, 1.0))


def _shares(calibrations: list[dict]) -> Markup:
    """Bars: the share of all samples in each bin."""
    counts = _counts(calibrations)
    wide = 100 / len(counts)
    shares = [100 * n / sum(counts) for n in counts]
    return Markup("").join(
        BAR.format(i * wide + 0.5, 100 - share, wide - 1, share) for i, share in enumerate(shares) if share
    )
