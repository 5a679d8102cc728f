"""Target qnn: every operator of the DSP's list gets codes at its inputs and its outputs, and computes what it should.

The list is MindSpore Lite's for its DSP target; what it has no ONNX operator for (BatchToSpace, SpaceToBatch) is a
Transpose between two Reshapes there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.opinfo import OPS
from tests.graphs import build, normal, run

IMAGE = "g (float[N,4,6,6] x) => (float[N,{c},{h},{w}] y) {{ [op] y = {text} }}"
POSITIVE = np.float32([[[[1.5]], [[2.0]], [[0.5]], [[3.0]]]])
CHANNELS = np.float32([0.5, 2.0, 1.0, 3.0])


def image(text: str, c: int = 4, h: int = 6, w: int = 6, **constants: Any) -> tuple[str, dict[str, Any]]:
    return IMAGE.format(text=text, c=c, h=h, w=w), constants


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def pair(text: str) -> tuple[str, dict[str, Any]]:
    return f"g (float[N,4,6,6] x, float[N,4,6,6] z) => (float[N,4,6,6] y) {{ [op] y = {text} }}", {}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Abs": image("Abs (x)"),
    "Activation Relu": image("Relu (x)"),
    "Activation Relu6": image("Clip (x, low, high)", low=np.float32(0), high=np.float32(6)),
    "Activation Sigmoid": image("Sigmoid (x)"),
    "Activation Tanh": image("Tanh (x)"),
    "Activation HardSwish": image("HardSwish (x)"),
    "Activation Elu": image("Elu (x)"),
    "Add": pair("Add (x, z)"),
    "Add constant": image("Add (x, C)", C=POSITIVE),
    "ArgMax": ("g (float[N,4,6,6] x) => (int64[N,6,6] y) { [op] y = ArgMax <axis=1, keepdims=0> (x) }", {}),
    "AvgPool": image("AveragePool <kernel_shape=[2,2], strides=[2,2]> (x)", h=3, w=3),
    "AvgPool global": image("GlobalAveragePool (x)", h=1, w=1),
    "BatchNorm": image(
        "BatchNormalization (x, C, B, M, V)", C=CHANNELS, B=normal(4), M=normal(4), V=CHANNELS[::-1].copy()
    ),
    "Ceil": image("Ceil (x)"),
    "Concat": ("g (float[N,4,6,6] x, float[N,4,6,6] z) => (float[N,8,6,6] y) { [op] y = Concat <axis=1> (x, z) }", {}),
    "Conv2D": image("Conv (x, W)", c=3, h=4, w=4, W=normal(3, 4, 3, 3)),
    "Conv2D depthwise": image("Conv <group=4> (x, W)", h=4, w=4, W=normal(4, 1, 3, 3)),
    "ConvT": image("ConvTranspose <strides=[2,2]> (x, W)", c=3, h=12, w=12, W=normal(4, 3, 2, 2)),
    "DepthToSpace": image("DepthToSpace <blocksize=2> (x)", c=1, h=12, w=12),
    "Div": image("Div (x, C)", C=POSITIVE),
    "Exp": image("Exp (x)"),
    "Floor": image("Floor (x)"),
    "FullConnection": ("g (float[N,24] x) => (float[N,5] y) { [op] y = Gemm (x, W, B) }",
                       {"W": normal(24, 5), "B": normal(5)}),
    "Gather": image("Gather <axis=1> (x, I)", c=2, I=ints(3, 1)),
    "InstanceNorm": image("InstanceNormalization (x, C, B)", C=CHANNELS, B=normal(4)),
    "LeakyRelu": image("LeakyRelu <alpha=0.2> (x)"),
    "MatMul": ("g (float[N,5,8] x) => (float[N,5,6] y) { [op] y = MatMul (x, W) }", {"W": normal(8, 6)}),
    "MatMul of activations": (
        "g (float[N,5,8] x, float[N,8,6] z) => (float[N,5,6] y) { [op] y = MatMul (x, z) }", {}),
    "Maximum": pair("Max (x, z)"),
    "Maximum constant": image("Max (x, C)", C=POSITIVE),
    "MaxPool": image("MaxPool <kernel_shape=[2,2], strides=[2,2]> (x)", h=3, w=3),
    "Minimum": pair("Min (x, z)"),
    "Mul": pair("Mul (x, z)"),
    "Neg": image("Neg (x)"),
    "Pad": image("Pad (x, P)", h=8, w=8, P=ints(0, 0, 1, 1, 0, 0, 1, 1)),
    "PReLU": image("PRelu (x, C)", C=POSITIVE / 8),
    "ReduceMax": image("ReduceMax <axes=[2,3]> (x)", h=1, w=1),
    "ReduceMean": image("ReduceMean <axes=[2,3]> (x)", h=1, w=1),
    "ReduceMin": image("ReduceMin <axes=[2,3]> (x)", h=1, w=1),
    "ReduceSum": image("ReduceSum (x, A)", h=1, w=1, A=ints(2, 3)),
    "Reshape": ("g (float[N,4,6,6] x) => (float[N,144] y) { [op] y = Reshape (x, S) }", {"S": ints(0, 144)}),
    "Resize nearest": image("Resize <mode=\"nearest\"> (x, , F)", h=12, w=12, F=np.float32([1, 1, 2, 2])),
    "Resize bilinear": image("Resize <mode=\"linear\"> (x, , F)", h=12, w=12, F=np.float32([1, 1, 2, 2])),
    "Round": image("Round (x)"),
    "Scale": image("Mul (x, C)", C=POSITIVE),
    "Softmax": image("Softmax <axis=1> (x)"),
    "SpaceToDepth": image("SpaceToDepth <blocksize=2> (x)", c=16, h=3, w=3),
    "Split": ("g (float[N,4,6,6] x) => (float[N,1,6,6] y, float[N,3,6,6] z) { [op] y, z = Split <axis=1> (x, S) }",
              {"S": ints(1, 3)}),
    "Sqrt": ("g (float[N,4,6,6] x) => (float[N,4,6,6] y) { a = Abs (x) [op] y = Sqrt (a) }", {}),
    "Squeeze": ("g (float[N,1,6,6] x) => (float[N,6,6] y) { [op] y = Squeeze (x, A) }", {"A": ints(1)}),
    "StridedSlice": image("Slice (x, B, E, A, S)", h=3, B=ints(0), E=ints(6), A=ints(2), S=ints(2)),
    "Stack": ("""g (float[N,6] x, float[N,6] z) => (float[N,2,6] y) {
        a = Unsqueeze (x, A) b = Unsqueeze (z, A) [op] y = Concat <axis=1> (a, b) }""", {"A": ints(1)}),
    "Sub": pair("Sub (x, z)"),
    "Sub constant first": image("Sub (C, x)", C=POSITIVE),
    "Tile": image("Tile (x, T)", w=12, T=ints(1, 1, 1, 2)),
    "Transpose": ("g (float[N,4,6,6] x) => (float[N,6,6,4] y) { [op] y = Transpose <perm=[0,2,3,1]> (x) }", {}),
    "Unsqueeze": ("g (float[N,4,6,6] x) => (float[N,1,4,6,6] y) { [op] y = Unsqueeze (x, A) }", {"A": ints(1)}),
}  # fmt: skip

FLOAT_PARAMETERS = {"BatchNorm": 1, "InstanceNorm": 1}
"""Operators of which only so many inputs are data; the others are numbers of each channel."""
STEPS = frozenset({"Ceil", "Floor", "Round"})
"""What jumps: a value near the edge may come out one step away."""
NOISE = 0.025
"""Error of 8-bit codes at the inputs and outputs, over the values, both as root mean squares."""


def model_of(case: str) -> onnx.ModelProto:
    text, constants = CASES[case]
    return build(text, opset=17 if "axes=[2,3]" in text or "HardSwish" in text else 18, **constants)


def data_of(model: onnx.ModelProto, count: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = {}
    for info in model.graph.input:
        shape = [d.dim_value or count for d in info.type.tensor_type.shape.dim]
        found[info.name] = rng.standard_normal(shape).astype(np.float32)
    return found


def quantized(case: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = model_of(case)
    recipe = {"fuse": {"batchnorm": False}, "activations": {"method": "minmax"}}
    return model, onnxq.quantize(model, data_of(model, 64), target="qnn", recipe=recipe, threads=1).model


@pytest.mark.parametrize("case", CASES)
def test_it_has_codes_at_its_inputs_and_outputs(case: str) -> None:
    _, model = quantized(case)
    made = {o: n for n in model.graph.node for o in n.output}
    readers = {i: n for n in model.graph.node for i in n.input}
    node = next(n for n in model.graph.node if n.name == "op")
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    data = node.input[: FLOAT_PARAMETERS.get(case, len(node.input))]
    tensors = [i for i in data if i in made]
    assert tensors
    assert all(made[i].op_type == "DequantizeLinear" for i in tensors)
    if node.op_type != "Resize":  # its factors are floats
        assert not floats & set(data) - ({node.input[1], node.input[2]} if node.op_type == "Clip" else set())
    if node.op_type != "ArgMax":
        assert all(readers[o].op_type == "QuantizeLinear" for o in node.output)


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_float_operator_does(case: str) -> None:
    float_model, model = quantized(case)
    feeds = {name: x[:16] for name, x in data_of(float_model, 64).items()}
    expected, found = run(float_model, feeds), run(model, feeds)
    for name, values in expected.items():
        if values.dtype != np.float32:
            picked = np.take_along_axis(feeds["x"], found[name][:, None], 1)[:, 0]
            assert (feeds["x"].max(1) - picked).max() < NOISE * np.abs(feeds["x"]).max()
        elif case in STEPS:
            assert (np.abs(found[name] - values) > 0.5).mean() < 0.03
        else:
            assert np.square(found[name] - values).mean() < NOISE**2 * np.square(values).mean()


def test_the_tables_know_every_operator_of_the_list() -> None:
    nodes = [n for case in CASES for n in model_of(case).graph.node]
    target = onnxq.get_target("qnn")
    for node in nodes:
        assert node.op_type in OPS
        assert node.op_type in target.compute | target.passive | target.clamps
