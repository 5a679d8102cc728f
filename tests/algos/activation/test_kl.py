"""KL against the published procedure, spelled out."""

import math

import numpy as np
import pytest

from onnxq.algos.activation.kl import KlConfig, best_split_threshold, best_threshold, exact_range, find_range
from onnxq.errors import CalibrationError
from onnxq.spec import QType, QuantSpec
from tests.algos.activation.samples import ARRAYS, ASYMMETRIC, SYMMETRIC, stats_of


def divergence(counts, kept, levels):
    """Slides 38 and 39 for one threshold: reference P, quantized and expanded Q, sum of P log(P / Q)."""
    p = counts[:kept].astype(np.float64).copy()
    p[-1] += counts[kept:].sum()
    q = np.zeros(kept)
    for level in range(levels):
        run = slice(level * kept // levels, (level + 1) * kept // levels)
        occupied = p[run] > 0
        if occupied.any():
            q[run][occupied] = counts[:kept][run].sum() / occupied.sum()
    p, q = p / p.sum(), q / q.sum()
    if ((p > 0) & (q == 0)).any():
        return np.inf
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


def reference_threshold(counts, levels):
    every = [divergence(counts, kept, levels) for kept in range(levels, counts.size + 1)]
    return every, levels + int(np.argmin(every))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [8, 16])
def test_threshold_is_the_published_one(seed, levels):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(300 * np.exp(-np.arange(160) / rng.uniform(5, 40))).astype(np.float64)
    every, expected = reference_threshold(counts, levels)
    found = best_threshold(counts, np.full(counts.size + 1, levels))
    assert every[found - levels] == pytest.approx(min(every), rel=1e-9)
    assert found == expected


def test_example_of_the_slides():
    """Slide 39: [1, 0, 2, 3, 5, 3, 1, 7] in two levels becomes [2, 0, 2, 2, 4, 4, 4, 4]."""
    counts = np.array([1, 0, 2, 3, 5, 3, 1, 7.0])
    p, q = counts / 22, np.array([2, 0, 2, 2, 4, 4, 4, 4]) / 22
    expected = (p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()
    assert divergence(counts, 8, 2) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["laplace", "outlier", "relu"])
def test_range_equals_the_procedure_on_the_values(name):
    """2048 bins of the magnitudes, 128 levels, threshold in the middle of the last bin."""
    x = ARRAYS[name]
    absmax = float(np.abs(x).max())
    counts = np.histogram(np.abs(x), 2048, (0, absmax))[0].astype(np.float64)
    counts[0] = counts[1]
    every, _ = reference_threshold(counts, 128)
    low, high = find_range(stats_of(x), SYMMETRIC, KlConfig())
    kept = round(max(-low, high) / absmax * 2048 - 0.5)
    # the histogram's bins straddle those of the reference: the optimum may move, its divergence hardly does
    near = [every[k - 128] for k in range(max(kept - 30, 128), min(kept + 31, 2049))]
    assert min(near) <= min(every) * 1.1
    assert low == max(float(x.min()), -max(-low, high))


def test_an_outlier_is_clipped():
    low, high = find_range(stats_of(ARRAYS["outlier"]), SYMMETRIC, KlConfig())
    assert 3 < high < 8
    assert low >= -5
    assert find_range(stats_of(ARRAYS["outlier"]), ASYMMETRIC, KlConfig())[1] < 8


def test_one_sided_data_get_all_the_levels():
    symmetric = find_range(stats_of(ARRAYS["relu"]), SYMMETRIC, KlConfig())
    half = find_range(stats_of(ARRAYS["relu"]), QuantSpec(QType.UINT8, symmetric=False, bits=7), KlConfig())
    assert symmetric == half


def test_zeros_do_not_matter():
    x = ARRAYS["relu"]
    more = np.concatenate([x, np.zeros(500_000, np.float32)])
    assert find_range(stats_of(x), ASYMMETRIC, KlConfig()) == find_range(stats_of(more), ASYMMETRIC, KlConfig())
    seen = KlConfig(ignore_zeros=False)
    assert find_range(stats_of(x), ASYMMETRIC, seen) != find_range(stats_of(more), ASYMMETRIC, seen)


def test_sixteen_bits_are_not_clipped():
    stats = stats_of(ARRAYS["laplace"])
    assert find_range(stats, QuantSpec(QType.INT16), KlConfig()) == (stats.low, stats.high)
    assert find_range(stats, QuantSpec(QType.UINT16, symmetric=False), KlConfig()) == (stats.low, stats.high)


# ---- bins split between levels


def split_divergence(counts, kept, levels):
    """One threshold, bin by bin: merge into levels with fractions at both ends, expand again, add P log(P / Q)."""
    p = [float(c) for c in counts[:kept]]
    p[-1] += float(sum(counts[kept:]))
    q = [0.0] * kept
    length = kept / levels
    for level in range(levels):
        start, end = level * length, (level + 1) * length
        shares = {}
        for k in range(int(start), min(int(end) + 1, kept)):
            share = min(end, k + 1) - max(start, k)
            if share > 0:
                shares[k] = share
        mean = sum(counts[k] * share for k, share in shares.items()) / sum(shares.values())
        for k, share in shares.items():
            q[k] += mean * share
    p_sum, q_sum = sum(p), sum(q)
    result = 0.0
    for a, b in zip(p, q, strict=True):
        if a != 0:
            result += 1.0 if b == 0 else a / p_sum * math.log((a / p_sum) / (b / q_sum))
    return result


def split_threshold(x, bins, levels):
    """The whole search, value by value: the threshold of least divergence, and all divergences."""
    width = float(np.abs(x).max()) / bins
    counts = [1e-7] * bins
    for value in np.abs(x.astype(np.float64)):
        if value != 0:
            counts[min(int(value / width), bins - 1)] += 1
    best, threshold, every = np.inf, levels, {}
    for kept in range(levels, bins):
        every[kept] = split_divergence(counts, kept, levels)
        if every[kept] < best:
            best, threshold = every[kept], kept
    return (threshold + 0.5) * width, every


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("levels", "bins"), [(8, 150), (16, 97), (5, 60)])
def test_split_threshold_is_that_of_the_loops(seed, levels, bins):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(300 * np.exp(-np.arange(bins) / rng.uniform(5, 40))) + 1e-7
    every = [split_divergence(counts, kept, levels) for kept in range(levels, bins)]
    assert best_split_threshold(counts, np.full(bins + 1, levels)) == levels + int(np.argmin(every))


def test_of_equal_split_divergences_the_fewest_bins_win():
    counts = np.full(40, 1e-7)
    counts[:8] = 5.0  # nothing beyond 8 bins: from there on, multiples of 8 bins have no error at all
    assert best_split_threshold(counts, np.full(41, 8)) == 8


@pytest.mark.parametrize("name", ["laplace", "outlier", "relu"])
def test_exact_split_range_is_that_of_the_loops(name):
    x = ARRAYS[name][-1500:]
    clip, _ = split_threshold(x, 512, 128)
    low, high = exact_range(x, SYMMETRIC, KlConfig(num_bins=512, split_bins=True))
    assert max(-low, high) == pytest.approx(clip, rel=1e-12)


@pytest.mark.parametrize("name", ["laplace", "outlier", "relu", "gauss"])
@pytest.mark.parametrize("split", [True, False])
def test_streaming_range_is_near_the_exact_one(name, split):
    config = KlConfig(split_bins=split)
    exact = exact_range(ARRAYS[name], SYMMETRIC, config)
    streaming = find_range(stats_of(ARRAYS[name]), SYMMETRIC, config)
    assert max(-streaming[0], streaming[1]) == pytest.approx(max(-exact[0], exact[1]), rel=0.15)


def test_exact_range_skips_zeros_only():
    x = np.concatenate([ARRAYS["relu"], np.zeros(100_000, np.float32)])
    for config in (KlConfig(), KlConfig(split_bins=True)):
        assert exact_range(x, SYMMETRIC, config) == exact_range(ARRAYS["relu"], SYMMETRIC, config)
        assert exact_range(x[:0:-1], SYMMETRIC, config) == exact_range(x, SYMMETRIC, config)
    assert exact_range(np.zeros(4, np.float32), SYMMETRIC, KlConfig()) == (0.0, 0.0)
    with pytest.raises(CalibrationError, match="finite"):
        exact_range(np.float32([np.nan]), SYMMETRIC, KlConfig())


def test_empty_bins_among_billions_do_not_spoil_the_search():
    counts = np.full(2048, 1e-7)
    counts[:300] += 1e10 * np.exp(-np.arange(300) / 40)
    counts[2047] += 3.0
    found = best_split_threshold(counts, np.full(2049, 128))
    near = {kept: split_divergence(counts, kept, 128) for kept in (128, 256, found, 300, 384, 1024, 2047)}
    assert near[found] == min(near.values())


@pytest.mark.parametrize("values", [16, 17, 5, 40])
@pytest.mark.parametrize("bins", [1024, 2048])
def test_few_values_far_apart_are_all_kept(values: int, bins: int) -> None:
    """The first of them alone, all others clipped to it, diverges from nothing."""
    rng = np.random.default_rng(values)
    x = rng.integers(0, values + 1, 20000).astype(np.float32) / values
    low, high = exact_range(x, QuantSpec(QType.INT8), KlConfig(num_bins=bins))
    assert (low, high) == (0.0, pytest.approx(1.0, abs=2 / bins))
