"""Pages that are generated from the code are current."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from kdrun.cli import run
from kdrun.config.listing import methods_of_every_task
from kdrun.config.schema import method_names
from kdrun.report.collect import collect
from kdrun.runs.record import validate

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "docs_methods.py"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not SCRIPT.exists(), reason="scripts/ is not part of the source distribution")
def test_sanity_page_is_that_of_its_measurements():
    """docs/sanity.md is what scripts/sanity.py makes of the measurements, covers every method, and explains each that is far below."""
    measured = ROOT / "docs" / "measured"
    found = json.loads((measured / "sanity.json").read_text(encoding="utf-8"))
    notes = json.loads((measured / "sanity-notes.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "sanity.md").read_text(encoding="utf-8")
    assert page == load("sanity").page(found, notes)
    assert set(found["methods"]) == set(methods_of_every_task())
    assert "NOT YET EXPLAINED" not in page


@pytest.mark.skipif(not SCRIPT.exists(), reason="scripts/ is not part of the source distribution")
def test_methods_page_is_current():
    """docs/methods.md is what the docstrings, yamls, references and measurements say now, and has every method."""
    module = load("docs_methods")
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == module.text(), "run python scripts/docs_methods.py"
    assert all(f"\n### {name}\n" in page for name in method_names())


RESULTS = ROOT / "results/cifar10-jpeg"


@pytest.mark.skipif(not RESULTS.exists(), reason="results/ is not part of the source distribution")
def test_the_committed_sweep_tells_its_table(capsys, monkeypatch):
    """Its records are whole, and what was rendered of them is what `kdrun report` says today."""
    monkeypatch.chdir(ROOT)
    found = collect([RESULTS]).records
    for record in found:
        validate({key: value for key, value in record.items() if key not in ("folder", "taught_by")})
    assert sum(path.stat().st_size for path in RESULTS.rglob("*")) < 8 * 2**20
    for form, name in (("md", "table.md"), ("csv", "table.csv")):
        assert run(["report", "results/cifar10-jpeg", "--format", form]) == 0
        assert capsys.readouterr().out == (RESULTS / name).read_text(encoding="utf-8")
    table = (RESULTS / "table.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) > 10
