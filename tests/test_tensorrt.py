"""Target tensorrt keeps TensorRT's rules for explicit quantization, by a checker that knows onnx only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxq
from tests.bundled import FILES, samples
from tests.graphs import build, normal
from tests.tensorrt_rules import LAYERS, Network, problems

ROOT = Path(__file__).parents[1]
ZOO = Path(os.environ.get("ONNXQ_ZOO", ROOT.parent / "shared" / "zoo"))
ZOO_MODELS = sorted((ZOO / "models").glob("*.onnx"))

RESIDUAL = """g (float[N,3,8,8] x) => (float[N,6] y) {
    [stem] a = Conv <pads=[1,1,1,1]> (x, W1, B1)
    r = Relu (a)
    [c1] b = Conv <pads=[1,1,1,1]> (r, W2, B2)
    s = Relu (b)
    [c2] c = Conv <pads=[1,1,1,1]> (s, W3, B3)
    [join] d = Add (c, r)
    t = Relu (d)
    [up] u = ConvTranspose <strides=[2,2]> (t, W4)
    p = GlobalAveragePool (u)
    f = Flatten (p)
    [fc] y = Gemm (f, W5, B5) }"""


def residual() -> onnx.ModelProto:
    weights = {f"W{i}": normal(4, c, 3, 3, scale=0.3) for i, c in ((1, 3), (2, 4), (3, 4))}
    return build(
        RESIDUAL, W4=normal(4, 5, 2, 2), W5=normal(5, 6), B1=normal(4), B2=normal(4), B3=normal(4), B5=normal(6),
        **weights,
    )  # fmt: skip


def quantized(model: Any, data: Any, **recipe: Any) -> onnx.ModelProto:
    return onnxq.quantize(model, data, target="tensorrt", recipe=recipe or None, threads=1).model


def tiny() -> onnx.ModelProto:
    return quantized(residual(), {"x": normal(8, 3, 8, 8)})


def test_a_residual_network_keeps_the_rules() -> None:
    model = tiny()
    assert problems(model) == []
    network = Network(model)
    layers = [n for n in network.nodes if n.op_type in LAYERS]
    assert [network.is_quantized(n) for n in layers] == [True] * 5
    sources = {network.made[name].op_type for n in network.nodes if n.name == "join" for name in n.input}
    assert sources == {"Conv", "DequantizeLinear"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("bias", ["corrected", "float"])
def test_bundled_models_keep_the_rules(path: Path, bias: str) -> None:
    model = quantized(path, samples(path, count=16), refine=[{"kind": "bias_correction", "inputs": bias}])
    assert problems(model) == []
    assert any(n.op_type == "QuantizeLinear" for n in model.graph.node)


@pytest.mark.zoo
@pytest.mark.parametrize("path", ZOO_MODELS or [None], ids=lambda p: p.stem if p else "none")
def test_zoo_models_keep_the_rules(path: Path | None) -> None:
    if path is None:
        pytest.skip("no zoo of real models: set ONNXQ_ZOO to its folder")
    free = {i.name: i for i in onnx.load(path, load_external_data=False).graph.input}
    size = 576 if "vad" in path.stem else 64
    feeds = [{name: feed(info, size, seed) for name, info in free.items()} for seed in range(2)]
    result = onnxq.quantize(path, feeds, target="tensorrt", threads=1)
    assert problems(result.model) == []


def feed(info: onnx.ValueInfoProto, size: int, seed: int) -> Any:
    """Noise of a fitting shape; of what is free, batches are 1 and the rest is `size`."""
    tensor = info.type.tensor_type
    batch = [axis == 0 or "batch" in d.dim_param for axis, d in enumerate(tensor.shape.dim)]
    shape = [d.dim_value or (1 if b else size) for b, d in zip(batch, tensor.shape.dim, strict=True)]
    if tensor.elem_type == onnx.TensorProto.INT64:
        return np.full(shape, 16000 if not shape else 1, np.int64)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- what the checker finds


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def made(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if name in n.output)


def set_value(model: onnx.ModelProto, name: str, array: Any) -> None:
    next(t for t in model.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(array, name))


def insert_pair(model: onnx.ModelProto, tensor: str, reader: str, *, scale: float = 0.1) -> None:
    """Codes between a tensor and one of its readers."""
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(scale), "planted.s"), numpy_helper.from_array(np.int8(0), "planted.z")]
    )
    target = node(model, reader)
    names = list(target.input)
    names[names.index(tensor)] = "planted.d"
    del target.input[:]
    target.input.extend(names)
    numbers = ["planted.s", "planted.z"]
    at = list(model.graph.node).index(target)
    model.graph.node.insert(at, helper.make_node("DequantizeLinear", ["planted.q", *numbers], ["planted.d"], "planted"))
    model.graph.node.insert(at, helper.make_node("QuantizeLinear", [tensor, *numbers], ["planted.q"], "planted"))


def unsigned(model: onnx.ModelProto) -> None:
    set_value(model, made(model, node(model, "c1").input[0]).input[2], np.uint8(0))


def shifted(model: onnx.ModelProto) -> None:
    set_value(model, made(model, node(model, "c1").input[0]).input[2], np.int8(3))


def several_scales(model: onnx.ModelProto) -> None:
    set_value(model, made(model, node(model, "c1").input[0]).input[1], np.float32([0.1, 0.2, 0.3, 0.4]))


def wrong_axis(model: onnx.ModelProto) -> None:
    next(a for a in made(model, node(model, "c1").input[1]).attribute if a.name == "axis").i = 1


def wrong_axis_transposed(model: onnx.ModelProto) -> None:
    next(a for a in made(model, node(model, "up").input[1]).attribute if a.name == "axis").i = 0


def float_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(normal(4, 4, 3, 3), "planted"))
    node(model, "c1").input[1] = "planted"


def coded_bias(model: onnx.ModelProto) -> None:
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.zeros(4, np.int8), "planted.c"),
            numpy_helper.from_array(np.float32(1), "planted.s"),
            numpy_helper.from_array(np.int8(0), "planted.z"),
        ]
    )
    numbers = ["planted.c", "planted.s", "planted.z"]
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", numbers, ["planted.d"], "planted"))
    node(model, "c1").input[2] = "planted.d"


def variable_scale(model: onnx.ModelProto) -> None:
    name = made(model, node(model, "c1").input[1]).input[1]
    kept = [t for t in model.graph.initializer if t.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]))


def read_codes(model: onnx.ModelProto) -> None:
    codes = made(model, node(model, "c1").input[0]).input[0]
    model.graph.node.append(helper.make_node("Identity", [codes], ["planted"], "planted"))


def between_layer_and_relu(model: onnx.ModelProto) -> None:
    relu = next(n for n in model.graph.node if n.op_type == "Relu" and n.input[0] == "b")
    insert_pair(model, "b", relu.name)


def between_layer_and_add(model: onnx.ModelProto) -> None:
    insert_pair(model, "c", "join")


def float_residual(model: onnx.ModelProto) -> None:
    join = node(model, "join")
    index = next(i for i, name in enumerate(join.input) if made(model, name).op_type == "DequantizeLinear")
    join.input[index] = made(model, made(model, join.input[index]).input[0]).input[0]


PLANTED: dict[Callable[[onnx.ModelProto], None], str] = {
    unsigned: "its codes are uint8, not int8",
    shifted: "its zero point is not zero",
    several_scales: "an activation has several scales",
    wrong_axis: "the scales of the weight of 'c1' lie along axis 1, its outputs along 0",
    wrong_axis_transposed: "the scales of the weight of 'up' lie along axis 0, its outputs along 1",
    float_weight: "one of its factors has codes and the other has none",
    coded_bias: "its bias has codes",
    variable_scale: "its weight cannot be folded into a constant",
    read_codes: "it is not followed by DequantizeLinear alone",
    between_layer_and_relu: "it stands between a layer and the Relu that would be fused",
    between_layer_and_add: "the result of a layer is quantized between it and the Add it would be fused with",
    float_residual: "its residual input has no codes",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda p: p.__name__)
def test_the_checker_finds_what_is_planted(plant: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny())
    assert problems(model) == []
    plant(model)
    assert any(problem.endswith(PLANTED[plant]) for problem in problems(model))
