"""Every method of conf/method on a pair of transformers, and those of texts on images: it trains, or it stops with one sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import text_pair
from test_methods import ALL, CLASSES, LABELS, ROWS, SIZE, WIDER, net, settings
from test_text_methods import pair_of
from text_pair import batch, encoder

from kdrun.config.registry import METHODS
from kdrun.engine.loop import enter
from kdrun.errors import KdrunError
from kdrun.methods.base import DataFacts
from kdrun.methods.distillation import Distillation
from kdrun.tasks import classes as task

OWN = {name: next(iter(settings(name).values())) for name in ALL}
TAPPED = [name for name in ALL if OWN[name].get("taps")]
# What trains on texts as its yaml is; what trains once it has taps of vectors, and of tokens. All others say why they cannot.
PLAIN = {
    "dist", "distilbert", "dkd", "dml", "kd", "label_smoothing", "logits", "ls", "minilm", "minilmv2", "noise_labels", "none", "pkd_bert",
    "tinybert", "cc", "crd", "mimic", "pkt", "rkd",
}  # fmt: skip
VECTORS = {"cc", "crd", "fitnet", "fitnet_joint", "mimic", "pkt", "reviewkd", "rkd", "sp"}
TOKENS = VECTORS - {"crd"}


def outcome(name: str, **changes: Any) -> str | None:
    """None where every stage trains on batches of several lengths and sizes; else the sentence that the pair stops with."""
    student, teacher = encoder(text_pair.NARROW, layers=4), encoder(text_pair.WIDER, layers=4, seed=1)
    try:
        distillation, weights = pair_of(name, student, teacher, **changes)
    except KdrunError as error:
        return str(error)
    for number, stage in enumerate(distillation.stages):
        for size, padding in ((6, 0), (5, 3), (2, 0)):
            enter(distillation, stage)
            distillation.begin_epoch(number, 0)
            _, terms = distillation(batch(size, padding=padding), stage)
            total = sum(weights.get(term, 1.0) * value for term, value in terms.items())
            total.backward()
            distillation.after_step()
            assert math.isfinite(total.item()), (stage.name, size, terms)
    return None


@pytest.mark.parametrize("name", ALL)
def test_a_method_as_its_yaml_is(name) -> None:
    why = outcome(name)
    assert (why is None) == (name in PLAIN), why
    assert len((why or "").splitlines()) <= 1


@pytest.mark.parametrize("name", TAPPED)
def test_a_method_with_taps_of_vectors(name) -> None:
    count = len(OWN[name]["taps"])
    why = outcome(name, taps=[f"cls{i + 1}" for i in range(count)])
    assert (why is None) == (name in VECTORS), why


@pytest.mark.parametrize("name", TAPPED)
def test_a_method_with_taps_of_tokens(name) -> None:
    count = len(OWN[name]["taps"])
    why = outcome(name, taps=[f"layer{i + 1}" for i in range(count)])
    assert (why is None) == (name in TOKENS), why
    if name == "crd":
        assert why == "crd compares whole samples, and tap 'layer1' is no vector for each; tap one, as in taps=[pooled]"


@pytest.mark.parametrize("name", TAPPED)
def test_a_method_with_taps_of_attention(name) -> None:
    """Scores (B, H, T, T) have padding in them, which only methods of transformers leave out."""
    count = len(OWN[name]["taps"])
    why = outcome(name, taps=[f"attention{i + 1}" for i in range(count)])
    assert why is not None
    assert (
        "would count padding in tap 'attention1'" if name != "lwm" else "needs gradients with respect to the input"
    ) in why


@pytest.mark.parametrize(
    "name", ["pkd_bert", "distilbert", "tinybert", "minilm", "minilmv2", "theseus", "theseus_control", "early_exit"]
)
def test_a_method_of_texts_on_images(name) -> None:
    ((key, values),) = settings(name).items()
    data = DataFacts(ROWS, LABELS, CLASSES, torch.randn(2, 3, SIZE, SIZE))
    with pytest.raises(KdrunError, match=rf"\b{key} .*|'{key}' ") as caught:
        Distillation(net(), net(WIDER).eval(), {key: (METHODS.get(key), values)}, data=data, task=task.loss)
    assert "\n" not in str(caught.value)
