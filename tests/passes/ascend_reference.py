"""What a deploy model means, node by node in numpy: codes minus zero point, exact sums, float32 factors.

The code nodes are computed in float64 by the reference implementation of ONNX, all others by ONNX Runtime.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.graphs import Feed, session

CODES = ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool", "Add")


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def evaluate(model: onnx.ModelProto, feed: Feed) -> Feed:
    """Every tensor of the main graph of a deploy model, by name."""
    values: Feed = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer} | dict(feed)
    offsets: dict[str, int] = {}
    for node in model.graph.node:
        results = compute(model, node, values, offsets)
        values |= {name: value for name, value in zip(node.output, results, strict=False) if name}
    return values


def outputs_of(model: onnx.ModelProto, feed: Feed) -> Feed:
    values = evaluate(model, feed)
    return {o.name: values[o.name] for o in model.graph.output}


def compute(model: onnx.ModelProto, node: onnx.NodeProto, values: Feed, offsets: dict[str, int]) -> list[NDArray[Any]]:
    attrs = attributes(node)
    x = values[node.input[0]] if node.input else np.zeros(0)
    match node.op_type:
        case "AscendQuant":
            bits = {b"INT8": 8, b"INT16": 16}[attrs["dst_type"]]
            low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
            offsets[node.output[0]] = int(attrs["offset"])
            scaled = np.rint(x * np.float32(attrs["scale"])) + np.float32(attrs["offset"])
            return [np.clip(scaled, low, high).astype(f"int{bits}")]
        case "AscendAntiQuant":
            return [(x.astype(np.float32) - np.float32(attrs["offset"])) * np.float32(attrs["scale"])]
        case "AscendWeightQuant":
            assert x.min() >= -8
            assert x.max() <= 7
            return [x - values[node.input[1]].reshape((-1,) + (1,) * (x.ndim - 1))]
        case "AscendDequant":
            return [dequantized(model, node, x, values[node.input[1]])]
        case "Pad" if node.input[0] in offsets:
            offsets[node.output[0]] = offsets[node.input[0]]
            return [padded(node, x, values)]
    if node.op_type in CODES and any(values[name].dtype.kind == "i" for name in node.input if name):
        inputs = {n: values[n].astype(np.float64) - offsets.get(n, 0) for n in node.input if n}
        if node.op_type == "ConvTranspose" and attrs.get("group", 1) > 1:
            return by_group(model, node, inputs, attrs["group"])
        return reference(model, node, inputs)
    return single(model, node, values)


def padded(node: onnx.NodeProto, x: NDArray[Any], values: Feed) -> NDArray[Any]:
    """A Pad of codes, which ONNX Runtime has not for old operator sets."""
    attrs = attributes(node)
    pads = attrs["pads"] if "pads" in attrs else values[node.input[1]].tolist()
    value = values[node.input[2]] if len(node.input) > 2 else attrs.get("value", 0)
    return np.pad(x, list(zip(pads[: x.ndim], pads[x.ndim :], strict=True)), constant_values=x.dtype.type(value))


def dequantized(
    model: onnx.ModelProto, node: onnx.NodeProto, sums: NDArray[Any], words: NDArray[np.uint64]
) -> NDArray[np.float32]:
    assert words.dtype == np.uint64
    assert not (words >> np.uint64(32)).any()
    scale = words.astype(np.uint32).view(np.float32)
    maker = next(n for n in model.graph.node if node.input[0] in n.output)
    if maker.op_type in ("Conv", "ConvTranspose"):
        scale = scale.reshape((-1,) + (1,) * (sums.ndim - 2))
    return sums.astype(np.float32) * scale


def alone(model: onnx.ModelProto, node: onnx.NodeProto, inputs: Feed) -> onnx.ModelProto:
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in inputs.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "one", infos, results)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def reference(model: onnx.ModelProto, node: onnx.NodeProto, inputs: Feed) -> list[NDArray[Any]]:
    return list(ReferenceEvaluator(alone(model, node, inputs)).run(None, inputs))


def by_group(model: onnx.ModelProto, node: onnx.NodeProto, inputs: Feed, groups: int) -> list[NDArray[Any]]:
    """Group by group: the reference implementation of ConvTranspose does one group only."""
    one = onnx.NodeProto()
    one.CopyFrom(node)
    next(a for a in one.attribute if a.name == "group").i = 1
    parts = [
        np.split(value, groups, axis=min(1, value.ndim - 1) if i == 0 else 0) for i, value in enumerate(inputs.values())
    ]
    results = [reference(model, one, dict(zip(inputs, part, strict=True)))[0] for part in zip(*parts, strict=True)]
    return [np.concatenate(results, axis=1)]


def single(model: onnx.ModelProto, node: onnx.NodeProto, values: Feed) -> list[NDArray[Any]]:
    names = [n for n in node.input if n]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names += [n for inner in attribute.g.node for n in inner.input if n in values]
    inputs = {n: values[n] for n in dict.fromkeys(names)}
    return list(session(alone(model, node, inputs)).run(None, inputs))
