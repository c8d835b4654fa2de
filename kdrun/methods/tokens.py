"""Means over real tokens, and the relations of tokens to each other. Padding never counts: more of it changes no loss and no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from kdrun.methods.bounded import never_negative


def token_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over the real tokens of the batch: a long sentence counts more than a short one."""
    return x_BT.masked_fill(~mask_BT, 0).sum() / mask_BT.sum()


def sentence_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over the real tokens of each sentence, then over the sentences: equations written for one sentence of length |x|."""
    return (x_BT.masked_fill(~mask_BT, 0).sum(1) / mask_BT.sum(1)).mean()


def split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """(B, T, D) as (B, H, T, D / H): head h holds the h-th part of D, as in BERT."""
    return x_BTD.unflatten(2, (heads, -1)).transpose(1, 2)


def relation(x_BHTD: Tensor) -> Tensor:
    """The scaled products of each token with each other, (B, H, T, T): x x^T / sqrt(D), D of one head. Before the softmax."""
    return x_BHTD @ x_BHTD.mT / x_BHTD.shape[-1] ** 0.5


def relation_divergence(s_BHTT: Tensor, t_BHTT: Tensor, mask_BT: Tensor) -> Tensor:
    """KL(softmax(t) || softmax(s)) over real keys; the mean over heads and real queries of a sentence, then over sentences.

    1 / (H |x|) sum over heads and queries, as in MiniLM and MiniLMv2. Scores are unmasked (B, H, T, T),
    queries in rows and keys in columns.
    """
    padded_B11T = ~mask_BT[:, None, None]
    least = torch.finfo(s_BHTT.dtype).min  # not -inf, which would give nan below
    log_s, log_t = (x.masked_fill(padded_B11T, least).log_softmax(-1) for x in (s_BHTT, t_BHTT))
    difference = (log_t - log_s).masked_fill(padded_B11T, 0)
    return sentence_mean(never_negative((log_t.exp() * difference).sum(-1)).mean(1), mask_BT)
