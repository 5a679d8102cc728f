"""Weight methods against brute force, for every granularity, in pieces and whole."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.algos import weight as weights
from onnxq.algos.affine import dequantize, params_from_range, quantize, scale_shape
from onnxq.algos.weight.absmax import AbsMaxConfig
from onnxq.algos.weight.mse import MseConfig
from onnxq.errors import CalibrationError, RecipeError
from onnxq.spec import PerAxis, PerBlock, PerTensor, QType, QuantSpec

GRANULARITIES = [PerTensor(), PerAxis(0), PerAxis(1), PerAxis(-1), PerBlock(0, 4), PerBlock(1, 5), PerBlock(-1, 2)]
SHAPE = (12, 11, 6)


def noise(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


def groups(shape, granularity):
    """Index into the scales and selection of the elements of every group, by the definitions in spec.py."""
    match granularity:
        case PerTensor():
            yield (), ...
        case PerAxis(axis=axis):
            for i in range(shape[axis]):
                selection = [slice(None)] * len(shape)
                selection[axis] = i
                yield (i,), tuple(selection)
        case PerBlock(axis=axis, size=size):
            axis %= len(shape)
            for i in np.ndindex(scale_shape(shape, QuantSpec(QType.INT8, granularity))):
                selection = list(i)
                selection[axis] = slice(i[axis] * size, (i[axis] + 1) * size)
                yield i, tuple(selection)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("elements", [70, 1 << 22])
def test_absmax_covers_each_group(granularity, symmetric, elements, monkeypatch):
    shrink_pieces(monkeypatch, elements)
    w = noise()
    spec = QuantSpec(QType.INT8, granularity, symmetric=symmetric)
    params = weights.find_params(w, spec, AbsMaxConfig())
    one = QuantSpec(QType.INT8, symmetric=symmetric)
    for index, selection in groups(w.shape, granularity):
        expected = params_from_range(w[selection].min(), w[selection].max(), one)
        assert params.scale[index] == expected.scale
        assert params.zero_point[index] == expected.zero_point


def shrink_pieces(monkeypatch, elements):
    """Make `pieces` cut arrays of test size."""
    monkeypatch.setattr("onnxq.algos.affine.row_slices.__kwdefaults__", {"elements": elements})


def brute_mse(values, spec, shares):
    """Smallest squared error over the shares, in float64."""
    low, high = min(float(values.min()), 0), max(float(values.max()), 0)
    best = (np.inf, None)
    for share in shares:
        params = params_from_range(low * share, high * share, spec)
        qmin, qmax = spec.bounds
        scale = float(params.scale)
        codes = np.clip(np.rint(values / scale) + params.zero_point, qmin, qmax)
        error = float((((codes - params.zero_point) * scale - values.astype(np.float64)) ** 2).sum())
        best = min(best, (error, params), key=lambda b: b[0])
    return best


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("elements", [70, 1 << 22])
def test_mse_finds_the_best_share_of_each_group(granularity, symmetric, bits, elements, monkeypatch):
    shrink_pieces(monkeypatch, elements)
    w = noise(seed=3)
    config = MseConfig(search_start=0.2, search_step=0.05)
    spec = QuantSpec(QType.INT8, granularity, symmetric=symmetric, bits=bits)
    params = weights.find_params(w, spec, config)
    error = np.square(dequantize(quantize(w, params), params).astype(np.float64) - w)
    one = QuantSpec(QType.INT8, symmetric=symmetric, bits=bits)
    shares = [1 - 0.05 * i for i in range(17)]
    for _, selection in groups(w.shape, granularity):
        best, _ = brute_mse(w[selection], one, shares)
        assert error[selection].sum() <= best * 1.001 + 1e-12


def test_mse_over_a_long_row_is_summed_without_loss():
    """Rows of several tiles with a remainder, per tensor, against float64."""
    w = noise((5, 2101), seed=5)
    for granularity in (PerTensor(), PerAxis(0)):
        params = weights.find_params(w, QuantSpec(QType.INT4, granularity), MseConfig())
        for index, selection in groups(w.shape, granularity):
            best, expected = brute_mse(w[selection], QuantSpec(QType.INT4), MseConfig().shares())
            found = np.square(dequantize(quantize(w, params), params).astype(np.float64) - w)[selection].sum()
            assert found <= best * (1 + 1e-6)
            assert params.scale[index] == pytest.approx(expected.scale, rel=0.02)


def test_mse_beats_absmax_where_it_matters():
    w = noise((16, 576), seed=4)
    for bits, gain in ((4, 0.8), (8, 1.0)):
        spec = QuantSpec(QType.container(bits, signed=True), PerAxis(0))
        errors = []
        for method in ("absmax", "mse"):
            params = weights.find_params(w, spec, weights.config_from_dict(method, {}))
            errors.append(np.square(dequantize(quantize(w, params), params) - w).sum())
        assert errors[1] <= errors[0] * gain


@pytest.mark.parametrize("method", weights.METHODS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_dead_channels_get_a_harmless_scale(method, granularity):
    w = noise()
    w[3] = 0
    w[:, 2] = 0
    w[:, :, 1] = 0
    config = weights.config_from_dict(method, {})
    params = weights.find_params(w, QuantSpec(QType.INT8, granularity), config)
    codes = weights.quantize_weight(w, params)
    assert not codes[w == 0].any()
    dead = weights.find_params(np.zeros(SHAPE, np.float32), QuantSpec(QType.INT8, granularity), config)
    assert (dead.scale == 1).all()


def test_full_range_is_the_rule_of_arq():
    """If |max| >= |min|: |max| / 127, otherwise |min| / 128."""
    w = np.array([[1.0, -0.5], [0.25, -2.0], [3.0, -3.0]], np.float32)
    params = weights.find_params(w, QuantSpec(QType.INT8, PerAxis(0)), AbsMaxConfig(full_range=True))
    np.testing.assert_array_equal(params.scale, np.float32([1 / 127, 2 / 128, 3 / 127]))
    assert weights.quantize_weight(w, params).tolist() == [[127, -64], [16, -128], [127, -127]]
    for bits in range(2, 9):
        spec = QuantSpec(QType.INT8, bits=bits)
        half = 2 ** (bits - 1)
        assert weights.find_params(w, spec, AbsMaxConfig(full_range=True)).scale == np.float32(3 / max(half - 1, 1))


@settings(max_examples=40)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=7),
        elements=st.floats(-1e3, 1e3, width=32),
    ),
    st.sampled_from(list(weights.METHODS)),
    st.integers(2, 8),
    st.booleans(),
    st.data(),
)
def test_any_weight(w, method, bits, symmetric, data):
    axis = data.draw(st.integers(-w.ndim, w.ndim - 1))
    granularity = data.draw(st.sampled_from([PerTensor(), PerAxis(axis), PerBlock(axis, 3)]))
    spec = QuantSpec(QType.INT8, granularity, symmetric=symmetric, bits=bits)
    params = weights.find_params(w, spec, weights.config_from_dict(method, {}))
    codes = weights.quantize_weight(w, params)
    np.testing.assert_array_equal(codes, quantize(w, params))
    if method == "absmax":
        assert np.abs(dequantize(codes, params) - w).max() <= params.scale.max() * 1.001


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("method", weights.METHODS)
def test_other_float_types_are_widened(dtype, method, monkeypatch):
    shrink_pieces(monkeypatch, 100)
    w = noise().astype(dtype)
    spec = QuantSpec(QType.INT8, PerAxis(1))
    config = weights.config_from_dict(method, {})
    params = weights.find_params(w, spec, config)
    assert params.same_as(weights.find_params(w.astype(np.float32), spec, config))
    np.testing.assert_array_equal(weights.quantize_weight(w, params), quantize(w.astype(np.float32), params))


def test_views_that_are_not_contiguous():
    w = noise().transpose(2, 0, 1)[::2]
    spec = QuantSpec(QType.INT4, PerBlock(1, 5), symmetric=False)
    params = weights.find_params(w, spec, MseConfig())
    whole = np.ascontiguousarray(w)
    assert params.same_as(weights.find_params(whole, spec, MseConfig()))
    np.testing.assert_array_equal(weights.quantize_weight(w, params), quantize(whole, params))


def test_memmap_is_read_in_pieces(tmp_path, monkeypatch):
    """No more than a piece of the file becomes an array at any time."""
    shrink_pieces(monkeypatch, 1 << 14)
    path = tmp_path / "w.bin"
    w = noise((512, 256))
    path.write_bytes(w.tobytes())
    mapped = np.memmap(path, np.float32, "r", shape=w.shape)
    seen = []
    real = np.asarray

    def spy(x, *args, **kwargs):
        if isinstance(x, np.memmap):
            seen.append(x.size)
        return real(x, *args, **kwargs)

    monkeypatch.setattr(np, "asarray", spy)
    for granularity in (PerAxis(0), PerAxis(1), PerBlock(0, 32), PerTensor()):
        params = weights.find_params(mapped, QuantSpec(QType.INT8, granularity), MseConfig())
        codes = weights.quantize_weight(mapped, params)
        np.testing.assert_array_equal(codes, quantize(w, params))
    assert max(seen) <= 1 << 14


def test_refusals():
    w = noise()
    w[3, 2, 1] = np.nan
    for method in weights.METHODS:
        with pytest.raises(CalibrationError, match="weight holds NaN"):
            weights.find_params(w, QuantSpec(QType.INT8), weights.config_from_dict(method, {}))
    with pytest.raises(CalibrationError, match="axis 3 does not exist"):
        weights.find_params(noise(), QuantSpec(QType.INT8, PerAxis(3)), AbsMaxConfig())
    with pytest.raises(RecipeError, match="unknown weight method 'arq'"):
        weights.method_info("arq")
    with pytest.raises(RecipeError, match="no field 'step'"):
        weights.config_from_dict("mse", {"step": 1})
    with pytest.raises(RecipeError, match="must be below search_end"):
        MseConfig(search_start=1.0)
    with pytest.raises(RecipeError, match="use at most 1000"):
        MseConfig(search_step=1e-9)
    with pytest.raises(RecipeError, match="full_range must be true or false"):
        AbsMaxConfig(full_range=2)


def test_shares_include_both_ends():
    shares = MseConfig().shares()
    assert shares.size == 71
    np.testing.assert_allclose(shares[[0, -1]], [1.0, 0.3])


def test_scalar_and_empty_weights():
    for method in weights.METHODS:
        config = weights.config_from_dict(method, {})
        params = weights.find_params(np.float32(2.0) * np.ones(()), QuantSpec(QType.INT8), config)
        assert weights.quantize_weight(np.array(2.0, np.float32), params) == 127
        empty = weights.find_params(np.zeros((0, 3), np.float32), QuantSpec(QType.INT8, PerAxis(1)), config)
        assert empty.scale.tolist() == [1, 1, 1]
