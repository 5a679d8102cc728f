"""The streaming meters against the formulas written out over all data at once."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from onnxq.errors import DataError
from onnxq.report import metrics
from onnxq.report.metrics import AccuracyMeter, ErrorMeter, in_top
from tests.graphs import normal


def meter_of(*batches):
    meter = ErrorMeter()
    for a, b in batches:
        meter.add(np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32))
    return meter.result()


def test_formulas_over_batches_of_any_size(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 7)
    ref, noise = normal(10, 3, 5), normal(10, 3, 5, seed=1, scale=0.05)
    got = ref + noise
    found = meter_of((ref[:1], got[:1]), (ref[1:4], got[1:4]), (ref[4:], got[4:]))
    a, b = ref.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    gap = np.abs(a - b)
    assert found.count == 150
    assert found.sqnr_db == pytest.approx(10 * math.log10((a**2).sum() / (gap**2).sum()), rel=1e-12)
    assert found.cosine == pytest.approx(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), rel=1e-12)
    assert found.max_abs == gap.max()
    assert found.mean_abs == pytest.approx(gap.mean(), rel=1e-12)
    assert found.peak == np.abs(a).max()
    assert not found.identical


def test_known_numbers():
    found = meter_of(([3.0, 4.0], [3.0, 4.5]))
    assert found.sqnr_db == pytest.approx(20.0)  # 25 / 0.25
    assert (found.max_abs, found.mean_abs, found.peak) == (0.5, 0.25, 4.0)


def test_sums_are_exact_where_float32_would_lose_them():
    ones = np.ones(1 << 20, dtype=np.float32)
    found = meter_of((ones * 4096, ones * 4096 + 1))
    assert found.mean_abs == 1.0
    assert found.sqnr_db == pytest.approx(20 * math.log10(4096), rel=1e-12)


def test_equal_tensors():
    x = normal(4, 4)
    found = meter_of((x, x))
    assert found.identical
    assert found.sqnr_db == math.inf
    assert found.cosine == 1.0


@pytest.mark.parametrize(
    ("ref", "got", "cosine", "sqnr"),
    [([0, 0], [0, 0], 1.0, math.inf), ([0, 0], [1, 0], 0.0, -math.inf), ([1, 0], [0, 0], 0.0, 0.0)],
)
def test_zero_tensors(ref, got, cosine, sqnr):
    found = meter_of((ref, got))
    assert (found.cosine, found.sqnr_db) == (cosine, sqnr)


def test_the_same_nan_or_infinity_in_both_is_no_difference():
    found = meter_of(([1.0, np.nan, np.inf, 2.0], [1.0, np.nan, np.inf, 2.5]))
    assert found.not_finite == 0
    assert found.max_abs == 0.5
    assert found.sqnr_db == pytest.approx(10 * math.log10(5 / 0.25))


@pytest.mark.parametrize("got", [[1.0, np.nan], [1.0, np.inf], [1.0, -np.inf]])
def test_a_nan_or_infinity_in_one_only_fails_every_gate(got):
    found = meter_of(([1.0, 2.0], got))
    assert found.not_finite == 1
    assert found.sqnr_db == -math.inf
    assert math.isnan(found.cosine)
    assert not found.identical


def test_json_holds_no_infinity():
    for found in (meter_of(([1.0], [1.0])), meter_of(([1.0], [np.nan]))):
        text = json.dumps(found.to_dict(), allow_nan=False)
        assert json.loads(text)["sqnr_db"] is None
    assert meter_of(([1.0], [1.0])).to_dict()["identical"] is True
    assert meter_of(([1.0], [np.nan])).to_dict()["identical"] is False


def test_shapes_must_agree():
    with pytest.raises(DataError, match=r"\[2\] and \[3\]"):
        meter_of(([1, 2], [1, 2, 3]))


def test_integers_and_booleans_are_compared_as_numbers():
    meter = ErrorMeter()
    meter.add(np.array([1, 2, 200], np.uint8), np.array([1, 3, 100], np.uint8))
    meter.add(np.array([True, False]), np.array([True, True]))
    assert meter.result().max_abs == 100.0


def slow_top(scores, labels, count):
    """Sort the classes of each row by score, of equals the first one first."""
    ranked = [sorted(range(len(row)), key=lambda c, row=row: (-row[c], c)) for row in scores]
    return [label in order[:count] for order, label in zip(ranked, labels, strict=True)]


def test_top_k_against_sorting():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(200, 9)).astype(np.float32)  # many ties
    labels = rng.integers(0, 9, size=200)
    for count in (1, 2, 5):
        assert in_top(scores, labels, count).tolist() == slow_top(scores, labels, count)
    assert in_top(scores, labels, 1).tolist() == (scores.argmax(axis=1) == labels).tolist()


def test_accuracy_over_batches():
    ref, got = normal(30, 7), normal(30, 7) + normal(30, 7, seed=3, scale=0.8)
    labels = np.random.default_rng(1).integers(0, 7, size=40)
    meter = AccuracyMeter("logits", 7, labels)
    for start, stop in ((0, 4), (4, 5), (5, 30)):
        meter.add(start, ref[start:stop], got[start:stop])
    found = meter.result()
    assert found.samples == 30
    assert found.agreement == (ref.argmax(1) == got.argmax(1)).mean()
    assert found.reference == (ref.argmax(1) == labels[:30]).mean()
    assert found.quantized == (got.argmax(1) == labels[:30]).mean()
    assert found.reference_top5 == np.mean(slow_top(ref, labels[:30], 5))
    assert found.quantized_top5 == np.mean(slow_top(got, labels[:30], 5))
    assert found.drop_points == pytest.approx(100 * (found.reference - found.quantized))


def test_without_labels_only_agreement_is_known():
    meter = AccuracyMeter("y", 3)
    meter.add(0, np.array([[1.0, 0, 0], [0, 1, 0]]), np.array([[1.0, 0, 0], [0, 0, 1]]))
    found = meter.result()
    assert found.agreement == 0.5
    assert found.reference is found.quantized is found.drop_points is None


def test_top5_is_left_out_where_five_classes_are_all():
    meter = AccuracyMeter("y", 5, np.array([0]))
    meter.add(0, np.eye(5)[:1], np.eye(5)[:1])
    assert meter.result().reference == 1.0
    assert meter.result().reference_top5 is None
