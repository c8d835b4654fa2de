"""YOLOv8, an anchor-free detector of ultralytics, in five sizes. https://docs.ultralytics.com/models/yolov8/"""

from __future__ import annotations

from torch import nn

from kdrun.config.registry import MODELS


def _detector(yaml: str, classes: int) -> nn.Module:
    from kdrun.tasks.detection.detector import Detector  # needs ultralytics

    return Detector(yaml, classes)


@MODELS.register
def yolov8n(classes: int) -> nn.Module:
    """YOLOv8 nano."""
    return _detector("yolov8n.yaml", classes)


@MODELS.register
def yolov8s(classes: int) -> nn.Module:
    """YOLOv8 small."""
    return _detector("yolov8s.yaml", classes)


@MODELS.register
def yolov8m(classes: int) -> nn.Module:
    """YOLOv8 medium."""
    return _detector("yolov8m.yaml", classes)


@MODELS.register
def yolov8l(classes: int) -> nn.Module:
    """YOLOv8 large."""
    return _detector("yolov8l.yaml", classes)


@MODELS.register
def yolov8x(classes: int) -> nn.Module:
    """YOLOv8 extra large."""
    return _detector("yolov8x.yaml", classes)
