"""A detector as kdrun trains it: the library's model, whose output is always the raw one, in training and in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import KdrunError
from kdrun.methods.boxes import distances
from kdrun.tasks.detection import library
from kdrun.tasks.detection.settings import STRIDE

library.ready()

from ultralytics.nn.tasks import DetectionModel  # noqa: E402
from ultralytics.utils.tal import dist2bbox, make_anchors  # noqa: E402

STRIDES = (8.0, 16.0, STRIDE)


class Detector(DetectionModel):
    """The library's model with its own names and weights. `taps`: neck1, neck2, neck3, the maps that the head takes.

    forward(x (B, 3, H, W) in [0, 1]) gives {"boxes": (B, 4 R, A), "scores": (B, K, A), "feats": the maps of the neck}: class logits of K
    classes, and logits over R bins of the distances left, top, right, bottom, in strides, at A positions of all maps.
    """

    def __init__(self, yaml: str, classes: int):
        super().__init__(yaml, nc=classes, verbose=False)
        head: Any = self.model[-1]  # type: ignore[index]
        self.taps = {f"neck{number}": f"model.{layer}" for number, layer in enumerate(head.f, start=1)}

    def forward(self, x: Tensor) -> dict[str, Any]:
        given = super().forward(x)
        output: dict[str, Any] = given[1] if isinstance(given, tuple) else given
        return output


def decoded(output: dict[str, Any]) -> Tensor:
    """What the library's non-maximum suppression takes: (B, 4 + K, A), centre x, centre y, width, height in px of the input, then the
    probabilities of the classes."""
    boxes, scores = output["boxes"], output["scores"]
    strides = torch.tensor(STRIDES[-len(output["feats"]) :], device=boxes.device)
    anchors, stride = make_anchors(output["feats"], strides, 0.5)
    return torch.cat((dist2bbox(distances(boxes), anchors.T[None], xywh=True, dim=1) * stride.T, scores.sigmoid()), 1)


def plain(model: nn.Module, weights: dict[str, Tensor], classes: list[str], settings: Any) -> nn.Module:
    """A detector with these weights in the library's own class, on the CPU: what a checkpoint holds that opens without kdrun."""
    if not isinstance(model, Detector):
        raise KdrunError(f"{type(model).__name__} is no detector of ultralytics")
    yaml: Any = dict(model.yaml)  # type: ignore[arg-type]
    copy: nn.Module = DetectionModel(yaml, nc=len(classes), verbose=False)
    copy.load_state_dict({name: value.detach().cpu() for name, value in weights.items()})
    copy.names, copy.args, copy.task = dict(enumerate(classes)), settings, "detect"  # type: ignore[assignment]
    return copy.requires_grad_(False).eval()
