"""Three losses at once. Sanh, Debut, Chaumond, Wolf: DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter, 2019,
https://arxiv.org/abs/1910.01108."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import unit
from kdrun.methods.checks import check_share, check_temperature
from kdrun.methods.counters import uniform
from kdrun.methods.kd import soft_targets
from kdrun.methods.layers import Taps, count_layers, no_taps
from kdrun.methods.taps import Output
from kdrun.methods.tokens import token_mean

# Shares of the chosen tokens that become the mask token, and another token; the rest stay (BERT).
MASKED, RANDOM = 0.8, 0.1


def cosine_distance(s_BTD: Tensor, t_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """1 - cos of the states of student and teacher, mean over the real tokens of the batch."""
    return token_mean(1 - (unit(s_BTD, dim=2) * unit(t_BTD, dim=2)).sum(2), mask_BT)


def masked_language_model(logits_BKV: Tensor, token_BK: Tensor, chosen_BK: Tensor) -> Tensor:
    """Cross-entropy of the hidden tokens over the vocabulary V, mean over the chosen ones; 0 where none is chosen."""
    losses_BK = F.cross_entropy(logits_BKV.flatten(0, 1), token_BK.flatten(), reduction="none").view_as(token_BK)
    return losses_BK.masked_fill(~chosen_BK, 0).sum() / chosen_BK.sum().clamp(min=1)


class Masked(NamedTuple):
    """Sentences with hidden tokens."""

    input_BT: Tensor  # what the student sees
    place_BK: Tensor  # positions, K the most that a sentence of T tokens may have
    token_BK: Tensor  # what stood there
    chosen_BK: Tensor  # false where a sentence has fewer than K


def hide(
    token_BT: Tensor, may_BT: Tensor, index_B: Tensor, key: Tensor, share: float, mask_id: int, ordinary_V: Tensor
) -> Masked:
    """Choose `share` of the tokens that may be chosen of each sentence (one at least), and hide them.

    Of the chosen, 80 % become `mask_id`, 10 % a random token of ordinary_V, 10 % stay. Draws are functions of the key, the row index_B
    and the position, so padding changes none. K comes from the shape alone: nothing waits for the device.
    """
    position_T = torch.arange(token_BT.shape[1], device=token_BT.device)
    draw_BT3 = uniform(key, index_B[:, None, None], position_T[:, None], torch.arange(3, device=token_BT.device))
    count_B = may_BT.sum(1)
    wanted_B = (share * count_B).round().long().clamp(min=1).minimum(count_B)
    most = min(max(1, math.ceil(share * token_BT.shape[1])), token_BT.shape[1])
    place_BK = draw_BT3[..., 0].masked_fill(~may_BT, 2.0).topk(most, dim=1, largest=False).indices
    chosen_BK = torch.arange(most, device=token_BT.device) < wanted_B[:, None]
    token_BK, action_BK, which_BK = (x.gather(1, place_BK) for x in (token_BT, draw_BT3[..., 1], draw_BT3[..., 2]))
    random_BK = ordinary_V[(which_BK * len(ordinary_V)).long()]
    seen_BK = torch.where(action_BK < MASKED + RANDOM, random_BK, token_BK).masked_fill(action_BK < MASKED, mask_id)
    input_BT = token_BT.scatter(1, place_BK, torch.where(chosen_BK, seen_BK, token_BK))
    return Masked(input_BT, place_BK, token_BK, chosen_BK)


class Head(nn.Module):
    """States (..., D) to logits over the vocabulary (..., V): linear, GELU, layer norm, then the student's own input embeddings (V, E)."""

    def __init__(self, width: int, embeddings: nn.Embedding):
        super().__init__()
        vocabulary, size = embeddings.weight.shape
        self.transform = nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.LayerNorm(size))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self._tied = [embeddings]  # in a list, so that the student's weights stand in the state dict once

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.transform(x), self._tied[0].weight, self.bias)


@METHODS.register(name="distilbert")
class DistilBert(Method):
    """Three losses: soft targets, the direction of the last hidden states, and masked language modelling.

    Loss: soft = T^2 KL(softmax(t / T) || softmax(s / T)), mean over B; cosine = 1 - cos(s, t) of the states of the last layer, mean over
    the real tokens; masked = cross-entropy of the hidden tokens, mean over them. 15 % of the tokens of each sentence are chosen, never
    special ones; of these 80 % become the mask token, 10 % another token, 10 % stay. A head of the method's own, tied to the student's
    input embeddings, predicts them. The paper distils a pretrained language model on general text: its soft targets are over the
    vocabulary at the masked words, and both models see masked text. Here the teacher classifies, so soft targets are over the classes,
    and only the student's second pass, for `masked`, sees masked text. Unlike widths get a linear layer before the cosine.
    """

    family = "transformers"
    paper = "Sanh et al., 2019"
    needs_classes = True
    needs = ("label", "index")
    sequences = True
    special_V: Tensor
    ordinary_V: Tensor

    @classmethod
    def choose_taps(
        cls, taps: Taps, settings: Mapping[str, Any], student: nn.Module, teacher: nn.Module | None
    ) -> Taps:
        no_taps("distilbert", taps)
        counts = count_layers("distilbert", student, "student"), count_layers("distilbert", teacher, "teacher")
        return [f"layer{counts[0]}"], [f"layer{counts[1]}"]

    def build(self, pair: Pair, *, temperature: float, share: float) -> None:
        self.temperature, self.share = (
            check_temperature("distilbert", temperature),
            check_share("distilbert.share", share),
        )
        facts, embeddings = pair.data.preprocessing, _embeddings(pair.student.module)
        if facts.get("mask_id") is None:
            raise KdrunError(
                "distilbert hides words behind the tokenizer's mask token, and this tokenizer has none; choose a model with one, such as"
                " BERT, or another method"
            )
        student, teacher = pair.student.shapes[0], pair.teacher.shapes[0]  # type: ignore[union-attr]
        self.connect, self.head = connector(student, teacher), Head(student[2], embeddings)
        self.mask_id = int(facts["mask_id"])
        special_V = torch.zeros(embeddings.num_embeddings, dtype=torch.bool)
        special_V[[*facts["special_ids"], self.mask_id]] = True
        self.register_buffer("special_V", special_V, persistent=False)
        words_V = torch.arange(int(facts["vocabulary"]))
        self.register_buffer("ordinary_V", words_V[~special_V[: len(words_V)]], persistent=False)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {
            "soft": soft_targets(student.logits, teacher.logits, self.temperature),
            "cosine": cosine_distance(self.connect(student.taps[0]), teacher.taps[0], batch["mask"]),
            "masked": self._masked(student, batch),
        }

    def _masked(self, student: Output, batch: Batch) -> Tensor:
        token_BT = batch["input"]["input_ids"]
        key = torch.randint(2**62, (), generator=self.generator, device=token_BT.device)
        may_BT = batch["mask"] & ~self.special_V[token_BT]
        hidden = hide(token_BT, may_BT, batch["index"], key, self.share, self.mask_id, self.ordinary_V)
        state_BTD = student.again({**batch["input"], "input_ids": hidden.input_BT}).taps[0]
        state_BKD = state_BTD.gather(1, hidden.place_BK[..., None].expand(-1, -1, state_BTD.shape[2]))
        return masked_language_model(self.head(state_BKD), hidden.token_BK, hidden.chosen_BK)


def _embeddings(model: nn.Module) -> nn.Embedding:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if not isinstance(embeddings, nn.Embedding):
        raise KdrunError(
            f"distilbert predicts words with the student's input embeddings, and {type(model).__name__} has none"
        )
    return embeddings
