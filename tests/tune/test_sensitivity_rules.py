"""Slopes through operators: held against the operators themselves, run on both sides of a point."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.graph import GraphModel
from onnxq.plan import Plan
from onnxq.recipe import Recipe
from onnxq.runtime import make_session
from onnxq.stages import Chosen
from onnxq.tune.prefixes import Copies
from onnxq.tune.taylor import Sketch
from onnxq.tune.taylor_nodes import Slopes
from onnxq.tune.taylor_rules import RULES
from tests.graphs import build, normal, positive

X = "float[1,4,6,6] x"
W = normal(4, 4, 3, 3)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{op: (f"{op} (x)", {}) for op in ("Relu", "Sigmoid", "Tanh", "Exp", "Neg", "Abs", "Identity", "Erf", "Softplus")},
    **{op: (f"{op} (x)", {}) for op in ("HardSwish", "Elu", "Selu", "Softsign", "Sin", "Cos", "LeakyRelu", "Dropout")},
    **{op: (f"{op} (x)", {}) for op in ("GlobalAveragePool", "GlobalMaxPool", "Flatten", "Transpose")},
    "Clip": ("Clip (x, low, high)", {"low": np.float32(-0.5), "high": np.float32(0.7)}),
    "PRelu": ("PRelu (x, a)", {"a": positive(4, 1, 1)}),
    "Pow": ("Pow (x, two)", {"two": np.float32(2)}),
    "Add": ("Add (x, b)", {"b": normal(4, 1, 1)}),
    "Sub": ("Sub (b, x)", {"b": normal(2, 1, 6, 1)}),
    "Mul": ("Mul (x, b)", {"b": normal(3, 4, 1, 6)}),
    "Mul by itself": ("Mul (x, x)", {}),
    "Div": ("Div (x, b)", {"b": positive(6)}),
    "Div by it": ("Div (b, p)", {"b": positive(6)}),
    "Sqrt": ("Sqrt (p)", {}),
    "Log": ("Log (p)", {}),
    "Reciprocal": ("Reciprocal (p)", {}),
    "Max": ("Max (x, b)", {"b": normal(4, 6, 6)}),
    "Min": ("Min (b, x)", {"b": normal(4, 6, 6)}),
    "Sum": ("Sum (x, b, x)", {"b": normal(6)}),
    "Where": ("Where (c, x, b)", {"c": normal(6, 6) > 0, "b": normal(1)}),
    "BatchNormalization": ("BatchNormalization (x, s, o, o, s)", {"s": positive(4), "o": normal(4)}),
    "LayerNormalization": ("LayerNormalization <axis=-2> (x, s)", {"s": positive(6, 6)}),
    "InstanceNormalization": ("InstanceNormalization (x, s, s)", {"s": positive(4)}),
    "Softmax": ("Softmax <axis=1> (x)", {}),
    "LogSoftmax": ("LogSoftmax (x)", {}),
    "MatMul": ("MatMul (x, w)", {"w": normal(6, 5)}),
    "MatMul, right": ("MatMul (w, x)", {"w": normal(3, 1, 5, 6)}),
    "MatMul, both": ("MatMul (x, x)", {}),
    "Gemm": ("Gemm <alpha=0.5, transB=1> (m, w)", {"w": normal(5, 8)}),
    "Gemm, turned": ("Gemm <transA=1> (m, w)", {"w": normal(18, 5)}),
    "Gemm, right": ("Gemm <transB=1, transA=1> (w, m)", {"w": normal(8, 5)}),
    "Gemm, right, turned": ("Gemm (w, m)", {"w": normal(5, 18)}),
    "Gemm, bias": ("Gemm <beta=2.0> (a, b, m)", {"a": normal(18, 5), "b": normal(5, 8)}),
    "Conv": ("Conv <pads=[1,1,1,1]> (x, w)", {"w": W}),
    "Conv, strides": ("Conv <strides=[2,2], pads=[1,0,1,0]> (x, w)", {"w": W}),
    "Conv, groups": ("Conv <group=2, dilations=[2,1]> (x, w)", {"w": normal(6, 2, 2, 3)}),
    "Conv, depthwise": ("Conv <group=4, auto_pad=\"SAME_UPPER\", strides=[2,2]> (x, w)", {"w": normal(8, 1, 3, 3)}),
    "Conv, valid": ("Conv <auto_pad=\"VALID\"> (x, w)", {"w": W}),
    "Conv, lower": ("Conv <auto_pad=\"SAME_LOWER\", strides=[2,1]> (x, w)", {"w": normal(3, 4, 2, 4)}),
    "ConvTranspose": ("ConvTranspose <strides=[2,2], pads=[0,1,0,1], output_padding=[1,0]> (x, w)", {"w": W}),
    "ConvTranspose, groups": ("ConvTranspose <group=2> (x, w)", {"w": normal(4, 3, 2, 2)}),
    "MaxPool": ("MaxPool <kernel_shape=[2,2], strides=[2,2]> (x)", {}),
    "MaxPool, overlapping": ("MaxPool <kernel_shape=[3,3], strides=[2,1], pads=[1,1,1,1]> (x)", {}),
    "MaxPool, ceil": ("MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (x)", {}),
    "AveragePool": ("AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)", {}),
    "AveragePool, padding": (
        "AveragePool <kernel_shape=[3,2], pads=[1,1,0,0], count_include_pad=1> (x)", {},
    ),
    "ReduceMean": ("ReduceMean <axes=[2,-1], keepdims=0> (x)", {}),
    "ReduceMean, all": ("ReduceMean (x)", {}),
    "ReduceSum": ("ReduceSum <keepdims=0> (x, axes)", {"axes": np.array([1], np.int64)}),
    "ReduceMax": ("ReduceMax <axes=[1]> (x)", {}),
    "Reshape": ("Reshape (x, s)", {"s": np.array([0, 2, -1], np.int64)}),
    "Concat": ("Concat <axis=-3> (b, x, b, x)", {"b": normal(1, 2, 6, 6)}),
    "Slice": ("Slice (x, b, e, a, d)", {
        "b": np.array([5], np.int64), "e": np.array([-9], np.int64),
        "a": np.array([2], np.int64), "d": np.array([-2], np.int64),
    }),
    "Gather": ("Gather <axis=2> (x, i)", {"i": np.array([[0, 5], [0, 2]], np.int64)}),
    "Pad": ("Pad (x, n)", {"n": np.array([0, 0, 1, 0, 0, 1, 0, 2], np.int64)}),
    "Expand": ("Expand (x, s)", {"s": np.array([3, 4, 6, 6], np.int64)}),
    "Tile": ("Tile (x, r)", {"r": np.array([1, 2, 1, 3], np.int64)}),
    "DepthToSpace": ("DepthToSpace <blocksize=2> (x)", {}),
    "SpaceToDepth": ("SpaceToDepth <blocksize=3> (x)", {}),
    "Resize, linear": ('Resize <mode="linear"> (x, , f)', {"f": np.array([1, 1, 2, 1.5], np.float32)}),
    "Resize, sizes": (
        'Resize <mode="cubic", coordinate_transformation_mode="align_corners"> (x, , , n)',
        {"n": np.array([1, 4, 9, 4], np.int64)},
    ),
    "Resize": ("Resize <mode=\"nearest\"> (x, , f)", {"f": np.array([1, 1, 2, 1.5], np.float32)}),
}  # fmt: skip
FEED = {"x": normal(1, 4, 6, 6), "p": positive(1, 4, 6, 6), "m": normal(18, 8)}


def graph_with(call: str, constants: dict[str, Any]) -> onnx.ModelProto:
    """A model of one node, fed with those of `FEED` that it reads."""
    read = call[call.rindex("(") + 1 : -1].replace(" ", "").split(",")
    shapes = {name: ",".join(map(str, FEED[name].shape)) for name in FEED if name in read}
    inputs = ", ".join(f"float[{shape}] {name}" for name, shape in shapes.items())
    model = build(f"g ({inputs}) => (float y) {{ y = {call} }}", check=False, **constants)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("name", CASES)
def test_slopes_are_those_of_the_operator(name: str) -> None:
    graph = GraphModel.from_proto(graph_with(*CASES[name]))
    fed = {t.name: FEED[t.name] for t in graph.inputs}
    copies = Copies(Chosen(graph, {}, Plan(), Recipe()))
    sketch = Sketch.of(copies, fed)
    node = copies.protos[0]
    y = np.asarray(sketch.outputs["y"])
    signs = normal(*y.shape, seed=5)
    slopes = Slopes(copies, sketch.shapes, sketch.sizes, sketch.values)
    (x,) = fed
    parts = [RULES[node.op_type](slopes, node, index, "v") for index, read in enumerate(node.input) if read == x]
    assert None not in parts
    total = slopes.node("Sum", *map(str, parts))
    at_y = onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, None)
    session = make_session(graph, threads=1, outputs=[total], extra=copies.nodes, fed=[at_y])
    (found,) = session.run([total], {**fed, "v": signs})
    assert found.shape == fed[x].shape
    forward = make_session(graph, threads=1)
    for seed in (10, 11):
        direction = normal(*fed[x].shape, seed=seed)
        rise = [np.float64(forward.run(["y"], {x: fed[x] + step * direction})[0]) for step in (1e-3, -1e-3)]
        wanted = float((signs.astype(np.float64) * (rise[0] - rise[1])).sum() / 2e-3)
        size = float(np.abs(found * direction).sum()) + 1.0
        assert float((found * direction).sum()) == pytest.approx(wanted, abs=0.02 * size)


@pytest.mark.parametrize(
    "call",
    [
        'Resize <mode="linear"> (x, , g)',
        "AveragePool <kernel_shape=[4,4], strides=[3,3], ceil_mode=1> (x)",
        "Gather <axis=2> (w, x)",
    ],
)
def test_what_has_no_rule_is_not_guessed(call: str) -> None:
    model = graph_with(call, {"g": np.array([1, 2, 2, 2], np.float32), "w": normal(4, 4, 4)})
    copies = Copies(Chosen(GraphModel.from_proto(model), {}, Plan(), Recipe()))
    shapes = {"x": FEED["x"].shape, "y": (1, 4, 2, 2), "w": (4, 4, 4)}
    node = copies.protos[0]
    index = list(node.input).index("x")
    assert RULES[node.op_type](Slopes(copies, shapes, {"x": 1.0}, {}), node, index, "v") is None
