"""Self-attention relations. Wang, Bao, Huang, Dong, Wei: MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
Pretrained Transformers, Findings of ACL 2021, https://arxiv.org/abs/2012.15828."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.checks import check_within
from kdrun.methods.layers import Taps, count_layers, no_taps, one_layer
from kdrun.methods.taps import Output
from kdrun.methods.tokens import relation, relation_divergence, split_heads

KINDS = {"query": "queries", "key": "keys", "value": "values"}  # tap -> term


def self_relations(s_BTD: Tensor, t_BTE: Tensor, heads: int, mask_BT: Tensor) -> Tensor:
    """KL of softmax(A A^T / sqrt(d)) of two models, A queries, keys or values split into `heads` relation heads of width d.

    Mean over relation heads, real queries and sentences. The widths (B, T, D) and (B, T, E) may differ.
    """
    s_BHTT, t_BHTT = relation(split_heads(s_BTD, heads)), relation(split_heads(t_BTE, heads))
    return relation_divergence(s_BHTT, t_BHTT, mask_BT)


@METHODS.register(name="minilmv2")
class MiniLMv2(Method):
    """Relations of queries, of keys and of values, split into relation heads of their own.

    Loss: for A in queries, keys, values: 1 / (H |x|) sum over H relation heads and the |x| real tokens of a sentence of
    KL(R_t || R_s), R = softmax(A A^T / sqrt(d)) over real tokens, d = width / H; then mean over sentences. The student's last layer
    learns from `teacher_layer`: last, or a number (the paper takes one in the upper middle of large teachers: 21 of 24 for BERT-large,
    19 of 24 for RoBERTa-large). Any widths and numbers of attention heads; `relation_heads` must divide both widths. The paper distils
    a pretrained model on general text, without labels; here the three terms stand beside the labels of a task.
    """

    family = "transformers"
    paper = "Wang et al., 2021"
    sequences = True

    @classmethod
    def choose_taps(
        cls, taps: Taps, settings: Mapping[str, Any], student: nn.Module, teacher: nn.Module | None
    ) -> Taps:
        no_taps("minilmv2", taps, "teacher_layer")
        last, count = count_layers("minilmv2", student, "student"), count_layers("minilmv2", teacher, "teacher")
        layer = one_layer("minilmv2.teacher_layer", settings["teacher_layer"], count)
        return [f"{kind}{last}" for kind in KINDS], [f"{kind}{layer}" for kind in KINDS]

    def build(self, pair: Pair, *, relation_heads: int, teacher_layer: int | str) -> None:
        self.heads = int(
            check_within("minilmv2.relation_heads", relation_heads, 1, why="how many parts a width is split into")
        )
        for side, shapes in (("student", pair.student.shapes), ("teacher", pair.teacher.shapes)):  # type: ignore[union-attr]
            width = shapes[0][2]
            if width % self.heads:
                divisors = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
                raise KdrunError(
                    f"method.minilmv2.relation_heads is {self.heads}; it must divide the width {width} of the {side}."
                    f" Choices: {divisors}"
                )

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        kinds = zip(KINDS.values(), student.taps, teacher.taps, strict=True)
        return {term: self_relations(s, t, self.heads, batch["mask"]) for term, s, t in kinds}
