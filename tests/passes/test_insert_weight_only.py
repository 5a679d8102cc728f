"""InsertWeightOnly: every storage gives the floats of `decode`, and ONNX Runtime decodes them when it loads.

Plans and codes are made by hand here, so that any width and any numbers can be had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxq import runtime
from onnxq.algos.weight.blocks import encode_blocks
from onnxq.algos.weight.codes import WeightCodes, decode, encode
from onnxq.errors import GraphError, PassError
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, PassManager
from onnxq.passes.insert_weight_only import InsertWeightOnly
from onnxq.passes.sweep import Sweep
from onnxq.plan import Plan, WeightPlan
from onnxq.recipe import AbsMax
from onnxq.spec import QType, QuantSpec
from tests.graphs import build, context, feeds_for, normal, run

READY = frozenset({Fact.NAMED, Fact.PLAN, Fact.CODES})
DECODING = {"BitShift", "Cast", "Concat", "Reshape", "Slice", "Sub", "Mul", "Add", "DequantizeLinear"}
TWO_MATMULS = "g (float[N,6] x) => (float[N,6] y) { h = MatMul(x, W) y = MatMul(h, W) }"


def codes_for(
    weight: np.ndarray, bits: int, axis: int | None = None, *, mean: float = 0.01, low: int | None = None
) -> WeightCodes:
    """Codes that reach over a weight, with a variance and a mean that are not trivial."""
    low = -(1 << (bits - 1)) if low is None else low
    shape = () if axis is None else (weight.shape[axis],)
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    lows, highs = np.minimum(weight.min(others), 0), np.maximum(weight.max(others), 1e-3)
    scale = np.asarray((highs - lows) / ((1 << bits) - 1), np.float32).reshape(shape)
    zero = np.asarray(np.rint(low - lows / scale), np.int32).reshape(shape)
    rng = np.random.default_rng(bits)
    variance = np.asarray(1 + 0.01 * rng.random(shape), np.float32)
    return WeightCodes(bits, low, axis, scale, zero, variance, np.asarray(mean * rng.random(shape), np.float32))


def inserted(
    model: onnx.ModelProto, codes: Mapping[tuple[str, int], WeightCodes], storage: str = "packed", **options: Any
) -> onnx.ModelProto:
    """The model after the pass; weights are given by node name and input."""
    graph = GraphModel.from_proto(model)
    ctx = context()
    spec = QuantSpec(QType.INT8)
    plans = []
    for (node, index), numbers in codes.items():
        tensor = graph.node(node).inputs[index].name
        plans.append(WeightPlan(node, index, tensor, tensor, spec, AbsMax()))
        ctx.weight_codes[tensor] = numbers
    ctx.plan = Plan(weights=tuple(plans))
    PassManager([InsertWeightOnly(storage, **options), Sweep()], initial=READY).run(graph, ctx)
    result = graph.to_proto()
    onnx.checker.check_model(result, full_check=True)
    return result


def named(text: str, **options: Any) -> onnx.ModelProto:
    """A model whose nodes are called n0, n1, ..."""
    model = build(text, **options)
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    return model


def operators(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def with_weight(model: onnx.ModelProto, name: str, weight: np.ndarray) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(weight, name))
    return result


def stored_bytes(model: onnx.ModelProto, part: str) -> int:
    return sum(len(t.raw_data) for t in model.graph.initializer if part in t.name)


# ---- packed ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 16),
    shape=st.sampled_from([(3, 5), (8, 4), (2, 3, 3, 3), (40, 7), (1, 64)]),
    axis=st.sampled_from([None, 0, 1]),
    mean=st.sampled_from([0.0, 0.01]),
    low=st.sampled_from([None, 0, -3]),
)
def test_packed_weights_come_out_bit_for_bit(
    bits: int, shape: tuple[int, ...], axis: int | None, mean: float, low: int | None
) -> None:
    weight = normal(*shape, seed=bits)
    dims = ",".join(map(str, shape))
    model = named(f"g (int64[K] i) => (float[{'K,' + dims.partition(',')[2]}] y) {{ y = Gather(W, i) }}", W=weight)
    codes = codes_for(weight, bits, axis, mean=mean, low=low)
    result = inserted(model, {("n0", 0): codes})
    found = run(result, {"i": np.arange(shape[0])})["y"]
    np.testing.assert_array_equal(found, decode(encode(weight, codes), codes))
    assert operators(runtime.optimized(result)) == ["Gather"]


@pytest.mark.parametrize("bits", range(1, 17))
def test_the_file_holds_as_many_bits_as_the_codes_are_wide(bits: int) -> None:
    weight = normal(64, 50)
    model = named("g (float[N,64] x) => (float[N,50] y) { y = MatMul(x, W) }", W=weight)
    result = inserted(model, {("n0", 1): codes_for(weight, bits, 1)})
    assert stored_bytes(result, "W_packed") == weight.size * bits // 8
    assert not any(t.name == "W" for t in result.graph.initializer)


def test_a_shared_weight_is_decoded_once() -> None:
    weight = normal(6, 6)
    codes = codes_for(weight, 5, None)
    result = inserted(named(TWO_MATMULS, W=weight), {("n0", 1): codes, ("n1", 1): codes})
    assert operators(result).count("Cast") == 1
    feed = feeds_for(result, seed=1)
    wanted = run(named(TWO_MATMULS, W=decode(encode(weight, codes), codes)), feed)
    np.testing.assert_array_equal(run(result, feed)["y"], wanted["y"])


def test_constants_of_the_decoders_are_shared() -> None:
    weights = {"V": normal(6, 10), "W": normal(10, 7)}
    model = named("g (float[N,6] x) => (float[N,7] y) { h = MatMul(x, V) y = MatMul(h, W) }", **weights)
    codes = {("n0", 1): codes_for(weights["V"], 7, 1), ("n1", 1): codes_for(weights["W"], 7, 1)}
    names = [t.name for t in inserted(model, codes).graph.initializer]
    assert len(names) == len(set(names))
    assert names.count("left_2_of_7") == 1
    assert not any(n.startswith("left_2_of_7_") for n in names)


def test_names_of_the_model_are_left_to_it() -> None:
    model = named(
        "g (float[N,6] x) => (float[N,6] y) { W_decoded = Relu(x) left_4_of_4 = MatMul(W_decoded, W) "
        "y = Add(left_4_of_4, W_scale) }",
        W=normal(6, 6), W_scale=normal(6),
    )  # fmt: skip
    codes = codes_for(normal(6, 6), 4, 1)
    result = inserted(model, {("n1", 1): codes})
    feed = feeds_for(model, seed=1)
    wanted = run(with_weight(model, "W", decode(encode(normal(6, 6), codes), codes)), feed)["y"]
    np.testing.assert_array_equal(run(result, feed)["y"], wanted)


def test_a_weight_that_others_read_keeps_its_floats_for_them() -> None:
    weight = normal(6, 6)
    text = "g (float[N,6] x) => (float[N,6] y, float[6,6] V) { y = MatMul(x, W) V = Transpose<perm=[0,1]>(W) }"
    codes = codes_for(weight, 3, 0)
    found = run(inserted(named(text, W=weight), {("n0", 1): codes}), {"x": np.eye(6, dtype=np.float32)})
    np.testing.assert_array_equal(found["V"], weight)
    np.testing.assert_array_equal(found["y"], decode(encode(weight, codes), codes))


def test_a_weight_that_a_body_reads_keeps_its_floats_for_it() -> None:
    text = """g (float[N,6] x, bool c) => (float[N,6] y) {
        h = MatMul(x, W)
        k = If (c) <then_branch = a () => (float[N,6] p) { p = MatMul(x, W) },
                    else_branch = b () => (float[N,6] q) { q = Identity(x) }>
        y = Sub(h, k) }"""
    weight = normal(6, 6)
    codes = codes_for(weight, 2, 0)
    result = inserted(named(text, W=weight), {("n0", 1): codes})
    eye = np.eye(6, dtype=np.float32)
    found = run(result, {"x": eye, "c": np.array(True)})["y"]
    np.testing.assert_array_equal(found, decode(encode(weight, codes), codes) - weight)


@pytest.mark.parametrize("storage", ["packed", "native", "rounded"])
def test_recurrent_weights(storage: str) -> None:
    W, R = normal(2, 12, 5, scale=0.5), normal(2, 12, 3, scale=0.5)
    text = 'g (float[T,N,5] x) => (float[T,2,N,3] y) { y = LSTM<hidden_size=3, direction="bidirectional">(x, W, R) }'
    codes = {("n0", 1): codes_for(W, 6, 1), ("n0", 2): codes_for(R, 4, 1)}
    model = named(text, opset=21, ir_version=10, W=W, R=R)
    feed = feeds_for(model, seed=2, free=4)
    wanted = model
    for name, weight, c in (("W", W, codes["n0", 1]), ("R", R, codes["n0", 2])):
        wanted = with_weight(wanted, name, decode(encode(weight, c), c))
    found = run(inserted(model, codes, storage), feed)["y"]
    np.testing.assert_allclose(found, run(wanted, feed)["y"], rtol=0, atol=1e-6)


def test_weights_of_half_precision_stay_so() -> None:
    weight = normal(6, 6).astype(np.float16)
    model = named("g (float16[N,6] x) => (float16[N,6] y) { y = MatMul(x, W) }", W=weight)
    codes = codes_for(weight.astype(np.float32), 8, 1)
    for storage in ("packed", "rounded"):
        found = run(inserted(model, {("n0", 1): codes}, storage), {"x": np.eye(6, dtype=np.float16)})["y"]
        np.testing.assert_array_equal(found, decode(encode(weight, codes), codes).astype(np.float16))


# ---- native ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "opset", "container"),
    [(2, 21, "int4"), (3, 21, "int4"), (4, 21, "int4"), (4, 17, "int8"), (7, 13, "int8"), (8, 13, "int8"),
     (9, 21, "int16"), (16, 21, "int16")],
)  # fmt: skip
@pytest.mark.parametrize("axis", [None, 0])
def test_native_types(bits: int, opset: int, container: str, axis: int | None) -> None:
    weight = normal(6, 8, 1, 1)
    model = named("g (float[N,8,1,1] x) => (float[N,6,1,1] y) { y = Conv(x, W) }", opset=opset, ir_version=10, W=weight)
    codes = codes_for(weight, bits, axis)
    result = inserted(model, {("n0", 1): codes}, "native")
    stored = next(t for t in result.graph.initializer if t.name == "W_quantized")
    assert onnx.TensorProto.DataType.Name(stored.data_type).lower() == container
    assert operators(result) == ["DequantizeLinear", "Add", "Conv"]
    eye = np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)
    wanted = decode(encode(weight, codes), codes).reshape(6, 8).T
    np.testing.assert_array_equal(run(result, {"x": eye})["y"].reshape(8, 6), wanted)


def test_native_without_a_mean_has_no_add() -> None:
    weight = normal(6, 6)
    codes = codes_for(weight, 8, 1, mean=0.0)
    result = inserted(named(TWO_MATMULS, W=weight), {("n0", 1): codes, ("n1", 1): codes}, "native")
    assert operators(result) == ["DequantizeLinear", "MatMul", "MatMul"]


@pytest.mark.parametrize("low", [0, 5, -100])
def test_native_codes_with_another_low_end(low: int) -> None:
    weight = np.abs(normal(6, 6))
    codes = codes_for(weight, 4, 1, low=low)
    result = inserted(named(TWO_MATMULS, W=weight), {("n0", 1): codes, ("n1", 1): codes}, "native")
    found = run(result, {"x": np.eye(6, dtype=np.float32)})["y"]
    floats = decode(encode(weight, codes), codes)
    np.testing.assert_allclose(found, floats @ floats, rtol=1e-6)
    assert "DequantizeLinear" in operators(result)


def test_codes_that_no_integer_type_holds_are_packed() -> None:
    weight = normal(6, 6)
    model = named(TWO_MATMULS, W=weight)
    wide = codes_for(weight, 12, 1)
    assert "DequantizeLinear" not in operators(inserted(model, {("n0", 1): wide, ("n1", 1): wide}, "native"))
    far = WeightCodes(
        4, 3, None, np.array(0.1, np.float32), np.zeros((), np.int32), np.ones((), np.float32),
        np.zeros((), np.float32),
    )  # fmt: skip
    result = inserted(model, {("n0", 1): far, ("n1", 1): far}, "native")
    assert "BitShift" in operators(result)
    found = run(result, {"x": np.eye(6, dtype=np.float32)})["y"]
    floats = decode(encode(weight, far), far)
    np.testing.assert_allclose(found, floats @ floats, rtol=1e-6)


# ---- rounded --------------------------------------------------------------------------------------


def test_rounded_floats_have_the_values_of_the_codes() -> None:
    weight = normal(6, 6)
    codes = codes_for(weight, 3, 1)
    result = inserted(named(TWO_MATMULS, W=weight), {("n0", 1): codes, ("n1", 1): codes}, "rounded")
    (constant,) = result.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(constant), decode(encode(weight, codes), codes))
    assert operators(result) == ["MatMul", "MatMul"]


# ---- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("size", [16, 32, 128])
def test_blocks_of_a_matmul(bits: int, size: int) -> None:
    weight = normal(150, 120)
    model = named("g (float[N,M,150] x) => (float[N,M,120] y) { y = MatMul(x, W) }", W=weight)
    result = inserted(model, {("n0", 1): codes_for(weight, bits, 1)}, "blocks", block_size=size)
    assert operators(result) == ["MatMulNBits"]
    width = 4 if bits <= 4 else 8
    assert stored_bytes(result, "W_blocks") == 120 * -(-150 // size) * size * width // 8
    floats = encode_blocks(weight.T, width, size).decode().T
    feed = feeds_for(model, seed=1, free=3)
    np.testing.assert_allclose(run(result, feed)["y"], feed["x"] @ floats, rtol=0, atol=2e-4)
    assert np.abs(floats - weight).max() <= (weight.max() - weight.min()) / ((1 << width) - 1)


@pytest.mark.parametrize(("attrs", "shape"), [("", (160, 128)), ("transB=1, beta=0.5", (128, 160))])
def test_blocks_of_a_gemm_with_a_bias(attrs: str, shape: tuple[int, int]) -> None:
    weight, bias = normal(*shape), normal(128)
    text = f"g (float[N,160] x) => (float[N,128] y) {{ y = Gemm<{attrs}>(x, W, B) }}" if attrs else (
        "g (float[N,160] x) => (float[N,128] y) { y = Gemm(x, W, B) }"
    )  # fmt: skip
    model = named(text, W=weight, B=bias)
    result = inserted(model, {("n0", 1): codes_for(weight, 8, 0 if attrs else 1)}, "blocks")
    assert "MatMulNBits" in operators(result)
    assert "Gemm" not in operators(result)
    feed = feeds_for(model, seed=1, free=3)
    np.testing.assert_allclose(run(result, feed)["y"], run(model, feed)["y"], rtol=0, atol=0.3)


@pytest.mark.parametrize(
    ("text", "shape", "bits"),
    [
        ("g (float[N,8] x) => (float[N,9] y) { y = MatMul(x, W) }", (8, 9), 8),
        ("g (float[N,150] x) => (float[N,120] y) { y = MatMul(x, W) }", (150, 120), 9),
        ("g (float[N,150] x) => (float[N,120] y) { y = Gemm<alpha=2.0>(x, W) }", (150, 120), 8),
        ("g (float[150,N] x) => (float[N,120] y) { y = Gemm<transA=1>(x, W) }", (150, 120), 8),
        ("g (float[N,3,50,150] x) => (float[N,3,50,120] y) { y = MatMul(x, W) }", (3, 150, 120), 8),
    ],
)
def test_what_blocks_do_not_fit_is_packed(text: str, shape: tuple[int, ...], bits: int) -> None:
    weight = normal(*shape)
    model = named(text, W=weight)
    codes = codes_for(weight, bits, len(shape) - 1)
    result = inserted(model, {("n0", 1): codes}, "blocks")
    assert "MatMulNBits" not in operators(result)
    feed = feeds_for(model, seed=1)
    wanted = run(with_weight(model, "W", decode(encode(weight, codes), codes)), feed)["y"]
    np.testing.assert_allclose(run(result, feed)["y"], wanted, rtol=1e-5, atol=1e-5)


# ---- problems -------------------------------------------------------------------------------------


def test_an_old_operator_set_is_refused() -> None:
    weight = normal(6, 6)
    model = named(TWO_MATMULS, opset=9, W=weight)
    with pytest.raises(PassError, match=r"packed weights need operator set 11, the model has 9") as found:
        inserted(model, {("n0", 1): codes_for(weight, 4)})
    assert isinstance(found.value.__cause__, GraphError)


def test_scales_that_do_not_fit_are_refused() -> None:
    weight = normal(6, 6)
    with pytest.raises(PassError, match=r"'W' \[6, 6\] has 5 scales along axis 1"):
        inserted(named(TWO_MATMULS, W=weight), {("n0", 1): codes_for(normal(5, 5), 4, 1)})


def test_the_same_bytes_each_time() -> None:
    weight = normal(6, 6)
    codes = {("n0", 1): codes_for(weight, 7, 1)}
    once, again = (inserted(named(TWO_MATMULS, W=weight), codes).SerializeToString() for _ in range(2))
    assert once == again
