"""Masked generation. Yang, Li, Shao, Shi, Yuan, Yuan: Masked Generative Distillation, ECCV 2022, https://arxiv.org/abs/2205.01529."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.checks import check_choice, check_share, feature_maps
from kdrun.methods.taps import Output


def generator(channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with a ReLU between, from the masked map to the teacher's."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
    )


def keep_mask(x_BCHW: Tensor, share: float, mode: str, draw: torch.Generator) -> Tensor:
    """1 where a value is kept, 0 with probability `share`: per channel (B, C, 1, 1), or per position (B, 1, H, W)."""
    batch, channels, height, width = x_BCHW.shape
    shape = (batch, channels, 1, 1) if mode == "channel" else (batch, 1, height, width)
    return (torch.rand(shape, generator=draw, device=x_BCHW.device) >= share).to(x_BCHW.dtype)


def generation_distance(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """Squared distance of the generated map and the teacher's, summed over C*H*W, mean over B."""
    return (s_BCHW - t_BCHW).square().flatten(1).sum(1).mean()


@METHODS.register
class MGD(Method):
    """Masked generation: predict the teacher's map from the student's map, a part of which is hidden.

    Loss: sum over C*H*W of (G(mask * f(s)) - t)^2, mean over B and over taps (authors: sum over taps); f a convolution where shapes
    differ, G two 3x3 convolutions, both trained, one of each a tap. The mask hides channels (classification) or positions (dense
    prediction).
    """

    family = "features"
    paper = "Yang et al., 2022"
    needs = ()

    def build(self, pair: Pair, *, share: float, mask: str) -> None:
        known = {"channel": "classification", "spatial": "dense prediction"}
        self.mask, self.share = check_choice("mgd", "mask", mask, known), check_share("mgd.share", share)
        feature_maps("mgd", pair)
        self.align, self.generate = nn.ModuleList(), nn.ModuleList()
        for student, teacher in zip(pair.student.shapes, pair.teacher.shapes, strict=True):  # type: ignore[union-attr]
            self.align.append(connector(student, teacher, tail=""))
            self.generate.append(generator(teacher[1]))

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"generation": mean(self._distance(i, s, teacher.taps[i]) for i, s in enumerate(student.taps))}

    def _distance(self, i: int, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        s_BCHW = self.align[i](s_BCHW)
        masked_BCHW = s_BCHW * keep_mask(s_BCHW, self.share, self.mask, self.generator)
        return generation_distance(self.generate[i](masked_BCHW), t_BCHW)
