"""The training runtime for the tests: installed once per machine, in the user's cache."""

import pytest

from onnxq.errors import TrainingError
from onnxq.qat.overlay import find_overlay, install_overlay
from onnxq.qat.worker_client import Worker


@pytest.fixture(scope="session")
def overlay():
    try:
        return find_overlay()
    except TrainingError:
        try:
            return install_overlay()
        except TrainingError as err:
            pytest.skip(f"no training runtime: {err}")


@pytest.fixture(scope="module")
def worker(overlay):
    with Worker(overlay) as running:
        yield running
