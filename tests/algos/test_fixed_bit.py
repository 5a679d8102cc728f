"""Codes of a fixed width against a slow reference, element by element, written from the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxq.algos.weight.absmax import AbsMaxConfig
from onnxq.algos.weight.codes import WeightCodes, decode, encode
from onnxq.algos.weight.fixed_bit import find_codes
from onnxq.algos.weight.mean_variance import variance_ratio, with_correction
from onnxq.algos.weight.min_max import params_from_min_max
from onnxq.algos.weight.mse import MseConfig
from onnxq.errors import CalibrationError
from onnxq.spec import PerAxis, PerTensor, QType, QuantSpec

F = np.float32


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_t(3, shape).astype(F)


def spec(bits: int = 8, axis: int | None = 0, *, symmetric: bool = False) -> QuantSpec:
    granularity = PerTensor() if axis is None else PerAxis(axis)
    return QuantSpec(QType.container(max(bits, 2), signed=True), granularity, symmetric, bits)


# ---- the reference ------------------------------------------------------------------------------


def half_away(value: float) -> int:
    return math.floor(abs(value) + 0.5) * (-1 if value < 0 else 1)


def reference_params(low: float, high: float, qmin: int, qmax: int, *, symmetric: bool) -> tuple[np.float32, int]:
    """Scale and zero point of one range; every operation rounds to float32."""
    least, most = F(low), F(high)
    most = max(most, F(least + F(1e-10)))
    if symmetric:
        most = max(abs(least), abs(most))
        least = F(-most)
    least, most = min(least, F(0)), max(most, F(0))
    step = F(F(most - least) / F(qmax - qmin))
    offset = half_away(float(F(-least / step)))
    encoded_low, encoded_high = F(F(-offset) * step), F(F(qmax - qmin - offset) * step)
    scale = F(F(encoded_high - encoded_low) / F(qmax - qmin))
    return scale, half_away(float(F(F(qmin) - F(encoded_low / scale))))


def reference_codes(values: list[float], scale: float, zero_point: int, qmin: int, qmax: int) -> list[int]:
    return [min(max(half_away(v / scale + zero_point), qmin), qmax) for v in values]


def reference_correction(values: list[float], codes: list[int], scale: float, zero_point: int) -> tuple[float, float]:
    """The ratio of the population standard deviations and the mean that is left."""
    decoded = [(q - zero_point) * scale for q in codes]
    mean, decoded_mean = math.fsum(values) / len(values), math.fsum(decoded) / len(decoded)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    decoded_deviation = math.sqrt(math.fsum((v - decoded_mean) ** 2 for v in decoded) / len(decoded))
    ratio = 1.0
    if deviation > 2.2e-16 and decoded_deviation > 2.2e-16 and 0 < deviation / decoded_deviation < 10:
        ratio = deviation / decoded_deviation
    return ratio, mean - decoded_mean * ratio


# ---- from a range to scale and zero point -------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "bounds", "symmetric", "scale", "zero_point"),
    [
        (-5.1, 5.1, (-128, 127), False, 0.04, 0),
        (1.0, 5.0, (-128, 127), False, 5 / 255, -128),
        (-5.0, -1.0, (-128, 127), False, 5 / 255, 127),
        (-0.5, 0.3, (-127, 127), True, 0.5 / 127, 0),
        (-0.3, 0.9, (-8, 7), False, 0.08, -4),
        (0.0, 0.0, (-128, 127), False, 1e-10 / 255, -128),
    ],
)
def test_published_values(
    low: float, high: float, bounds: tuple[int, int], symmetric: bool, scale: float, zero_point: int
) -> None:
    found, point = params_from_min_max(low, high, bounds, symmetric=symmetric)
    assert found == pytest.approx(scale, rel=1e-6)
    assert point == zero_point
    assert (found.dtype, point.dtype) == (np.float32, np.int32)


REALS = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=200, deadline=None)
@given(REALS, REALS, st.integers(1, 16), st.booleans())
@example(0.0, 0.0, 8, True)
def test_ranges_as_in_the_reference(a: float, b: float, bits: int, symmetric: bool) -> None:
    low, high = min(a, b), max(a, b)
    qmin, qmax = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    scale, zero_point = params_from_min_max([low, 0], [high, 1], (qmin, qmax), symmetric=symmetric)
    expected = reference_params(low, high, qmin, qmax, symmetric=symmetric)
    assert (scale[0], zero_point[0]) == expected
    assert qmin <= zero_point[0] <= qmax
    assert scale[0] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3.4e38])
def test_ranges_that_no_scale_fits(bad: float) -> None:
    with pytest.raises(CalibrationError, match="NaN, infinity or numbers too far apart"):
        params_from_min_max(-3.4e38, bad, (-128, 127))


# ---- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 5, 8, 9, 16])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_codes_and_corrections_as_in_the_reference(bits: int, axis: int | None, symmetric: bool) -> None:
    w = noise(5, 6, 7)
    codes = find_codes(w, spec(bits, axis, symmetric=symmetric), AbsMaxConfig())
    found, decoded = encode(w, codes), decode(encode(w, codes), codes)
    assert (codes.bits, codes.axis, codes.low) == (bits, axis, -(1 << (bits - 1)))
    for c in range(1 if axis is None else w.shape[axis]):
        values, got, real = (
            (v if axis is None else np.take(v, c, axis)).reshape(-1).tolist() for v in (w, found, decoded)
        )
        own = () if axis is None else (c,)
        scale, point = reference_params(min(values), max(values), codes.low, codes.high, symmetric=symmetric)
        assert (codes.scale[own], codes.zero_point[own]) == (scale, point)
        assert got == reference_codes(values, float(scale), point, codes.low, codes.high)
        ratio, mean = reference_correction(values, got, float(scale), point)
        assert codes.variance[own] == pytest.approx(ratio, rel=1e-6)
        assert codes.mean[own] == pytest.approx(mean, rel=1e-5, abs=3e-7 * max(map(abs, values)))
        assert np.mean(real) == pytest.approx(np.mean(values), abs=1e-5)
        assert np.std(real) == pytest.approx(np.std(values), rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(F, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=st.floats(-8, 8, width=32)),
    st.integers(2, 16),
    st.booleans(),
)
def test_without_correction_nothing_is_off_by_more_than_a_step(w: NDArray[np.float32], bits: int, tensor: bool) -> None:
    codes = find_codes(w, spec(bits, None if tensor else 0), AbsMaxConfig(), correction=False)
    decoded = decode(encode(w, codes), codes)
    scale = codes.along(codes.scale, w.ndim)
    assert (np.abs(w - decoded) <= scale * 1.001 + 1e-6 * np.abs(w)).all()
    assert (decoded[w == 0] == 0).all()


def test_half_codes_go_away_from_zero() -> None:
    assert encode(np.array([0.5, -0.5, 1.5, -1.5, 2.49, 200, -200], F), _unit()).tolist() == [
        1,
        -1,
        2,
        -2,
        2,
        127,
        -128,
    ]


def _unit() -> WeightCodes:
    one, zero = np.array(1, F), np.array(0, F)
    return WeightCodes(8, -128, None, one, np.array(0, np.int32), one.copy(), zero)


def test_equal_weights_come_back_exactly() -> None:
    w = np.stack([np.full((3, 3), v, F) for v in (0.3, -7.25, 0.0, 1e-12)])
    codes = find_codes(w, spec(), AbsMaxConfig())
    assert codes.variance.tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(decode(encode(w, codes), codes), w, rtol=3e-7)


def test_ratios_that_mean_nothing_are_one() -> None:
    before, after = np.array([1.0, 1.0, 1e-17, 1.0, 9.0]), np.array([0.1, 0.099, 1.0, 0.0, 1.0])
    assert variance_ratio(before, after).tolist() == [1.0, 1.0, 1.0, 1.0, 9.0]
    assert variance_ratio(np.array([1.0]), np.array([0.1001]))[0] == pytest.approx(9.99, rel=1e-3)


def test_pieces_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    w = noise(40, 3, 5)
    for axis in (None, 0, 1, 2):
        for method in (AbsMaxConfig(), MseConfig()):
            whole = find_codes(w, spec(4, axis), method)
            with monkeypatch.context() as patch:
                patch.setattr("onnxq.algos.affine.row_slices.__kwdefaults__", {"elements": 64})
                cut = find_codes(w, spec(4, axis), method)
            assert np.array_equal(whole.scale, cut.scale)
            assert np.array_equal(whole.zero_point, cut.zero_point)
            np.testing.assert_allclose(cut.variance, whole.variance, rtol=2e-7)
            np.testing.assert_allclose(cut.mean, whole.mean, atol=1e-7)


def test_a_memmap_is_as_good_as_an_array(tmp_path) -> None:  # type: ignore[no-untyped-def]
    w = noise(16, 9)
    np.save(tmp_path / "w.npy", w)
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r", allow_pickle=False)
    a, b = find_codes(w, spec(), AbsMaxConfig()), find_codes(mapped, spec(), AbsMaxConfig())
    assert np.array_equal(a.scale, b.scale)
    assert np.array_equal(a.mean, b.mean)
    assert np.array_equal(encode(w, a), encode(mapped, b))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    w = noise(4, 4)
    w[2, 1] = bad
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        find_codes(w, spec(), AbsMaxConfig())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searched_ranges_have_smaller_errors(bits: int) -> None:
    w = noise(8, 400)

    def error(config: AbsMaxConfig | MseConfig) -> NDArray[np.float64]:
        codes = find_codes(w, spec(bits), config, correction=False)
        return np.square(w - decode(encode(w, codes), codes), dtype=np.float64).sum(axis=1)

    assert (error(MseConfig()) < 0.9 * error(AbsMaxConfig())).all()


# ---- one bit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.4, -0.4, 3.0, -3.0])
def test_one_bit_splits_each_channel_at_its_mean(shift: float) -> None:
    w = noise(6, 50) + F(shift)
    codes = find_codes(w, spec(1), AbsMaxConfig())
    values = encode(w, codes)
    assert set(np.unique(values)) == {-1, 0}
    assert (codes.bits, codes.low, codes.high) == (1, -1, 0)
    mean = w.mean(axis=1, keepdims=True, dtype=np.float64)
    clear = np.abs(w - mean) > 1e-3
    assert np.array_equal(values[clear], np.broadcast_to(np.where(w > mean, 0, -1), w.shape)[clear])
    decoded = decode(values, codes)
    np.testing.assert_allclose(decoded.mean(axis=1), mean[:, 0], atol=2e-5)
    np.testing.assert_allclose(decoded.std(axis=1), w.std(axis=1), rtol=1e-3)


def test_one_bit_of_equal_weights() -> None:
    w = np.stack([np.full(9, v, F) for v in (0.0, 0.7, -0.7)])
    codes = find_codes(w, spec(1), AbsMaxConfig())
    np.testing.assert_allclose(decode(encode(w, codes), codes), w, atol=1e-6)


def test_one_bit_without_correction_is_the_plain_definition() -> None:
    codes = find_codes(np.array([[-3.0, 1.0, 0.5]], F), spec(1), AbsMaxConfig(), correction=False)
    scale, point = reference_params(-3.0, 1.0, -1, 0, symmetric=False)
    assert (codes.scale[0], codes.zero_point[0]) == (scale, point)


def test_correction_looks_at_codes_only() -> None:
    """Numbers it finds do not depend on those that were there before."""
    w = noise(3, 20)
    plain = find_codes(w, spec(4), AbsMaxConfig(), correction=False)
    once = with_correction(w, plain)
    assert np.array_equal(with_correction(w, once).mean, once.mean)
