"""ReadQdq: numbers of layers out of Q/DQ models, and a float graph that means the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.context import QuantContext
from onnxq.errors import GraphError
from onnxq.factors import LayerFactors
from onnxq.graph import GraphModel
from onnxq.passes._base import PassReport
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.quantize_outputs import QuantizeOutputs
from onnxq.passes.read_qdq import ReadQdq
from onnxq.passes.sweep import Sweep
from tests.graphs import apply, build, context, normal, ops, reasons, run

I8, U8 = np.int8, np.uint8


def read(model: onnx.ModelProto) -> tuple[GraphModel, dict[str, LayerFactors], PassReport]:
    graph, ctx = GraphModel.from_proto(model), context()
    apply(graph, AssignNames(), LiftConstants(), ctx=ctx)
    report = apply(graph, ReadQdq(), ctx=ctx)
    apply(graph, Sweep(), ctx=ctx)
    onnx.shape_inference.infer_shapes(graph.to_proto(), check_type=True, strict_mode=True)
    return graph, ctx.factors, report


def codes(*shape: int, low: int = -127) -> np.ndarray:
    return np.random.default_rng(shape).integers(low, 128, shape).astype(I8)


def named(text: str, *names: str, **constants: Any) -> onnx.ModelProto:
    """`build`, with names for the last nodes."""
    model = build(text, **constants)
    for node, name in zip(model.graph.node[-len(names) :], names, strict=True):
        node.name = name
    return model


CONV = """g (float[1,3,6,6] x) => (float[1,4,4,4] y) {
    xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear <axis = 0> (w, ws, wz) bd = DequantizeLinear <axis = 0> (b, bs) y = Conv(xd, wd, bd) }"""


@pytest.mark.parametrize(("zero", "offset"), [(U8(140), 12), (I8(12), 12), (U8(0), -128)])
def test_conv_with_weights_and_bias_in_codes(zero: Any, offset: int) -> None:
    scales = np.linspace(0.01, 0.04, 4, dtype=np.float32)
    w, bias = codes(4, 3, 3, 3), np.array([7, -5, 100_000, 0], np.int32)
    model = named(
        CONV, "conv", s=0.05, z=zero, w=w, ws=scales, wz=np.zeros(4, I8), b=bias, bs=(scales * np.float32(0.05))
    )  # fmt: skip
    graph, factors, report = read(model)
    assert ops(graph) == ["Conv"]
    assert report.skipped == ()
    found = factors["conv"]
    assert (found.scale_d, found.offset_d, found.act_bits, found.wts_bits) == (np.float32(0.05), offset, 8, 8)
    np.testing.assert_array_equal(found.scale_w, scales)
    conv = graph.node("conv")
    floats = graph.value(conv.inputs[1])
    np.testing.assert_array_equal(np.rint(floats / scales.reshape(-1, 1, 1, 1)), w)
    np.testing.assert_array_equal(np.rint(graph.value(conv.inputs[2]) / (scales * np.float32(0.05))), bias)


def test_weights_as_floats_in_front_of_a_pair_stay_as_they_are() -> None:
    w = normal(4, 3, 3, 3)
    text = """g (float[1,3,6,6] x) => (float[1,4,4,4] y) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
        wq = QuantizeLinear <axis = 0> (w, ws, wz) wd = DequantizeLinear <axis = 0> (wq, ws, wz) y = Conv(xd, wd) }"""
    scales = np.linspace(0.01, 0.04, 4, dtype=np.float32)
    graph, factors, _ = read(named(text, "conv", s=0.05, z=I8(0), w=w, ws=scales, wz=np.zeros(4, I8)))
    assert graph.node("conv").inputs[1].name == "w"
    np.testing.assert_array_equal(graph.value(graph.tensor("w")), w)
    np.testing.assert_array_equal(factors["conv"].scale_w, scales)


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("unsigned", [False, True])
def test_gemm_per_tensor_and_unsigned_weights(trans: int, unsigned: bool) -> None:
    w = codes(6, 8) if trans else codes(8, 6)
    stored, zero = ((w.astype(np.int16) + 128).astype(U8), U8(128)) if unsigned else (w, I8(0))
    text = f"""g (float[2,8] x) => (float[2,6] y) {{
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, ws, wz)
        y = Gemm <transB = {trans}> (xd, wd, b) }}"""
    graph, factors, _ = read(named(text, "fc", s=0.05, z=U8(128), w=stored, ws=0.02, wz=zero, b=normal(6)))
    assert factors["fc"].offset_d == 0
    np.testing.assert_array_equal(factors["fc"].scale_w, np.float32([0.02]))
    np.testing.assert_array_equal(graph.value(graph.node("fc").inputs[1]), w * np.float32(0.02))


def test_a_transpose_between_codes_and_layer_is_folded() -> None:
    w, scales = codes(6, 8), np.linspace(0.01, 0.06, 6, dtype=np.float32)
    text = """g (float[2,8] x) => (float[2,6] y) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear <axis = 0> (w, ws, wz)
        wt = Transpose <perm = [1, 0]> (wd) y = MatMul(xd, wt) }"""
    graph, factors, _ = read(named(text, "fc", s=0.05, z=I8(3), w=w, ws=scales, wz=np.zeros(6, I8)))
    assert ops(graph) == ["MatMul"]
    np.testing.assert_array_equal(graph.value(graph.node("fc").inputs[1]), (w * scales[:, None]).T)
    np.testing.assert_array_equal(factors["fc"].scale_w, scales)


def test_scales_of_a_grouped_transposed_convolution_count_all_outputs() -> None:
    text = """g (float[1,4,3,3] x) => (float[1,6,5,5] y) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear <axis = 1> (w, ws, wz)
        y = ConvTranspose <group = 2> (xd, wd) }"""
    scales = np.float32([0.01, 0.02, 0.03])
    _, factors, _ = read(named(text, "up", s=0.05, z=I8(3), w=codes(4, 3, 3, 3), ws=scales, wz=np.zeros(3, I8)))
    np.testing.assert_array_equal(factors["up"].scale_w, np.tile(scales, 2))


def test_layers_without_weights() -> None:
    text = """g (float[1,2,4,4] x, float[1,2,4,4] v) => (float[1,2,4,4] y, float[1,2,3,3] p, float[1,2,3,3] m) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) vq = QuantizeLinear(v, t, z)
        vd = DequantizeLinear(vq, t, z) y = Add(xd, vd) p = AveragePool <kernel_shape = [2, 2]> (xd)
        m = MaxPool <kernel_shape = [2, 2]> (xd) }"""
    graph, factors, report = read(named(text, "sum", "average", "largest", s=0.05, t=0.07, z=U8(128)))
    assert set(factors) == {"sum:0", "sum:1", "average", "largest:0"}
    assert all(factors[key].tensor_quantize for key in ("sum:0", "sum:1", "largest:0"))
    assert factors["sum:1"].scale_d == np.float32(0.07)
    np.testing.assert_array_equal(factors["average"].scale_w, np.ones(1))
    assert report.skipped == ()
    assert ops(graph) == ["Add", "AveragePool", "MaxPool"]


def test_matmul_of_two_variables_must_be_symmetric() -> None:
    text = """g (float[2,4,3] a, float[2,3,5] b) => (float[2,4,5] y, float[2,4,5] u) {
        aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z) bq = QuantizeLinear(b, s, z)
        bd = DequantizeLinear(bq, s, z) cq = QuantizeLinear(b, s, n) cd = DequantizeLinear(cq, s, n)
        y = MatMul(ad, bd) u = MatMul(ad, cd) }"""
    _, factors, report = read(named(text, "even", "uneven", s=0.05, z=I8(0), n=I8(5)))
    assert set(factors) == {"even:0", "even:1"}
    assert "symmetric" in reasons(report)["uneven"]


def test_numbers_reach_layers_through_what_moves_values() -> None:
    text = """g (float[1,2,4,4] x) => (float[1,6] y) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, ws, wz)
        m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (xd) f = Flatten(m) y = Gemm(f, wd) }"""
    graph, factors, report = read(named(text, "pool", "flat", "fc", s=0.05, z=U8(3), w=codes(8, 6), ws=0.02, wz=I8(0)))
    assert set(factors) == {"fc"}  # the pool has the codes of the layer behind it
    assert report.skipped == ()
    assert ops(graph) == ["MaxPool", "Flatten", "Gemm"]


TAIL = """g (float[2,8] x) => (float[2,6] y) {
    xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, ws, wz)
    h = Gemm(xd, wd) hq = QuantizeLinear(h, t, v) hd = DequantizeLinear(hq, t, v) y = %s(hd) }"""


@pytest.mark.parametrize(("zero", "clamped"), [(U8(0), True), (U8(9), False)])
def test_a_dropped_pair_leaves_a_clip_where_it_may_stand_for_a_relu(zero: Any, clamped: bool) -> None:
    constants = {"s": 0.05, "z": I8(3), "w": codes(8, 6), "ws": 0.02, "wz": I8(0), "t": np.float32(0.5), "v": zero}
    model = named(TAIL % "Tanh", "fc", "q", "d", "act", **constants)
    graph, _, report = read(model)
    assert ("Clip" in ops(graph)) == clamped
    assert "Tanh 'act'" in reasons(report)["d"]
    x = normal(2, 8, scale=2.0)
    expected, found = (run(m, {"x": x})["y"] for m in (model, graph))
    assert np.abs(expected - found).max() <= (0.5 if not clamped else 0.26)  # half a step of t at the most
    if clamped:
        assert found.min() == 0


def test_a_pair_at_an_output_keeps_the_name() -> None:
    text = """g (float[2,8] x) => (float[2,6] y) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, ws, wz)
        h = Gemm(xd, wd) yq = QuantizeLinear(h, s, z) y = DequantizeLinear(yq, s, z) }"""
    graph, _, report = read(build(text, s=0.05, z=I8(3), w=codes(8, 6), ws=0.02, wz=I8(0)))
    assert ops(graph) == ["Gemm", "Identity"]
    assert len(report.skipped) == 1


@pytest.mark.parametrize("zero", [I8(5), U8(133)])
def test_codes_at_an_output_become_signed_and_an_ascend_quant(zero: Any) -> None:
    kind = "int8" if zero.dtype == I8 else "uint8"
    text = f"""g (float[2,8] x) => ({kind}[2,6] y) {{
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, ws, wz)
        h = Gemm(xd, wd) y = QuantizeLinear(h, t, v) }}"""
    model = build(text, s=0.05, z=I8(3), w=codes(8, 6), ws=0.02, wz=I8(0), t=0.5, v=zero)
    graph, _, report = read(model)
    assert bool(report.notes) == (zero.dtype == U8)
    assert graph.to_proto().graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT8
    apply(graph, QuantizeOutputs())
    node = graph.nodes("AscendQuant")[0]
    assert node.outputs[0].name == "y"
    assert (node.attrs["scale"], node.attrs["offset"], node.attrs["dst_type"]) == (2.0, 5.0, "INT8")


def test_layers_with_codes_on_one_side_only_stay_float() -> None:
    text = """g (float[2,8] x) => (float[2,6] a, float[2,6] b, float[2,6] y) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, ws, wz)
        a = MatMul(x, wd) b = MatMul(xd, f) y = MatMul(xd, wd) }"""
    model = named(text, "left", "right", "both", s=0.05, z=I8(3), w=codes(8, 6), ws=0.02, wz=I8(0), f=normal(8, 6))
    graph, factors, report = read(model)
    assert set(factors) == {"both"}
    assert "its activation has none" in reasons(report)["left"]
    assert "only one of its inputs" in reasons(report)["right"]
    assert ops(graph) == ["MatMul"] * 3


def test_16_bit_activations_and_operators_of_onnx_runtime() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[2,8] x) => (float[2,6] y) {
        xq = com.microsoft.QuantizeLinear(x, s, z) xd = com.microsoft.DequantizeLinear(xq, s, z)
        wd = DequantizeLinear(w, ws, wz) y = MatMul(xd, wd) }"""
    constants = {"s": 0.001, "z": np.uint16(32768 + 77), "w": codes(8, 6), "ws": 0.02, "wz": I8(0)}
    _, factors, _ = read(named(text, "fc", check=False, **constants))
    assert (factors["fc"].act_bits, factors["fc"].offset_d) == (16, 77)


def conv_with(**changes: Any) -> onnx.ModelProto:
    scales = np.linspace(0.01, 0.04, 4, dtype=np.float32)
    text = changes.pop("text", CONV)
    good = {"s": 0.05, "z": I8(3), "w": codes(4, 3, 3, 3), "ws": scales, "wz": np.zeros(4, I8),
            "b": np.zeros(4, np.int32), "bs": scales}  # fmt: skip
    return named(text, "conv", **{**good, **changes})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (conv_with(wz=np.array([0, 0, 3, 0], I8)), "Ascend takes symmetric weights only"),
        (conv_with(text=CONV.replace("xd = DequantizeLinear(xq, s, z)", "xd = DequantizeLinear(xq, t, z)"), t=0.06),
         "are a pair, but their numbers differ"),
        (conv_with(text=CONV.replace("xd = DequantizeLinear(xq, s, z)", "xd = DequantizeLinear(xq, s, t)"), t=I8(4)),
         "int8 of scale 0.05 and zero point 3 and int8 of scale 0.05 and zero point 4"),
        (conv_with(s=np.float32([0.1, 0.2, 0.3]), z=np.zeros(3, I8)), "has 3 scales for an activation"),
        (conv_with(text=CONV.replace("<axis = 0> (w", "<axis = 1> (w"), ws=np.float32([0.1, 0.2, 0.3]),
                   wz=np.zeros(3, I8)), "one for each output (axis 0)"),
        (conv_with(text=CONV.replace("float[1,3,6,6] x", "float[1,3,6,6] x, float u").replace("x, s, z", "x, u, z")),
         "computed when the model runs"),
        (conv_with(text="""g (int8[1,3,6,6] x) => (float[1,4,4,4] y) {
            xd = DequantizeLinear(x, s, z) wd = DequantizeLinear <axis = 0> (w, ws, wz) y = Conv(xd, wd) }"""),
         "which no QuantizeLinear writes"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(GraphError) as caught:
        read(model)
    assert message in str(caught.value)


def test_the_context_gets_the_factors_only_if_all_is_well() -> None:
    ctx: QuantContext = context()
    graph = GraphModel.from_proto(conv_with(wz=np.array([0, 0, 3, 0], I8)))
    with pytest.raises(GraphError):
        apply(graph, AssignNames(), LiftConstants(), ReadQdq(), ctx=ctx)
    assert ctx.factors == {}
