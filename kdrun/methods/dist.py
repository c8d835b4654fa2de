"""Relations of predictions. Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022,
https://arxiv.org/abs/2205.10536."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.bounded import exact, never_negative, varied
from kdrun.methods.checks import check_temperature, feature_maps
from kdrun.methods.kd import standardize
from kdrun.methods.taps import Output


def decorrelation(s_BK: Tensor, t_BK: Tensor) -> Tensor:
    """1 - Pearson's correlation of each row's K entries, averaged over the B rows; 1e-8 as the authors'."""
    s_BK, t_BK = s_BK - s_BK.mean(1, keepdim=True), t_BK - t_BK.mean(1, keepdim=True)
    correlation_B = (s_BK * t_BK).sum(1) / (s_BK.norm(dim=1) * t_BK.norm(dim=1) + 1e-8)
    return 1 - correlation_B.mean()


def relations(s_BK: Tensor, t_BK: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """T^2 times the decorrelation of tempered probabilities: over the classes of an image, over the images of a class.

    The factor T^2 is from the authors' code. Agrees with that code (two repositories), mmrazor and torchdistill. The gradient
    fades where the student's logits are nearly constant, over classes or over images (kdrun.methods.bounded).
    """
    given = s_BK.dtype
    s_BK, t_BK = exact(temperature, s_BK, t_BK)
    t_BK = (t_BK / temperature).softmax(1)
    over_classes, over_images = ((varied(s_BK, dim) / temperature).softmax(1) for dim in (1, 0))
    inter, intra = decorrelation(over_classes, t_BK), decorrelation(over_images.T, t_BK.T)
    inter, intra = (temperature**2 * never_negative(loss) for loss in (inter, intra))
    return inter.to(given), intra.to(given)


def dense_relations(s_BCHW: Tensor, t_BCHW: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The same of maps: each position of the whole batch is a sample, its channels are the classes. Agrees with the authors' code."""
    s_NC, t_NC = (x_BCHW.movedim(1, -1).flatten(0, 2) for x_BCHW in (s_BCHW, t_BCHW))
    return relations(s_NC, t_NC, temperature)


@METHODS.register
class DIST(Method):
    """Relations of predictions: make predictions that correlate with the teacher's probabilities, without being equal to them.

    Loss: inter = T^2 (1 - mean over images of the correlation over classes), intra = T^2 (1 - mean over classes of the
    correlation over the batch). With taps, feature maps take the place of the logits, as in the authors' code for dense prediction:
    each position of the batch is an image, its channels (by a softmax) are the classes; a convolution brings the student's map to
    the teacher's shape where they differ; mean over taps.
    """

    family = "logits"
    paper = "Huang et al., 2022"
    needs = ()

    def build(self, pair: Pair, *, temperature: float, standardize: bool) -> None:
        self.temperature, self.standardize = check_temperature("dist", temperature), standardize
        self.connectors = nn.ModuleList()
        if pair.taps[0]:
            feature_maps("dist", pair)
            shapes = zip(pair.student.shapes, pair.teacher.shapes, strict=True)  # type: ignore[union-attr]
            self.connectors.extend(connector(s, t, tail="") for s, t in shapes)
        elif not pair.data.are_classes:
            raise KdrunError(
                "method 'dist' compares classes, which the labels here are not; tap feature maps (method.dist.taps), or choose "
                "another method: logits compares outputs, mimic, rkd and others compare layers"
            )

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        if self.connectors:
            layers = zip(self.connectors, student.taps, teacher.taps, strict=True)
            pairs = [self._dense(connect(s), t) for connect, s, t in layers]
            return {"inter": mean(inter for inter, _ in pairs), "intra": mean(intra for _, intra in pairs)}
        s_BK, t_BK = student.logits, teacher.logits
        if self.standardize:
            s_BK, t_BK = standardize(s_BK), standardize(t_BK)
        inter, intra = relations(s_BK, t_BK, self.temperature)
        return {"inter": inter, "intra": intra}

    def _dense(self, s_BCHW: Tensor, t_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        if self.standardize:  # over the channels of a position
            s_BCHW, t_BCHW = standardize(s_BCHW), standardize(t_BCHW)
        return dense_relations(s_BCHW, t_BCHW, self.temperature)
