"""YOLOv5u, in five sizes: the backbone and neck of YOLOv5 with the anchor-free head of YOLOv8 (not the YOLOv5 with anchors).
https://docs.ultralytics.com/models/yolov5/"""

from __future__ import annotations

from torch import nn

from kdrun.config.registry import MODELS


def _detector(yaml: str, classes: int) -> nn.Module:
    from kdrun.tasks.detection.detector import Detector  # needs ultralytics

    return Detector(yaml, classes)


@MODELS.register
def yolov5nu(classes: int) -> nn.Module:
    """YOLOv5u nano, anchor-free."""
    return _detector("yolov5n.yaml", classes)


@MODELS.register
def yolov5su(classes: int) -> nn.Module:
    """YOLOv5u small, anchor-free."""
    return _detector("yolov5s.yaml", classes)


@MODELS.register
def yolov5mu(classes: int) -> nn.Module:
    """YOLOv5u medium, anchor-free."""
    return _detector("yolov5m.yaml", classes)


@MODELS.register
def yolov5lu(classes: int) -> nn.Module:
    """YOLOv5u large, anchor-free."""
    return _detector("yolov5l.yaml", classes)


@MODELS.register
def yolov5xu(classes: int) -> nn.Module:
    """YOLOv5u extra large, anchor-free."""
    return _detector("yolov5x.yaml", classes)
