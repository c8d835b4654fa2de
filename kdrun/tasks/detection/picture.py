"""A PNG of what several models find on the same images, beside the true boxes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from kdrun.tasks import cache
from kdrun.tasks.detection.metrics import SHOWN

IMAGES = 4  # rows of the picture
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf")


def draw(path: Path, dataset: Any, columns: Mapping[str, Mapping[str, Tensor]]) -> None:
    """A row for each of a few test images, a column for the true boxes and one for each model (boxes above a confidence of 0.25).

    `columns`: title -> the predictions of an evaluation.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    split = dataset.test
    rows = chosen(split.labels)
    titles = ["true boxes", *columns]
    ratio = np.mean([split.shapes[row][0] / split.shapes[row][1] for row in rows])
    figure = Figure(figsize=(2.9 * len(titles), 2.9 * ratio * len(rows) + 0.8), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for i, row in enumerate(rows):
        image = shown(split.files[row])
        truth = split.boxes[row]
        for j, title in enumerate(titles):
            axis = axes[i][j]
            axis.imshow(
                image, extent=(0, image.width, image.height, 0)
            )  # corners of boxes are edges of pixels, not centres
            axis.set_axis_off()
            if i == 0:
                axis.set_title(title, fontsize=9)
            if j == 0:
                boxes = of_truth(truth.boxes, truth.classes, image.size)
            else:
                boxes = of_model(columns[title], row, image.width / split.shapes[row][1])
            for box in boxes:
                _outline(axis, box)
    names = "   ".join(f"{name}" for name in dataset.classes[: len(COLOURS)])
    for number, name in enumerate(dataset.classes[: len(COLOURS)]):
        figure.text(0.02 + 0.12 * number, 0.004, f"\u25a0 {name}", color=COLOURS[number], fontsize=9)
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0, 0.035, 1, 0.965))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None, "Description": f"boxes of {names}"})
    cache.write(path, buffer.getvalue())


def chosen(counts_N: Tensor) -> list[int]:
    """A few images with boxes, spread over the split: the same ones for every run on it."""
    rows = counts_N.nonzero().flatten().tolist()
    return [rows[i * len(rows) // min(IMAGES, len(rows))] for i in range(min(IMAGES, len(rows)))]


def shown(path: Path) -> Image.Image:
    """An image as it is shown, at most 640 px wide or high."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    image.thumbnail((640, 640))
    return image


def of_truth(boxes: np.ndarray, classes: np.ndarray, size: tuple[int, int]) -> list[tuple[float, ...]]:
    """(left, top, width, height, class) in px of the image that is drawn."""
    width, height = size
    return [
        ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height, float(number))
        for (x, y, w, h), number in zip(boxes.tolist(), classes[:, 0].tolist(), strict=True)
    ]


def of_model(predictions: Mapping[str, Tensor], row: int, scale: float) -> list[tuple[float, ...]]:
    """The same of a model's boxes above a confidence. `scale`: from px of the image to px of what is drawn."""
    start = int(predictions["boxes_of_image"][:row].sum())
    boxes = predictions["boxes"][start : start + int(predictions["boxes_of_image"][row])]
    boxes = boxes[boxes[:, 4] > SHOWN]
    corners = (boxes[:, :4] * scale).tolist()
    return [
        (x1, y1, x2 - x1, y2 - y1, number)
        for (x1, y1, x2, y2), number in zip(corners, boxes[:, 5].tolist(), strict=True)
    ]


def _outline(axis: Any, box: tuple[float, ...]) -> None:
    from matplotlib.patches import Rectangle

    left, top, width, height, number = box
    colour = COLOURS[int(number) % len(COLOURS)]
    for edge, line in (("white", 2.4), (colour, 1.2)):  # white around it: the colour shows on every ground
        axis.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=edge, linewidth=line))
