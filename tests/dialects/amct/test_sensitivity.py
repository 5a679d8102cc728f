"""The similarity layers are ranked by."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.dialects.amct import sensitivity
from onnxq.dialects.amct.sensitivity import ranking, similarity
from onnxq.errors import CalibrationError, DataError


def f32(*values):
    return np.array(values, np.float32)


def test_worked_out_by_hand():
    assert similarity([f32(1, 0)], [f32(2, 0)]) == 1.0
    assert similarity([f32(1, 0)], [f32(-3, 0)]) == 0.0
    assert similarity([f32(1, 0)], [f32(0, 5)]) == 0.5
    assert similarity([f32(1, 0)], [f32(3, 4)]) == pytest.approx(0.5 + 0.5 * 0.6)


def test_the_mean_of_batches_not_of_all_elements():
    assert similarity([f32(1, 0), f32(100, 0)], [f32(1, 0), f32(0, 1)]) == pytest.approx(0.75)


def test_zeros():
    zero, one = f32(0, 0), f32(1, 0)
    assert similarity([zero], [one]) == 1.0
    assert similarity([one], [zero]) == 0.0
    assert similarity([zero], [zero]) == 1.0


def test_it_streams_and_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(1)
    a = [rng.normal(size=(3, 5, 7)).astype(np.float32) for _ in range(3)]
    b = [x + rng.normal(size=x.shape).astype(np.float32) * 0.1 for x in a]
    whole = similarity(iter(a), iter(b))
    cosines = [np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    assert whole == pytest.approx(0.5 + 0.5 * np.mean(cosines), rel=1e-6)
    monkeypatch.setattr(sensitivity, "_BLOCK", 4)
    assert similarity(iter(a), iter(b)) == pytest.approx(whole, rel=1e-12)


def test_large_values_do_not_overflow():
    big = np.full(1000, 3e38, np.float32)
    assert similarity([big], [big]) == pytest.approx(1.0)


def test_what_does_not_correspond():
    with pytest.raises(DataError, match=r"batch 0: the shapes of the outputs differ: \[2\] and \[1\]"):
        similarity([f32(1, 2)], [f32(1)])
    with pytest.raises(DataError, match="the quantized layer has no batch 1"):
        similarity([f32(1), f32(1)], [f32(1)])
    with pytest.raises(DataError, match="the float layer has no batch 0"):
        similarity([], [f32(1)])
    with pytest.raises(DataError, match="there is no batch to compare"):
        similarity([], [])
    with pytest.raises(CalibrationError, match="batch 0: the output of the quantized layer holds NaN"):
        similarity([f32(1)], [f32(np.nan)])
    with pytest.raises(CalibrationError, match="the float layer holds NaN or an infinity"):
        similarity([f32(np.inf)], [f32(1)])


def test_ranking():
    assert ranking({"a": 0.9, "b": 0.1, "c": 0.9, "d": 0.5}) == (("b", 0.1), ("d", 0.5), ("a", 0.9), ("c", 0.9))
