"""Histograms in a few bins and ranges of channels, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.report.distributions import BARS, CHANNELS, channels_of, distribution, histogram_of
from onnxq.report.numbers import numbers_of
from onnxq.spec import PerAxis, QType, QuantParams, QuantSpec
from onnxq.stats import TensorStats
from tests.graphs import normal


def codes(scale, zero_point, axis=None):
    granularity = {} if axis is None else {"granularity": PerAxis(axis)}
    spec = QuantSpec(QType.INT8, symmetric=False, **granularity)
    return numbers_of("t", QuantParams(spec, np.float32(scale), np.int32(zero_point)), "minmax")


@pytest.mark.parametrize("x", [normal(5000), np.float32([3.5]), normal(4000) ** 9, np.zeros(7, np.float32)], ids=str)
def test_all_values_are_in_bins_of_their_own_range(x):
    found = distribution(TensorStats.from_array(x))
    assert sum(found.counts) == found.count == x.size
    assert len(found.counts) <= BARS
    low, high = found.edges
    assert low <= x.min() <= x.max() < high
    edges = np.linspace(low, high, len(found.counts) + 1)
    np.testing.assert_array_equal(found.counts, np.histogram(x.astype(np.float64), edges)[0])


def test_what_is_cut_off_lies_half_a_step_beyond_the_codes():
    x = np.float32([-1.0, -0.6, 0.0, 1.0, 1.27, 1.3, 2.0, 3.0])
    found = distribution(TensorStats.from_array(x), codes(0.01, 0))  # -1.28 to 1.27
    assert found.clipped == 3 / 8
    assert distribution(TensorStats.from_array(x)).clipped is None
    block = histogram_of("t", found, codes(0.01, 0), "remark")
    assert block.clip == pytest.approx((-1.28, 1.27))
    for part in ("8 values from -1 to 3", "by minmax", "37.5 % of the values are cut off", "remark"):
        assert part in block.detail


def test_a_range_alone_is_no_histogram():
    found = distribution(TensorStats(-1.0, 2.0, 5))
    assert (found.low, found.high, found.counts) == (-1, 2, ())


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_have_their_extremes_and_codes(axis):
    weight = normal(3, 5, 2)
    scale = np.float32(np.arange(1, weight.shape[axis] + 1)) / 100
    found = channels_of("w", weight, axis, codes(scale, np.zeros(scale.shape), axis))
    others = tuple({0, 1, 2} - {axis})
    assert found.low == pytest.approx(weight.min(axis=others))
    assert found.high == pytest.approx(weight.max(axis=others))
    assert np.array(found.clip) == pytest.approx(np.stack([-128 * scale, 127 * scale], 1))
    assert found.step == 1


def test_many_channels_are_shown_together():
    weight = normal(3 * CHANNELS + 1, 2)
    found = channels_of("w", weight, 0, codes(0.1, 0))
    assert found.step == 4
    assert len(found.low) == -(-len(weight) // 4)
    assert found.low[1] == weight[4:8].min()
    assert found.high[-1] == weight[-(len(weight) % 4) :].max()
    assert np.array(found.clip) == pytest.approx(np.tile([-12.8, 12.7], (len(found.low), 1)))
