"""Two stages. Jiao et al.: TinyBERT: Distilling BERT for Natural Language Understanding, Findings of EMNLP 2020,
https://arxiv.org/abs/1909.10351."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Stage, Terms
from kdrun.methods.checks import check_temperature
from kdrun.methods.kd import soft_targets
from kdrun.methods.layers import Taps, count_layers, layer_map, no_taps
from kdrun.methods.taps import Output
from kdrun.methods.tokens import sentence_mean


def hidden_distance(s_BTD: Tensor, t_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean squared error over D and the real tokens of a sentence, then over the sentences (L_hidn, and L_embd).

    The released code takes the mean over all positions, padding included.
    """
    return sentence_mean((s_BTD - t_BTD).square().mean(2), mask_BT)


def attention_distance(s_BHTT: Tensor, t_BHTT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean squared error of attention scores before the softmax, over heads and pairs of real tokens of a sentence, then over sentences.

    L_attn. The released code sets scores of padded keys to 0 and takes the mean over all pairs: padding makes its loss smaller.
    """
    pair_BTT = mask_BT[:, :, None] & mask_BT[:, None, :]
    squares_BTT = (s_BHTT - t_BHTT).square().mean(1)
    return sentence_mean(squares_BTT.flatten(1), pair_BTT.flatten(1))


@METHODS.register(name="tinybert")
class TinyBert(Method):
    """Two stages: first embeddings, attention scores and hidden states of all layers, then soft targets.

    Loss: `layers` trains on embeddings = MSE(E W, E_t), attention = sum over layers of MSE(A, A_t), A = q k^T / sqrt(d) before the
    softmax, hidden = sum over layers of MSE(H W, H_t): means over real tokens (pairs of real tokens), elements and heads of a sentence,
    then over sentences. `distil` trains on soft = T^2 KL(softmax(t / T) || softmax(s / T)), whose gradient at T = 1 is that of the
    paper's soft cross-entropy; the labels have weight 0. One linear map W for embeddings and all layers, as in the released code (the
    paper has one for embeddings and one for hidden states); none where widths are equal. `layers`: uniform is g(m) = m N / M.
    Student and teacher need the same number of attention heads. Without the paper's distillation on general text and its augmented data.
    """

    family = "transformers"
    paper = "Jiao et al., 2020"
    needs_classes = True
    sequences = True

    @classmethod
    def choose_taps(
        cls, taps: Taps, settings: Mapping[str, Any], student: nn.Module, teacher: nn.Module | None
    ) -> Taps:
        no_taps("tinybert", taps, "layers")
        count = count_layers("tinybert", student, "student")
        mapped = layer_map("tinybert", settings["layers"], count, count_layers("tinybert", teacher, "teacher"))
        return _taps(list(range(1, count + 1))), _taps(mapped)

    def build(self, pair: Pair, *, layers: str | list[int], temperature: float) -> None:
        self.temperature, self.run = check_temperature("tinybert", temperature), pair.run
        s_shapes, t_shapes = pair.student.shapes, pair.teacher.shapes  # type: ignore[union-attr]
        check_heads("tinybert", s_shapes[-1][1], t_shapes[-1][1])
        self.fit = connector(s_shapes[0], t_shapes[0])

    def stages(self, pair: Pair, distil: Stage) -> list[Stage]:
        return [Stage("layers", self.layers, [pair.student.module, self.fit]), distil]

    def layers(self, batch: Batch) -> tuple[Output, Terms]:
        student, teacher = self.run(batch)
        mask_BT, count = batch["mask"], len(student.taps) // 2
        pairs = list(zip(student.taps, teacher.taps, strict=True))
        hidden = [hidden_distance(self.fit(s), t, mask_BT) for s, t in pairs[: count + 1]]
        attention = [attention_distance(s, t, mask_BT) for s, t in pairs[count + 1 :]]
        return student, {
            "embeddings": hidden[0],
            "attention": sum(attention[1:], attention[0]),
            "hidden": sum(hidden[2:], hidden[1]),
        }

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"soft": soft_targets(student.logits, teacher.logits, self.temperature)}


def _taps(layers: list[int]) -> list[str]:
    return ["embeddings", *(f"layer{layer}" for layer in layers), *(f"attention{layer}" for layer in layers)]


def check_heads(name: str, student: int, teacher: int) -> None:
    """KdrunError unless both models have the same number of attention heads."""
    if student != teacher:
        raise KdrunError(
            f"{name} compares attention head by head, and the student has {student} heads, the teacher {teacher}; give the student"
            f" {teacher}, or choose method=minilmv2, which splits both into the same number of relation heads"
        )
