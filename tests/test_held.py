"""What was measured before the code moved is what is measured now (tests/held/measure.py says how)."""

from __future__ import annotations

import json

import pytest
from held import measure

HELD = json.loads((measure.HERE / "numbers.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all runs, so that they share their teacher."""
    return tmp_path_factory.mktemp("held")


@pytest.mark.slow
@pytest.mark.parametrize("method", measure.METHODS)
def test_losses_and_weights_of_a_short_run(method: str, place) -> None:
    """The same bits on the machine that wrote them; elsewhere the losses agree as far as float32 does over a few steps."""
    now, held = measure.run(place, method), HELD["methods"][method]
    assert {name: len(values) for name, values in now["steps"].items()} == {
        name: len(values) for name, values in held["steps"].items()
    }
    if measure.machine() == HELD["machine"]:
        assert now == held
    for name, values in held["steps"].items():
        assert now["steps"][name][0] == pytest.approx(values[0], rel=1e-2, abs=1e-3)
        assert now["steps"][name] == pytest.approx(values, rel=0.05, abs=0.01)


@pytest.mark.parametrize("form", measure.FORMATS)
def test_report_of_the_committed_benchmark(form: str) -> None:
    now, held = measure.report(form), (measure.HERE / f"report.{form}").read_text(encoding="utf-8")
    assert (json.loads(now) == json.loads(held)) if form == "json" else now == held
