"""NUQ against exhaustive search, k-means and the loss computed weight by weight."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.algos import weight as weights
from onnxq.algos.affine import dequantize, params_from_range, quantize
from onnxq.algos.weight.absmax import AbsMaxConfig
from onnxq.algos.weight.nuq import NuqConfig, _best_centres, _moments, choose_centres, find_params
from onnxq.errors import CalibrationError, RecipeError
from onnxq.spec import PerAxis, PerBlock, PerTensor, QType, QuantParams, QuantSpec

INT8 = QuantSpec(QType.INT8, PerAxis(0))
GRANULARITIES = [PerTensor(), PerAxis(0), PerAxis(1), PerBlock(1, 4), PerBlock(0, 5)]


def noise(shape=(12, 11, 3), seed=0):
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


def spread_scale(shape, params):
    """The scale of each weight, shape of the weight."""
    ones = QuantParams(params.spec, params.scale, params.zero_point)
    return dequantize(np.ones(shape, np.int8), ones).astype(np.float64)


def loss(w, params, centres):
    """Squared error if every weight goes to the nearest centre, weight by weight and in float64."""
    scale = spread_scale(w.shape, params)
    wide = w.astype(np.float64)
    each = [np.square(wide - c * scale) for c in np.asarray(centres, np.float64)]
    return float(np.minimum.reduce(each).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([(-4, 3), (-3, 3), (-5, 4)]))
def test_centres_are_those_of_exhaustive_search(seed, count, bounds):
    """Small codes: all subsets are tried. Weights beyond the codes are among them."""
    rng = np.random.default_rng(seed)
    bits, narrow = {-4: (3, False), -3: (3, True), -5: (8, False)}[bounds[0]]
    w = (rng.normal(size=(3, 7)) * rng.uniform(0.5, 4, (3, 1))).astype(np.float32)
    scale = rng.uniform(0.3, 1.5, 3).astype(np.float32)
    spec = QuantSpec(QType.INT8, PerAxis(0), bits=bits, narrow=narrow)
    params = QuantParams(spec, scale, np.zeros(3, np.int32))
    sums = _moments(w, params)
    low, high = spec.bounds
    if bits == 8:  # fold everything outside a small window into its ends
        first, last = 2 * (bounds[0] - low), 2 * (bounds[1] - low) + 2
        inner = sums[:, first:last].copy()
        inner[:, 0] += sums[:, :first].sum(axis=1)
        inner[:, -1] += sums[:, last:].sum(axis=1)
        sums, (low, high) = inner, bounds
    found = _best_centres(sums, (low, high), count)
    every = [loss(w, params, subset) for subset in itertools.combinations(range(low, high + 1), count)]
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == count
    assert loss(w, params, found) == pytest.approx(min(every), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("steps", [16, 32])
def test_codes_are_the_nearest_centres(granularity, steps):
    w = noise()
    spec = QuantSpec(QType.INT8, granularity)
    params = find_params(w, spec, NuqConfig(steps))
    codes, centres = choose_centres(w, params, NuqConfig(steps))
    assert codes.dtype == centres.dtype == np.int8
    assert codes.shape == w.shape
    assert centres.shape == (steps,)
    assert (np.diff(centres.astype(int)) > 0).all()
    levels = w.astype(np.float64) / spread_scale(w.shape, params)
    gap = np.abs(levels[..., None] - centres.astype(np.float64))
    np.testing.assert_array_equal(codes, centres[gap.argmin(axis=-1)])
    error = np.square(dequantize(codes, params).astype(np.float64) - w).sum()
    assert error == pytest.approx(loss(w, params, centres), rel=1e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("seed", range(3))
def test_k_means_and_single_moves_are_never_better(granularity, seed):
    w = noise((9, 13), seed)
    spec = QuantSpec(QType.INT8, granularity)
    params = weights.find_params(w, spec, AbsMaxConfig(full_range=True))
    _, centres = choose_centres(w, params, NuqConfig(16))
    best = loss(w, params, centres)
    for start in range(5):
        assert best <= loss(w, params, k_means(w, params, 16, start)) * (1 + 1e-9)
    for i in range(16):
        for other in range(-128, 128):
            if other not in centres:
                moved = [*np.delete(centres.astype(int), i).tolist(), other]
                assert best <= loss(w, params, moved) * (1 + 1e-9)


def k_means(w, params, count, seed):
    """Lloyd's iteration from random centres, rounded to integers at the end."""
    scale = spread_scale(w.shape, params).reshape(-1)
    levels, mass = w.reshape(-1).astype(np.float64) / scale, scale * scale
    centres = np.sort(np.random.default_rng(seed).choice(levels, count, replace=False))
    for _ in range(30):
        nearest = np.abs(levels[:, None] - centres).argmin(axis=1)
        for k in range(count):
            own = nearest == k
            if own.any():
                centres[k] = (levels[own] * mass[own]).sum() / mass[own].sum()
    return np.clip(np.rint(centres), -128, 127)


def test_thousands_of_values_on_few_levels_are_kept_exactly():
    """A weight that has 16 levels already loses nothing."""
    rng = np.random.default_rng(0)
    levels = [*np.sort(rng.choice(np.arange(-127, 127), 15, replace=False)).tolist(), 127]
    q = rng.choice(levels, (8, 500))
    q[:, 0] = 127
    w = (q * 0.01).astype(np.float32)
    params = find_params(w, INT8, NuqConfig(16, 3))
    codes, centres = choose_centres(w, params, NuqConfig(16))
    np.testing.assert_array_equal(codes, q)
    assert set(np.unique(q)) <= set(centres.tolist())
    again = quantize(dequantize(codes, params), params)
    np.testing.assert_array_equal(again, q)


def test_rounding_the_result_again_gives_the_same_codes():
    """So a weight may be replaced by centre times scale, and nobody needs to know."""
    w = noise((16, 40))
    params = find_params(w, INT8, NuqConfig())
    codes, _ = choose_centres(w, params, NuqConfig())
    np.testing.assert_array_equal(quantize(dequantize(codes, params), params), codes)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_iterations_never_lose(granularity):
    spec = QuantSpec(QType.INT8, granularity)
    for seed in range(4):
        w = noise((10, 12, 3), seed)
        errors = []
        for rounds in range(6):
            params = find_params(w, spec, NuqConfig(16, rounds))
            errors.append(loss(w, params, choose_centres(w, params, NuqConfig(16))[1]))
        assert errors[1] < errors[0]
        assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(errors))


def test_a_fit_is_least_squares():
    """After one iteration each scale is the best for the codes of the ARQ scale."""
    w = noise((4, 60))
    arq = find_params(w, INT8, NuqConfig(16, 0))
    codes = choose_centres(w, arq, NuqConfig(16))[0].astype(np.float64)
    fitted = find_params(w, INT8, NuqConfig(16, 1))
    for c in range(4):
        expected = np.linalg.lstsq(codes[c][:, None], w[c].astype(np.float64), rcond=None)[0][0]
        assert fitted.scale[c] == pytest.approx(expected, rel=1e-6)


def test_without_iterations_the_scales_are_those_of_arq():
    w = noise()
    w[0] = -np.abs(w[0])
    arq = weights.find_params(w, INT8, AbsMaxConfig(full_range=True))
    assert find_params(w, INT8, NuqConfig(num_of_iteration=0)).same_as(arq)
    assert arq.scale[0] == np.float32(np.abs(w[0]).max() / 128)


def test_more_steps_lose_less_and_all_steps_are_distinct_for_constant_weights():
    w = noise((8, 200))
    arq = find_params(w, INT8, NuqConfig(32, 0))
    sixteen, thirty_two = (loss(w, arq, choose_centres(w, arq, NuqConfig(n))[1]) for n in (16, 32))
    full = np.square(dequantize(quantize(w, arq), arq).astype(np.float64) - w).sum()
    assert full < thirty_two < sixteen / 3
    constant = np.full((3, 5), 0.25, np.float32)
    params = find_params(constant, INT8, NuqConfig(16))
    codes, centres = choose_centres(constant, params, NuqConfig(16))
    assert (codes == 127).all()
    assert len(set(centres.tolist())) == 16


def test_dead_channels_and_bits():
    w = noise((6, 30))
    w[2] = 0
    params = find_params(w, INT8, NuqConfig())
    assert params.scale[2] == 1
    for bits in (6, 7):
        spec = QuantSpec(QType.INT8, PerAxis(0), bits=bits)
        codes, centres = choose_centres(w, find_params(w, spec, NuqConfig()), NuqConfig())
        assert centres.min() >= -(2 ** (bits - 1))
        assert centres.max() < 2 ** (bits - 1)
        assert set(np.unique(codes)) <= set(centres.tolist())


def test_refusals():
    w = noise()
    for spec, message in (
        (QuantSpec(QType.INT8, symmetric=False), "symmetric signed codes"),
        (QuantSpec(QType.UINT8), "symmetric signed codes"),
        (QuantSpec(QType.INT16), "at most 8 bits"),
        (QuantSpec(QType.INT8, bits=4), "4 bits have 16 codes, NUQ is to choose 32"),
    ):
        low, high = float(w.min()), float(w.max())
        with pytest.raises(CalibrationError, match=message):
            choose_centres(w, params_from_range(low, high, spec), NuqConfig())
        assert find_params(w, spec, NuqConfig()).same_as(params_from_range(low, high, spec, full_range=True))
    w[1, 2, 0] = np.inf
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        find_params(w, INT8, NuqConfig())
    for fields in ({"num_steps": 8}, {"num_of_iteration": 6}, {"num_of_iteration": -1}, {"num_steps": 16.5}):
        with pytest.raises(RecipeError, match=next(iter(fields))):
            weights.config_from_dict("nuq", fields)
    assert weights.config_from_dict("nuq", {"num_steps": 16}) == NuqConfig(16, 1)
