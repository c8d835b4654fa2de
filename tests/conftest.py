"""Options of the test suite."""

from __future__ import annotations

from pathlib import Path


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--reference-dir",
        type=Path,
        default=Path(__file__).parent / "reference",
        help="folder of reference values (*.npz and manifest.json) that test_reference.py compares the losses with",
    )
