"""HFMG against the published procedure, spelled out bin by bin."""

import math

import numpy as np
import pytest

from onnxq.algos.activation._histogram import rebin
from onnxq.algos.activation._kernels import _loss
from onnxq.algos.activation.hfmg import HfmgConfig, HfmgExact, find_range
from onnxq.errors import CalibrationError
from onnxq.spec import QType, QuantSpec
from onnxq.stats import Histogram
from tests.algos.activation.samples import ARRAYS, ASYMMETRIC, stats_of


def loss_of(counts, left, right, width, levels):
    """Squared distance of a density that is uniform in each bin to the centres of the destination cells."""
    cell = width * (right - left + 1) / levels
    if cell < np.finfo(np.float32).eps:
        return 0.0
    total = 0.0
    for i in np.flatnonzero(counts):
        begin, end = (i - left) * width, (i - left + 1) * width
        first = min(max(math.floor(begin / cell), 0), levels - 1)
        last = min(max(math.floor(end / cell), 0), levels - 1)
        for d in range(first, last + 1):
            a = begin if d == first else d * cell
            b = end if d == last else (d + 1) * cell
            middle = (d + 0.5) * cell
            total += ((b - middle) ** 3 - (a - middle) ** 3) / 3 * (counts[i] / width)
    return total


def reference(counts, low, high, levels):
    """Greedy shrink; returns the range and every candidate with its loss."""
    bins = counts.size
    width = (high - low) / bins
    step = max(math.ceil(counts.sum() / 100000), 1)
    left, right, candidates = 0, bins - 1, []
    while right - left > math.ceil(bins / 4):
        new_left, dropped = left, 0
        while dropped < step and new_left < right:
            dropped += counts[new_left]
            new_left += 1
        new_right, dropped = right, 0
        while dropped < step and new_right > left:
            dropped += counts[new_right]
            new_right -= 1
        if new_left - left > right - new_right:
            left = new_left
        else:
            right = new_right
        candidates.append((loss_of(counts, left, right, width, levels), left, right))
    return candidates, width


@pytest.mark.parametrize("name", ["gauss", "relu", "laplace", "outlier"])
@pytest.mark.parametrize("levels_bits", [4, 8])
def test_shrink_is_the_published_one(name, levels_bits):
    x = ARRAYS[name][::40]
    config = HfmgConfig(num_of_bins=1024)
    exact = HfmgExact.from_array(x, config)
    np.testing.assert_array_equal(exact.counts, np.histogram(x.astype(np.float64), 1024, (x.min(), x.max()))[0])
    candidates, width = reference(exact.counts, exact.low, exact.high, 2**levels_bits)
    low, high = exact.find_range(QuantSpec(QType.INT8, symmetric=False, bits=levels_bits))
    best = min(c[0] for c in candidates)
    chosen = [c for c in candidates if (exact.low + c[1] * width, exact.low + (c[2] + 1) * width) == (low, high)]
    assert chosen
    assert chosen[0][0] == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_loss_of_a_candidate(seed):
    """What lies outside is charged its distance to the outermost centre, on either side."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(5, 64).astype(np.float64)
    left = int(rng.integers(0, 30))
    right = int(rng.integers(left + 8, 64))
    moments = [np.concatenate([[0.0], np.cumsum(counts * m)]) for m in powers(64)]
    found = _loss(counts, *moments, left, right, 16)
    assert found == pytest.approx(loss_of(counts, left, right, 1.0, 16), rel=1e-9)


def powers(size):
    """Integrals of 1, t and t**2 over each bin."""
    edge = np.arange(size + 1.0)
    return [np.diff(edge ** (k + 1)) / (k + 1) for k in range(3)]


def test_shrinking_goes_down_to_a_quarter():
    counts = np.round(3000 * np.exp(-np.arange(1024) / 60) + 1).astype(np.int64)
    exact = HfmgExact(HfmgConfig(1024), 0.0, 1.0, counts)
    low, high = exact.find_range(QuantSpec(QType.INT2, symmetric=False))
    candidates, width = reference(counts, 0.0, 1.0, 4)
    _, left, right = min(candidates)
    assert (low, high) == pytest.approx((left * width, (right + 1) * width))
    assert 256 <= right - left < 400


def test_merging_batches_is_the_published_rule():
    config = HfmgConfig(num_of_bins=1024)
    rng = np.random.default_rng(0)
    first, second = rng.uniform(-1, 1, 5000), rng.uniform(-1.5, 4, 700)
    merged = HfmgExact.from_array(first, config).merge_batch(second)
    low, high = min(first.min(), second.min()), max(first.max(), second.max())
    expected = np.histogram(second, 1024, (low, high))[0]
    old, edges = np.histogram(first, 1024)
    width = (high - low) / 1024
    for count, a, b in zip(old, edges[:-1], edges[1:], strict=True):
        i, j = int((a - low) / width), min(int((b - low) / width), 1023)
        below = int(count * (low + (i + 1) * width - a) / (b - a)) if i != j else count
        expected[i] += below
        expected[j] += count - below
    assert (merged.low, merged.high) == (low, high)
    assert merged.counts.sum() == 5700
    # one count may land next door where an edge coincides within rounding
    assert np.abs(np.cumsum(merged.counts - expected)).max() <= 1


def test_merging_inside_the_range_adds():
    config = HfmgConfig(num_of_bins=1024)
    a = np.linspace(-1, 1, 5001)
    merged = HfmgExact.from_array(a, config).merge_batch(a[1:-1])
    np.testing.assert_allclose(merged.counts, 2 * HfmgExact.from_array(a, config).counts, atol=3)
    constant = HfmgExact.from_array(np.full(4, 2.0), config).merge_batch(np.full(3, 2.0))
    assert (constant.low, constant.high, constant.counts.sum()) == (2.0, 2.0, 7)
    assert constant.find_range(ASYMMETRIC) == (2.0, 2.0)
    grown = constant.merge_batch(np.array([0.0]))
    assert grown.counts[-1] == 7
    assert grown.counts[0] == 1


@pytest.mark.parametrize("name", ["gauss", "relu", "laplace", "hardswish", "relu6"])
@pytest.mark.parametrize("bins", [1024, 4096])
def test_streaming_result_loses_nothing(name, bins):
    """The re-binned histogram finds a range whose exact loss is within 3 % of the published one."""
    x = ARRAYS[name]
    config = HfmgConfig(num_of_bins=bins)
    exact = HfmgExact.from_array(x, config)
    width = (exact.high - exact.low) / bins

    def loss(bounds):
        left = round((bounds[0] - exact.low) / width)
        return loss_of(exact.counts, left, round((bounds[1] - exact.low) / width) - 1, width, 256)

    assert loss(find_range(stats_of(x), ASYMMETRIC, config)) <= 1.03 * loss(exact.find_range(ASYMMETRIC))


@pytest.mark.parametrize("name", ["gauss", "relu", "shifted", "tiny"])
def test_rebin_keeps_the_distribution(name):
    x = ARRAYS[name].astype(np.float64)
    h = Histogram.from_array(x)
    counts = rebin(h, x.min(), x.max(), 64)
    assert counts.sum() == pytest.approx(x.size)
    expected = np.histogram(x, 64, (x.min(), x.max()))[0]
    # at most the values of one fine bin sit on the other side of an edge
    assert np.abs(np.cumsum(counts - expected)).max() <= h.counts.max() + 1


def test_refusals():
    with pytest.raises(CalibrationError, match="finite"):
        HfmgExact.from_array(np.array([np.inf]), HfmgConfig())
    with pytest.raises(CalibrationError, match="at least one value"):
        HfmgExact.from_array(np.array([1.0]), HfmgConfig()).merge_batch(np.array([]))
