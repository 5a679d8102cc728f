from dataclasses import replace

import pytest

from onnxq.errors import TrainingError
from onnxq.qat._overlay_verify import verify
from onnxq.qat.worker_client import Worker


def test_the_real_training_runtime(overlay):
    assert 0 < verify(overlay) < 60


def test_another_version(overlay, monkeypatch):
    monkeypatch.setattr(Worker, "version", "1.18.0")
    with pytest.raises(TrainingError, match=r"holds onnxruntime 1\.18\.0 and not 1\.19\.2"):
        verify(overlay)


def test_one_that_trains_wrongly(overlay, monkeypatch):
    right = Worker.train_step
    monkeypatch.setattr(Worker, "train_step", lambda worker, feeds, rate: right(worker, feeds, 2 * rate))
    with pytest.raises(TrainingError, match="instead of"):
        verify(overlay)


def test_an_empty_overlay(overlay, tmp_path):
    """It finds stock onnxruntime then, which cannot train, or none at all."""
    with pytest.raises(TrainingError, match=r"ended during 'start'|holds onnxruntime"):
        verify(replace(overlay, path=tmp_path))
