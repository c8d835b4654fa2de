"""Hyper-parameters that no training can want stop at construction with one line that names the key."""

from __future__ import annotations

import math

import pytest
from test_methods import ALL, KEYS, build, settings, step

from kdrun.errors import KdrunError
from kdrun.methods.distillation import RESERVED


def numbers() -> list[tuple[str, str]]:
    """Every number among the hyper-parameters of conf/method."""
    return [
        (name, key)
        for name in ALL
        for key, value in settings(name)[KEYS[name]].items()
        if key not in RESERVED and isinstance(value, int | float) and not isinstance(value, bool)
    ]


# Values out of the ordinary that are legitimate all the same, and why.
LEGITIMATE: dict[tuple[str, str], set[float]] = {
    ("crd", "momentum"): {0},  # the bank holds what it saw last
    ("early_exit", "threshold"): {0},  # the whole model
    ("noise_labels", "peak"): {0},  # targets of noise alone
    ("noise_labels", "scale"): {0},  # softened labels alone
}


@pytest.mark.parametrize("value", [-1, 0, math.nan, math.inf, -math.inf, 1e-30, 1e30], ids=str)
@pytest.mark.parametrize(("name", "key"), numbers(), ids=str)
def test_a_number_out_of_range_is_refused_by_its_key(name, key, value):
    """Or it trains: the losses of a step are finite."""
    kind = type(settings(name)[KEYS[name]][key])
    if kind is int and not (math.isfinite(value) and value == int(value)):
        pytest.skip("the config takes whole numbers alone")
    if kind is int and value > 1e9:
        pytest.skip("as many as memory holds")
    refusal = None
    try:
        distillation, weights = build(name, **{key: kind(value)})
    except KdrunError as error:
        refusal = str(error)
    if refusal is not None:
        assert f"method.{KEYS[name]}.{key} is " in refusal
        assert str(kind(value)) in refusal or f"{value:g}" in refusal
        assert "\n" not in refusal
        assert value not in LEGITIMATE.get((name, key), ())
        return
    assert math.isfinite(value)
    assert value > 0 or value in LEGITIMATE.get((name, key), ())
    for number in range(len(distillation.stages)):
        assert all(term.isfinite() for term in step(distillation, weights, number).values())


TAKES_NO_TAPS = {
    "bss", "dist", "dkd", "dml", "kd", "label_smoothing", "logits", "ls", "noise_labels", "none", "sobolev",
    "distilbert", "early_exit", "minilm", "minilmv2", "pkd_bert", "theseus", "theseus_control", "tinybert",  # choose their own
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(ALL) - TAKES_NO_TAPS))
def test_a_method_of_layers_wants_taps(name):
    """taps=[] stops with one line that names the key."""
    with pytest.raises(KdrunError, match=rf"method\.{KEYS[name]}\.taps names (none|0)"):
        build(name, taps=[])


@pytest.mark.parametrize("name", sorted(TAKES_NO_TAPS - {"none"}))
def test_a_method_without_layers_takes_none(name):
    assert "taps" not in settings(name)[KEYS[name]]
