"""InsertQdq: what is written, names that must stay, and results against the float model.

Bound: the SQNR of small networks with 8 bits on normal noise; seen are 31 dB and more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from tests.graphs import build, feeds_for, normal, ops, run

MIN_SQNR = 28.0
CONSTANTS: dict[str, Any] = {
    "W": normal(4, 4, 1, 1),
    "V": normal(4, 4, 1, 1, seed=2),
    "B": normal(4),
    "P": normal(8, 8),
    "Q": normal(8, 8, seed=2),
    "E": normal(9, 8),
    "zero": np.float32(0),
    "top": np.float32(0.7),
}


def quantized(
    text: str, *, recipe: Any = None, target: str = "ort", opset: int = 17, bound: float = MIN_SQNR
) -> onnx.ModelProto:
    """Quantize, check the model and its results, and that inputs and outputs are what they were."""
    used = {k: v for k, v in CONSTANTS.items() if f"{k})" in text or f"{k}," in text}
    model = onnx.shape_inference.infer_shapes(build(text, check=False, opset=opset, **used))
    feeds = [feeds_for(model, seed=s, free=4) for s in range(4)]
    result = onnxq.quantize(model, feeds, recipe=recipe, target=target, threads=1).model
    onnx.checker.check_model(result, full_check=True)
    assert [i.name for i in result.graph.input] == [i.name for i in model.graph.input]
    assert [o.name for o in result.graph.output] == [o.name for o in model.graph.output]
    for feed in feeds:
        wanted, found = run(model, feed), run(result, feed)
        for name in wanted:
            error = np.sum((wanted[name] - found[name]) ** 2)
            assert 10 * np.log10(np.sum(wanted[name] ** 2) / max(error, 1e-30)) >= bound, name
    return result


def image(body: str, outputs: str = "float[N,4,H,K] y") -> str:
    return f"g (float[N,4,H,K] x) => ({outputs}) {{ {body} }}"


def makers(model: onnx.ModelProto) -> dict[str, str]:
    return {o: n.op_type for n in model.graph.node for o in n.output}


# ---- what is written ------------------------------------------------------------------------------


def test_a_convolution_in_full() -> None:
    model = quantized(image("[conv] y = Conv(x, W, B)"))
    assert sorted(ops(model)) == ["Conv", *["DequantizeLinear"] * 4, *["QuantizeLinear"] * 2]
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weight = next(v for n, v in values.items() if n.startswith("W") and n.endswith("_quantized"))
    scale = next(v for n, v in values.items() if n.startswith("W") and n.endswith("_scale"))
    assert weight.dtype == np.int8
    assert weight.shape == (4, 4, 1, 1)
    assert scale.shape == (4,)
    assert np.abs(weight * scale.reshape(4, 1, 1, 1) - CONSTANTS["W"]).max() <= scale.max() / 2 * 1.001
    assert values["conv_bias_quantized"].dtype == np.int32
    np.testing.assert_allclose(values["conv_bias_scale"], values["x_scale"] * scale, rtol=1e-6)
    assert not values["conv_bias_zero_point"].any()


def test_quantize_and_dequantize_share_scale_and_zero_point() -> None:
    model = quantized(image("a = Conv(x, W) b = MaxPool <kernel_shape=[1,1]> (a) y = Conv(b, V)"))
    pairs = [tuple(n.input[1:]) for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs.count(("a_scale", "a_zero_point")) == 4  # a and b


def test_a_weight_read_by_two_layers_is_written_once() -> None:
    model = quantized("g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, P) b = Erf(a) y = MatMul(b, P) }")
    assert [t.name for t in model.graph.initializer].count("P_quantized") == 1
    assert "P" not in {t.name for t in model.graph.initializer}
    assert ops(model).count("DequantizeLinear") == 3


def test_a_weight_that_a_float_node_reads_too_stays_for_that_node() -> None:
    model = quantized("g (float[8,8] x) => (float[8,8] y) { a = MatMul(x, P) b = Max(a, P) y = MatMul(b, Q) }")
    assert {"P", "P_quantized"} <= {t.name for t in model.graph.initializer}


def test_absorbed_clamps_are_gone_one_behind_the_other_too() -> None:
    model = quantized(image("a = Conv(x, W) r = Relu(a) b = Clip(r, zero, top) y = Conv(b, V)"))
    assert ops(model).count("Conv") == 2
    assert {"Relu", "Clip"}.isdisjoint(ops(model))


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_a_tensor_read_twice_by_one_node(op: str) -> None:
    model = quantized(image(f"a = Conv(x, W) [n] b = {op}(a, a) y = Conv(b, V)"), bound=25)
    node = next(n for n in model.graph.node if n.name == "n")
    assert list(node.input) == ["a_dequantized"] * 2


# ---- names that must stay -------------------------------------------------------------------------


def test_a_graph_output_in_the_middle_keeps_its_name_and_gives_the_codes_values() -> None:
    model = quantized(image("a = Conv(x, W) y = Conv(a, V)", "float[N,4,H,K] a, float[N,4,H,K] y"))
    assert makers(model)["a"] == "DequantizeLinear"
    assert makers(model)["a_float"] == "Conv"


def test_the_output_of_an_absorbed_clamp_can_be_a_graph_output() -> None:
    model = quantized(image("a = Conv(x, W) r = Relu(a) y = Conv(r, V)", "float[N,4,H,K] r, float[N,4,H,K] y"))
    assert makers(model)["r"] == "DequantizeLinear"
    assert "Relu" not in ops(model)


def test_a_graph_input_that_is_read_in_float_too() -> None:
    model = quantized(image("a = Conv(x, W) b = Exp(x) c = Add(a, b) y = Conv(c, V)"), bound=25)
    exp = next(n for n in model.graph.node if n.op_type == "Exp")
    assert list(exp.input) == ["x"]


@pytest.mark.parametrize("first", ["a = Conv(x, W)", "c = Conv(x, W) a = Relu(c)"])
def test_a_tensor_that_a_body_reads_is_followed_by_its_name(first: str) -> None:
    model = quantized(
        f"""g (float[N,4,H,K] x, bool c0) => (float[N,4,H,K] y, float[N,4,H,K] z) {{ {first} y = Conv(a, V)
            z = If (c0) <then_branch = t () => (float[N,4,H,K] p) {{ p = Neg(a) }},
                         else_branch = e () => (float[N,4,H,K] q) {{ q = Identity(a) }}> }}"""
    )
    assert makers(model)["a"] == "DequantizeLinear"


def test_the_rows_of_an_embedding_have_the_tables_numbers() -> None:
    model = quantized("g (int64[N] i) => (float[N,8] y, float[N,8] e) { e = Gather(E, i) y = MatMul(e, P) }")
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    assert list(node.input[1:]) == ["E_scale", "E_zero_point"]
    assert makers(model)["e"] == "DequantizeLinear"
    assert ops(model).count("QuantizeLinear") == 1


# ---- types, sizes, opsets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "bound", "kinds"),
    [
        ({"activations": {"bits": 16}}, 35, {"UINT16"}),
        ({"weights": {"type": "int16"}, "activations": {"bits": 16}}, 70, {"INT16", "UINT16"}),
        ({"weights": {"type": "int4"}}, 12, {"INT4"}),
        ({"weights": {"type": "int4", "granularity": {"per_block": {"size": 2}}}}, 12, {"INT4"}),
        ({"activations": {"type": "int8"}}, MIN_SQNR, {"INT8"}),
        ({"weights": {"type": "uint8"}}, MIN_SQNR, {"UINT8"}),
    ],
    ids=["16-bit activations", "16 bits", "4 bits", "blocks of 4 bits", "int8", "uint8 weights"],
)
def test_other_types(recipe: dict[str, Any], bound: float, kinds: set[str]) -> None:
    model = quantized(
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, P) b = Erf(a) y = MatMul(b, Q) }",
        recipe=recipe,
        bound=bound,
    )
    types = {onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    assert kinds <= types
    assert model.opset_import[0].version >= (21 if kinds & {"INT4", "UINT16", "INT16"} else 17)


@pytest.mark.parametrize("shape", ["N,4,H,K", "1,4,H,K", "N,4,5,5", "2,4,5,5"])
def test_dynamic_dimensions_stay_dynamic(shape: str) -> None:
    text = f"g (float[{shape}] x) => (float[{shape}] y) {{ a = Conv(x, W) b = Relu(a) c = Conv(b, V) y = Add(c, x) }}"
    model = quantized(text)
    dims = [d.dim_param or str(d.dim_value) for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == shape.split(",")


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 21])
def test_every_opset_gives_per_channel_scales(opset: int) -> None:
    model = quantized(image("a = Conv(x, W, B) b = Relu(a) y = Conv(b, V)"), opset=opset)
    assert model.opset_import[0].version == max(opset, 13)
    weights = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith(("W", "V"))]
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert [shapes[n.input[1]] for n in weights] == [(4,), (4,)]


def test_a_model_that_nothing_can_be_quantized_of_comes_back_byte_for_byte(tmp_path: Any) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(build("g (float[N,4] x) => (float[N,4] y) { a = Exp(x) y = Relu(a) }"), path)
    result = onnxq.quantize(path, recipe={"calibration": {"random": True}})
    assert not result.changed
    assert len(result.plan.left_float()) == 2
    assert result.save(tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_narrow_codes_saturate_where_they_end() -> None:
    recipe = {"activations": {"bits": 4, "method": {"name": "percentile", "percentile": 90.0}}}
    text = "g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, W) }"
    model = onnxq.quantize(build(text, W=normal(4, 4)), {"x": normal(64, 4)}, recipe=recipe).model
    model.graph.output.append(onnx.helper.make_tensor_value_info("x_quantized", onnx.TensorProto.UINT8, None))
    codes = run(model, {"x": normal(64, 4, scale=9.0)})["x_quantized"]
    assert set(np.unique(codes)) <= set(range(16))
    assert codes.min() == 0
    assert codes.max() == 15


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
def test_a_layer_left_float_between_codes_stays_float(op: str) -> None:
    """ONNX Runtime would give its weights codes of its own, one scale for all channels."""
    weight = normal(4, 4, 1, 1, seed=1) if op != "Gemm" else normal(4, 4, seed=1)
    np.moveaxis(weight, 1 if op == "Conv" else 0, 0)[3] = (
        1000.0  # of an input that is always 0: one scale drowns the rest
    )
    constants = {"W": weight, "B": normal(4, seed=2), "E": np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)}
    body = f"b = {op}(a, W, B) y = Conv(b, E)"
    if op == "Gemm":
        body, constants["F"] = "f = Flatten(a) b = Gemm(f, W, B) y = Gemm(b, F)", normal(4, 4, seed=3)
    rank = "[N,4]" if op == "Gemm" else "[N,4,1,1]"
    model = build(f"g (float[N,4,1,1] x) => (float{rank} y) {{ a = Conv(x, E) {body} }}", check=False, **constants)
    for node in model.graph.node:
        node.name = node.output[0]
    data = normal(64, 4, 1, 1)
    data[:, 3] = 0.0
    result = onnxq.quantize(model, {"x": data}, recipe={"skip": ["b"], "refine": []}).model
    wanted, found = (run(result, {"x": data}, optimize=optimize)["y"] for optimize in (False, True))
    np.testing.assert_allclose(found, wanted, atol=np.abs(wanted).max() / 50)
