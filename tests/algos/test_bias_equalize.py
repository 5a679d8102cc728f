"""Bias codes and equalization factors: the identities they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.algos.bias_correct import LIMIT, correction, quantize_bias
from onnxq.algos.equalize import depthwise_equalization_scales, equalization_scales
from onnxq.errors import CalibrationError

POSITIVE = st.floats(2.0**-20, 2.0**20, width=32)
RANGES = hnp.arrays(np.float64, 6, elements=st.one_of(st.just(0.0), st.floats(1e-3, 1e3)))


@given(hnp.arrays(np.float32, 5, elements=st.floats(-100, 100, width=32)), POSITIVE, POSITIVE)
def test_bias_codes_are_the_nearest(bias, x_scale, w_scale):
    found = quantize_bias(bias, x_scale, np.full(5, w_scale, np.float32))
    scale = found.scale.astype(np.float64)
    np.testing.assert_array_equal(found.scale, np.float32(x_scale) * found.w_scale)
    assert (np.abs(found.codes * scale - bias) <= scale * 0.5000001).all()
    assert np.abs(found.codes.astype(np.int64)).max() <= LIMIT
    kept = ~found.enlarged
    np.testing.assert_array_equal(found.w_scale[kept], np.float32(w_scale))
    assert (found.w_scale[found.enlarged] > np.float32(w_scale)).all()


def test_overflow_enlarges_only_the_channels_in_need():
    bias = np.array([1.0, 5.0, -2.0, 0.0], np.float32)
    w_scale = np.array([0.01, 1e-9, 1e-9, 1e-9], np.float32)
    found = quantize_bias(bias, 0.1, w_scale)
    assert found.enlarged.tolist() == [False, True, True, False]
    np.testing.assert_allclose(found.w_scale[1:3], [50 / 2**30, 20 / 2**30], rtol=1e-5)
    assert found.w_scale[0] == w_scale[0]
    assert found.w_scale[3] == w_scale[3]
    assert abs(int(found.codes[1])) == pytest.approx(2**30, rel=1e-5)
    assert found.codes.dtype == np.int32
    np.testing.assert_allclose(found.codes * found.scale.astype(np.float64), bias, rtol=1e-6)


def test_no_rounding_lifts_a_code_over_the_limit():
    bias = np.random.default_rng(0).standard_normal(2000)
    for w_scale in (np.full(2000, 1e-12, np.float32), np.float32(1e-12)):
        found = quantize_bias(bias, 0.0123, w_scale)
        assert found.enlarged.all()
        assert LIMIT * 0.99999 < np.abs(found.codes).max() <= LIMIT


def test_one_weight_scale_grows_for_all():
    found = quantize_bias(np.array([1.0, 100.0]), 1e-4, np.float32(1e-8))
    assert found.enlarged.tolist() == [True, True]
    assert found.w_scale.shape == ()
    assert found.w_scale == pytest.approx(100 / 1e-4 / 2**30, rel=1e-5)
    assert found.scale.shape == (2,)
    same = quantize_bias(np.array([1.0, 2.0]), 0.5, np.float32(0.25))
    assert same.codes.tolist() == [8, 16]
    assert not same.enlarged.any()
    assert same.w_scale == np.float32(0.25)


def test_bias_ties_go_to_even():
    found = quantize_bias(np.array([0.5, 1.5, 2.5, -0.5, -1.5]), 1.0, np.float32(1.0))
    assert found.codes.tolist() == [0, 2, 2, 0, -2]


def test_full_int32_range_on_request():
    bias = np.array([2.0**31 - 1, -(2.0**31)])
    found = quantize_bias(bias, 1.0, np.ones(2, np.float32), limit=2**31 - 1)
    assert found.enlarged.tolist() == [False, True]
    assert found.codes[0] == 2**31 - 1
    assert found.codes[1] <= -(2**31) * 0.999


def test_bias_refusals():
    one = np.ones(2, np.float32)
    with pytest.raises(CalibrationError, match="bias holds NaN"):
        quantize_bias(np.array([1.0, np.inf]), 1.0, one)
    with pytest.raises(CalibrationError, match="does not fit weight scales of shape"):
        quantize_bias(np.ones(3), 1.0, one)
    with pytest.raises(CalibrationError, match="finite and > 0"):
        quantize_bias(one, 0.0, one)
    with pytest.raises(CalibrationError, match="finite and > 0"):
        quantize_bias(one, 1.0, np.array([1.0, np.nan], np.float32))
    with pytest.raises(CalibrationError, match="leaves float32"):
        quantize_bias(np.zeros(2), 1e-30, one * np.float32(1e-30))
    with pytest.raises(ValueError, match="within int32"):
        quantize_bias(one, 1.0, one, limit=2**31)


def test_correction_restores_the_mean():
    expected, found = np.array([1.0, -2.0]), np.array([1.5, -2.25])
    delta = correction(expected, found)
    assert delta.tolist() == [-0.5, 0.25]
    assert delta.dtype == np.float32
    with pytest.raises(CalibrationError, match="cannot be compared"):
        correction(np.ones(2), np.ones(3))
    with pytest.raises(CalibrationError, match="check the calibration data"):
        correction(np.array([np.nan]), np.ones(1))


@given(RANGES, RANGES)
def test_two_layers_get_the_geometric_mean(r1, r2):
    s = equalization_scales(r1, r2)
    alive = (r1 > 0) & (r2 > 0)
    assert (s[~alive] == 1).all()
    np.testing.assert_allclose((r1 / s)[alive], np.sqrt(r1 * r2)[alive])
    np.testing.assert_allclose((r2 * s)[alive], np.sqrt(r1 * r2)[alive])
    np.testing.assert_allclose(s[alive], (np.sqrt(r1 * r2) / np.where(alive, r2, 1))[alive])


@given(RANGES, RANGES, RANGES)
def test_three_layers_get_the_geometric_mean(r1, r2, r3):
    s12, s23 = depthwise_equalization_scales(r1, r2, r3)
    alive = (r1 > 0) & (r2 > 0) & (r3 > 0)
    assert (s12[~alive] == 1).all()
    assert (s23[~alive] == 1).all()
    mean = np.cbrt(r1 * r2 * r3)[alive]
    for found in (r1 / s12, r2 * s12 / s23, r3 * s23):
        np.testing.assert_allclose(found[alive], mean)


def test_equalization_keeps_the_function():
    rng = np.random.default_rng(0)
    w1, b1, w2, x = (rng.standard_normal(s) for s in ((8, 5), 8, (3, 8), (5, 40)))
    w1[4] = 0
    s = equalization_scales(np.abs(w1).max(axis=1), np.abs(w2).max(axis=0))
    plain = w2 @ np.maximum(w1 @ x + b1[:, None], 0)
    scaled = (w2 * s) @ np.maximum((w1 / s[:, None]) @ x + (b1 / s)[:, None], 0)
    np.testing.assert_allclose(scaled, plain, rtol=1e-12, atol=1e-12)


def test_factors_are_clamped_and_ranges_checked():
    assert equalization_scales([1e9, 1e-9], [1e-9, 1e9], limit=100).tolist() == [100, 0.01]
    s12, s23 = depthwise_equalization_scales([1e30], [1.0], [1e-30], limit=50)
    assert (s12.tolist(), s23.tolist()) == ([50], [50])
    tiny, _ = depthwise_equalization_scales([1e-150], [1e-150], [1e-150])
    assert tiny == pytest.approx(1)
    with pytest.raises(CalibrationError, match="do not belong together"):
        equalization_scales([1.0], [1.0, 2.0])
    with pytest.raises(CalibrationError, match="negative, NaN"):
        equalization_scales([-1.0], [1.0])
