"""Deep mutual learning. Zhang, Xiang, Hospedales, Lu, CVPR 2018, https://arxiv.org/abs/1706.00384."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.kd import soft_targets
from kdrun.methods.taps import Output


def mutual(logits: list[Tensor]) -> list[Tensor]:
    """For each of n networks the mean over its peers of KL(peer || itself), peers detached (equations 4 and 8).

    logits: n tensors (B, K). Temperature 1; summed over classes, averaged over the batch. Agrees with KD-Zoo for n = 2.
    """
    losses = []
    for i, mine in enumerate(logits):
        losses.append(mean(soft_targets(mine, other.detach(), 1.0) for j, other in enumerate(logits) if j != i))
    return losses


@METHODS.register
class DML(Method):
    """Mutual learning: several networks are trained together from scratch, each also on the predictions of the others.

    Loss: mutual = sum over networks of the mean over their peers of KL(peer || network), T = 1; peers = the peers' supervised
    losses. The peers have the teacher's architecture (the student's if teacher=none) and their own random streams.
    All losses come from one forward pass of each network (as in KD-Zoo; the paper updates the networks in turn). The networks
    share no weights, so one sum trains all of them.
    """

    family = "online"
    paper = "Zhang et al., 2018"
    needs_classes = True
    teacher = "fresh"

    def build(self, pair: Pair, *, networks: int) -> None:
        if networks < 2:
            raise KdrunError(
                f"method.dml.networks is {networks}; mutual learning needs at least 2, including the student"
            )
        self.supervised = pair.supervised
        self.peers = nn.ModuleList(pair.fresh(i) for i in range(1, networks))

    def evaluates(self) -> dict[str, nn.Module]:
        return {f"peer{i}": peer.module for i, peer in enumerate(self.peers, start=1)}  # type: ignore[misc]

    def loss(self, student: Output, teacher: Any, batch: Batch) -> Terms:
        logits = [student.logits, *(peer(batch["input"]).logits for peer in self.peers)]
        divergences = mutual(logits)
        supervised = [self.supervised(peer_BK, batch) for peer_BK in logits[1:]]
        return {
            "mutual": sum(divergences[1:], divergences[0]),
            "peers": sum(supervised[1:], supervised[0]),
        }
