"""Losses of transformers against their equations, written out in float64 over sentences cut to their real length; layer maps; draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdrun.errors import KdrunError
from kdrun.methods.counters import normal, uniform
from kdrun.methods.distilbert import Head, cosine_distance, hide, masked_language_model
from kdrun.methods.layers import layer_map, one_layer
from kdrun.methods.minilm import attention_transfer, value_relations
from kdrun.methods.minilmv2 import self_relations
from kdrun.methods.noise_labels import noise_logits
from kdrun.methods.pkd_bert import patience
from kdrun.methods.tinybert import attention_distance, hidden_distance
from kdrun.methods.tokens import split_heads

LENGTHS, STEPS, HEADS = (5, 2, 7, 1), 7, 3  # of four sentences, padded to the longest; a sentence of one token, too
MASK = torch.arange(STEPS) < torch.tensor(LENGTHS)[:, None]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_(True)


def check(loss: Tensor, expected: Tensor, x: Tensor, *, zero: Tensor | None = None) -> None:
    """Both values agree, and so do their gradients with respect to x; the gradient is 0 where `zero` is true."""
    mine, theirs = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)
    assert mine.abs().max() > 1e-4
    if zero is not None:
        assert not mine[zero].any()


# The equations -------------------------------------------------------------------------------------------------------------


def softmax(scores: list[Tensor]) -> list[Tensor]:
    total = sum(score.exp() for score in scores)
    return [score.exp() / total for score in scores]


def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """KL(p || q)."""
    return sum((a * (a.log() - b.log()) for a, b in zip(p, q, strict=True)), torch.zeros((), dtype=torch.float64))


def relations_of_sentence(x_TD: Tensor, heads: int) -> list[list[list[Tensor]]]:
    """[head][query][key]: softmax over keys of x_q . x_k / sqrt(d), with d the width of a head."""
    size, found = x_TD.shape[1] // heads, []
    for head in range(heads):
        part = x_TD[:, head * size : (head + 1) * size]
        found.append([softmax([(q * k).sum() / math.sqrt(size) for k in part]) for q in part])
    return found


def mean_of_relations(pairs: list[tuple[list, list]]) -> Tensor:
    """Mean over sentences of 1 / (H |x|) sum over heads and queries of KL(teacher || student)."""
    sentences = []
    for student, teacher in pairs:
        heads, length = len(student), len(student[0])
        total = sum(kl(teacher[h][q], student[h][q]) for h in range(heads) for q in range(length))
        sentences.append(total / (heads * length))
    return sum(sentences) / len(sentences)


@pytest.mark.parametrize(
    "loss",
    [lambda s, t, h: value_relations(s, t, h, MASK), lambda s, t, h: self_relations(s, t, h, MASK)],
    ids=["minilm", "minilmv2"],
)
def test_relations_are_those_of_the_papers(loss: Callable[[Tensor, Tensor, int], Tensor]):
    """L_VR of MiniLM, L_i of MiniLMv2; models of widths 6 and 12."""
    s_BTD, t_BTE = random(4, STEPS, 6, seed=0), random(4, STEPS, 12, seed=1)
    cut = [(s[:n], t[:n]) for s, t, n in zip(s_BTD, t_BTE, LENGTHS, strict=True)]
    expected = mean_of_relations([(relations_of_sentence(s, HEADS), relations_of_sentence(t, HEADS)) for s, t in cut])
    check(loss(s_BTD, t_BTE, HEADS), expected, s_BTD, zero=~MASK)


def test_attention_transfer_is_that_of_minilm():
    """L_AT: the mean over heads and queries of KL(A_t || A_s), A the softmax of the scores over the sentence's keys."""
    s, t = random(4, HEADS, STEPS, STEPS, seed=0), random(4, HEADS, STEPS, STEPS, seed=1)
    pairs = []
    for b, n in enumerate(LENGTHS):
        pairs.append(tuple([[softmax(list(x[b, h, q, :n])) for q in range(n)] for h in range(HEADS)] for x in (s, t)))
    real = MASK[:, None, :, None] & MASK[:, None, None, :]
    check(attention_transfer(s, t, MASK), mean_of_relations(pairs), s, zero=~real.expand_as(s))


def test_attention_distance_is_that_of_tinybert():
    """L_attn: the mean over heads of the mean squared error of two matrices (l, l)."""
    s, t = random(4, HEADS, STEPS, STEPS, seed=0), random(4, HEADS, STEPS, STEPS, seed=1)
    sentences = []
    for b, n in enumerate(LENGTHS):
        total = sum((s[b, h, q, k] - t[b, h, q, k]) ** 2 for h in range(HEADS) for q in range(n) for k in range(n))
        sentences.append(total / (HEADS * n * n))
    real = MASK[:, None, :, None] & MASK[:, None, None, :]
    check(attention_distance(s, t, MASK), sum(sentences) / 4, s, zero=~real.expand_as(s))


def test_hidden_distance_is_that_of_tinybert():
    """L_embd and L_hidn: the mean squared error of two matrices (l, d)."""
    s, t = random(4, STEPS, 6, seed=0), random(4, STEPS, 6, seed=1)
    sentences = [sum(((s[b, i] - t[b, i]) ** 2).sum() for i in range(n)) / (n * 6) for b, n in enumerate(LENGTHS)]
    check(hidden_distance(s, t, MASK), sum(sentences) / 4, s, zero=~MASK)


def test_cosine_distance_is_that_of_distilbert():
    """1 - cos of the two states, over all real tokens of the batch."""
    s, t = random(4, STEPS, 6, seed=0), random(4, STEPS, 6, seed=1)
    tokens = [(s[b, i], t[b, i]) for b, n in enumerate(LENGTHS) for i in range(n)]
    expected = sum(1 - (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt() for x, y in tokens) / len(tokens)
    check(cosine_distance(s, t, MASK), expected, s, zero=~MASK)


def test_patience_is_that_of_the_paper():
    """L_PT, as a mean over the batch and the states' elements."""
    s, t = random(4, 6, seed=0), random(4, 6, seed=1)
    total = sum((x / (x**2).sum().sqrt() - y / (y**2).sum().sqrt()).square().sum() for x, y in zip(s, t, strict=True))
    check(patience(s, t), total / (4 * 6), s)


def test_masked_language_model_is_the_cross_entropy_of_chosen_words():
    logits, token = random(2, 3, 5, seed=0), torch.tensor([[1, 4, 0], [2, 2, 3]])
    chosen = torch.tensor([[True, True, False], [True, False, False]])
    words = [(logits[0, 0], 1), (logits[0, 1], 4), (logits[1, 0], 2)]
    expected = sum(row.exp().sum().log() - row[word] for row, word in words) / 3
    check(masked_language_model(logits, token, chosen), expected, logits, zero=~chosen)
    nothing = masked_language_model(logits, token, torch.zeros_like(chosen))
    assert nothing.item() == 0


def test_head_predicts_with_the_embeddings_of_the_student():
    """linear, GELU, layer norm, product with each word's embedding, bias; the embeddings learn, and stand in no state dict of it."""
    words = torch.nn.Embedding(9, 4).double()
    head = Head(6, words).double()
    head.bias.data.normal_()
    linear, norm, x = head.transform[0], head.transform[2], random(6, seed=0)
    y = [sum(linear.weight[i] * x) + linear.bias[i] for i in range(4)]
    z = torch.stack([v * (1 + torch.erf(v / math.sqrt(2))) / 2 for v in y])
    z = (z - z.mean()) / ((z - z.mean()).square().mean() + norm.eps).sqrt()
    expected = torch.stack([(z * words.weight[v]).sum() + head.bias[v] for v in range(9)])
    torch.testing.assert_close(head(x), expected)
    head(x).sum().backward()
    assert words.weight.grad.any()
    assert not any("_tied" in key or value.shape == (9, 4) for key, value in head.state_dict().items())


def test_heads_are_parts_of_the_width_in_order():
    x = torch.arange(2 * 3 * 4).view(2, 3, 4)
    assert split_heads(x, 2)[1, 1, 2].tolist() == x[1, 2, 2:].tolist()
    assert split_heads(x, 2).shape == (2, 2, 3, 2)


def test_scores_of_padding_may_be_anything():
    """Large scores and states of padding give finite losses and leave the others as they are."""
    s, t = random(4, HEADS, STEPS, STEPS, seed=0), random(4, HEADS, STEPS, STEPS, seed=1)
    real = (MASK[:, None, :, None] & MASK[:, None, None, :]).expand_as(s)
    far = s.detach().masked_fill(~real, 1e4).requires_grad_(True)
    for loss in (attention_transfer, attention_distance):
        check(loss(far, t, MASK), loss(far.where(real, s), t, MASK), far, zero=~real)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: attention_transfer(x[0], x[0], MASK), lambda x: attention_distance(x[0], x[0], MASK),
        lambda x: hidden_distance(x[1], x[1], MASK), lambda x: cosine_distance(x[1], x[1], MASK), lambda x: patience(x[1][0], x[1][0]),
        lambda x: value_relations(x[1], x[1], HEADS, MASK), lambda x: self_relations(x[1], x[1], 2, MASK),
    ],
    ids=["attention_transfer", "attention_distance", "hidden", "cosine", "patience", "values", "relations"],
)  # fmt: skip
def test_equal_models_have_nothing_to_learn(loss: Callable):
    x = random(4, HEADS, STEPS, STEPS, seed=0).float(), random(4, STEPS, 6, seed=1).float()
    assert loss(x).item() == pytest.approx(0, abs=1e-6)


# Layer maps --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "expected"),
    [
        ("uniform", 4, 12, [3, 6, 9, 12]), ("uniform", 6, 12, [2, 4, 6, 8, 10, 12]), ("uniform", 3, 4, [1, 3, 4]),
        ("uniform", 2, 5, [3, 5]),
        ("uniform", 3, 3, [1, 2, 3]), ("uniform", 1, 12, [12]), ("skip", 4, 12, [3, 6, 9, 12]), ("skip", 5, 12, [2, 4, 6, 8, 10]),
        ("last", 3, 12, [10, 11, 12]), ([2, 4, 6], 3, 6, [2, 4, 6]), ([6, 6, 1], 3, 6, [6, 6, 1]), ((1, 2), 2, 2, [1, 2]),
    ],
)  # fmt: skip
def test_layer_maps(layers, student, teacher, expected):
    assert layer_map("tinybert", layers, student, teacher) == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("skip", [2, 4, 6, 8, 10]), ("last", [7, 8, 9, 10, 11]), ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])],
)
def test_maps_of_patience_are_those_of_the_paper(layers, expected):
    """Section 3.2 for 12 and 6 layers: PKD-Skip and PKD-Last; the last layer is left out."""
    assert layer_map("pkd_bert", layers, 6, 12, but_last=True) == expected


@pytest.mark.parametrize(
    ("layers", "sizes", "message"),
    [
        ("unform", (3, 6), "no layers 'unform' of tinybert. Did you mean uniform"),
        ([2, 4], (3, 6), r"method.tinybert.layers is \[2, 4\]; give 3 of the teacher's layers, one for each layer of the student, or one"),
        ([2, 4, 7], (3, 6), "method.tinybert.layers names layer 7; the teacher's layers are 1 to 6"),
        ([0, 2, 4], (3, 6), "names layer 0; the teacher's layers are 1 to 6"),
        ([1, 2, 2.5], (3, 6), "names layer 2.5; the teacher's"),
        (3, (3, 6), "method.tinybert.layers is 3; give 3 of"),
        ("last", (6, 3), "needs a teacher with at least as many layers as the student; it has 3, the student 6"),
    ],
)  # fmt: skip
def test_maps_that_cannot_be(layers, sizes, message):
    with pytest.raises(KdrunError, match=message) as error:
        layer_map("tinybert", layers, *sizes)
    assert "\n" not in str(error.value)


def test_one_layer_of_the_teacher():
    assert [one_layer("minilm.teacher_layer", layer, 6) for layer in ("last", 1, 6)] == [6, 1, 6]
    for bad in ("first", 0, 7, True, None):
        with pytest.raises(
            KdrunError,
            match=rf"method.minilm.teacher_layer names layer {bad}; the teacher's layers are 1 to 6, and last",
        ):
            one_layer("minilm.teacher_layer", bad, 6)
    with pytest.raises(KdrunError, match="leaves out the last layer, and the student has 1"):
        layer_map("pkd_bert", "skip", 1, 12, but_last=True)


# Draws -------------------------------------------------------------------------------------------------------------------


def test_uniform_and_normal_draws():
    """Their moments, and no dependence between rows, columns or keys."""
    rows, columns = torch.arange(600)[:, None], torch.arange(400)[None]
    u, n = uniform(3, rows, columns), normal(3, rows, columns)
    assert (u.min() >= 0, u.max() < 1) == (True, True)
    assert (u.mean().item(), u.var().item()) == (pytest.approx(0.5, abs=0.003), pytest.approx(1 / 12, abs=0.001))
    assert (n.mean().item(), n.var().item()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.02))
    assert (n.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.005)
    for x in (u, n, u.T, n.T):
        apart = torch.corrcoef(x[:300])[~torch.eye(300, dtype=torch.bool)]
        assert apart.std().item() == pytest.approx(x.shape[1] ** -0.5, rel=0.05)
    assert torch.corrcoef(torch.stack([u.flatten(), uniform(4, rows, columns).flatten()]))[0, 1].abs() < 0.01
    assert (
        uniform(3, 4, 5).item()
        == uniform(3, torch.tensor([4]), 5).item()
        == uniform(torch.tensor(3), 4, torch.tensor(5)).item()
    )


def test_noise_depends_on_key_row_and_class_alone():
    index, label = torch.tensor([5, 3, 900_000_000_000, 0]), torch.tensor([0, 2, 1, 1])
    logits = noise_logits(7, index, label, 3, 1.0, 0.1)
    order = torch.tensor([2, 0])
    assert torch.equal(noise_logits(7, index[order], label[order], 3, 1.0, 0.1), logits[order])
    assert not torch.equal(noise_logits(8, index, label, 3, 1.0, 0.1), logits)
    assert torch.equal(noise_logits(7, index, label, 3, 1.0, 0.0), torch.eye(3)[label])
    many = noise_logits(7, torch.arange(20_000), torch.ones(20_000, dtype=torch.long), 3, 1.0, 0.1)
    torch.testing.assert_close(many.mean(0), torch.tensor([0.0, 1.0, 0.0]), atol=0.005, rtol=0)
    torch.testing.assert_close(many.std(0), torch.full((3,), 0.1), atol=0.003, rtol=0)
    alone = noise_logits(7, index, label, 3, 0.0, 2.0)
    assert torch.equal(alone, noise_logits(7, index, label.flip(0), 3, 0.0, 2.0))


VOCABULARY, SPECIAL, MASK_ID = 50, (0, 1, 2), 2


def sentences(count: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Words, which of them may be hidden (the first and last of a sentence and padding may not), and rows."""
    draw = torch.Generator().manual_seed(0)
    length = torch.randint(3, steps + 1, (count, 1), generator=draw)
    token = torch.randint(3, VOCABULARY, (count, steps), generator=draw)
    token[:, 0] = 1
    token = token.scatter(1, length - 1, 1).masked_fill(torch.arange(steps) >= length, 0)
    return token, token >= len(SPECIAL), torch.arange(count) * 3


def test_words_are_hidden_as_in_bert():
    """15 % of a sentence's words, at least one, never special ones; of these 80 % are the mask, 10 % another word, 10 % stay."""
    token, may, index = sentences(3000, 40)
    ordinary = torch.arange(len(SPECIAL), VOCABULARY)
    found = hide(token, may, index, torch.tensor(11), 0.15, MASK_ID, ordinary)
    counts = found.chosen_BK.sum(1)
    assert torch.equal(counts, (0.15 * may.sum(1)).round().long().clamp(min=1))
    assert torch.equal(found.token_BK, token.gather(1, found.place_BK))
    chosen = torch.zeros_like(may).scatter(1, found.place_BK, found.chosen_BK)
    assert not (chosen & ~may).any()
    assert torch.equal(found.input_BT[~chosen], token[~chosen])
    before, after = token[chosen], found.input_BT[chosen]
    shares = [x.double().mean().item() for x in (after == MASK_ID, after == before)]
    assert shares == [pytest.approx(0.8, abs=0.015), pytest.approx(0.1 + 0.1 / len(ordinary), abs=0.01)]
    assert not ((after < len(SPECIAL)) & (after != MASK_ID)).any()
    others = after[(after != MASK_ID) & (after != before)]
    assert torch.bincount(others, minlength=VOCABULARY)[3:].min() > 0
    place = chosen.double().sum(0) / may.sum(0).clamp(min=1)
    assert place[1:20].std() < 0.05  # no position is preferred


def test_padding_and_order_hide_the_same_words_and_another_key_hides_others():
    token, may, index = sentences(64, 12)
    ordinary, key = torch.arange(len(SPECIAL), VOCABULARY), torch.tensor(11)
    found = hide(token, may, index, key, 0.15, MASK_ID, ordinary).input_BT
    padded = hide(
        torch.nn.functional.pad(token, (0, 7)),
        torch.nn.functional.pad(may, (0, 7)),
        index,
        key,
        0.15,
        MASK_ID,
        ordinary,
    ).input_BT
    assert torch.equal(padded[:, :12], found)
    assert not padded[:, 12:].any()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        hide(token[order], may[order], index[order], key, 0.15, MASK_ID, ordinary).input_BT, found[order]
    )
    assert not torch.equal(hide(token, may, index, key + 1, 0.15, MASK_ID, ordinary).input_BT, found)


def test_a_sentence_of_special_words_alone_hides_nothing():
    token = torch.tensor([[1, 1, 0], [1, 7, 1]])
    found = hide(token, token > 2, torch.arange(2), torch.tensor(0), 0.15, MASK_ID, torch.arange(3, VOCABULARY))
    assert found.chosen_BK.tolist() == [[False], [True]]
    assert torch.equal(found.input_BT[0], token[0])
