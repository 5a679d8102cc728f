"""InsertAscend and InsertAscendFake: what they write, and that both mean the same.

The deploy model is evaluated node by node (`tests.passes.ascend_reference`), the fake-quant model by ONNX Runtime.
Sums of int8 products stay below 2^24 here, so that float32 holds them exactly. Bounds: an error of one rounding in
float32 between the two; 8 bits on normal noise against the float model (seen: up to 0.03 for one layer).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.algos.ascend_words import dequant_scale
from onnxq.errors import PassError
from onnxq.factors import LayerFactors
from onnxq.graph import GraphModel
from onnxq.passes._ascend_layers import find_layers
from tests.graphs import build, normal, ops, run
from tests.passes.ascend import Written, deviations, written

SAME = 2e-6
ROUNDING = 0.08
CONSTANTS: dict[str, Any] = {
    "W1": normal(4, 4, 3),
    "W": normal(4, 4, 3, 3),
    "V": normal(4, 4, 3, 3, seed=2),
    "G": normal(6, 2, 3, 3),
    "D": normal(8, 1, 3, 3),
    "W3": normal(4, 4, 1, 3, 3),
    "T": normal(4, 3, 3, 3),
    "TG": normal(4, 3, 3, 3, seed=3),
    "B": normal(4),
    "B6": normal(6),
    "B3": normal(3),
    "P": normal(8, 6),
    "PT": normal(6, 8),
    "row": normal(1, 6),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "E": normal(4, 4, 1, 1),
    "B4": normal(1, 4, 1, 1),
}


def model_of(text: str, *, opset: int = 17) -> onnx.ModelProto:
    used = {k: v for k, v in CONSTANTS.items() if f"{k})" in text or f"{k}," in text}
    return build(text, opset=opset, **used)


def image(body: str, result: str = "float[N,a,b,c] y", channels: int = 4) -> str:
    return f"g (float[N,{channels},8,8] x) => ({result}) {{ {body} }}"


def rows(body: str, source: str = "float[N,8] x", result: str = "float[N,6] y") -> str:
    return f"g ({source}) => ({result}) {{ {body} }}"


def checked(
    text: str, *, recipe: Any = None, opset: int = 17, rounding: float = ROUNDING, same: float = SAME
) -> Written:
    """Insert in both ways; both give the same, and nearly what the float model gives."""
    found = written(model_of(text, opset=opset), recipe=recipe)
    between, error = deviations(found)
    assert between <= same
    assert 0 < error <= rounding
    assert [o.name for o in found.deploy.graph.output] == [o.name for o in found.float_model.graph.output]
    assert [i.name for i in found.deploy.graph.input] == [i.name for i in found.float_model.graph.input]
    onnx.checker.check_model(found.fake, full_check=True)
    feed = found.feeds[0]
    plain, optimized = run(found.fake, feed), run(found.fake, feed, optimize=True)
    for name, value in plain.items():  # nothing is folded into the integers
        np.testing.assert_array_equal(optimized[name], value)
    return found


def forced(*nodes: str) -> dict[str, Any]:
    return {"rules": [{"match": {"node": node}, "quantize": True} for node in nodes]}


# ---- the same function, for every kind of layer ---------------------------------------------------

LAYERS: dict[str, tuple[str, list[str]]] = {
    "conv": (image("[n] y = Conv<pads=[1,1,1,1]>(x, W)"), ["n"]),
    "conv bias": (image("[n] y = Conv<pads=[1,0,1,2], strides=[2,1]>(x, W, B)"), ["n"]),
    "conv dilated": (image("[n] y = Conv<dilations=[2,2]>(x, W, B)"), ["n"]),
    "conv grouped": (image("[n] y = Conv<group=2>(x, G, B6)"), ["n"]),
    "conv depthwise": (image("[n] y = Conv<group=4, pads=[1,1,1,1]>(x, D)"), ["n"]),
    "conv 1-D": ("g (float[N,4,9] x) => (float[N,4,M] y) { [n] y = Conv<pads=[1,1]>(x, W1, B) }", ["n"]),
    "conv 3-D": (
        "g (float[N,4,3,6,6] x) => (float[N,4,3,6,6] y) { [n] y = Conv<pads=[0,1,1,0,1,1]>(x, W3, B) }",
        ["n"],
    ),
    "conv transpose": (image("[n] y = ConvTranspose<strides=[2,2]>(x, T, B3)"), ["n"]),
    "conv transpose grouped": (image("[n] y = ConvTranspose<group=2>(x, TG, B6)"), ["n"]),
    "gemm": (rows("[n] y = Gemm(x, P, B6)"), ["n"]),
    "gemm transB": (rows("[n] y = Gemm<transB=1>(x, PT, B6)"), ["n"]),
    "gemm alpha beta row": (rows("[n] y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, PT, row)"), ["n"]),
    "gemm without bias": (rows("[n] y = Gemm(x, P)"), ["n"]),
    "matmul": (rows("[n] y = MatMul(x, P)"), ["n"]),
    "matmul of batches": (rows("[n] y = MatMul(x, P)", "float[N,3,8] x", "float[N,3,6] y"), ["n"]),
    "matmul of a vector": ("g (float[8] x) => (float[6] y) { [n] y = MatMul(x, P) }", ["n"]),
    "matmul add": (rows("m = MatMul(x, P) y = Add(B6, m)", "float[N,3,8] x", "float[N,3,6] y"), ["matmul_0"]),
    "two variables": (
        "g (float[N,2,3,8] x, float[N,2,8,5] z) => (float[N,2,3,5] y) { [n] y = MatMul(x, z) }",
        ["n:0", "n:1"],
    ),
    "a product with itself": ("g (float[5,5] x) => (float[5,5] y) { [n] y = MatMul(x, x) }", ["n:0", "n:1"]),
    "average pool": (image("[n] y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)"), ["n"]),
    "average pool counting pads": (
        image("[n] y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)"),
        ["n"],
    ),
    "average pool behind a Pad": (
        image("p = Pad(x, pads) [n] y = AveragePool<kernel_shape=[3,3], strides=[2,2]>(p)"),
        ["n"],
    ),
    "max pool": (image("[n] y = MaxPool<kernel_shape=[2,2]>(x)"), ["n:0"]),
    "add of a constant": (image("[n] y = Add(B4, x)"), ["n:1"]),
    "add of two": (image("c = Conv(x, E) [n] y = Add(c, x)"), ["conv_0", "n:0"]),
    "add to itself": (image("[n] y = Add(x, x)"), ["n:0"]),
}


@pytest.mark.parametrize("case", LAYERS)
def test_both_models_mean_the_same(case: str) -> None:
    text, layers = LAYERS[case]
    found = checked(text, recipe=forced("n") if layers[-1] in ("n:0", "n:1") else None)
    assert list(found.factors) == layers


@pytest.mark.parametrize("opset", [8, 9, 10, 11, 12, 13, 18, 21, 22])
def test_operator_sets(opset: int) -> None:
    body = "[c] a = Conv(x, W, B) r = Relu(a) [p] b = AveragePool<kernel_shape=[2,2]>(r) [d] y = Conv(b, V)"
    found = checked(image(body), opset=opset)
    assert list(found.factors) == ["c", "p", "d"]
    assert found.factors["c"].scale_w.shape == (4,)  # one for each channel, whatever the operator set


def test_a_newer_operator_set_is_refused() -> None:
    with pytest.raises(PassError, match=r"opset 23; .*8 to 22"):
        written(model_of(image("y = Conv(x, W)"), opset=23))


# ---- what is written ------------------------------------------------------------------------------


def test_a_convolution_in_full() -> None:
    found = checked(image("[c] a = Conv(x, W, B) y = Relu(a)"))
    assert ops(found.deploy) == ["AscendQuant", "Conv", "AscendDequant", "Relu"]
    factors, values = found.factors["c"], found.values()
    quant, dequant = found.node("c.quant"), found.node("c.dequant")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in quant.attribute}
    assert attributes["scale"] == np.float32(1) / np.float32(factors.scale_d)
    assert (attributes["offset"], attributes["dst_type"]) == (factors.offset_d, b"INT8")
    assert [a.type for a in quant.attribute] == [onnx.AttributeProto.FLOAT] * 2 + [onnx.AttributeProto.STRING]
    assert quant.domain == dequant.domain == ""
    assert list(found.node("c").input) == [quant.output[0], "W", "B"]
    assert list(dequant.input) == ["c_output0", "c.dequant.param"]
    assert list(dequant.output) == ["a"]
    assert onnx.helper.get_attribute_value(dequant.attribute[0]) == 0
    scale = np.float32(factors.scale_d) * factors.scale_w
    assert values["c.dequant.param"].tolist() == scale.view(np.uint32).tolist()
    assert values["c.dequant.param"].dtype == np.uint64
    codes = np.clip(np.rint(CONSTANTS["W"] / factors.scale_w.reshape(4, 1, 1, 1)), -128, 127)
    np.testing.assert_array_equal(values["W"], codes)
    np.testing.assert_array_equal(values["B"], np.rint(CONSTANTS["B"].astype(np.float64) / scale))
    assert (values["W"].dtype, values["B"].dtype) == (np.int8, np.int32)


def test_the_fake_model_in_full() -> None:
    found = checked(image("[c] a = Conv(x, W, B) y = Relu(a)"))
    names = [n.name for n in found.fake.graph.node]
    steps = [f"c.quant.fakequant.{step}" for step in ("mul", "round", "add", "clip", "sub")]
    assert names == [*steps, "c", "c.fakedequant.mul", "relu_1"]
    values, codes = found.values(of_fake=True), found.values()
    for name in ("W", "B"):
        assert values[name].dtype == np.float32
        np.testing.assert_array_equal(values[name], codes[name])
    assert values["c.quant.fakequant.min_val"] == -128
    assert values["c.quant.fakequant.max_val"] == 127
    assert values["c.quant.fakequant.offset"] == found.factors["c"].offset_d
    assert values["c.fakedequant.dqscale"].shape == (1, 4, 1, 1)


def test_a_transposed_gemm_is_folded() -> None:
    found = checked(rows("[g] y = Gemm<transB=1>(x, PT, B6)"))
    assert found.values()["PT"].shape == (8, 6)
    assert found.values(of_fake=True)["PT"].shape == (8, 6)
    assert not [a for a in found.node("g").attribute if a.name == "transB"]
    assert found.factors["g"].scale_w.shape == (1,)


def test_the_bias_behind_a_matmul_is_added_to_the_sums() -> None:
    found = checked(rows("[m] h = MatMul(x, P) y = Add(h, B6)", "float[N,3,8] x", "float[N,3,6] y"))
    assert ops(found.deploy) == ["AscendQuant", "MatMul", "Add", "AscendDequant"]
    assert found.values()["B6"].dtype == np.int32
    assert list(found.node("m.dequant").output) == ["y"]


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul(x, P) s = Add(h, B6) y = Sub(s, h)",
        "h = MatMul(x, P) y = Add(h, h)",
        "h = MatMul(x, P) y = Mul(h, B6)",
    ],
)
def test_what_is_no_bias_stays_behind_the_dequantization(body: str) -> None:
    text = rows(body.replace("h = ", "[m] h = ", 1), "float[N,3,8] x", "float[N,3,6] y")
    found = written(model_of(text))
    assert deviations(found)[0] <= SAME
    assert list(found.node("m.dequant").output) == ["h"]


def test_a_bias_that_does_not_fit_into_the_sums_is_added_as_floats() -> None:
    record = {"m": LayerFactors(1e-5, 0, np.full(1, 1e-6, np.float32))}
    text = rows("[m] h = MatMul(x, P) y = Add(h, B6)", "float[N,3,8] x", "float[N,3,6] y")
    found = written(model_of(text), record=record)
    assert ops(found.deploy) == ["AscendQuant", "MatMul", "AscendDequant", "Add"]
    assert found.values()["B6"].dtype == np.float32


def test_an_add_with_codes_of_its_own_is_no_bias() -> None:
    text = rows("[m] h = MatMul(x, P) [n] y = Add(h, B6)", "float[N,3,8] x", "float[N,3,6] y")
    found = checked(text, recipe=forced("n"))
    assert list(found.factors) == ["m", "n:0"]
    assert ops(found.deploy) == ["AscendQuant", "MatMul", "AscendDequant", "AscendQuant", "AscendAntiQuant", "Add"]


def test_one_bias_for_all_outputs() -> None:
    """A Gemm that NormalizeGemm has not seen."""
    graph = GraphModel.from_proto(build(rows("[g] y = Gemm(x, P, b)"), P=CONSTANTS["P"], b=np.float32(0.7)))
    factors = LayerFactors(0.5, 0, np.arange(1, 7, dtype=np.float32))
    layer = find_layers(graph, {"g": factors}, s19=False)[0]
    bias = layer.edits[1]
    assert bias.make(np.zeros(0, np.float32)).tolist() == np.rint(0.7 / (0.5 * np.arange(1, 7))).tolist()
    assert bias.shape == (6,)


def test_a_pad_of_codes_before_opset_11() -> None:
    text = image("s = Abs(x) [p] q = Pad<pads=[0,0,1,1,0,0,1,1]>(s) [n] y = AveragePool<kernel_shape=[3,3]>(q)")
    found = checked(text, opset=10)
    assert {a.name: onnx.helper.get_attribute_value(a) for a in found.node("p").attribute}["value"] == -128


def test_a_pad_of_codes_pads_with_the_code_of_zero() -> None:
    found = checked(
        LAYERS["average pool behind a Pad"][0].replace("p = Pad", "s = Abs(x) p = Pad").replace("Pad(x,", "Pad(s,")
    )
    offset = found.factors["n"].offset_d
    assert offset == -128
    assert ops(found.deploy) == ["Abs", "AscendQuant", "Pad", "AveragePool", "AscendDequant"]
    fill = found.values()[found.node("pad_1").input[2]]
    assert (fill, fill.dtype) == (offset, np.int8)


def test_a_pad_that_others_read_stays_in_front_of_the_quantization() -> None:
    body = "p = Pad(x, pads) [n] a = AveragePool<kernel_shape=[3,3]>(p) b = ReduceMean(p) y = Add(a, b)"
    found = checked(image(body))
    assert found.node("n.quant").input[0] == "p"
    assert found.deploy.graph.node[0].op_type == "Pad"


def test_max_pool_reads_floats_that_were_codes() -> None:
    found = checked(LAYERS["max pool"][0], recipe=forced("n"))
    assert ops(found.deploy) == ["AscendQuant", "AscendAntiQuant", "MaxPool"]
    node = found.node("n.anti_quant")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    factors = found.factors["n:0"]
    assert attributes == {"scale": np.float32(factors.scale_d), "offset": factors.offset_d, "dst_type": b"INT8"}


CLIPPED = image("[a] p = Conv(x, W) [clip] q = Clip(p, zero, six) [b] y = Conv(q, V)")


def clipped(top: float, text: str = CLIPPED, *, opset: int = 17) -> Written:
    """With codes of the second layer that end at `top`."""
    record = {
        "a": LayerFactors(0.03, 0, np.full(4, 0.02, np.float32)),
        "b": LayerFactors(top / 255, -128, np.full(4, 0.02, np.float32)),
    }
    constants = {"zero": np.float32(0), "six": np.float32(6)} if opset > 10 else {}
    model = build(text, opset=opset, check=False, W=CONSTANTS["W"], V=CONSTANTS["V"], **constants)
    found = written(onnx.shape_inference.infer_shapes(model), record=record)
    assert deviations(found)[0] <= SAME
    return found


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize(("top", "op"), [(5.9, "Relu"), (6.005, "Relu"), (6.1, "Clip")])
def test_a_clip_that_codes_imply_becomes_a_relu(top: float, op: str, opset: int) -> None:
    text = CLIPPED.replace("Clip(p, zero, six)", "Clip<min=0.0, max=6.0>(p)") if opset < 11 else CLIPPED
    found = clipped(top, text, opset=opset)
    for model in (found.deploy, found.fake):
        node = next(n for n in model.graph.node if n.name == "clip")
        assert node.op_type == op
        assert len(node.input) == (3 if op == "Clip" and opset > 10 else 1)


@pytest.mark.parametrize(
    "text",
    [
        CLIPPED.replace("[b] y = Conv(q, V)", "[b] r = Conv(q, V) s = ReduceMean(q) y = Add(r, s)"),
        CLIPPED.replace("y)", "y, float[N,d,e,f] q)"),
        CLIPPED.replace("zero", "six"),
        CLIPPED.replace("[clip]", "s = Neg(p) [clip]").replace("Clip(p", "Clip(s"),
    ],
)
def test_a_clip_whose_limit_matters_stays(text: str) -> None:
    assert "Clip" in ops(clipped(5.0, text).deploy)


# ---- several layers on one tensor -----------------------------------------------------------------


def test_equal_quantizations_of_one_tensor_are_one() -> None:
    found = checked(image("[a] p = Conv(x, W) [b] q = Conv(x, V, B) y = Sub(p, q)"), rounding=0.2)
    assert ops(found.deploy).count("AscendQuant") == 1
    assert found.node("b").input[0] == found.node("a").input[0] == found.node("a.quant").output[0]
    assert ops(found.fake).count("Round") == 1


def test_different_factors_are_quantizations_of_their_own() -> None:
    text = image("[a] p = Conv(x, W) [b] q = Conv(x, V, B) y = Sub(p, q)")
    record = {
        "a": LayerFactors(0.02, 3, np.full(4, 0.02, np.float32)),
        "b": LayerFactors(0.02, -3, np.full(1, 0.02, np.float32)),
    }
    found = written(model_of(text), record=record)
    assert deviations(found)[0] <= SAME
    assert {n.name for n in found.deploy.graph.node if n.op_type == "AscendQuant"} == {"a.quant", "b.quant"}
    assert found.values()["b.dequant.param"].shape == (1,)


def test_layers_with_settings_of_their_own_on_one_tensor() -> None:
    rules = [{"match": {"node": "b"}, "activations": {"symmetric": True, "method": "minmax"}}]
    found = checked(
        image("[a] p = Conv(x, W, B) [b] q = Conv(x, W, B) y = Add(p, q)"), recipe={"rules": rules}, rounding=0.2
    )
    assert found.factors["a"].offset_d != 0
    assert found.factors["b"].offset_d == 0
    assert ops(found.deploy).count("AscendQuant") == 2
    assert found.node("a").input[1] == found.node("b").input[1] == "W"


def test_a_graph_output_in_the_middle_keeps_its_name() -> None:
    found = checked(image("[a] p = Conv(x, W) [b] y = Conv(p, V)", "float[N,a,b,c] p, float[N,d,e,f] y"), rounding=0.2)
    assert list(found.node("a.dequant").output) == ["p"]
    assert list(found.node("a").output) == ["a_output0"]


def test_a_shared_weight_is_written_once_where_the_codes_agree() -> None:
    found = checked(image("[a] p = Conv(x, W, B) [b] y = Conv(p, W, B)"), rounding=0.2)
    assert found.node("a").input[1] == found.node("b").input[1] == "W"
    biases = {found.node(n).input[2] for n in ("a", "b")}  # the inputs differ in scale
    assert len(biases) == 2
    assert "B" in biases


def test_a_shared_weight_with_different_codes_becomes_two() -> None:
    recipe = {"rules": [{"match": {"node": "b"}, "weights": {"bits": 6}}]}
    found = checked(image("[a] p = Conv(x, W) [b] y = Conv(p, W)"), recipe=recipe, rounding=0.3)
    first, second = (found.values()[found.node(n).input[1]] for n in ("a", "b"))
    assert np.abs(first.astype(int)).max() > 100
    assert np.abs(second.astype(int)).max() <= 32


def test_a_weight_that_a_float_node_reads_stays_float_for_it() -> None:
    text = "g (float[6,6] x) => (float[6,6] y) { [a] h = MatMul(x, Q) m = Max(x, Q) y = Add(h, m) }"
    found = written(build(text, Q=normal(6, 6)))
    assert deviations(found)[0] <= SAME
    assert found.values()["Q"].dtype == np.float32
    assert found.values()[found.node("a").input[1]].dtype == np.int8


def branches(then: str, otherwise: str, type_: str) -> str:
    return (
        f"then_branch = a_ () => ({type_} t) {{ t = {then} }}, else_branch = b_ () => ({type_} e) {{ e = {otherwise} }}"
    )


def test_what_bodies_read_stays_float() -> None:
    bodies = branches("Add(a, x)", "Sub(a, x)", "float[N,4,8,8]")
    body = f"[n] a = Conv<pads=[1,1,1,1]>(x, W) y = If<{bodies}>(c)"
    found = checked(f"g (float[N,4,8,8] x, bool c) => (float[N,4,8,8] y) {{ {body} }}")
    assert list(found.node("n.dequant").output) == ["a"]


def test_a_weight_that_a_body_reads_stays_float() -> None:
    bodies = branches("Add(a, Q)", "Sub(a, Q)", "float[4,4]")
    text = f"g (float[4,4] x, bool c) => (float[4,4] y) {{ [n] a = MatMul(x, Q) y = If<{bodies}>(c) }}"
    found = written(build(text, Q=normal(4, 4)))
    assert deviations(found)[0] <= SAME
    assert found.values()["Q"].dtype == np.float32
    assert found.values()[found.node("n").input[1]].dtype == np.int8


def test_initializers_that_are_listed_as_inputs() -> None:
    model = model_of(image("[c] y = Conv(x, W, B)"))
    for name in ("W", "B"):
        model.graph.input.add().CopyFrom(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, CONSTANTS[name].shape)
        )
    found = written(model)
    assert [i.name for i in found.deploy.graph.input] == ["x"]
    assert found.values()["W"].dtype == np.int8


# ---- widths and precisions ------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [6, 7])
def test_narrow_weights(bits: int) -> None:
    found = checked(image("[c] y = Conv(x, W, B)"), recipe={"weights": {"bits": bits}}, rounding=0.1)
    assert found.factors["c"].wts_bits == bits
    assert np.abs(found.values()["W"].astype(int)).max() in ((1 << (bits - 1)) - 1, 1 << (bits - 1))
    assert found.values()["W"].dtype == np.int8
    assert "AscendWeightQuant" not in ops(found.deploy)


def test_four_bit_weights_are_told_so() -> None:
    found = checked(image("[c] y = Conv(x, W, B)"), recipe={"weights": {"bits": 4}}, rounding=0.5)
    assert found.values()["W"].min() >= -8
    assert list(found.node("c.weight_quant").input) == ["W", "c.weight_offset"]
    assert found.values()["c.weight_offset"].dtype == np.int8


def test_a_record_with_centres_uses_no_other_codes() -> None:
    cluster = np.arange(-120, 121, 16, dtype=np.int8)
    for text, record_of in [
        (image("[n] y = Conv(x, W)"), {"scale_w": np.full(4, 0.02, np.float32)}),
        (rows("[n] y = Gemm<transB=1>(x, PT)"), {"scale_w": np.full(1, 0.02, np.float32)}),
    ]:
        found = written(model_of(text), record={"n": LayerFactors(0.02, 0, cluster=cluster, **record_of)})
        assert deviations(found)[0] <= SAME
        codes = found.values()[found.node("n").input[1]]
        assert set(codes.reshape(-1).tolist()) <= set(cluster.tolist())
        floats = CONSTANTS["W"] if "W)" in text else CONSTANTS["PT"].T
        distance = np.abs(floats[..., None] / 0.02 - cluster).min(axis=-1)
        np.testing.assert_allclose(np.abs(floats / 0.02 - codes), distance, rtol=1e-4, atol=1e-4)


def test_sixteen_bit_activations() -> None:
    recipe = {"activations": {"type": "int16"}}
    found = checked(image("[c] y = Conv(x, W, B)"), recipe=recipe, same=1e-5, rounding=0.02)
    assert found.factors["c"].act_bits == 16
    assert onnx.helper.get_attribute_value(found.node("c.quant").attribute[2]) == b"INT16"
    assert found.values(of_fake=True)["c.quant.fakequant.max_val"] == 32767


def test_fp16_scales_cut_the_words() -> None:
    found = checked(image("[c] y = Conv(x, W, B)"), recipe={"fp16_scales": True})
    factors = found.factors["c"]
    assert np.float16(factors.scale_d) == np.float32(factors.scale_d)
    words = found.values()["c.dequant.param"]
    assert not (words & np.uint64(0x1FFF)).any()
    assert (
        words.astype(np.uint32).view(np.float32).tolist()
        == dequant_scale(factors.scale_d, factors.scale_w, s19=True).tolist()
    )


# ---- what cannot be -------------------------------------------------------------------------------


def test_a_bias_that_overflows_says_which_layer_to_skip() -> None:
    record = {"c": LayerFactors(1e-6, 0, np.full(4, 1e-6, np.float32))}
    with pytest.raises(PassError, match=r"layer 'c' \(Conv\): its bias .* does not fit into int32; skip the layer"):
        written(model_of(image("[c] y = Conv(x, W, B)")), record=record)


def test_nothing_to_insert_leaves_the_model_as_it_is() -> None:
    model = model_of(image("y = Sigmoid(x)"))
    found = written(model)
    assert ops(found.deploy) == ops(found.fake) == ["Sigmoid"]
    feed = found.feeds[0]
    np.testing.assert_array_equal(run(found.deploy, feed)["y"], run(model, feed)["y"])
