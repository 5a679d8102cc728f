"""The rules of TensorRT for explicit quantization, checked on a model with nothing but onnx.

Source: NVIDIA TensorRT developer guide, "Working with Quantized Types": explicit quantization, Q/DQ placement
recommendations, Q/DQ limitations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CLAMPS = ("Relu", "Clip")


class Network:
    """A model's nodes by what they make and read, and its constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.made = {o: n for n in self.nodes for o in n.output if o}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = {t.name: t for t in model.graph.initializer}
        self.outputs = {o.name for o in model.graph.output}

    def value(self, name: str) -> Any:
        return numpy_helper.to_array(self.constants[name])

    def maker(self, name: str, *ops: str) -> onnx.NodeProto | None:
        node = self.made.get(name)
        return node if node is not None and (not ops or node.op_type in ops) else None

    def is_quantized(self, node: onnx.NodeProto | None) -> bool:
        """Whether it is a layer that reads codes."""
        return node is not None and node.op_type in LAYERS and self.maker(node.input[0], "DequantizeLinear") is not None


def problems(model: onnx.ModelProto) -> list[str]:
    """What a model does that TensorRT refuses, or that keeps it from fusing."""
    network = Network(model)
    found: list[str] = []
    for node in network.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += [f"{node.op_type} {node.name!r}: {text}" for text in _numbers(network, node)]
        if node.op_type == "QuantizeLinear":
            found += [f"QuantizeLinear {node.name!r}: {text}" for text in _quantize(network, node)]
        if node.op_type == "DequantizeLinear":
            found += [f"DequantizeLinear {node.name!r}: {text}" for text in _dequantize(network, node)]
        if node.op_type in LAYERS:
            found += [f"{node.op_type} {node.name!r}: {text}" for text in _layer(network, node)]
        if node.op_type == "Add":
            found += [f"Add {node.name!r}: {text}" for text in _add(network, node)]
    return found


def _numbers(network: Network, node: onnx.NodeProto) -> Iterator[str]:
    if any(name not in network.constants for name in node.input[1:] if name):
        yield "its scale or zero point is not a constant"
        return
    scale = network.value(node.input[1])
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield "its scale is not positive"
    if len(node.input) < 3 or not node.input[2]:
        yield "it has no zero point, so its codes are uint8"
        return
    zero_point = network.value(node.input[2])
    if zero_point.dtype not in (np.int8, ml_dtypes.float8_e4m3fn):
        yield f"its codes are {zero_point.dtype}, not int8"
    if zero_point.any():
        yield "its zero point is not zero"


def _quantize(network: Network, node: onnx.NodeProto) -> Iterator[str]:
    if node.input[1] in network.constants and network.value(node.input[1]).size != 1:
        yield "an activation has several scales"
    if node.input[0] in network.constants:
        yield "it quantizes a constant"
    readers = network.readers.get(node.output[0], [])
    if not readers or node.output[0] in network.outputs or any(r.op_type != "DequantizeLinear" for r in readers):
        yield "it is not followed by DequantizeLinear alone"
    for reader in readers:
        same = all(a == b or _equal(network, a, b) for a, b in zip(node.input[1:], reader.input[1:], strict=False))
        if reader.op_type == "DequantizeLinear" and not same:
            yield "the DequantizeLinear behind it has other numbers"
    behind = [r for reader in readers for r in network.readers.get(reader.output[0], [])]
    maker = network.maker(node.input[0])
    fuses = network.is_quantized(maker) or (maker is not None and maker.op_type == "Add")
    if fuses and any(r.op_type in CLAMPS for r in behind):
        yield "it stands between a layer and the Relu that would be fused"


def _equal(network: Network, a: str, b: str) -> bool:
    known = a in network.constants and b in network.constants
    return known and np.array_equal(network.value(a), network.value(b))


def _dequantize(network: Network, node: onnx.NodeProto) -> Iterator[str]:
    if network.maker(node.input[0], "QuantizeLinear") is not None:
        return
    if node.input[0] not in network.constants:
        yield "it reads neither a QuantizeLinear nor a constant"
        return
    for reader in network.readers.get(node.output[0], []):
        index = list(reader.input).index(node.output[0])
        if reader.op_type in LAYERS and index == 2:
            yield f"it gives the bias of {reader.name!r} codes"
        elif reader.op_type in ("Conv", "ConvTranspose", "Gemm") and index == 1:
            yield from _axis(network, node, reader)


def _axis(network: Network, node: onnx.NodeProto, reader: onnx.NodeProto) -> Iterator[str]:
    if node.input[1] not in network.constants:
        return
    shape = network.constants[node.input[0]].dims
    scale = network.value(node.input[1])
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in reader.attribute}
    wanted = {"Conv": 0, "ConvTranspose": 1}.get(reader.op_type, 0 if attributes.get("transB", 0) else 1)
    if scale.size == 1:
        return
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if axis % len(shape) != wanted:
        yield f"the scales of the weight of {reader.name!r} lie along axis {axis}, its outputs along {wanted}"
    elif scale.shape != (shape[wanted],):
        yield f"the weight of {reader.name!r} has {shape[wanted]} outputs and {scale.size} scales"


def _layer(network: Network, node: onnx.NodeProto) -> Iterator[str]:
    codes = [network.maker(name, "DequantizeLinear") is not None for name in node.input[:2]]
    if any(codes) and not all(codes):
        yield "one of its factors has codes and the other has none"
    for name in node.input[2:]:
        if network.maker(name, "DequantizeLinear", "QuantizeLinear") is not None:
            yield "its bias has codes"
    weight = network.maker(node.input[1], "DequantizeLinear")
    if weight is not None and node.op_type != "MatMul" and any(n not in network.constants for n in weight.input):
        yield "its weight cannot be folded into a constant"


def _add(network: Network, node: onnx.NodeProto) -> Iterator[str]:
    """A layer and the residual Add behind it are one kernel if the layer gives floats and the other input is codes."""
    if any(name in network.constants for name in node.input):
        return
    sources = [network.maker(name) for name in node.input]
    direct = [network.is_quantized(s) for s in sources]
    coded = [s is not None and s.op_type == "DequantizeLinear" for s in sources]
    behind = [network.maker(s.input[0], "QuantizeLinear") if s is not None and c else None
              for s, c in zip(sources, coded, strict=True)]  # fmt: skip
    rounded = [q is not None and network.is_quantized(network.maker(q.input[0])) for q in behind]
    if all(coded) and any(rounded):
        yield "the result of a layer is quantized between it and the Add it would be fused with"
    if any(direct) and not any(coded) and _is_quantized_behind(network, node):
        yield "its residual input has no codes"


def _is_quantized_behind(network: Network, node: onnx.NodeProto) -> bool:
    readers = network.readers.get(node.output[0], [])
    behind = [r for n in readers if n.op_type in CLAMPS for r in network.readers.get(n.output[0], [])]
    return any(n.op_type == "QuantizeLinear" for n in (*readers, *behind))
