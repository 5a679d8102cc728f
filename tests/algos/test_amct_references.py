"""ARQ, IFMR and HFMG against slow programs that do what AMCT's published behaviour says, value by value.

Complements the tests of each method: other widths, percentile ranks, ties, float32 arithmetic, many batches.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.algos import weight as weights
from onnxq.algos.activation import hfmg, ifmr
from onnxq.algos.activation.hfmg import HfmgConfig, HfmgExact
from onnxq.algos.activation.ifmr import IfmrConfig, exact_range
from onnxq.algos.affine import params_from_range
from onnxq.algos.weight.absmax import AbsMaxConfig
from onnxq.spec import PerAxis, PerTensor, QType, QuantSpec
from onnxq.stats import TensorStats

F32 = np.float32


def spec_of(bits: int, *, symmetric: bool) -> QuantSpec:
    return QuantSpec(QType.INT16 if bits > 8 else QType.INT8, symmetric=symmetric, bits=bits)


# ---- number format and ARQ --------------------------------------------------------------------


def number_format(low: float, high: float, bits: int, *, symmetric: bool) -> tuple[np.float32, int]:
    """Scale and offset of a range."""
    half = 2 ** (bits - 1)
    if symmetric:
        scale = abs(high) / (half - 1) if abs(high) >= abs(low) else abs(low) / half
        return F32(scale or 1.0), 0
    high, low = max(high, 0.0), min(low, 0.0)
    scale = F32((high - low) / (2**bits - 1))
    if scale == 0:
        return F32(1), -half
    return scale, round(-half - low / float(scale))


@settings(max_examples=300, deadline=None)
@given(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32), st.sampled_from([6, 7, 8, 16]), st.booleans())
def test_number_format(a, b, bits, symmetric):
    low, high = min(a, b), max(a, b)
    if 0 < max(abs(low), abs(high)) < 1e-3:
        return  # AMCT takes scales below 1.2e-7 for zero, onnxq does not
    scale, offset = number_format(min(low, 0.0), max(high, 0.0), bits, symmetric=symmetric)
    params = params_from_range(low, high, spec_of(bits, symmetric=symmetric), full_range=True)
    assert params.scale == scale
    assert params.zero_point == offset


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(F32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-8, 8, width=32)),
    st.sampled_from([4, 6, 7, 8]),
    st.booleans(),
)
def test_arq(w, bits, channel_wise):
    """Each number by itself, in float32: the division, the rounding to even, the limits."""
    w[np.abs(w) < 1e-3] = 0
    half = 2 ** (bits - 1)
    granularity = PerAxis(0) if channel_wise else PerTensor()
    params = weights.find_params(w, QuantSpec(QType.INT8, granularity, bits=bits), AbsMaxConfig(full_range=True))
    codes = weights.quantize_weight(w, params)
    assert (params.zero_point == 0).all()
    parts = enumerate(w) if channel_wise else [((), w)]
    for index, part in parts:
        scale, _ = number_format(float(part.min(initial=0)), float(part.max(initial=0)), bits, symmetric=True)
        assert params.scale[index] == scale
        for value, code in zip(part.reshape(-1), codes[index].reshape(-1), strict=True):
            assert code == min(max(round(float(F32(value) / scale)), -half), half - 1)


# ---- IFMR -------------------------------------------------------------------------------------


def ifmr_candidates(x, bits, *, symmetric, p_max, p_min, dtype=np.float64):
    """Every candidate with its mean squared error: (error, scale, offset), 60 of them, ascending ratio."""
    data, half = x.astype(dtype).reshape(-1), 2 ** (bits - 1)
    ascending, count = sorted(float(v) for v in data), data.size
    k_max = 1 if p_max == 1 else count - int(p_max * count)
    k_min = 1 if p_min == 1 else count - int(p_min * count)
    top, bottom = max(ascending[count - k_max], 0.0), min(ascending[k_min - 1], 0.0)
    found = []
    for step in range(60):
        ratio = 0.7 + 0.01 * step
        if symmetric:
            limit = dtype(ratio * max(abs(top), abs(bottom)))
            scale = limit / dtype(half if abs(top) < abs(bottom) else half - 1)
            low, high, offset = -limit, limit, 0
        else:
            low, high = dtype(bottom), dtype(ratio * top)
            scale = (high - low) / dtype(2**bits - 1)
            offset = -np.round(bottom / float(scale)) - half if scale else -half
        if scale == 0:
            return [(0.0, 1.0, offset)]
        rounded = np.round(np.clip(data, low, high) / scale) * scale
        found.append((float(np.mean(np.square(rounded - data))), float(scale), int(offset)))
    return found


SMALL = hnp.arrays(F32, st.integers(1, 40), elements=st.floats(-20, 20, width=32))


@settings(max_examples=80, deadline=None)
@given(
    SMALL, st.sampled_from([4, 8, 16]), st.booleans(), st.sampled_from([1, 0.999999, 0.95, 0.8, 0.51]),
    st.sampled_from([1, 0.9, 0.7]),
)  # fmt: skip
def test_ifmr_is_the_first_best_of_sixty(x, bits, symmetric, p_max, p_min):
    x[np.abs(x) < 1e-2] = 0
    candidates = ifmr_candidates(x, bits, symmetric=symmetric, p_max=p_max, p_min=p_min)
    found = exact_range(x, spec_of(bits, symmetric=symmetric), IfmrConfig(max_percentile=p_max, min_percentile=p_min))
    params = params_from_range(*found, spec_of(bits, symmetric=symmetric), full_range=True)
    least = min(error for error, *_ in candidates)
    near = [c for c in candidates if c[0] <= least * (1 + 1e-6) + 1e-15]  # the order of the sums may break a tie
    matching = [c for c in near if math.isclose(c[1], float(params.scale), rel_tol=1e-6)]
    assert matching
    if len(near) == 1:
        assert params.zero_point == near[0][2]


def test_ifmr_symmetric_ends_agree_to_the_last_bit():
    """A lower end wider by rounding only would take the lowest code into use, and cut an eighth of the range off."""
    x = np.zeros(21, F32)
    x[:2] = 3, 4
    spec = spec_of(4, symmetric=True)
    found = exact_range(x, spec, IfmrConfig(max_percentile=0.95, min_percentile=1))
    assert found[0] == -found[1]
    assert params_from_range(*found, spec, full_range=True).scale == F32(1.29 * 3 / 7)
    for seed in range(60):
        data = np.random.default_rng(seed).exponential(size=50).astype(F32)
        for bits in (4, 8, 16):
            low, high = exact_range(data, spec_of(bits, symmetric=True), IfmrConfig())
            assert low == -high


def test_ifmr_takes_the_first_of_equal_candidates():
    def equal(scale, lowest, highest):
        return np.zeros(scale.shape)

    for symmetric, expected in ((True, 0.7 * 5), (False, 0.7 * 5)):
        found = ifmr._search(-2.0, 5.0, equal, spec_of(8, symmetric=symmetric), IfmrConfig())
        assert found[1] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
def test_ifmr_in_float32_finds_the_same(symmetric, bits):
    """AMCT computes in float32. Its choice differs by rounding errors of the sums only."""
    rng = np.random.default_rng(1)
    for x in (rng.normal(size=5000), rng.exponential(size=5000), -rng.exponential(size=5000)):
        x = x.astype(F32)
        single = ifmr_candidates(x, bits, symmetric=symmetric, p_max=0.999999, p_min=0.999999, dtype=F32)
        double = ifmr_candidates(x, bits, symmetric=symmetric, p_max=0.999999, p_min=0.999999)
        theirs = double[int(np.argmin([c[0] for c in single]))][0]
        spec = spec_of(bits, symmetric=symmetric)
        params = params_from_range(*exact_range(x, spec, IfmrConfig()), spec, full_range=True)
        ours = min(double, key=lambda c: abs(c[1] - float(params.scale)))[0]
        assert ours == min(c[0] for c in double)
        assert theirs <= ours * 1.02


def test_ifmr_ranks_count_from_the_outer_end():
    """With three million values 0.999999 leaves out two at each end, with fewer than a million none."""
    one = {"search_start": 1.0, "search_end": 1.01}
    spec = spec_of(8, symmetric=False)
    for count, left_out in ((3_000_000, 2), (2_000_000, 1), (900_000, 0), (10, 0)):
        x = np.zeros(count, F32)
        x[:4], x[-4:] = [-9, -7, -5, -3], [4, 6, 8, 10]
        expected = ([-9, -7, -5][left_out], [10, 8, 6][left_out])
        low, high = exact_range(x, spec, IfmrConfig(**one))
        assert high - low == pytest.approx(expected[1] - expected[0])
        low, high = ifmr.find_range(TensorStats.from_array(x), spec, IfmrConfig(**one))
        assert high - low == pytest.approx(expected[1] - expected[0], rel=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_ifmr_of_sixteen_bits_on_a_histogram(symmetric):
    """At 16 bits clipping costs more than the steps: the search ends near ratio 1, on values and on the histogram."""
    x = np.random.default_rng(0).normal(size=20000).astype(F32)
    spec = spec_of(16, symmetric=symmetric)
    exact, streamed = exact_range(x, spec, IfmrConfig()), ifmr.find_range(TensorStats.from_array(x), spec, IfmrConfig())
    np.testing.assert_allclose(streamed, exact, rtol=0.03)
    assert max(exact) >= 0.97 * float(x.max())


# ---- HFMG -------------------------------------------------------------------------------------


def hfmg_loss(counts, left, right, width, levels):
    """Squared distance to the centres of `levels` cells, one source bin after the other."""
    cell = width * (right - left + 1) / levels
    if cell < np.finfo(F32).eps:
        return 0.0
    total = 0.0
    for i in np.flatnonzero(counts):
        begin, end = (i - left) * width, (i - left + 1) * width
        first, last = (min(max(math.floor(t / cell), 0), levels - 1) for t in (begin, end))
        for d in range(first, last + 1):
            a, b = (begin if d == first else d * cell), (end if d == last else (d + 1) * cell)
            middle = (d + 0.5) * cell
            total += ((b - middle) ** 3 - (a - middle) ** 3) / 3 * counts[i] / width
    return total


def hfmg_candidates(counts, levels, width):
    """Every committed pair of the greedy shrink with its loss."""
    bins, total = len(counts), int(sum(counts))
    step = max(math.ceil(total / 100000), 1)
    left, right, found = 0, bins - 1, []
    while right - left > math.ceil(bins / 4):
        inner_left, dropped = left, 0
        while dropped < step and inner_left < right:
            dropped += counts[inner_left]
            inner_left += 1
        inner_right, dropped = right, 0
        while dropped < step and inner_right > left:
            dropped += counts[inner_right]
            inner_right -= 1
        if inner_left - left > right - inner_right:  # the side that drops more bins; the right one of equals
            left = inner_left
        else:
            right = inner_right
        found.append((hfmg_loss(counts, left, right, width, levels), left, right))
    return found


def assert_best(exact, bits):
    width = (exact.high - exact.low) / exact.counts.size
    candidates = hfmg_candidates(exact.counts, 2**bits, width)
    low, high = exact.find_range(spec_of(bits, symmetric=False))
    left, right = round((low - exact.low) / width), round((high - exact.low) / width) - 1
    losses = {(a, b): loss for loss, a, b in candidates}
    assert (0, exact.counts.size - 1) not in losses
    assert losses[left, right] == pytest.approx(min(losses.values()), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("kind", ["symmetric", "steep", "gaps", "two peaks"])
@pytest.mark.parametrize("total", [3_000, 450_000])
@pytest.mark.parametrize("bits", [2, 8])
def test_hfmg_shrinks_greedily(kind, total, bits):
    """With more than 100,000 values several are dropped at a time; equal sides shrink on the right."""
    t = np.linspace(-1, 1, 256)
    shape = {
        "symmetric": np.ones(256),
        "steep": np.exp(-20 * (t + 1)),
        "gaps": np.where(np.arange(256) % 37 < 3, np.exp(-8 * t * t), 0),
        "two peaks": np.exp(-90 * (t + 0.8) ** 2) + 0.3 * np.exp(-400 * (t - 0.7) ** 2),
    }[kind]
    counts = np.floor(shape / shape.sum() * total).astype(np.int64)
    assert_best(HfmgExact(HfmgConfig(1024), -0.5, 3.0, counts), bits)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_hfmg_of_any_counts(seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.exponential(2, 256) * np.exp(-rng.uniform(0, 30) * np.linspace(0, 1, 256)))
    assert_best(HfmgExact(HfmgConfig(1024), -1.0, 1.0, counts.astype(np.int64) + (np.arange(256) == 3)), 4)


def merged(batches, bins):
    """The published merge, in exact fractions of bins where they matter."""
    low, high = float(batches[0].min()), float(batches[0].max())
    counts = np.histogram(batches[0].astype(np.float64), bins, (low, high))[0].tolist()
    for batch in batches[1:]:
        new_low, new_high = min(low, float(batch.min())), max(high, float(batch.max()))
        fresh = np.histogram(batch.astype(np.float64), bins, (new_low, new_high))[0].tolist()
        width, old = (new_high - new_low) / bins, (high - low) / bins
        for i, count in enumerate(counts):
            begin, end = low + i * old - new_low, low + (i + 1) * old - new_low
            first, last = (min(int(t / width), bins - 1) for t in (begin, end))
            share = 1.0 if first == last else ((first + 1) * width - begin) / (end - begin)
            lower = count if first == last else int(count * share)
            fresh[first] += lower
            fresh[last] += count - lower
        low, high, counts = new_low, new_high, fresh
    return low, high, counts


@pytest.mark.parametrize("bins", [1024, 8192])
@pytest.mark.parametrize("seed", range(3))
def test_hfmg_merges_many_batches_bin_by_bin(bins, seed):
    rng = np.random.default_rng(seed)
    batches = [(rng.normal(size=600) * grow).astype(F32) for grow in (1.0, 0.5, 1.7, 2.0, 1.1, 3.0)]
    exact = HfmgExact.from_array(batches[0], HfmgConfig(bins))
    for batch in batches[1:]:
        exact = exact.merge_batch(batch)
    low, high, counts = merged(batches, bins)
    assert (exact.low, exact.high) == (low, high)
    np.testing.assert_array_equal(exact.counts, counts)
    assert exact.counts.sum() == 3600


def test_hfmg_streamed_is_as_good_whatever_the_batches():
    """The streaming form does not depend on the batches; its range is as good as that of the published merge."""
    rng = np.random.default_rng(3)
    x = (rng.standard_t(5, 40_000) * 2).astype(F32)
    spec, config = spec_of(8, symmetric=False), HfmgConfig(2048)
    whole = TensorStats.from_array(x)
    ranges = set()
    for parts in (1, 4, 7):
        batches = np.array_split(x, parts)
        stats, exact = TensorStats.from_array(batches[0]), HfmgExact.from_array(batches[0], config)
        for batch in batches[1:]:
            stats, exact = stats.merge(TensorStats.from_array(batch)), exact.merge_batch(batch)
        ranges.add(hfmg.find_range(stats, spec, config))
        published = exact.find_range(spec)
        streamed = hfmg.find_range(whole, spec, config)
        assert mean_squared_error(x, streamed, spec) <= 1.03 * mean_squared_error(x, published, spec)
    assert len(ranges) == 1


def mean_squared_error(x, bounds, spec):
    scale, offset = number_format(*bounds, spec.bits, symmetric=False)
    codes = np.clip(np.round(x / scale) + offset, -128, 127)
    return float(np.mean(np.square((codes - offset) * float(scale) - x)))
