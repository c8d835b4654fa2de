"""A trained detector that takes images of any size and gives boxes in their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kdrun.errors import KdrunError
from kdrun.tasks.detection import library
from kdrun.tasks.detection.detector import decoded
from kdrun.tasks.detection.metrics import MOST, NO_LIMIT, OVERLAP, SHOWN
from kdrun.tasks.detection.settings import STRIDE

library.ready()

from ultralytics.data.augment import LetterBox  # noqa: E402
from ultralytics.utils.nms import non_max_suppression  # noqa: E402
from ultralytics.utils.ops import scale_boxes  # noqa: E402
from ultralytics.utils.patches import imread  # noqa: E402


class Finder(nn.Module):
    """A student with its preprocessing: images to boxes.

    An image is a path, a PIL image, or an array (H, W, 3) of RGB bytes. For each image comes a tensor (n, 6): left, top, right and
    bottom in px of the image, confidence and class, the most confident first.
    """

    def __init__(self, model: nn.Module, imgsz: int, classes: Sequence[str]):
        super().__init__()
        self.model, self.imgsz, self.classes = model, imgsz, list(classes)
        self.letterbox: Any = LetterBox((imgsz, imgsz), auto=True, stride=STRIDE, scaleup=True)

    def forward(self, images: Any, confidence: float = SHOWN) -> list[Tensor]:
        """The boxes above a confidence, of one image or of a list of them."""
        return [self._boxes(image, confidence) for image in (images if isinstance(images, (list, tuple)) else [images])]

    @torch.no_grad()
    def _boxes(self, image: Any, confidence: float) -> Tensor:
        pixels = _rgb(image)
        place = next(self.model.parameters()).device
        x = (
            torch.from_numpy(np.ascontiguousarray(self.letterbox(image=pixels).transpose(2, 0, 1)))
            .to(place)[None]
            .float()
            / 255
        )
        boxes = non_max_suppression(
            decoded(self.model(x)), confidence, OVERLAP, nc=len(self.classes), max_det=MOST, max_time_img=NO_LIMIT
        )[0][:, :6]
        boxes[:, :4] = scale_boxes((x.shape[2], x.shape[3]), boxes[:, :4], pixels.shape)
        return boxes


def _rgb(image: Any) -> np.ndarray:
    """An image as (H, W, 3) RGB bytes."""
    if isinstance(image, (str, Path)):
        pixels = imread(str(image))
        if pixels is None:
            raise KdrunError(f"{image} cannot be read as an image")
        return np.ascontiguousarray(pixels[..., ::-1])
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"an image is a path, a PIL image, or RGB bytes (H, W, 3); this is {array.dtype} {array.shape}"
        )
    return np.ascontiguousarray(array)
