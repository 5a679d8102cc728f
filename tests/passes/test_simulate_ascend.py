"""SimulateAscend: what ONNX Runtime computes is what the operators say, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxq.errors import GraphError
from onnxq.graph import GraphModel
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.simulate_ascend import SimulateAscend
from tests.graphs import apply, ops, run
from tests.passes.ascend_models import (
    FLOAT,
    Array,
    conv,
    conv_transpose,
    deploy,
    dequant_node,
    dequantized,
    quant_node,
    quantized,
    window_sums,
    words,
)

SCALE = 0.031
INT8, INT16 = TensorProto.INT8, TensorProto.INT16


def codes_of(*shape: int, seed: int = 0, low: int = -128, high: int = 127) -> Array:
    return np.random.default_rng([seed, *shape]).integers(low, high + 1, shape).astype(np.int8)


def reals(*shape: int, seed: int = 1, spread: float = 2.5) -> Array:
    return (np.random.default_rng([seed, *shape]).normal(size=shape) * spread).astype(np.float32)


def simulated(model: onnx.ModelProto) -> GraphModel:
    graph = GraphModel.from_proto(model)
    apply(graph, AssignNames(), LiftConstants(), SimulateAscend())
    assert not [op for op in ops(graph) if op.startswith("Ascend")]
    onnx.shape_inference.infer_shapes(graph.to_proto(), check_type=True, strict_mode=True)
    return graph


def check(model: onnx.ModelProto, feed: dict[str, Array], expected: Array, name: str = "y") -> GraphModel:
    """Both with and without ONNX Runtime's optimizations the output has exactly these numbers."""
    graph = simulated(model)
    for optimize in (False, True):
        found = run(graph, feed, optimize=optimize)[name]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    return graph


CONVS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pads": {"pads": [1, 2, 0, 1]},
    "strides": {"pads": [1, 1, 1, 1], "strides": [2, 3]},
    "dilations": {"pads": [2, 2, 2, 2], "dilations": [2, 1]},
    "groups": {"pads": [1, 1, 1, 1], "group": 2},
    "depthwise": {"pads": [1, 1, 1, 1], "group": 4},
}


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("offset", [0, -128, 127, -17])
def test_conv(case: str, offset: int) -> None:
    attrs = {"pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1], "group": 1, **CONVS[case]}
    w, bias = codes_of(8, 4 // attrs["group"], 3, 3), np.arange(-4, 4, dtype=np.int32) * 100_003
    scales = np.linspace(0.01, 0.2, 8).astype(np.float32)
    model = deploy(
        [quant_node("x", "q", SCALE, offset), helper.make_node("Conv", ["q", "w", "b"], ["s"], name="conv", **attrs),
         dequant_node("s", "y", "d")],
        {"w": w, "b": bias, "d": words(*scales)}, {"x": ["n", 4, 9, 11]}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(2, 4, 9, 11)
    sums = conv(quantized(x, SCALE, offset) - offset, w.astype(np.int64), **attrs) + bias.reshape(-1, 1, 1)
    graph = check(model, {"x": x}, dequantized(sums, scales, 1))
    assert "ConvInteger" in ops(graph)
    assert "Conv" not in ops(graph)


@pytest.mark.parametrize(("rank", "kernel"), [(1, [3]), (3, [2, 3, 1])])
def test_conv_of_one_and_three_dimensions(rank: int, kernel: list[int]) -> None:
    w, size = codes_of(5, 3, *kernel), [7, 6, 5][:rank]
    attrs = {"pads": [1] * 2 * rank, "strides": [2] + [1] * (rank - 1), "dilations": [1] * rank}
    scales = np.linspace(0.01, 0.2, 5).astype(np.float32)
    model = deploy(
        [quant_node("x", "q", SCALE, 9), helper.make_node("Conv", ["q", "w"], ["s"], **attrs),
         dequant_node("s", "y", "d")],
        {"w": w, "d": words(*scales)}, {"x": [1, 3, *size]}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(1, 3, *size)
    check(model, {"x": x}, dequantized(conv(quantized(x, SCALE, 9) - 9, w.astype(np.int64), **attrs), scales, 1))


@pytest.mark.parametrize(("auto_pad", "pads"), [("SAME_UPPER", [0, 0, 1, 1]), ("SAME_LOWER", [1, 1, 0, 0])])
def test_conv_that_pads_by_itself(auto_pad: str, pads: list[int]) -> None:
    w = codes_of(2, 3, 3, 3)
    node = helper.make_node("Conv", ["q", "w"], ["s"], auto_pad=auto_pad, strides=[2, 2])
    model = deploy(
        [quant_node("x", "q", SCALE, -30), node, dequant_node("s", "y", "d")],
        {"w": w, "d": words(0.5)}, {"x": [1, 3, 8, 6]}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(1, 3, 8, 6)
    sums = conv(
        quantized(x, SCALE, -30) + 30, w.astype(np.int64), pads=pads, strides=[2, 2], dilations=[1, 1]
    )  # fmt: skip
    check(model, {"x": x}, dequantized(sums, np.float32([0.5]), 1))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_extreme_codes_do_not_saturate(op: str, sign: int) -> None:
    """Pairs of 255 * 127 overflow 16 bits, which kernels for old processors add in."""
    x = np.full((2, 512), 1e6 * sign, np.float32)
    offset = -128 if sign > 0 else 127
    w = np.where(np.arange(512 * 3).reshape(512, 3) % 3 == 0, -128, 127).astype(np.int8)
    if op == "Conv":
        x, weight = x.reshape(2, 512, 1, 1), np.ascontiguousarray(w.T).reshape(3, 512, 1, 1)
    else:
        weight = w
    model = deploy(
        [quant_node("x", "q", 1.0, offset), helper.make_node(op, ["q", "w"], ["s"]), dequant_node("s", "y", "d")],
        {"w": weight, "d": words(1.0)}, {"x": list(x.shape)}, {"y": FLOAT},
    )  # fmt: skip
    sums = np.broadcast_to(255 * sign * w.astype(np.int64).sum(axis=0), (2, 3))
    check(model, {"x": x}, sums.astype(np.float32).reshape((2, 3, 1, 1) if op == "Conv" else (2, 3)))


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("channels", [1, 6])
def test_gemm(trans: int, channels: int) -> None:
    w, bias = codes_of(10, 6), np.arange(6, dtype=np.int32) * -7919
    scales = np.linspace(0.01, 0.2, channels).astype(np.float32)
    node = helper.make_node("Gemm", ["q", "w", "b"], ["s"], transB=trans)
    model = deploy(
        [quant_node("x", "q", SCALE, 41), node, dequant_node("s", "y", "d")],
        {"w": w.T.copy() if trans else w, "b": bias, "d": words(*scales)}, {"x": ["n", 10]}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(4, 10)
    sums = (quantized(x, SCALE, 41) - 41) @ w.astype(np.int64) + bias
    check(model, {"x": x}, dequantized(sums, scales, 1))


def test_matmul_with_an_add_in_front_of_the_dequantization() -> None:
    w, bias = codes_of(10, 6), np.arange(6, dtype=np.int32) * -7919
    model = deploy(
        [quant_node("x", "q", SCALE, 0), helper.make_node("MatMul", ["q", "w"], ["m"]),
         helper.make_node("Add", ["b", "m"], ["s"]), dequant_node("s", "y", "d")],
        {"w": w, "b": bias, "d": words(*np.linspace(0.1, 0.6, 6))}, {"x": [2, 3, 10]}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(2, 3, 10)
    sums = quantized(x, SCALE, 0) @ w.astype(np.int64) + bias
    check(model, {"x": x}, dequantized(sums, np.linspace(0.1, 0.6, 6).astype(np.float32), 2))


def test_matmul_of_two_variables() -> None:
    model = deploy(
        [quant_node("a", "qa", SCALE, 5), quant_node("b", "qb", 0.02, -9),
         helper.make_node("MatMul", ["qa", "qb"], ["s"]), dequant_node("s", "y", "d")],
        {"d": words(SCALE * 0.02)}, {"a": [2, 3, 4, 8], "b": [2, 3, 8, 5]}, {"y": FLOAT},
    )  # fmt: skip
    a, b = reals(2, 3, 4, 8), reals(2, 3, 8, 5)
    sums = (quantized(a, SCALE, 5) - 5) @ (quantized(b, 0.02, -9) + 9)
    check(model, {"a": a, "b": b}, dequantized(sums, np.float32([SCALE * 0.02]), 0))


TRANSPOSED: dict[str, dict[str, Any]] = {
    "plain": {},
    "strides": {"strides": [2, 3]},
    "pads": {"strides": [2, 2], "pads": [1, 0, 2, 1]},
    "more_pads_than_kernel": {"strides": [3, 3], "pads": [3, 3, 3, 3]},
    "output_padding": {"strides": [3, 2], "pads": [1, 1, 1, 1], "output_padding": [2, 1]},
    "dilations": {"strides": [2, 1], "dilations": [2, 3], "pads": [2, 1, 0, 1]},
    "groups": {"strides": [2, 2], "group": 2, "pads": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose(case: str) -> None:
    attrs = TRANSPOSED[case]
    full = {"pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1], "output_padding": [0, 0], "group": 1, **attrs}
    w, bias = codes_of(4, 3, 3, 2), np.arange(3 * full["group"], dtype=np.int32) * 30_011
    scales = np.linspace(0.01, 0.2, 3 * full["group"]).astype(np.float32)
    model = deploy(
        [quant_node("x", "q", SCALE, -77), helper.make_node("ConvTranspose", ["q", "w", "b"], ["s"], **attrs),
         dequant_node("s", "y", "d")],
        {"w": w, "b": bias, "d": words(*scales)}, {"x": ["n", 4, "h", "w"]}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(2, 4, 5, 6)
    sums = conv_transpose(quantized(x, SCALE, -77) + 77, w.astype(np.int64), **full) + bias.reshape(-1, 1, 1)
    check(model, {"x": x}, dequantized(sums, scales, 1))


@pytest.mark.parametrize(
    "attrs",
    [
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID", "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [4, 4]},
        {"output_shape": [9, 12], "strides": [2, 2]},
        {"output_shape": [12, 13], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ],
)
def test_conv_transpose_pads_as_onnx_runtime_does_in_floats(attrs: dict[str, Any]) -> None:
    """Small codes, so that ONNX Runtime's own float operator is exact."""
    w = codes_of(2, 3, 3, 3)
    model = deploy(
        [quant_node("x", "q", 1.0, 3), helper.make_node("ConvTranspose", ["q", "w"], ["s"], **attrs),
         dequant_node("s", "y", "d")],
        {"w": w, "d": words(1.0)}, {"x": [1, 2, 5, 6]}, {"y": FLOAT},
    )  # fmt: skip
    floats = deploy(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attrs)],
        {"w": w.astype(np.float32)}, {"x": [1, 2, 5, 6]}, {"y": FLOAT},
    )  # fmt: skip
    x = np.rint(reals(1, 2, 5, 6, spread=20))
    check(model, {"x": x}, run(floats, {"x": x})["y"])


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize(("kernel", "pads", "strides"), [([3, 3], [1, 1, 1, 1], [1, 1]), ([7, 5], [0] * 4, [2, 3])])
def test_average_pool(include: int, kernel: list[int], pads: list[int], strides: list[int]) -> None:
    attrs = {"kernel_shape": kernel, "pads": pads, "strides": strides, "count_include_pad": include}
    model = deploy(
        [quant_node("x", "q", SCALE, -100), helper.make_node("AveragePool", ["q"], ["s"], **attrs),
         dequant_node("s", "y", "d")],
        {"d": words(SCALE)}, {"x": ["n", "c", 9, 9]}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(2, 3, 9, 9)
    sums = window_sums(quantized(x, SCALE, -100) + 100, kernel, pads, strides)
    counts = window_sums(np.ones_like(x, np.int64), kernel, [0 if include else p for p in pads] and pads, strides)
    if include:
        counts = np.full_like(counts, kernel[0] * kernel[1])
    averages = sums.astype(np.float32) / counts.astype(np.float32)
    check(model, {"x": x}, averages * np.float32(SCALE))


@pytest.mark.parametrize("fill", [None, np.float32(0), np.float32(50), np.int8(50), np.int8(0)])
def test_average_pool_behind_a_pad_of_codes(fill: Any) -> None:
    """Zeros of the exporter's Pad stand for the number 0, not for the code 0; a code is taken as it is."""
    model = deploy(
        [quant_node("x", "q", SCALE, 50),
         helper.make_node("Pad", ["q", "p"] if fill is None else ["q", "p", "v"], ["padded"]),
         helper.make_node("AveragePool", ["padded"], ["s"], kernel_shape=[2, 2], strides=[2, 2]),
         dequant_node("s", "y", "d")],
        {"d": words(SCALE), "p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "v": 0 if fill is None else fill},
        {"x": [1, 2, 4, 4]}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(1, 2, 4, 4)
    code = 0 if isinstance(fill, np.int8) and fill == 0 else 50
    padded = np.pad(quantized(x, SCALE, 50), [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=code)
    sums = window_sums(padded - 50, [2, 2], [0, 0, 0, 0], [2, 2])
    check(model, {"x": x}, sums.astype(np.float32) / np.float32(4) * np.float32(SCALE))


@pytest.mark.parametrize("between", [[], ["MaxPool"], ["Flatten"]])
def test_codes_pass_through_to_an_anti_quantization(between: list[str]) -> None:
    nodes = [quant_node("x", "q", SCALE, 12)]
    attrs = {"MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2]}}
    nodes += [helper.make_node(op, ["q"], ["moved"], **attrs.get(op, {})) for op in between]
    held = "moved" if between else "q"
    nodes.append(helper.make_node("AscendAntiQuant", [held], ["f"], scale=SCALE, offset=12.0, dst_type="INT8"))
    nodes.append(helper.make_node("Add", ["f", "f"], ["y"]))
    x = reals(1, 2, 4, 4)
    codes = quantized(x, SCALE, 12)
    if between == ["MaxPool"]:
        codes = codes.reshape(1, 2, 2, 2, 2, 2).max(axis=(3, 5))
    elif between:
        codes = codes.reshape(1, -1)
    real = (codes - 12).astype(np.float32) * np.float32(SCALE)
    check(deploy(nodes, {}, {"x": [1, 2, 4, 4]}, {"y": FLOAT}), {"x": x}, real + real)


@pytest.mark.parametrize("op", ["Conv", "MatMul", "ConvTranspose"])
def test_16_bit_activations(op: str) -> None:
    scale, offset = 0.0003, -1234
    w = codes_of(6, 6, 3, 3) if op != "MatMul" else codes_of(300, 6)
    shape = [1, 6, 7, 7] if op != "MatMul" else [4, 300]
    model = deploy(
        [quant_node("x", "q", scale, offset, "INT16"), helper.make_node(op, ["q", "w"], ["s"], name="layer"),
         helper.make_node("Add", ["s", "b"], ["t"]) if op == "MatMul" else helper.make_node("Identity", ["s"], ["t"]),
         dequant_node("t", "y", "d")],
        {"w": w, "d": words(0.01), "b": np.arange(6, dtype=np.int32)}, {"x": shape}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(*shape, spread=4)
    centered = quantized(x, scale, offset, 16) - offset
    assert abs(centered).max() > 1 << 14
    plain = {"pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1]}
    if op == "MatMul":
        sums = centered @ w.astype(np.int64) + np.arange(6)
    elif op == "Conv":
        sums = conv(centered, w.astype(np.int64), **plain)
    else:
        sums = conv_transpose(centered, w.astype(np.int64), output_padding=[0, 0], **plain)
    check(model, {"x": x}, dequantized(sums, np.float32([0.01]), 0))


@pytest.mark.parametrize("op", ["Conv", "MatMul", "ConvTranspose", "Gemm"])
def test_weights_of_4_bits_share_bytes_along_the_inputs(op: str) -> None:
    full = codes_of(6, 4, 3, 3, low=-8, high=7) if "Conv" in op else codes_of(6, 5, low=-8, high=7)
    axis = 1 if op == "Conv" else 0
    low, high = np.take(full, range(0, full.shape[axis], 2), axis), np.take(full, range(1, full.shape[axis], 2), axis)
    packed = ((low & 15) | (high << 4)).astype(np.int8)
    channels = 4 if op == "Conv" else 6
    shape = [1, channels, 5, 5] if "Conv" in op else [3, channels]
    quantized_weight = helper.make_node("AscendWeightQuant", ["w", "o"], ["wq"], dst_type="INT4")
    model = deploy(
        [quant_node("x", "q", SCALE, -3), quantized_weight, helper.make_node(op, ["q", "wq"], ["s"]),
         dequant_node("s", "y", "d")],
        {"w": packed, "o": np.zeros(1, np.int8), "d": words(0.25)}, {"x": shape}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(*shape)
    centered, wide = quantized(x, SCALE, -3) + 3, full.astype(np.int64)
    plain = {"pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1]}
    if op == "Conv":
        sums = conv(centered, wide, **plain)
    elif op == "ConvTranspose":
        sums = conv_transpose(centered, wide, output_padding=[0, 0], **plain)
    else:
        sums = centered @ wide
    check(model, {"x": x}, dequantized(sums, np.float32([0.25]), 0))


def test_weights_of_4_bits_in_bytes_of_their_own_are_not_split() -> None:
    w = codes_of(6, 5, low=-8, high=7)
    quantized_weight = helper.make_node("AscendWeightQuant", ["w"], ["wq"], dst_type="INT4")
    model = deploy(
        [quant_node("x", "q", SCALE, -3, "INT4"), quantized_weight, helper.make_node("MatMul", ["q", "wq"], ["s"]),
         dequant_node("s", "y", "d")],
        {"w": w, "d": words(0.25)}, {"x": [2, 6]}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(2, 6, spread=0.2)
    sums = (quantized(x, SCALE, -3, 4) + 3) @ w.astype(np.int64)
    check(model, {"x": x}, dequantized(sums, np.float32([0.25]), 0))


def test_offset_of_a_weight() -> None:
    w = codes_of(6, 5)
    quantized_weight = helper.make_node("AscendWeightQuant", ["w", "o"], ["wq"], dst_type="INT8")
    model = deploy(
        [quant_node("x", "q", SCALE, -3), quantized_weight, helper.make_node("MatMul", ["q", "wq"], ["s"]),
         dequant_node("s", "y", "d")],
        {"w": w, "o": np.full(5, 7, np.int8), "d": words(0.25)}, {"x": [2, 6]}, {"y": FLOAT},
    )  # fmt: skip
    x = reals(2, 6)
    sums = (quantized(x, SCALE, -3) + 3) @ (w.astype(np.int64) - 7)
    check(model, {"x": x}, dequantized(sums, np.float32([0.25]), 0))


@pytest.mark.parametrize(
    ("mode", "rounded"), [("Round", np.rint), ("Floor", np.floor), ("Ceil", np.ceil), ("Trunc", np.trunc)]
)
def test_rounding_ties_and_limits(mode: str, rounded: Any) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 1e9, -1e9, 3.2, -3.2, 0.0], np.float32)
    model = deploy([quant_node("x", "y", 1.0, 3, round_mode=mode)], {}, {"x": [11]}, {"y": INT8})
    check(model, {"x": x}, np.clip(rounded(x) + 3, -128, 127).astype(np.int8))


def test_the_stored_reciprocal_is_multiplied_with() -> None:
    """A division by the scale gives other codes than the file does."""
    scale = np.float32(0.0333)
    x = (np.arange(-2000, 2000) / 2).astype(np.float32) * scale
    model = deploy([quant_node("x", "y", float(scale), 0)], {}, {"x": [4000]}, {"y": INT8})
    expected = np.clip(np.rint(x * (np.float32(1) / scale)), -128, 127)
    assert (expected != np.clip(np.rint(x / scale), -128, 127)).any()
    check(model, {"x": x}, expected.astype(np.int8))


def test_codes_as_output_keep_their_type_and_their_readers() -> None:
    w = codes_of(4, 3)
    model = deploy(
        [quant_node("x", "q", 0.001, -5, "INT16"), helper.make_node("MatMul", ["q", "w"], ["s"]),
         dequant_node("s", "y", "d")],
        {"w": w, "d": words(0.5)}, {"x": [2, 4]}, {"y": FLOAT, "q": INT16},
    )  # fmt: skip
    x = reals(2, 4)
    codes = quantized(x, 0.001, -5, 16)
    check(model, {"x": x}, codes.astype(np.int16), "q")
    check(model, {"x": x}, dequantized((codes + 5) @ w.astype(np.int64), np.float32([0.5]), 0))


def test_roots_relu_and_half_results() -> None:
    w = codes_of(4, 3)
    nodes = [
        helper.make_node("AscendQuant", ["x"], ["q"], scale=4.0, offset=0.0, sqrt_mode=1),
        helper.make_node("MatMul", ["q", "w"], ["s"]),
        dequant_node("s", "y", "d", sqrt_mode=1, relu_flag=1, dtype=1),
        helper.make_node("AscendAntiQuant", ["q"], ["z"], scale=0.25, offset=2.0, sqrt_mode=1, dtype=1),
    ]
    half = TensorProto.FLOAT16
    model = deploy(nodes, {"w": w, "d": words(0.125)}, {"x": [2, 4]}, {"y": half, "z": half}, half=True)
    x = reals(2, 4).astype(np.float16)
    codes = np.clip(np.rint(x.astype(np.float32) * 16), -128, 127).astype(np.int64)
    expected = np.maximum(dequantized(codes @ w.astype(np.int64), np.float32([1 / 64]), 0), 0).astype(np.float16)
    assert (expected == 0).any()
    check(model, {"x": x}, expected)
    check(model, {"x": x}, ((codes - 2) / 16).astype(np.float16), "z")


@pytest.mark.parametrize("opset", [8, 11, 13, 16, 22])
def test_all_operator_sets_that_the_device_reads(opset: int) -> None:
    w = codes_of(4, 3, 3, 3)
    cast = helper.make_node("Cast", ["b"], ["bf"], to=FLOAT)
    model = deploy(
        [quant_node("x", "q", SCALE, -17), cast, helper.make_node("Conv", ["q", "w", "bf"], ["s"], pads=[1] * 4),
         dequant_node("s", "f", "d"), helper.make_node("Relu", ["f"], ["y"])],
        {"w": w, "b": np.arange(4, dtype=np.int32), "d": words(0.1)}, {"x": [1, 3, 6, 6]}, {"y": FLOAT}, opset=opset,
    )  # fmt: skip
    x = reals(1, 3, 6, 6)
    sums = conv(
        quantized(x, SCALE, -17) + 17, w.astype(np.int64), pads=[1] * 4, strides=[1, 1], dilations=[1, 1]
    )  # fmt: skip
    expected = np.maximum(dequantized(sums + np.arange(4).reshape(-1, 1, 1), np.float32([0.1]), 1), 0)
    assert check(model, {"x": x}, expected).opset == max(opset, 13)


def test_one_quantization_feeds_several_layers() -> None:
    nodes = [quant_node("x", "q", SCALE, -17)]
    for i in (0, 1):
        nodes += [helper.make_node("MatMul", ["q", f"w{i}"], [f"s{i}"]), dequant_node(f"s{i}", f"y{i}", "d")]
    constants = {"w0": codes_of(4, 3), "w1": codes_of(4, 2), "d": words(0.1)}
    model = deploy(nodes, constants, {"x": [2, 4]}, {"y0": FLOAT, "y1": FLOAT})
    x = reals(2, 4)
    for i in (0, 1):
        sums = (quantized(x, SCALE, -17) + 17) @ constants[f"w{i}"].astype(np.int64)
        graph = check(model, {"x": x}, dequantized(sums, np.float32([0.1]), 0), f"y{i}")
    assert ops(graph).count("Clip") == ops(graph).count("Cast") - 2 == 1


def test_a_float_model_is_left_alone() -> None:
    model = deploy([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": [2]}, {"y": FLOAT})
    graph = GraphModel.from_proto(model)
    report = apply(graph, AssignNames(), LiftConstants(), SimulateAscend())
    assert report.changed == 0
    assert ops(graph) == ["Relu"]


def layer(**changes: Any) -> onnx.ModelProto:
    """A MatMul with codes, and one thing wrong with it."""
    constants = {"w": codes_of(4, 3), "d": words(0.1), **changes.pop("constants", {})}
    nodes = changes.pop("nodes", None) or [
        quant_node("x", "q", SCALE, -17), helper.make_node("MatMul", ["q", "w"], ["s"], name="layer"),
        dequant_node("s", "y", "d"),
    ]  # fmt: skip
    return deploy(nodes, constants, {"x": [2, 4]}, {"y": FLOAT})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (layer(nodes=[helper.make_node("AscendRequant", ["x"], ["y"], name="r")]), "AscendRequant 'r' is an operator"),
        (layer(nodes=[helper.make_node("Mystery", ["x"], ["y"], name="m")]), "Mystery 'm' is an operator"),
        (layer(constants={"d": words(0.1) | np.uint64(3 << 32)}), "more than a float32"),
        (layer(constants={"d": np.float32([0.1])}), "must be uint64 words"),
        (layer(constants={"d": words(-0.1)}), "finite and > 0"),
        (layer(constants={"w": codes_of(4, 3).astype(np.float32)}), "'w' (input 1) holds no codes"),
        (layer(nodes=[quant_node("x", "q", SCALE, 200), dequant_node("q", "y", "d")]), "offset is 200"),
        (layer(nodes=[quant_node("x", "q", SCALE, 0), dequant_node("q", "y", "d")]), "not the result of a layer"),
        (layer(nodes=[quant_node("x", "q", SCALE, 0), helper.make_node("Sigmoid", ["q"], ["y"], name="act")]),
         "Sigmoid 'act' reads 'q', which holds codes"),
        (layer(nodes=[helper.make_node("MatMul", ["x", "w"], ["s"], name="bare"), quant_node("s", "y", 1.0, 0)]),
         "MatMul 'bare' has an int8 weight, but 'x' does not come from an AscendQuant"),
        (layer(nodes=[quant_node("x", "q", SCALE, 0), helper.make_node("MatMul", ["q", "w"], ["s"]),
                      helper.make_node("Transpose", ["s"], ["t"]), dequant_node("t", "y", "d")],
               constants={"d": words(0.1, 0.2, 0.3)}), "has a scale per channel, but between it and its layer"),
        (layer(nodes=[quant_node("x", "q", SCALE, 0, "FLOAT8"), dequant_node("q", "y", "d")]), "dst_type is 'FLOAT8'"),
        (layer(nodes=[quant_node("x", "q", SCALE, 0), helper.make_node("Gemm", ["q", "w"], ["s"], alpha=2.0),
                      dequant_node("s", "y", "d")]), "'alpha': 2.0"),
        (layer(nodes=[quant_node("x", "q", SCALE, 0), helper.make_node("Gemm", ["q", "w", "b"], ["s"]),
                      dequant_node("s", "y", "d")], constants={"b": np.float32([0.5, 1, 2])}), "no whole numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated_is_refused_by_name(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(GraphError) as caught:
        simulated(model)
    assert message in str(caught.value)
