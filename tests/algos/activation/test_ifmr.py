"""IFMR against the published procedure, spelled out on the values."""

import numpy as np
import pytest

from onnxq.algos.activation.ifmr import IfmrConfig, exact_range, find_range
from onnxq.algos.affine import params_from_range
from onnxq.errors import CalibrationError
from onnxq.spec import QType, QuantSpec
from tests.algos.activation.samples import ARRAYS, squared_error, stats_of

ASYM = QuantSpec(QType.INT8, symmetric=False)
SYM = QuantSpec(QType.INT8)


def reference(x, bits, symmetric, p_max=0.999999, p_min=0.999999, start=0.7, end=1.3, step=0.01):
    """The five steps; returns (clip_min, clip_max, scale, offset, every error)."""
    data = np.sort(x.astype(np.float64))
    n = data.size
    k_max = 1 if p_max == 1 else n - int(p_max * n)
    k_min = 1 if p_min == 1 else n - int(p_min * n)
    top, bottom = max(data[-k_max], 0), min(data[k_min - 1], 0)
    steps, half = 2**bits - 1, 2 ** (bits - 1)
    results = []
    for i in range(round((end - start) / step)):
        ratio = start + i * step
        if symmetric:
            clip = ratio * max(abs(top), abs(bottom))
            scale = clip / (half if abs(top) < abs(bottom) else half - 1)
            approximation = np.round(np.clip(data, -clip, clip) / scale) * scale
            offset = 0
        else:
            clip = ratio * top
            scale = (clip - bottom) / steps
            approximation = np.round(np.clip(data, bottom, clip) / scale) * scale
            offset = -np.round(bottom / scale) - half
        results.append((np.mean((approximation - data) ** 2), scale, offset))
    _, scale, offset = min(results, key=lambda r: r[0])
    return -(half + offset) * scale, (half - 1 - offset) * scale, scale, offset, [r[0] for r in results]


CASES = ["gauss", "relu", "laplace", "shifted", "outlier", "hardswish", "relu6", "tiny"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("percentile", [1, 0.999999, 0.999, 0.9])
def test_exact_asymmetric(name, bits, percentile):
    x = ARRAYS[name]
    spec = QuantSpec(QType.INT8, symmetric=False, bits=bits)
    low, high, scale, offset, _ = reference(x, bits, symmetric=False, p_max=percentile, p_min=percentile)
    found = exact_range(x, spec, IfmrConfig(max_percentile=percentile, min_percentile=percentile))
    np.testing.assert_allclose(found, (low, high), rtol=1e-9)
    params = params_from_range(*found, spec)
    assert params.scale == np.float32(scale)
    assert params.zero_point == offset


@pytest.mark.parametrize("name", [*CASES, "negative"])
@pytest.mark.parametrize("bits", [4, 8])
def test_exact_symmetric(name, bits):
    x = ARRAYS[name]
    spec = QuantSpec(QType.INT8, bits=bits)
    _, _, scale, _, _ = reference(x, bits, symmetric=True)
    params = params_from_range(*exact_range(x, spec, IfmrConfig()), spec, full_range=True)
    assert params.scale == np.float32(scale)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_histogram_finds_what_the_values_find(name, symmetric, bits):
    x = ARRAYS[name]
    spec = QuantSpec(QType.INT8, symmetric=symmetric, bits=bits)
    *_, errors = reference(x, bits, symmetric)
    _, high, *_ = reference(x, bits, symmetric)
    found = find_range(stats_of(x), spec, IfmrConfig())
    top = max(x.max(), -x.min()) if symmetric else x.max()
    reached = max(-found[0], found[1]) if symmetric else found[1]
    if not symmetric:
        low_level = round(found[0] / ((found[1] - found[0]) / (2**bits - 1)))
        scale = (found[1] - found[0]) / (2**bits - 1)
        reached = scale * (2**bits - 1) + x.astype(np.float64).clip(max=0).min()
        assert low_level <= 0
    index = round((float(reached) / float(top) - 0.7) / 0.01)
    assert errors[index] <= min(errors) * 1.02
    assert high >= 0


@pytest.mark.parametrize("percentile", [0.999, 0.9])
@pytest.mark.parametrize("name", ["gauss", "relu", "laplace"])
def test_histogram_starts_at_the_percentile(name, percentile):
    """One ratio only, so the range is the percentile itself."""
    x = ARRAYS[name]
    config = IfmrConfig(percentile, percentile, search_start=1.0, search_end=1.01)
    width = stats_of(x).histogram.width
    np.testing.assert_allclose(find_range(stats_of(x), ASYM, config), exact_range(x, ASYM, config), atol=3 * width)
    low, high, *_ = reference(x, 8, False, percentile, percentile, 1.0, 1.01)
    np.testing.assert_allclose(exact_range(x, ASYM, config), (low, high))


def test_multi_batch_is_concatenation():
    a, b = ARRAYS["gauss"], ARRAYS["outlier"]
    merged = stats_of(a).merge(stats_of(b))
    assert find_range(merged, ASYM, IfmrConfig()) == find_range(stats_of(np.concatenate([a, b])), ASYM, IfmrConfig())


def test_two_sided_search_is_at_least_as_good():
    for name in ("gauss", "laplace", "hardswish", "negative"):
        x = ARRAYS[name]
        one = find_range(stats_of(x), ASYM, IfmrConfig())
        two = find_range(stats_of(x), ASYM, IfmrConfig(two_sided=True))
        assert squared_error(x, *two, ASYM) <= squared_error(x, *one, ASYM) * 1.01
    asymmetric = find_range(stats_of(ARRAYS["laplace"]), ASYM, IfmrConfig(two_sided=True))
    assert asymmetric[0] > ARRAYS["laplace"].min()
    assert find_range(stats_of(ARRAYS["laplace"]), ASYM, IfmrConfig())[0] == pytest.approx(
        float(ARRAYS["laplace"].min()), abs=0.1
    )


def test_negative_dominated_symmetric_data_use_the_lowest_code():
    x = -np.abs(ARRAYS["gauss"])
    found = find_range(stats_of(x), SYM, IfmrConfig())
    assert params_from_range(*found, SYM, full_range=True).scale == np.float32(-found[0] / 128)


def test_ratios():
    ratios = IfmrConfig().ratios()
    assert ratios.size == 60
    np.testing.assert_allclose(ratios[[0, 30, 59]], [0.7, 1.0, 1.29])


def test_exact_refuses_what_it_cannot_use():
    with pytest.raises(CalibrationError, match="finite"):
        exact_range(np.array([1.0, np.nan]), SYM, IfmrConfig())
    with pytest.raises(CalibrationError, match="at least one value"):
        exact_range(np.array([]), SYM, IfmrConfig())
