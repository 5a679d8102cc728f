"""Models that are made up: many nodes with tiny weights, and few nodes with more weights than memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 4
_BLOCK_NODES = 10


class _Writer:
    """Appends nodes and constants to lists; names are numbers, as exporters give them."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, x: str, channels: int, kernel: int) -> str:
        fan_in = channels * kernel * kernel
        weight = self._rng.normal(size=(CHANNELS, channels, kernel, kernel)) / np.sqrt(fan_in)
        pads = [kernel // 2] * 4
        return self.node("Conv", [x, self.constant(weight)], kernel_shape=[kernel, kernel], pads=pads)

    def conv_bn(self, x: str, channels: int = CHANNELS, kernel: int = 3) -> str:
        y = self.conv(x, channels, kernel)
        rng = self._rng
        scale, shift = rng.uniform(0.8, 1.2, CHANNELS), rng.normal(0.0, 0.1, CHANNELS)
        mean, variance = rng.normal(0.0, 0.1, CHANNELS), rng.uniform(0.5, 1.5, CHANNELS)
        return self.node("BatchNormalization", [y, *map(self.constant, (scale, shift, mean, variance))])

    def conv_bn_relu(self, x: str, channels: int = CHANNELS, kernel: int = 3) -> str:
        return self.node("Relu", [self.conv_bn(x, channels, kernel)])


def many_nodes(count: int, *, size: int = 4) -> onnx.ModelProto:
    """A network of `count` nodes: Conv-BatchNormalization-Relu, residual Adds, a Concat in every second block.

    Args:
        count: How many nodes, rounded down to whole blocks of 10.
        size: Height and width of the images.
    """
    w = _Writer()
    x = "image"
    for block in range(count // _BLOCK_NODES):
        y = w.conv_bn_relu(x)
        if block % 2:  # 3 + 3 + 1 + 3 nodes
            z = w.conv_bn_relu(y, kernel=1)
            x = w.conv_bn_relu(w.node("Concat", [y, z], axis=1), 2 * CHANNELS, 1)
        else:  # 3 + 3 + 2 + 1 + 1 nodes
            y = w.conv_bn(w.conv_bn_relu(y, kernel=1))
            x = w.node("Relu", [w.node("Add", [x, y])])
    shape = ["N", CHANNELS, size, size]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    output = helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)
    graph = helper.make_graph(w.nodes, "many_nodes", [image], [output], w.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def many_weights(path: Path, gigabytes: float, *, width: int = 4096) -> None:
    """Write a chain of MatMul and Gemm layers with its weights in a file beside it.

    The first tenth of each weight's rows is random, the rest is a hole in the file, which reads as zeros:
    the model takes little disk, but whoever reads it gets all of it.

    Args:
        path: The model; its weights are in ``path.name + ".data"``.
        gigabytes: Size of all weights.
        width: Rows and columns of one weight.
    """
    layer_bytes = 4 * width * width
    layers = max(1, round(gigabytes * 1e9 / layer_bytes))
    rng = np.random.default_rng(0)
    nodes, constants = [], []
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for k in range(layers):
            file.seek(k * layer_bytes)
            rows = rng.standard_normal((width // 10, width), np.float32)
            file.write((rows * np.float32((width / 10) ** -0.5)).tobytes())
            constants.append(_external(f"w{k}", width, data.name, k * layer_bytes))
            source, sink = ("x" if k == 0 else f"h{k}"), ("y" if k == layers - 1 else f"h{k + 1}")
            nodes.append(helper.make_node(("MatMul", "Gemm")[k % 2], [source, f"w{k}"], [sink], name=f"layer{k}"))
        file.truncate(layers * layer_bytes)
    shape = ["N", width]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph(nodes, "many_weights", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _external(name: str, width: int, location: str, offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[width, width])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", 4 * width * width)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
