"""The affine map equals ONNX Runtime's to the bit and keeps its promises for every width."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from onnxq.algos.affine import (
    MIN_SCALE,
    code_dtype,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
    scale_shape,
)
from onnxq.errors import CalibrationError
from onnxq.spec import PerAxis, PerBlock, PerTensor, QType, QuantParams, QuantSpec

REALS = st.floats(-1e6, 1e6, width=32)
ONNX_TYPES = {
    QType.INT4: TensorProto.INT4,
    QType.UINT4: TensorProto.UINT4,
    QType.INT8: TensorProto.INT8,
    QType.UINT8: TensorProto.UINT8,
    QType.INT16: TensorProto.INT16,
    QType.UINT16: TensorProto.UINT16,
}


@st.composite
def specs(draw, min_bits=2):
    bits = draw(st.integers(min_bits, 16))
    signed = draw(st.booleans())
    return QuantSpec(
        QType.container(bits, signed=signed), symmetric=draw(st.booleans()), bits=bits, narrow=draw(st.booleans())
    )


@st.composite
def ranges(draw):
    low, high = sorted((draw(REALS), draw(REALS)))
    return low, high


def run_ort(x, params):
    """Quantize and dequantize `x` with ONNX Runtime; return both results."""
    kind = ONNX_TYPES[params.spec.qtype]
    attributes = {}
    match params.spec.granularity:
        case PerAxis(axis=axis):
            attributes = {"axis": axis}
        case PerBlock(axis=axis, size=size):
            attributes = {"axis": axis, "block_size": size}
    zero_point = helper.make_tensor("z", kind, params.scale.shape, params.zero_point.reshape(-1).tolist())
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
            helper.make_node("Cast", ["q"], ["i"], to=TensorProto.INT32),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("i", TensorProto.INT32, x.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape),
        ],
        [onnx.numpy_helper.from_array(params.scale, "s"), zero_point],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def noise(shape, params, seed=0):
    """Values over 1.3 times the range of `params`, every third one an exact tie."""
    rng = np.random.default_rng(seed)
    low, high = float(params.low.min()), float(params.high.max())
    x = rng.uniform(low * 1.3 - 1e-3, high * 1.3 + 1e-3, shape).astype(np.float32)
    ties = (np.floor(x / params.scale.max()) + np.float32(0.5)) * params.scale.max()
    return np.where(rng.random(shape) < 0.33, ties, x).astype(np.float32)


@pytest.mark.parametrize("qtype", ONNX_TYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bounds", [(-1.7, 3.1), (0.0, 6.0), (-5.0, 0.0), (-64.0, 63.5)])
def test_per_tensor_equals_onnxruntime(qtype, symmetric, bounds):
    params = params_from_range(*bounds, QuantSpec(qtype, symmetric=symmetric))
    x = noise((64, 33), params)
    codes, reals = run_ort(x, params)
    ours = quantize(x, params)
    np.testing.assert_array_equal(ours, codes)
    np.testing.assert_array_equal(dequantize(ours, params), reals)
    at_once = fake_quantize(x, params)
    np.testing.assert_array_equal(at_once.view(np.int32), reals.view(np.int32))  # no -0.0 either


def test_ties_go_to_even_as_in_onnxruntime():
    params = QuantParams(QuantSpec(QType.INT8), np.float32(1.0), np.int32(0))
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, -127.5, -128.5], np.float32)
    codes, _ = run_ort(x, params)
    assert quantize(x, params).tolist() == [0, 2, 2, 0, -2, -2, 126, 127, -128, -128] == codes.tolist()


def test_extreme_values_saturate_as_in_onnxruntime():
    params = params_from_range(-1e-18, 3e-17, QuantSpec(QType.UINT8, symmetric=False))
    x = np.array([3e38, -3e38, 1e-45, 0.0], np.float32)
    codes, _ = run_ort(x, params)
    np.testing.assert_array_equal(quantize(x, params), codes)


@pytest.mark.parametrize("qtype", ONNX_TYPES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_axis_equals_onnxruntime(qtype, axis):
    shape = (3, 4, 5)
    spec = QuantSpec(qtype, PerAxis(axis), symmetric=False)
    high = np.geomspace(0.1, 10, shape[axis])
    params = params_from_range(-high / 3, high, spec)
    x = noise(shape, params)
    codes, reals = run_ort(x, params)
    ours = quantize(x, params)
    np.testing.assert_array_equal(ours, codes)
    np.testing.assert_array_equal(dequantize(ours, params), reals)


@pytest.mark.parametrize("qtype", [QType.INT4, QType.UINT4, QType.INT8])
@pytest.mark.parametrize(("axis", "size"), [(0, 4), (1, 2), (2, 3), (-1, 8), (0, 1)])
def test_per_block_equals_onnxruntime(qtype, axis, size):
    shape = (8, 6, 24)
    spec = QuantSpec(qtype, PerBlock(axis, size), symmetric=False)
    high = np.random.default_rng(1).uniform(0.5, 4, scale_shape(shape, spec))
    params = params_from_range(-high / 2, high, spec)
    x = noise(shape, params)
    codes, reals = run_ort(x, params)
    ours = quantize(x, params)
    np.testing.assert_array_equal(ours, codes)
    np.testing.assert_array_equal(dequantize(ours, params), reals)


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerAxis(1), PerBlock(0, 3), PerBlock(1, 7)])
def test_long_arrays_are_cut_without_a_seam(granularity, monkeypatch):
    """Blocks that do not divide the axis, pieces that do not divide the blocks."""
    monkeypatch.setattr("onnxq.algos.affine._CHUNK", 64)
    shape = (41, 17)
    spec = QuantSpec(QType.INT8, granularity, symmetric=False)
    high = np.random.default_rng(2).uniform(1, 2, scale_shape(shape, spec))
    params = params_from_range(-high, high, spec)
    x = noise(shape, params)
    codes = quantize(x, params)
    for i in np.ndindex(shape):
        match granularity:
            case PerTensor():
                k = ()
            case PerAxis(axis=axis):
                k = (i[axis],)
            case PerBlock(axis=axis, size=size):
                k = tuple(j // size if d == axis else j for d, j in enumerate(i))
        expected = np.clip(np.rint(x[i] / params.scale[k]) + params.zero_point[k], -128, 127)
        assert codes[i] == expected
    np.testing.assert_array_equal(fake_quantize(x, params), dequantize(codes, params))


@given(ranges(), specs())
def test_zero_has_an_exact_code(bounds, spec):
    params = params_from_range(*bounds, spec)
    assert fake_quantize(np.zeros(3, np.float32), params).tolist() == [0, 0, 0]
    assert spec.bounds[0] <= params.zero_point <= spec.bounds[1]


@given(ranges(), specs(), st.data())
def test_round_trip_error_is_half_a_step(bounds, spec, data):
    low, high = min(bounds[0], 0), max(bounds[1], 0)
    params = params_from_range(*bounds, spec)
    x = data.draw(hnp.arrays(np.float32, 20, elements=st.floats(np.float32(low), np.float32(high), width=32)))
    error = np.abs(fake_quantize(x, params).astype(np.float64) - x)
    # a rounded zero point moves the range by up to half a step, on top of half a step of rounding
    slack = 1.0 if not spec.symmetric else 0.5
    rounding = 8 * np.finfo(np.float32).eps * np.abs(x)
    assert (error <= params.scale * slack + rounding).all()
    inside = (x >= params.low) & (x <= params.high)
    assert (error[inside] <= params.scale * 0.5 + rounding[inside]).all()


@given(ranges(), specs(), hnp.arrays(np.float32, 20, elements=REALS))
def test_codes_are_monotone_and_bounded(bounds, spec, x):
    params = params_from_range(*bounds, spec)
    codes = quantize(np.sort(x), params)
    assert (np.diff(codes.astype(np.int64)) >= 0).all()
    assert codes.min() >= spec.bounds[0]
    assert codes.max() <= spec.bounds[1]
    assert codes.dtype == code_dtype(spec)


@given(ranges(), specs())
def test_range_is_covered(bounds, spec):
    params = params_from_range(*bounds, spec)
    step = float(params.scale)
    slack = step * (0.5 if not spec.symmetric else 0) + step * 2.0**-7
    assert params.low <= min(bounds[0], 0) + slack or (spec.symmetric and spec.narrow is False)
    assert params.high >= max(bounds[1], 0) - slack
    if spec.symmetric:
        assert int(params.zero_point) == spec.middle


@given(st.integers(2, 16), REALS.filter(lambda v: v != 0))
def test_symmetric_zero_point_and_scale(bits, absmax):
    spec = QuantSpec(QType.container(bits, signed=True), bits=bits)
    low, high = sorted((absmax, -absmax / 2))
    top = 2 ** (bits - 1) - 1
    params = params_from_range(low, high, spec)
    assert params.zero_point == 0
    assert params.scale == np.float32(max(abs(absmax) / top, MIN_SCALE))
    full = params_from_range(low, high, spec, full_range=True)
    expected = high / top if abs(high) >= abs(low) else -low / 2 ** (bits - 1)
    assert full.scale == np.float32(max(expected, MIN_SCALE))


@given(ranges(), st.booleans())
def test_asymmetric_formula(bounds, signed):
    spec = QuantSpec(QType.container(8, signed=signed), symmetric=False)
    low, high = min(bounds[0], 0), max(bounds[1], 0)
    params = params_from_range(*bounds, spec)
    if high - low < 1e-15:
        return
    scale = np.float32((float(high) - float(low)) / 255)
    qmin = -128 if signed else 0
    assert params.scale == scale
    assert params.zero_point == np.clip(np.rint(qmin - low / np.float64(scale)), qmin, qmin + 255)


def test_guards():
    spec = QuantSpec(QType.INT8, symmetric=False)
    zero = params_from_range(0.0, 0.0, spec)
    assert zero.scale == 1
    assert zero.zero_point == -128
    assert params_from_range(0.0, 1e-45, spec).scale == np.float32(MIN_SCALE)
    assert params_from_range(-3e38, 3e38, spec).scale == pytest.approx(6e38 / 255)
    assert np.isfinite(1 / params_from_range(-1e-40, 0.0, spec).scale)
    assert np.float32(MIN_SCALE) ** 2 >= np.finfo(np.float32).tiny
    with pytest.raises(CalibrationError, match="not finite"):
        params_from_range(0.0, np.inf, spec)
    with pytest.raises(CalibrationError, match="not finite"):
        params_from_range(np.nan, 1.0, spec)
    with pytest.raises(CalibrationError, match="lower bound above"):
        params_from_range(2.0, 1.0, spec)
    with pytest.raises(CalibrationError, match="do not fit PerTensor"):
        params_from_range([0.0], [1.0], spec)
    with pytest.raises(CalibrationError, match="do not fit"):
        params_from_range([0.0], [1.0, 2.0], QuantSpec(QType.INT8, PerAxis(0)))
    wide = params_from_range(-np.ones(3), np.ones(3), QuantSpec(QType.INT8, PerAxis(1)))
    with pytest.raises(CalibrationError, match=r"needs scales of shape \(2,\), got \(3,\)"):
        quantize(np.ones((3, 2), np.float32), wide)
    with pytest.raises(CalibrationError, match="axis 1 does not exist in a tensor of rank 1"):
        dequantize(np.ones(3, np.int8), wide)


@settings(max_examples=20)
@given(hnp.arrays(np.float16, 30, elements=st.floats(-100, 100, width=16)))
def test_half_precision_input_is_widened(x):
    params = params_from_range(-100.0, 100.0, QuantSpec(QType.INT8))
    np.testing.assert_array_equal(quantize(x, params), quantize(x.astype(np.float32), params))


def test_int32_is_for_biases_only():
    params = QuantParams(QuantSpec(QType.INT32, PerAxis(0)), np.array([0.5, 2.0]), np.array([0, 0]))
    assert dequantize(np.array([-3, 2**20], np.int32), params).tolist() == [-1.5, 2.0**21]
    with pytest.raises(CalibrationError, match="not quantized to int32"):
        quantize(np.ones(2, np.float32), params)


def test_scalars_and_empty_arrays():
    params = params_from_range(-1.0, 1.0, QuantSpec(QType.INT8))
    assert quantize(np.array(1.0, np.float32), params) == 127
    assert quantize(np.zeros((0, 3), np.float32), params).shape == (0, 3)
    assert dequantize(np.array(-127, np.int8), params) == pytest.approx(-1.0)
