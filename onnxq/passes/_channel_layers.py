"""How channels pass layers with weights: input channels end there, output channels begin."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import Node, Tensor
from onnxq.passes._channel_units import (
    NONE,
    Labels,
    Layer,
    Mask,
    Trace,
    count,
    cut_constant,
    keep,
    sizes_of,
    write_constant,
)
from onnxq.passes._linear import LINEAR_OPS, WeightLayout, describe, kind, optional_input


def pass_layer(trace: Trace, node: Node) -> None:
    """Conv, ConvTranspose, Gemm and MatMul."""
    problem = _why_not(trace, node)
    if problem is not None:
        trace.reasons[id(node)] = problem
        trace.fix_inputs(node, f"cannot lose input channels: {problem}")
        return
    weight = node.inputs[1]
    shape = sizes_of(trace.graph, weight)
    conv = node.op in ("Conv", "ConvTranspose")
    groups = int(node.attrs.get("group", 1)) if conv else 1
    out_first = node.op == "Conv" or (node.op == "Gemm" and bool(node.attrs.get("transB", 0)))
    layout = WeightLayout(shape, groups, out_first)
    inputs = _inputs(trace, node, layout, conv)
    if layout.groups == layout.in_channels > 1:
        _depthwise(trace, node, layout, inputs)
        return
    layer = Layer(node, weight, layout, trace.units.new(layout.out_channels))
    trace.layers.append(layer)
    _bias(trace, node, layer.units)
    _weight(trace, layer, inputs)
    rank = trace.graph.rank(node.outputs[0])
    if rank is None:
        trace.units.fix(layer.units, f"the rank of {node.outputs[0].name!r} is not known")
        return
    trace.put(node.outputs[0], 1 if conv else rank - 1, layer.units)


def _why_not(trace: Trace, node: Node) -> str | None:
    """Why a layer can lose neither inputs nor outputs."""
    graph = trace.graph
    weight = node.inputs[1]
    if graph.is_constant(node.inputs[0]):
        return "its first input is a constant"
    if not graph.is_constant(weight):
        return f"its weight {weight.name!r} is not a constant"
    if np.dtype(graph.dtype(weight) or np.int8).kind not in "fV":
        return f"its weight {weight.name!r} is {graph.dtype(weight)}"
    if not graph.is_private(weight):
        others = [describe(u.node) for u in graph.consumers(weight) if u.node is not node]
        who = " and ".join(dict.fromkeys(others)) or "something else"
        return f"its weight {weight.name!r} is shared with {who}"
    rank = graph.rank(weight) or 0
    if node.op in ("Gemm", "MatMul") and (rank != 2 or int(node.attrs.get("transA", 0))):
        return "its weight is no matrix that its input's last axis is multiplied with"
    if node.op in ("Conv", "ConvTranspose") and rank < 3:
        return f"its weight has shape {graph.shape(weight)}"
    bias = optional_input(node, 2)
    if bias is not None and not graph.is_constant(bias):
        return f"its bias {bias.name!r} is not a constant"
    return None


def _inputs(trace: Trace, node: Node, layout: WeightLayout, conv: bool) -> Labels:
    """Units of the input channels; fixes those that are not where the weight expects them."""
    place, rank = trace.at(node.inputs[0]), trace.graph.rank(node.inputs[0])
    nothing = np.full(layout.in_channels, NONE)
    if place is None:
        return nothing
    if rank is None or place.axis != (1 if conv else rank - 1) or len(place.labels) != layout.in_channels:
        trace.fix_inputs(node, "does not read its channels as channels")
        return nothing
    return place.labels


def _bias(trace: Trace, node: Node, labels: Labels) -> None:
    bias = optional_input(node, 2)
    if bias is None:
        return
    shape = trace.graph.shape(bias) or ()
    if shape and shape[-1] == len(labels) != 1:
        trace.cut(node, 2, len(shape) - 1, labels)


def _weight(trace: Trace, layer: Layer, inputs: Labels) -> None:
    """Note how the weight shrinks with both its inputs and its outputs."""
    groups, units = layer.layout.groups, layer.units
    node, both = layer.node, np.concatenate([inputs, layer.units])
    first, second = (units, inputs) if layer.layout.out_first else (inputs, units)
    if groups == 1:
        trace.edit(both, lambda alive: cut_constant(trace.graph, node, 1, _kept(alive, first, second)))
        return
    problem = f"{describe(node)} would get groups of different sizes"
    trace.groups += [(list(part.reshape(groups, -1)), problem) for part in (inputs, units)]
    trace.edit(both, lambda alive: _cut_groups(trace, node, groups, (first, second), alive))


def _kept(alive: Mask, first: Labels, second: Labels) -> dict[int, Labels]:
    kept = {0: keep(first, alive), 1: keep(second, alive)}
    return {axis: k for axis, k in kept.items() if len(k) < len((first, second)[axis])}


def _cut_groups(trace: Trace, node: Node, groups: int, labels: tuple[Labels, Labels], alive: Mask) -> None:
    """Shrink a weight of several groups, each of which keeps other channels."""
    rows, columns = ([keep(part, alive) for part in part_labels.reshape(groups, -1)] for part_labels in labels)
    size = len(labels[0]) // groups

    def make(array: NDArray[Any]) -> NDArray[Any]:
        parts = array.reshape(groups, size, *array.shape[1:])
        kept = [part[np.ix_(r, c)] for part, r, c in zip(parts, rows, columns, strict=True)]
        return np.concatenate(kept)

    shape = sizes_of(trace.graph, node.inputs[1])
    new = (sum(map(len, rows)), len(columns[0]), *shape[2:])
    write_constant(trace.graph, node, 1, make, new)


def _depthwise(trace: Trace, node: Node, layout: WeightLayout, inputs: Labels) -> None:
    """Every channel by itself: the outputs are the inputs, each as often as the weight says."""
    times = layout.out_channels // layout.in_channels
    outputs = np.repeat(inputs, times)
    if (inputs < 0).all():
        trace.reasons[id(node)] = "it is depthwise, and its channels come from no layer that could lose some"
        return
    trace.reasons[id(node)] = "it is depthwise: it loses the channels that its input loses"
    first = outputs if layout.out_first else inputs
    _bias(trace, node, outputs)
    trace.cut(node, 1, 0, first)
    trace.edit(inputs, lambda alive: node.attrs.update(group=count(inputs, alive)))
    trace.put(node.outputs[0], 1, outputs)


def normalise(trace: Trace, node: Node) -> None:
    """BatchNormalization and InstanceNormalization: one number of each parameter for a channel."""
    place = trace.at(node.inputs[0])
    others: list[Tensor] = list(node.inputs[1:])
    if place is None:
        trace.fix_inputs(node, "reads its channels as parameters")
        return
    if place.axis != 1 or not all(trace.graph.is_constant(t) for t in others):
        trace.fix_inputs(node, "has parameters that are no constants")
        return
    if any(o.name and (o.outputs or trace.graph.is_output(o)) for o in node.outputs[1:]):
        trace.fix_inputs(node, "gives its statistics as outputs")
        return
    for index in range(1, len(node.inputs)):
        trace.cut(node, index, 0, place.labels)
    trace.follow(node, place)


def is_layer(node: Node) -> bool:
    """Whether a node is a layer with a weight."""
    return kind(node) in LINEAR_OPS
