"""Relations of predictions. Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022,
https://arxiv.org/abs/2205.10536."""

from __future__ import annotations

from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import exact, never_negative, varied
from kdrun.methods.checks import check_temperature
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


@METHODS.register
class DIST(Method):
    """Relations of predictions: make predictions that correlate with the teacher's probabilities, without being equal to them.

    Loss: inter = T^2 (1 - mean over images of the correlation over classes), intra = T^2 (1 - mean over classes of the
    correlation over the batch).
    """

    family = "logits"
    paper = "Huang et al., 2022"
    needs_classes = True

    def build(self, pair: Pair, *, temperature: float, standardize: bool) -> None:
        self.temperature, self.standardize = check_temperature("dist", temperature), standardize

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        s_BK, t_BK = student.logits, teacher.logits
        if self.standardize:
            s_BK, t_BK = standardize(s_BK), standardize(t_BK)
        inter, intra = relations(s_BK, t_BK, self.temperature)
        return {"inter": inter, "intra": intra}
