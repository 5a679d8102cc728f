"""AscendToQdq: the Q/DQ model gives what the simulated deploy model gives, and holds the same codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import GraphError
from onnxq.graph import GraphModel
from onnxq.passes.ascend_to_qdq import AscendToQdq
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.simulate_ascend import SimulateAscend
from tests.graphs import Feed, apply, ops, run
from tests.passes.ascend_models import FLOAT, Array, deploy, dequant_node, quant_node, words

SCALE = 0.031


def codes_of(*shape: int, low: int = -128, high: int = 127) -> Array:
    return np.random.default_rng(shape).integers(low, high + 1, shape).astype(np.int8)


def reals(*shape: int) -> Array:
    return (np.random.default_rng([1, *shape]).normal(size=shape) * 2.5).astype(np.float32)


def converted(model: onnx.ModelProto) -> GraphModel:
    graph = GraphModel.from_proto(model)
    apply(graph, AssignNames(), LiftConstants(), AscendToQdq())
    onnx.shape_inference.infer_shapes(graph.to_proto(), check_type=True, strict_mode=True)
    return graph


def check(model: onnx.ModelProto, feed: Feed) -> GraphModel:
    """The outputs are those of the simulation, but for rounding."""
    exact = GraphModel.from_proto(model)
    apply(exact, AssignNames(), LiftConstants(), SimulateAscend())
    graph = converted(model)
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(ops(graph))
    expected, found = run(exact, feed), run(graph, feed)
    assert list(expected) == list(found)
    for name, values in expected.items():
        assert values.dtype == found[name].dtype
        step = 1e-3 if values.dtype == np.float16 else 1e-5
        limit = 0 if values.dtype.kind == "i" else step * np.abs(values).max()
        np.testing.assert_allclose(found[name].astype(np.float64), values.astype(np.float64), rtol=0, atol=limit)
    return graph


LAYERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], list[int]]] = {
    "conv": ("Conv", {"pads": [1, 1, 1, 1], "strides": [2, 1]}, (6, 4, 3, 3), [2, 4, 7, 8]),
    "depthwise": ("Conv", {"pads": [1, 1, 1, 1], "group": 6}, (6, 1, 3, 3), [1, 6, 7, 8]),
    "transposed": ("ConvTranspose", {"strides": [2, 2]}, (4, 6, 3, 3), [1, 4, 5, 5]),
    "transposed_groups": ("ConvTranspose", {"strides": [2, 2], "group": 2}, (4, 3, 3, 3), [1, 4, 5, 5]),
    "gemm": ("Gemm", {}, (10, 6), [3, 10]),
    "gemm_transposed": ("Gemm", {"transB": 1}, (6, 10), [3, 10]),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", LAYERS)
def test_layers(case: str, per_channel: bool) -> None:
    op, attrs, weight, shape = LAYERS[case]
    scales = np.linspace(0.01, 0.2, 6) if per_channel else [0.1]
    model = deploy(
        [quant_node("x", "q", SCALE, -40), helper.make_node(op, ["q", "w", "b"], ["s"], name="layer", **attrs),
         dequant_node("s", "y", "d")],
        {"w": codes_of(*weight), "b": np.arange(6, dtype=np.int32) * 5003, "d": words(*scales)},
        {"x": shape}, {"y": FLOAT},
    )  # fmt: skip
    graph = check(model, {"x": reals(*shape)})
    assert op in ops(graph)
    in_floats = case == "transposed_groups" and per_channel
    assert ops(graph).count("DequantizeLinear") == (2 if in_floats else 3)


def test_numbers_are_those_of_the_deploy_model() -> None:
    w, scales = codes_of(6, 4, 3, 3), np.linspace(0.01, 0.2, 6).astype(np.float32)
    bias = np.arange(6, dtype=np.int32) * 100_003
    model = deploy(
        [quant_node("x", "q", SCALE, -40), helper.make_node("Conv", ["q", "w", "b"], ["s"], name="layer"),
         dequant_node("s", "y", "d")],
        {"w": w, "b": bias, "d": words(*scales)}, {"x": [1, 4, 7, 8]}, {"y": FLOAT},
    )  # fmt: skip
    proto = converted(model).to_proto()
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes = {n.output[0]: n for n in proto.graph.node}
    layer = next(n for n in proto.graph.node if n.name == "layer")
    assert layer.output[0] == "y"
    quantize = nodes[nodes[layer.input[0]].input[0]]
    assert values[quantize.input[1]] == pytest.approx(SCALE, rel=2e-7)
    assert values[quantize.input[2]] == -40
    weight, coded_bias = nodes[layer.input[1]], nodes[layer.input[2]]
    assert weight.input[0] == "w"
    np.testing.assert_array_equal(values["w"], w)
    np.testing.assert_allclose(values[weight.input[1]], scales / np.float32(SCALE), rtol=3e-7)
    np.testing.assert_array_equal(values[coded_bias.input[0]], bias)
    np.testing.assert_array_equal(values[coded_bias.input[1]], scales)


def test_matmul_with_an_add_and_a_relu() -> None:
    model = deploy(
        [quant_node("x", "q", SCALE, 0), helper.make_node("MatMul", ["q", "w"], ["m"]),
         helper.make_node("Add", ["b", "m"], ["s"]), dequant_node("s", "y", "d", relu_flag=1)],
        {"w": codes_of(10, 6), "b": np.arange(6, dtype=np.int32) * 7, "d": words(*np.linspace(0.1, 0.6, 6))},
        {"x": [2, 3, 10]}, {"y": FLOAT},
    )  # fmt: skip
    assert "Relu" in ops(check(model, {"x": reals(2, 3, 10)}))


def test_matmul_of_two_variables_and_average_pool() -> None:
    nodes = [
        quant_node("a", "qa", SCALE, 5), quant_node("b", "qb", 0.02, -9),
        helper.make_node("MatMul", ["qa", "qb"], ["s"]),
        dequant_node("s", "m", "d"), quant_node("m", "qm", 0.3, 4), helper.make_node("Pad", ["qm", "p"], ["padded"]),
        helper.make_node("AveragePool", ["padded"], ["t"], kernel_shape=[2, 2]), dequant_node("t", "y", "e"),
    ]  # fmt: skip
    constants = {"d": words(SCALE * 0.02), "e": words(0.3), "p": np.array([0, 0, 1, 0, 0, 0, 0, 1])}
    model = deploy(nodes, constants, {"a": [2, 3, 4, 8], "b": [2, 3, 8, 5]}, {"y": FLOAT})
    check(model, {"a": reals(2, 3, 4, 8), "b": reals(2, 3, 8, 5)})


def test_codes_at_outputs_and_behind_moves() -> None:
    nodes = [
        quant_node("x", "q", SCALE, 12), helper.make_node("MaxPool", ["q"], ["moved"], kernel_shape=[2, 2]),
        helper.make_node("AscendAntiQuant", ["moved"], ["y"], scale=SCALE, offset=12.0),
        helper.make_node("AscendAntiQuant", ["q"], ["z"], scale=0.5, offset=1.0),
        helper.make_node("AscendAntiQuant", ["q"], ["f"], scale=SCALE, offset=12.0),
        helper.make_node("Sigmoid", ["f"], ["sigmoid"]),
    ]  # fmt: skip
    int8 = TensorProto.INT8
    model = deploy(nodes, {}, {"x": [1, 2, 5, 5]}, {"y": FLOAT, "q": int8, "moved": int8, "z": FLOAT, "sigmoid": FLOAT})
    check(model, {"x": reals(1, 2, 5, 5)})


@pytest.mark.parametrize("dst_type", ["INT4", "INT16"])
def test_other_widths(dst_type: str) -> None:
    scale = 0.9 if dst_type == "INT4" else 0.0003
    model = deploy(
        [quant_node("x", "q", scale, -5, dst_type),
         helper.make_node("AscendWeightQuant", ["w"], ["wq"], dst_type="INT4"),
         helper.make_node("MatMul", ["q", "wq"], ["s"]), dequant_node("s", "y", "d")],
        {"w": codes_of(4, 3), "d": words(0.25)}, {"x": [2, 8]}, {"y": FLOAT},
    )  # fmt: skip
    assert check(model, {"x": reals(2, 8)}).opset == 21


def test_offset_of_a_weight() -> None:
    model = deploy(
        [quant_node("x", "q", SCALE, -3), helper.make_node("AscendWeightQuant", ["w", "o"], ["wq"], dst_type="INT8"),
         helper.make_node("MatMul", ["q", "wq"], ["s"]), dequant_node("s", "y", "d")],
        {"w": codes_of(6, 5), "o": np.full(5, 7, np.int8), "d": words(0.25)}, {"x": [2, 6]}, {"y": FLOAT},
    )  # fmt: skip
    check(model, {"x": reals(2, 6)})


def test_half_floats_and_roots() -> None:
    half = TensorProto.FLOAT16
    nodes = [
        helper.make_node("AscendQuant", ["x"], ["q"], scale=4.0, offset=0.0, sqrt_mode=1),
        helper.make_node("MatMul", ["q", "w"], ["s"]), dequant_node("s", "y", "d", sqrt_mode=1, dtype=1),
    ]  # fmt: skip
    model = deploy(nodes, {"w": codes_of(4, 3), "d": words(0.125)}, {"x": [2, 4]}, {"y": half}, half=True)
    check(model, {"x": reals(2, 4).astype(np.float16)})


def test_old_operator_sets() -> None:
    model = deploy(
        [quant_node("x", "q", SCALE, -17), helper.make_node("Conv", ["q", "w"], ["s"]), dequant_node("s", "y", "d")],
        {"w": codes_of(4, 3, 3, 3), "d": words(0.1)}, {"x": [1, 3, 6, 6]}, {"y": FLOAT}, opset=8,
    )  # fmt: skip
    assert check(model, {"x": reals(1, 3, 6, 6)}).opset == 13


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([quant_node("x", "q", SCALE, 0, round_mode="Floor"), helper.make_node("MatMul", ["q", "w"], ["s"]),
          dequant_node("s", "y", "d")], "does not round to the nearest"),
        ([quant_node("x", "q", SCALE, 0), helper.make_node("Sigmoid", ["q"], ["y"], name="act")],
         "Sigmoid 'act' reads 'q_dequantized', which holds codes"),
        ([quant_node("x", "q", SCALE, 0), helper.make_node("MatMul", ["q", "w"], ["s"], name="layer"),
          dequant_node("s", "a", "d"), dequant_node("s", "b", "e"), helper.make_node("Add", ["a", "b"], ["y"])],
         "MatMul 'layer' is dequantized with different scales"),
        ([quant_node("x", "q", SCALE, 0), helper.make_node("AveragePool", ["q"], ["s"], name="p", kernel_shape=[1]),
          dequant_node("s", "y", "d")], "AveragePool 'p' is dequantized with another scale"),
        ([helper.make_node("AscendRequant", ["x"], ["y"], name="r")], "AscendRequant 'r' is an operator"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused(nodes: list[onnx.NodeProto], message: str) -> None:
    constants = {"w": codes_of(4, 3), "d": words(0.1), "e": words(0.2)}
    with pytest.raises(GraphError) as caught:
        converted(deploy(nodes, constants, {"x": [2, 3, 4]}, {"y": FLOAT}))
    assert message in str(caught.value)
