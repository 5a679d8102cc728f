"""The histogram merges exactly whatever the order, and says what it counted."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.errors import CalibrationError
from onnxq.stats import BINS, HALF, MAX_EXPONENT, MIN_EXPONENT, Histogram, TensorStats, exponent_for

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS)
#: Magnitudes of one model: no extreme spread, so that growing keeps more than two bins.
TAME = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e3, 1e3, width=32))


def assert_same(a, b):
    assert a.exponent == b.exponent
    np.testing.assert_array_equal(a.counts, b.counts)


@given(ARRAYS, ARRAYS)
def test_merge_equals_counting_together(x, y):
    together = Histogram.from_array(np.concatenate([x, y]))
    assert_same(Histogram.from_array(x).merge(Histogram.from_array(y)), together)


@given(TAME, TAME, TAME)
def test_merge_is_associative_and_commutative(x, y, z):
    a, b, c = map(Histogram.from_array, (x, y, z))
    assert_same(a.merge(b), b.merge(a))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(Histogram.empty()), a)


@given(TAME, st.integers(0, 20), st.integers(0, 20))
def test_grow_in_steps_equals_grow_at_once(x, first, second):
    h = Histogram.from_array(x)
    grown = h.grow(h.exponent + first).grow(h.exponent + first + second)
    assert_same(grown, h.grow(h.exponent + first + second))
    assert_same(grown, Histogram.from_array(x, exponent=h.exponent + first + second))
    assert grown.total == x.size


@given(TAME)
def test_every_value_lies_in_its_bin(x):
    h = Histogram.from_array(x)
    edges = h.edges()
    expected = np.searchsorted(edges, x.astype(np.float64), side="right") - 1
    np.testing.assert_array_equal(h.counts, np.bincount(expected, minlength=BINS))


def test_power_of_two_goes_to_the_next_exponent():
    assert exponent_for(1.0) == 1
    assert exponent_for(math.nextafter(1.0, 0)) == 0
    assert exponent_for(0.0) == MIN_EXPONENT
    assert exponent_for(float(np.finfo(np.float32).max)) == MAX_EXPONENT
    h = Histogram.from_array(np.array([2.0, -2.0], np.float32))
    assert h.exponent == 2
    assert h.counts[HALF + HALF // 2] == 1
    assert h.counts[HALF - HALF // 2] == 1


def test_zero_and_negative_zero_share_the_bin_above_zero():
    h = Histogram.from_array(np.array([0.0, -0.0, 1.0, -1e-45], np.float32))
    assert h.counts[HALF] == 2
    assert h.counts[HALF - 1] == 1


def test_nonzero_gives_exact_centres():
    h = Histogram.from_array(np.array([0.75, 0.75, -0.5], np.float32))
    centers, counts = h.nonzero()
    np.testing.assert_array_equal(counts, [1, 2])
    np.testing.assert_array_equal(centers, [-0.5 + h.width / 2, 0.75 + h.width / 2])
    np.testing.assert_array_equal(h.edges()[:-1] + h.width / 2, h.centers())
    assert h.edges()[0] == -(2.0**h.exponent)
    assert h.edges()[-1] == 2.0**h.exponent


def test_refusals():
    with pytest.raises(CalibrationError, match="finite magnitude"):
        Histogram.from_array(np.array([1.0, np.nan]))
    with pytest.raises(CalibrationError, match="does not fit into float32"):
        exponent_for(1e39)
    with pytest.raises(CalibrationError, match="outside the histogram range"):
        Histogram.from_array(np.array([1.0]), exponent=0)
    with pytest.raises(ValueError, match="cannot shrink"):
        Histogram.from_array(np.array([1.0])).grow(0)
    with pytest.raises(ValueError, match="16384 bins"):
        Histogram(0, np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="exponent 200"):
        Histogram(200, np.zeros(BINS, np.int64))
    with pytest.raises(CalibrationError, match="empty array"):
        TensorStats.from_array(np.zeros(0))
    with pytest.raises(CalibrationError, match="unusable range"):
        TensorStats(math.nan, 1.0, 3)
    with pytest.raises(CalibrationError, match="ask for HISTOGRAM"):
        TensorStats(0.0, 1.0, 3).require_histogram()
    with pytest.raises(CalibrationError, match="ask for CHANNEL_MEAN"):
        TensorStats(0.0, 1.0, 3).channel_mean  # noqa: B018


def test_arrays_are_private_and_read_only():
    counts = np.zeros(BINS, np.int64)
    h = Histogram(0, counts)
    counts[0] = 5
    assert h.counts[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        h.counts[0] = 1


def stats_of(x):
    plain = TensorStats.from_array(x)
    return TensorStats(
        plain.low,
        plain.high,
        plain.count,
        plain.histogram,
        channel_absmax=np.array([np.abs(x).max(), 1.0]),
        channel_sum=np.array([np.float64(x.size), 2.0]),
        channel_count=x.size,
    )


@settings(max_examples=30)
@given(TAME, TAME)
def test_stats_merge(x, y):
    a, b = stats_of(x), stats_of(y)
    both = np.concatenate([x, y])
    for merged in (a.merge(b), b.merge(a)):
        assert (merged.low, merged.high, merged.count) == (both.min(), both.max(), both.size)
        assert merged.histogram.same_as(Histogram.from_array(both))
        np.testing.assert_array_equal(merged.channel_absmax, [np.abs(both).max(), 1.0])
        np.testing.assert_array_equal(merged.channel_mean, [1.0, 4.0 / both.size])
        assert merged.absmax == np.abs(both).max()


def test_stats_neutral_element_and_mismatch():
    a = stats_of(np.array([1.0, -2.0]))
    bare = TensorStats(a.low, a.high, a.count)
    neutral = TensorStats(math.inf, -math.inf, 0)
    merged = bare.merge(neutral)
    assert (merged.low, merged.high, merged.count) == (-2.0, 1.0, 2)
    assert neutral.absmax == 0.0
    with pytest.raises(ValueError, match="only one side of the merge has histogram"):
        a.merge(bare)
    other = TensorStats(0.0, 1.0, 1, a.histogram, np.zeros(3), np.zeros(3), 1)
    with pytest.raises(ValueError, match="do not merge"):
        a.merge(other)


def test_negative_zero_does_not_depend_on_order():
    a, b = TensorStats(-0.0, -0.0, 1), TensorStats(0.0, 0.0, 1)
    assert math.copysign(1, a.merge(b).low) == math.copysign(1, b.merge(a).low) == 1.0
