"""The shared zoo of real models, and its images as the benchmarks read them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tools  # noqa: E402


@pytest.fixture(scope="session")
def zoo() -> Path:
    found = tools.find_zoo()
    if found is None:
        pytest.skip("no zoo of real models: set ONNXQ_ZOO to its folder")
    return found
