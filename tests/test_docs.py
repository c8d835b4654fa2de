"""Pages that are generated from the code are current."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from kdrun.config import method_names

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "docs_methods.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="scripts/ is not part of the source distribution")
def test_methods_page_is_current():
    """docs/methods.md is what the docstrings, yamls, references and measurements say now, and has every method."""
    spec = importlib.util.spec_from_file_location("docs_methods", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == module.text(), "run python scripts/docs_methods.py"
    assert all(f"\n### {name}\n" in page for name in method_names())
