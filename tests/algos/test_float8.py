"""Float8 codes: every number, every tie and both neighbours of each, against ml_dtypes and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxq.algos import activation, affine, float8, weight
from onnxq.algos.activation.mse import MseConfig
from onnxq.errors import RecipeError
from onnxq.runtime import make_session
from onnxq.spec import PerAxis, PerBlock, QType, QuantParams, QuantSpec
from onnxq.stats import TensorStats
from tests.graphs import normal

TYPES = [QType.FLOAT8E4M3FN, QType.FLOAT8E5M2]
PEERS = {QType.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn, QType.FLOAT8E5M2: ml_dtypes.float8_e5m2}
LABELS = [t.label for t in TYPES]


def peer(x: Any, qtype: QType) -> Any:
    largest = np.float32(ml_dtypes.finfo(PEERS[qtype]).max)
    return np.clip(x, -largest, largest).astype(PEERS[qtype])


def hard_numbers(qtype: QType) -> Any:
    """All numbers of the type, the middles between neighbours, what is next to these, and far ends."""
    codes = np.arange(256, dtype=np.uint8)
    known = np.sort(float8.decode(codes, qtype).astype(np.float64))
    known = known[np.isfinite(known)]
    middles = ((known[1:] + known[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(middles, np.float32(end)) for end in (np.inf, -np.inf)]
    ends = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf], np.float32)
    return np.concatenate([known.astype(np.float32), middles, *near, ends])


@pytest.mark.parametrize("qtype", TYPES, ids=LABELS)
def test_every_code_stands_for_the_same_number_as_elsewhere(qtype: QType) -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(float8.decode(codes, qtype), codes.view(PEERS[qtype]).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("qtype", TYPES, ids=LABELS)
def test_rounding_is_that_of_ml_dtypes_on_all_upper_halves_of_float32(qtype: QType) -> None:
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    numbers = [(upper | np.uint32(low)).view(np.float32) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    x = np.concatenate([*numbers, hard_numbers(qtype)])
    x = x[~np.isnan(x)]
    wanted = peer(x, qtype)
    assert np.array_equal(float8.encode(x, qtype), wanted.view(np.uint8))
    assert np.array_equal(float8.round_to(x, qtype).view(np.uint32), wanted.astype(np.float32).view(np.uint32))


def pair(qtype: QType, scale: Any, axis: int | None, *, opset: int = 19) -> onnx.ModelProto:
    """QuantizeLinear and DequantizeLinear."""
    scale = np.asarray(scale, np.float32)
    number = getattr(TensorProto, qtype.name)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], saturate=1, **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    dims = [None] * (1 if axis is None else 2)
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
        [
            helper.make_tensor("s", TensorProto.FLOAT, scale.shape, scale.reshape(-1)),
            helper.make_tensor("z", number, scale.shape, np.zeros(scale.size)),
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.mark.parametrize("scale", [1.0, 0.0137, 2.0**-40, 1e20])
@pytest.mark.parametrize("qtype", TYPES, ids=LABELS)
def test_codes_are_those_of_onnx_runtime(qtype: QType, scale: float) -> None:
    with np.errstate(over="ignore"):
        x = (hard_numbers(qtype) * np.float32(scale)).astype(np.float32)
    x = x[np.isfinite(x)]
    params = QuantParams(QuantSpec(qtype), np.float32(scale), np.int32(0))
    (found,) = make_session(pair(qtype, scale, None), threads=1).run(None, {"x": x})
    assert np.array_equal(affine.fake_quantize(x, params).view(np.uint32), found.view(np.uint32))
    assert np.array_equal(affine.dequantize(affine.quantize(x, params), params).view(np.uint32), found.view(np.uint32))


@pytest.mark.parametrize("qtype", TYPES, ids=LABELS)
def test_one_scale_per_row_as_in_onnx_runtime_and_onnx(qtype: QType) -> None:
    x, scale = normal(5, 300), np.array([0.01, 0.3, 1.7, 2.0**-20, 900.0], np.float32)
    params = QuantParams(QuantSpec(qtype, PerAxis(0)), scale, np.zeros(5, np.int32))
    model = pair(qtype, scale, 0)
    (found,) = make_session(model, threads=1).run(None, {"x": x})
    (told,) = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.array_equal(affine.fake_quantize(x, params), found)
    assert np.array_equal(affine.fake_quantize(x, params), told)


def test_codes_of_blocks() -> None:
    x = normal(6, 10)
    spec = QuantSpec(QType.FLOAT8E4M3FN, PerBlock(1, 4))
    params = weight.find_params(x, spec, weight.absmax.AbsMaxConfig())
    assert params.scale.shape == (6, 3)
    each = np.repeat(params.scale, 4, axis=1)[:, :10]
    assert np.array_equal(affine.quantize(x, params), peer(x / each, QType.FLOAT8E4M3FN).view(np.uint8))
    assert np.array_equal(weight.quantize_weight(x, params), affine.quantize(x, params))


@pytest.mark.parametrize(("qtype", "largest"), [(TYPES[0], 448), (TYPES[1], 57344)], ids=LABELS)
def test_the_largest_magnitude_becomes_the_largest_code(qtype: QType, largest: int) -> None:
    params = affine.params_from_range(-3.5, 2.0, QuantSpec(qtype))
    assert params.scale == np.float32(3.5 / largest)
    assert int(params.zero_point) == 0
    assert (float(params.low), float(params.high)) == pytest.approx((-3.5, 3.5))
    assert float(affine.fake_quantize(np.array([-3.5], np.float32), params)[0]) == pytest.approx(-3.5)


def test_a_range_with_outliers_is_cut_where_that_lowers_the_error() -> None:
    """Large steps of E4M3 are where large values are: an outlier costs itself, and hardly anything else."""
    x = np.concatenate([normal(100_000), np.array([3000.0], np.float32)])
    stats = TensorStats.from_array(x)
    spec = QuantSpec(QType.FLOAT8E4M3FN)
    _, high = activation.find_range(stats, spec, MseConfig())

    def error(bound: float) -> float:
        rounded = affine.fake_quantize(x, affine.params_from_range(-bound, bound, spec))
        return float(np.square(x.astype(np.float64) - rounded).sum())

    assert error(high) <= 1.02 * min(error(3000.0 * 2 ** (-k / 8)) for k in range(40))


@pytest.mark.parametrize("granularity", [None, 0], ids=["tensor", "rows"])
def test_scales_of_weights_by_least_error_are_no_worse_than_by_magnitude(granularity: int | None) -> None:
    x = normal(8, 400) ** 3
    spec = QuantSpec(QType.FLOAT8E5M2) if granularity is None else QuantSpec(QType.FLOAT8E5M2, PerAxis(granularity))

    def error(params: QuantParams) -> Any:
        return np.square(x - affine.fake_quantize(x, params), dtype=np.float64).sum(axis=1)

    plain = error(weight.find_params(x, spec, weight.absmax.AbsMaxConfig()))
    searched = error(weight.find_params(x, spec, weight.mse.MseConfig()))
    if granularity is None:
        assert searched.sum() < plain.sum()
    else:
        assert (searched <= plain).all()
        assert searched.sum() < plain.sum()


def test_what_a_float8_type_cannot_be() -> None:
    for wrong in ({"symmetric": False}, {"bits": 4}, {"narrow": True}):
        with pytest.raises(RecipeError, match=r"float8e5m2"):
            QuantSpec(QType.FLOAT8E5M2, **wrong)
    with pytest.raises(ValueError, match="zero_point"):
        QuantParams(QuantSpec(QType.FLOAT8E5M2), np.float32(1), np.int32(1))
