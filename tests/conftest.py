"""Options of the test suite, and one thread for each of its processes."""

from __future__ import annotations

import os
from pathlib import Path

for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(key, "1")  # before torch is imported; the commands that tests start inherit it

import torch  # noqa: E402

torch.set_num_threads(
    1
)  # processes share the cores (pyproject.toml: -n logical); threads that wait for each other's are slow


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--reference-dir",
        type=Path,
        default=Path(__file__).parent / "reference",
        help="folder of reference values (*.npz and manifest.json) that test_reference.py compares the losses with",
    )
