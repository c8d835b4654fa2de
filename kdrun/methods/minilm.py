"""Attention of the last layer. Wang et al.: MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
Transformers, NeurIPS 2020, https://arxiv.org/abs/2002.10957."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.layers import Taps, count_layers, no_taps, one_layer
from kdrun.methods.taps import Output
from kdrun.methods.tinybert import check_heads
from kdrun.methods.tokens import relation, relation_divergence, split_heads


def attention_transfer(s_BHTT: Tensor, t_BHTT: Tensor, mask_BT: Tensor) -> Tensor:
    """KL of attention distributions from scores before the softmax (L_AT): mean over heads, real queries and sentences."""
    return relation_divergence(s_BHTT, t_BHTT, mask_BT)


def value_relations(s_BTD: Tensor, t_BTE: Tensor, heads: int, mask_BT: Tensor) -> Tensor:
    """KL of softmax(V V^T / sqrt(d)), d the width of a head of each model (L_VR): mean over heads, real queries, sentences."""
    s_BHTT, t_BHTT = relation(split_heads(s_BTD, heads)), relation(split_heads(t_BTE, heads))
    return relation_divergence(s_BHTT, t_BHTT, mask_BT)


@METHODS.register(name="minilm")
class MiniLM(Method):
    """Deep self-attention: the attention distributions and the relations of values in the last layer.

    Loss: attention = 1 / (H |x|) sum over heads and queries of KL(A_t || A_s), A = softmax(q k^T / sqrt(d)) over real keys; values = the
    same of softmax(V V^T / sqrt(d)); |x| the real tokens of a sentence, then mean over sentences. Any widths: both models need the same
    number of heads alone. `teacher_layer`: last, as in the paper, or a number. The paper distils a pretrained model on general text,
    without labels; here the two terms stand beside the labels of a task.
    """

    family = "transformers"
    paper = "Wang et al., 2020"
    sequences = True

    @classmethod
    def choose_taps(
        cls, taps: Taps, settings: Mapping[str, Any], student: nn.Module, teacher: nn.Module | None
    ) -> Taps:
        no_taps("minilm", taps, "teacher_layer")
        last, count = count_layers("minilm", student, "student"), count_layers("minilm", teacher, "teacher")
        layer = one_layer("minilm.teacher_layer", settings["teacher_layer"], count)
        return [f"attention{last}", f"value{last}"], [f"attention{layer}", f"value{layer}"]

    def build(self, pair: Pair, *, teacher_layer: int | str) -> None:
        self.heads = pair.student.shapes[0][1]
        check_heads("minilm", self.heads, pair.teacher.shapes[0][1])  # type: ignore[union-attr]

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        (s_BHTT, s_BTD), (t_BHTT, t_BTE), mask_BT = student.taps, teacher.taps, batch["mask"]
        return {
            "attention": attention_transfer(s_BHTT, t_BHTT, mask_BT),
            "values": value_relations(s_BTD, t_BTE, self.heads, mask_BT),
        }
