"""Instance relationship graph. Liu, Cao, Li, Yuan, Hu, Li, Duan: Knowledge Distillation via Instance Relationship Graph, CVPR 2019,
https://openaccess.thecvf.com/content_CVPR_2019/html/Liu_Knowledge_Distillation_via_Instance_Relationship_Graph_CVPR_2019_paper.html."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.adapters import same_side
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.bounded import faded, spread
from kdrun.methods.rkd import squared_distances
from kdrun.methods.taps import Output


def edges(x: Tensor) -> Tensor:
    """Squared Euclidean distances (B, B) of flattened activations, divided by the largest; a zero diagonal."""
    squared_BB = squared_distances(spread(x.flatten(1)))
    squared_BB = squared_BB - squared_BB.diagonal().diag()
    return squared_BB / squared_BB.max().clamp(min=1e-12)


def transformation(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """How far each image moves between two layers (B,): squared distance, divided by the largest of the batch.

    The larger map is average-pooled, and the layer with more channels averages neighbouring ones, so that both have the same shape.
    """
    first_BCHW, second_BCHW = same_side(first_BCHW, second_BCHW)
    channels = min(first_BCHW.shape[1], second_BCHW.shape[1])
    first_BD, second_BD = (_channels(x, channels).flatten(1) for x in (first_BCHW, second_BCHW))
    way_BD = first_BD - second_BD
    moved_B = faded(way_BD, way_BD.detach().norm(dim=1).max()).square().sum(1)
    return moved_B / moved_B.max().clamp(min=1e-12)


def _channels(x_BCHW: Tensor, channels: int) -> Tensor:
    """Fewer channels, each the mean of neighbouring ones."""
    if x_BCHW.shape[1] == channels:
        return x_BCHW
    batch, _, height, width = x_BCHW.shape
    x_BPC = x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
    return F.adaptive_avg_pool1d(x_BPC, channels).transpose(1, 2).reshape(batch, channels, height, width)


@METHODS.register
class IRG(Method):
    """Instance graphs: match predictions, distances between images, and how far each image moves from layer to layer.

    Loss: vertices = mean (s - t)^2 of logits; edges = mean over layers of mean over B*B of the squared difference of squared
    distances / their largest; transformations = the same for the distance that each image moves between two layers. As in KD-Zoo,
    which rewrote the Caffe layers of the authors.
    """

    family = "relations"
    paper = "Liu et al., 2019"

    def build(self, pair: Pair) -> None:
        """No hyper-parameters beyond the weights of the three terms."""
        shapes = [side.shapes for side in (pair.student, pair.teacher) if side]
        if len(pair.taps[0]) < 2 or any(len(shape) != 4 for side in shapes for shape in side[:2]):
            raise KdrunError(
                f"irg takes two taps of feature maps, then embeddings; method.irg.taps names {', '.join(pair.taps[0]) or 'none'}"
            )

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        pairs = zip(student.taps, teacher.taps, strict=True)
        return {
            "vertices": F.mse_loss(student.logits, teacher.logits),
            "edges": mean(F.mse_loss(edges(s), edges(t)) for s, t in pairs),
            "transformations": F.mse_loss(transformation(*student.taps[:2]), transformation(*teacher.taps[:2])),
        }
