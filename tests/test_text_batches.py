"""Batches of texts and their scores: every row once, in an order of (seed, epoch), little padding; metrics against other libraries."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdrun.tasks.text.data.base import TextDataset, TextSplit
from kdrun.tasks.text.data.loader import EVALUATED, POOL, Loader, collated, loaders
from kdrun.tasks.text.metrics import TextEvaluator, agreement, loss, score

PAD = 9


def split(rows: int, seed: int = 0, pairs: bool = False, first: int = 0) -> TextSplit:
    """Texts of 3 to 40 tokens; the tokens of row r are r, r + 1, ... modulo 1,000 above 10."""
    draw = torch.Generator().manual_seed(seed)
    lengths = (3 + 37 * torch.rand(rows, generator=draw).square()).long()
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    ids = torch.cat([10 + (row + torch.arange(n)) % 1_000 for row, n in enumerate(lengths.tolist())]).int()
    segments = torch.cat([(torch.arange(n) >= n // 2).to(torch.uint8) for n in lengths.tolist()]) if pairs else None
    return TextSplit(
        [(str(row),) for row in range(rows)], torch.arange(rows) % 3, first + torch.arange(rows), ids, starts, segments
    )


def dataset(train: TextSplit, test: TextSplit | None = None, holdout: TextSplit | None = None) -> TextDataset:
    return TextDataset("made", ["a", "b", "c"], "0", train, holdout, test or train, None, "0", 1_010, PAD, None, [], 64)


def loader(rows: int = 1_000, size: int = 8, seed: int = 0, **more: Any) -> Loader:
    own = split(rows, **more)
    return Loader(own, dataset(own), batch_size=size, device="cpu", seed=seed)


def order(batches: Iterator[dict[str, Any]]) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


def share_of_padding(batches: list[Tensor]) -> float:
    return 1 - sum(int(mask.sum()) for mask in batches) / sum(mask.numel() for mask in batches)


# Batches ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [8, 9, 400, 1_003])
def test_every_row_is_met_once_in_an_epoch(rows) -> None:
    made = loader(rows)
    batches = order(made.epoch(0))
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert len(batches) == len(made) == -(-rows // 8)
    assert sorted(map(len, batches))[0] == made.smallest
    assert {*map(len, batches)} <= {8, made.smallest}


def test_an_order_is_of_a_seed_and_an_epoch() -> None:
    first = order(loader().epoch(3))
    assert first == order(loader().epoch(3))
    assert first != order(loader().epoch(4))
    assert first != order(loader(seed=1).epoch(3))
    made = loader()
    list(made.epoch(0))
    assert order(made.epoch(3)) == first  # whatever came before
    together = [{frozenset(pair) for batch in order(made.epoch(e)) for pair in pairwise(sorted(batch))} for e in (0, 1)]
    assert len(together[0] & together[1]) < 0.2 * len(together[0])  # texts meet others


def test_like_lengths_come_together() -> None:
    made = loader(4_000)
    mine = share_of_padding([batch["mask"] for batch in made.epoch(0)])
    shuffled = torch.randperm(4_000, generator=torch.Generator().manual_seed(0)).split(8)
    theirs = share_of_padding([made._batch(rows)["mask"] for rows in shuffled])
    assert theirs > 0.4
    assert mine < 0.1 * theirs
    lengths = [batch["mask"].shape[1] for batch in made.epoch(0)]
    assert abs(np.corrcoef(lengths[:-1], lengths[1:])[0, 1]) < 0.2  # and long batches do not come one after the other
    assert len(lengths) > 2 * POOL


def test_a_batch_holds_the_tokens_of_its_rows_and_padding() -> None:
    own = split(100, pairs=True)
    for batch in Loader(own, dataset(own), batch_size=8, device="cpu").epoch(0):
        x, mask = batch["input"], batch["mask"]
        assert {*x} == {"input_ids", "attention_mask", "token_type_ids"}
        assert all(value.dtype == torch.int64 for value in x.values())
        assert torch.equal(mask, x["attention_mask"].bool())
        assert torch.equal(batch["label"], own.labels[batch["index"]])
        assert mask.shape[1] == mask.sum(1).max()
        for row, ids, segments, real in zip(
            batch["index"].tolist(), x["input_ids"], x["token_type_ids"], mask, strict=True
        ):
            first, last = own.starts[row : row + 2].tolist()
            assert ids[real].tolist() == own.ids[first:last].tolist()
            assert segments[real].tolist() == own.segments[first:last].tolist()
            assert (ids[~real] == PAD).all()
            assert (segments[~real] == 0).all()
    assert {*loader(10).first(2)} == {"input_ids", "attention_mask"}


def test_views_replay_rows_of_the_training_set() -> None:
    own = split(50).rows(torch.arange(0, 50, 2))  # a holdout has the others
    made = Loader(own, dataset(own), batch_size=4, device="cpu")
    batch = next(iter(made.epoch(5)))
    view = made.view(batch["index"], 5)
    assert all(torch.equal(view[key], batch["input"][key]) for key in view)
    assert (batch["index"] % 2 == 0).all()
    with pytest.raises(IndexError, match="a row of another split"):
        made.view(torch.tensor([1]), 0)


def test_evaluation_takes_the_longest_first_and_puts_outputs_in_order() -> None:
    own = split(300)
    _, evals = loaders(dataset(own, own, own.rows(torch.arange(5))), 8, 0, torch.device("cpu"))
    assert {*evals} == {"test", "holdout"}
    batches = list(evals["test"].batches())
    assert [len(batch["index"]) for batch in batches] == [EVALUATED, EVALUATED, 300 - 2 * EVALUATED]
    widths = [batch["mask"].shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    evaluator = TextEvaluator(["accuracy"])
    for batch in batches:
        logits = torch.nn.functional.one_hot(batch["index"] % 3, 3) * 5.0
        logits[:, 0] += batch["index"] / 1_000
        evaluator.update(logits, batch)
    result = evaluator.result()
    assert torch.equal(result.predictions["labels"], own.labels)
    assert torch.allclose(result.predictions["logits"][:, 0] % 1, torch.arange(300) / 1_000, atol=1e-5)
    assert result.metrics == {"accuracy": 1.0}
    assert result.predictions["right"].all()


def test_strings_are_collated_like_samples() -> None:
    x = collated([([1, 2, 3], [0, 0, 1]), ([4], [0])], PAD, with_segments=True)
    assert x["input_ids"].tolist() == [[1, 2, 3], [4, PAD, PAD]]
    assert x["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert x["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]


# Scores -----------------------------------------------------------------------------------------------------------------------


def logits_of(classes: list[int], count: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), count).float()


def test_scores_by_hand() -> None:
    right, given = [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]  # TP 2, FN 1, FP 1, TN 2
    outputs, labels = logits_of(given, 2), torch.tensor(right)
    assert score("accuracy", outputs, labels) == pytest.approx(4 / 6)
    assert score("f1", outputs, labels) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert score("matthews", outputs, labels) == pytest.approx((2 * 2 - 1 * 1) / (3 * 3 * 3 * 3) ** 0.5)
    x, y = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [3.0], [2.0]])
    assert score("pearson", x, y) == pytest.approx(1 / (14 / 3 * 2) ** 0.5)  # covariance 1, squares 14/3 and 2
    assert score("spearman", x, y) == pytest.approx(1 - 6 * (0 + 1 + 1) / (3 * 8))


def test_scores_are_those_of_scikit_learn_and_scipy() -> None:
    from scipy import stats
    from sklearn import metrics

    draw = torch.Generator().manual_seed(0)
    for count in (2, 5):
        outputs, labels = torch.randn(200, count, generator=draw), torch.randint(count, (200,), generator=draw)
        given = outputs.argmax(1)
        average = "binary" if count == 2 else "macro"
        assert score("accuracy", outputs, labels) == pytest.approx(metrics.accuracy_score(labels, given))
        assert score("f1", outputs, labels) == pytest.approx(metrics.f1_score(labels, given, average=average))
        assert score("matthews", outputs, labels) == pytest.approx(metrics.matthews_corrcoef(labels, given))
    x, y = torch.randn(200, 1, generator=draw), torch.randint(6, (200, 1), generator=draw).float()  # with ties
    assert score("pearson", x, y) == pytest.approx(stats.pearsonr(x[:, 0].double(), y[:, 0].double())[0])
    assert score("spearman", x, y) == pytest.approx(stats.spearmanr(x[:, 0], y[:, 0])[0])


def test_scores_where_a_side_is_constant() -> None:
    """No division by zero, and no nan in a record."""
    assert score("matthews", logits_of([1, 1], 2), torch.tensor([0, 1])) == 0
    assert score("f1", logits_of([0, 0], 2), torch.tensor([0, 1])) == 0
    for name in ("pearson", "spearman"):
        assert score(name, torch.ones(3, 1), torch.tensor([[1.0], [2.0], [3.0]])) == 0


def test_numbers_have_a_squared_error_and_agree_by_their_correlation() -> None:
    outputs, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]])
    assert loss(outputs, {"label": labels}).item() == pytest.approx((1 + 4) / 2)
    assert agreement(outputs, 3 * outputs - 1) == pytest.approx(1)
    assert agreement(outputs, -outputs) == pytest.approx(-1)
    assert agreement(logits_of([0, 1, 1], 3), logits_of([0, 1, 2], 3)) == pytest.approx(2 / 3)
    evaluator = TextEvaluator(["pearson", "spearman"])
    evaluator.update(outputs, {"label": labels, "index": torch.tensor([1, 0])})
    result = evaluator.result()
    assert result.predictions["logits"].flatten().tolist() == [2, 1]
    assert "right" not in result.predictions
    assert result.loss == pytest.approx(2.5)
