"""The reference of removed channels: the layers that read them take them for 0.

Written without what `onnxq.passes` knows. The model is cut at its layers; a channel of one layer is changed, and where
the input of another layer changes, that channel is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.graphs import Feed, session

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
POKES = (1000.0, -1000.0)


def masked(model: onnx.ModelProto, kept: Mapping[str, NDArray[np.int64]], feed: Feed) -> onnx.ModelProto:
    """The model in which every layer multiplies its input by 0 where it comes from removed channels.

    Args:
        model: The float model; every node has a name.
        kept: Output channels that are left, by name of the layer.
        feed: Inputs to find the channels with.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {t.name: t for t in result.graph.initializer}
    layers = [n for n in model.graph.node if is_layer(n, constants)]
    dead = read_channels(model, layers, kept, feed)
    for number, node in enumerate(layers):
        gone = dead[node.name]
        shape = [1] * gone.ndim
        axis = channel_axis(node, gone.ndim)
        shape[axis] = -1
        gone = gone.any(axis=tuple(i for i in range(gone.ndim) if i != axis))
        mask = numpy_helper.from_array((~gone).astype(np.float32).reshape(shape), f"mask_{number}")
        result.graph.initializer.append(mask)
        extra = helper.make_node("Mul", [node.input[0], mask.name], [f"masked_{number}"], name=f"masking_{number}")
        position = next(i for i, n in enumerate(result.graph.node) if n.name == node.name)
        result.graph.node[position].input[0] = f"masked_{number}"
        result.graph.node.insert(position, extra)
    return result


def read_channels(
    model: onnx.ModelProto, layers: list[onnx.NodeProto], kept: Mapping[str, NDArray[np.int64]], feed: Feed
) -> dict[str, NDArray[np.bool_]]:
    """Which elements of the layers' inputs come from removed channels, by name of the layer."""
    values = run_inner(model, [n.output[0] for n in layers], feed)
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    names = {n.name for n in layers}
    for node in [n for n in cut.graph.node if n.name in names]:
        cut.graph.node.remove(node)
        dims = values[node.output[0]].shape
        cut.graph.input.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, dims))
    feed = {**feed, **values}
    wanted = [n.input[0] for n in layers]
    before = run_inner(cut, wanted, feed)
    dead = {n.name: np.zeros(before[n.input[0]].shape, np.bool_) for n in layers}
    for node in layers:
        if node.name not in kept:
            continue
        value = values[node.output[0]]
        axis = channel_axis(node, value.ndim)
        index: list[object] = [slice(None)] * value.ndim
        index[axis] = np.delete(np.arange(value.shape[axis]), kept[node.name])
        for poke in POKES:
            changed = value.copy()
            part = changed[tuple(index)]
            changed[tuple(index)] = part + poke * np.random.default_rng(0).uniform(1, 2, part.shape)
            after = run_inner(cut, wanted, {**feed, node.output[0]: changed})
            for other in layers:
                dead[other.name] |= after[other.input[0]] != before[other.input[0]]
    return dead


def is_layer(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node is a layer that computes across channels."""
    if node.op_type not in LAYERS or node.input[1] not in constants:
        return False
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    dims = constants[node.input[1]].dims
    return not (groups > 1 and groups == (dims[1] * groups if node.op_type == "Conv" else dims[0]))


def channel_axis(node: onnx.NodeProto, rank: int) -> int:
    return 1 if node.op_type in ("Conv", "ConvTranspose") else rank - 1


def run_inner(model: onnx.ModelProto, names: list[str], feed: Feed) -> Feed:
    """Values of inner tensors."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    made = {out for n in result.graph.node for out in n.output}
    result.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names) if n in made)
    wanted = [o.name for o in result.graph.output]
    values = dict(zip(wanted, session(result).run(wanted, feed), strict=True)) if wanted else {}
    return {name: values[name] if name in values else feed[name] for name in names}
