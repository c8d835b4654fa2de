"""Probabilistic transfer. Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018,
https://arxiv.org/abs/1803.10837."""

from __future__ import annotations

from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import unit
from kdrun.methods.checks import one_tap
from kdrun.methods.taps import Output


def neighbours(x_BD: Tensor) -> Tensor:
    """The probabilities (B, B) that an image chooses another one, proportional to (1 + cosine) / 2; rows sum to 1."""
    x_BD = unit(x_BD)
    kernel_BB = (x_BD @ x_BD.T + 1) / 2
    return kernel_BB / kernel_BB.sum(1, keepdim=True)


def probabilistic_transfer(s_BD: Tensor, t_BD: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Mean over B*B of t log((t + e) / (s + e)) with both matrices of probabilities, diagonal included, as in all released code.

    The paper sums over pairs of different images. e is KD-Zoo's 1e-6; the authors, RepDistiller and mdistiller have 1e-7.
    """
    s_BB, t_BB = neighbours(s_BD), neighbours(t_BD)
    return (t_BB * ((t_BB + epsilon) / (s_BB + epsilon)).log()).mean()


@METHODS.register
class PKT(Method):
    """Probabilities of neighbours: match which images of a batch lie close to each other.

    Loss: mean over B*B of t log(t / s), where s and t are (1 + cosine) / 2 of embeddings, rows summing to 1.
    """

    family = "relations"
    paper = "Passalis & Tefas, 2018"

    def build(self, pair: Pair) -> None:
        """No hyper-parameters beyond the weight."""
        one_tap("pkt", pair)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"neighbours": probabilistic_transfer(student.taps[0].flatten(1), teacher.taps[0].flatten(1))}
