import pytest

from onnxq.qat.worker_client import Worker
from tests.qat.runtime import training_runtime


@pytest.fixture(scope="session")
def overlay():
    return training_runtime()


@pytest.fixture(scope="module")
def worker(overlay):
    with Worker(overlay) as running:
        yield running
